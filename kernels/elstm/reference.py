"""The eLSTM layer, written as in the paper; the oracle of the other backends."""

from __future__ import annotations

import torch

from lifelong.kernels.recurrence import Recurrence


def layer(
    core: Recurrence,
    x_TBD: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    v_2N: torch.Tensor,
    weight_out: torch.Tensor,
    recurrent_out: torch.Tensor,
    bias_out: torch.Tensor,
    c0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(h_TBN, c_BN, c_TBN, u_TB2N), differentiable by autograd."""
    u_TB2N = x_TBD @ weight.T + bias
    (c_TBN,), c_BN = core.sequence(u_TB2N, v_2N.reshape(2, -1), c0_BN, is_init_TB, backend="reference")
    o_TBN = torch.sigmoid(x_TBD @ weight_out.T + c_TBN @ recurrent_out.T + bias_out)
    return o_TBN * c_TBN, c_BN, c_TBN, u_TB2N.detach()
