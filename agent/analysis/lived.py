"""What a policy goes through in a task, and what its layers say there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lifelong.agent.cells.composite import Composite
from lifelong.agent.optimizers.base import Averaging
from lifelong.agent.policy import Policy, inputs_of
from lifelong.agent.runtime.randomness import aside
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import overrides
from lifelong.replay.chunk import Chunk


@dataclass
class Layers:
    """What a policy says on a chunk.

    Args:
        x_TBD: inputs of its cell.
        named: what every layer says, [T, B, N] each; of the cell the memory after each step.
    """

    x_TBD: Tensor
    named: dict[str, Tensor]


@contextmanager
def view(trainer: Trainer, task: int) -> Iterator[None]:
    """The policy as it is evaluated on a task: averages, masks, heads."""
    ctx, optimizer = trainer.context(), trainer.learner.optimizer
    with ExitStack() as stack:
        if isinstance(optimizer, Averaging):
            stack.enter_context(optimizer.evaluation_view())
        for strategy in overrides(trainer.strategies, "evaluation_view"):
            stack.enter_context(strategy.evaluation_view(ctx, task))
        yield


@torch.no_grad()
def live(trainer: Trainer, task: int, steps: int) -> Chunk:
    """T steps of every copy of the evaluation's environments on a task, from the start of an episode with an empty
    memory."""
    evaluator = trainer.evaluator
    env, rollout, seed = evaluator.env, evaluator.rollout, evaluator.seed + task
    with view(trainer, task), aside(seed):
        env.set_tasks(torch.full((env.num_envs,), task))
        rollout.generator.manual_seed(seed)
        rollout.start(seed=seed)
        return rollout.collect(steps).chunk


@torch.no_grad()
def layers(trainer: Trainer, task: int, chunk: Chunk) -> Layers:
    """What every layer of the policy says as it goes through a chunk."""
    policy: Policy = trainer.rollout.policy
    said: dict[str, Tensor] = {}

    def note(name: str, out: Tensor) -> None:
        said[name] = out.flatten(1) if out.dim() == 2 else out.mean(tuple(range(2, out.dim())))  # of a channel its mean

    with view(trainer, task), ExitStack() as stack:
        hidden = policy.encoder.unit_layers()
        for layer in hidden:
            hook = layer.activation.register_forward_hook(_noting(f"encoder.{layer.name}", note))
            stack.callback(hook.remove)
        x_TBD = policy.encode(inputs_of(chunk))
        said = {name: out.unflatten(0, chunk.is_init.shape) for name, out in said.items()}
        if not hidden and not policy.encoder.transparent:
            said["encoder"] = x_TBD[..., : policy.encoder.output_size]
        cell = policy.cell
        state_TBS = cell.states(x_TBD, chunk.state, chunk.is_init)
        y_TBH, _ = cell.sequence(x_TBD, chunk.state, chunk.is_init)
    if isinstance(cell, Composite):
        said |= {f"memory.{k}": part for k, part in enumerate(cell.split(state_TBS))}
    else:
        said["memory"] = state_TBS
    if state_TBS.shape != y_TBH.shape or not torch.equal(state_TBS, y_TBH):
        said["output"] = y_TBH
    return Layers(x_TBD, said)


def _noting(name: str, note: Any) -> Any:
    return lambda module, inputs, out: note(name, out)
