"""Whether parts fit together, once they are there: every impossible combination is refused in a sentence."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium
import torch

from lifelong.agent import registry
from lifelong.agent.config import Config
from lifelong.agent.errors import ConfigError
from lifelong.agent.modules.heads import Distribution
from lifelong.agent.objectives.base import Objective
from lifelong.agent.optimizers.step_size import StepSize
from lifelong.agent.parallel import Workers
from lifelong.agent.strategies.base import Strategy
from lifelong.envs.stream import TaskStream
from lifelong.envs.tasks import TaskEnv


def check_gradient(config: Config, engine: Any, cell: Any) -> None:
    """Refuse an engine that the cell's Jacobian does not allow; name those that it does. Of a cell that is made of
    cells each part has the engine that its own Jacobian allows."""
    if cell.jacobian not in engine.jacobians and not cell.composite:
        allowed = [
            name for name in registry.REGISTRY["gradient"] if cell.jacobian in registry.load("gradient", name).jacobians
        ]
        raise ConfigError(
            f"gradient {config.gradient['kind']} cannot train cell {config.policy.cell['kind']}: its state Jacobian is "
            f"{cell.jacobian}; use gradient {' or '.join(allowed)}, or a cell whose Jacobian is "
            f"{' or '.join(engine.jacobians)}, such as elstm"
        )


def check_workers(config: Config, workers: Workers) -> None:
    """Refuse workers that the backend does not have, or that cannot share the copies evenly."""
    runtime, copies = config.runtime, config.rollout.copies
    if runtime.backend == "inline" and runtime.workers > 1:
        raise ConfigError(
            f"runtime.workers is {runtime.workers}, but runtime.backend inline is one process; set it to ray"
        )
    if copies % workers.count:
        fit = max(n for n in range(1, workers.count) if copies % n == 0)
        raise ConfigError(
            f"rollout.copies is {copies}, which {workers.count} workers cannot share evenly; use a multiple of "
            f"{workers.count}, or runtime.workers={fit}"
        )


def check_strategies(config: Config, strategies: list[Strategy], objective: Objective, workers: Workers) -> None:
    """Refuse a strategy that does not get what it needs."""
    for strategy, spec in zip(strategies, config.strategy, strict=True):
        kind = spec["kind"]
        if strategy.needs_boundaries and config.stream.boundaries == "hidden":
            clock = f", or {kind}'s `{strategy.clock_option}` to a number of steps" if strategy.clock_option else ""
            raise ConfigError(
                f"strategy {kind} needs task boundaries, but stream.boundaries is hidden; set it to given or detected"
                f"{clock}"
            )
        if strategy.needs_task_id and config.stream.task_id != "observed":
            raise ConfigError(f"strategy {kind} needs the task id here; set stream.task_id to observed")
        if strategy.needs_task and config.stream.boundaries != "given" and config.stream.task_id != "observed":
            raise ConfigError(
                f"strategy {kind} needs to know the task, and stream.boundaries is {config.stream.boundaries}; set "
                "stream.task_id to observed"
            )
        if strategy.needs_off_policy and not objective.off_policy:
            valid = [name for name in registry.REGISTRY["objective"] if registry.load("objective", name).off_policy]
            raise ConfigError(
                f"strategy {kind} replays old data, which objective {config.objective['kind']} does not correct for; "
                f"use objective {' or '.join(valid)}"
            )
        alike = strategy.one_length or any(strategy.replay_bytes(1, 1).values())
        if alike and config.rollout.short_first.steps:
            raise ConfigError(
                f"strategy {kind} has sequences of one length, and rollout.short_first makes chunks of several; set "
                "rollout.short_first.steps to 0"
            )
        if strategy.data_parallel == "none" and workers.count > 1:
            raise ConfigError(
                f"strategy {kind} does not say how data-parallel workers share its state, so it runs on one only; set "
                "runtime.workers to 1"
            )


def check_skip(config: Config) -> None:
    """Refuse to drop chunks where the copies do not live in this process."""
    if config.on_nonfinite == "skip" and config.runtime.backend != "inline":
        raise ConfigError(
            f"on_nonfinite is skip, which runtime.backend {config.runtime.backend} cannot do; use stop, or "
            "runtime.backend inline"
        )


def check_streaming(config: Config, objective: Objective, optimizer: torch.optim.Optimizer) -> None:
    """Refuse chunks of several steps for an objective that learns from one, and a step-size rule without traces."""
    kind, rollout = config.objective["kind"], config.rollout
    if objective.streaming and rollout.steps != 1:
        raise ConfigError(f"objective {kind} learns from every step, and rollout.steps is {rollout.steps}; set it to 1")
    if isinstance(optimizer, StepSize) and not (objective.streaming and objective.scalable):
        every = {name: registry.load("objective", name) for name in registry.REGISTRY["objective"]}
        valid = [name for name, part in every.items() if part.streaming and part.scalable]
        what = "whose steps are more than that" if objective.streaming else "which objective {kind} has none of"
        raise ConfigError(
            f"optimizer {config.optimizer['kind']} sizes steps along traces, {what.format(kind=kind)}; use "
            f"optimizer adam or sgd, or objective {' or '.join(valid)}"
        )


def check_runners(config: Config, objective: Objective) -> None:
    """Refuse environment runners for an objective that takes the data for its own policy's."""
    if config.runtime.env_runners and not objective.off_policy:
        valid = [name for name in registry.REGISTRY["objective"] if registry.load("objective", name).off_policy]
        raise ConfigError(
            f"runtime.env_runners is {config.runtime.env_runners}, so the policy that acts lags behind, which "
            f"objective {config.objective['kind']} does not correct for; use objective {' or '.join(valid)}"
        )


def check_masks(config: Config, env: TaskEnv, distribution: Distribution) -> None:
    """Refuse environments that say which actions there are, where values of actions are learned."""
    if distribution.maskable or not isinstance(env.single_action_space, gymnasium.spaces.Discrete):
        return
    for one, label in zip(env.envs, env.labels, strict=True):
        if not one.masked and not one.exact_state and one.restartable:
            one.reset()  # only then it says it
        if one.masked or one.action_mask_BA is not None:
            raise ConfigError(
                f"{label} says at every step which actions there are, and objective {config.objective['kind']} learns "
                "values of actions, which cannot be masked so; use objective actor_critic or ppo, or take the action "
                "mask out of info in a wrapper"
            )


def check_scores(config: Config, env: TaskEnv) -> None:
    """Say of which tasks nobody knows the score; refuse a schedule that asks whether they are solved."""
    unknown = [task for task, known in zip(env.tasks, env.scored, strict=True) if not known]
    if not unknown:
        return
    first, key = unknown[0], config.stream.tasks[env.tasks.index(unknown[0])]
    measure = f"`lifelong score {key.env.get('id', first.kind)}` measures one"
    if config.stream.schedule["kind"] == "curriculum":
        raise ConfigError(
            f"stream.schedule is curriculum, which asks whether a task is solved, and task {first.name!r} has no "
            f"score; give it one ({measure})"
        )
    others = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    logging.getLogger("lifelong").warning(
        "task %r%s: no score is known, so performance is the return; %s", first.name, others, measure
    )


def check_restarts(config: Config, env: TaskEnv) -> None:
    """Refuse to count restarts of environments that cannot be made anew one by one, or that several processes have."""
    runtime = config.runtime
    if not runtime.env_restarts:
        return
    asked = f"runtime.env_restarts is {runtime.env_restarts}, but"
    if runtime.workers > 1 or runtime.env_runners:
        key = "env_runners" if runtime.env_runners else "workers"
        raise ConfigError(
            f"{asked} runtime.{key} is {getattr(runtime, key)}, and restarts are counted in one process; set one of "
            "them to its default"
        )
    for one, label in zip(env.envs, env.labels, strict=True):
        if not one.exact_state and not one.restartable:
            raise ConfigError(
                f"{asked} {label} steps all copies in one call, so one of them cannot be made anew; use the gymnasium "
                "adapter with vectorization sync or async"
            )
    if not any(one.restartable for one in env.envs):
        raise ConfigError(f"{asked} no task is a Gymnasium environment, of which alone copies can be made anew")


def check_resets(config: Config, stream: TaskStream, env: TaskEnv) -> None:
    """Refuse a run that resets some copies of an environment that can only reset all of them."""
    stiff = {g for g, one in enumerate(env.envs) if not one.resets_some}
    if not stiff:
        return
    skip = config.on_nonfinite == "skip"
    found = set(env.group_of) if skip else stream.partly_reset(config.rollout.copies, env.group_of)
    why = "on_nonfinite=skip" if skip else f"schedule {config.stream.schedule['kind']}"
    for g in sorted(stiff & found):
        raise ConfigError(
            f"{env.labels[g]} cannot reset only some of its copies, which {why} asks for here; use vectorization sync "
            "or async"
        )
