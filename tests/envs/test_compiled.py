"""Compiled steps of every native environment are its eager steps, bit for bit."""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong.envs import compiled
from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.tasks import environment_class
from lifelong.kernels import build, dispatch
from lifelong.kernels.loop import loop
from lifelong.kernels.transitions.functions import team
from tests.envs.test_contract import NATIVE, make

#: steps in torch only, as its file says
EAGER = ("RoomsWaterMaze", "RoomsSelectNonMatching", "RoomsKeyDoor", "RoomsExploreGoal")
COMPILED = [each for each in NATIVE if each.values[0] not in EAGER]

pytestmark = pytest.mark.skipif(not build.can_compile(), reason="there is no C compiler")


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes, in which NaN equals itself and -0 is not 0."""
    return tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor


def assert_same(got: Tensor, wanted: Tensor, what: str) -> None:
    assert got.dtype == wanted.dtype and got.shape == wanted.shape, what
    assert torch.equal(bits(got), bits(wanted)), what


def assert_same_env(quick: BatchedEnv, slow: BatchedEnv) -> None:
    for f in fields(slow.state):
        assert_same(getattr(quick.state, f.name), getattr(slow.state, f.name), f.name)
    assert_same(quick.age_B, slow.age_B, "age")
    assert_same(quick.return_B, slow.return_B, "return")
    assert torch.equal(quick.generator.get_state(), slow.generator.get_state())


def steps_of(env: BatchedEnv) -> compiled.CompiledEnv:
    made = compiled.compiled(env)
    assert made is not None, f"{type(env).__name__} does not compile"
    return made


def switch(envs: tuple[BatchedEnv, ...], turn: int) -> None:
    """Another task in a third of the copies: every parameter somewhere else in its range."""
    mask = torch.arange(envs[0].num_envs) % 3 == turn % 3
    for name, param in envs[0].PARAMS.items():
        low, high = max(param.low, param.default - 2), min(param.high, param.default + 2)
        share = (turn * 0.37 + len(name) * 0.11) % 1.0
        value = low + share * (high - low)
        for env in envs:
            before = env.state_dict()
            try:
                env.set_params(mask, **{name: round(value) if param.integer else value})
            except ValueError:  # it does not go with the others
                env.load_state_dict(before)


def compare(name: str, steps: int, copies: int) -> int:
    """Steps of two equal environments, one compiled, with time limits and switches; how many episodes ended."""
    limits = [5 + 3 * b if b % 2 else 0 for b in range(copies)]
    quick, slow = (make(name, copies, seed=3, max_episode_steps=limits) for _ in range(2))
    assert_same(quick.reset()[0], slow.reset()[0], "first observation")
    made, ended = steps_of(quick), 0
    slow.action_space.seed(1)
    for t in range(steps):
        if t % 97 == 96:
            switch((quick, slow), t // 97)
        action = torch.as_tensor(slow.action_space.sample())
        got, wanted = made.step(quick, action), slow.eager_step(action)
        for what, a, b in zip(("obs", "reward", "terminated", "truncated"), got, wanted, strict=False):
            assert_same(a, b, f"{what} of step {t}")
        assert list(got[4]) == list(wanted[4])
        for what in wanted[4]:
            assert_same(got[4][what], wanted[4][what], f"{what} of step {t}")
        assert_same_env(quick, slow)
        ended += int(wanted[4]["_final_obs"].sum())
    return ended


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_step_is_the_eager_step_to_the_bit(name: str) -> None:
    assert compare(name, 300, 19) > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_10_000_compiled_steps_are_the_eager_steps_to_the_bit(name: str) -> None:
    assert compare(name, 10_000, 19) > 1000


@pytest.mark.parametrize("copies", [1, 200])
@pytest.mark.parametrize("name", COMPILED)
def test_rows_of_compiled_steps_are_the_eager_steps(name: str, copies: int) -> None:
    """One copy, and more than a block of them."""
    T = 21
    quick, slow = (make(name, copies, seed=5, max_episode_steps=8) for _ in range(2))
    obs, _ = quick.reset()
    slow.reset()
    slow.action_space.seed(2)
    action_TB = torch.stack([torch.as_tensor(slow.action_space.sample()) for _ in range(T)])
    made = quick.compiled_steps(action_TB)
    assert made is not None
    made.begin()
    made.obs[0] = obs
    made.is_init[0] = True
    loop(T, made.calls, torch.float32)
    made.finish()
    for t in range(T):
        obs, reward, terminated, truncated, info = slow.eager_step(action_TB[t])
        for what, got, wanted in (
            ("obs", made.obs[t + 1], obs),
            ("reward", made.reward[t], reward),
            ("terminated", made.terminated[t], terminated),
            ("truncated", made.truncated[t], truncated),
            ("is_init", made.is_init[t + 1], info["_final_obs"]),
            ("final_obs", made.final_obs[t], info["final_obs"]),
            ("episode_return", made.episode_return[t], info["episode_return"]),
            *((name, rows[t], info[name]) for name, rows in made.info.items()),
        ):
            assert_same(got, wanted, f"{what} of step {t}")
    assert_same_env(quick, slow)


@pytest.mark.parametrize("name", COMPILED)
def test_a_saved_state_goes_on_the_same_compiled_and_eager(name: str) -> None:
    env, other = make(name, 7, max_episode_steps=6), make(name, 7, seed=99)
    env.reset(seed=1)
    actions = [torch.as_tensor(env.action_space.sample()) for _ in range(30)]
    for action in actions[:15]:
        env.step(action)
    other.load_state_dict(env.state_dict())
    for action in actions[15:]:
        env.step(action)
        other.eager_step(action)
    assert_same_env(env, other)


def test_four_fifths_of_the_environments_compile_and_the_others_say_so() -> None:
    assert len(EAGER) <= 0.2 * len(NATIVE)
    for each in NATIVE:
        assert (each.values[0] not in EAGER) == environment_class(each.values[0]).COMPILES


# ---- the user's own --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnState:
    cells: Tensor
    place: Tensor
    drift: Tensor


class Own(BatchedEnv):
    """A board of cells, a walker on it, noise of three kinds: what `how` says keeps it from being compiled."""

    PARAMS: ClassVar[dict[str, Param]] = {"bonus": Param(0.5, 0.0, 1.0, "for a cell that was not visited")}
    MAX_EPISODE_STEPS: ClassVar[int] = 12

    def __init__(self, num_envs: int = 1, *, size: int = 5, how: str = "", **options: Any) -> None:
        self.size, self.how, self.seen = size, how, 0
        super().__init__(num_envs, **options)
        self.table = torch.linspace(-1, 1, size * size).view(size, size)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        return gymnasium.spaces.Box(-9, 9, (self.size * self.size + 3,), np.float32), gymnasium.spaces.Discrete(4)

    def draw_state(self) -> OwnState:
        B = self.num_envs
        place = torch.stack((self.randint(self.size, B), self.randint(3, B) % self.size), 1)
        return OwnState(torch.zeros(B, self.size, self.size, dtype=torch.int32), place, self.uniform(-1, 1, B))

    def advance(self, state: OwnState, action: Tensor) -> tuple[OwnState, Tensor, Tensor, dict[str, Tensor]]:
        moves = torch.tensor([[0, 1], [1, 0], [0, -1], [-1, 0]])
        place = (state.place + moves[action]) % self.size
        flat = place[:, 0] * self.size + place[:, 1]
        cells = state.cells.flatten(1)
        visits = cells.gather(1, flat.unsqueeze(1)).squeeze(1)
        noise = torch.empty(self.num_envs).normal_(0.0, 0.1, generator=self.generator)
        drift = torch.tanh(state.drift * 0.9 + noise).round() * 0.25 + state.drift.sin()
        reward = torch.where(visits == 0, self.params["bonus"], -0.1 * visits) + self.table[place[:, 0], place[:, 1]]
        if self.how == "branch" and bool(reward[0] > 0):
            reward = reward + 1
        if self.how == "sort":
            reward = reward + cells.sort(1).values[:, 0]
        if self.how == "across":
            reward = reward - reward.mean()
        if self.how == "sets":
            self.seen += 1
        if self.how == "numpy":
            reward = reward + float(np.asarray(visits).sum())
        if self.how == "global":
            reward = reward + torch.rand(self.num_envs)
        if self.how == "object":
            reward = reward + ELSEWHERE[flat]
        cells = cells.scatter(1, flat.unsqueeze(1), (visits + 1).unsqueeze(1).to(torch.int32))
        over = (cells > 0).sum(1) >= self.size * 2
        return OwnState(cells.view_as(state.cells), place, drift), reward, over, {"visits": visits}

    def observe(self, state: OwnState) -> Tensor:
        walls = (state.cells.flatten(1) > 0).float()
        return torch.cat((walls, state.place.float() / self.size, state.drift.clamp(-2, 2).unsqueeze(1)), 1)


ELSEWHERE = torch.randn(25)


def test_an_environment_of_the_users_own_compiles_with_its_tables_boards_and_noise() -> None:
    quick, slow = Own(11, seed=4), Own(11, seed=4)
    quick.reset()
    slow.reset()
    made = steps_of(quick)
    for t in range(200):
        action = torch.randint(4, (11,), generator=torch.Generator().manual_seed(t))
        if t == 100:
            quick.table.mul_(2.0)  # written to
            slow.table.mul_(2.0)
            quick.table, slow.table = quick.table + 1, slow.table + 1  # and replaced
        got, wanted = made.step(quick, action), slow.eager_step(action)
        for a, b in zip((*got[:4], *got[4].values()), (*wanted[:4], *wanted[4].values()), strict=True):
            assert_same(a, b, f"step {t}")
    assert_same_env(quick, slow)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("branch", "control flow depends on the data"),
        ("sort", "uses torch.sort"),
        ("across", "reduces over the copies"),
        ("sets", "sets self.seen"),
        ("global", "another generator than self.generator"),
        ("object", "no attribute of its own"),
        ("numpy", "raises"),
    ],
)
def test_one_line_says_what_kept_an_environment_out(how: str, why: str, caplog: pytest.LogCaptureFixture) -> None:
    env = Own(3, how=how)
    env.reset()
    with caplog.at_level(logging.WARNING, logger="lifelong.envs"):
        for _ in range(20):
            env.step(torch.zeros(3, dtype=torch.int64))
        assert env.compiled_steps(torch.zeros(2, 3, dtype=torch.int64)) is None
    lines = [record.message for record in caplog.records]
    assert len(lines) == 1 and lines[0].startswith("Own steps in torch") and why in lines[0], lines


def test_a_number_that_changed_after_the_first_step_is_not_compiled_in() -> None:
    """`size` is a constant of the compiled step; with another one the eager step runs."""
    env, other = make("TMaze", 4, seed=1), make("TMaze", 4, seed=1)
    for each in (env, other):
        each.reset()
    action = torch.ones(4, dtype=torch.int64)
    for _ in range(12):
        env.step(action)
        other.eager_step(action)
    env.auto_move = other.auto_move = False
    for _ in range(12):
        assert_same(env.step(action)[1], other.eager_step(action)[1], "reward")


class Listed(Own):
    """Reads a list of numbers."""

    def __init__(self, num_envs: int = 1, *, factors: list[float], **options: Any) -> None:
        self.factors = factors
        super().__init__(num_envs, **options)

    def advance(self, state: OwnState, action: Tensor) -> tuple[OwnState, Tensor, Tensor, dict[str, Tensor]]:
        following, reward, over, info = super().advance(state, action)
        return following, reward * self.factors[0], over, info


def test_numbers_in_a_list_are_constants_of_one_environment_and_followed_when_they_change() -> None:
    envs = [Listed(4, seed=1, factors=[factor]) for factor in (1.0, 3.0)]
    action, rewards = torch.zeros(4, dtype=torch.int64), []
    for env in envs:
        env.reset()
        for _ in range(12):
            reward = env.step(action)[1]
        rewards.append(reward)
    torch.testing.assert_close(rewards[0] * 3.0, rewards[1])
    twin = Listed(4, seed=5, factors=[3.0])
    twin.load_state_dict(envs[1].state_dict())
    envs[1].factors[0] = twin.factors[0] = 0.5
    assert_same(envs[1].step(action)[1], twin.eager_step(action)[1], "reward")


def test_without_a_compiler_and_with_forced_kernels_the_eager_step_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make("Pendulum", 4)
    env.reset()
    with dispatch.force("torch"):
        assert not compiled.available(env)
    monkeypatch.setattr(build, "can_compile", lambda: False)
    assert not compiled.available(env)
    assert env.compiled_steps(torch.zeros(2, 4, 1)) is None


def test_a_step_that_differs_is_not_kept(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The check before the cache sees a wrong operation."""
    from lifelong.kernels.compiler import operations

    wrong = operations.OPERATIONS["cast_away"] = operations.OPERATIONS["sub"]._replace(c="{0} - {1} * (real)1.0001")
    monkeypatch.setitem(operations.OPERATIONS, "sub", wrong)
    monkeypatch.setattr(compiled, "_programs", {})
    kept: list[Any] = []
    monkeypatch.setattr(build.cache, "keep", lambda *_: kept.append(1))
    env = make("Acrobot", 3)
    env.reset()
    with caplog.at_level(logging.WARNING, logger="lifelong.envs"):
        assert compiled.compiled(env) is None
    del operations.OPERATIONS["cast_away"]
    assert not kept and "differs" in caplog.text


class Counting(Own):
    """Counts its steps where no other environment of its kind should see it."""

    steps: ClassVar[int] = 0

    def advance(self, *arguments: Any) -> Any:
        Counting.steps += 1
        return super().advance(*arguments)


class Told(Counting):
    """The same, which says so."""

    COMPILES = False


def test_a_step_that_does_more_than_it_returns_is_not_compiled(caplog: pytest.LogCaptureFixture) -> None:
    env = Counting(3)
    env.reset(seed=0)
    assert compiled.compiled(env) is None
    assert "Counting.steps" in caplog.text
    told = Told(3)
    told.reset(seed=0)
    before = Counting.steps
    assert not compiled.available(told)
    assert Counting.steps == before


def test_a_compiled_step_leaves_the_vector_library_its_threads() -> None:
    """It takes them away for itself: with two, 128 sines were shared among them, which took a hundred times as long."""
    where = team()
    if where is None:
        pytest.skip("this torch has no such library")
    threads = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(where)
    env = make("CartPole", 200, seed=0)
    env.reset()
    before = threads(3)
    try:
        env.step(torch.zeros(200, dtype=torch.int64))
        assert threads(3) == 3
    finally:
        threads(before)
