"""Acting by the values of actions, epsilon-greedily, each copy with its own share; actions that are predictions."""

from __future__ import annotations

import math

import gymnasium
import torch
from torch import Tensor

from lifelong.agent.modules.heads import NEGATIVE, Categorical, Distribution


class EpsilonGreedy(Categorical):
    """Discrete(n) by value: parameters are the values Q [..., n] of the actions, in a dueling architecture (Wang et al.
    2016, eq. 9): Q = V + A - mean A over the actions that are allowed; the actor gives A, the critic V.

    Copy i of B acts greedily but for a share epsilon^(1 + ladder i / (B - 1)) of its steps, in which it draws from the
    allowed actions alike (Horgan et al. 2018, Ape-X, section 4.1). For whoever asks for probabilities (KL, entropy,
    Fisher information) softmax(Q / temperature) stands for the policy.

    Args:
        n: actions.
        epsilon: of the first copy.
        ladder: alpha; 0: all copies explore alike.
        temperature: of the softmax.
    """

    #: a target needs the mask of the next observation, which chunks do not have
    maskable = False

    def __init__(self, n: int, epsilon: float = 0.4, ladder: float = 7.0, temperature: float = 0.1) -> None:
        super().__init__(n)
        self.epsilon, self.ladder, self.temperature = epsilon, ladder, temperature

    def combined(self, advantage: Tensor, value: Tensor, action_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Q [..., n] and its maximum [...] of A [..., n] and V [...]; `action_mask` [..., n], or [..., 0]."""
        if action_mask.shape[-1]:
            allowed = action_mask.to(advantage.dtype)
            mean = (advantage * allowed).sum(-1, keepdim=True) / allowed.sum(-1, keepdim=True).clamp(min=1.0)
            q = self.mask(value.unsqueeze(-1) + advantage - mean, action_mask)
        else:
            q = value.unsqueeze(-1) + advantage - advantage.mean(-1, keepdim=True)
        return q, q.max(-1).values

    def epsilons(self, params: Tensor) -> Tensor:
        """The share of explored steps of every copy, [B], of params [..., B, n]."""
        B = params.shape[-2]
        place = torch.arange(B, device=params.device, dtype=params.dtype) / max(1, B - 1)
        return torch.pow(self.epsilon, 1.0 + self.ladder * place)

    def act(self, params: Tensor, generator: torch.Generator | None) -> Tensor:
        lead = params.shape[:-1]
        uniform = torch.rand(*lead, self.size + 1, generator=generator, device=params.device, dtype=params.dtype)
        random = uniform[..., 1:].masked_fill(params <= NEGATIVE / 2, -1.0).argmax(-1)
        return torch.where(uniform[..., 0] < self.epsilons(params), random, params.argmax(-1))

    def act_log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        epsilon = self.epsilons(params)
        allowed = (params > NEGATIVE / 2).sum(-1).clamp(min=1)
        greedy = action == params.argmax(-1)
        return torch.log(epsilon / allowed + (1.0 - epsilon) * greedy)

    def sample(self, params: Tensor, generator: torch.Generator | None) -> Tensor:
        return super().sample(params / self.temperature, generator)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        return super().log_prob(params / self.temperature, action)

    def entropy(self, params: Tensor) -> Tensor:
        return super().entropy(params / self.temperature)

    def log_prob_and_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return super().log_prob_and_entropy(params / self.temperature, action)

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        return super().kl(params / self.temperature, other / self.temperature)


class Predictions(Distribution):
    """Box [K]: an action is K predictions, and nothing is drawn. For whoever asks for probabilities it is a Gaussian of
    unit variance about them, so that KL is half the squared distance. Parameters are the predictions, [..., K].

    Args:
        space: of the actions.
    """

    action_dtype = torch.float32

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        (self.size,) = space.shape
        self.action_shape = (self.size,)
        self.low, self.high = torch.as_tensor(space.low), torch.as_tensor(space.high)

    def sample(self, params: Tensor, generator: torch.Generator | None) -> Tensor:
        return params

    def mode(self, params: Tensor) -> Tensor:
        return params

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        return -0.5 * (action - params).square().sum(-1) - 0.5 * self.size * math.log(2 * math.pi)

    def entropy(self, params: Tensor) -> Tensor:
        return torch.full_like(params[..., 0], 0.5 * self.size * math.log(2 * math.pi * math.e))

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        return 0.5 * (params - other).square().sum(-1)

    def tempered(self, params: Tensor, temperature: float) -> Tensor:
        return params

    def features(self, action: Tensor) -> Tensor:
        return action

    @property
    def feature_size(self) -> int:
        return self.size

    def clip(self, action: Tensor) -> Tensor:
        self.low, self.high = self.low.to(action.device), self.high.to(action.device)
        return torch.clamp(action, self.low, self.high)
