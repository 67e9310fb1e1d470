"""Recurrent Q-learning (R2D2: Kapturowski et al. 2019, *Recurrent experience replay in distributed reinforcement
learning*, sections 2.3 and 3, with the rescaling of Pohlen et al. 2018, *Observe and look further*, section 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import gymnasium
import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.modules.heads import Distribution
from lifelong.agent.modules.values import EpsilonGreedy
from lifelong.agent.objectives.base import Metrics, Objective
from lifelong.agent.policy import Outputs, Policy
from lifelong.envs.options import Range, Share, Weight
from lifelong.replay.chunk import Chunk

EPSILON = 1e-3  # of the rescaling


class QLearning(Objective):
    """Double dueling n-step Q-learning with a target network, acted epsilon-greedily:

        y_t = h(sum_{k<n} gamma^k r_{t+k} + gamma^n h^-1(Q'(s_{t+n}, argmax_a Q(s_{t+n}, a))))
        L   = mean of (Q(s_t, a_t) - y_t)^2 / 2

    with Q' of the target network. Where the chunk ends before t + n, the sum does, too, and bootstraps from the
    observation after it; a truncated episode bootstraps from its true last observation, a terminated one from nothing.
    Within n steps the data are taken for those of the greedy policy, as in R2D2.

    It learns from the live chunk alone, or with any strategy that replays beside it; R2D2 is `er` with `sampling`
    prioritised and a `burn_in`. Under `rtrl` the live copies have their carry. The target network reads a sequence from
    the same memory as the policy, that of acting or after the burn-in, and is not itself run through the burn-in.

    Args:
        distribution: values of discrete actions.
        gamma: discount.
        n_step: n.
        rescale: h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x; without it h is the identity.
        target_rate: the target network moves by this share of the way to the policy after every step of the optimiser;
            1: it is the policy.
        epsilon: share of random actions of the first copy.
        ladder: copy i of B has the share epsilon^(1 + ladder i / (B - 1)).
        temperature: softmax(Q / temperature) stands for the policy where a strategy asks for probabilities.
    """

    off_policy: ClassVar[bool] = True
    says_error: ClassVar[bool] = True
    reads_after: ClassVar[bool] = True
    #: see `Policy.after`
    dense: bool | None = None

    def __init__(
        self,
        distribution: Distribution,
        *,
        gamma: Share = 0.99,
        n_step: Annotated[int, Range(1, 1000)] = 5,
        rescale: bool = True,
        target_rate: Annotated[float, Range(0.0, 1.0, above=True)] = 0.01,
        epsilon: Share = 0.4,
        ladder: Weight = 7.0,
        temperature: Annotated[float, Range(0.0, 1e6, above=True)] = 0.1,
    ) -> None:
        super().__init__(distribution)
        if not isinstance(distribution, EpsilonGreedy):
            raise ValueError("q_learning needs a distribution of values")
        self.gamma, self.n_step, self.rescale, self.target_rate = gamma, n_step, rescale, target_rate

    @classmethod
    def acts_by(cls, space: gymnasium.Space[Any], squash: str, options: Mapping[str, Any]) -> Distribution:
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise ValueError(
                f"objective q_learning compares the values of all actions, which {space} has too many of; it needs "
                "Discrete actions, so use objective actor_critic or ppo here"
            )
        known = {name: options[name] for name in ("epsilon", "ladder", "temperature") if name in options}
        return EpsilonGreedy(int(space.n), **known)

    def setup(self, policy: Policy) -> None:
        self.policy = policy
        self.target = copy.deepcopy(policy).requires_grad_(False)
        self._moving: list[Tensor] = list(self.target.parameters())
        self._towards: list[Tensor] = list(policy.parameters())

    @torch.no_grad()
    def stepped(self) -> None:
        torch._foreach_lerp_(self._moving, self._towards, self.target_rate)

    def loss(self, outputs: Outputs, chunk: Chunk, prepared: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            target = self.target.sequence(chunk, chunk.state)
            assert outputs.after is not None  # this objective reads it
            assert target.after is not None
            after, after_target = (read(read=_values, dense=self.dense) for read in (outputs.after, target.after))
            now = _double(outputs.policy.detach(), target.policy)
            bootstrap_B, final_TB = (_double(q, q_target) for q, q_target in zip(after, after_target, strict=True))
            if self.rescale:
                now, bootstrap_B, final_TB = unscaled(now), unscaled(bootstrap_B), unscaled(final_TB)
            following_TB = torch.cat([now[1:], bootstrap_B.unsqueeze(0)])
            y = n_step_returns(
                chunk.reward, following_TB, chunk.terminated, chunk.truncated, final_TB, self.gamma, self.n_step
            )
            y = rescaled(y) if self.rescale else y
        q = outputs.policy.gather(-1, chunk.action.unsqueeze(-1)).squeeze(-1)
        mean, error = self.mean(chunk), q - y
        loss = 0.5 * mean(error.square())
        outputs.error = error
        return loss, {"q": mean(q), "target": mean(y)}

    def state_dict(self) -> dict[str, Any]:
        return {"target": dict(self.target.state_dict())}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        now = self.policy.state_dict()
        self.target.load_state_dict({name: grown(x, now[name]) for name, x in saved.get("target", now).items()})


def _values(outputs: Outputs) -> Tensor:
    return outputs.policy


def _double(q: Tensor, q_target: Tensor) -> Tensor:
    """The target network's value [...] of the best action by the policy (van Hasselt et al. 2016)."""
    return q_target.gather(-1, q.argmax(-1, keepdim=True)).squeeze(-1)


def rescaled(x: Tensor) -> Tensor:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + epsilon x."""
    return x.sign() * ((x.abs() + 1.0).sqrt() - 1.0) + EPSILON * x


def unscaled(x: Tensor) -> Tensor:
    """The inverse of `rescaled` (Pohlen et al. 2018, proposition A.2)."""
    root = (1.0 + 4.0 * EPSILON * (x.abs() + 1.0 + EPSILON)).sqrt()
    return x.sign() * (((root - 1.0) / (2.0 * EPSILON)).square() - 1.0)


def n_step_returns(
    reward_TB: Tensor,
    following_TB: Tensor,
    terminated_TB: Tensor,
    truncated_TB: Tensor,
    final_TB: Tensor,
    gamma: float,
    n: int,
) -> Tensor:
    """sum_{k<m} gamma^k r_{t+k} + gamma^m v, [T, B], over m <= n steps: fewer where the episode or the chunk ends.

    Args:
        reward_TB: r.
        following_TB: value of the observation after each step, in the last row that after the chunk.
        terminated_TB: v is 0 there.
        truncated_TB: v is `final_TB` there.
        final_TB: value of the true last observation.
        gamma: discount.
        n: steps, at most.
    """
    value_TB = torch.where(truncated_TB, final_TB, following_TB).masked_fill(terminated_TB, 0.0)
    stop_TB = terminated_TB | truncated_TB
    stop_TB[-1].fill_(True)
    returns_TB = reward_TB + gamma * value_TB
    for _ in range(min(n, len(reward_TB)) - 1):
        returns_TB = reward_TB + gamma * torch.where(stop_TB, value_TB, returns_TB.roll(-1, 0))
    return returns_TB
