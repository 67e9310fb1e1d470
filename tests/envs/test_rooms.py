"""The tasks in rooms: walking worked by hand, what is touched and what it gives, and bounds to returns."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lifelong.envs.errors import EnvError
from lifelong.envs.rooms.explore_goal import RoomsExploreGoal
from lifelong.envs.rooms.key_door import NONE, RoomsKeyDoor
from lifelong.envs.rooms.rooms import (
    BACKWARD,
    FORWARD,
    FORWARD_LEFT,
    FORWARD_RIGHT,
    LEFT,
    NORTH,
    RADIUS,
    RIGHT,
    STAY,
    STRAFE_LEFT,
    STRAFE_RIGHT,
    Rooms,
)
from lifelong.envs.rooms.search import oracle
from lifelong.envs.rooms.select_non_matching import RoomsSelectNonMatching
from lifelong.envs.rooms.textures import GOAL, KEY, PAD
from lifelong.envs.rooms.water_maze import RoomsWaterMaze
from lifelong.kernels import dispatch

SMALL = {"height": 8, "width": 10}
TASKS = (RoomsWaterMaze, RoomsSelectNonMatching, RoomsKeyDoor, RoomsExploreGoal)


def at(env: Rooms, x: float, y: float, heading: float = 0.0, **more: Any) -> Any:
    """The environment's state with every body in one place."""
    place = {n: torch.full((env.num_envs,), v) for n, v in (("x", x), ("y", y), ("heading", heading))}
    return replace(env.state, **place, **more)


def act(env: Rooms, state: Any, *actions: int) -> tuple[Any, Tensor]:
    """The state after some actions in every copy, and the sum of rewards."""
    total = torch.zeros(env.num_envs)
    for action in actions:
        state, reward, _, _ = env.advance(state, torch.full((env.num_envs,), action))
        total = total + reward
    return state, total


@pytest.mark.parametrize(
    ("action", "heading", "moved", "turned"),
    [
        (FORWARD, 0.0, (0.25, 0.0), 0),
        (FORWARD, NORTH, (0.0, -0.25), 0),
        (BACKWARD, 0.0, (-0.25, 0.0), 0),
        (STRAFE_LEFT, 0.0, (0.0, -0.25), 0),
        (STRAFE_RIGHT, math.pi, (0.0, -0.25), 0),
        (LEFT, 0.3, (0.0, 0.0), -15),
        (RIGHT, 0.3, (0.0, 0.0), 15),
        (FORWARD_LEFT, 0.0, (0.25 * math.cos(math.pi / 12), -0.25 * math.sin(math.pi / 12)), -15),
        (FORWARD_RIGHT, 0.0, (0.25 * math.cos(math.pi / 12), 0.25 * math.sin(math.pi / 12)), 15),
        (STAY, 1.0, (0.0, 0.0), 0),
    ],
)
def test_actions_walk_and_turn(action: int, heading: float, moved: tuple[float, float], turned: int) -> None:
    env = RoomsWaterMaze(1, **SMALL)
    env.reset(seed=0)
    state = at(env, 4.2, 4.2, heading, platform=torch.tensor([0]))
    after, _ = act(env, state, action)
    assert (float(after.x - state.x), float(after.y - state.y)) == pytest.approx(moved, abs=1e-6)
    difference = float(after.heading - heading)
    assert math.cos(difference - math.radians(turned)) == pytest.approx(1, abs=1e-6)


def test_walls_hold_the_body_which_slides_along_them() -> None:
    env = RoomsWaterMaze(1, **SMALL, turn=30.0)
    env.reset(seed=0)
    far = {"platform": torch.tensor([env.size - 1])}
    ahead, _ = act(env, at(env, 2.5, 4.0, NORTH, **far), *[FORWARD] * 12)
    assert (float(ahead.x), float(ahead.y)) == pytest.approx((2.5, 1 + RADIUS), abs=2e-3)
    slid, _ = act(env, at(env, 2.5, 1.3, -math.pi / 6, **far), FORWARD, FORWARD)
    assert float(slid.x) == pytest.approx(2.5 + 2 * 0.25 * math.cos(math.pi / 6), abs=1e-4)
    assert float(slid.y) == pytest.approx(1 + RADIUS, abs=2e-3)


@pytest.mark.parametrize("task", TASKS)
def test_nobody_ever_stands_in_a_wall(task: type[Rooms]) -> None:
    env = blind(task(128, **SMALL, speed=0.45))
    env.reset(seed=1)
    for _ in range(60):
        env.eager_step(torch.where(torch.rand(128) < 0.6, FORWARD, torch.randint(9, (128,))))
        for x, y in ((-RADIUS, -RADIUS), (RADIUS, -RADIUS), (-RADIUS, RADIUS), (RADIUS, RADIUS)):
            cell = (env.state.y + y).long() * env.state.grid.shape[1] + (env.state.x + x).long()
            assert not env.state.grid.flatten(1).gather(1, cell.unsqueeze(1)).any()


def test_the_platform_is_not_seen_gives_ten_and_leads_elsewhere_but_stays() -> None:
    env = RoomsWaterMaze(200, **SMALL)
    env.reset(seed=2)
    platform = torch.full((200,), 3 * 7 + 4)  # the middle is at 5.5, 4.5
    state = at(env, 4.7, 4.5, 0.0, platform=platform)
    assert torch.equal(env.observe(state), env.observe(replace(state, platform=platform + 5)))
    near, nothing = act(env, state, FORWARD)
    assert not nothing.any() and float(near.x[0]) == pytest.approx(4.95)
    found, reward = act(env, near, FORWARD)
    assert (reward == 10).all()
    assert torch.equal(found.platform, platform)
    assert not ((found.x.long() == 5) & (found.y.long() == 4)).any()
    assert len(torch.unique(found.x)) == len(torch.unique(found.y)) == 7 and found.heading.std() > 1


def test_the_thing_that_was_not_shown_gives_ten_and_the_other_takes_ten() -> None:
    env = RoomsSelectNonMatching(400, **SMALL)
    env.reset(seed=3)
    first = env.state
    assert not first.second.any() and (first.kind[:, 1] == PAD).all()
    on_left = first.thing_x[:, 1] < 2.5
    assert 0.3 < float(on_left.float().mean()) < 0.7
    state, reward, over, _ = env.advance(
        replace(first, x=first.thing_x[:, 1], y=first.thing_y[:, 1] + 0.5), act_all(env, FORWARD)
    )
    assert (reward == 1).all() and state.second.all() and not over.any()
    assert (state.x == 6.5).all() and (state.y == 3.5).all()
    shown = state.kind[:, 0]
    for side in (2, 3):
        matches = state.kind[:, side] == shown
        assert 0.3 < float(matches.float().mean()) < 0.7
        assert torch.equal(matches, state.match == side - 2)
        there = replace(state, x=state.thing_x[:, side], y=state.thing_y[:, side] + 0.6)
        after, reward = act(env, there, FORWARD)
        assert torch.equal(reward, torch.where(matches, -10.0, 10.0))
        assert not after.second.any() and (after.x == 2.5).all()
        assert torch.equal(after.kind[:, 0], shown) and not torch.equal(after.kind[:, 2], state.kind[:, 2])
    assert (state.kind[:, 2] != state.kind[:, 3]).all()


def act_all(env: Rooms, action: int) -> Tensor:
    return torch.full((env.num_envs,), action)


def key_door(**options: Any) -> tuple[RoomsKeyDoor, Any]:
    env = RoomsKeyDoor(300, **SMALL, **options)
    env.reset(seed=4)
    return env, env.state


def to_thing(state: Any, k: int) -> Any:
    return replace(state, x=state.thing_x[:, k], y=state.thing_y[:, k])


def to_door(state: Any, k: int, room: int = 0) -> Any:
    """Before a door, on the side of the room of its key."""
    door_x, door_y = state.door[:, k] % 9 + 0.5, state.door[:, k] // 9 + 0.5
    inside_x, inside_y = (each[:, k].div(4, rounding_mode="floor") * 4 + 2.5 for each in (state.thing_x, state.thing_y))
    step_x, step_y = (inside_x - door_x).clamp(-0.75, 0.75), (inside_y - door_y).clamp(-0.75, 0.75)
    return replace(state, x=door_x + step_x, y=door_y + step_y)


def test_a_key_opens_its_door_once_and_the_apple_ends_the_episode() -> None:
    env, state = key_door(rooms=3, decoys=False, bonus=2.0)
    assert torch.equal(state.kind[:, :2] - KEY, state.colour) and (state.kind[:, 2] == GOAL).all()
    shut, reward = act(env, to_door(state, 0), STAY)
    assert not reward.any() and (shut.grid.flatten(1).gather(1, state.door) > 0).all()
    taken, reward = act(env, to_thing(state, 0), STAY)
    assert (reward == 2).all() and torch.equal(taken.held, state.colour[:, 0]) and not taken.there[:, 0].any()
    opened, reward = act(env, to_door(taken, 0), STAY)
    assert (reward == 2).all() and (opened.held == NONE).all()
    assert (opened.grid.flatten(1).gather(1, state.door) > 0).tolist() == [[False, True]] * 300
    again, reward = act(env, to_door(opened, 0), STAY)
    assert not reward.any()
    second, reward = act(env, to_thing(again, 1), STAY)
    opened, reward = act(env, to_door(second, 1), STAY)
    assert (reward == 2).all() and not opened.grid.flatten(1).gather(1, state.door).any()
    _, reward, over, _ = env.advance(to_thing(opened, 2), act_all(env, STAY))
    assert (reward == 10).all() and over.all()


def test_a_hand_holds_one_key_and_decoys_open_nothing() -> None:
    env, state = key_door(rooms=2)
    assert state.kind.shape[1] == 3
    assert (state.kind[:, 1] - KEY != state.colour[:, 0]).all() and (state.kind[:, 1] < GOAL).all()
    taken, _ = act(env, to_thing(state, 0), STAY)
    lost, reward = act(env, to_thing(taken, 1), STAY)
    assert not reward.any() and torch.equal(lost.held, state.kind[:, 1] - KEY)
    shut, reward = act(env, to_door(lost, 0), STAY)
    assert not reward.any() and (shut.grid.flatten(1).gather(1, state.door) > 0).all()
    gone, reward = act(env, to_thing(shut, 0), STAY)
    assert not reward.any() and torch.equal(gone.held, lost.held)


def test_the_key_in_the_hand_is_seen() -> None:
    env = RoomsKeyDoor(1, height=24, width=32)
    env.reset(seed=0)
    corner = env.observe(replace(env.state, held=torch.tensor([2])))[0, -4:, :4]
    assert (corner == torch.tensor([58, 96, 224])).all()
    rest = env.observe(replace(env.state, held=torch.tensor([NONE])))[0]
    assert torch.equal(env.observe(replace(env.state, held=torch.tensor([2])))[0, :-4], rest[:-4])


def test_an_apple_gives_ten_and_stays_where_it_is_in_mazes_that_are_connected() -> None:
    env = RoomsExploreGoal(300, **SMALL, rooms=3)
    env.reset(seed=5)
    state = env.state
    after, reward = act(env, to_thing(state, 0), STAY)
    assert (reward == 10).all()
    assert torch.equal(after.thing_x, state.thing_x) and torch.equal(after.grid, state.grid)
    moved = (after.x - state.thing_x[:, 0]).square() + (after.y - state.thing_y[:, 0]).square()
    assert moved.min() >= 1
    for grid in state.grid[:40].numpy():
        reached, edge = set(), [(1, 1)]
        while edge:
            y, x = edge.pop()
            if grid[y, x] == 0 and (y, x) not in reached:
                reached.add((y, x))
                edge += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        assert len(reached) == (grid == 0).sum() >= 17  # nine rooms and what joins them


def blind(env: Rooms) -> Rooms:
    """The environment without its pictures, which take most of the time."""
    env.observe = lambda state: state.x  # type: ignore[method-assign]
    env.observe_fresh = lambda state, done, final: state.x  # type: ignore[method-assign]
    return env


@pytest.mark.parametrize(
    ("task", "options", "steps", "least"),
    [
        (RoomsWaterMaze, {"size": 5}, 90, 40),
        (RoomsSelectNonMatching, {}, 100, 30),
        (RoomsKeyDoor, {"rooms": 3}, 160, 13.9),
        (RoomsExploreGoal, {"rooms": 3}, 90, 25),
    ],
)
def test_who_knows_all_solves_it_and_who_goes_anywhere_does_not(
    task: type[Rooms], options: dict[str, Any], steps: int, least: float
) -> None:
    returns = []
    for knows in (True, False):
        env = blind(task(16, **SMALL, **options, max_episode_steps=steps))
        env.reset(seed=6)
        done, total = torch.zeros(16, dtype=torch.bool), torch.zeros(16)
        for _ in range(steps):
            action = oracle(env, env.state) if knows else torch.randint(9, (16,), generator=env.generator)
            _, _, terminated, truncated, info = env.eager_step(action)
            total = torch.where(done, total, info["episode_return"])
            done |= terminated | truncated
        returns.append(float(total.mean()))
    assert returns[0] > least > 5 * returns[1]


class NoQuestions(TorchDispatchMode):
    """Refuses what waits for the device: a number of a tensor as a number of Python, and how many entries are true."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", TASKS)
def test_a_step_asks_no_tensor_for_its_numbers(task: type[Rooms]) -> None:
    env = task(4, **SMALL)
    env.reset(seed=0)
    action = torch.zeros(4, dtype=torch.int64)
    with dispatch.force("torch"):
        expected = env.eager_step(action)
        env.reset(seed=0)
        with NoQuestions():
            got = env.eager_step(action)
            with pytest.raises(AssertionError):
                bool(got[1][0] > 0)
    assert torch.equal(got[0], expected[0])


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_step_is_one_graph(task: type[Rooms]) -> None:
    """`torch.compile` takes no generator of its own, so the draws are given."""
    env = task(4, **SMALL)
    env.reset(seed=0)
    drawn = torch.rand(4, 64)
    env.unit = lambda *shape: drawn[:, : shape[0]]  # type: ignore[method-assign]
    env._watch = None
    state, action = env.state, torch.tensor([0, 4, 6, 7])
    with dispatch.force("torch"):
        expected = env.eager_step(action)
        env.state, env.age_B, env.return_B = state, torch.zeros_like(env.age_B), torch.zeros_like(env.return_B)
        got = torch.compile(env.eager_step, fullgraph=True, backend="eager")(action)
    for a, b in zip(expected[:4], got[:4], strict=True):
        assert torch.equal(a, b)


def test_an_odd_height_is_refused() -> None:
    with pytest.raises(EnvError, match="height is 9"):
        RoomsWaterMaze(1, height=9)
