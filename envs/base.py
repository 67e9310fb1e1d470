"""BatchedEnv: the one environment contract of the project.

A `BatchedEnv` is a `gymnasium.vector.VectorEnv` whose arrays are torch tensors on `env.device`. It holds B independent
copies of one environment. Subclasses write four small functions over whole batches (`spaces`, `draw_state`, `advance`,
`observe`); resets, time limits, autoreset, final observations, statistics, task parameters and checkpoints live here.

Rules that every environment keeps (tests/envs/test_contract.py runs on all of them):

- SAME_STEP autoreset: when an episode ends at step t, the returned observation already belongs to the next episode and
  the true last one is in the *dense* tensor `info["final_obs"]` (equal to the next observation of every copy before any
  reset), with the mask `info["_final_obs"]`.
- `terminated` (the episode's own end: its value is zero) and `truncated` (a time limit: its value is not zero) are
  never merged. Both may be true on one step; termination wins.
- Every reset draws fresh randomness from the environment's own `torch.Generator`.
- What is returned is the caller's to keep. An environment may fill buffers of its own again and again: that is noticed
  in its first steps, and from then on what it returns is copied.
- Task parameters are tensors with leading dimension B: each copy can be on its own task and a task switch is a tensor
  write (`set_params`), never a rebuild.
- No `.item()` and no data-dependent Python branch in `step`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from lifelong.envs import compiled
from lifelong.envs.compiled import CompiledEnv, CompiledSteps
from lifelong.envs.errors import EnvError, unknown_name


@dataclass(frozen=True)
class Param:
    """One task parameter: a number that every copy may have its own value of.

    `default` is the value when none is given; values outside [`low`, `high`] are refused.
    """

    default: float
    low: float = -float("inf")
    high: float = float("inf")
    doc: str = ""
    integer: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of its values."""
        return torch.int64 if self.integer else torch.float32


def select(mask_B: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` where `mask_B`, else `old`; the mask [B] is broadcast over trailing dimensions."""
    return torch.where(mask_B if new.dim() == 1 else mask_B.view(-1, *[1] * (new.dim() - 1)), new, old)


def select_state(mask_B: Tensor, new: Any, old: Any) -> Any:
    """`select` applied to every tensor of a flat state dataclass."""
    return type(old)(**{f.name: select(mask_B, getattr(new, f.name), getattr(old, f.name)) for f in fields(old)})


class Watch:
    """Looks at what an environment returns in its first steps: whether it fits, and whether memory comes again.

    Everything is copied meanwhile, so what comes again has not spoilt anything.

    Args:
        copies: B.
        steps: how many resets and steps are looked at.
        reused: names of what comes again are put here.
    """

    def __init__(self, copies: int, steps: int, reused: set[str]) -> None:
        self.copies, self.left, self.reused = copies, steps, reused
        #: by address, before this step and in it; kept, so that no address is given out twice
        self.seen: dict[int, Tensor] = {}
        self.now: dict[int, Tensor] = {}

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of `tensor`; its memory is remembered."""
        if not isinstance(tensor, Tensor):
            raise EnvError(f"{name} is a {type(tensor).__name__}, not a torch tensor")
        address = tensor.untyped_storage().data_ptr()
        if address in self.seen and tensor.numel():
            self.reused.add(name)
        self.now[address] = tensor
        return tensor.clone()

    def check(self, reward_B: Any, terminated_B: Any) -> None:
        """Refuse a reward or a flag of another class, shape or kind of number.

        Raises:
            EnvError: one sentence about the first.
        """
        for name, tensor in (("reward", reward_B), ("terminated", terminated_B)):
            given = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            fits = isinstance(tensor, Tensor) and tensor.shape == (self.copies,)
            if not fits or (name == "terminated" and tensor.dtype != torch.bool):
                kind = "bool" if name == "terminated" else "numbers"
                raise EnvError(f"{name} is {given}; it must be a tensor of {kind} with shape ({self.copies},)")

    def next(self) -> Watch | None:
        """What watches the next reset or step: this, or nothing any more."""
        self.seen |= self.now
        self.left -= 1
        return self if self.left else None


class BatchedEnv(VectorEnv):
    """B copies of one environment as tensors on one device.

    Subclasses define

    - `PARAMS`: name -> `Param`, the task parameters that each copy may have its own value of;
    - `SCORE`: (return of a useless policy, return of a solved task), which maps returns to the performance in [0, 1];
    - `spaces()`: the observation and action space of one copy;
    - `draw_state()`: a fresh initial state for all B copies (a flat dataclass of tensors with leading dimension B);
    - `advance(state, action)`: `(next state, reward_B, terminated_B, info)`, where `info` holds extra dense tensors
      (prediction tasks put `target` and `target_mask` there: the truth for the action just taken);
    - `observe(state)`: the observation, [B, ...].

    Options that change spaces are keyword arguments of the subclass's own `__init__`, set before `super().__init__`.

    Args:
        num_envs: number of copies B.
        device: torch device that holds every tensor.
        seed: seed of the environment's generator; `reset(seed=...)` sets it again.
        evaluation: use held-out data, in families that have any (images); others ignore it.
        random_initial_age: start the first episodes at a random age, so that copies do not time out together.
        **params: task parameters, each a number (all copies) or a sequence of B numbers.

    Raises:
        EnvError: unknown parameter, or a value outside its range.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
    PARAMS: ClassVar[dict[str, Param]] = {}
    SCORE: ClassVar[tuple[float, float]] = (0.0, 1.0)
    #: default time limit in steps; 0 means that episodes are never truncated
    MAX_EPISODE_STEPS: ClassVar[int] = 0
    #: prediction tasks give info["target"] and info["target_mask"] at every step
    PREDICTION: ClassVar[bool] = False
    #: True if `state_dict` restores the exact state of every copy
    exact_state: ClassVar[bool] = True
    #: False if some steps are dead, as `info["valid"]` says: the copy was reset and did not act
    every_step_counts: bool = True
    #: True if `step` is work of the device alone, as the contract demands, so that a CUDA graph can repeat it
    capturable: ClassVar[bool] = True
    #: False if fresh episodes can be started in all copies only
    resets_some: bool = True
    #: False if nobody said what a useless and a solved policy get: `SCORE` is (0, 1) then, and performance the return
    scored: bool = True
    #: True if a copy that raised can be made anew; the class then takes `restarts` and `label`
    restartable: bool = False
    #: resets and steps, from the first on, in which what a subclass returns is looked at
    WATCHED: ClassVar[int] = 8
    #: False: a step is not to be compiled; it does something beside what it returns, or most of it is compiled anyway
    COMPILES: ClassVar[bool] = True
    #: gone before anything is repeated (see `agent.runtime.capture`)
    TRANSIENT: ClassVar[tuple[str, ...]] = ("_watch", "_compiled_env")
    #: the actions that there are now, bool [B, A], flags of a MultiDiscrete side by side; None: always all
    action_mask_BA: Tensor | None = None
    #: positional and keyword arguments that it was made with
    made_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> BatchedEnv:
        """An instance that knows what it was made with, so that a twin of it can be made (`envs.compiled`)."""
        made = super().__new__(cls)
        made.made_with = (args, kwargs)
        return made

    def __init__(
        self,
        num_envs: int = 1,
        *,
        device: str | torch.device = "cpu",
        seed: int = 0,
        evaluation: bool = False,
        random_initial_age: bool = False,
        **params: Any,
    ) -> None:
        if num_envs < 1:
            raise EnvError(f"num_envs is {num_envs}; it must be at least 1")
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.evaluation = evaluation
        self.random_initial_age = random_initial_age
        self.metadata = dict(type(self).metadata)
        self.single_observation_space, self.single_action_space = self.spaces()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.generator = torch.Generator(device=self.device)
        self.generator.manual_seed(seed)
        self.params: dict[str, Tensor] = {}
        for name, param in self.all_params().items():
            self.params[name] = torch.full((num_envs,), param.default, dtype=param.dtype, device=self.device)
        self.set_params(None, **params)
        self.age_B = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self.return_B = torch.zeros(num_envs, device=self.device)
        self.state: Any = None
        #: what `advance` and `observe` return in memory that they write to again
        self._reused: set[str] = set()
        self._watch: Watch | None = Watch(num_envs, self.WATCHED, self._reused)
        #: its compiled steps; None: none so far, False: there are none
        self._compiled_env: CompiledEnv | bool | None = None

    # ---- what a subclass writes ----------------------------------------------------------------------------------

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """The observation space and the action space of one copy."""
        raise NotImplementedError

    def draw_state(self) -> Any:
        """A fresh initial state for all B copies, drawn from `self.generator`."""
        raise NotImplementedError

    def advance(self, state: Any, action: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Tensor]]:
        """One step of the dynamics: (next state, reward [B], terminated [B], extra info)."""
        raise NotImplementedError

    def observe(self, state: Any) -> Tensor:
        """The observation of a state, [B, ...]."""
        raise NotImplementedError

    def observe_fresh(self, state: Any, done_B: Tensor, final_obs: Tensor) -> Tensor:
        """`observe(state)` where episodes ended; `final_obs` is what it would be of all others, for an environment
        whose observations take long to make."""
        return self.observe(state)

    def params_changed(self) -> None:
        """Parameters were written or restored: make what follows from them, refuse what does not go together."""

    def allowed(self, state: Any) -> Tensor | None:
        """The actions that there are in a state, bool [B, A] with at least one a copy (of a MultiDiscrete the flags of
        all numbers side by side); None, the default: always all. A step that has them does not compile."""
        return None

    def render(self, state: Any = None, index: int = 0) -> Any:
        """A picture for people of one copy, uint8 [height, width, 3]; what it observes, if nothing else is written.

        Args:
            state: as `advance` returns it; None: the present one.
            index: which copy.
        """
        from lifelong.envs.render import observation

        obs = self.observe(self.state if state is None else state)[index]
        return observation(self.single_observation_space, obs.cpu().numpy())

    # ---- the contract --------------------------------------------------------------------------------------------

    @classmethod
    def all_params(cls) -> dict[str, Param]:
        """The task parameters of this environment, with the time limit that every environment has."""
        limit = Param(cls.MAX_EPISODE_STEPS, 0, 2**31, "steps until truncation; 0: never", integer=True)
        return {**cls.PARAMS, "max_episode_steps": limit}

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Start fresh episodes in every copy, or in those of `options={"reset_mask": bool tensor [B]}`.

        Args:
            seed: re-seeds the environment's generator. One generator serves all copies, so a list uses its first entry.
            options: `reset_mask`, bool [B]: the copies to reset. Others keep their state and their observation.

        Returns:
            The observation of every copy [B, ...] and an empty info.
        """
        if isinstance(seed, list):
            seed = seed[0]
        if seed is not None:
            self.generator.manual_seed(seed)
            self._np_random_seed = seed
        fresh = self.draw_state()
        mask = None if options is None else options.get("reset_mask")
        if mask is None or self.state is None:
            self.state = fresh
            self.age_B = self._initial_age()
            self.return_B = torch.zeros_like(self.return_B)
        else:
            mask_B = self._mask(mask)
            self.state = select_state(mask_B, fresh, self.state)
            self.age_B = torch.where(mask_B, torch.zeros_like(self.age_B), self.age_B)
            self.return_B = torch.where(mask_B, torch.zeros_like(self.return_B), self.return_B)
        return self._shown(), {}

    def step(self, actions: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step every copy; copies whose episode ends are reset in the same step.

        Returns:
            `(obs [B, ...], reward [B] float32, terminated [B] bool, truncated [B] bool, info)`, where info has
            `final_obs` [B, ...] and its mask `_final_obs` [B], and the return and length of every copy's episode so
            far, `episode_return` [B] and `episode_length` [B], this step included.
        """
        if self.state is None:
            raise EnvError("step() before the first reset()")
        action = torch.as_tensor(actions, device=self.device)
        # compiled steps are equal to the bit, so it does not matter when they begin: not for a few steps
        if self._watch is None:
            steps = self._compiled(action)
            if steps is not None:
                return steps.step(self, action)
        return self.eager_step(action)

    def eager_step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """`step` in torch, which is what it means; `action` is a tensor on `device`."""
        state, reward_B, terminated_B, info = self.advance(self.state, action)
        if self._watch is not None:
            self._watch.check(reward_B, terminated_B)
        reward_B = self._kept("reward", reward_B).float()
        terminated_B = self._kept("terminated", terminated_B)
        if info:
            info = {name: self._kept(name, tensor) for name, tensor in info.items()}
        age_B = self.age_B + 1
        return_B = self.return_B + reward_B
        limit_B = self.params["max_episode_steps"]
        truncated_B = (age_B >= limit_B) & (limit_B > 0)
        done_B = terminated_B | truncated_B
        final_obs = self._kept("obs", self.observe(state))
        self.state = select_state(done_B, self.draw_state(), state)
        self.age_B, self.return_B = age_B.masked_fill(done_B, 0), return_B.masked_fill(done_B, 0.0)
        info = {
            **info,
            "final_obs": final_obs,
            "_final_obs": done_B,
            "episode_return": return_B,
            "episode_length": age_B,
        }
        return self._shown(done_B, final_obs), reward_B, terminated_B, truncated_B, info

    @property
    def masked(self) -> bool:
        """Whether its class says which actions there are."""
        return type(self).allowed is not BatchedEnv.allowed

    def compiled_steps(self, action_TB: Tensor) -> CompiledSteps | None:
        """T steps as one compiled call each that reads row t of `action_TB`; None if there is no such call.

        They draw the random numbers of T calls of `step`: `begin`, then the call for all T rows, then `finish`.
        """
        own = type(self).step is not BatchedEnv.step
        steps = None if own or self.state is None else self._compiled(action_TB[0])
        return None if steps is None else steps.steps(self, action_TB)

    def _compiled(self, action: Tensor) -> CompiledEnv | None:
        """Its compiled steps, if there are any for such actions."""
        if self._compiled_env is False or not compiled.available(self):
            return None
        if self._compiled_env is None:
            self._compiled_env = compiled.compiled(self) or False
        return (
            self._compiled_env
            if isinstance(self._compiled_env, CompiledEnv) and self._compiled_env.fits(self, action)
            else None
        )

    def set_params(self, mask: Any = None, **params: Any) -> None:
        """Write task parameters of the copies in `mask` (bool [B]; all copies if None); their episodes go on.

        A mask without any copy is a trial: the values, beside defaults, are checked as if all had them.

        Raises:
            EnvError: unknown parameter, a value outside its range, or values that do not go together; none is written.
        """
        known = self.all_params()
        before, where = self.params, None if mask is None else self._mask(mask)
        trial = where is not None and not bool(where.any())
        written = (
            {name: torch.full_like(old, known[name].default) for name, old in before.items()} if trial else {**before}
        )
        for name, value in params.items():
            if name not in known:
                raise EnvError(unknown_name(f"parameter of {type(self).__name__}", name, known))
            param = known[name]
            new = torch.as_tensor(value, dtype=torch.float64).to("cpu")
            if new.shape not in ((), (self.num_envs,)):
                raise EnvError(f"{type(self).__name__}.{name} has shape {tuple(new.shape)}; give one or one a copy")
            if not bool(((new >= param.low) & (new <= param.high)).all()):  # so that nan is refused too
                raise EnvError(
                    f"{type(self).__name__}.{name} is {value}; it must lie between {param.low:g} and {param.high:g}"
                )
            new = new.to(self.device, param.dtype).expand(self.num_envs)
            written[name] = new.clone() if trial or where is None else torch.where(where, new, before[name])
        self.params = written
        try:
            self.params_changed()
        except EnvError:
            self.params = before
            raise
        if trial:
            self.params = before
            self.params_changed()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit: state, ages, parameters and the generator."""
        state = None if self.state is None else {f.name: getattr(self.state, f.name) for f in fields(self.state)}
        return {
            "state": state,
            "params": dict(self.params),
            "age": self.age_B,
            "return": self.return_B,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. The number of copies must be the same; parameters that the environment
        has got since then keep their values."""
        if saved["age"].shape[0] != self.num_envs:
            raise EnvError(f"the saved state has {saved['age'].shape[0]} copies, this environment {self.num_envs}")
        if saved["state"] is not None:
            if self.state is None:
                self.state = self.draw_state()
            self.state = type(self.state)(**{k: v.to(self.device).clone() for k, v in saved["state"].items()})
        self.params = {k: saved["params"].get(k, v).to(self.device).clone() for k, v in self.params.items()}
        self.params_changed()
        self.age_B = saved["age"].to(self.device).clone()
        self.return_B = saved["return"].to(self.device).clone()
        self.generator.set_state(saved["generator"].cpu())
        if self.masked and self.state is not None:
            self.action_mask_BA = self.allowed(self.state)

    # ---- helpers for subclasses ----------------------------------------------------------------------------------

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform float32 numbers in [low, high) of `shape`, from the environment's generator."""
        return torch.empty(shape, device=self.device).uniform_(low, high, generator=self.generator)

    def randint(self, high: int, *shape: int) -> Tensor:
        """Uniform integers in [0, high) of `shape`, from the environment's generator."""
        return torch.randint(high, shape, generator=self.generator, device=self.device)

    def _initial_age(self) -> Tensor:
        if not self.random_initial_age:
            return torch.zeros_like(self.age_B)
        fraction_B = torch.rand(self.num_envs, generator=self.generator, device=self.device)
        return (fraction_B * self.params["max_episode_steps"]).long()

    def _kept(self, name: str, tensor: Tensor) -> Tensor:
        """What a subclass returned, in memory that it does not write to again."""
        if self._watch is not None:
            return self._watch.copy(name, tensor)
        return tensor.clone() if name in self._reused else tensor

    def _shown(self, done_B: Tensor | None = None, final_obs: Tensor | None = None) -> Tensor:
        """The observation that a reset or a step ends with."""
        if self.masked:
            self.action_mask_BA = self.allowed(self.state)
        if done_B is None or final_obs is None:
            obs = self.observe(self.state)
        else:
            obs = self.observe_fresh(self.state, done_B, final_obs)
        obs = self._kept("obs", obs)
        if self._watch is not None:
            self._watch = self._watch.next()
        return obs

    def _mask(self, mask: Any) -> Tensor:
        mask_B = torch.as_tensor(np.asarray(mask) if not isinstance(mask, Tensor) else mask, device=self.device)
        if mask_B.dtype != torch.bool or mask_B.shape != (self.num_envs,):
            raise EnvError(f"a mask must be bool of shape ({self.num_envs},), not {mask_B.dtype} {tuple(mask_B.shape)}")
        return mask_B
