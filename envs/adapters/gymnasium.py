"""GymnasiumEnv: any Gymnasium vector environment, in any autoreset mode, under the contract of `BatchedEnv`."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Dict
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import _async_worker
from torch import Tensor

from lifelong.envs.adapters.external import ExternalEnv, ExternalState, SpaceEncoder, Transition
from lifelong.envs.adapters.flat import ActionDecoder
from lifelong.envs.adapters.guard import MASK, MASKS, Guards, flat_choices, lost_in, mask_of
from lifelong.envs.base import select
from lifelong.envs.border import Restarts, blame
from lifelong.envs.errors import EnvError, EnvStepError, unknown_name
from lifelong.envs.options import Interval
from lifelong.envs.registry import WRAPPERS, import_part

VECTORIZATIONS = ("sync", "async", "vector_entry_point")
AUTORESETS = {
    "same_step": AutoresetMode.SAME_STEP,
    "next_step": AutoresetMode.NEXT_STEP,
    "disabled": AutoresetMode.DISABLED,
}
#: wrappers in `gymnasium.wrappers` whose observations are those of other libraries
_OTHER_LIBRARIES = ("ArrayConversion", "JaxToNumpy", "JaxToTorch", "NumpyToTorch")
#: seconds that an asynchronous copy has to end the step it is in, when it is closed
CLOSE_TIMEOUT = 1.0


class GymnasiumEnv(ExternalEnv):
    """B copies of a Gymnasium environment.

    Whatever the wrapped environment does at the end of an episode, the caller sees a dense `final_obs`:

    - SAME_STEP and DISABLED (this adapter then resets the ended copies itself) become SAME_STEP;
    - NEXT_STEP cannot be undone for every vector environment, so dead transitions are marked: see `ExternalEnv.step`.
      Use it only for a given `env` that has no other mode.

    Observations: images (uint8 arrays of two or more dimensions) stay uint8, other arrays become float32, Text becomes
    categories, and Discrete, Dict and Tuple observations are flattened to a float32 vector. Actions: Discrete,
    MultiDiscrete, MultiBinary, Box, and Tuple or Dict of these, as one vector (see `ActionDecoder`). Masks of the
    actions are taken as the environment says them (see `Guard`).

    Args:
        num_envs: number of copies B; None: as many as `env` has, or 1.
        id: name of a registered environment, such as "CartPole-v1".
        env: a `gymnasium.vector.VectorEnv` to wrap instead of making one by `id`.
        kwargs: keyword arguments of the environment made by `id`.
        vectorization: "sync", "async" (one process a copy) or "vector_entry_point" (the environment's own vector form,
            which has its own autoreset mode).
        autoreset: "same_step", "disabled" or "next_step", for "sync" and "async".
        wrappers: of every copy, from the inside: names of `WRAPPERS` or in `gymnasium.wrappers`, or `module:Class`, or
            mappings with such a `kind` and options; for "sync" and "async".
        score: (return of a useless policy, return of a solved task), `SCORE` of this instance; if it is not given,
            there is none, and performance is the return.
        restarts: how often copies of an environment made by `id` that raised may be made anew, with "sync" and "async"
            (see `Guard`); none if not given.
        label: what it is called in the log.
        **options: `device`, `seed` and `evaluation` of `BatchedEnv`.

    Raises:
        EnvError: not exactly one of `id` and `env`; Gymnasium cannot make `id`; a wrong option; spaces that do not fit.
    """

    restartable = True

    def __init__(
        self,
        num_envs: int | None = None,
        *,
        id: str | None = None,
        env: VectorEnv | None = None,
        kwargs: dict[str, Any] | None = None,
        vectorization: Literal["sync", "async", "vector_entry_point"] = "sync",
        autoreset: Literal["same_step", "next_step", "disabled"] = "same_step",
        wrappers: Sequence[str | Mapping[str, Any]] = (),
        score: Interval | None = None,
        restarts: Restarts | None = None,
        label: str = "",
        **options: Any,
    ) -> None:
        if (id is None) == (env is None):
            raise EnvError("GymnasiumEnv needs either id, the name of an environment, or env, a vector environment")
        self.restarts, self.label, self._told = restarts or Restarts(), label or str(id), False
        self.restartable = env is None and vectorization != "vector_entry_point"
        if env is None:
            env = self._make(str(id), num_envs or 1, kwargs or {}, vectorization, autoreset, wrappers)
        elif num_envs not in (None, env.num_envs):
            raise EnvError(f"num_envs is {num_envs}, but the given vector environment has {env.num_envs} copies")
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise EnvError(f"{env} does not say its autoreset mode: set metadata['autoreset_mode'] to an AutoresetMode")
        self.env = env
        self.mode = mode
        # Only these are known to honour the mask; another environment might silently reset every copy.
        known = isinstance(env.unwrapped, (SyncVectorEnv, AsyncVectorEnv))
        self.resets_some = mode == AutoresetMode.DISABLED or known
        self._ended = np.zeros(env.num_envs, bool)
        self.every_step_counts = mode != AutoresetMode.NEXT_STEP
        try:
            self.encoder = SpaceEncoder(env.single_observation_space)
            self.decoder = ActionDecoder(env.single_action_space)
            super().__init__(env.num_envs, score=score, **options)
        except BaseException:
            self.close_extras()
            raise
        if mode == AutoresetMode.NEXT_STEP:
            self.metadata["autoreset_mode"] = mode

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """The encoded observation space, and the action space with parts as one vector."""
        return self.encoder.space, self.decoder.space

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The environment's own picture, where it is made with `render_mode: rgb_array` and not asynchronously."""
        copies = self.env.envs if isinstance(self.env, SyncVectorEnv) else ()
        if not copies or copies[index].render_mode != "rgb_array":
            return super().render(state, index)
        try:
            return np.asarray(copies[index].render(), np.uint8)
        except Exception as error:  # whatever code of others raises
            raise EnvError(f"{self.label} cannot be drawn: {' '.join(str(error).split())}") from error

    def close_extras(self, **kwargs: Any) -> None:
        """Close the wrapped environment; no process of it is left, whatever its code does."""
        processes = self.env.processes if isinstance(self.env, AsyncVectorEnv) else []
        try:
            if all(process.is_alive() for process in processes):  # else it would wait for an answer
                with _quiet("Calling `close` while waiting for a pending call"):  # an interrupt may come at any time
                    self.env.close(**({"timeout": CLOSE_TIMEOUT} if processes else {}), **kwargs)
        finally:
            self.env.closed = True
            for process in processes:
                process.kill()
                process.join()

    def _start(self, seed: int | None, mask: np.ndarray | None) -> Tensor:
        if mask is None or mask.all():
            with self._answered():
                obs, info = self.env.reset(seed=seed)
            self._ended = np.zeros(self.num_envs, bool)
        else:
            if not self.resets_some:
                raise EnvError(f"{self.env} in {self.mode.value} mode cannot reset only some copies")
            with self._answered():
                obs, info = self.env.reset(options={"reset_mask": mask})
            self._ended = self._ended & ~mask
        self._count(info)
        self._allow(info, np.ones(self.num_envs, bool) if mask is None else mask)
        return self.encoder.batch(obs, self.num_envs)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Say of which copy the process is gone, if one is."""
        try:
            yield
        except (EOFError, ConnectionError) as error:
            for index, process in enumerate(self.env.processes if isinstance(self.env, AsyncVectorEnv) else []):
                process.join(1.0)
                if not process.is_alive():
                    code = process.exitcode
                    raise EnvStepError(f"the process of copy {index} is gone, with exit code {code}") from error
            raise

    def _count(self, info: dict[str, Any]) -> None:
        """Tell of the copies that raised; the run ends if it may not go on with others."""
        for index, lost in lost_in(info):
            if not self.restarts.allow(self.label, index, lost.problem):
                raise EnvStepError(lost.problem) from lost.error

    @property
    def _copies(self) -> Any:
        """The wrapped environment as one that has copies to ask."""
        return self.env

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What every adapter saves, and the state of every copy if it can be saved (see `saved`); `exact_state` says
        whether it was. One that was not reset yet has none."""
        saved = super().state_dict()
        if self.state is None:
            self.exact_state = True  # type: ignore[misc]  # it belongs to the environment that is wrapped
            return {**saved, "begun": False}
        copies = list(self._copies.call("save_state")) if self.restartable and self.every_step_counts else []
        problem = next(
            (copy["problem"] for copy in copies if "problem" in copy), "" if copies else "all copies are one"
        )
        self.exact_state = not problem  # type: ignore[misc]
        if not problem:
            return {**saved, "copies": copies, "obs": self.state.obs, "mask": self.action_mask_BA}
        if not self._told:
            self._told = True
            logging.getLogger("lifelong").warning(
                "%s: its state cannot be saved (%s), so a run that is resumed starts fresh episodes",
                self.label,
                problem,
            )
        return saved

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Put every copy where it was if its state was saved; else start fresh episodes."""
        if not saved.get("begun", True):
            self._seed, self._steps, self.exact_state = int(saved["seed"]), int(saved["steps"]), True  # type: ignore[misc]
            return
        super().load_state_dict(saved)
        self.exact_state = False  # type: ignore[misc]
        if "copies" not in saved or not (self.restartable and self.every_step_counts):
            return
        self._copies.set_attr("restored", list(saved["copies"]))
        unfit = next(filter(None, self._copies.get_attr("unfit")), "")
        if unfit:
            logging.getLogger("lifelong").warning("%s: its saved state does not fit (%s)", self.label, unfit)
            super().load_state_dict(saved)  # nothing half restored stays
            return
        self.exact_state = True  # type: ignore[misc]
        self.age_B, self.return_B = saved["age"].to(self.device).clone(), saved["return"].to(self.device).clone()
        self.state = ExternalState(saved["obs"].to(self.device))
        mask = saved["mask"]
        self.action_mask_BA = None if mask is None else mask.to(self.device)

    def _allow(self, info: Mapping[str, Any], new: np.ndarray) -> None:
        """Take what the copies in `new` say of their actions; of those that say nothing all are allowed."""
        key = next((key for key in (MASK, *MASKS) if info.get(key) is not None), None)
        counts = flat_choices(self.single_action_space)
        if counts is None or (key is None and self.action_mask_BA is None):
            return
        if self.action_mask_BA is None:
            if self.state is not None:
                raise EnvStepError(f"info has {key}, and that of the first reset had no action mask; give it always")
            self.action_mask_BA = torch.ones(self.num_envs, int(counts.sum()), dtype=torch.bool, device=self.device)
        allowed = self.action_mask_BA.cpu().numpy() | new[:, None]
        for b in np.flatnonzero(info.get(f"_{key}", ()) if key else ()).tolist():
            allowed[b] = mask_of(info[str(key)][b], allowed.shape[1])
        self.action_mask_BA = torch.from_numpy(allowed).to(self.device)

    def _step(self, action: np.ndarray) -> Transition:
        with self._answered():
            raw_obs, reward, terminated, truncated, info = self.env.step(self.decoder(action))
        self._count(info)
        self._allow(info, np.ones(self.num_envs, bool))
        reward, terminated, truncated = np.asarray(reward), np.asarray(terminated), np.asarray(truncated)
        obs = self.encoder.batch(raw_obs, self.num_envs)
        done = terminated | truncated
        if self.mode == AutoresetMode.NEXT_STEP:
            dead, self._ended = self._ended, done & ~self._ended
            return Transition(obs, obs, reward, terminated, truncated, dead=dead)
        if not done.any():
            return Transition(obs, obs, reward, terminated, truncated)
        if self.mode == AutoresetMode.DISABLED:
            fresh = select(torch.from_numpy(done), self._start(None, done), obs)
            return Transition(obs, fresh, reward, terminated, truncated)
        if "final_obs" not in info:
            raise EnvError(f"{self.env} is in SAME_STEP mode but gives no info['final_obs']")
        ended = np.flatnonzero(done)
        last = self.encoder.items([_pick(self.encoder.source, info["final_obs"], i) for i in ended.tolist()])
        final_obs = obs.index_copy(0, torch.from_numpy(ended), last)
        return Transition(final_obs, obs, reward, terminated, truncated)

    def _make(
        self,
        id: str,
        num_envs: int,
        kwargs: dict[str, Any],
        vectorization: str,
        autoreset: str,
        wrappers: Sequence[str | Mapping[str, Any]],
    ) -> VectorEnv:
        if vectorization not in VECTORIZATIONS:
            raise EnvError(f"vectorization is {vectorization!r}; valid: {', '.join(VECTORIZATIONS)}")
        if autoreset not in AUTORESETS:
            raise EnvError(f"autoreset is {autoreset!r}; valid: {', '.join(AUTORESETS)}")
        own = vectorization == "vector_entry_point"
        if own and wrappers:
            raise EnvError("wrappers are of single copies, and vectorization vector_entry_point has none; use sync")
        vector_kwargs: dict[str, Any] = {} if own else {"autoreset_mode": AUTORESETS[autoreset]}
        if vectorization == "async":
            vector_kwargs["worker"] = _worker
        guards = Guards(partial(_made, id, kwargs, wrappers), self.restarts.limit)
        around: list[Any] = [*([partial(wrapped, wrappers=wrappers)] if wrappers else []), guards]
        try:
            with _quiet("Received the following error", "Raising the last exception", "\x1b"):  # an EnvError says it
                env = gymnasium.make_vec(id, num_envs, vectorization, vector_kwargs, [] if own else around, **kwargs)
        except BaseException as error:
            guards.close()
            if not isinstance(error, (gymnasium.error.Error, ModuleNotFoundError, TypeError)):
                raise
            raise EnvError(f"Gymnasium cannot make {id!r}: {error}") from error
        guards.made.clear()
        if isinstance(env, AsyncVectorEnv):
            for process in env.processes:  # what `terminate` sends is ignored
                process._popen.terminate = process._popen.kill  # type: ignore[attr-defined]
        return env


def _made(id: str, kwargs: Mapping[str, Any], wrappers: Sequence[str | Mapping[str, Any]]) -> gymnasium.Env[Any, Any]:
    """One copy of the environment, in its wrappers."""
    return wrapped(gymnasium.make(id, **kwargs), wrappers)


def wrapped(env: gymnasium.Env[Any, Any], wrappers: Sequence[str | Mapping[str, Any]]) -> gymnasium.Env[Any, Any]:
    """A Gymnasium environment in wrappers, from the inside.

    Args:
        env: the environment.
        wrappers: names of `WRAPPERS` or of classes in `gymnasium.wrappers`, or `module:Class`; or mappings with such a
            `kind` and options.

    Raises:
        EnvError: an unknown wrapper, or options that it does not take.
    """
    known = known_wrappers()
    for spec in wrappers:
        options = {"kind": spec} if isinstance(spec, str) else dict(spec)
        kind = options.pop("kind", None)
        if not isinstance(kind, str) or (kind not in known and ":" not in kind):
            raise EnvError(unknown_name("wrapper", str(kind), known))
        wrapper = import_part("wrapper", kind, known)
        if not (isinstance(wrapper, type) and issubclass(wrapper, gymnasium.Wrapper)):
            raise EnvError(
                f"wrapper {kind} is no subclass of gymnasium.Wrapper, as wrappers of Gymnasium environments are"
            )
        try:
            env = wrapper(env, **options)
        except TypeError as error:
            raise EnvError(f"wrapper {kind}: {error}") from error
    return env


def known_wrappers() -> dict[str, str]:
    """`WRAPPERS` and the classes in `gymnasium.wrappers`: name -> "module:Class"."""
    theirs = [name for name in gymnasium.wrappers.__all__ if name not in ("vector", *_OTHER_LIBRARIES)]
    return {**WRAPPERS, **{name: f"gymnasium.wrappers:{name}" for name in theirs}}


@contextmanager
def _quiet(*beginnings: str) -> Iterator[None]:
    """Without those warnings of Gymnasium that begin so."""
    with warnings.catch_warnings():
        for beginning in beginnings:
            warnings.filterwarnings("ignore", rf"(\x1b\[\d+m)?(ERROR|WARN): {re.escape(beginning)}")
        yield


def _worker(index: int, make: Callable[[], gymnasium.Env[Any, Any]], *arguments: Any) -> None:
    """Gymnasium's worker of an asynchronous copy.

    A signal to the whole group of processes is for the parent, which saves what was learned and closes its workers;
    when the parent is gone, the worker ends too. An environment that cannot be made is told to the parent.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        env = make()
    except (Exception, SystemExit) as error:
        pipe, _, _, errors, *_ = arguments
        pipe.recv()
        errors.put((index, EnvError, blame(error), ""))
        pipe.send((None, False))
        return
    reset = env.reset

    def first_reset(**options: Any) -> Any:
        """Until then the parent may have to end the worker, because another cannot be started."""
        signal.signal(signal.SIGTERM, lambda *_: None)  # unlike SIG_IGN, it is not for programs that a copy starts
        env.reset = reset  # type: ignore[method-assign]
        return reset(**options)

    env.reset = first_reset  # type: ignore[method-assign]
    _async_worker(index, lambda: env, *arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _pick(space: gymnasium.Space[Any], batch: Any, index: int) -> Any:
    """The observation of one copy from `final_obs`: an array of observations, or (Dict spaces) a dict of arrays."""
    if isinstance(space, Dict) and isinstance(batch, dict):
        return {key: _pick(part, batch[key], index) for key, part in space.spaces.items()}
    return batch[index]
