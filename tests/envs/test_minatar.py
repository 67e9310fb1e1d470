"""The games of MinAtar: frames, rewards and ends are the package's, given the same draws."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lifelong.envs.arcade.minatar import FIRE, MinAtarGame
from lifelong.envs.errors import EnvError
from lifelong.envs.tasks import environment_class
from tests.envs.test_popgym import returns_of

GAMES = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}


def original(name: str, **options: Any) -> Any:
    pytest.importorskip("minatar")
    return importlib.import_module(f"minatar.environments.{GAMES[name]}").Env(**options)


class Recorded:
    """A game whose draws of a step are kept; `units` holds those of one copy, in order."""

    def __init__(self, game: MinAtarGame) -> None:
        self.draws: list[torch.Tensor] = []
        draw = game.unit

        def unit(*shape: int) -> torch.Tensor:
            self.draws.append(draw(*shape))
            return self.draws[-1]

        game.unit = unit  # type: ignore[method-assign]

    def of(self, b: int) -> list[np.ndarray]:
        return [draw[b].double().numpy().reshape(-1) for draw in self.draws]


class Given:
    """A numpy.random.RandomState that gives what it is told: uniform numbers, and integers from them."""

    def __init__(self) -> None:
        self.left: list[np.ndarray] = []

    def rand(self, *size: int) -> Any:
        value = self.left.pop(0)
        return value if size else float(value[0])

    def randint(self, low: int, high: int | None = None, size: int | None = None) -> Any:
        low, high = (0, low) if high is None else (low, high)
        made = low + (self.left.pop(0) * np.float32(high - low)).astype(np.int64)
        return made if size else int(made[0])


def in_order(name: str, draws: list[np.ndarray], due: tuple[bool, bool]) -> list[np.ndarray]:
    """The draws of `play`, as the package asks for them."""
    if name in ("Breakout", "SpaceInvaders"):
        return []
    (unit, *_) = draws
    if name == "Freeway":
        return [unit[:8], unit[8:]]
    if name == "Asterix":
        return [unit[0:1], unit[1:2], unit[2:3]]
    enemy, diver = [unit[0:1], unit[1:2], unit[2:3]], [unit[3:4], unit[4:5]]
    return [*(enemy if due[0] else []), *(diver if due[1] else [])]


def begin(name: str, env: Any, game: MinAtarGame, b: int) -> None:
    """Put the package's game where ours begins."""
    state: Any = game.state
    given = env.random = Given()
    if name == "Breakout":
        given.left = [np.array([0.25 if int(state.x[b]) == 0 else 0.75])]
    if name == "Freeway":
        speed = state.speed[b].numpy()
        given.left = [(np.abs(speed) - 1 + 0.5) / 5, np.where(speed < 0, 0.25, 0.75)]
    env.reset()
    given.left = []


#: what makes games long: shots, and divers that are brought up
SKILL = {
    "Seaquest": [1, 3, 4, 4, 5, 5, 5],
    "SpaceInvaders": [1, 3, 5, 5, 5],
    "Asterix": [0, 1, 2, 3, 4],
    "Breakout": [0, 1, 3],
    "Freeway": [2, 2, 2, 2, 2, 4],
}


@pytest.mark.parametrize("name", GAMES)
def test_games_are_the_packages_frame_by_frame(name: str) -> None:
    """160 frames of eight copies with sticky actions; new games begin when they are over."""
    game = environment_class(name)(8, seed=3)
    recorded = Recorded(game)
    game.reset()
    envs = [original(name) for _ in range(8)]
    for b, env in enumerate(envs):
        begin(name, env, game, b)
    draw, ended, rewards = np.random.default_rng(0), 0, 0.0
    for t in range(160):
        state: Any = game.state
        if t % 4 == 0:  # for longer ways
            action = torch.from_numpy(draw.choice(SKILL[name], 8))
        taken = torch.where(state.luck < 0.1, state.last, action)
        due = [(False, False)] * 8
        if name == "Seaquest":
            due = list(zip((state.spawn_timer == 0).tolist(), (state.diver_spawn == 0).tolist(), strict=True))
        recorded.draws.clear()
        _, reward, terminated, _, info = game.eager_step(action)
        for b, env in enumerate(envs):
            env.random.left = in_order(name, recorded.of(b), due[b])
            wanted, over = env.act(int(taken[b]))
            assert float(reward[b]) == wanted and bool(terminated[b]) == over, (t, b)
            shown = info["final_obs"][b].numpy().astype(bool)
            assert np.array_equal(shown, env.state()), (t, b, np.argwhere(shown != env.state()))
            rewards, ended = rewards + wanted, ended + over
            if over:
                begin(name, env, game, b)
                assert np.array_equal(game.observe(game.state)[b].numpy().astype(bool), env.state())
    assert rewards >= {"Breakout": 10, "SpaceInvaders": 40, "Asterix": 4, "Seaquest": 1, "Freeway": 2}[name]
    assert ended > 0 or name == "Freeway"


@pytest.mark.parametrize("name", ["Seaquest", "Asterix", "SpaceInvaders"])
def test_games_that_became_fast_are_the_packages(name: str) -> None:
    """From copied states of a late game: little time between enemies, divers on board, aliens that are few."""
    game = environment_class(name)(6, seed=5, sticky=0.0)
    recorded = Recorded(game)
    game.reset()
    s: Any = game.state
    envs = [original(name) for _ in range(6)]
    for env in envs:
        env.random = Given()
        env.reset()
    if name == "Seaquest":
        game.state = SimpleCopy(s, spawn_speed=6, spawn_timer=2, move_speed=3, rescued=6, air=150, y=2, ramp=14)
        for env in envs:
            env.e_spawn_speed, env.e_spawn_timer, env.move_speed = 6, 2, 3
            env.diver_count, env.oxygen, env.sub_y, env.ramp_index = 6, 150, 2, 14
    elif name == "Asterix":
        game.state = SimpleCopy(s, spawn_speed=3, spawn_timer=1, move_speed=2, ramp=7, ramp_timer=-1)
        for env in envs:
            env.spawn_speed, env.spawn_timer, env.move_speed, env.ramp_index, env.ramp_timer = 3, 1, 2, 7, -1
    else:
        aliens = torch.zeros_like(s.aliens)
        aliens[:, 6] = 0b0000010010
        game.state = SimpleCopy(s, aliens=aliens, move_timer=1, interval=7)
        for env in envs:
            env.alien_map[:] = 0
            env.alien_map[6, [1, 4]] = 1
            env.alien_move_timer, env.enemy_move_interval = 1, 7
    alive, reward_sum, frames = [True] * 6, 0.0, 0
    draw = np.random.default_rng(1)
    for t in range(120):
        state: Any = game.state
        choice = [2, 2, 2, 2] if name == "Seaquest" and t < 3 else SKILL[name]
        action = torch.from_numpy(draw.choice(choice, 6))
        due = [(False, False)] * 6
        if name == "Seaquest":
            due = list(zip((state.spawn_timer == 0).tolist(), (state.diver_spawn == 0).tolist(), strict=True))
        recorded.draws.clear()
        following, reward, over = game.play(state, action)
        game.state = following
        shown = game.observe(following).numpy().astype(bool)
        for b, env in enumerate(envs):
            if not alive[b]:
                continue
            env.random.left = in_order(name, recorded.of(b), due[b])
            wanted, ended = env.act(int(action[b]))
            assert float(reward[b]) == wanted and bool(over[b]) == ended, (t, b)
            assert np.array_equal(shown[b], env.state()), (t, b, np.argwhere(shown[b] != env.state()))
            alive[b] = not ended
            reward_sum, frames = reward_sum + wanted, frames + 1
    assert reward_sum >= 2 and frames > 100


def SimpleCopy(state: Any, **values: Any) -> Any:
    """The state with other values, the same in all copies."""
    fields = {n: v if isinstance(v, torch.Tensor) else torch.full_like(getattr(state, n), v) for n, v in values.items()}
    return type(state)(**{**vars(SimpleNamespace(**state.__dict__)), **fields})


@pytest.mark.parametrize("name", GAMES)
def test_an_action_sticks_as_often_as_it_should(name: str) -> None:
    game = environment_class(name)(4000, sticky=0.25)
    game.reset(seed=0)
    before = torch.full((4000,), FIRE)
    game.state = SimpleCopy(game.state, last=before)
    after = game.advance(game.state, torch.zeros(4000, dtype=torch.int64))[0].last
    assert float((after == FIRE).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_games_of_one_stream_may_have_the_same_channels() -> None:
    pictures = {environment_class(name)(2, channels=10).single_observation_space.shape for name in GAMES}
    assert pictures == {(10, 10, 10)}
    wide, narrow = (environment_class("Breakout")(3, seed=1, channels=c) for c in (10, 0))
    a, b = wide.reset()[0], narrow.reset()[0]
    assert torch.equal(a[..., :4], b) and not a[..., 4:].any()
    with pytest.raises(EnvError, match="has 10, so give as many"):
        environment_class("Seaquest")(1, channels=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", GAMES)
def test_random_actions_return_on_average_what_they_return_in_minatar(name: str) -> None:
    """10,000 games of ours (of Freeway, which are 2501 frames long, 1,000); of the package in 400,000 frames."""
    pytest.importorskip("minatar")
    from minatar import Environment

    mine = returns_of(environment_class(name)(500, seed=1), 1000 if name == "Freeway" else 10_000)
    env = Environment(GAMES[name])
    env.seed(0)
    draw = np.random.default_rng(0)
    theirs, total = [], 0.0
    for _ in range(400_000):
        reward, over = env.act(int(draw.integers(6)))
        total += reward
        if over:
            theirs.append(total)
            total = 0.0
            env.reset()
    other = np.array(theirs)
    error = (mine.var(ddof=1) / len(mine) + other.var(ddof=1) / len(other)) ** 0.5
    assert abs(mine.mean() - other.mean()) < 3 * error, (mine.mean(), other.mean(), error)
