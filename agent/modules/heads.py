"""Policy distributions as plain functions of one parameter tensor, and the heads that produce it.

The parameters of a distribution are one tensor [..., P] (logits, or mean and log standard deviation), so that they can
be stored in replay, cloned, and sliced like everything else. Sampling takes an explicit generator: evaluation never
touches the randomness of training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from lifelong.agent.moments import beginning, moments
from lifelong.kernels.categorical import categorical_log_prob, categorical_sample

NEGATIVE = -1e9  # logit of a masked action: zero probability, finite gradients


class Distribution:
    """A family of distributions over one action space. Methods broadcast over leading dimensions.

    `size` is P, the number of parameters; an action is `[...]` (Discrete) or `[..., A]`.
    """

    size: int
    action_shape: tuple[int, ...]
    action_dtype: torch.dtype
    #: whether single actions can be masked, other ones at every step
    maskable: bool = False

    def sample(self, params: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw one action a row."""
        raise NotImplementedError

    def act(self, params: Tensor, generator: torch.Generator | None) -> Tensor:
        """The actions [B] of a step that explores, of params [B, P] of all copies: a draw."""
        return self.sample(params, generator)

    def act_log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """log-probability [T, B] of what `act` did, of params [T, B, P] of all copies."""
        return self.log_prob(params, action)

    def mode(self, params: Tensor) -> Tensor:
        """The most likely action."""
        raise NotImplementedError

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """log p(action), [...]."""
        raise NotImplementedError

    def entropy(self, params: Tensor) -> Tensor:
        """Entropy in nats, [...]."""
        raise NotImplementedError

    def log_prob_and_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Both at once, for families that share work between them."""
        return self.log_prob(params, action), self.entropy(params)

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        """KL(p(params) || p(other)) in nats, [...]."""
        raise NotImplementedError

    def tempered(self, params: Tensor, temperature: float) -> Tensor:
        """The parameters of p^(1 / temperature), normalised: flatter above 1."""
        raise NotImplementedError

    def mask(self, params: Tensor, action_mask: Tensor) -> Tensor:
        """`params` with the actions outside `action_mask` [..., A] made impossible."""
        raise ValueError(f"{type(self).__name__} actions cannot be masked")

    def features(self, action: Tensor) -> Tensor:
        """The action as policy input [..., F]: one-hot, or the raw vector."""
        raise NotImplementedError

    @property
    def feature_size(self) -> int:
        """F of `features`."""
        raise NotImplementedError

    def clip(self, action: Tensor) -> Tensor:
        """The action as the environment accepts it."""
        return action


class Categorical(Distribution):
    """Discrete(n): parameters are logits [..., n]; actions are int64 [...]."""

    maskable = True
    action_dtype = torch.int64
    action_shape = ()

    def __init__(self, n: int) -> None:
        self.size = n

    def sample(self, params: Tensor, generator: torch.Generator | None) -> Tensor:
        lead = params.shape[:-1]
        uniform = torch.rand(lead, generator=generator, device=params.device, dtype=params.dtype)
        if len(lead) == 1:
            return categorical_sample(params, uniform)
        return categorical_sample(params.reshape(-1, self.size), uniform.flatten()).view(lead)

    def mode(self, params: Tensor) -> Tensor:
        return params.argmax(-1)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        return categorical_log_prob(params, action)[0]

    def entropy(self, params: Tensor) -> Tensor:
        log_p = torch.log_softmax(params, -1)
        return -(log_p.exp() * log_p).sum(-1)

    def log_prob_and_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return categorical_log_prob(params, action)

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        log_p, log_q = torch.log_softmax(params, -1), torch.log_softmax(other, -1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def tempered(self, params: Tensor, temperature: float) -> Tensor:
        return params / temperature

    def mask(self, params: Tensor, action_mask: Tensor) -> Tensor:
        return params.masked_fill(~action_mask, NEGATIVE)

    def features(self, action: Tensor) -> Tensor:
        return nn.functional.one_hot(action, self.size).float()

    @property
    def feature_size(self) -> int:
        return self.size


class MultiCategorical(Distribution):
    """MultiDiscrete([n_1, ..., n_A]): parameters are all logits side by side; actions are int64 [..., A].

    The A distributions are independent: log-probabilities, entropies and divergences are sums over them. Where all have
    equally many choices they are one `Categorical` with a dimension more. A part of an action that is -1 (of a target,
    where nothing was asked) is left out of `log_prob`.
    """

    maskable = True
    action_dtype = torch.int64

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts
        self.alike = Categorical(counts[0]) if len(set(counts)) == 1 else None
        self.parts = [Categorical(n) for n in counts]
        self.size = sum(counts)
        self.action_shape = (len(counts),)

    def _each(self, params: Tensor) -> Any:
        return zip(self.parts, params.split(self.counts, -1), strict=True)

    def _rows(self, params: Tensor) -> Tensor:
        """[..., A, n] where all have n choices."""
        return params.unflatten(-1, (len(self.counts), -1))

    def sample(self, params: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.alike:
            return self.alike.sample(self._rows(params), generator)
        return torch.stack([part.sample(p, generator) for part, p in self._each(params)], -1)

    def mode(self, params: Tensor) -> Tensor:
        if self.alike:
            return self.alike.mode(self._rows(params))
        return torch.stack([part.mode(p) for part, p in self._each(params)], -1)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        there = action >= 0
        if self.alike:
            return (self.alike.log_prob(self._rows(params), action.clamp(min=0)) * there).sum(-1)
        each = [part.log_prob(p, action[..., i].clamp(min=0)) for i, (part, p) in enumerate(self._each(params))]
        return (torch.stack(each, -1) * there).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        if self.alike:
            return self.alike.entropy(self._rows(params)).sum(-1)
        return torch.stack([part.entropy(p) for part, p in self._each(params)]).sum(0)

    def log_prob_and_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        if self.alike:
            log_prob, entropy = self.alike.log_prob_and_entropy(self._rows(params), action)
            return log_prob.sum(-1), entropy.sum(-1)
        both = [part.log_prob_and_entropy(p, action[..., i]) for i, (part, p) in enumerate(self._each(params))]
        return torch.stack([log_prob for log_prob, _ in both]).sum(0), torch.stack([h for _, h in both]).sum(0)

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        if self.alike:
            return self.alike.kl(self._rows(params), self._rows(other)).sum(-1)
        others = other.split(self.counts, -1)
        return torch.stack([part.kl(p, q) for (part, p), q in zip(self._each(params), others, strict=True)]).sum(0)

    def tempered(self, params: Tensor, temperature: float) -> Tensor:
        return params / temperature

    def mask(self, params: Tensor, action_mask: Tensor) -> Tensor:
        return params.masked_fill(~action_mask, NEGATIVE)

    def features(self, action: Tensor) -> Tensor:
        if self.alike:
            return self.alike.features(action).flatten(-2)
        return torch.cat([part.features(action[..., i]) for i, part in enumerate(self.parts)], -1)

    @property
    def feature_size(self) -> int:
        return self.size


class Gaussian(Distribution):
    """Box [A]: parameters are mean and log standard deviation, [..., 2A].

    Actions are stored as they were drawn, unbounded, and clipped to the bounds to act; so to the learner clipping
    belongs to the environment, and the log-probability is exactly that of the draw.
    """

    action_dtype = torch.float32

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        (self.actions,) = space.shape
        self.size = 2 * self.actions
        self.action_shape = (self.actions,)
        self.low = torch.as_tensor(space.low, dtype=torch.float32)
        self.high = torch.as_tensor(space.high, dtype=torch.float32)
        #: whether every bound is -1 or 1, so that actions can be squashed
        self.bounded = bool((space.low == -1).all() and (space.high == 1).all())

    def sample(self, params: Tensor, generator: torch.Generator | None) -> Tensor:
        mean, log_std = params.chunk(2, -1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + log_std.exp() * noise

    def mode(self, params: Tensor) -> Tensor:
        return params.chunk(2, -1)[0]

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        mean, log_std = params.chunk(2, -1)
        z = (action - mean) * torch.exp(-log_std)
        return -(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        return (params.chunk(2, -1)[1] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, params: Tensor, other: Tensor) -> Tensor:
        (mean_p, log_p), (mean_q, log_q) = params.chunk(2, -1), other.chunk(2, -1)
        variance = (2 * (log_p - log_q)).exp() + ((mean_p - mean_q) * torch.exp(-log_q)).square()
        return (log_q - log_p + 0.5 * (variance - 1)).sum(-1)

    def tempered(self, params: Tensor, temperature: float) -> Tensor:
        mean, log_std = params.chunk(2, -1)
        return torch.cat([mean, log_std + 0.5 * math.log(temperature)], -1)

    def features(self, action: Tensor) -> Tensor:
        return self.clip(action)

    @property
    def feature_size(self) -> int:
        return self.actions

    def clip(self, action: Tensor) -> Tensor:
        if self.low.device != action.device:  # once: a copy at every step would wait for the device
            self.low, self.high = self.low.to(action.device), self.high.to(action.device)
        return torch.clamp(action, self.low, self.high)


class TanhGaussian(Gaussian):
    """Box [A] with bounds -1 and 1: a Gaussian draw u, of which the environment gets tanh(u).

    The stored action is u, from which nothing has to be inverted: log p(tanh u) = log N(u) - sum log(1 - tanh(u)^2)
    (Haarnoja et al. 2018, "Soft Actor-Critic", appendix C). KL is that of the Gaussians, as squashing is one-to-one.
    The entropy is the Gaussian's plus E log(1 - tanh(u)^2), by quadrature. `mode` is the median of what is squashed.
    """

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        super().__init__(space)
        nodes, weights = np.polynomial.hermite_e.hermegauss(32)  # means under N(0, 1)
        self.nodes, self.weights = torch.as_tensor(nodes), torch.as_tensor(weights / weights.sum())

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        return super().log_prob(params, action) - _log_slope(action).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        mean, log_std = params.chunk(2, -1)
        if self.nodes.device != mean.device or self.nodes.dtype != mean.dtype:  # once
            self.nodes, self.weights = self.nodes.to(mean), self.weights.to(mean)
        draws = mean.unsqueeze(-1) + log_std.exp().unsqueeze(-1) * self.nodes
        return super().entropy(params) + (_log_slope(draws) * self.weights).sum((-2, -1))

    def clip(self, action: Tensor) -> Tensor:
        return torch.tanh(action)


def _log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), stable for large |u|."""
    return 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))


def distribution_of(space: gymnasium.Space[Any], squash: str = "none") -> Distribution:
    """The distribution family of an action space.

    Args:
        space: Discrete or MultiDiscrete, both starting at 0, or a one-dimensional Box.
        squash: `tanh`: continuous actions are squashed to their bounds; `none`: clipped.

    Raises:
        ValueError: another space, or one that cannot be squashed.
    """
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1:
        clipped = Gaussian(space)
        if squash == "tanh" and not clipped.bounded:
            raise ValueError(f"policy.squash is tanh, but the actions {space} are not bounded; set it to none")
        return TanhGaussian(space) if squash == "tanh" else clipped
    if squash != "none":
        raise ValueError(f"policy.squash is {squash}, which is for continuous actions, not for {space}; set it to none")
    if isinstance(space, gymnasium.spaces.Discrete):
        return Categorical(int(space.n))
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return MultiCategorical([int(n) for n in space.nvec.flatten()])
    raise ValueError(f"no policy head for action space {space}; valid: Discrete, MultiDiscrete, one-dimensional Box")


class ActorHead(nn.Module):
    """Features [..., H] -> distribution parameters [..., P]; one row block per task when `tasks` > 1.

    A Gaussian's log standard deviation is a free parameter, not a function of the state.
    """

    def __init__(self, input_size: int, distribution: Distribution, tasks: int = 1) -> None:
        super().__init__()
        self.gaussian = isinstance(distribution, Gaussian)
        self.outputs = distribution.size // 2 if self.gaussian else distribution.size
        self.tasks = tasks
        self.linear = nn.Linear(input_size, self.outputs * tasks)
        nn.init.orthogonal_(self.linear.weight, 0.01)
        nn.init.zeros_(self.linear.bias)
        if self.gaussian:
            self.log_std = nn.Parameter(torch.zeros(tasks, self.outputs))

    def forward(self, y: Tensor, task: Tensor) -> Tensor:
        """Distribution parameters [..., P] of features y [..., H]."""
        return self.parameters_of(self.linear(y), task)

    def parameters_of(self, params: Tensor, task: Tensor) -> Tensor:
        """Distribution parameters [..., P] of the linear layer's outputs.

        `task` [...] int64 chooses the head; it is not read when there is one head.
        """
        if self.tasks > 1:
            params = params.unflatten(-1, (self.tasks, self.outputs))
            index = task[..., None, None].expand(*task.shape, 1, self.outputs)
            params = params.gather(-2, index).squeeze(-2)
        if self.gaussian:
            log_std = self.log_std[task] if self.tasks > 1 else self.log_std[0].expand_as(params)
            params = torch.cat([params, log_std], -1)
        return params


class Heads:
    """The parameters of heads of which every task has its own, rows of one tensor each; with one head it does nothing.

    Args:
        parameters: tensors whose first dimension is blocks of rows, one a task, and how many tasks these are.
    """

    def __init__(self, parameters: list[tuple[nn.Parameter, int]]) -> None:
        self.parameters = [(parameter, tasks) for parameter, tasks in parameters if tasks > 1]

    @contextmanager
    def idle_kept(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Around a step of the optimiser: a head without a gradient does not move, nor does its optimiser state.

        Momentum and weight decay would move it while another task is trained. Nothing waits for the device.
        """
        before = []
        for parameter, rows in self._idle():
            held = {name: x.clone() for name, x in moments(optimizer, parameter).items()}
            before.append((parameter, rows, parameter.detach().clone(), held))
        yield
        for parameter, idle, value, held in before:
            parameter.data.copy_(self._merge(idle, value, parameter.data))
            for name, state in moments(optimizer, parameter).items():
                state.copy_(self._merge(idle, held.get(name, beginning(name, value)), state))

    def still(self, deltas: Mapping[int, Tensor]) -> None:
        """Take idle heads out of steps that others have changed since; `id` of a parameter -> its step."""
        for parameter, idle in self._idle():
            step = deltas[id(parameter)]
            step.copy_(self._merge(idle, torch.zeros_like(step), step))

    def _idle(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Parameters with a gradient, and which heads have none in it, bool [tasks]."""
        return [(p, p.grad.reshape(tasks, -1).eq(0).all(1)) for p, tasks in self.parameters if p.grad is not None]

    def _merge(self, idle: Tensor, kept: Tensor, moved: Tensor) -> Tensor:
        """`kept` in the rows of idle heads, `moved` in the others."""
        rows, tasks = idle.unsqueeze(1), len(idle)
        return torch.where(rows, kept.reshape(tasks, -1), moved.reshape(tasks, -1)).view_as(moved)
