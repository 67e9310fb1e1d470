"""OGD: orthogonal gradient descent (Farajtabar, Azizan, Mott, Li, AISTATS 2020, arXiv 1910.07104, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.modules.heads import Categorical
from lifelong.agent.policy import Outputs
from lifelong.agent.runtime.memory import memory_of
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.consolidation import Consolidating, sequence_gradients
from lifelong.envs.options import Count, Steps


class OGD(Consolidating):
    """Every realised step is made orthogonal to the gradients of what the policy said on old tasks, so that to first
    order it says the same again:

        delta <- delta - sum_v <delta, v> v,    v: orthonormal basis of the stored gradients

    A stored gradient is that of one output at one step, drawn from fresh whole episodes: of discrete actions the logit
    of the most likely one (of the true one in the paper, OGD-GTL), else an entry of the distribution's parameters drawn
    at random. It is by all parameters but the critic's, element-wise weights, biases and the task's own head among
    them. The step depends on its history: under `rtrl` the gradient goes through all of it, under `bptt` it is cut at
    the start of the sequence. The paper projects the gradient for plain SGD, here it is the step after the optimiser.

    Args:
        gradients: stored at each look, at most.
        capacity: stored in all; when they are more, every look keeps equally many.
        every: look every so many steps instead of at boundaries; 0: at boundaries.
    """

    data_parallel: ClassVar[str] = "reduce"

    def __init__(self, *, gradients: Count = 200, capacity: Count = 1000, every: Steps = 0) -> None:
        if gradients < 1 or capacity < 1:
            raise ValueError(f"gradients and capacity are {gradients} and {capacity}; they must be at least 1")
        super().__init__(every, gradients)
        self.capacity = capacity
        #: orthonormal gradients of each look in turn: parameter -> [count, *its shape]
        self.stored: list[dict[str, Tensor]] = []
        self.share: Tensor | None = None

    def setup(self, ctx: Context, seed: int) -> None:
        self.parameters = {n: p for n, p in ctx.policy.named_parameters() if not n.startswith("critic.")}
        self.seed, self.generator = seed, torch.Generator().manual_seed(seed)
        size = 4 * sum(p.numel() for p in self.parameters.values()) * (self.capacity + 4 * self.sequences)
        has = memory_of(ctx.device)
        if size > has:
            raise ValueError(
                f"capacity {self.capacity} and gradients {self.sequences} need {size / 1e9:,.1f} GB with this policy, "
                f"and there are {has / 1e9:,.1f} GB; lower them"
            )

    def consolidate(self, ctx: Context, source: Source) -> None:
        new = torch.zeros(self.sequences, sum(p.numel() for p in self.parameters.values()), device=ctx.device)
        # every worker draws its own steps, and what is saved stays equal on all: rank 0's generator
        generator = self.generator
        if ctx.workers.rank:
            generator = torch.Generator().manual_seed(self.seed + 1_000_003 * ctx.workers.rank + ctx.step)
        rows = list(range(self.sequences)[ctx.workers.share(self.sequences)])
        for experience in self.fresh(ctx, source):
            weight_TB = _one_step(ctx.objective.weight(experience.chunk), generator)
            names = list(self.parameters)

            def said(outputs: Outputs, counts: Tensor) -> Tensor:
                return (outputs.policy * counts.unsqueeze(-1) * self._entry(ctx, outputs.policy, generator)).sum()

            for gradient in sequence_gradients(ctx.policy, experience.chunk, names, said, weight_TB, experience.start):
                if rows:
                    parts = [gradient.get(n, torch.zeros_like(p)).flatten() for n, p in self.parameters.items()]
                    new[rows.pop(0)] = torch.cat(parts)
        ctx.workers.sum_([new])
        self._store(new)

    def _entry(self, ctx: Context, params: Tensor, generator: torch.Generator) -> Tensor:
        """One-hot: which entry of the distribution's parameters is looked at."""
        if isinstance(ctx.policy.distribution, Categorical):
            index = params.argmax(-1)
        else:
            index = torch.randint(params.shape[-1], params.shape[:-1], generator=generator).to(params.device)
        return torch.nn.functional.one_hot(index, params.shape[-1]).to(params)

    @torch.no_grad()
    def _store(self, new_MP: Tensor) -> None:
        """Orthonormalise, and keep no more than there is room for."""
        quota = max(1, self.capacity // (len(self.stored) + 1))
        self.stored = [{name: x[:quota] for name, x in look.items()} for look in self.stored][-self.capacity :]
        old = torch.cat([self._flat(look) for look in self.stored]) if self.stored else new_MP[:0]
        rest = new_MP[new_MP.any(1)][:quota].double()
        length = rest.norm(dim=1, keepdim=True)
        for _ in range(2):
            rest = rest - (rest @ old.double().T) @ old.double()
        rest = rest[rest.norm(dim=1) > 1e-4 * length.squeeze(1)]
        u, s, _ = torch.linalg.svd(rest / rest.norm(dim=1, keepdim=True), full_matrices=False)
        keep = s > 1e-4 * s.max() if len(s) else s > 0
        basis = ((u[:, keep].T @ (rest / rest.norm(dim=1, keepdim=True))) / s[keep].unsqueeze(1)).to(new_MP)
        sizes = [p.numel() for p in self.parameters.values()]
        parts = zip(self.parameters.items(), basis.split(sizes, 1), strict=True)
        self.stored.append({name: part.reshape(-1, *p.shape) for (name, p), part in parts})

    def _flat(self, look: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([look[name].flatten(1) for name in self.parameters], 1)

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        before = sum(deltas[name].double().square().sum() for name in self.parameters)
        for look in self.stored:
            along = torch.stack([look[n].flatten(1) @ deltas[n].flatten() for n in self.parameters]).sum(0)
            for name in self.parameters:
                deltas[name].sub_((along @ look[name].flatten(1)).view_as(deltas[name]))
        if self.stored:
            after = sum(deltas[name].double().square().sum() for name in self.parameters)
            self.share = torch.as_tensor(after / torch.as_tensor(before).clamp(min=1e-30)).sqrt()

    def report(self) -> dict[str, float]:
        """Gradients that are stored, and the share of the last step's norm that was let through."""
        count = sum(len(next(iter(look.values()))) for look in self.stored)
        return {"stored": float(count), "room": 1.0 if self.share is None else float(self.share)}

    def state_dict(self) -> dict[str, Any]:
        own = {"stored": self.stored, "share": self.share, "generator": self.generator.get_state()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.stored = [
            {
                n: grown(look[n], look[n].new_zeros(len(look[n]), *p.shape).to(p.device))
                for n, p in self.parameters.items()
            }
            for look in saved["stored"]
        ]
        self.share = saved["share"]
        self.generator.set_state(saved["generator"].cpu())


def _one_step(weight_TB: Tensor, generator: torch.Generator) -> Tensor:
    """1 at one of the steps that count, drawn for every copy that has some, 0 elsewhere."""
    drawn = torch.rand(weight_TB.shape, generator=generator).to(weight_TB.device) * (weight_TB > 0)
    chosen = torch.nn.functional.one_hot(drawn.argmax(0), len(weight_TB)).T
    return (chosen * (weight_TB > 0)).to(weight_TB)
