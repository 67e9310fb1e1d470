"""eLSTM in torch operations with a hand-written backward: only a one-operation reverse scan is left in its loop."""

from __future__ import annotations

import torch

from lifelong.kernels.elstm.reference import local

__all__ = ["backward", "forward", "gate", "gate_backward", "local", "step"]


def step(u_B2N: torch.Tensor, v_2N: torch.Tensor, c_BN: torch.Tensor, is_init_B: torch.Tensor) -> torch.Tensor:
    """c_BN after one step; no gradient."""
    c_BN = c_BN.masked_fill(is_init_B[:, None], 0.0)
    f, z = torch.addcmul(u_B2N, v_2N, c_BN.repeat(1, 2)).chunk(2, dim=-1)
    return torch.lerp(z.tanh(), c_BN, f.sigmoid())


def forward(u_TB2N: torch.Tensor, v_2N: torch.Tensor, c0_BN: torch.Tensor, is_init_TB: torch.Tensor) -> torch.Tensor:
    """c_TBN."""
    c_BN, states = c0_BN, []
    for u_B2N, is_init_B in zip(u_TB2N, is_init_TB, strict=True):
        c_BN = step(u_B2N, v_2N, c_BN, is_init_B)
        states.append(c_BN)
    return torch.stack(states)


def backward(
    u_TB2N: torch.Tensor,
    v_2N: torch.Tensor,
    c0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
    c_TBN: torch.Tensor,
    dc_TBN: torch.Tensor | None,
    dfinal_BN: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB2N, dv_2N, dc0_BN)."""
    c_prev_TBN = torch.cat([c0_BN[None], c_TBN[:-1]])
    a_TBN, l_TB2N = local(u_TB2N, v_2N, c_prev_TBN, is_init_TB)
    d_TBN = torch.zeros_like(c_TBN) if dc_TBN is None else dc_TBN.clone(memory_format=torch.contiguous_format)
    if dfinal_BN is not None:
        d_TBN[-1] += dfinal_BN
    for t in range(len(d_TBN) - 2, -1, -1):
        d_TBN[t].addcmul_(a_TBN[t + 1], d_TBN[t + 1])
    du_TB2N = l_TB2N * d_TBN.repeat(1, 1, 2)
    masked_TBN = c_prev_TBN.masked_fill(is_init_TB[..., None], 0.0)
    dv_2N = (du_TB2N * masked_TBN.repeat(1, 1, 2)).sum(dim=(0, 1))
    return du_TB2N, dv_2N, a_TBN[0] * d_TBN[0]


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
