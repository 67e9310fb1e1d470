"""Averaged gradient episodic memory (Chaudhry et al. 2019, arXiv 1812.00420, eqs. 10 and 11)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.replaying import Replaying
from lifelong.replay.chunk import Chunk


class AGEM(Replaying):
    """Takes out of the gradient g what would, to first order, raise the loss of replayed sequences:

        g <- g - min(0, <g, r> / <r, r>) r, so that <g, r> >= 0

    r is the gradient of the objective on replayed sequences alone. The inequality is that of the gradient: clipping
    keeps it, an optimiser with a scale for every parameter (Adam) need not. The paper keeps a memory a task, which
    needs boundaries; here it is a reservoir over all that was seen (A-GEM-R of Buzzega et al. 2020), or what `writing`
    says. Every update costs a second pass, forward and backward. r is truncated at the start of the sequences, whose
    stored memory is a constant, while g has its carry. Needs no boundaries.
    """

    def transform_batch(self, ctx: Context, chunk: Chunk) -> Chunk:
        return chunk  # the optimiser's loss has live steps only

    def transform_gradients(self, ctx: Context, gradients: Mapping[str, Tensor]) -> None:
        drawn = self.draw(ctx, ctx.copies, 0)
        if drawn is None:
            return
        reference = self.reference(ctx, drawn, list(gradients))
        inner = _inner(gradients, reference)
        square, norm = _inner(reference, reference), _inner(gradients, gradients)
        share = inner.clamp(max=0.0) / square.clamp(min=torch.finfo(square.dtype).tiny)
        for name, gradient in gradients.items():
            gradient -= (share * reference[name]).to(gradient.dtype)
        cosine = inner / (square * norm).sqrt().clamp(min=torch.finfo(square.dtype).tiny)
        self.metrics |= {"cosine": cosine, "projected": (inner < 0).double()}

    def reference(self, ctx: Context, drawn: Chunk, names: list[str]) -> dict[str, Tensor]:
        """The gradient of the objective on the sequences of all workers: name -> tensor of the parameter's shape."""
        named = dict(ctx.policy.named_parameters())
        with torch.enable_grad():
            outputs = ctx.policy.sequence(drawn, drawn.state)
            loss, _ = ctx.objective.loss(outputs, drawn, {})
        self.extra_loss(ctx, drawn, outputs, 0)
        found = torch.autograd.grad(loss, [named[name] for name in names], allow_unused=True, materialize_grads=True)
        ctx.workers.mean_(found)
        return dict(zip(names, found, strict=True))


def _inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """The inner product of two gradients, in double precision."""
    return torch.stack([(x.double() * b[name].double()).sum() for name, x in a.items()]).sum()
