"""What strategies share that look back: when they do, how they go through sequences, a quadratic penalty around the
parameters of then, and how importances of several tasks become one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.policy import Outputs, Policy
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Source, Strategy
from lifelong.agent.strategies.planned import HookCalls, Update
from lifelong.envs.options import Count, Share, Steps, Weight
from lifelong.kernels import hooks
from lifelong.replay.chunk import Chunk

#: what a new importance is divided by: the mean of every tensor, the mean over all parameters, nothing
Normalize = Literal["tensor", "all", "none"]
#: how the importances of several tasks become one
Tasks = Literal["sum", "mean"]


class Consolidating(Strategy):
    """Looks back whenever a task ends; with `every`, at the first chunk after so many steps instead.

    Args:
        every: steps; 0: at boundaries, which must be given.
        sequences: fresh ones that it looks at each time, at least, by all workers together; every copy gives equally
            many.
    """

    def __init__(self, every: int, sequences: int = 0) -> None:
        if every < 0:
            raise ValueError(f"every is {every}; it must not be negative (0: at boundaries)")
        if sequences < 0:
            raise ValueError(f"sequences is {sequences}; it must not be negative")
        self.every, self.sequences = every, sequences
        self.needs_boundaries = every == 0
        self.last_clock = 0

    def consolidate(self, ctx: Context, source: Source) -> None:
        """Keep what is needed of the task that ended, or of those in training; `source` gives fresh experience."""
        raise NotImplementedError

    def fresh_sequences(self, copies: int) -> int:
        return -(-self.sequences // copies) * copies

    def fresh(self, ctx: Context, source: Source) -> Iterator[Experience]:
        """This worker's share of the `sequences`."""
        share = len(range(self.sequences)[ctx.workers.share(self.sequences)])
        return source(-(-share // ctx.copies))

    def on_task_end(self, ctx: Context, source: Source) -> None:
        if not self.every:
            self.consolidate(ctx, source)

    def idle(self) -> tuple[str, ...]:
        return () if self.every else ("on_clock",)

    def on_clock(self, ctx: Context, source: Source) -> None:
        if self.every and ctx.step - self.last_clock >= self.every:
            self.last_clock = ctx.step
            self.consolidate(ctx, source)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "last_clock": self.last_clock}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.last_clock = saved["last_clock"]


class QuadraticPenalty(Strategy):
    """Adds strength/2 * sum_i importance_i (theta_i - anchor_i)^2 to the loss, as soon as something is held.

    Args:
        strength: of the penalty.
        critic: whether the critic is held, too; acting on old tasks does not use it.
    """

    def __init__(self, strength: float, critic: bool) -> None:
        if strength < 0:
            raise ValueError(f"strength is {strength}; it must not be negative")
        self.strength, self.critic = strength, critic
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.penalty: Tensor | None = None

    def setup(self, ctx: Context, seed: int) -> None:
        everything = dict(ctx.policy.named_parameters())
        self.parameters = {n: p for n, p in everything.items() if self.critic or not n.startswith("critic.")}

    def zeros(self) -> dict[str, Tensor]:
        """A zero for every number that is held: name -> tensor of the parameter's shape."""
        return {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}

    def now(self) -> dict[str, Tensor]:
        """A copy of the parameters that are held, as they are now."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def hold(self, importance: Mapping[str, Tensor]) -> None:
        """From now on, the parameters as they are now, with this importance."""
        self.importance, self.anchor = dict(importance), self.now()

    def hold_all_alike(self) -> None:
        """From now on, the parameters as they are now, all with importance 1."""
        self.hold({name: torch.ones_like(parameter) for name, parameter in self.parameters.items()})

    def on_reset(self, ctx: Context, entries: Mapping[str, Tensor]) -> None:
        """What has begun anew matters to no task yet, and its anchor is where it is now."""
        for name in entries.keys() & self.importance.keys():
            self.importance[name] = self.importance[name].masked_fill(entries[name], 0.0)
            self.anchor[name] = torch.where(entries[name], self.parameters[name].detach(), self.anchor[name])

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        if not self.importance:
            return None
        terms = [(f * (self.parameters[n] - self.anchor[n]).square()).sum() for n, f in self.importance.items()]
        penalty = 0.5 * self.strength * torch.stack(terms).sum()
        self.penalty = penalty.detach()
        return penalty

    def held(self) -> hooks.Penalty:
        """The penalty as compiled calls take it, over the parameters `importance` names."""
        return hooks.Penalty(self.strength, list(self.importance.values()), [self.anchor[n] for n in self.importance])

    def calls(self, update: Update) -> HookCalls:
        if not self.importance:
            return {}
        params, grads = ([each[name] for name in self.importance] for each in update[:2])
        self.penalty = params[0].new_zeros(()) if self.penalty is None else self.penalty
        return {"extra_loss": [hooks.penalty_call(self.held(), params, grads, self.penalty, update.loss)]}

    def made_for(self) -> tuple[int | float, ...]:
        tensors = *self.importance.values(), *self.anchor.values(), *([] if self.penalty is None else [self.penalty])
        return self.strength, *[tensor.data_ptr() for tensor in tensors]

    def report(self) -> dict[str, float]:
        return {} if self.penalty is None else {"penalty": float(self.penalty)}

    def state_dict(self) -> dict[str, Any]:
        held = {"importance": self.importance, "anchor": self.anchor, "penalty": self.penalty}
        return {**super().state_dict(), **held}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.importance = self.grown(saved["importance"])
        self.anchor = {n: grown(a, self.parameters[n].detach()) for n, a in saved["anchor"].items()}
        self.penalty = saved["penalty"]

    def grown(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What was kept of every parameter, with zeros for what new tasks have added to it."""
        return {name: grown(tensor, torch.zeros_like(self.parameters[name])) for name, tensor in saved.items()}


class ImportancePenalty(Consolidating, QuadraticPenalty):
    """A quadratic penalty whose importance is learned from every task in turn.

    At every boundary (or every `every` steps) I <- decay * I + I_new, normalised, and the anchor becomes the current
    parameters; with `tasks` mean, I is divided by the sum of the tasks' weights, so that the penalty does not grow with
    their number.

    Args:
        strength: of the penalty.
        critic: whether the critic is held, too.
        every: see `Consolidating`.
        decay: of what was there before; 1 keeps all tasks alike.
        normalize: what a new importance is divided by, so that `strength` means the same in every task.
        tasks: whether the tasks' importances are added up or averaged.
        sequences: see `Consolidating`.
    """

    def __init__(
        self,
        strength: float,
        critic: bool,
        every: int,
        decay: float,
        normalize: Normalize,
        tasks: Tasks,
        sequences: int = 0,
    ) -> None:
        Consolidating.__init__(self, every, sequences)
        QuadraticPenalty.__init__(self, strength, critic)
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is {decay}; it must lie in [0, 1]")
        self.decay, self.normalize, self.tasks = decay, normalize, tasks
        self.total = 0.0  # of the tasks' weights

    def accumulate(self, new: Mapping[str, Tensor]) -> None:
        """Take the importance of one more task into account, and move the anchor here."""
        new, old = normalized(new, self.normalize), self.importance or self.zeros()
        past = self.decay * self.total
        self.total = past + 1
        keep, share = (past / self.total, 1 / self.total) if self.tasks == "mean" else (self.decay, 1.0)
        self.hold({name: keep * old[name] + share * f for name, f in new.items()})

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "total": self.total}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.total = saved["total"]


class SequenceImportance(ImportancePenalty):
    """Adds strength/2 * sum_i I_i (theta_i - anchor_i)^2 to the loss, with an importance I_new that is a mean over the
    steps of whole episodes of the task that ended.

    At every boundary (or every `every` steps when boundaries are hidden) I <- decay * I + I_new and the anchor becomes
    the current parameters.

    Args:
        strength: lambda.
        decay: gamma of the running importance; 1 keeps all tasks alike.
        sequences: sequences that the importance is estimated from, at least; every copy gives equally many.
        normalize: divide every new importance by its mean over `all` parameters, or every `tensor` of it by its own, so
            that `strength` means the same in every task; `none`: neither.
        tasks: whether I is the `sum` of the tasks' importances or their `mean`.
        value_weight: importance of the critic relative to the policy; 0 leaves the critic free.
        every: consolidate every so many steps instead of at boundaries; 0: at boundaries.
    """

    data_parallel: ClassVar[str] = "reduce"

    def __init__(
        self,
        *,
        strength: Weight = 1.0,
        decay: Share = 1.0,
        sequences: Count = 256,
        normalize: Normalize = "all",
        tasks: Tasks = "sum",
        value_weight: Weight = 0.0,
        every: Steps = 0,
    ) -> None:
        super().__init__(strength, value_weight > 0, every, decay, normalize, tasks, sequences)
        self.value_weight = value_weight

    def measure(
        self, ctx: Context, chunk: Chunk, weight_TB: Tensor, start: Callable[[int], Tensor]
    ) -> dict[str, Tensor]:
        """The importance of every parameter, summed over the steps of `chunk` that count.

        Args:
            ctx: as in every hook.
            chunk: sequences of whole episodes.
            weight_TB: 0 for steps that do not count.
            start: copy -> the memory [1, S] its sequence starts from (see `Experience.start`).
        """
        raise NotImplementedError

    def consolidate(self, ctx: Context, source: Source) -> None:
        new, steps = self.zeros(), torch.zeros((), device=ctx.device)
        for experience in self.fresh(ctx, source):
            weight_TB = ctx.objective.weight(experience.chunk)
            for name, value in self.measure(ctx, experience.chunk, weight_TB, experience.start).items():
                new[name] += value
            steps += weight_TB.sum()
        ctx.workers.sum_([*new.values(), steps])
        self.accumulate({name: f / steps.clamp(min=1.0) for name, f in new.items()})


def sequence_gradients(
    policy: Policy,
    chunk: Chunk,
    names: list[str],
    score: Callable[[Outputs, Tensor], Tensor],
    weight: Tensor | None = None,
    start: Callable[[int], Tensor] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """The gradient of a score of one sequence after the other, for all of them that have a step that counts.

    Args:
        policy: whose.
        chunk: the sequences.
        names: of the parameters.
        score: (outputs of one sequence [T, 1, ...], weight [T, 1]) -> scalar.
        weight: [T, B], 0 for steps that do not count; by default that of the chunk.
        start: copy -> the memory [1, S] its sequence starts from; what came before counts if that is a function of the
            parameters. By default a constant.

    Yields:
        name -> gradient; parameters that the score does not depend on are left out.
    """
    parameters = dict(policy.named_parameters())
    weight_TB = chunk.weight if weight is None else weight
    for copy in weight_TB.any(0).nonzero().flatten().tolist():
        one = chunk.select(torch.tensor([copy], device=chunk.reward.device))
        outputs = policy.sequence(one, one.state if start is None else start(copy))
        value = score(outputs, weight_TB[:, copy : copy + 1])
        gradients = torch.autograd.grad(value, [parameters[name] for name in names], allow_unused=True)
        yield {name: g for name, g in zip(names, gradients, strict=True) if g is not None}


def normalized(importance: Mapping[str, Tensor], how: Normalize = "all") -> dict[str, Tensor]:
    """Divided by the mean over all parameters, or each tensor by its own, so that a strength means the same in every
    task; or as it is."""
    if how == "none":
        return dict(importance)
    if how == "tensor":
        return {name: f / f.mean().clamp(min=1e-12) for name, f in importance.items()}
    scale = torch.cat([f.flatten() for f in importance.values()]).mean().clamp(min=1e-12)
    return {name: f / scale for name, f in importance.items()}
