"""RER: how much a live and a replayed sequence count is learned (Wang et al. 2021, *Relational experience replay*)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lifelong.agent.modules.heads import NEGATIVE
from lifelong.agent.policy import Outputs, inputs_of
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.replaying import Replaying
from lifelong.envs.options import Count, Range, Weight
from lifelong.replay.chunk import Chunk, concatenate


class Relation(nn.Module):
    """The weights of a pair of sequences, of their errors and of the sizes of what the policy says on them: a branch of
    one layer each, their sum, and a layer on it; 2 sigmoid, so that a new one weighs both by 1."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.error, self.size, self.out = nn.Linear(2, width), nn.Linear(2, width), nn.Linear(width, 2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, error_N2: Tensor, size_N2: Tensor) -> Tensor:
        """[N, 2], of the live one and the replayed one, in (0, 2)."""
        hidden = torch.relu(self.error(error_N2)) + torch.relu(self.size(size_N2))
        weight: Tensor = 2.0 * torch.sigmoid(self.out(hidden))
        return weight


class Pairs(NamedTuple):
    """N pairs: which copies they are of, and what the relation network reads of them."""

    live_N: Tensor
    drawn_N: Tensor
    error_N2: Tensor
    size_N2: Tensor


class RER(Replaying):
    """`er`, with a weight for every sequence that a small relation network gives to it and the one it is paired with:

        L = sum w_i objective_i / sum w_i over live and replayed sequences i,    (w_live, w_replayed) = g(e, n)

    from the mean errors e of the pair and the mean lengths n of the policy's parameters. Every `interval` updates g is
    moved so that one step of plain gradient descent on L, from where the policy is, would lower a second loss: the
    distance of a fresh draw from its recorded policy and values,

        KL(mu || pi') + value_cloning (V' - V_mu)^2

    which is differentiated through that step. Only actor and critic make it, as in the paper's fast variant: through
    the cell it would need second derivatives of the whole recurrence, for every copy. The paper's second loss is the
    cross-entropy of its buffer, which there is none of here. Needs no boundaries.

    Args:
        interval: updates between two of the relation network.
        relation_lr: its learning rate (Adam, weight decay 1e-4).
        step: learning rate of the step that is differentiated.
        value_cloning: weight of the values in the second loss.
        options: see `Replaying`.
    """

    data_parallel: ClassVar[str] = "none"

    def __init__(
        self,
        *,
        interval: Count = 5,
        relation_lr: Annotated[float, Range(0.0, 1.0)] = 1e-3,
        step: Annotated[float, Range(0.0, 1e3)] = 0.1,
        value_cloning: Weight = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.interval, self.relation_lr, self.step, self.value_cloning = interval, relation_lr, step, value_cloning
        self.updates = 0

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        if not ctx.objective.says_error:
            raise ValueError("rer needs an objective that says how wrong it was at each step")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.relation = Relation()
        self.relation.to(ctx.device)
        self.optimizer = torch.optim.Adam(self.relation.parameters(), self.relation_lr, weight_decay=1e-4)

    def transform_batch(self, ctx: Context, chunk: Chunk) -> Chunk:
        drawn = self.draw(ctx, chunk.copies)
        #: the copies [first, first + count) of the minibatch are those that were drawn
        self.at = (chunk.copies, 0 if drawn is None else drawn.copies)
        return chunk if drawn is None else concatenate([chunk, drawn])

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        """The loss with these weights in place of the loss without them."""
        super().extra_loss(ctx, chunk, outputs, live)
        if not self.at[1]:
            return None
        assert outputs.error is not None  # the objective says so
        pairs = self._pairs(chunk, outputs, live)
        fixed = replace(outputs, after=_asked(outputs))
        if self.updates % self.interval == 0:
            self._learn(ctx, chunk, fixed, pairs)
        self.updates += 1
        with torch.no_grad():
            weight_B = self.weights(pairs, chunk.copies)
        first, count = self.at
        self.metrics |= {
            "weight_live": weight_B[:live].mean(),
            "weight_replayed": weight_B[first : first + count].mean(),
        }
        weighted, _ = ctx.objective.loss(fixed, replace(chunk, weight=chunk.weight * weight_B), {})
        plain, _ = ctx.objective.loss(fixed, chunk, {})
        return weighted - plain

    def _pairs(self, chunk: Chunk, outputs: Outputs, live: int) -> Pairs:
        """Every live copy with a drawn one; the fewer of the two go round."""
        assert outputs.error is not None
        first, count = self.at
        each = torch.arange(max(live, count), device=chunk.reward.device)
        ours, theirs = each % live, first + each % count
        counts_TB = (chunk.weight > 0).to(outputs.error.dtype)
        total_B = counts_TB.sum(0).clamp(min=1.0)
        error_B = (outputs.error.detach().abs() * counts_TB).sum(0) / total_B
        policy = outputs.policy.detach()
        policy = policy.masked_fill(policy <= NEGATIVE / 2, 0.0)  # of actions that are masked
        size_B = (policy.norm(dim=-1) * counts_TB).sum(0) / total_B
        error_N2, size_N2 = (torch.stack([x[ours], x[theirs]], -1) for x in (error_B, size_B))
        return Pairs(ours, theirs, error_N2, size_N2)

    def weights(self, pairs: Pairs, copies: int) -> Tensor:
        """The weight of every copy, [B]: 1 for those in no pair, the mean over its pairs for those in several."""
        ours, theirs, error_N2, size_N2 = pairs
        weight_N2 = self.relation(error_N2, size_N2)
        index, weight = torch.cat([ours, theirs]), weight_N2.T.flatten()
        times = weight.new_zeros(copies).index_add(0, index, torch.ones_like(weight))
        summed = weight.new_zeros(copies).index_add(0, index, weight)
        return torch.where(times > 0, summed / times.clamp(min=1.0), 1.0)

    def _learn(self, ctx: Context, chunk: Chunk, outputs: Outputs, pairs: Pairs) -> None:
        """One step of the relation network."""
        fresh = self.draw(ctx, chunk.copies - self.at[1])
        self.drawn = []  # its errors are not known
        assert fresh is not None
        with torch.enable_grad():
            meta = self.meta_loss(ctx, chunk, outputs, pairs, fresh)
            found = torch.autograd.grad(meta, list(self.relation.parameters()))
        for parameter, gradient in zip(self.relation.parameters(), found, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.metrics["meta_loss"] = meta.detach()

    def meta_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, pairs: Pairs, fresh: Chunk) -> Tensor:
        """The second loss, after one step of actor and critic on the weighted one, as a function of the relation."""
        policy, mean = ctx.policy, ctx.objective.mean(fresh)
        with torch.no_grad():
            seen = policy.sequence(fresh, fresh.state).features
        assert seen is not None  # of a whole chunk they are there
        weight, bias = self.moved(ctx, chunk, outputs, self.weights(pairs, chunk.copies))
        then = policy.outputs(nn.functional.linear(seen, weight, bias), inputs_of(fresh))
        kl = mean(policy.distribution.kl(fresh.policy, then.policy))
        return kl + self.value_cloning * mean((then.value - fresh.value).square())

    def moved(self, ctx: Context, chunk: Chunk, outputs: Outputs, weight_B: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of actor and critic (see `Policy.read_out`) after a step on the loss with these weights, as a
        function of them. That loss is a mean over steps, so its gradient is linear in `weight_B` up to the sum: nothing
        is differentiated twice."""
        policy = ctx.policy
        assert outputs.features is not None
        features_TBH = outputs.features.detach()
        with torch.no_grad():
            weight, bias = policy.read_out()
            read_TBP = nn.functional.linear(features_TBH, weight, bias)
        said = policy.outputs(read_TBP.requires_grad_(), inputs_of(chunk))
        said.after = outputs.after
        loss, _ = ctx.objective.loss(said, chunk, {})
        (d_TBP,) = torch.autograd.grad(loss * ctx.objective.mean(chunk).total, read_TBP)
        total = (weight_B * ctx.objective.weight(chunk)).sum().clamp(min=1e-8)
        d_TBP = d_TBP * (weight_B / total).unsqueeze(-1)
        d_weight = torch.einsum("tbp,tbh->ph", d_TBP, features_TBH)
        return weight - self.step * d_weight, bias - self.step * d_TBP.sum((0, 1))

    def state_dict(self) -> dict[str, Any]:
        own = {"relation": dict(self.relation.state_dict()), "optimizer": self.optimizer.state_dict()}
        return {**super().state_dict(), **own, "updates": self.updates}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.relation.load_state_dict(saved["relation"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.updates = saved["updates"]


def _asked(outputs: Outputs) -> Any:
    """`Outputs.after`, which is computed once for each thing that is read."""
    if outputs.after is None:
        return None
    after, known = outputs.after, {}

    def answer(**options: Any) -> tuple[Tensor, Tensor]:
        key = tuple(sorted((name, id(x)) for name, x in options.items()))
        if key not in known:
            known[key] = after(**options)
        return known[key]

    return answer
