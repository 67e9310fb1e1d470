"""What a checkpoint becomes when the run goes on with another config: parameters grow, values are written, or a part
starts afresh (`agent.runtime.changes` says which). All of it before anything is written."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lifelong.agent.config import Config
from lifelong.agent.errors import ConfigError
from lifelong.agent.growth import grown
from lifelong.agent.moments import beginning
from lifelong.agent.optimizers.base import build_optimizer
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.build import composing, subseed
from lifelong.agent.runtime.changes import Change
from lifelong.agent.runtime.trainer import Trainer
from lifelong.envs.tasks import environment_class


def hand_over(saved: dict[str, Any], changes: Sequence[Change], old: Config, trainer: Trainer) -> list[Change]:
    """Make the checkpoint `saved` of a run with the config `old` one that `trainer` can load; `saved` is changed.

    Returns:
        The changes, with notes of what starts afresh.

    Raises:
        ConfigError: new tasks that would change the size of what the policy reads or does.
    """
    changed = {change.key.split(".")[0] for change in changes} | {change.pattern for change in changes}
    if len(trainer.stream.tasks) > len(old.stream.tasks):
        _add_tasks(saved, old, trainer)
    if "optimizer" in changed:
        changes = _optimizer(saved, changes, trainer)
    if {"gradient", "rollout.copies"} & changed:
        saved["carry"] = trainer.learner.engine.state_dict()
    if "rollout.copies" in changed:
        saved["rollout"] = {"fresh": subseed(trainer.config.seed, "resume", saved["step"], trainer.workers.rank)}
    else:
        _write_params(saved["rollout"], old, trainer)
    if saved.get("detection"):
        if {"detector", "rollout.copies", "rollout.steps"} & changed:
            saved["detection"].pop("detector")
        if {"rollout.copies", "rollout.steps", "stream.tasks.*.reward_scale"} & changed:
            saved["kept"] = []
    if "stream.tasks.*.reward_scale" in changed:
        _rescale([saved["strategies"], saved["strategy_shards"]], old, trainer)
    return list(changes)


# ---- new tasks -------------------------------------------------------------------------------------------------------


def _add_tasks(saved: dict[str, Any], old: Config, trainer: Trainer) -> None:
    """New heads and task inputs, whose optimiser state and carry is zero. What was there keeps every bit."""
    policy = trainer.rollout.policy
    observed = old.stream.task_id == "observed"
    composed = bool(composing(old))
    before = Policy(old.policy, *policy.spaces, len(old.stream.tasks), observed, composed=composed).state_dict()
    for name, tensor in saved["policy"].items():
        if name not in before or before[name].shape != tensor.shape:
            sizes = f"{name} has shape {list(tensor.shape)}, and would need {list(before[name].shape)}"
            raise ConfigError(
                f"the new tasks change the size of what the policy reads or does ({sizes}); a task for this run has "
                "observations and actions that are not larger"
            )
    saved["policy"] = {name: grown(tensor, policy.state_dict()[name]) for name, tensor in saved["policy"].items()}
    fresh = trainer.learner.engine.state_dict()
    saved["carry"] = {name: grown(tensor, torch.zeros_like(fresh[name])) for name, tensor in saved["carry"].items()}
    names = list(trainer.learner.named)
    for index, state in saved["optimizer"]["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == before[names[index]].shape != ():
                state[key] = grown(value, beginning(key, saved["policy"][names[index]]).to(value.dtype))
    for runner in saved["rollout"].get("runners", []):  # blocks under way have the inputs of the cell as it was
        if runner is not None and runner["block"] is not None:
            arrays = runner["block"]["arrays"]
            x_TBD = arrays["x_TBD"]
            arrays["x_TBD"] = grown(x_TBD, x_TBD.new_zeros(*x_TBD.shape[:-1], policy.cell.input_size))
    for key, like in (("return", trainer.record.return_sum), ("count", trainer.record.return_count)):
        saved["record"][key] = grown(saved["record"][key], torch.zeros_like(like))


# ---- the optimiser ---------------------------------------------------------------------------------------------------


def _optimizer(saved: dict[str, Any], changes: Sequence[Change], trainer: Trainer) -> list[Change]:
    """Write new options into the groups; state of another kind, or that lacks what the options need, starts afresh."""
    options = {change.key.partition(".")[2] for change in changes if change.pattern.startswith("optimizer")}
    fresh = trainer.learner.optimizer.state_dict()
    if "" not in options and _state_fits(saved["optimizer"]["state"], trainer):
        for group, new in zip(saved["optimizer"]["param_groups"], fresh["param_groups"], strict=True):
            group.update({option: new[option] for option in options})
        return list(changes)
    saved["optimizer"] = fresh
    note = "the optimiser's state"
    return [replace(c, note=note) if c.pattern.startswith("optimizer") else c for c in changes]


def _state_fits(state: Mapping[int, Mapping[str, Any]], trainer: Trainer) -> bool:
    """Whether an optimiser with the new options keeps the same things of every parameter, as one step shows."""
    policy = copy.deepcopy(trainer.rollout.policy)
    optimizer = build_optimizer(trainer.config, policy)
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    needed = optimizer.state_dict()["state"]
    return all(
        {key for key, value in needed.get(index, {}).items() if value is not None}
        <= {key for key, value in kept.items() if value is not None}
        for index, kept in state.items()
    )


# ---- environments and what was stored of them ------------------------------------------------------------------------


def _write_params(rollout: dict[str, Any], old: Config, trainer: Trainer) -> None:
    """Write the parameters of the tasks that have others now into the copies that are on these tasks."""
    tasks = trainer.stream.tasks
    groups = list(dict.fromkeys(task.group() for task in tasks))
    for env in _environments(rollout):
        for index, was in enumerate(old.stream.tasks):
            for name, param in environment_class(tasks[index].kind).all_params().items():
                new = tasks[index].params.get(name, param.default)
                if new != was.env.get(name, param.default):
                    values = env["envs"][groups.index(tasks[index].group())]["params"]
                    on_task = (env["task"] == index).to(values[name].device)
                    values[name] = torch.where(on_task, torch.tensor(new, dtype=param.dtype), values[name])


def _environments(rollout: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The saved environments of a rollout, or of those of all runners."""
    if "env" in rollout:
        yield rollout["env"]
    for runner in rollout.get("runners", []):
        if runner is not None:
            yield from _environments(runner["rollout"])


def _rescale(states: Any, old: Config, trainer: Trainer) -> None:
    """Bring the rewards and values of stored sequences to the scale that their tasks' rewards have from now on."""
    if isinstance(states, list):
        for state in states:
            _rescale(state, old, trainer)
    elif isinstance(states, dict) and isinstance(states.get("storage"), dict):
        stored = states["storage"]
        scales = zip(trainer.config.stream.tasks, old.stream.tasks, strict=False)
        ratios = torch.tensor([new.reward_scale / was.reward_scale if was.reward_scale else 1.0 for new, was in scales])
        ratio_TN = ratios.to(stored["reward"])[stored["task"]]
        for name in ("reward", "value", "final_value"):
            stored[name] = stored[name] * ratio_TN
        stored["bootstrap_value"] = stored["bootstrap_value"] * ratio_TN[-1]
    elif isinstance(states, dict):
        for state in states.values():
            _rescale(state, old, trainer)
