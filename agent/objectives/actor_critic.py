"""Advantage actor-critic with V-trace (Mnih et al. 2016; Espeholt et al. 2018, IMPALA, eq. 1)."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from lifelong.agent.modules.heads import Distribution
from lifelong.agent.objectives.base import Metrics, Objective
from lifelong.agent.policy import Outputs
from lifelong.envs.options import Share, Weight
from lifelong.kernels.actor_critic_loss import actor_critic_loss
from lifelong.kernels.advantages import vtrace
from lifelong.replay.chunk import Chunk


class ActorCritic(Objective):
    """Policy gradient with V-trace targets; on data of the current policy, lambda-returns and their advantage (GAE).

    Args:
        distribution: of the policy's actions.
        gamma: discount.
        lam: lambda of the targets; 1 gives n-step returns to the end of the chunk.
        value_weight: weight of the value loss.
        entropy_weight: weight of the entropy bonus.
        rho_bar: clip of the importance weight of the temporal difference.
        c_bar: clip of the trace.
        advantage: of the policy gradient, `lambda`: rho (delta + gamma lambda A) as in rlax, or `impala`: the letter of
            the paper, rho (r + gamma v - V), where lambda enters the trace alone.

    Raises:
        ConfigError: unknown `advantage`.
    """

    SCHEDULED: ClassVar[tuple[str, ...]] = ("entropy_weight", "value_weight")
    off_policy: ClassVar[bool] = True
    says_error: ClassVar[bool] = True

    def __init__(
        self,
        distribution: Distribution,
        *,
        gamma: Share = 0.99,
        lam: Share = 1.0,
        value_weight: Weight = 0.5,
        entropy_weight: Weight = 0.01,
        rho_bar: Weight = 1.0,
        c_bar: Weight = 1.0,
        advantage: Literal["lambda", "impala"] = "lambda",
    ) -> None:
        super().__init__(distribution)
        self.gamma, self.lam = gamma, lam
        self.value_weight, self.entropy_weight = value_weight, entropy_weight
        self.rho_bar, self.c_bar = rho_bar, c_bar
        self.advantage_lam = 1.0 if advantage == "impala" else lam

    def loss(self, outputs: Outputs, chunk: Chunk, prepared: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        log_prob, step_entropy = self.distribution.log_prob_and_entropy(outputs.policy, chunk.action)
        value = outputs.value
        after = (chunk.bootstrap_value, chunk.final_value) if outputs.after is None else outputs.after()
        bootstrap_value, final_value = after
        target, advantage = vtrace(
            log_prob.detach() - chunk.log_prob,
            chunk.reward,
            value.detach(),
            bootstrap_value,
            chunk.terminated,
            chunk.truncated,
            final_value,
            gamma=self.gamma,
            lam=self.lam,
            rho_bar=self.rho_bar,
            c_bar=self.c_bar,
            advantage_lam=self.advantage_lam,
        )
        mean = self.mean(chunk)
        loss, statistics, error = actor_critic_loss(
            log_prob,
            step_entropy,
            value,
            advantage,
            target,
            mean.weight,
            mean.total,
            self.value_weight,
            self.entropy_weight,
        )
        outputs.error = error  # of the n-step return that V-trace corrects
        metrics = statistics._asdict()
        return loss, metrics
