"""Proximal policy optimisation with the clipped objective (Schulman et al. 2017), for recurrent policies.

Minibatches are sets of copies, never of steps, so sequences stay whole; each starts from the state that acted.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from torch import Tensor

from lifelong.agent.modules.heads import Distribution
from lifelong.agent.objectives.base import Metrics, Objective, standardized
from lifelong.agent.policy import Outputs
from lifelong.envs.options import Count, Range, Share, Weight
from lifelong.kernels.advantages import gae
from lifelong.kernels.ppo_loss import ppo_loss
from lifelong.replay.chunk import Chunk


class PPO(Objective):
    """Clipped PPO with generalised advantage estimation (Schulman et al. 2016) and exact final-observation bootstrap.

    Args:
        distribution: of the policy's actions.
        gamma: discount.
        lam: lambda of GAE.
        clip: clip range of the probability ratio.
        epochs: passes over a chunk.
        minibatches: groups of copies a pass is split into.
        value_weight: weight of the value loss.
        entropy_weight: weight of the entropy bonus.
        normalize_advantage: scale advantages to mean 0 and standard deviation 1, once a chunk.
    """

    SCHEDULED: ClassVar[tuple[str, ...]] = ("clip", "entropy_weight", "value_weight")

    def __init__(
        self,
        distribution: Distribution,
        *,
        gamma: Share = 0.99,
        lam: Share = 0.95,
        clip: Annotated[float, Range(0.0, 10.0, above=True)] = 0.2,
        epochs: Annotated[int, Range(1, 1000)] = 4,
        minibatches: Count = 4,
        value_weight: Weight = 0.5,
        entropy_weight: Weight = 0.01,
        normalize_advantage: bool = True,
    ) -> None:
        super().__init__(distribution)
        if epochs < 1 or minibatches < 1:
            raise ValueError(f"epochs ({epochs}) and minibatches ({minibatches}) must be at least 1")
        self.gamma, self.lam, self.clip = gamma, lam, clip
        self.epochs, self.minibatches = epochs, minibatches
        self.value_weight, self.entropy_weight = value_weight, entropy_weight
        self.normalize_advantage = normalize_advantage

    def prepare(self, chunk: Chunk) -> dict[str, Tensor]:
        advantage, target = gae(
            chunk.reward,
            chunk.value,
            chunk.bootstrap_value,
            chunk.terminated,
            chunk.truncated,
            chunk.final_value,
            gamma=self.gamma,
            lam=self.lam,
        )
        if self.normalize_advantage:
            advantage = standardized(advantage, chunk.weight, self.workers)
        return {"advantage": advantage, "target": target}

    def loss(self, outputs: Outputs, chunk: Chunk, prepared: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        log_prob, entropy = self.distribution.log_prob_and_entropy(outputs.policy, chunk.action)
        loss, statistics = ppo_loss(
            log_prob,
            entropy,
            outputs.value,
            chunk.log_prob,
            prepared["advantage"],
            prepared["target"],
            chunk.weight,
            self.mean(chunk).total,
            clip=self.clip,
            value_weight=self.value_weight,
            entropy_weight=self.entropy_weight,
        )
        return loss, statistics._asdict()
