"""EnvPoolEnv: the C++ environments of EnvPool (MiniGrid, Atari, ...) under the contract of `BatchedEnv`.

Source: Weng et al. (2022), "EnvPool: A highly parallel reinforcement learning environment execution engine"; MiniGrid:
Chevalier-Boisvert et al. (2023). Needs the optional package `envpool`, which is imported only when an instance is made.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, MultiDiscrete
from torch import Tensor

from lifelong.envs.adapters.external import ExternalEnv, SpaceEncoder, Transition
from lifelong.envs.errors import EnvError, optional
from lifelong.envs.options import Interval, Range

#: MiniGrid's numbers of objects, colours and door states; every cell of an image is one id of each.
MINIGRID_IDS = (11, 6, 3)


class CategoryEncoder(SpaceEncoder):
    """MiniGrid images uint8 [n, height, width, 3] as the categories that they are, uint8 [n, height * width * 3]."""

    def __init__(self, space: Box) -> None:
        super().__init__(space)
        height, width, _ = space.shape
        self.space = MultiDiscrete(np.tile(MINIGRID_IDS, height * width), dtype=np.uint8)  # type: ignore[arg-type]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return super()._tensor(array).flatten(1)


class EnvPoolEnv(ExternalEnv):
    """B copies of an EnvPool environment.

    EnvPool by itself resets an ended copy at its next step, which costs one dead step. This adapter resets ended copies
    at once instead (`pool.reset(env_id)`), so its mode is SAME_STEP, with a dense `final_obs`, and no step is dead.

    Observations: of a MiniGrid environment the 7 x 7 view, by default as object, colour and state of every cell, which
    are categories (MultiDiscrete, uint8 [B, 147]; encoders read them one-hot, 980 numbers); all sizes of one MiniGrid
    family share these spaces. Elsewhere as in `GymnasiumEnv`.

    Args:
        num_envs: number of copies B.
        id: name of an EnvPool environment, such as "MiniGrid-MemoryS7-v0".
        kwargs: keyword arguments of the environment.
        observation: "image": the part `image` of a Dict observation; "flatten": all of it as one vector. None: "image"
            if there is such a part.
        categories: images are MiniGrid ids; None: if `id` starts with "MiniGrid" and the observation is the image.
        num_threads: threads of the pool; 0: EnvPool decides.
        success: what is evaluated and logged as the return of an episode is whether `info["success"]` was true in it
            (MetaWorld); what is learned from is the reward, as ever.
        score: (return of a useless policy, return of a solved task), `SCORE` of this instance; if it is not given, (0,
            1) of MiniGrid and of `success`, and none of others: their performance is the return.
        **options: `device`, `seed` and `evaluation` of `BatchedEnv`.

    Raises:
        EnvError: `envpool` is missing; unknown `id`; a wrong option; spaces that do not fit.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        id: str = "MiniGrid-MemoryS7-v0",
        kwargs: dict[str, Any] | None = None,
        observation: Literal["image", "flatten"] | None = None,
        categories: bool | None = None,
        num_threads: Annotated[int, Range(0, 1024)] = 0,
        success: bool = False,
        score: Interval | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if observation not in (None, "image", "flatten"):
            raise EnvError(f"observation is {observation!r}; valid: image, flatten")
        self.id = id
        self.kwargs = dict(kwargs or {}, num_envs=num_envs, num_threads=num_threads)
        self._open(seed)
        space = self.pool.single_observation_space
        has_image = isinstance(space, Dict) and "image" in space.spaces
        if observation == "image" and not has_image:
            raise EnvError(f"observations of {id} have no part 'image': {space}")
        self.image_only = has_image and observation != "flatten"
        if self.image_only:
            space = space["image"]
        if categories is None:
            categories = self.image_only and id.startswith("MiniGrid")
        if categories and not (isinstance(space, Box) and space.dtype == np.uint8 and space.shape[2:] == (3,)):
            raise EnvError(
                f"categories needs MiniGrid images, uint8 (height, width, 3); observations of {id} are {space}"
            )
        self.encoder = CategoryEncoder(space) if categories else SpaceEncoder(space)
        self.success = success
        if score is None and (success or id.startswith("MiniGrid")):
            score = (0.0, 1.0)
        super().__init__(num_envs, seed=seed, score=score, **options)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """The encoded observation space and EnvPool's action space."""
        return self.encoder.space, self.pool.single_action_space

    def close_extras(self, **kwargs: Any) -> None:
        """Close the pool."""
        self.pool.close()

    def _open(self, seed: int) -> None:
        envpool = optional("envpool", "EnvPoolEnv", "envpool")
        names = envpool.list_all_envs()
        if self.id not in names:
            near = get_close_matches(self.id, names, n=3)
            raise EnvError(f"EnvPool has no environment {self.id!r}; nearest: {', '.join(near) or 'none'}")
        try:
            # EnvPool takes seeds of int32 only.
            self.pool = envpool.make(self.id, env_type="gymnasium", seed=seed % 2**31, **self.kwargs)
        except (TypeError, ImportError) as error:  # the second names the system's library that is missing
            raise EnvError(f"EnvPool cannot make {self.id!r}: {error}") from error
        self._untouched = True
        self._opened_with = seed

    def _start(self, seed: int | None, mask: np.ndarray | None) -> Tensor:
        # A pool takes its seed only when it is made.
        if seed is not None and not (self._untouched and seed == self._opened_with):
            self.pool.close()
            self._open(seed)
        self._untouched = False
        if mask is None:
            obs, _ = self.pool.reset()
            return self._encode(obs, self.num_envs)
        return self._reset_some(mask, self.state.obs.cpu())

    def _step(self, action: np.ndarray) -> Transition:
        raw_obs, reward, terminated, truncated, info = self.pool.step(action)
        if self.success and "success" not in info:
            raise EnvError(f"{self.id} says nothing of success in info; set success to false")
        success = np.asarray(info["success"], dtype=bool).reshape(-1) if self.success else None
        final_obs = self._encode(raw_obs, self.num_envs)
        done = terminated | truncated
        obs = self._reset_some(done, final_obs) if done.any() else final_obs
        return Transition(final_obs, obs, reward, terminated, truncated, success)

    def _reset_some(self, mask: np.ndarray, obs: Tensor) -> Tensor:
        """Reset the copies in `mask`; `obs` with their rows replaced."""
        raw_obs, info = self.pool.reset(np.flatnonzero(mask).astype(np.int32))
        rows = info["env_id"]
        return obs.index_copy(0, torch.from_numpy(rows.astype(np.int64)), self._encode(raw_obs, len(rows)))

    def _encode(self, obs: Any, count: int) -> Tensor:
        return self.encoder.batch(obs["image"] if self.image_only else obs, count)
