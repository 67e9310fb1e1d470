"""The ideal continual learner: learn a task among the solutions of those before, as constraints.

Peng, Giampouras & Vidal 2023, *The Ideal Continual Learner: An Agent That Never Forgets* (ICML; arXiv 2305.00316):
definition 1 and its constrained form; linear regression: section 4. Multipliers: the augmented Lagrangian for
inequalities (Rockafellar 1973; Nocedal & Wright, *Numerical Optimization*, section 17.4).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.policy import Outputs
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.consolidation import Consolidating
from lifelong.envs.options import Count, Steps, Weight
from lifelong.replay.buffer import SequenceReplay
from lifelong.replay.chunk import Chunk, concatenate
from lifelong.replay.sampling import Uniform
from lifelong.replay.writing import Reservoir


class Multipliers:
    """Of constraints violation_i <= 0.

    The gradient of the augmented Lagrangian is that of the loss plus sum_i w_i violation_i, w_i = max(0, lambda_i + rho
    violation_i); after that lambda_i <- max(0, lambda_i + dual violation_i).

    Args:
        rho: weight of a violation now.
        dual: weight of a violation that stays.
    """

    def __init__(self, rho: float, dual: float) -> None:
        self.rho, self.dual = rho, dual
        self.values = torch.zeros(0)

    def add(self) -> None:
        """One more constraint."""
        self.values = torch.cat([self.values, self.values.new_zeros(1)])

    def weights(self, violation_C: Tensor) -> Tensor:
        """w of every constraint; the multipliers follow."""
        w_C = (self.values + self.rho * violation_C).clamp(min=0.0)
        self.values = (self.values + self.dual * violation_C).clamp(min=0.0)
        return w_C


def restricted(x: Tensor, y: Tensor, w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """One task of linear regression, learned among the solutions of all before (section 4): the exact learner.

    Args:
        x: inputs [M, n].
        y: targets [M, m].
        w: a solution of all tasks before [n, m]; zeros at first.
        basis: orthonormal basis [n, k] of what they leave free; the identity at first.

    Returns:
        w + basis a with a = argmin |x (w + basis a) - y|, and a basis of what is left free now.
    """
    if basis.shape[1] == 0:
        return w, basis
    seen = x @ basis
    left, singular, right = torch.linalg.svd(seen, full_matrices=True)
    limit = max(seen.shape) * torch.finfo(x.dtype).eps * max(float(singular.max()), float(x.norm()))
    rank = int((singular > limit).sum())
    coordinates = (left[:, :rank].T @ (y - x @ w)) / singular[:rank].unsqueeze(1)
    return w + basis @ (right[:rank].T @ coordinates), basis @ right[rank:].T


class IdealContinualLearner(Consolidating):
    """Minimises the loss subject to D_i <= slack for every task i that ended, by an augmented Lagrangian. D_i = KL(pi_i
    || pi) + value_weight (V - V_i)^2, a mean over steps of stored sequences of task i with the outputs that the policy
    had when it ended; so D_i was 0 then.

    Unlike the fixed strength of `functional`, a constraint that holds costs nothing, and one that does not gets heavier
    until it does. A stored sequence starts from the memory of then, as a constant. Each task has its own store.

    Args:
        slack: xi.
        rho: weight of a violation now.
        dual: how fast the multiplier of a violation grows, once a minibatch.
        value_weight: of the squared distance of the values.
        sequences: stored of every task, at least; every copy gives equally many.
        constraints: kept at most; beyond, the oldest goes.
        batch: sequences drawn for one minibatch, all constraints alike, by all workers together.
        every: one more constraint every so many steps instead of at boundaries; 0: at boundaries.
    """

    data_parallel: ClassVar[str] = "shard"

    def __init__(
        self,
        *,
        slack: Weight = 0.01,
        rho: Weight = 1.0,
        dual: Weight = 0.1,
        value_weight: Weight = 0.5,
        sequences: Count = 256,
        constraints: Count = 16,
        batch: Count = 64,
        every: Steps = 0,
    ) -> None:
        super().__init__(every, sequences)
        self.slack, self.value_weight = slack, value_weight
        self.constraints, self.batch = constraints, batch
        self.multipliers = Multipliers(rho, dual)
        self.stores: list[SequenceReplay] = []
        self.made = 0  # stores so far
        self.distance: Tensor | None = None

    def replay_sequences(self) -> int:
        return self.sequences * self.constraints

    def setup(self, ctx: Context, seed: int) -> None:
        self.seed, self.device, self.workers, self.steps = seed, ctx.device, ctx.workers.count, ctx.steps
        self.multipliers.values = torch.zeros(0, device=ctx.device)

    def _store(self, number: int, capacity: int) -> SequenceReplay:
        return SequenceReplay(capacity, Reservoir(), Uniform(), self.seed + number)

    def consolidate(self, ctx: Context, source: Source) -> None:
        found = [experience.chunk for experience in self.fresh(ctx, source)]
        if not found:
            return
        store = self._store(self.made, sum(chunk.copies for chunk in found))
        for chunk in found:
            store.write(chunk, ctx.step)
        self.made += 1
        self.multipliers.add()
        self.stores = [*self.stores, store][-self.constraints :]
        self.multipliers.values = self.multipliers.values[-self.constraints :]

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        if not self.stores:
            return None
        each = max(1, self.batch // (self.workers * len(self.stores)))
        drawn = concatenate([store.sample(each, ctx.step)[0] for store in self.stores])
        now = ctx.policy.sequence(drawn, drawn.state)
        distance = ctx.policy.distribution.kl(drawn.policy, now.policy)
        distance = distance + self.value_weight * (now.value - drawn.value).square()
        weight = ctx.objective.weight(drawn)
        shape = (len(weight), len(self.stores), each)
        of_each = (distance * weight).view(shape).sum((0, 2)) / weight.view(shape).sum((0, 2)).clamp(min=1.0)
        mean = of_each.detach().clone()
        ctx.workers.mean_([mean])
        self.distance = mean
        return (self.multipliers.weights(mean - self.slack) * of_each).sum()

    def report(self) -> dict[str, float]:
        values = self.multipliers.values
        largest = float(values.max()) if len(values) else 0.0
        distance = 0.0 if self.distance is None else float(self.distance.max())
        return {"constraints": float(len(self.stores)), "multiplier": largest, "distance": distance}

    def state_dict(self) -> dict[str, Any]:
        stores = [{"capacity": store.capacity, **store.state_dict()} for store in self.stores]
        held = {"stores": stores, "made": self.made, "distance": self.distance}
        return {**super().state_dict(), **held, "multipliers": self.multipliers.values}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.made, self.distance = saved["made"], saved["distance"]
        self.multipliers.values = saved["multipliers"].to(self.device)
        self.stores = [self._store(0, store["capacity"]) for store in saved["stores"]]
        for store, state in zip(self.stores, saved["stores"], strict=True):
            store.load_state_dict(state, self.device, self.steps)
