"""Guard: one copy of a Gymnasium environment at the border to code that is not ours, in this or in another process.

Nothing that the environment raises leaves the guard: it is told in the info of the step, so that it reaches the adapter
by the same way from here and from an asynchronous worker, with the file and the line where it was raised. The adapter
ends the run, or takes the copy for truncated; then the guard makes a new environment at the next reset.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from lifelong.envs.adapters.flat import choices
from lifelong.envs.adapters.saved import CannotSave, alike, set_state, state_of, state_of_value, value_of
from lifelong.envs.border import blame
from lifelong.envs.errors import EnvError, LifelongError

#: the key of info that says what was raised
LOST = "lifelong_lost"
#: the key of info that says which actions there are now, bool [A], by whatever convention the environment says it
MASK = "lifelong_mask"
#: what a guard itself goes on from
_OWN = ("newest", "broken", "made", "seed")
#: keys of info by which environments say it (PettingZoo and RLlib, sb3-contrib, SMAC)
MASKS = ("action_mask", "action_masks", "avail_actions")


@dataclass(frozen=True)
class Lost:
    """What an environment raised: `file:line: Type: message`, and the exception if it was raised in this process."""

    problem: str
    error: BaseException | None = None

    def __reduce__(self) -> tuple[type[Lost], tuple[str]]:
        """Exceptions of other people do not always travel."""
        return Lost, (self.problem,)


def lost_in(info: Mapping[str, Any]) -> Iterator[tuple[int, Lost]]:
    """(copy, what it raised) from the info of a vector environment whose copies are guarded."""
    for part in (info.get("final_info", {}), info):
        for index in np.flatnonzero(part.get(f"_{LOST}", ())).tolist():
            for lost in part[LOST][index]:
                yield index, lost


class Guard(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The environment, whatever it raises or returns.

    After an error the step is truncated with reward 0, and the last good observation is the final one. A new
    environment takes its seed from the last one that was given and from how many there have been.

    Which actions there are, the environment may say by a key of info (`MASKS`), by the part `action_mask` of a Dict
    observation, or by a method `action_masks()`; the guard says it under `MASK`.

    Args:
        env: the environment.
        make: makes another one like it.
        restarts: an environment that raised so many times in one reset is not made anew once more.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], make: Callable[[], gymnasium.Env[Any, Any]], restarts: int
    ) -> None:
        super().__init__(env)
        self.unfit = ""
        self.make, self.restarts = make, restarts
        self.space = env.observation_space
        self.plain = (self.space.dtype, self.space.shape) if isinstance(self.space, Box) else None
        self.newest: Any = None  # observation, if there may be restarts
        counts = flat_choices(env.action_space)
        self.choices = 0 if counts is None else int(counts.sum())
        self.asked = bool(self.choices) and env.has_wrapper_attr("action_masks")
        self.broken, self.made, self.seed = False, 1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a fresh episode; in a new environment if this one has raised."""
        self.seed = self.seed if seed is None else seed
        lost: list[Lost] = []
        while len(lost) <= self.restarts:
            try:
                if self.broken:
                    seed = self._renew()
                if seed is not None:  # what samples from spaces begins with the system's entropy
                    for space in (self.env.unwrapped.action_space, self.env.unwrapped.observation_space):
                        space.seed(seed)
                obs, info = self.env.reset(seed=seed, options=options)
                self._check_observation(obs)
                info = self._with_mask(obs, info)
            except (Exception, SystemExit) as error:
                lost.append(self._lost(error, "reset"))
            else:
                self._keep(obs)
                return obs, {**info, LOST: lost} if lost else info
        return self._last(), {LOST: lost}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; the end of the episode if it raises, or returns what it must not."""
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
            self._check_observation(obs)
            reward = float(_one("the reward", reward, "biuf"))
            terminated = bool(_one("terminated", terminated, "biu"))
            truncated = bool(_one("truncated", truncated, "biu"))
            if not (terminated or truncated):  # who is at the end does not act
                info = self._with_mask(obs, info)
        except (Exception, SystemExit) as error:
            return self._last(), 0.0, False, True, {LOST: [self._lost(error, "step")]}
        self._keep(obs)
        return obs, reward, terminated, truncated, info

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def save_state(self) -> dict[str, Any]:
        """The state of the environment and of this guard, as data (see `saved`); else `problem`, why there is none."""
        try:
            own = state_of_value({name: getattr(self, name) for name in _OWN})
            return {"own": own} if self.broken else {"own": own, "env": state_of(self.env)}
        except CannotSave as error:
            return {"problem": str(error)}

    @property
    def restored(self) -> None:
        """Set to what `save_state` returned, it puts the environment there; `unfit` says why that cannot be."""
        return None

    @restored.setter
    def restored(self, saved: Mapping[str, Any]) -> None:
        self.unfit = ""
        try:
            vars(self).update(value_of(saved["own"]))
            if "env" in saved:
                set_state(self.env, saved["env"])
                if not alike(saved["env"], state_of(self.env)):
                    self.unfit = "an environment that was put into it is not in it"
        except CannotSave as error:
            self.unfit = str(error)

    def _with_mask(self, obs: Any, info: dict[str, Any]) -> dict[str, Any]:
        """`info`, with what the environment says of its actions."""
        if not self.choices:
            return info
        said = next((info[key] for key in MASKS if info.get(key) is not None), None)
        if said is None and isinstance(obs, dict):
            said = obs.get("action_mask")
        if said is None and self.asked:
            said = self.env.get_wrapper_attr("action_masks")()
        return info if said is None else {**info, MASK: mask_of(said, self.choices)}

    def _renew(self) -> int:
        """Make a new environment; its seed."""
        with contextlib.suppress(Exception, SystemExit):  # it is broken: what it still holds, it may keep
            self.env.close()
        self.env = self.make()
        self.broken, self.made = False, self.made + 1
        return int(np.random.SeedSequence([self.seed, self.made]).generate_state(1)[0]) >> 1

    def _keep(self, obs: Any) -> None:
        if self.restarts:
            self.newest = copy.deepcopy(obs)  # environments write into their buffers

    def _last(self) -> Any:
        return self.space.sample() if self.newest is None else self.newest

    def _lost(self, error: BaseException, method: str) -> Lost:
        self.broken = True
        code = getattr(getattr(type(self.env.unwrapped), method), "__code__", None)
        place = f"{code.co_filename}:{code.co_firstlineno}" if code else type(self.env.unwrapped).__name__
        told = f"{place}: {error}" if isinstance(error, LifelongError) else blame(error, place)
        return Lost(told, error)

    def _check_observation(self, obs: Any) -> None:
        if type(obs) is np.ndarray and (obs.dtype, obs.shape) == self.plain:  # as nearly always
            return
        wrong = _unfit(self.space, obs)
        if wrong:
            raise EnvError(f"an observation is {wrong}, but the space is {self.space}")


class Guards:
    """Guards the environments that Gymnasium makes for its vector environment, which forgets them if one fails.

    Args:
        make, restarts: see `Guard`.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], restarts: int) -> None:
        self.make, self.restarts = make, restarts
        self.made: list[Guard] = []

    def __call__(self, env: gymnasium.Env[Any, Any]) -> Guard:
        """The environment, guarded."""
        self.made.append(Guard(env, self.make, self.restarts))
        return self.made[-1]

    def __reduce__(self) -> tuple[type[Guards], tuple[Any, int]]:
        """What was made in one process stays there."""
        return Guards, (self.make, self.restarts)

    def close(self) -> None:
        """Close what was made."""
        for guard in self.made:
            with contextlib.suppress(Exception, SystemExit):  # what is told is why another one could not be made
                guard.close()


def flat_choices(space: gymnasium.Space[Any]) -> np.ndarray | None:
    """How many choices the numbers of an action have, if it is one whose choices can be masked; else None."""
    return choices(space) if isinstance(space, (Discrete, MultiDiscrete)) else None


def mask_of(said: Any, choices: int) -> np.ndarray:
    """What an environment says of its actions as bool [A]: one flag a choice, those of a MultiDiscrete side by side.

    Raises:
        EnvError: another shape, or no action that is left.
    """
    parts = [np.asarray(part) for part in said] if isinstance(said, (tuple, list)) else [np.asarray(said)]
    mask = np.concatenate([part.reshape(-1) for part in parts])
    if mask.dtype.kind not in "biuf" or mask.size != choices:
        raise EnvError(f"the action mask is {_brief(np.asarray(mask))}; it must have {choices} flags, one an action")
    if not mask.any():
        raise EnvError("the action mask leaves no action; at least one must be allowed")
    return mask.astype(bool)


def _one(name: str, value: Any, kinds: str) -> Any:
    """The number or flag in a value of one of these kinds of numpy, whether it is an array of one or not."""
    if type(value) is bool or (type(value) is float and "f" in kinds):  # as nearly always
        return value
    array = np.asarray(value)
    if array.dtype.kind not in kinds or array.size != 1:
        raise EnvError(f"{name} is {_brief(value)}; it must be one {'flag' if 'f' not in kinds else 'number'}")
    return array.reshape(())


def _unfit(space: gymnasium.Space[Any], value: Any) -> str:
    """What an observation is if it cannot be one of `space`; empty if it can, also of a space that is not known."""
    if isinstance(space, Dict):
        if not isinstance(value, Mapping) or value.keys() != space.spaces.keys():
            return _brief(value)
        return next(filter(None, (_unfit(part, value[key]) for key, part in space.spaces.items())), "")
    if isinstance(space, Tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(space.spaces):
            return _brief(value)
        return next(filter(None, map(_unfit, space.spaces, value)), "")
    if not isinstance(space, (Box, Discrete, MultiBinary, MultiDiscrete)):
        return ""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of several lengths
        return _brief(value)
    fits = array.dtype.kind in "biu" or (array.dtype.kind == "f" and space.dtype.kind == "f")
    if isinstance(space, Box):
        fits = fits and np.can_cast(array.dtype, space.dtype, "same_kind")
    return "" if fits and array.shape == space.shape else _brief(value)


def _brief(value: Any) -> str:
    """A value in a sentence: the kind of number and shape of an array, else its class and the keys of a mapping."""
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(str, value)) or 'nothing'}"
    array = value if isinstance(value, (np.ndarray, np.generic)) else None
    return f"a {type(value).__name__}" if array is None else f"{array.dtype} {array.shape}"
