"""The output gate of the eLSTM layer in torch operations, with a hand-written backward."""

from __future__ import annotations

import torch


def gate(o_TBN: torch.Tensor, c_TBN: torch.Tensor) -> torch.Tensor:
    """h = sigmoid(o) * c; o becomes sigmoid(o) in place."""
    return o_TBN.sigmoid_() * c_TBN


def gate_backward(
    o_TBN: torch.Tensor, c_TBN: torch.Tensor, dh_TBN: torch.Tensor, dc_TBN: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient before the sigmoid, dc + gradient of c through h)."""
    total = dh_TBN * o_TBN
    dgate = total * c_TBN * (1 - o_TBN)
    return dgate, total if dc_TBN is None else total.add_(dc_TBN)
