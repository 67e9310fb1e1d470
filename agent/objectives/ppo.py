"""Proximal policy optimisation with the clipped objective (Schulman et al. 2017), for recurrent policies.

Minibatches are sets of copies, never of steps, so sequences stay whole; each starts from the state that acted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agent.modules.heads import Distribution
from agent.objectives.base import Metrics, Objective, explained_variance, standardized
from agent.policy import Outputs
from kernels.advantages import gae
from replay.chunk import Chunk


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

    def __init__(
        self,
        distribution: Distribution,
        *,
        gamma: float = 0.99,
        lam: float = 0.95,
        clip: float = 0.2,
        epochs: int = 4,
        minibatches: int = 4,
        value_weight: float = 0.5,
        entropy_weight: float = 0.01,
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
        advantage, target = prepared["advantage"], prepared["target"]
        log_prob, step_entropy = self.distribution.log_prob_and_entropy(outputs.policy, chunk.action)
        log_ratio = log_prob - chunk.log_prob
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        mean = self.mean(chunk)
        policy_loss = -mean(torch.minimum(ratio * advantage, clipped * advantage))
        value_loss = 0.5 * mean((outputs.value - target).square())
        entropy = mean(step_entropy)
        loss = policy_loss + self.value_weight * value_loss - self.entropy_weight * entropy
        with torch.no_grad():
            metrics = {
                "policy": policy_loss,
                "value": value_loss,
                "entropy": entropy,
                "explained_variance": explained_variance(outputs.value, target),
                "approximate_kl": mean(ratio - 1 - log_ratio),
                "clip_fraction": mean((ratio != clipped).to(ratio.dtype)),
                "max_ratio_error": (ratio - 1).abs().max(),
            }
        return loss, metrics
