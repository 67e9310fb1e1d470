"""OutsideEnv: an environment that somebody else steps. It has spaces, as a config can name them, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from torch import Tensor

from lifelong.envs.adapters.external import ExternalEnv, SpaceEncoder, Transition
from lifelong.envs.adapters.gymnasium import GymnasiumEnv
from lifelong.envs.base import BatchedEnv
from lifelong.envs.errors import EnvError
from lifelong.envs.options import Interval

#: how a config names it
KIND = f"{__name__}:OutsideEnv"


class OutsideEnv(ExternalEnv):
    """B copies of an environment that lives in another program's loop (see `agent.online`); it cannot be stepped.

    Args:
        observation, action: its spaces, as `describe` returns them.
        flatten: observations are made tensors as `GymnasiumEnv` does it (Discrete, Dict and Tuple are flattened); else
            they are tensors already.
        prediction: the action is a prediction.
    """

    every_step_counts = False
    PREDICTION: ClassVar[bool] = False

    def __init__(
        self,
        num_envs: int = 1,
        *,
        observation: dict[str, Any] | None = None,
        action: dict[str, Any] | None = None,
        flatten: bool = True,
        prediction: bool = False,
        score: Interval | None = None,
        **options: Any,
    ) -> None:
        if observation is None or action is None:
            raise EnvError("an environment that another program steps needs both spaces, observation and action")
        self.PREDICTION = prediction  # type: ignore[misc]  # it belongs to what is stepped, hence to the instance
        #: of one copy, as whoever steps it has them
        self.given = undescribe(observation)
        self.encoder = SpaceEncoder(self.given) if flatten else None
        self._action = undescribe(action)
        super().__init__(num_envs, score=score, **options)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """The space of observations as tensors, and that of the actions."""
        return self.given if self.encoder is None else self.encoder.space, self._action

    def _start(self, seed: int | None, mask: np.ndarray | None) -> Tensor:
        space = self.single_observation_space  # nobody has seen anything yet
        return torch.from_numpy(np.zeros((self.num_envs, *(space.shape or ())), space.dtype))

    def _step(self, action: np.ndarray) -> Transition:
        raise EnvError("this environment is stepped by another program (`lifelong.OnlineAgent`), so no run can step it")


def outside_of(env: BatchedEnv) -> dict[str, Any]:
    """What a config says of an `OutsideEnv` whose observations and actions are those of `env`."""
    if isinstance(env, OutsideEnv):
        given, flatten = env.given, env.encoder is not None
    elif isinstance(env, GymnasiumEnv):
        given, flatten = env.encoder.source, True
    else:
        given, flatten = env.single_observation_space, False
    spaces = {"observation": describe(given), "action": describe(env.single_action_space)}
    return {"kind": KIND, **spaces, "flatten": flatten, "prediction": bool(env.PREDICTION)}


# ---- spaces as plain data --------------------------------------------------------------------------------------------


def describe(space: gymnasium.Space[Any]) -> dict[str, Any]:
    """A space as plain data that YAML can hold.

    Raises:
        EnvError: no space of Gymnasium, or one without a fixed size.
    """
    if isinstance(space, Box):
        shape, dtype = list(space.shape), str(space.dtype)
        return {"space": "Box", "low": _bound(space.low), "high": _bound(space.high), "shape": shape, "dtype": dtype}
    if isinstance(space, Discrete):
        return {"space": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, MultiDiscrete):
        counts, start = space.nvec.tolist(), space.start.tolist()
        return {"space": "MultiDiscrete", "n": counts, "start": start, "dtype": str(space.dtype)}
    if isinstance(space, MultiBinary):
        return {"space": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, Dict):
        return {"space": "Dict", "parts": {str(name): describe(part) for name, part in space.spaces.items()}}
    if isinstance(space, Tuple):
        return {"space": "Tuple", "parts": [describe(part) for part in space.spaces]}
    what = f"the space {space}" if isinstance(space, gymnasium.Space) else f"a {type(space).__name__}"
    raise EnvError(
        f"{what} is none that an agent reads or acts in; valid: Box, Discrete, MultiDiscrete, MultiBinary, Dict and "
        "Tuple of gymnasium.spaces"
    )


def undescribe(described: Mapping[str, Any]) -> gymnasium.Space[Any]:
    """The space that `describe` described."""
    kind = described["space"]
    if kind == "Box":
        shape, dtype = tuple(described["shape"]), np.dtype(described["dtype"])
        low, high = (np.broadcast_to(np.asarray(described[key], dtype), shape) for key in ("low", "high"))
        return Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return Discrete(described["n"], start=described["start"])
    if kind == "MultiDiscrete":
        dtype = np.dtype(described["dtype"]).type
        return MultiDiscrete(np.asarray(described["n"]), dtype=dtype, start=np.asarray(described["start"]))
    if kind == "MultiBinary":
        return MultiBinary(described["n"])
    parts = described["parts"]
    if kind == "Dict":
        return Dict({name: undescribe(part) for name, part in parts.items()})
    return Tuple([undescribe(part) for part in parts])


def _bound(bound: np.ndarray) -> Any:
    """One number if all are alike."""
    return bound.flat[0].item() if bound.size and (bound == bound.flat[0]).all() else bound.tolist()
