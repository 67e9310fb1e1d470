"""Watkins's Q(lambda): Q-learning with traces that end at exploratory actions (Watkins 1989; with deep networks
Elsayed, Vasan & Mahmood 2024, arXiv 2410.14606, "Streaming Deep Reinforcement Learning Finally Works")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import gymnasium
import torch

from lifelong.agent.modules.heads import Distribution
from lifelong.agent.modules.values import EpsilonGreedy
from lifelong.agent.objectives.base import Metrics
from lifelong.agent.objectives.streaming import LAMBDA, Rows, Streaming
from lifelong.agent.policy import Outputs
from lifelong.envs.options import Range, Share, Weight
from lifelong.replay.chunk import Chunk

Temperature = Annotated[float, Range(0.0, 1e6, above=True)]


class QLambda(Streaming):
    """Semi-gradient Q(lambda), acted epsilon-greedily, with a dueling architecture:

        delta = r + gamma max_a Q(s', a) - Q(s, a)
        z     = gamma lambda [a is greedy] z + grad Q(s, a)

    so what came before an exploratory action is not credited with what came of it (Sutton & Barto 1998, section 7.6;
    stream-x ends the trace one step later). What the memory owes to its past is not cut.

    Args:
        distribution: values of discrete actions.
        gamma: discount.
        lam: lambda of the traces.
        epsilon: share of random actions; may be a schedule.
        ladder: copy i of B has the share epsilon^(1 + ladder i / (B - 1)).
        temperature: softmax(Q / temperature) stands for the policy where a strategy asks for probabilities.
    """

    SCHEDULED = ("epsilon",)

    def __init__(
        self,
        distribution: Distribution,
        *,
        gamma: Share = 0.99,
        lam: Share = LAMBDA,
        epsilon: Share = 0.1,
        ladder: Weight = 0.0,
        temperature: Temperature = 0.1,
    ) -> None:
        super().__init__(distribution, gamma=gamma, lam=lam)
        if not isinstance(distribution, EpsilonGreedy):
            raise ValueError("an objective of action values needs a distribution of values")
        self.by_values = distribution
        self.by_values.ladder, self.by_values.temperature = ladder, temperature
        self.epsilon = epsilon

    @property
    def epsilon(self) -> float:
        """Share of random actions."""
        return self.by_values.epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self.by_values.epsilon = value

    @classmethod
    def acts_by(cls, space: gymnasium.Space[Any], squash: str, options: Mapping[str, Any]) -> Distribution:
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise ValueError(
                f"an objective of action values compares all actions, which {space} has too many of; it needs Discrete "
                "actions, so use objective ac_lambda here"
            )
        names = ("epsilon", "ladder", "temperature")
        known = {name: options[name] for name in names if isinstance(options.get(name), (int, float))}
        return EpsilonGreedy(int(space.n), **known)

    def rows(self, outputs: Outputs, chunk: Chunk) -> tuple[Rows, Metrics]:
        q_BA = outputs.policy[0]
        q_B1 = q_BA.gather(1, chunk.action[0].unsqueeze(1))
        with torch.no_grad():
            after_B1, final_B1 = chunk.bootstrap_value.unsqueeze(1), chunk.final_value[0].unsqueeze(1)
            error_B1 = self.target(chunk, chunk.reward[0].unsqueeze(1), after_B1, final_B1) - q_B1
            greedy_B1 = q_B1 >= q_BA.max(1, keepdim=True).values
            keep_B1 = self.discount_of(q_B1) * self.lam * greedy_B1
            mean = self.mean(chunk)
            metrics = {"q": mean(q_B1.T), "greedy": mean(greedy_B1.to(q_B1.dtype).T)}
        return Rows(q_B1, error_B1, keep_B1), metrics
