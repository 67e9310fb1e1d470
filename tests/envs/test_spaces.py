"""The border between an environment's own spaces and those of policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Space, Text
from torch import Tensor

from lifelong.envs.base import BatchedEnv
from lifelong.envs.errors import EnvError, EnvStepError
from lifelong.envs.spaces import ActionBorder, ObservationBorder
from lifelong.envs.tasks import Task, TaskEnv

ACTIONS: dict[str, Space[Any]] = {
    "discrete": Discrete(3),
    "discrete from 5": Discrete(3, start=5),
    "multi-discrete": MultiDiscrete([3, 2]),
    "multi-discrete from 10 and -1": MultiDiscrete([3, 2], start=np.array([10, -1])),
    "multi-discrete table": MultiDiscrete([[2, 3], [4, 2]]),
    "multi-binary": MultiBinary(3),
    "unit box": Box(-1, 1, (2,), np.float32),
    "box": Box(np.array([0, -3], np.float32), np.array([1000, -1], np.float32)),
    "tiny box": Box(-0.01, 0.01, (1,), np.float32),
    "box of doubles": Box(-2.0, 2.0, (2,), np.float64),
    "table box": Box(-5, 3, (2, 2), np.float32),
    "scalar box": Box(0, 2, (), np.float32),
    "integer box": Box(-3, 3, (2,), np.int64),
    "byte box": Box(0, 255, (2,), np.uint8),
    "unbounded box": Box(-np.inf, np.inf, (2,), np.float32),
    "half bounded box": Box(np.array([0, -1], np.float32), np.array([np.inf, 3], np.float32)),
    "box as large as floats go": Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (1,), np.float32),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_of_a_policy_is_one_of_the_environment(name: str) -> None:
    source = ACTIONS[name]
    border = ActionBorder(source)
    border.space.seed(0)
    actions = torch.as_tensor(np.stack([np.asarray(border.space.sample()) for _ in range(200)]))
    raw = border(actions)
    assert raw.shape == (200, *(source.shape or ())) and str(raw.dtype) == f"torch.{source.dtype}"
    assert all(source.contains(row if row.shape else row[()]) or source.shape == () for row in raw.numpy())
    if source.shape == () and isinstance(source, Box):
        assert bool(((raw >= 0) & (raw <= 2)).all())


@pytest.mark.parametrize(
    "name", ["discrete from 5", "multi-discrete from 10 and -1", "multi-discrete table", "multi-binary", "integer box"]
)
def test_every_action_of_the_environment_can_be_reached(name: str) -> None:
    source = ACTIONS[name]
    border = ActionBorder(source)
    border.space.seed(1)
    actions = torch.as_tensor(np.stack([np.asarray(border.space.sample()) for _ in range(3000)]))
    reached = {tuple(row.flatten().tolist()) for row in border(actions)}
    sizes = {"discrete from 5": 3, "multi-discrete from 10 and -1": 6, "multi-discrete table": 48, "multi-binary": 8}
    assert len(reached) == sizes.get(name, 49)


def test_finite_bounds_become_one_and_others_keep_their_unit() -> None:
    border = ActionBorder(Box(np.array([0, -1, -np.inf], np.float32), np.array([1000, np.inf, np.inf], np.float32)))
    assert border.space.low.tolist() == [-1, -1, -np.inf] and border.space.high.tolist() == [1, np.inf, np.inf]
    assert border(torch.tensor([[-1.0, 7.0, -9.0], [1.0, 0.5, 3.0], [0.5, 0.0, 0.0]])).tolist() == [
        [0.0, 7.0, -9.0],
        [1000.0, 0.5, 3.0],
        [750.0, 0.0, 0.0],
    ]


def test_every_integer_of_a_box_gets_an_equal_share() -> None:
    raw = ActionBorder(Box(0, 3, (1,), np.int64))(torch.linspace(-1, 1, 40_001).unsqueeze(1))
    shares = torch.bincount(raw.flatten(), minlength=4) / len(raw)
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=1e-3)


def test_nothing_is_done_where_nothing_has_to_be() -> None:
    for source in (Discrete(3), MultiDiscrete([2, 3]), Box(-1, 1, (2,), np.float32), ACTIONS["unbounded box"]):
        border = ActionBorder(source)
        action = torch.zeros(4, *border.space.shape)
        assert border.plain and border(action) is action
    prediction = ActionBorder(Box(0, 255, (2,), np.float32), rescale=False)
    assert prediction.plain and prediction.space.high.tolist() == [255, 255]
    obs = torch.zeros(4, 2)
    assert ObservationBorder(Box(-1, 1, (2,), np.float32))(obs) is obs


OBSERVATIONS: dict[str, tuple[Space[Any], Tensor, Tensor]] = {
    "doubles": (Box(-1, 1, (2,), np.float64), torch.full((3, 2), 0.5).double(), torch.full((3, 2), 0.5)),
    "doubles where floats were promised": (Box(-1, 1, (2,)), torch.full((3, 2), 0.5).double(), torch.full((3, 2), 0.5)),
    "integers": (Box(-9, 9, (2,), np.int64), torch.full((3, 2), -4), torch.full((3, 2), -4.0)),
    "integers where floats were promised": (Box(-9, 9, (2,)), torch.full((3, 2), 4), torch.full((3, 2), 4.0)),
    "scalar": (Box(-1, 1, ()), torch.full((3,), 0.5), torch.full((3, 1), 0.5)),
    "bytes": (Box(0, 255, (2,), np.uint8), torch.full((3, 2), 200, dtype=torch.uint8), torch.full((3, 2), 200).byte()),
    "category": (Discrete(4), torch.tensor([0, 3, 1]), torch.tensor([[0], [3], [1]])),
    "category from 2": (Discrete(4, start=2), torch.tensor([2, 5, 3]), torch.tensor([[0], [3], [1]])),
    "categories from -1": (
        MultiDiscrete([3, 2], start=np.array([-1, 4])),
        torch.tensor([[-1, 4], [1, 5], [0, 4]]),
        torch.tensor([[0, 0], [2, 1], [1, 0]]),
    ),
    "bits": (MultiBinary(2), torch.tensor([[0, 1]] * 3, dtype=torch.int8), torch.tensor([[0.0, 1.0]] * 3)),
}


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observations_become_what_encoders_read(name: str) -> None:
    source, raw, expected = OBSERVATIONS[name]
    border = ObservationBorder(source)
    got = border(raw)
    assert torch.equal(got, expected) and got.dtype == expected.dtype
    assert all(border.space.contains(row.numpy()) for row in got)


def test_what_is_no_tensor_of_the_space_is_one_sentence() -> None:
    border = ObservationBorder(Box(0, 255, (2,), np.uint8))
    for wrong, sentence in (
        (np.zeros((3, 2), np.uint8), "is a ndarray, not a torch tensor"),
        (torch.zeros(3, 4, dtype=torch.uint8), r"have shape \(3, 4\)"),
        (torch.zeros(3, 2), "are torch.float32, but the space is"),
    ):
        with pytest.raises(EnvError, match=sentence):
            border(wrong)  # type: ignore[arg-type]
    for space in (Dict({"x": Discrete(2)}), Graph(Discrete(2), None), Text(3)):
        with pytest.raises(EnvError, match="are no tensor"):
            ObservationBorder(space)
        with pytest.raises(EnvError, match="cannot act in the action space"):
            ActionBorder(space)


# ---- through TaskEnv -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LastState:
    """`last` [B, ...]: the last action."""

    last: Tensor


class Echo(BatchedEnv):
    """Shows the last action; the reward is its first number."""

    SPACES: ClassVar[dict[str, tuple[Space[Any], Space[Any]]]] = {
        "box": (Box(-9, 9, (1,), np.float64), Box(0, 4, (1,), np.float32)),
        "wide": (Box(-9, 9, (1,), np.float64), Box(0, 9, (1,), np.float32)),
        "three": (Box(0, 10, (1,), np.uint8), Discrete(3, start=5)),
        "two": (Box(-9, 9, (2,), np.float32), Discrete(2, start=-1)),
    }
    MAX_EPISODE_STEPS: ClassVar[int] = 3
    wrong: ClassVar[Any] = None

    def __init__(self, num_envs: int = 1, *, name: str = "box", **options: Any) -> None:
        self.name = name
        super().__init__(num_envs, **options)

    def spaces(self) -> tuple[Space[Any], Space[Any]]:
        return self.SPACES[self.name]

    def draw_state(self) -> LastState:
        return LastState(torch.zeros(self.num_envs, *(self.single_action_space.shape or ())))

    def advance(self, state: LastState, action: Tensor) -> tuple[LastState, Any, Any, dict[str, Tensor]]:
        reward = action.double().reshape(self.num_envs, -1)[:, 0]
        terminated: Any = torch.zeros(self.num_envs, dtype=torch.bool)
        if self.wrong == "flags":
            terminated = terminated.float()
        return LastState(action.float()), reward, terminated, {}

    def observe(self, state: LastState) -> Any:
        if self.wrong == "class":
            return np.zeros(self.num_envs)
        space = self.single_observation_space
        shown = state.last.reshape(self.num_envs, -1).expand(-1, (space.shape or ())[0])
        return shown.to(getattr(torch, str(space.dtype)))


def echo(*names: str, spaces: str = "same", copies: int = 4) -> TaskEnv:
    tasks = [Task.from_spec(n, {"kind": "tests.envs.test_spaces:Echo", "name": n}, 100) for n in names]
    return TaskEnv(tasks, copies, spaces=spaces)


def test_tasks_with_other_bounds_share_their_action_space() -> None:
    env = echo("box", "wide")
    env.set_tasks(torch.tensor([0, 0, 1, 1]))
    assert env.reset()[0].dtype == torch.float32 and not env.padded
    obs, reward, *_, info = env.step(torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]))
    assert obs.tolist() == info["final_obs"].tolist() == [[0.0], [4.0], [0.0], [9.0]]
    assert reward.tolist() == [0.0, 4.0, 0.0, 9.0] and reward.dtype == torch.float32
    assert info["episode_return"].dtype == torch.float32


def test_padded_tasks_keep_their_first_action_and_their_bytes_lie_in_the_unit_interval() -> None:
    env = echo("three", "two", spaces="pad")
    env.set_tasks(torch.tensor([0, 0, 1, 1]))
    env.reset()
    obs, reward, *_, info = env.step(torch.tensor([0, 2, 0, 1]))
    assert reward.tolist() == [5.0, 7.0, -1.0, 0.0]
    torch.testing.assert_close(obs, torch.tensor([[0.5, 0.0], [0.7, 0.0], [-1.0, -1.0], [0.0, 0.0]]))
    assert torch.equal(obs, info["final_obs"])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [("flags", r"terminated is torch.float32 \(4,\); it must be"), ("class", "obs is a ndarray, not a torch tensor")],
)
def test_what_an_environment_must_not_return_is_one_sentence_that_names_the_task(
    wrong: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = echo("box")
    env.reset()
    monkeypatch.setattr(Echo, "wrong", wrong)
    with pytest.raises(EnvStepError, match=rf"task 'box' \(env tests.envs.test_spaces:Echo\): {sentence}"):
        env.step(torch.zeros(4, 1))


def test_gymnasium_sees_the_spaces_that_policies_see() -> None:
    env = echo("box", "wide")
    assert isinstance(env, gymnasium.vector.VectorEnv)
    assert env.action_space.contains(env.action_space.sample())
    assert env.single_action_space == Box(-1, 1, (1,), np.float32)
