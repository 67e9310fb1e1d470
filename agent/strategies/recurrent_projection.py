"""Soft projection on both sides of a recurrent network's weights (Duncker, Driscoll, Shenoy, Sahani, Sussillo, NeurIPS
2020, "Organizing recurrent network dynamics by task-computation to enable continual learning", eqs. 5-8)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lifelong.agent.errors import choice
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.projection import SoftProjection


class RecurrentProjection(SoftProjection):
    """delta W <- P(W C W^T) delta W P(C), with P(S) = alpha (alpha I + S)^-1: what old tasks read *and* what the layer
    said to it stay. C is the mean over the tasks of the second moments of a layer's inputs, in a cell of input and
    memory side by side.

    Args:
        sides: `both`, or the `input` or `output` side alone, which are the paper's ablations.
        options: see `SoftProjection`; the paper's alpha is 0.001.
    """

    def __init__(self, *, sides: Literal["both", "input", "output"] = "both", **options: Any) -> None:
        super().__init__(**options)
        self.sides = choice("sides of strategy recurrent_projection", sides, _SIDES)
        self.looks = 0  # tasks in C
        self.outputs: dict[str, Tensor] = {}  # tap -> P(W C W^T)

    def accumulated(self, old_nn: Tensor | None, moment_nn: Tensor, count: int) -> Tensor:
        mean = moment_nn / count
        return mean if old_nn is None else (self.looks * old_nn.double() + mean) / (self.looks + 1)

    def consolidate(self, ctx: Context, source: Source) -> None:
        super().consolidate(ctx, source)
        self.looks += 1
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        for tap, moments in self.protected.items():
            weight_mn = self.taps.joint(tap, weights).double()
            self.outputs[tap] = self.projector(weight_mn @ moments.double() @ weight_mn.T, self.floors[tap])

    def project(self, tap: str, delta_mn: Tensor) -> Tensor:
        if self.sides != "output":
            delta_mn = super().project(tap, delta_mn)
        return delta_mn if self.sides == "input" else self.outputs[tap] @ delta_mn

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "looks": self.looks, "outputs": self.outputs}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.looks = saved["looks"]
        self.outputs = {tap: kept.to(self.device) for tap, kept in saved["outputs"].items() if tap in self.protected}


_SIDES = ("both", "input", "output")
