"""C-CHAIN: continual churn approximated reduction.

Tang, Obando-Ceron, Castro, Courville & Berseth 2025, *Mitigating Plasticity Loss in Continual Reinforcement Learning by
Reducing Churn* (ICML, section 4), after Tang & Berseth 2024 (NeurIPS, *Improving Deep Reinforcement Learning by
Reducing the Chain Effect of Value and Policy Churn*, eqs. 5 and 6).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.policy import Outputs
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.envs.options import Count, Weight
from lifelong.replay.chunk import Chunk


class CChain(Strategy):
    """Adds policy_weight KL(pi_before || pi) + value_weight (V - V_before)^2 on data that is not learned from now.

    `before` is the policy one update ago. An update also moves what the policy says elsewhere (churn); a policy that
    has churned for long has gradients that are nearly alike for all data, and learns no more. The reference data are
    sequences drawn from the chunk before this one, with the memory that they started from, as a constant; so their
    gradient is truncated at their start. The live copies' gradient is as exact as ever.

    Args:
        policy_weight: lambda of the policy's churn; smaller steps of the optimiser ask for a larger one.
        value_weight: lambda of the value's; the paper's PPO agents have 0.
        batch: sequences of reference data, by all workers together.
    """

    data_parallel: ClassVar[str] = "shard"

    def __init__(self, *, policy_weight: Weight = 1.0, value_weight: Weight = 0.0, batch: Count = 16) -> None:
        self.policy_weight, self.value_weight, self.batch = policy_weight, value_weight, batch
        self.reference: Chunk | None = None
        self.metrics: dict[str, Tensor] = {}

    def replay_sequences(self) -> int:
        return self.batch

    def setup(self, ctx: Context, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.share = max(1, self.batch // ctx.workers.count)
        self.before = copy.deepcopy(ctx.policy).requires_grad_(False)
        self.behind = dict(self.before.named_parameters())

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        if self.reference is None:
            return None
        data, mean = self.reference, ctx.objective.mean(self.reference)
        with torch.no_grad():
            said = self.before.sequence(data, data.state)
        says = ctx.policy.sequence(data, data.state)
        policy = mean(ctx.policy.distribution.kl(said.policy, says.policy))
        value = mean((says.value - said.value).square())
        self.metrics = {"policy_churn": policy.detach(), "value_churn": value.detach()}
        return self.policy_weight * policy + self.value_weight * value

    @torch.no_grad()
    def transform_gradients(self, ctx: Context, gradients: Mapping[str, Tensor]) -> None:
        for name, parameter in ctx.policy.named_parameters():
            self.behind[name].copy_(parameter)

    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        copies = torch.randperm(experience.chunk.copies, generator=self.generator)[: self.share]
        self.reference = experience.chunk.select(copies.to(ctx.device))

    @torch.no_grad()
    def on_reset(self, ctx: Context, entries: Mapping[str, Tensor]) -> None:
        """A reset is no churn."""
        for name, mask in entries.items():
            self.behind[name].copy_(torch.where(mask, ctx.policy.get_parameter(name), self.behind[name]))

    def report(self) -> dict[str, float]:
        return {name: float(x) for name, x in self.metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.get_state(),
            "before": dict(self.behind),
            "reference": None if self.reference is None else dict(vars(self.reference)),
            "metrics": self.metrics,
        }

    @torch.no_grad()
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.generator.set_state(saved["generator"])
        for name, parameter in saved["before"].items():
            self.behind[name].copy_(grown(parameter, self.behind[name]))
        self.metrics = saved["metrics"]
        data, policy = saved["reference"], self.before
        if data is not None:  # observations and actions are others where tasks of other spaces have come
            same = (
                data["obs"].shape[2:] == policy.encoder.space.shape
                and data["policy"].shape[2] == policy.distribution.size
            )
            device = policy.critic.weight.device
            data = {name: x.to(device) for name, x in data.items()} if same else None
        self.reference = None if data is None else Chunk(**data)
