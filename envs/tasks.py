"""Tasks and TaskEnv: many tasks behind one environment contract, each copy on its own task."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Annotated, Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from lifelong.envs.adapters.external import ExternalEnv
from lifelong.envs.adapters.flat import choices
from lifelong.envs.base import BatchedEnv, select
from lifelong.envs.border import Restarts, told
from lifelong.envs.compiled import CompiledSteps
from lifelong.envs.errors import EnvError, EnvStepError, unknown_name
from lifelong.envs.options import LARGEST, Range, brief, parameters_of, problem
from lifelong.envs.registry import ENVIRONMENTS, import_part
from lifelong.envs.spaces import ActionBorder, ObservationBorder, byte_scale
from lifelong.envs.wrappers.layer import layered
from lifelong.kernels.acting import place


def environment_class(kind: str) -> type[BatchedEnv]:
    """The environment class that `kind` names: a registered name or `module:Class`.

    Raises:
        EnvError: unknown name, or it cannot be imported.
    """
    if kind not in ENVIRONMENTS and ":" not in kind:
        raise EnvError(unknown_name("env", kind, ENVIRONMENTS))
    cls: type[BatchedEnv] = import_part("env", kind, ENVIRONMENTS)
    if not (isinstance(cls, type) and issubclass(cls, BatchedEnv)):
        raise EnvError(f"env {kind!r} is no subclass of BatchedEnv")
    return cls


@dataclass(frozen=True)
class Task:
    """One task: an environment kind, its construction options and its per-copy parameters.

    `score` is (return of a useless policy, return of a solved task); None takes the environment's own. The learner sees
    rewards times `reward_scale`, so that tasks of one stream have values of one size; returns in logs are unscaled.
    """

    name: str
    kind: str
    options: Mapping[str, Any]
    params: Mapping[str, float]
    steps: int
    score: tuple[float, float] | None = None
    reward_scale: float = 1.0

    @classmethod
    def from_spec(
        cls,
        name: str,
        spec: Mapping[str, Any],
        steps: int,
        score: tuple[float, float] | None = None,
        reward_scale: float = 1.0,
    ) -> Task:
        """The task of a config's `env: {kind: ..., option or parameter: value, ...}`."""
        kind = spec["kind"]
        known = environment_class(kind).all_params()
        rest = {key: value for key, value in spec.items() if key != "kind"}
        params = {key: value for key, value in rest.items() if key in known}
        options = {key: value for key, value in rest.items() if key not in known}
        _check(name, environment_class(kind), kind, params, options)
        return cls(name, kind, options, params, steps, score, reward_scale)

    def build(self, num_envs: int, restarts: Restarts, **context: Any) -> BatchedEnv:
        """The environment of this task with `num_envs` copies; those that can be made anew count in `restarts`.

        Raises:
            EnvError: an option or parameter that the environment does not have, or refuses.
        """
        cls, options = wrapped_class(environment_class(self.kind), self.options)
        arguments: dict[str, Any] = {**options, **self.params, **context}
        if cls.restartable:
            arguments |= {"restarts": restarts, "label": self.label()}
        try:
            return cls(num_envs, **arguments)
        except (Exception, SystemExit) as error:  # whatever code of the user's own raises
            raise EnvError(f"{self.label()}: {told(error)}") from error

    def label(self) -> str:
        """The task and its environment, for sentences."""
        return f"task {self.name!r} (env {self.options.get('id', self.kind)})"

    def group(self) -> str:
        """Tasks of one group share an environment instance and differ in parameters only."""
        return f"{self.kind}{sorted((key, repr(value)) for key, value in self.options.items())}"


#: what the runtime gives every environment
CONTEXT = ("num_envs", "device", "seed", "evaluation", "random_initial_age", "restarts", "label")


def wrapped_class(cls: type[BatchedEnv], options: Mapping[str, Any]) -> tuple[type[BatchedEnv], dict[str, Any]]:
    """A native environment's class in the `wrappers` of its options, and the other options; adapters have their own.

    Raises:
        EnvError: a wrapper that cannot be (see `layered`).
    """
    if "wrappers" not in options or "wrappers" in parameters_of(cls):
        return cls, dict(options)
    if issubclass(cls, ExternalEnv):
        raise EnvError(
            f"{cls.__name__} steps all copies in one call, with wrappers of its own, which are options in kwargs (such "
            "as frame_skip of Atari); wrappers are for env gymnasium and native environments"
        )
    return layered(cls, options["wrappers"]), {name: value for name, value in options.items() if name != "wrappers"}


def _check(task: str, cls: type[BatchedEnv], kind: str, params: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse parameters and options of an environment that it does not have, or whose values cannot be."""
    try:
        _, options = wrapped_class(cls, options)
    except EnvError as error:
        raise EnvError(f"task {task!r}: {error}") from error
    known = {name: both for name, both in parameters_of(cls).items() if name not in CONTEXT}
    for name, value in options.items():
        if name not in known:
            raise EnvError(unknown_name(f"option or parameter of env {kind}", name, [*known, *cls.all_params()]))
        parameter, hint = known[name]
        wrong = None if value is None and parameter.default is None else problem(hint, value)
        if wrong is not None:
            raise EnvError(f"task {task!r}: {name} of env {kind} is {brief(value)}; it must be {wrong}")
    for name, value in params.items():
        param = cls.all_params()[name]
        limits = Range(max(param.low, -LARGEST), min(param.high, LARGEST))
        wrong = problem(Annotated[int if param.integer else float, limits], value)
        if wrong is not None:
            raise EnvError(f"task {task!r}: {name} of env {kind} is {brief(value)}; it must be {wrong}")


def _seen(steps: CompiledSteps) -> tuple[Tensor, Tensor]:
    return steps.obs, steps.final_obs


class TaskEnv(VectorEnv):
    """B copies, each on one of several tasks, as one `BatchedEnv`-shaped environment.

    Tasks of the same environment and options share one instance: switching between them is a tensor write. Other
    environments get an instance each, and only those that some copy is on are stepped. `step` and `reset` return what
    `BatchedEnv` returns; info always has `final_obs`, `_final_obs`, `episode_return`, `episode_length`, `target`,
    `target_mask`, `is_init` (the returned observation starts an episode) and `valid` (False: not a real transition).

    Args:
        tasks: the tasks of the stream.
        num_envs: number of copies B; all start on task 0.
        spaces: `same` refuses tasks whose spaces differ; `pad` pads observations with zeros and masks actions.
        restarts: of the run; none if not given.

    Raises:
        EnvError: spaces that differ under `same`, or cannot be padded.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        num_envs: int,
        *,
        device: str | torch.device = "cpu",
        seed: int = 0,
        evaluation: bool = False,
        random_initial_age: bool = False,
        spaces: str = "same",
        restarts: Restarts | None = None,
    ) -> None:
        self.tasks = list(tasks)
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.envs: list[BatchedEnv] = []
        #: for sentences, by environment
        self.labels: list[str] = []
        with ExitStack() as if_it_fails:
            if_it_fails.callback(self.close)
            self._make(restarts or Restarts(), device=device, evaluation=evaluation, seed=seed, ages=random_initial_age)
            self._unify_spaces(spaces)
            if_it_fails.pop_all()
        self.scores = [task.score or self.envs[g].SCORE for task, g in zip(self.tasks, self.group_of, strict=True)]
        #: whether the scores of the tasks are known; of others performance is the return
        pairs = zip(self.tasks, self.group_of, strict=True)
        self.scored = [task.score is not None or self.envs[g].scored for task, g in pairs]
        #: whether the actions that there are change from step to step; known of an environment when it is reset
        self.masks_vary = any(env.masked for env in self.envs)
        self.capturable = not self.masks_vary and all(env.capturable for env in self.envs)
        self.every_step_counts = all(env.every_step_counts for env in self.envs)
        # on the host: which groups to step is known without a sync
        self.task_B = torch.zeros(num_envs, dtype=torch.int64)
        self._none_B = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self._all_B = ~self._none_B
        self._no_target = torch.zeros(num_envs, 0, device=self.device)
        self._mask_of_group: dict[int, Tensor] = {}
        self._select_groups()
        self._started = [False] * len(self.envs)

    def _make(self, restarts: Restarts, *, seed: int, ages: bool, **context: Any) -> None:
        """Make an environment for every group of tasks."""
        groups: dict[str, int] = {}
        self.group_of: list[int] = []
        for task in self.tasks:
            if task.group() not in groups:
                g = groups[task.group()] = len(self.envs)
                context |= {"seed": seed + 1_000_003 * g, "random_initial_age": ages}
                self.envs.append(task.build(self.num_envs, restarts, **context))
                self.labels.append(task.label())
            env = self.envs[groups[task.group()]]
            self.group_of.append(groups[task.group()])
            try:  # refuses wrong values of later tasks now
                env.set_params(np.zeros(self.num_envs, dtype=bool), **task.params)
            except EnvError as error:
                raise EnvError(f"task {task.name!r}: {error}") from error

    def _unify_spaces(self, spaces: str) -> None:
        self.reads: list[ObservationBorder] = []
        self.acts: list[ActionBorder] = []
        for env, label in zip(self.envs, self.labels, strict=True):
            try:
                self.reads.append(ObservationBorder(env.single_observation_space))
                self.acts.append(ActionBorder(env.single_action_space, rescale=not env.PREDICTION))
            except EnvError as error:
                raise EnvError(f"{label}: {error}") from error
        observation, action = [border.space for border in self.reads], [border.space for border in self.acts]
        self.padded = any(o != observation[0] for o in observation) or any(a != action[0] for a in action)
        self.single_observation_space: gymnasium.Space[Any] = observation[0]
        self.single_action_space: gymnasium.Space[Any] = action[0]
        self.action_count: list[int] = []
        if self.padded:
            pairs = list(zip(observation, action, strict=True))
            if spaces != "pad":
                other = next(i for i, pair in enumerate(pairs) if pair != pairs[0])
                first, name = (self.tasks[self.group_of.index(g)].name for g in (0, other))
                raise EnvError(
                    f"tasks {first!r} and {name!r} have different spaces ({observation[0]}, {action[0]} against "
                    f"{observation[other]}, {action[other]}); set stream.spaces to pad, or use tasks that share spaces"
                )
            alike = all(o == observation[0] for o in observation)
            for (o, a), label in zip(pairs, self.labels, strict=True):
                vector = alike or (isinstance(o, gymnasium.spaces.Box) and len(o.shape) == 1)
                if not vector or not isinstance(a, gymnasium.spaces.Discrete):
                    raise EnvError(
                        f"{label} has spaces {o}, {a}; stream.spaces=pad can pad only vector observations and mask "
                        "only Discrete actions (observations that are all alike stay as they are)"
                    )
            if not alike:
                width = max(o.shape[0] for o in observation)  # type: ignore[index]
                self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
            self.action_count = [int(a.n) for a in action]  # type: ignore[union-attr]
            self.single_action_space = gymnasium.spaces.Discrete(max(self.action_count))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    @property
    def exact_state(self) -> bool:
        """Whether `state_dict` holds all that the environments go on from; of some it is known once saved."""
        return all(env.exact_state for env in self.envs)

    # ---- tasks ---------------------------------------------------------------------------------------------------

    def set_tasks(self, task_B: Tensor) -> Tensor:
        """Put copy b on task `task_B[b]` (int64 on the host). Copies whose task changes must be reset by the caller.

        Returns:
            bool [B] on the device: the copies whose task changed.
        """
        changed = task_B != self.task_B
        self.task_B = task_B.clone()
        for index in task_B[changed].unique().tolist():
            mask = changed & (task_B == index)
            env, task = self.envs[self.group_of[index]], self.tasks[index]
            defaults = {name: p.default for name, p in env.all_params().items()}
            env.set_params(mask.to(self.device), **{**defaults, **task.params})
        self._select_groups()
        return changed.to(self.device)

    def set_params(self, **params: float) -> None:
        """Write task parameters of all copies while their episodes go on (smooth drift); one environment only."""
        if params:
            self.envs[0].set_params(None, **params)

    def truncations(self, steps: int) -> int:
        """The most truncations that a copy can have in so many steps, whatever task it is on."""
        most = 0
        for group, env in enumerate(self.envs):
            if "max_episode_steps" not in env.all_params():  # the wrapped environment's own, which nobody knows
                return steps
            tasks = [task for task, g in zip(self.tasks, self.group_of, strict=True) if g == group]
            limits = {float(task.params.get("max_episode_steps", env.MAX_EPISODE_STEPS)) for task in tasks}
            if 0.0 in limits and len(limits) > 1:  # a drift from one to the other passes through every limit
                return steps
            if limits != {0.0}:
                most = max(most, 1 + (steps - 1) // max(1, int(min(limits))))
        return most

    def _select_groups(self) -> None:
        group_B = torch.tensor(self.group_of)[self.task_B]
        active = sorted(set(group_B.tolist()))
        self._mask_of_group = {g: (group_B == g).to(self.device) for g in active}
        self.task_device_B = self.task_B.to(self.device)
        self.scaled = any(task.reward_scale != 1.0 for task in self.tasks)
        scales = torch.tensor([task.reward_scale for task in self.tasks])
        self.reward_scale_B = scales[self.task_B].to(self.device)
        if self.padded:
            count_B = torch.tensor(self.action_count)[group_B].to(self.device)
            actions = torch.arange(max(self.action_count), device=self.device)
            self.action_mask_BA = actions < count_B.unsqueeze(-1)
        else:
            self.action_mask_BA = torch.ones(self.num_envs, 0, dtype=torch.bool, device=self.device)
        self._allow()

    def _allow(self) -> None:
        """Bring the action masks up to date with what the environments of the copies say."""
        said = {g: self.envs[g].action_mask_BA for g in self._mask_of_group}
        self.masks_vary |= any(mask is not None for mask in said.values())
        if not self.masks_vary:
            return
        space = self.single_action_space
        counts = choices(space)
        if counts is None or not isinstance(space, (gymnasium.spaces.Discrete, gymnasium.spaces.MultiDiscrete)):
            raise EnvError(f"{self.labels[0]} has action masks, and actions of {space} cannot be masked")
        parts, width = {}, int(counts.sum())
        for g, mask in said.items():
            own = self.action_count[g] if self.padded else width
            if mask is None:
                mask = torch.ones(self.num_envs, own, dtype=torch.bool, device=self.device)
            if mask.shape != (self.num_envs, own) or mask.dtype != torch.bool:
                raise EnvError(
                    f"{self.labels[g]}: the action mask is {mask.dtype} {tuple(mask.shape)}; it must be bool "
                    f"{(self.num_envs, own)}"
                )
            parts[g] = torch.nn.functional.pad(mask, (0, width - own))
        self.action_mask_BA = self._merge(parts)

    # ---- the contract --------------------------------------------------------------------------------------------

    def read(self, g: int, obs: Tensor) -> Tensor:
        """Observations of environment `g` as policies read them."""
        obs = self.reads[g](obs)
        if not self.padded or self.reads[g].space == self.single_observation_space:
            return obs
        if obs.dtype == torch.uint8:  # the common space is one of floats
            obs = obs.float() / byte_scale(self.reads[g].space)  # type: ignore[arg-type]  # a Box
        width = self.single_observation_space.shape[0]  # type: ignore[index]
        return torch.nn.functional.pad(obs, (0, width - obs.shape[-1]))

    def given(self, g: int, actions: Tensor) -> Tensor:
        """Actions of policies as environment `g` takes them."""
        return self.acts[g](actions.clamp(max=self.action_count[g] - 1) if self.padded else actions)

    def _merge(self, parts: dict[int, Tensor]) -> Tensor:
        """One tensor from those of the active groups, each copy taking its own group's row."""
        if len(parts) == 1:
            return next(iter(parts.values()))
        groups = iter(parts.items())
        _, merged = next(groups)
        for g, tensor in groups:
            merged = select(self._mask_of_group[g], tensor, merged)
        return merged

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Start fresh episodes in every copy, or in those of `options={"reset_mask": ...}`."""
        mask = None if options is None else options.get("reset_mask")
        obs = {}
        for g, group_mask in self._mask_of_group.items():
            group_seed = None if seed is None else int(seed if isinstance(seed, int) else seed[0] or 0) + 1_000_003 * g
            if mask is None or not self._started[g]:
                options = None
            else:
                options = {"reset_mask": torch.as_tensor(mask, device=self.device) & group_mask}
            try:
                obs[g] = self.read(g, self.envs[g].reset(seed=group_seed, options=options)[0])
            except (Exception, SystemExit) as error:
                raise EnvStepError(f"{self.labels[g]}: {told(error)}") from error
            self._started[g] = True
        self._allow()
        return self._merge(obs), {}

    def step(self, actions: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step every copy in its own task's environment."""
        results = {}
        for g in self._mask_of_group:
            try:
                results[g] = self._step(g, self.given(g, actions))
            except (Exception, SystemExit) as error:
                raise EnvStepError(f"{self.labels[g]}: {told(error)}") from error
        self._allow()
        if len(results) == 1:
            return self._complete(*results.popitem()[1])
        none_B, all_B = self._none_B, self._all_B
        info: dict[str, Any] = {}
        for key in ("_final_obs", "episode_return", "episode_length"):
            info[key] = self._merge({g: r[4][key] for g, r in results.items()})
        info["final_obs"] = self._merge({g: r[4]["final_obs"] for g, r in results.items()})
        info["is_init"] = self._merge({g: r[4].get("is_init", r[4]["_final_obs"]) for g, r in results.items()})
        info["valid"] = self._merge({g: r[4].get("valid", all_B) for g, r in results.items()})
        targets = [r[4]["target"] for r in results.values() if "target" in r[4]]
        empty = torch.zeros_like(targets[0]) if targets else self._no_target
        info["target"] = self._merge({g: r[4].get("target", empty) for g, r in results.items()})
        info["target_mask"] = self._merge({g: r[4].get("target_mask", none_B) for g, r in results.items()})
        obs = self._merge({g: r[0] for g, r in results.items()})
        reward = self._merge({g: r[1] for g, r in results.items()})
        terminated = self._merge({g: r[2] for g, r in results.items()})
        truncated = self._merge({g: r[3] for g, r in results.items()})
        return obs, reward, terminated, truncated, info

    def _step(self, g: int, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step environment `g`; what it returns, with observations as policies read them."""
        obs, reward, terminated, truncated, info = self.envs[g].step(action)
        if self.every_step_counts and "valid" in info:
            raise EnvError(f"{type(self.envs[g]).__name__} gives info['valid']; it must set every_step_counts to False")
        info["final_obs"] = self.read(g, info["final_obs"])
        return self.read(g, obs), reward, terminated, truncated, info

    @property
    def groups(self) -> tuple[int, ...]:
        """The environments that copies are on."""
        return tuple(self._mask_of_group)

    def action_border(self) -> ActionBorder | None:
        """How actions become those of the environment, if all copies share one and they differ."""
        border = self.acts[next(iter(self._mask_of_group))]
        return None if border.plain or len(self._mask_of_group) > 1 else border

    def compiled_steps(self, action_TB: Tensor) -> CompiledSteps | None:
        """T steps in compiled calls (see `BatchedEnv.compiled_steps`), of actions that are the environment's own;
        observations are padded. None unless all copies share an environment that has such calls."""
        g = next(iter(self._mask_of_group))
        continuous = self.acts[g].plain or self.acts[g].scale is not None
        if len(self._mask_of_group) > 1 or not continuous or not self.reads[g].plain:
            return None
        made = self.envs[g].compiled_steps(action_TB)
        if made is None:
            return None
        whole, fits = {g: None}, made.fits
        made = replace(made, fits=lambda: self._mask_of_group.keys() == whole.keys() and fits())
        if not self.padded or made.obs.shape[2:] == self.single_observation_space.shape:
            return made
        width = self.single_observation_space.shape[0]  # type: ignore[index]
        obs, final_obs = (own.new_zeros(*own.shape[:2], width) for own in _seen(made))
        calls = list(made.calls)
        for own, padded in zip(_seen(made), (obs, final_obs), strict=True):
            rows, first = padded[..., : own.shape[-1]], len(own) - len(made.reward)
            calls.append(place(own[first:], rows[first:]))
        return replace(made, obs=obs, final_obs=final_obs, calls=calls)

    def _complete(
        self, obs: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor, info: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """The step of one environment that all copies are on, with every key of info that is promised."""
        info.setdefault("is_init", info["_final_obs"])
        info.setdefault("valid", self._all_B)
        info.setdefault("target", self._no_target)
        info.setdefault("target_mask", self._none_B)
        return obs, reward, terminated, truncated, info

    def performance(self, returns: Any, task: int) -> Any:
        """Returns of `task` mapped so that a useless policy has 0 and a solved task 1 (not clipped)."""
        low, high = self.scores[task]
        return (returns - low) / (high - low)

    def state_dict(self) -> dict[str, Any]:
        """The state of every instance and the assignment of copies to tasks."""
        return {
            "task": self.task_B,
            "started": list(self._started),
            "envs": [env.state_dict() for env in self.envs],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; environments of tasks that were added since start afresh."""
        self.task_B = saved["task"].clone()
        self._started = [*saved["started"], *[False] * (len(self.envs) - len(saved["envs"]))]
        for env, state in zip(self.envs, saved["envs"], strict=False):
            env.load_state_dict(state)
        self._select_groups()

    def close(self, **kwargs: Any) -> None:
        """Close every instance; what one of them raises is logged, and does not keep the others open."""
        for env, label in zip(self.envs, self.labels, strict=True):
            try:
                env.close(**kwargs)
            except (Exception, SystemExit) as error:
                logging.getLogger("lifelong").warning("%s cannot be closed: %s", label, told(error))
