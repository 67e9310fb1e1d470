"""GRU with a hand-written backward: one matrix product per step and one for the whole weight gradient."""

from __future__ import annotations

import torch


def forward_step(
    u: torch.Tensor,
    bias: torch.Tensor,
    previous: torch.Tensor,
    next_init: torch.Tensor | None,
    act: torch.Tensor,
    q: torch.Tensor,
    h: torch.Tensor,
    masked: torch.Tensor,
) -> None:
    """One step from `act` = W h: writes the gates r, z, n into act, q = W_n h + b_n, h, and h as the next step reads
    it."""
    N = h.shape[-1]
    torch.add(act[:, 2 * N :], bias, out=q)
    act[:, : 2 * N].add_(u[:, : 2 * N]).sigmoid_()
    r, z, n = act.chunk(3, dim=-1)
    torch.addcmul(u[:, 2 * N :], r, q, out=n)
    n.tanh_()
    torch.lerp(n, previous, z, out=h)
    masked.copy_(h if next_init is None else h.masked_fill(next_init[:, None], 0.0))


def backward_step(
    act: torch.Tensor,
    q: torch.Tensor,
    previous: torch.Tensor,
    next_init: torch.Tensor | None,
    dh: torch.Tensor | None,
    dh_next: torch.Tensor,
    du: torch.Tensor,
    dhh: torch.Tensor,
    direct: torch.Tensor,
) -> None:
    """Writes the gradients before the gates (du), of W h + b (dhh) and of h not through W (direct)."""
    r, z, n = act.chunk(3, dim=-1)
    d = dh_next if next_init is None else dh_next.masked_fill(next_init[:, None], 0.0)
    d = d if dh is None else d + dh
    dn = d * (1 - z) * (1 - n * n)
    dz = d * (previous - n) * z * (1 - z)
    dr = dn * q * r * (1 - r)
    torch.cat([dr, dz, dn], dim=-1, out=du)
    torch.cat([dr, dz, dn * r], dim=-1, out=dhh)
    torch.mul(d, z, out=direct)


def forward(
    u_TB3N: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_hn_N: torch.Tensor,
    h0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """(h_TBN, what backward needs)."""
    (T, B, _), N = u_TB3N.shape, weight_hh.shape[1]
    u, bias = u_TB3N.contiguous(), bias_hn_N.contiguous()
    act = torch.empty((T, B, 3 * N), dtype=u.dtype, device=u.device)
    q, h, masked = (torch.empty((T, B, N), dtype=u.dtype, device=u.device) for _ in range(3))
    h_in = h_first = h0_BN.masked_fill(is_init_TB[0][:, None], 0.0).contiguous()
    weight = weight_hh.t()
    for t in range(T):
        torch.mm(h_in, weight, out=act[t])
        forward_step(u[t], bias, h_in, is_init_TB[t + 1] if t + 1 < T else None, act[t], q[t], h[t], masked[t])
        h_in = masked[t]
    return h, (act, q, h_first, masked)


def backward(
    weight_hh: torch.Tensor,
    is_init_TB: torch.Tensor,
    saved: tuple[torch.Tensor, ...],
    dh_TBN: torch.Tensor | None,
    dfinal_BN: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB3N, dweight_hh, dbias_hn_N, dh0_BN)."""
    act, q, h_first, masked = saved
    T = len(q)
    du, dhh = torch.empty_like(act), torch.empty_like(act)
    dh_next = torch.zeros_like(h_first) if dfinal_BN is None else dfinal_BN.contiguous().clone()
    direct = torch.empty_like(h_first)
    dh = None if dh_TBN is None else dh_TBN.contiguous()
    for t in range(T - 1, -1, -1):
        backward_step(
            act[t], q[t], masked[t - 1] if t else h_first, is_init_TB[t + 1] if t + 1 < T else None,
            None if dh is None else dh[t], dh_next, du[t], dhh[t], direct,
        )  # fmt: skip
        torch.addmm(direct, dhh[t], weight_hh, out=dh_next)
    return du, *weight_gradients(dhh, h_first, masked), dh_next.masked_fill(is_init_TB[0][:, None], 0.0)


def weight_gradients(
    dhh: torch.Tensor, h_first: torch.Tensor, masked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dweight_hh, dbias_hn_N) from the gradient of W h + b, in two products over all steps."""
    T, _B, N = masked.shape
    dweight = dhh[0].t() @ h_first
    if T > 1:
        dweight.addmm_(dhh[1:].flatten(0, 1).t(), masked[:-1].flatten(0, 1))
    return dweight, dhh[..., 2 * N :].sum(dim=(0, 1))
