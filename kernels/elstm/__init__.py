"""The eLSTM core: an LSTM with element-wise recurrence, whose state Jacobian is diagonal.

Source: Irie, Gopalakrishnan, Schmidhuber, "Exploring the Promise and Limits of Real-Time Recurrent Learning" (ICLR
2024), equations 5-7; the output gate lies outside the recurrence and is left to the cell. With m_t = 0 where is_init,
else 1:

    f_t = sigmoid(u_f + v_f * m c_{t-1})   z_t = tanh(u_z + v_z * m c_{t-1})   c_t = f_t * m c_{t-1} + (1 - f_t) * z_t

u = [u_f, u_z] is the input projection with bias, hoisted over all steps by the caller.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.autograd.function import once_differentiable

from lifelong.kernels.dispatch import Op, check, check_mask
from lifelong.kernels.loop import Call
from lifelong.kernels.rtrl import check_carry, rtrl_advance, rtrl_advance_vector

_SEQUENCE = Op("elstm_sequence", "lifelong.kernels.elstm")
_STEP = Op("elstm_step", "lifelong.kernels.elstm")
_LOCAL = Op("elstm_local", "lifelong.kernels.elstm")
_LAYER = Op("elstm_layer", "lifelong.kernels.elstm")
_ADVANCE = Op("elstm_advance", "lifelong.kernels.elstm")


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, impl: Any, u: torch.Tensor, v: torch.Tensor, c0: torch.Tensor, is_init: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        c = impl.forward(u, v, c0, is_init)
        ctx.impl = impl
        ctx.save_for_backward(u, v, c0, is_init, c)
        ctx.set_materialize_grads(False)
        return c, c[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dc: torch.Tensor | None, dfinal: torch.Tensor | None) -> Any:
        if dc is None and dfinal is None:
            return None, None, None, None, None
        return None, *ctx.impl.backward(*ctx.saved_tensors, dc, dfinal), None


def elstm_sequence(
    u_TB2N: torch.Tensor,
    v_2N: torch.Tensor,
    c0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """T steps of the eLSTM core (module docstring).

    u_TB2N: input drive with bias, forget gate first, candidate second; v_2N: the diagonal recurrent weights in the same
    order; c0_BN: state before the first step; is_init_TB: bool, the state is zeroed before consuming step t.
    Returns (c_TBN, c_BN): the state after every step and the last of them as a tensor of its own. Gradients to u, v and
    c0, from both outputs. Raises ValueError for wrong shapes, dtypes or a backend that cannot run.
    """
    op = "elstm_sequence"
    if u_TB2N.ndim != 3 or u_TB2N.shape[0] == 0 or u_TB2N.shape[2] % 2:
        raise ValueError(f"{op}: u must have shape (T >= 1, B, 2N), got {tuple(u_TB2N.shape)}")
    T, B, N = u_TB2N.shape[0], u_TB2N.shape[1], u_TB2N.shape[2] // 2
    check(op, "v", v_2N, (2 * N,), u_TB2N)
    check(op, "c0", c0_BN, (B, N), u_TB2N)
    check_mask(op, "is_init", is_init_TB, (T, B), u_TB2N)
    impl = _SEQUENCE.module(backend, u_TB2N)
    if hasattr(impl, "sequence"):
        return impl.sequence(u_TB2N, v_2N, c0_BN, is_init_TB)
    if torch.is_grad_enabled() and (u_TB2N.requires_grad or v_2N.requires_grad or c0_BN.requires_grad):
        return _Sequence.apply(impl, u_TB2N, v_2N, c0_BN, is_init_TB)
    c_TBN = impl.forward(u_TB2N.detach(), v_2N.detach(), c0_BN.detach(), is_init_TB)
    return c_TBN, c_TBN[-1].clone()


def elstm_step(
    u_B2N: torch.Tensor, v_2N: torch.Tensor, c_BN: torch.Tensor, is_init_B: torch.Tensor, *, backend: str = "auto"
) -> torch.Tensor:
    """One step of `elstm_sequence`: u_B2N, v_2N, the state c_BN before it and is_init_B give the state c_BN after
    it."""
    if torch.is_grad_enabled() and (u_B2N.requires_grad or v_2N.requires_grad or c_BN.requires_grad):
        return elstm_sequence(u_B2N[None], v_2N, c_BN, is_init_B[None], backend=backend)[1]
    op = "elstm_step"
    B, N = c_BN.shape
    check(op, "u", u_B2N, (B, 2 * N), c_BN)
    check(op, "v", v_2N, (2 * N,), c_BN)
    check_mask(op, "is_init", is_init_B, (B,), c_BN)
    return _STEP.module(backend, u_B2N).step(u_B2N, v_2N, c_BN, is_init_B)


@torch.no_grad()
def elstm_local(
    u_TB2N: torch.Tensor,
    v_2N: torch.Tensor,
    c_prev_TBN: torch.Tensor,
    is_init_TB: torch.Tensor,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """State Jacobian and local derivatives of every step; no gradient flows through them.

    c_prev_TBN: the state before each step, not yet zeroed by is_init_TB. Returns (a_TBN, l_TB2N):
    a_t = dc_t/dc_{t-1} = m (f + v_f fh + v_z zh), a diagonal; l_t = [fh, zh] = dc_t/du_t with
    fh = (m c - z) f (1 - f) and zh = (1 - f)(1 - z^2). The sensitivity of c to a weight with du/dw = x advances by
    S_t = a_t S_{t-1} + l_t x_t (`kernels.rtrl`). The full a_t, not the paper's equation 8, which drops the other gate.
    """
    op = "elstm_local"
    T, B, N = c_prev_TBN.shape
    check(op, "u", u_TB2N, (T, B, 2 * N), c_prev_TBN)
    check(op, "v", v_2N, (2 * N,), c_prev_TBN)
    check_mask(op, "is_init", is_init_TB, (T, B), c_prev_TBN)
    return _LOCAL.module(backend, u_TB2N).local(u_TB2N, v_2N, c_prev_TBN, is_init_TB)


@torch.no_grad()
def elstm_advance(
    S_B2ND: torch.Tensor,
    s_B4N: torch.Tensor,
    x_TBD: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    v_2N: torch.Tensor,
    state_TBN: torch.Tensor,
    is_init_TB: torch.Tensor,
    *,
    drive_TB2N: torch.Tensor | None = None,
    boundary_BN: torch.Tensor | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
    """Advances an eLSTM's whole RTRL carry by a chunk, in place: `elstm_local`, then `kernels.rtrl`, fused where
    possible.

    S_B2ND: sensitivities of the state to the input weights (forget gate, candidate), fp32/fp64 or bf16 beside fp32;
    s_B4N: to the forget bias, candidate bias, forget diagonal weight, candidate diagonal weight. x, weight (2N, D),
    bias (2N), v and is_init are what the chunk's `elstm_layer` got, state_TBN the state before each step, not yet
    zeroed by is_init; drive_TB2N the drive that it returned, computed here if not given.
    Returns (grad_2ND, grad_4N, largest |a|): with boundary_BN = dL/dc_0 the first two are what the carry adds to the
    chunk's gradient, else None; the last is the largest state Jacobian, a scalar.
    """
    op = "elstm_advance"
    (T, B, D), N = x_TBD.shape, state_TBN.shape[-1]
    check(op, "weight", weight, (2 * N, D), x_TBD)
    check(op, "bias", bias, (2 * N,), x_TBD)
    check(op, "v", v_2N, (2 * N,), x_TBD)
    check(op, "state", state_TBN, (T, B, N), x_TBD)
    check(op, "s", s_B4N, (B, 4, N), x_TBD)
    check_mask(op, "is_init", is_init_TB, (T, B), x_TBD)
    check_carry(op, S_B2ND, (B, 2, N, D), x_TBD)
    if drive_TB2N is not None:
        check(op, "drive", drive_TB2N, (T, B, 2 * N), x_TBD)
    if boundary_BN is not None:
        check(op, "boundary", boundary_BN, (B, N), x_TBD)
    impl = _ADVANCE.module(backend, x_TBD)
    if hasattr(impl, "advance_narrow") and D <= impl.NARROW:
        return impl.advance_narrow(S_B2ND, s_B4N, x_TBD, weight, bias, v_2N, state_TBN, is_init_TB, boundary_BN)
    u_TB2N = torch.nn.functional.linear(x_TBD, weight, bias) if drive_TB2N is None else drive_TB2N
    if hasattr(impl, "trace"):
        grad_4N = None if boundary_BN is None else (boundary_BN[:, None] * s_B4N).sum(0)
        a_TBN, l_TB2N = impl.trace(u_TB2N, v_2N, state_TBN, is_init_TB, s_B4N)
    else:
        a_TBN, l_TB2N = impl.local(u_TB2N, v_2N, state_TBN, is_init_TB)
        masked_TBN = state_TBN.masked_fill(is_init_TB[..., None], 0.0)
        l_TB4N = torch.cat([l_TB2N, l_TB2N * masked_TBN.repeat(1, 1, 2)], dim=-1)
        _, grad_4N = rtrl_advance_vector(s_B4N, a_TBN, l_TB4N, boundary_BN=boundary_BN, backend=backend)
    _, grad_2ND = rtrl_advance(S_B2ND, a_TBN, l_TB2N, x_TBD, boundary_BN=boundary_BN, backend=backend)
    return grad_2ND, grad_4N, a_TBN.abs().max()


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        impl: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        v: torch.Tensor,
        weight_out: torch.Tensor,
        recurrent_out: torch.Tensor,
        bias_out: torch.Tensor,
        c0: torch.Tensor,
        is_init: torch.Tensor,
        known: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        T, B, D = x.shape
        rows = x.reshape(T * B, D)
        narrow = hasattr(impl, "forward_narrow") and impl.NARROW >= D
        u = None if narrow else torch.addmm(bias, rows, weight.t()).view(T, B, -1)
        if known is not None:
            c, gate = known
            h = gate * c
        else:
            if narrow:
                c, o = impl.forward_narrow(x, weight, bias, v, weight_out, bias_out, c0, is_init)
            else:
                assert u is not None
                c = impl.forward(u, v, c0, is_init)
                o = torch.addmm(bias_out, rows, weight_out.t()).view_as(c)
            gate = o.view(T * B, -1).addmm_(c.reshape(T * B, -1), recurrent_out.t()).view_as(c)
            h = impl.gate(gate, c)
        ctx.impl, ctx.narrow = impl, narrow
        ctx.save_for_backward(x, weight, bias, v, weight_out, recurrent_out, c0, is_init, u, c, gate)
        if u is not None:
            ctx.mark_non_differentiable(u)
        ctx.set_materialize_grads(False)
        return h, c[-1].clone(), c if known is None else c.view_as(c), u

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dh: torch.Tensor | None, dfinal: torch.Tensor | None, dc: torch.Tensor | None, _: None
    ) -> Any:
        x, weight, bias, v, weight_out, recurrent_out, c0, is_init, u, c, gate = ctx.saved_tensors
        impl, needs_dx = ctx.impl, ctx.needs_input_grad[1]
        dh = torch.zeros_like(c) if dh is None else dh
        dgate, dc = impl.gate_backward(gate, c, dh, dc)
        rows, c_rows = x.reshape(-1, x.shape[-1]), c.reshape(-1, c.shape[-1])
        dgate_rows = dgate.view(c_rows.shape)
        dc.view(c_rows.shape).addmm_(dgate_rows, recurrent_out)
        drecurrent_out = dgate_rows.t() @ c_rows
        if ctx.narrow:
            dx, dweight, dbias, dv, dweight_out, dbias_out, dc0 = impl.backward_narrow(
                x, weight, bias, v, weight_out, c0, is_init, c, dc, dfinal, dgate, needs_dx
            )
        else:
            du, dv, dc0 = impl.backward(u, v, c0, is_init, c, dc, dfinal)
            du_rows = du.view(len(rows), -1)
            dx = (du_rows @ weight).addmm_(dgate_rows, weight_out).view_as(x) if needs_dx else None
            dweight, dbias = _weight_gradient(du_rows, rows), du_rows.sum(0)
            dweight_out, dbias_out = _weight_gradient(dgate_rows, rows), dgate_rows.sum(0)
        return None, dx, dweight, dbias, dv, dweight_out, drecurrent_out, dbias_out, dc0, None, None


def _weight_gradient(d_RM: torch.Tensor, x_RD: torch.Tensor) -> torch.Tensor:
    """d^T x, (M, D), over R rows; for a narrow input the other way round, which MKL does up to 8 times as fast."""
    return d_RM.t() @ x_RD if x_RD.shape[1] > 32 else (x_RD.t() @ d_RM).t().contiguous()


def elstm_layer(
    x_TBD: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    v_2N: torch.Tensor,
    weight_out: torch.Tensor,
    recurrent_out: torch.Tensor,
    bias_out: torch.Tensor,
    c0_BN: torch.Tensor,
    is_init_TB: torch.Tensor,
    *,
    known: tuple[torch.Tensor, torch.Tensor] | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A whole eLSTM layer, input projection and output gate included: equations 5-7 of the paper as one autograd node.

    x_TBD; weight (2N, D), bias (2N) and v (2N) of forget gate and candidate; weight_out (N, D), recurrent_out (N, N)
    and bias_out (N) of the output gate o = sigmoid(W_o x + U_o c + b_o); h = o * c. c0 and is_init as in
    `elstm_sequence`. known: (c_TBN, o_TBN) if these weights have already been through this chunk, as they have when the
    policy acted (`ElstmAct`); then only the backward pass is left to do. Returns (h_TBN, c_BN, c_TBN, u_TB2N): the
    output, the last state, all states, and the drive (no gradient flows through it) that `elstm_advance` can use, or
    None where a kernel for narrow inputs never stored it. Gradients to everything else, from h, c_BN and c_TBN.
    """
    op = "elstm_layer"
    if x_TBD.ndim != 3 or x_TBD.shape[0] == 0:
        raise ValueError(f"{op}: x must have shape (T >= 1, B, D), got {tuple(x_TBD.shape)}")
    (T, B, D), N = x_TBD.shape, c0_BN.shape[-1]
    check(op, "weight", weight, (2 * N, D), x_TBD)
    check(op, "bias", bias, (2 * N,), x_TBD)
    check(op, "v", v_2N, (2 * N,), x_TBD)
    check(op, "weight_out", weight_out, (N, D), x_TBD)
    check(op, "recurrent_out", recurrent_out, (N, N), x_TBD)
    check(op, "bias_out", bias_out, (N,), x_TBD)
    check(op, "c0", c0_BN, (B, N), x_TBD)
    check_mask(op, "is_init", is_init_TB, (T, B), x_TBD)
    for name, tensor in zip(("known states", "known gates"), known or (), strict=False):
        check(op, name, tensor, (T, B, N), x_TBD)
    impl = _LAYER.module(backend, x_TBD)
    if hasattr(impl, "layer"):
        return impl.layer(x_TBD, weight, bias, v_2N, weight_out, recurrent_out, bias_out, c0_BN, is_init_TB)
    return _Layer.apply(impl, x_TBD, weight, bias, v_2N, weight_out, recurrent_out, bias_out, c0_BN, is_init_TB, known)


class ElstmAct:
    """One step of the whole layer (`elstm_layer` with T = 1) and a linear read-out of it, for acting: no gradient, one
    compiled call on a CPU.

    The weights are transposed once and packed again only when one of them has changed. Called with the arguments of
    `elstm_layer` for one step (x_BD and is_init_B instead of x_TBD and is_init_TB) and the read-out's weight_PN and
    bias_P before the state. Returns (read_BP, c_BN, gate_BN), the last None where it was not kept.
    """

    #: a cache of values computed from the weights
    TRANSIENT: ClassVar[tuple[str, ...]] = ("_versions", "_packed")

    def __init__(self) -> None:
        self._versions: list[Any] = []
        self._packed: tuple[torch.Tensor, ...] = ()

    def __call__(
        self,
        x_BD: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        v_2N: torch.Tensor,
        weight_out: torch.Tensor,
        recurrent_out: torch.Tensor,
        bias_out: torch.Tensor,
        weight_read_PN: torch.Tensor,
        bias_read_P: torch.Tensor,
        c_BN: torch.Tensor,
        is_init_B: torch.Tensor,
        *,
        backend: str = "auto",
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        impl = _STEP.module(backend, x_BD)
        if not hasattr(impl, "act"):
            arguments = (weight, bias, v_2N.flatten(), weight_out, recurrent_out, bias_out, c_BN, is_init_B[None])
            h_TBN, c_BN, _, _ = elstm_layer(x_BD[None], *arguments, backend=backend)
            return torch.nn.functional.linear(h_TBN[0], weight_read_PN, bias_read_P), c_BN, None
        weights = (weight, bias, v_2N, weight_out, recurrent_out, bias_out, weight_read_PN, bias_read_P)
        result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = impl.act(x_BD, self._pack(weights), c_BN, is_init_B)
        return result

    def compiled(self, sample: torch.Tensor) -> bool:
        """Whether `call` can be used for tensors like `sample`."""
        return hasattr(_STEP.module("auto", sample), "act_call")

    def call(
        self,
        x_TBD: torch.Tensor,
        weights: tuple[torch.Tensor, ...],
        c_TBN: torch.Tensor,
        is_init_TB: torch.Tensor,
        read_TBP: torch.Tensor,
        gate_TBN: torch.Tensor,
    ) -> Call:
        """The step from row t of x, c and is_init to row t of read and gate and row t + 1 of c, for `kernels.loop`.

        `weights` are those of `__call__` in their order; c and is_init have a row more than there are steps.
        """
        impl = _STEP.module("auto", x_TBD)
        call: Call = impl.act_call(x_TBD, self._pack(weights), c_TBN, is_init_TB, read_TBP, gate_TBN)
        return call

    def _pack(self, weights: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        versions = [(w.data_ptr(), w._version) for w in weights]
        if versions != self._versions:
            w, b, v, w_out, r_out, b_out, read, b_read = (tensor.detach() for tensor in weights)
            packed = (w.t(), b, v.flatten(), w_out.t(), r_out.t(), b_out, read, b_read)
            self._packed = tuple(tensor.contiguous() for tensor in packed)
            self._versions = versions
        return self._packed
