"""The end of an update: the gradients' norm is clipped and the optimiser makes its step.

With torch's Adam and AdamW both are one compiled call on a CPU (`kernels.adam`), on the same state, so that checkpoints
and other optimisers do not notice; everything else is torch's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.agent.optimizers.obgd import ObGD
from lifelong.kernels import adam
from lifelong.kernels.loop import Direct, Each


def clip_norm(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients so that their norm is at most `max_norm`; returns what it was, a scalar."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if grads and adam.available(grads):
        return adam.clip(grads, max_norm)
    return nn.utils.clip_grad_norm_(parameters, max_norm)


def make_step(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()`."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or not all(map(_plain, optimizer.param_groups)):
        optimizer.step()
        return
    for group in optimizer.param_groups:
        parameters = [p for p in group["params"] if p.grad is not None]
        grads = [p.grad for p in parameters if p.grad is not None]
        if parameters and not adam.available([*parameters, *grads]):
            optimizer.step()
            return
        for parameter in parameters:
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = _fresh(parameter)
    for group in optimizer.param_groups:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            continue
        grads = [p.grad for p in parameters if p.grad is not None]
        adam.step(tensors_of(optimizer, parameters, grads), _numbers(optimizer, group))
        torch.autograd.graph.increment_version(parameters)


def _fresh(parameter: nn.Parameter) -> dict[str, Tensor]:
    """What torch's Adam begins with."""
    zeros = (torch.zeros_like(parameter, memory_format=torch.preserve_format) for _ in range(2))
    first, second = zeros
    return {"step": torch.tensor(0.0, dtype=torch.float32), "exp_avg": first.detach(), "exp_avg_sq": second.detach()}


def tensors_of(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], grads: Sequence[Tensor]
) -> adam.Tensors:
    """What a step of torch's Adam or AdamW reads and writes."""
    states = [optimizer.state[p] for p in parameters]
    kept = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
    return adam.Tensors([p.detach() for p in parameters], grads, *kept)


def adam_of(optimizer: torch.optim.Optimizer) -> adam.Adam | None:
    """The numbers of torch's Adam or AdamW with one group of parameters; None for all else."""
    plain = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and len(optimizer.param_groups) == 1
    if not plain or not _plain(optimizer.param_groups[0]):
        return None
    return _numbers(optimizer, optimizer.param_groups[0])


class Stepping:
    """An optimiser's step as a call for `kernels.loop`: Adam, AdamW, and gradient descent without momentum (SGD, and
    ObGD, whose bound comes before).

    Args:
        optimizer: over `parameters`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
        self.optimizer, self.parameters = optimizer, parameters

    def numbers(self) -> adam.Adam | adam.Descent | None:
        """Of the step as it is now; None if there is no such call."""
        kind, groups = type(self.optimizer), self.optimizer.param_groups
        if kind in (torch.optim.SGD, ObGD) and len(groups) == 1:
            group = groups[0]
            odd = any(group.get(name) for name in ("momentum", "dampening", "nesterov", "maximize"))
            return None if odd else adam.Descent(float(group["lr"]), group.get("weight_decay", 0.0))
        return adam_of(self.optimizer)

    def ready(self) -> bool:
        """Whether the optimiser has its state: the first step makes that of Adam."""
        state = self.optimizer.state
        return isinstance(self.numbers(), adam.Descent) or all(state.get(p) for p in self.parameters)

    def addresses(self) -> list[int]:
        """Where its state lies; nowhere before there is one."""
        if isinstance(self.numbers(), adam.Descent) or not self.ready():
            return []
        state, names = self.optimizer.state, ("exp_avg", "exp_avg_sq", "step")
        return [state[p][name].data_ptr() for p in self.parameters for name in names]

    def call(self, grads: Sequence[Tensor], watched: Each | None = None) -> Direct:
        """The step; nothing is done where one of the numbers `watched` is not finite."""
        numbers = self.numbers()
        assert numbers is not None
        if isinstance(numbers, adam.Descent):
            return adam.descent_call([p.detach() for p in self.parameters], grads, numbers, watched)
        return adam.step_call(tensors_of(self.optimizer, self.parameters, grads), numbers, watched)


def _numbers(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> adam.Adam:
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
    first, second = group["betas"]
    return adam.Adam(float(group["lr"]), first, second, group["eps"], group["weight_decay"], decoupled)


def _plain(group: dict[str, Any]) -> bool:
    """Whether a group of Adam asks for nothing but the algorithm of the paper."""
    return not (group["amsgrad"] or group["maximize"] or group.get("differentiable"))


class FlatGradients:
    """One piece of memory for the gradients of a policy; those of actor and critic side by side, as they are read out.

    Args:
        parameters: by name, with the actor's and the critic's.

    Attributes:
        flat: all of them.
        named: a view for every parameter.
        read: of weight [P + V, H] and bias of actor and critic together.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters
        first = ["actor.linear.weight", "critic.weight", "actor.linear.bias", "critic.bias"]
        names = [*first, *[name for name in parameters if name not in first]]
        self.flat = parameters[first[0]].detach().new_empty(sum(p.numel() for p in parameters.values()))
        pieces = self.flat.split([parameters[name].numel() for name in names])
        self.named = {name: piece.view_as(parameters[name]) for name, piece in zip(names, pieces, strict=True)}
        actor, critic = (parameters[name] for name in first[:2])
        outputs, width = len(actor) + len(critic), actor.shape[1]
        self.read = self.flat[: outputs * width].view(outputs, width), self.flat[outputs * width :][:outputs]

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The gradients of one module's parameters, by their names in it."""
        return {name.removeprefix(prefix): grad for name, grad in self.named.items() if name.startswith(prefix)}

    def assign(self) -> None:
        """Make them those of the parameters, together with what these have already."""
        for name, parameter in self.parameters.items():
            grad = self.named[name]
            if parameter.grad is not None:
                grad += parameter.grad
            parameter.grad = grad
