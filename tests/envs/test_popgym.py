"""The tasks of POPGym: dynamics, rewards and observations are the package's, from copied states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong.envs.base import BatchedEnv
from lifelong.envs.errors import EnvError
from lifelong.envs.memory.battleship import SHIPS, boards
from lifelong.envs.memory.labyrinth import GOAL, START, mazes
from lifelong.envs.memory.popgym import POPGymTask, deal
from lifelong.envs.tasks import environment_class
from lifelong.kernels.loop import loop

LEVELS = ("easy", "medium", "hard")
CARDS = ("RepeatFirst", "Autoencode", "CountRecall", "HigherLower")
TASKS = (*CARDS, "Concentration", "Battleship", "MineSweeper", "MultiarmedBandit")
MAZES = ("LabyrinthExplore", "LabyrinthEscape")
#: name -> our parameters by difficulty
PHYSICS: dict[str, list[dict[str, float]]] = {
    "PositionOnlyCartPole": [{"max_episode_steps": n} for n in (200, 400, 600)],
    "VelocityOnlyCartPole": [{"max_episode_steps": n} for n in (200, 400, 600)],
    "NoisyPositionOnlyCartPole": [{"noise": s} for s in (0.1, 0.2, 0.3)],
    "PositionOnlyPendulum": [{"max_episode_steps": n} for n in (200, 150, 100)],
    "NoisyPositionOnlyPendulum": [{"noise": s} for s in (0.1, 0.2, 0.3)],
}


def original(name: str, level: str) -> Any:
    """The package's environment of that name and difficulty."""
    popgym = pytest.importorskip("popgym")
    if name in MAZES:
        pytest.importorskip("mazelib")
    return getattr(popgym.envs, name + level.capitalize())()


def ours(name: str, level: str, copies: int, seed: int = 0) -> BatchedEnv:
    if name in PHYSICS:
        return environment_class(name)(copies, seed=seed, **PHYSICS[name][LEVELS.index(level)])
    if name == "RepeatPrevious":
        lag, length = {"easy": (3, 51), "medium": (31, 103), "hard": (63, 155)}[level]
        return environment_class(name)(copies, seed=seed, lag=lag, length=length)
    return environment_class(name)(copies, seed=seed, difficulty=level)


def decoded(env: Any, obs: Tensor) -> np.ndarray:
    """The categories that an observation shows."""
    if not obs.is_floating_point():
        return obs.numpy()
    counts = env.categories if isinstance(env, POPGymTask) else (env.symbols,)
    return torch.stack([part.argmax(1) for part in obs.split(counts, 1)], 1).numpy()


class Episodes:
    """An episode of every copy, without resets: states, actions, rewards and ends, one after the other."""

    def __init__(self, name: str, level: str, copies: int, steps: int) -> None:
        self.env = env = ours(name, level, copies)
        env.reset()
        env.action_space.seed(1)
        self.states, self.actions, self.rewards, self.ends = [env.state], [], [], []
        for _ in range(steps):
            action = torch.as_tensor(env.action_space.sample())
            state, reward, over, _ = env.advance(self.states[-1], action)
            self.states.append(state)
            self.actions.append(action)
            self.rewards.append(reward)
            self.ends.append(over)
        self.obs = [env.observe(state) for state in self.states]

    def of(self, b: int) -> SimpleNamespace:
        """The states of a copy, as arrays: field -> [steps + 1, ...]."""
        names = [f.name for f in fields(self.states[0])]
        return SimpleNamespace(**{n: np.stack([getattr(s, n)[b].numpy() for s in self.states]) for n in names})

    def steps(self, b: int) -> Iterator[tuple[int, np.ndarray, float, bool]]:
        """(t, action, reward, end) of a copy, until it ends."""
        for t, (action, reward, over) in enumerate(zip(self.actions, self.rewards, self.ends, strict=True)):
            yield t, action[b].numpy(), float(reward[b]), bool(over[b])
            if over[b]:
                return


def stack(deck: Any, dealt: np.ndarray, kinds: str) -> None:
    """Make a deck deal these kinds, in order, from its next reset on: cards of those kinds, or all of its cards become
    what ours were if it has not so many of a kind."""
    has = getattr(deck, kinds)
    dealt = dealt[: deck.num_cards].astype(np.int64)
    pools = {kind: list(np.where(has == kind)[0]) for kind in np.unique(has)}
    if all(np.sum(dealt == kind) <= len(pool) for kind, pool in pools.items()):
        order = [pools[kind].pop() for kind in dealt]
        order += [card for pool in pools.values() for card in pool]
    else:
        order = list(range(deck.num_cards))
        setattr(deck, kinds, np.concatenate((dealt, has[len(dealt) :])))

    def reset(shuffle: bool = True, rng: Any = None) -> None:
        type(deck).reset(deck, shuffle=False)
        deck.idx = np.array(order[::-1])

    deck.reset = reset


def prepare(name: str, env: Any, s: SimpleNamespace, last: int) -> None:
    """Give the package's environment what ours drew in an episode of `last` steps."""
    if name in ("RepeatFirst", "RepeatPrevious"):
        stack(env.deck, s.card if name == "RepeatFirst" else s.history[:, 0], "suits_idx")
    elif name == "Autoencode":
        place = np.arange(min(last + 1, env.deck.num_cards))
        stack(env.deck, s.cards[-1][place // 31] >> 2 * (place % 31) & 3, "suits_idx")
    elif name == "HigherLower":
        stack(env.deck, s.card, "ranks_idx")
    elif name == "CountRecall":
        N = env.value_deck.num_cards
        for deck, offset in ((env.value_deck, 0), (env.query_deck, N)):
            deck.reset = lambda rng=None, deck=deck, offset=offset: (
                type(deck).reset(deck, shuffle=False),
                setattr(deck, "idx", np.arange(N) + offset),
            )
        halves = []
        for dealt in (s.value, s.query):
            order = np.zeros(N, np.int64)
            order[: min(N, len(dealt))] = dealt[:N]
            halves.append(order[::-1])
        env.deck_idx_type = np.concatenate(halves)
    elif name == "Concentration":
        known = s.kinds[last].astype(np.int64)
        env.deck_idx_type = env.deck_type = np.where(known == env.facedown_card, 0, known)
        env.deck.reset = lambda rng=None: (
            type(env.deck).reset(env.deck, shuffle=False),
            setattr(env.deck, "idx", np.arange(env.deck.num_cards)),
        )
    elif name == "MineSweeper":
        env._np_random = SimpleNamespace(choice=lambda cells, size, replace: s.mines[0])
    elif name == "MultiarmedBandit":
        draws = iter(s.paid[1:])
        env._np_random = SimpleNamespace(
            random=lambda size=None, dtype=None: s.pays[0].copy() if size else (0.0 if next(draws) else 1.0)
        )
    env.reset()
    if name == "Battleship":
        env.board = boards(env.board_size)[int(s.board[0])].numpy().reshape(env.board_size, -1).astype(np.int8)


def shapes(name: str, level: str) -> tuple[int, int]:
    """Copies and steps: more than 1,000 steps in all."""
    length = {
        "RepeatFirst": (51, 415, 831),
        "RepeatPrevious": (51, 103, 155),
        "Autoencode": (103, 207, 311),
        "HigherLower": (51, 103, 155),
        "CountRecall": (51, 103, 207),
        "Concentration": (104, 208, 104),
        "Battleship": (64, 100, 144),
        "MineSweeper": (14, 30, 54),
        "MultiarmedBandit": (200, 400, 600),
    }[name][LEVELS.index(level)]
    return (400 if name == "MineSweeper" else 1000 // length + 1), length


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", [*TASKS, "RepeatPrevious"])
def test_an_episode_is_popgyms_from_its_first_to_its_last_step(name: str, level: str) -> None:
    env, (copies, length) = original(name, level), shapes(name, level)
    made = Episodes(name, level, copies, length)
    shown = [decoded(made.env, obs) for obs in made.obs]
    board = getattr(env, "board_size", None) or (env.dims[0] if hasattr(env, "dims") else None)
    compared = 0
    for b in range(copies):
        steps = list(made.steps(b))
        prepare(name, env, made.of(b), len(steps))
        assert steps[-1][3], "our episode does not end"
        for t, action, reward, over in steps:
            obs, wanted, terminated, truncated, _ = env.step(
                (int(action) // board, int(action) % board) if board else int(action)
            )
            assert reward == pytest.approx(wanted, abs=1e-6), (b, t)
            assert over == bool(terminated or truncated), (b, t)
            if name == "HigherLower" and t + 1 == length:
                continue
            assert np.array_equal(shown[t + 1][b], np.asarray(obs).reshape(-1)), (b, t)
            compared += 1
    assert compared >= 900


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", TASKS)
def test_first_observations_are_popgyms(name: str, level: str) -> None:
    env, made = original(name, level), Episodes(name, level, 3, 3)
    for b in range(3):
        prepare(name, env, made.of(b), 3)
        obs = env.get_obs() if name == "Concentration" else env.reset()[0]
        assert np.array_equal(decoded(made.env, made.obs[0])[b], np.asarray(obs).reshape(-1))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", PHYSICS)
def test_a_step_of_physics_is_popgyms(name: str, level: str) -> None:
    """From states on the way, copied at every step."""
    env, reference = ours(name, level, 40), original(name, level)
    env.reset()
    env.action_space.seed(0)
    reference.reset(seed=0)
    real = reference.np_random
    for _ in range(25):
        state: Any = env.state
        action = torch.as_tensor(env.action_space.sample())
        following, reward, terminated, _ = env.advance(state, action)
        obs = env.observe(following)
        for b in range(40):
            reference._np_random = real
            reference.num_steps = 0
            reference.state = state.physics[b].double().numpy()
            reference.steps_beyond_terminated = None
            if "Noisy" in name:
                noise = following.noise[b].double().numpy()
                reference._np_random = SimpleNamespace(normal=lambda mean, sigma, noise=noise: mean + sigma * noise)
            wanted = reference.step(action[b].numpy() if action.dim() > 1 else int(action[b]))
            np.testing.assert_allclose(obs[b].numpy(), wanted[0], rtol=1e-5, atol=1e-5)
            assert float(reward[b]) == pytest.approx(wanted[1], rel=1e-4, abs=1e-6)
            assert bool(terminated[b]) == wanted[2]
        env.step(action)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", MAZES)
def test_a_walk_through_a_labyrinth_is_popgyms(name: str, level: str) -> None:
    """Views at the left and the upper side, which its own moves along, are compared after moving ours."""
    env, made = original(name, level), Episodes(name, level, 4, 260)
    side, task = mazes(len(made.env.table[0]) // 2 - 1).shape[1] - 2, made.env
    compared = 0
    for b in range(4):
        s = made.of(b)
        env.reset()
        grid = task.table[int(s.maze[0])].numpy()[1:-1, 1:-1].astype(np.int8)
        assert grid.shape == env.maze.grid.shape == (side, side)
        env.pos_reward_scale = 1 / (grid == 0).sum()
        grid[tuple(s.start[0])] = START
        if name == "LabyrinthEscape":
            grid[tuple(s.goal[0])] = GOAL
        env.maze.grid, env.position, env.curr_step = grid, tuple(int(x) for x in s.start[0]), 0
        env.explored = np.zeros_like(grid)
        env.explored[env.position] = 1
        for t, action, reward, over in made.steps(b):
            obs, wanted, terminated, _, _ = env.step(int(action))
            assert tuple(s.place[t + 1]) == env.position
            assert reward == pytest.approx(wanted, abs=1e-6) and over == terminated
            *view, last = decoded(task, made.obs[t + 1])[b]
            seen = np.array(view).reshape(3, 3)
            for axis in (0, 1):
                if env.position[axis] == 0:
                    seen = np.delete(np.insert(seen, 3, 1, axis), 0, axis)
            assert last == obs[-1] == action and np.array_equal(seen.reshape(-1), obs[:-1])
            compared += 1
    assert compared >= 700 or name == "LabyrinthEscape"


def test_mazes_connect_all_rooms_by_one_path_each() -> None:
    for rooms in (5, 9):
        free = mazes(rooms)[:64, 1:-1, 1:-1] == 0
        assert bool(free[:, 1::2, 1::2].all()) and not bool(free[:, ::2, ::2].any())
        assert free.sum((1, 2)).tolist() == [2 * rooms * rooms - 1] * 64  # a tree has one opening less than rooms
        reached = torch.zeros_like(free)
        reached[:, 1, 1] = True
        for _ in range(free[0].numel()):
            grown = torch.nn.functional.pad(reached, (1, 1, 1, 1))
            around = grown[:, 1:-1, 2:] | grown[:, 1:-1, :-2] | grown[:, 2:, 1:-1] | grown[:, :-2, 1:-1]
            reached = reached | (around & free)
        assert torch.equal(reached, free)


def test_boards_have_every_ship_once_in_a_row() -> None:
    for size in (8, 12):
        assert boards(size).sum(1).tolist() == [sum(SHIPS)] * len(boards(size))
    popgym = pytest.importorskip("popgym")
    env = popgym.envs.BattleshipEasy()
    theirs = np.mean([(env.reset(seed=i), env.board.copy())[1] for i in range(2000)], 0)
    share = boards(8).float().mean(0).view(8, 8).numpy()
    assert np.abs(share - theirs).max() < 5 * np.sqrt(0.25 * 0.75 * (1 / 2000 + 1 / 8192))


@pytest.mark.parametrize("kinds", [2, 4, 13])
def test_a_deck_is_dealt_to_its_last_card_and_every_order_is_as_likely(kinds: int) -> None:
    """The third card given the first two has the chances of a deck from which they were taken."""
    generator = torch.Generator().manual_seed(kinds)
    each, copies = 52 // kinds, 20_000
    left, dealt = torch.full((copies, kinds), each), []
    for _ in range(52):
        kind, left = deal(left, torch.rand(copies, generator=generator))
        dealt.append(kind)
    assert not left.any()
    order = torch.stack(dealt)
    assert torch.equal(torch.nn.functional.one_hot(order, kinds).sum(0), torch.full((copies, kinds), each))
    same = (order[0] == 0) & (order[1] == 0)
    share, wanted = float((order[2][same] == 0).float().mean()), (each - 2) / 50
    assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / int(same.sum())) ** 0.5
    last = float((order[51] == order[0]).float().mean())
    wanted = (each - 1) / 51
    assert abs(last - wanted) < 4 * (wanted * (1 - wanted) / copies) ** 0.5


def returns_of(env: BatchedEnv, episodes: int) -> np.ndarray:
    """Returns of the first `episodes` episodes of random actions to begin, from all copies alike."""
    env.reset(seed=5)
    env.action_space.seed(6)
    found: list[np.ndarray] = []
    per_copy, counted = -(-episodes // env.num_envs), np.zeros(env.num_envs, int)
    while counted.min() < per_copy:
        rows = torch.stack([torch.as_tensor(env.action_space.sample()) for _ in range(64)])
        made = env.compiled_steps(rows)
        if made is None:  # steps in torch
            steps = [env.step(row)[4] for row in rows]
            done, returns = (
                np.stack([info[key].numpy() for info in steps]) for key in ("_final_obs", "episode_return")
            )
        else:
            made.begin()
            loop(64, made.calls, torch.float32)
            made.finish()
            done, returns = made.is_init[1:].numpy(), made.episode_return.numpy()
        for t in range(64):
            ended = done[t] & (counted < per_copy)
            found.append(returns[t][ended])
            counted += ended
    return np.concatenate(found)


#: the mean return of random actions, where it is known
EXPECTED: dict[str, Callable[[int], float]] = {
    "RepeatFirst": lambda level: -0.5,
    "Autoencode": lambda level: -0.5,
    "HigherLower": lambda level: 0.0,
    "CountRecall": lambda level: 2 / (27, 27, 17)[level] - 1,
    "MultiarmedBandit": lambda level: 0.0,
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", EXPECTED)
def test_random_actions_have_their_expected_return(name: str, level: str) -> None:
    returns = returns_of(ours(name, level, 512), 1024)
    error = returns.std(ddof=1) / len(returns) ** 0.5
    assert abs(returns.mean() - EXPECTED[name](LEVELS.index(level))) < 4 * error
    assert returns.min() >= -1.0001 and returns.max() <= 1.0001


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", [*TASKS, "RepeatPrevious", *PHYSICS, *MAZES])
def test_random_actions_return_on_average_what_they_return_in_popgym(name: str, level: str) -> None:
    """10,000 episodes of ours; of the package as many as 300,000 steps have."""
    env, mine = original(name, level), returns_of(ours(name, level, 1000), 10_000)
    env.reset(seed=0)
    env.action_space.seed(0)
    theirs: list[float] = []
    steps, total = 0, 0.0
    while steps < 300_000 and len(theirs) < 10_000:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        steps, total = steps + 1, total + reward
        if terminated or truncated:
            theirs.append(total)
            total = 0.0
            env.reset()
    other = np.array(theirs)
    error = (mine.var(ddof=1) / len(mine) + other.var(ddof=1) / len(other)) ** 0.5
    assert abs(mine.mean() - other.mean()) < 3 * error, (mine.mean(), other.mean(), error)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("name", [*TASKS, *MAZES])
def test_larger_tasks_compile_to_the_bit(name: str, level: str) -> None:
    quick, slow = ours(name, level, 9), ours(name, level, 9)
    quick.reset(seed=2)
    slow.reset(seed=2)
    for _ in range(600):
        action = torch.as_tensor(slow.action_space.sample())
        got, wanted = quick.step(action), slow.eager_step(action)
        for a, b in zip((*got[:4], got[4]["final_obs"]), (*wanted[:4], wanted[4]["final_obs"]), strict=True):
            assert torch.equal(a, b)
    assert quick._compiled_env


def test_the_first_observation_of_velocities_is_one_of_velocities() -> None:
    """The package shows the positions there."""
    env = ours("VelocityOnlyCartPole", "easy", 5)
    obs, _ = env.reset(seed=0)
    assert torch.equal(obs, env.state.physics[:, 1::2])


@pytest.mark.parametrize("name", [*TASKS, *MAZES])
def test_another_difficulty_is_refused_with_the_nearest_one(name: str) -> None:
    with pytest.raises(EnvError, match="did you mean 'medium'"):
        environment_class(name)(2, difficulty="medum")
