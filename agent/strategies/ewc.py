"""Online EWC: elastic weight consolidation with one running Fisher and the last anchor.

Kirkpatrick et al. 2017 (PNAS, eq. 3); online form: Schwarz et al. 2018 (Progress & Compress, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.policy import Policy
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.consolidation import QuadraticPenalty, normalized
from lifelong.envs.options import Count, Share, Steps, Weight
from lifelong.replay.chunk import Chunk


def fisher_diagonal(
    policy: Policy,
    chunk: Chunk,
    generator: torch.Generator,
    names: list[str],
    value_weight: Weight = 0.0,
    *,
    weight: Tensor | None = None,
    start: Callable[[int], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information of the policy's actions, summed over the steps of `chunk` that count.

    One sample is one copy's sequence: the gradient of sum_t log pi(a_t | history), with actions drawn from the policy
    itself, squared; the cross terms between steps have mean zero. With `value_weight` w the critic counts as a Gaussian
    of precision w around its value.

    Args:
        policy: whose.
        chunk: the histories.
        generator: of the actions.
        names: of the parameters.
        value_weight: w.
        weight: [T, B], 0 for steps that do not count; by default that of the chunk.
        start: copy -> the memory [1, S] its sequence starts from; what came before counts if that is a function of the
            parameters. By default a constant.

    Returns:
        name -> tensor of the parameter's shape.
    """
    parameters = dict(policy.named_parameters())
    fisher = {name: torch.zeros_like(parameters[name]) for name in names}
    weight_TB = chunk.weight if weight is None else weight
    for copy in weight_TB.any(0).nonzero().flatten().tolist():
        one = chunk.select(torch.tensor([copy], device=chunk.reward.device))
        outputs = policy.sequence(one, one.state if start is None else start(copy))
        action = policy.distribution.sample(outputs.policy.detach(), generator)
        counts = weight_TB[:, copy : copy + 1]
        score = (policy.distribution.log_prob(outputs.policy, action) * counts).sum()
        if value_weight:
            noise = torch.randn(outputs.value.shape, generator=generator, device=outputs.value.device)
            score = score + value_weight**0.5 * (outputs.value * noise * counts).sum()
        gradients = torch.autograd.grad(score, [parameters[name] for name in names], allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                fisher[name] += gradient.square()
    return fisher


class EWC(QuadraticPenalty):
    """Adds strength/2 * sum_i F_i (theta_i - anchor_i)^2 to the loss.

    At every boundary (or every `every` steps when boundaries are hidden) F <- decay * F + F_new and the anchor becomes
    the current parameters. F_new is the mean over the steps of whole episodes of the task.

    Args:
        strength: lambda.
        decay: gamma of the running Fisher; 1 keeps all tasks alike.
        sequences: sequences that the Fisher is estimated from, at least; every copy gives equally many.
        normalize: divide every new Fisher by its mean, so that `strength` means the same in every task.
        value_weight: importance of the critic relative to the policy; 0 leaves the critic free.
        every: consolidate every so many steps instead of at boundaries; 0: at boundaries.
    """

    data_parallel: ClassVar[str] = "reduce"

    def __init__(
        self,
        *,
        strength: Weight = 100.0,
        decay: Share = 1.0,
        sequences: Count = 256,
        normalize: bool = True,
        value_weight: Weight = 0.0,
        every: Steps = 0,
    ) -> None:
        super().__init__(strength, value_weight > 0, every)
        if not 0 <= decay <= 1 or sequences < 1:
            raise ValueError("decay must lie in [0, 1], sequences must be at least 1")
        self.decay, self.sequences, self.normalize, self.value_weight = decay, sequences, normalize, value_weight

    def fresh_sequences(self, copies: int) -> int:
        return -(-self.sequences // copies) * copies

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        self.generator = torch.Generator(device=ctx.device).manual_seed(seed)
        self.seed = seed

    def consolidate(self, ctx: Context, source: Source) -> None:
        """Estimate the Fisher of the current task and move the anchor here."""
        share = len(range(self.sequences)[ctx.workers.share(self.sequences)])
        new, steps = self.zeros(), torch.zeros((), device=ctx.device)
        generator = self._generator(ctx)
        for experience in source(-(-share // ctx.copies)):
            chunk, weight_TB = experience.chunk, ctx.objective.weight(experience.chunk)
            fisher = fisher_diagonal(
                ctx.policy,
                chunk,
                generator,
                list(new),
                self.value_weight,
                weight=weight_TB,
                start=experience.start,
            )
            for name, value in fisher.items():
                new[name] += value
            steps += weight_TB.sum()
        ctx.workers.sum_([*new.values(), steps])
        new = {name: f / steps.clamp(min=1.0) for name, f in new.items()}
        if self.normalize:
            new = normalized(new)
        old = self.importance or self.zeros()
        self.hold({name: self.decay * old[name] + f for name, f in new.items()})

    def _generator(self, ctx: Context) -> torch.Generator:
        """Every worker draws its own actions, and what is saved stays equal on all: rank 0's generator."""
        if ctx.workers.rank == 0:
            return self.generator
        return torch.Generator(device=ctx.device).manual_seed(self.seed + 1_000_003 * ctx.workers.rank + ctx.step)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.generator.set_state(saved["generator"].cpu())
