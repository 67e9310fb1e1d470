"""The log-probability of what was done, as calls in a plan: forward, and back to the read-out (see `planned.plan`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lifelong.agent.modules.heads import Categorical, Gaussian
from lifelong.agent.policy import Policy
from lifelong.kernels import acting, gaussian
from lifelong.kernels.categorical.cpu import log_prob_backward_call, log_prob_call
from lifelong.kernels.loop import Call, Direct, Each


def refusal(policy: Policy) -> str | None:
    """What keeps a policy's actions from such calls, in a few words; None if nothing does."""
    kind = type(policy.distribution)
    if kind is Gaussian and gaussian.available(policy.critic.weight):
        return None
    return None if kind is Categorical else "the action space"


class Likelihood:
    """Of M actions that are categories, or that a Gaussian gave.

    Args:
        policy: `refusal` found nothing.
        rows: M.

    Attributes:
        outputs: of the actor's linear layer.
        size: numbers that a distribution has.
        slopes: [M, outputs] of what `backward` puts into those of the read-out.
    """

    def __init__(self, policy: Policy, rows: int) -> None:
        self.M, self.outputs, self.size = rows, policy.actor.outputs, policy.distribution.size
        self.gaussian = isinstance(policy.distribution, Gaussian)
        self.largest = policy.critic.weight.new_empty(rows)
        self.slopes = policy.critic.weight.new_empty(rows, self.outputs)

    def actions(self, steps: int, copies: int) -> Tensor:
        """Room for the actions of so many steps and copies."""
        return (
            self.slopes.new_empty(steps, copies, self.outputs)
            if self.gaussian
            else torch.empty(steps, copies, dtype=torch.int64)
        )

    def forward(
        self, params: Each | Tensor, action: Each | Tensor, log_prob: Each | Tensor, entropy: Tensor, rows: int = 0
    ) -> Direct:
        """Log-probability and entropy [M] of parameters [M, size]; of `rows` in place of M."""
        M, A = rows or self.M, self.outputs
        if self.gaussian:
            return gaussian.log_prob_call(M, A, params, action, log_prob, entropy)
        largest = self.largest if M == self.M else self.largest.new_empty(M)
        return log_prob_call(M, A, params, action, log_prob, entropy, largest)

    def backward(
        self,
        params: Each | Tensor,
        action: Each | Tensor,
        entropy: Tensor,
        slopes: Sequence[Tensor],
        d_read: Tensor,
        grads: Mapping[str, Tensor],
        held: Sequence[Call | Direct] = (),
    ) -> list[Call | Direct]:
        """From the slopes of log-probability and entropy to the first columns of those of the read-out `d_read`, and to
        the gradient of a Gaussian's deviations; the calls `held` add to `slopes` and to that before."""
        if self.gaussian:
            back = gaussian.log_prob_backward_call(
                self.M, self.outputs, (params, action), (slopes[0], slopes[1]), self.slopes, grads["actor.log_std"]
            )
        else:
            back = log_prob_backward_call(
                self.M, self.outputs, params, action, entropy, self.largest, slopes[0], slopes[1], self.slopes
            )
        return [back, *held, acting.place_rows(self.slopes, d_read[:, : self.outputs])]
