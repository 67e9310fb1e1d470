"""LSTM with a hand-written backward: one matrix product per step and one for the whole weight gradient."""

from __future__ import annotations

import torch


def forward_step(
    u: torch.Tensor,
    c_prev: torch.Tensor,
    init: torch.Tensor,
    next_init: torch.Tensor | None,
    act: torch.Tensor,
    c: torch.Tensor,
    h: torch.Tensor,
    masked: torch.Tensor,
) -> None:
    """One step from `act` = W h: writes the gates into act, the new c and h, and h as the next step reads it."""
    N = c.shape[-1]
    act += u
    act[:, : 2 * N].sigmoid_()
    act[:, 2 * N : 3 * N].tanh_()
    act[:, 3 * N :].sigmoid_()
    i, f, g, o = act.chunk(4, dim=-1)
    torch.addcmul(i * g, f, c_prev.masked_fill(init[:, None], 0.0), out=c)
    torch.mul(o, c.tanh(), out=h)
    masked.copy_(h if next_init is None else h.masked_fill(next_init[:, None], 0.0))


def backward_step(
    act: torch.Tensor,
    c_prev: torch.Tensor,
    init: torch.Tensor,
    next_init: torch.Tensor | None,
    c: torch.Tensor,
    dh: torch.Tensor | None,
    dh_next: torch.Tensor,
    dc: torch.Tensor,
    dpre: torch.Tensor,
) -> None:
    """Writes the gradient before the gates into dpre; dc is the running gradient of the cell state, in place."""
    i, f, g, o = act.chunk(4, dim=-1)
    squashed = c.tanh()
    d = dh_next if next_init is None else dh_next.masked_fill(next_init[:, None], 0.0)
    d = d if dh is None else d + dh
    state = dc + d * o * (1 - squashed * squashed)
    previous = c_prev.masked_fill(init[:, None], 0.0)
    parts = (state * g * i * (1 - i), state * previous * f * (1 - f), state * i * (1 - g * g))
    torch.cat([*parts, d * squashed * o * (1 - o)], dim=-1, out=dpre)
    torch.mul(state, f, out=dc)
    dc.masked_fill_(init[:, None], 0.0)


def forward(
    u_TB4N: torch.Tensor,
    weight_hh: torch.Tensor,
    state_B2N: torch.Tensor,
    is_init_TB: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """(h_TBN, state_B2N, what backward needs)."""
    (T, B, _), N = u_TB4N.shape, weight_hh.shape[1]
    u = u_TB4N.contiguous()
    act = torch.empty((T, B, 4 * N), dtype=u.dtype, device=u.device)
    c, h, masked = (torch.empty((T, B, N), dtype=u.dtype, device=u.device) for _ in range(3))
    h0, c_prev = (part.contiguous() for part in state_B2N.chunk(2, dim=-1))
    h_in = h_first = h0.masked_fill(is_init_TB[0][:, None], 0.0)
    c0, weight = c_prev, weight_hh.t()
    for t in range(T):
        torch.mm(h_in, weight, out=act[t])
        forward_step(
            u[t], c_prev, is_init_TB[t], is_init_TB[t + 1] if t + 1 < T else None, act[t], c[t], h[t], masked[t]
        )
        h_in, c_prev = masked[t], c[t]
    return h, torch.cat([h[-1], c[-1]], dim=-1), (act, c, h_first, masked, c0)


def backward(
    weight_hh: torch.Tensor,
    is_init_TB: torch.Tensor,
    saved: tuple[torch.Tensor, ...],
    dh_TBN: torch.Tensor | None,
    dstate_B2N: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(du_TB4N, dweight_hh, dstate_B2N)."""
    act, c, h_first, masked, c0 = saved
    T = len(c)
    du = torch.empty_like(act)
    if dstate_B2N is None:
        dh_next, dc = torch.zeros_like(c0), torch.zeros_like(c0)
    else:
        dh_next, dc = (part.clone(memory_format=torch.contiguous_format) for part in dstate_B2N.chunk(2, dim=-1))
    dh = None if dh_TBN is None else dh_TBN.contiguous()
    for t in range(T - 1, -1, -1):
        backward_step(
            act[t], c[t - 1] if t else c0, is_init_TB[t], is_init_TB[t + 1] if t + 1 < T else None, c[t],
            None if dh is None else dh[t], dh_next, dc, du[t],
        )  # fmt: skip
        torch.mm(du[t], weight_hh, out=dh_next)
    dstate = torch.cat([dh_next.masked_fill(is_init_TB[0][:, None], 0.0), dc], dim=-1)
    return du, weight_gradient(du, h_first, masked), dstate


def weight_gradient(du: torch.Tensor, h_first: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """dweight_hh from the gradient before the gates, in two products over all steps."""
    dweight = du[0].t() @ h_first
    if len(du) > 1:
        dweight.addmm_(du[1:].flatten(0, 1).t(), masked[:-1].flatten(0, 1))
    return dweight
