"""Which actions there are, however an environment says it, reaches the policy at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Space
from torch import Tensor

from lifelong.agent.errors import ConfigError, EnvError
from lifelong.envs.adapters.gymnasium import GymnasiumEnv
from lifelong.envs.control.cartpole import CartPole
from lifelong.envs.tasks import Task, TaskEnv
from tests.agent.support import make_trainer


class Doors(gymnasium.Env[Any, Any]):
    """A few actions are possible at every step, and an impossible one is an error; says so by one convention.

    Args:
        says: "info", "info only sometimes", "obs", "method", "avail_actions", "tuple" (of a MultiDiscrete), "" or
            "wrong".
    """

    def __init__(self, says: str = "info", actions: int = 5) -> None:
        self.says, self.many = says, says == "tuple"
        self.action_space: Space[Any] = MultiDiscrete([actions, 3]) if self.many else Discrete(actions)
        seen = Box(0, 1, (3,), np.float32)
        flags = Box(0, 1, (actions,), np.int8)
        self.observation_space = Dict({"observation": seen, "action_mask": flags}) if says == "obs" else seen

    def _draw(self) -> tuple[Any, dict[str, Any]]:
        sizes = [self.action_space.nvec[0], 3] if self.many else [self.action_space.n]  # type: ignore[attr-defined]
        self.masks = [self.np_random.integers(2, size=size, dtype=np.int8) for size in sizes]
        for mask in self.masks:
            mask[self.np_random.integers(len(mask))] = 1
        quiet = self.says == "info only sometimes" and self.t % 2
        if quiet:
            self.masks[0][:] = 1
        obs: Any = self.np_random.random(3).astype(np.float32)
        if self.says == "obs":
            obs = {"observation": obs, "action_mask": self.masks[0].copy()}
        told: dict[str, Any] = {"avail_actions": {"avail_actions": self.masks[0].tolist()}}
        told |= {"tuple": {"action_mask": tuple(self.masks)}, "wrong": {"action_mask": np.ones(2)}}
        told |= {"info": {"action_mask": self.masks[0].copy()}, "info only sometimes": {"action_mask": self.masks[0]}}
        return obs, {} if quiet else told.get(self.says, {})

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._draw()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        for mask, choice in zip(self.masks, np.ravel(action), strict=True):
            if not mask[choice] and self.says:
                raise RuntimeError("this door is shut")
        self.t += 1
        obs, info = self._draw()
        return obs, float(np.ravel(action)[0] == 0), self.t == 7, False, info


class Asked(Doors):
    """Has a method, as sb3-contrib asks for."""

    def action_masks(self) -> Any:
        return self.masks[0].astype(bool)


gymnasium.register("tests/Doors-v0", entry_point=Doors)
gymnasium.register("tests/Asked-v0", entry_point=Asked)

CONVENTIONS = ["info", "info only sometimes", "obs", "method", "avail_actions", "tuple"]


def env_of(says: str, **kwargs: Any) -> dict[str, Any]:
    id = "tests/Asked-v0" if says == "method" else "tests/Doors-v0"
    return {"kind": "gymnasium", "id": id, "kwargs": {"says": says, **kwargs}}


@pytest.mark.parametrize("autoreset", ["same_step", "disabled"])
@pytest.mark.parametrize("says", CONVENTIONS)
def test_the_mask_is_that_of_the_observation_that_is_shown(says: str, autoreset: str) -> None:
    spec = env_of(says)
    env = GymnasiumEnv(3, id=spec["id"], kwargs=spec["kwargs"], autoreset=autoreset)  # type: ignore[arg-type]
    env.reset(seed=0)
    for _ in range(30):
        inner = [copy.unwrapped for copy in env.env.envs]  # type: ignore[attr-defined]
        mask = env.action_mask_BA
        assert mask is not None
        np.testing.assert_array_equal(mask.numpy(), [np.concatenate(one.masks) for one in inner])
        first = mask.split([5, 3], 1) if says == "tuple" else [mask]
        action = torch.stack([part.float().multinomial(1)[:, 0] for part in first], 1)
        env.step(action if says == "tuple" else action[:, 0])


@pytest.mark.parametrize("says", CONVENTIONS)
@pytest.mark.parametrize("objective", ["actor_critic", "ppo"])
def test_a_run_never_takes_an_action_that_there_is_not(says: str, objective: str, tmp_path: Path) -> None:
    tasks = [{"name": "doors", "env": env_of(says)}]
    trainer = make_trainer(tmp_path, stream={"tasks": tasks}, objective=objective)  # an error would end it
    for _ in range(3):
        experience = trainer.advance()
        assert experience is not None
        chunk = experience.chunk
        width = 8 if says == "tuple" else 5
        assert chunk.action_mask.shape[-1] == width and not chunk.action_mask.all()
        if says != "tuple":
            assert chunk.action_mask.gather(-1, chunk.action.unsqueeze(-1)).all()
    trainer.close()


def test_taxi_of_gymnasium_is_masked_as_it_says() -> None:
    env = GymnasiumEnv(2, id="Taxi-v4" if "Taxi-v4" in gymnasium.registry else "Taxi-v3")
    env.reset(seed=0)
    for _ in range(20):
        for b, copy in enumerate(env.env.envs):  # type: ignore[attr-defined]
            taxi: Any = copy.unwrapped
            assert env.action_mask_BA is not None
            np.testing.assert_array_equal(env.action_mask_BA[b].numpy(), taxi.action_mask(taxi.s))
        env.step(env.action_mask_BA.float().multinomial(1)[:, 0])


def test_objectives_of_values_refuse_masks_before_anything_starts(tmp_path: Path) -> None:
    plain = {"name": "plain", "env": env_of("")}
    tasks = [plain, {"name": "doors", "env": env_of("info")}]
    with pytest.raises(ConfigError, match=r"task 'doors'.*objective q_learning learns values of actions"):
        make_trainer(tmp_path, stream={"tasks": tasks}, objective="q_learning")


def test_a_mask_of_another_size_is_one_sentence() -> None:
    env = GymnasiumEnv(1, id="tests/Doors-v0", kwargs={"says": "wrong"})
    with pytest.raises(EnvError, match="must have 5 flags"):
        env.reset(seed=0)


class Narrow(CartPole):
    """A native environment in which a copy may only push to the side that its pole falls to."""

    def allowed(self, state: Any) -> Tensor:
        falls = state.physics[:, 2] > 0
        return torch.stack([~falls, falls], 1)


def test_a_native_environment_says_it_of_its_state_and_of_other_tasks_all_are_allowed() -> None:
    kinds = [f"{__name__}:Narrow", "Acrobot"]
    tasks = [Task.from_spec(str(i), {"kind": kind}, 100) for i, kind in enumerate(kinds)]
    env = TaskEnv(tasks, 4, spaces="pad")
    env.set_tasks(torch.tensor([0, 0, 1, 1]))
    obs, _ = env.reset(seed=0)
    for _ in range(50):
        falls = obs[:2, 2] > 0
        assert torch.equal(env.action_mask_BA[:2], torch.stack([~falls, falls, falls & False], 1))
        assert env.action_mask_BA[2:].all()
        obs = env.step(env.action_mask_BA.float().multinomial(1)[:, 0])[0]
    saved = env.state_dict()
    mask = env.action_mask_BA
    other = TaskEnv(tasks, 4, spaces="pad")
    other.load_state_dict(saved)
    assert torch.equal(other.action_mask_BA, mask)
