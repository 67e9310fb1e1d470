"""An actor that composes the policies of earlier tasks (Malagón, Ceberio & Lozano 2024, "Self-Composing Policies for
Scalable Continual Reinforcement Learning", ICML; arXiv 2404.14870).

Shapes: K modules, one a task in the order of the tasks, D numbers of a query, key or hidden layer, P distribution
parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lifelong.agent.modules.heads import ActorHead, Categorical, Distribution, MultiCategorical


class ComposedHead(ActorHead):
    """Features [..., H] -> distribution parameters [..., P] of the module that `current` points at.

    Module k has the policies phi_j of those before it, and says

        v = sum_j a_j phi_j               a = softmax(q (W (phi_j + e_j)) / sqrt(D))            output attention
        u = sum_j b_j U p_j               b = softmax(r (V (p_j + e_j)) / sqrt(D))  p = (phi, v)  input attention
        out = v + B relu(A h + u + bias)  phi_k = softmax(out)                              internal policy

    (section 4.2), with queries q and r that are linear in the features h, and e_j the sines and cosines of positions.
    The first module has nothing to attend to. The values of the input attention and the first layer of the internal
    policy, which are two matrices in a row in the paper, are one, U. All of a module that reads h is linear in it, so
    the read-out of the policy is one product, as with other heads. Policies of continuous actions are their means.

    Args:
        input_size: H.
        distribution: of the actions.
        modules: K.
    """

    HIDDEN = 32

    def __init__(self, input_size: int, distribution: Distribution, modules: int) -> None:
        super().__init__(input_size, distribution, 1)
        self.modules_count, self.counts = modules, counts_of(distribution)
        K, D, P = modules, self.HIDDEN, self.outputs
        #: queries of both attentions and the hidden layer, module by module
        self.linear = nn.Linear(input_size, K * 3 * D)
        nn.init.zeros_(self.linear.bias)
        self.key_out = nn.Parameter(_drawn(K * D, P, 1.0, K))
        self.key_in = nn.Parameter(_drawn(K * D, P, 1.0, K))
        self.value_in = nn.Parameter(_drawn(K * D, P, 1.0, K))
        self.weight = nn.Parameter(_drawn(K * P, D, 0.01, K))
        self.bias = nn.Parameter(torch.zeros(K * P))
        if self.gaussian:
            self.log_std = nn.Parameter(torch.zeros(K, P))
        #: 1 for the module that acts
        self.current = nn.Parameter(torch.eye(K)[0])
        self.register_buffer("positions", encoded_positions(K, P), persistent=False)
        self.positions: Tensor

    def parameters_of(self, params: Tensor, task: Tensor) -> Tensor:
        """Distribution parameters [..., P] of the linear layer's outputs [..., K 3 D]; the task is not read."""
        K = self.modules_count
        queries = params.unflatten(-1, (K, 3, self.HIDDEN))
        said: list[Tensor] = []
        policies: list[Tensor] = []
        for k in range(K):
            said.append(self.module(k, queries[..., k, :, :], policies))
            policies.append(self.policy_of(said[k]))
        params = (torch.stack(said, -1) * self.current).sum(-1)
        if self.gaussian:
            log_std = (self.log_std * self.current.unsqueeze(1)).sum(0)
            params = torch.cat([params, log_std.expand_as(params)], -1)
        return params

    def module(self, k: int, queries: Tensor, policies: list[Tensor]) -> Tensor:
        """What module k says [..., P], of its rows of the read-out [..., 3, D] and the policies before it."""
        q, r, hidden = queries.unbind(-2)
        composed: Tensor | None = None
        if policies:
            phi = torch.stack(policies, -2)
            composed = attention(q, self.block(self.key_out, k), phi, self.positions[:k]).matmul(phi).squeeze(-2)
            p = torch.cat([phi, composed.unsqueeze(-2)], -2)
            read = attention(r, self.block(self.key_in, k), p, self.positions[: k + 1]).matmul(p).squeeze(-2)
            hidden = hidden + nn.functional.linear(read, self.block(self.value_in, k))
        inside = nn.functional.linear(hidden.relu(), self.block(self.weight, k), self.block(self.bias, k))
        return inside if composed is None else composed + inside

    def block(self, parameter: Tensor, k: int) -> Tensor:
        """The rows of module k."""
        size = len(parameter) // self.modules_count
        return parameter[k * size : (k + 1) * size]

    def policy_of(self, said: Tensor) -> Tensor:
        """phi: probabilities where there are logits, else what was said."""
        if not self.counts:
            return said
        return torch.cat([part.softmax(-1) for part in said.split(self.counts, -1)], -1)


def counts_of(distribution: Distribution) -> list[int]:
    """How many choices each part of an action has that is drawn from logits."""
    if isinstance(distribution, MultiCategorical):
        return list(distribution.counts)
    return [distribution.size] if type(distribution) is Categorical else []


def attention(query: Tensor, keys_DP: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Weights [..., 1, n] of values [..., n, P] for queries [..., D]."""
    keys = nn.functional.linear(values + positions, keys_DP)
    score = keys.matmul(query.unsqueeze(-1)).squeeze(-1) / math.sqrt(len(keys_DP))
    return score.softmax(-1).unsqueeze(-2)


def encoded_positions(count: int, width: int) -> Tensor:
    """Sines and cosines [count, width] of positions (Vaswani et al. 2017, section 3.5); if odd the last is 0."""
    position = torch.arange(count).unsqueeze(1)
    angle = position / 10_000 ** (2 * torch.arange(width // 2) / width)
    found = torch.zeros(count, width)
    found[:, 0 : 2 * (width // 2) : 2], found[:, 1 : 2 * (width // 2) : 2] = angle.sin(), angle.cos()
    return found


def _drawn(rows: int, columns: int, gain: float, blocks: int) -> Tensor:
    """Orthogonal blocks, one below the other."""
    return torch.cat([nn.init.orthogonal_(torch.empty(rows // blocks, columns), gain) for _ in range(blocks)])
