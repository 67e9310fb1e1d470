"""What strategies share that refer to how parameters are initialised: a generator of new ones, and their scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.moments import beginning, moments
from lifelong.agent.policy import Policy
from lifelong.agent.strategies.base import Context, Strategy


class Redrawing(Strategy):
    """Draws new parameters with a generator of its own, on the host: every worker draws the same."""

    data_parallel: ClassVar[str] = "equal"

    def setup(self, ctx: Context, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.generator.set_state(saved["generator"])


@torch.no_grad()
def reinitialise(ctx: Context, fresh: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> None:
    """Begin entries of parameters anew: the one place where that is done, so that nothing remembers what they were.

    They get the values in `fresh`, what the optimiser keeps of them is as in its beginning, and every strategy is told
    (`Strategy.on_reset`): their importance goes, and anchors move to where they are now. Memory and carry of the cell's
    units are left to the trainer.

    Args:
        ctx: as in every hook.
        fresh: name of a parameter -> values.
        entries: name of a parameter -> which of its entries, bool.
    """
    for name, mask in entries.items():
        parameter = ctx.policy.get_parameter(name)
        parameter.copy_(torch.where(mask, fresh[name], parameter))
        for kind, kept in moments(ctx.optimizer, parameter).items():
            kept.copy_(torch.where(mask, beginning(kind, parameter).to(kept.dtype), kept))
    for strategy in ctx.strategies:
        strategy.on_reset(ctx, entries)


def weights_of(policy: Policy, recurrence: bool) -> dict[str, nn.Parameter]:
    """Weights and biases by name: not the log standard deviation of actions nor what normalises (scales and shifts that
    begin at 1 and 0), and only with `recurrence` the parameters of the cell that set how long a unit remembers (see
    `Cell.time_parameters`)."""
    times = [] if recurrence else policy.cell.time_parameters()
    norms = [name for name, module in policy.named_modules() if isinstance(module, nn.LayerNorm | nn.GroupNorm)]
    of_norms = (f"{name}.{kind}" for name in norms for kind in ("weight", "bias"))
    left_out = {"actor.log_std", *of_norms, *(f"cell.{name}" for name in times)}
    return {name: parameter for name, parameter in policy.named_parameters() if name not in left_out}


def initial_scales(policy: Policy, seed: int) -> dict[str, float]:
    """Root mean square of every parameter as it is initialised: name -> number; 0 for what begins at zero."""
    fresh = policy.redrawn(torch.Generator().manual_seed(seed))
    return {name: float(tensor.double().square().mean().sqrt()) for name, tensor in fresh.items()}


def initial_bounds(policy: Policy, seed: int) -> dict[str, float]:
    """The bound of the uniform distribution that a parameter is initialised from: name -> number.

    For any distribution it is sqrt(3) times its root mean square, which is the bound if it is uniform around zero.
    Weights that begin on purpose smaller than 1/sqrt(fan-in), such as an actor's last layer, and biases that begin at
    zero, have that bound, the default of linear layers.
    """
    elementwise = {f"cell.{name}" for name in policy.cell.elementwise_parameters()}
    bounds: dict[str, float] = {}
    layer, default = "", 0.0
    parameters = dict(policy.named_parameters())
    for name, scale in initial_scales(policy, seed).items():
        parameter, module = parameters[name], name.rpartition(".")[0]
        if parameter.dim() > 1 and name not in elementwise:
            layer, default = module, parameter[0].numel() ** -0.5
        bounds[name] = max(3**0.5 * scale, default if module == layer and name not in elementwise else 0.0)
    return bounds
