"""What all adapters share: numpy environments of other packages, seen through the contract of `BatchedEnv`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Text
from gymnasium.vector.utils import batch_space, iterate
from torch import Tensor

from lifelong.envs.adapters.flat import flat, flat_box, text, text_counts
from lifelong.envs.base import BatchedEnv, Param, select
from lifelong.envs.errors import EnvError
from lifelong.envs.spaces import float_box


@dataclass(frozen=True)
class ExternalState:
    """`obs` [B, ...]: the newest observation. The rest of the state lives in the wrapped environment."""

    obs: Tensor


@dataclass(frozen=True)
class Transition:
    """One step of a wrapped environment, as dense arrays."""

    final_obs: Tensor  # [B, ...], before any reset
    obs: Tensor  # [B, ...], after the resets
    reward: np.ndarray  # [B]
    terminated: np.ndarray  # bool [B]
    truncated: np.ndarray  # bool [B]
    success: np.ndarray | None = None  # bool [B], if whether there was any stands for the return
    dead: np.ndarray | None = None  # bool [B]: NEXT_STEP only, copies that did not act but were reset


class SpaceEncoder:
    """Turns observations of any Gymnasium space of a fixed size into tensors.

    uint8 arrays stay as they are, other arrays become float32 of the same shape, a Text becomes the categories of its
    characters, and everything else (Discrete, Dict, Tuple, ...) one float32 vector (see `flat`).

    Raises:
        EnvError: the space has no fixed flat size (Sequence, Graph), or texts are too long.
    """

    space: Box | MultiDiscrete

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        if not isinstance(space, gymnasium.Space):
            raise EnvError(f"the observation space is a {type(space).__name__}, not a gymnasium.Space")
        self.source = space
        self.is_array = isinstance(space, Box)
        if isinstance(space, Box):
            self.space = space if space.dtype == np.uint8 else float_box(space)
        elif isinstance(space, Text):
            self.space = MultiDiscrete(text_counts(space))
        else:
            self.space = flat_box(space)

    def items(self, items: list[Any]) -> Tensor:
        """A list of n single observations as one tensor [n, ...]."""
        if isinstance(self.source, Text):
            rows = [text(self.source, item) for item in items]
        else:
            rows = items if self.is_array else [flat(self.source, item) for item in items]
        return self._tensor(np.stack([np.asarray(row) for row in rows]))

    def batch(self, batch: Any, count: int) -> Tensor:
        """A batched observation of `count` copies as one tensor [count, ...]."""
        if self.is_array:
            return self._tensor(np.asarray(batch))
        return self.items(list(iterate(batch_space(self.source, count), batch)))

    def _tensor(self, array: np.ndarray) -> Tensor:
        # A copy: wrapped environments may write into their buffers at the next step.
        return torch.from_numpy(np.array(array, dtype=self.space.dtype))


class ExternalEnv(BatchedEnv):
    """B copies of somebody else's environment, stepped in numpy on the CPU, with tensors on `device`.

    Subclasses write `_start` (fresh episodes) and `_step`. There are no task parameters: the time limit is the wrapped
    environment's own. `evaluation` has no meaning here and is ignored.

    The state of the wrapped environment cannot be saved (`exact_state` is False). `state_dict` keeps the seed and the
    number of steps; `load_state_dict` starts fresh episodes in every copy, drawn from these two, and the first
    observation is `env.observe(env.state)`.

    Raises:
        EnvError: `random_initial_age` or a task parameter is asked for; the action space is not supported.
    """

    exact_state: ClassVar[bool] = False
    capturable: ClassVar[bool] = False

    def __init__(
        self, num_envs: int, *, seed: int = 0, random_initial_age: bool = False, score: Any = None, **kwargs: Any
    ) -> None:
        if random_initial_age:
            raise EnvError(
                f"{type(self).__name__} has no random_initial_age: the wrapped environment has its own clock"
            )
        super().__init__(num_envs, seed=seed, **kwargs)
        if not isinstance(self.single_action_space, (Box, Discrete, MultiBinary, MultiDiscrete)):
            raise EnvError(f"{type(self).__name__} cannot act in the action space {self.single_action_space}")
        self.scored = score is not None
        if score is not None:
            low, high = score
            # What counts as useless and as solved belongs to the wrapped environment, hence to the instance.
            self.SCORE = (float(low), float(high))  # type: ignore[misc]
        self._seed = seed
        self._steps = 0

    # ---- what an adapter writes ----------------------------------------------------------------------------------

    def _start(self, seed: int | None, mask: np.ndarray | None) -> Tensor:
        """Start fresh episodes, of all copies or of those in `mask`; the observations [B, ...].

        Rows of copies outside `mask` are not looked at. `seed` is given only together with `mask=None`.
        """
        raise NotImplementedError

    def _step(self, action: np.ndarray) -> Transition:
        """Step every copy."""
        raise NotImplementedError

    # ---- the contract --------------------------------------------------------------------------------------------

    @classmethod
    def all_params(cls) -> dict[str, Param]:
        """None."""
        return {}

    def set_params(self, mask: Any = None, **params: Any) -> None:
        """Refuses every parameter: options of the wrapped environment are fixed when it is made."""
        for name in params:
            raise EnvError(
                f"{type(self).__name__} has no task parameter {name!r}; options of the environment go in kwargs"
            )

    def observe(self, state: ExternalState) -> Tensor:
        """The newest observation."""
        return state.obs

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Start fresh episodes (see `BatchedEnv.reset`); the first reset uses the seed of the constructor."""
        if isinstance(seed, list):
            seed = seed[0]
        mask = None if options is None else options.get("reset_mask")
        if mask is None or self.state is None:
            if seed is None and self.state is None:
                seed = self._seed
            if seed is not None:
                self._seed, self._steps = seed, 0
            self._begin(seed)
        elif seed is not None:
            raise EnvError(f"{type(self).__name__} cannot re-seed only some copies: reset all of them")
        else:
            mask_B = self._mask(mask)
            if bool(mask_B.any()):
                obs = self._start(None, mask_B.cpu().numpy()).to(self.device)
                self.state = ExternalState(select(mask_B, obs, self.state.obs))
                self.age_B = torch.where(mask_B, 0, self.age_B)
                self.return_B = torch.where(mask_B, 0.0, self.return_B)
        return self.state.obs, {}

    def step(self, actions: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step every copy (see `BatchedEnv.step`).

        If the wrapped environment resets in NEXT_STEP mode, a step after the end of an episode is *dead*: the copy
        ignores its action and returns its reset observation with reward 0, neither terminated nor truncated. info then
        also has `valid` bool [B], false for dead transitions, which a learner must mask, and `is_init` bool [B], true
        where the returned observation is the first of an episode (elsewhere that is `terminated | truncated`).
        """
        if self.state is None:
            raise EnvError("step() before the first reset()")
        space = self.single_action_space
        action = actions.detach().cpu().numpy() if isinstance(actions, Tensor) else np.asarray(actions)
        got = self._step(action.astype(space.dtype).reshape(self.num_envs, *(space.shape or ())))
        self._steps += 1
        dead = np.zeros(self.num_envs, bool) if got.dead is None else got.dead
        live_B = self._array(~dead, torch.bool)
        reward_B = self._array(np.where(dead, 0.0, got.reward), torch.float32)
        terminated_B = self._array(got.terminated & ~dead, torch.bool)
        truncated_B = self._array(got.truncated & ~dead, torch.bool)
        done_B = terminated_B | truncated_B
        age_B = self.age_B + live_B
        if got.success is None:
            return_B = self.return_B + reward_B
        else:
            return_B = torch.maximum(self.return_B, self._array(got.success, torch.float32))
        self.age_B = torch.where(done_B, 0, age_B)
        self.return_B = torch.where(done_B, 0.0, return_B)
        self.state = ExternalState(got.obs.to(self.device))
        info: dict[str, Any] = {
            "final_obs": got.final_obs.to(self.device),
            "_final_obs": done_B,
            "episode_return": return_B,
            "episode_length": age_B,
        }
        if got.dead is not None:
            info.update(valid=live_B, is_init=~live_B)
        return self.state.obs, reward_B, terminated_B, truncated_B, info

    def state_dict(self) -> dict[str, Any]:
        """The seed and the number of steps; not the state of the wrapped environment."""
        return {"age": self.age_B, "return": self.return_B, "seed": self._seed, "steps": self._steps}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Start fresh episodes in every copy, with a seed drawn from the saved seed and number of steps."""
        if saved["age"].shape[0] != self.num_envs:
            raise EnvError(f"the saved state has {saved['age'].shape[0]} copies, this environment {self.num_envs}")
        self._seed, self._steps = int(saved["seed"]), int(saved["steps"])
        # Not the saved seed itself: that would replay the episodes of the start.
        self._begin(int(np.random.SeedSequence([self._seed, self._steps]).generate_state(1)[0]) >> 1)

    def _begin(self, seed: int | None) -> None:
        self.state = ExternalState(self._start(seed, None).to(self.device))
        self.age_B = torch.zeros_like(self.age_B)
        self.return_B = torch.zeros_like(self.return_B)

    def _array(self, array: np.ndarray, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(array).to(self.device, dtype)
