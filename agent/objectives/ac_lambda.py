"""Actor-critic with traces (Sutton & Barto 2018, section 13.6; with deep networks Elsayed, Vasan & Mahmood 2024, arXiv
2410.14606)."""

from __future__ import annotations

from typing import ClassVar

import torch

from lifelong.agent.modules.heads import Distribution
from lifelong.agent.objectives.base import Metrics
from lifelong.agent.objectives.streaming import LAMBDA, Rows, Streaming
from lifelong.agent.policy import Outputs
from lifelong.envs.options import Share, Weight
from lifelong.replay.chunk import Chunk


class ACLambda(Streaming):
    """Actor and critic read one memory, so they have one trace:

        delta = r + gamma v(s') - v(s)
        z     = gamma lambda z + grad [value_weight v(s) + log pi(a | s) + entropy_weight sign(delta) H(pi(. | s))]

    The sign makes delta z raise the entropy whatever delta is (Elsayed et al., algorithm 4).

    Args:
        distribution: of the policy's actions.
        gamma: discount.
        lam: lambda of the traces.
        value_weight: weight of the value.
        entropy_weight: weight of the entropy.
    """

    SCHEDULED: ClassVar[tuple[str, ...]] = ("entropy_weight", "value_weight")

    def __init__(
        self,
        distribution: Distribution,
        *,
        gamma: Share = 0.99,
        lam: Share = LAMBDA,
        value_weight: Weight = 1.0,
        entropy_weight: Weight = 0.01,
    ) -> None:
        super().__init__(distribution, gamma=gamma, lam=lam)
        self.value_weight, self.entropy_weight = value_weight, entropy_weight

    def rows(self, outputs: Outputs, chunk: Chunk) -> tuple[Rows, Metrics]:
        log_prob, entropy = self.distribution.log_prob_and_entropy(outputs.policy, chunk.action)
        value_B1 = outputs.value[0].unsqueeze(1)
        with torch.no_grad():
            after_B1, final_B1 = chunk.bootstrap_value.unsqueeze(1), chunk.final_value[0].unsqueeze(1)
            error_B1 = self.target(chunk, chunk.reward[0].unsqueeze(1), after_B1, final_B1) - value_B1
            keep_B1 = (self.discount_of(value_B1) * self.lam).expand_as(error_B1)
        score_B1 = self.value_weight * value_B1 + log_prob[0].unsqueeze(1)
        score_B1 = score_B1 + self.entropy_weight * error_B1.sign() * entropy[0].unsqueeze(1)
        with torch.no_grad():
            mean = self.mean(chunk)
            metrics = {"value": mean(value_B1.T), "entropy": mean(entropy)}
        return Rows(score_B1, error_B1, keep_B1), metrics
