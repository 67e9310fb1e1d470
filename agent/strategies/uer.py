"""UER: unbiased experience replay, live steps move directions and replayed ones lengths (Lin et al. 2023, ACM MM)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.agent.modules.heads import Categorical, MultiCategorical
from lifelong.agent.modules.values import EpsilonGreedy
from lifelong.agent.policy import Outputs, inputs_of
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.replaying import Replaying
from lifelong.replay.chunk import Chunk


class UER(Replaying):
    """`er`, but of the logits z_a = |w_a| |f| cos(w_a, f) + b_a of a live step the gradient sees the angle alone:

        live:      d z_a = sg(|w_a| |f|) d cos(w_a, f)          replayed:  d z_a = d (w_a . f + b_a)

    with w_a the actor's row of action a, f the features and sg a stopped gradient. Online, the classes (actions) of now
    are in every live step, and what makes them win cheaply is a longer w_a and a larger b_a, at the cost of those that
    are needed elsewhere; lengths and biases are therefore learned from the buffer, where all tasks are.

    The paper takes the cosine itself, over a temperature, for the logits of live samples. Then the policy that learns
    is not the one that acted, and importance ratios are off from the start; here the values are those of the acting
    policy, and the length stands for the temperature. `length_ratio` is the largest |w_a| over the smallest. Discrete
    actions only; needs no boundaries.

    Args:
        options: see `Replaying`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def setup(self, ctx: Context, seed: int) -> None:
        distribution = ctx.policy.distribution
        if not isinstance(distribution, (Categorical, MultiCategorical)) or isinstance(distribution, EpsilonGreedy):
            raise ValueError("uer takes the logits of discrete actions apart, and this policy has none")
        if ctx.policy.composed:
            raise ValueError("uer takes the actor's rows apart, and an actor that composes policies has none an action")
        super().setup(ctx, seed)

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        """The live loss by angles in place of the live loss by logits: the difference of the two, which is zero."""
        super().extra_loss(ctx, chunk, outputs, live)
        now = chunk.map(lambda name, x, dim: x.narrow(dim, 0, live))
        assert outputs.features is not None  # of a whole chunk they are there
        turned = self.by_angle(ctx, now, outputs.features[:, :live])
        value, after = outputs.value[:, :live].detach(), _first(outputs.after, live)
        share = ctx.objective.mean(now).total / ctx.objective.mean(chunk).total
        by_angle, _ = ctx.objective.loss(Outputs(turned, value, after), now, {})
        by_logit, _ = ctx.objective.loss(Outputs(outputs.policy[:, :live], value, after), now, {})
        length = ctx.policy.actor.linear.weight.detach().norm(dim=1)
        self.metrics["length_ratio"] = length.max() / length.min().clamp(min=1e-12)
        return share * (by_angle - by_logit)

    def by_angle(self, ctx: Context, chunk: Chunk, features_TBH: Tensor) -> Tensor:
        """The logits [T, B, P] as they are, of which only the angles have a gradient."""
        policy, inputs = ctx.policy, inputs_of(chunk)
        linear = policy.actor.linear
        logits = nn.functional.linear(_turning(features_TBH), _turning(linear.weight), linear.bias.detach())
        logits = policy.actor.parameters_of(logits, inputs.task)
        return policy.distribution.mask(logits, inputs.action_mask) if inputs.action_mask.shape[-1] else logits


def _turning(x: Tensor) -> Tensor:
    """`x` [..., H], whose length is a constant."""
    length = x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return x / length * length.detach()


def _first(
    after: Callable[..., tuple[Tensor, Tensor]] | None, live: int
) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """What `Outputs.after` says of the first `live` copies; asked once."""
    if after is None:
        return None
    with torch.no_grad():
        bootstrap_B, final_TB = after()
    return lambda: (bootstrap_B[:live], final_TB[:, :live])
