"""The eLSTM layer: an LSTM with element-wise recurrence and a dense output gate, as one autograd node.

Source: Irie, Gopalakrishnan, Schmidhuber, "Exploring the Promise and Limits of Real-Time Recurrent Learning" (ICLR
2024), equations 5-7. With m_t = 0 where is_init, else 1:

    f_t = sigmoid(u_f + v_f * m c_{t-1})   z_t = tanh(u_z + v_z * m c_{t-1})   c_t = f_t * m c_{t-1} + (1 - f_t) * z_t

u = [u_f, u_z] is the input projection with bias. The recurrence itself and its carry are those of `kernels.recurrence`;
here is what is faster by hand: the layer around it, fused with the recurrence for a narrow input, and one acting step.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch.autograd.function import once_differentiable

from lifelong.kernels.dense import transpose
from lifelong.kernels.dispatch import Op, check, check_mask
from lifelong.kernels.elstm import reference
from lifelong.kernels.loop import Calls, Direct, Each
from lifelong.kernels.recurrence import Recurrence

_LAYER = Op("elstm_layer", "lifelong.kernels.elstm", backends=("reference", "torch", "cpu"))
_ACT = Op("elstm_act", "lifelong.kernels.elstm", backends=("reference", "torch", "cpu"))


def recurrence(drives: tuple[torch.Tensor, ...], vectors: tuple[torch.Tensor, ...], c: torch.Tensor) -> torch.Tensor:
    """The state after a step, from the drives and weights of forget gate and candidate (module docstring)."""
    f = torch.sigmoid(drives[0] + vectors[0] * c)
    z = torch.tanh(drives[1] + vectors[1] * c)
    return f * c + (1 - f) * z


@functools.cache
def core() -> Recurrence:
    """The recurrence of the layer."""
    return Recurrence(recurrence, gates=2, vectors=2, parts=1)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        impl: Any,
        scan: Any,
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
        u = kept = None
        if not narrow:
            u = torch.addmm(bias, rows, weight.t()).view(T, B, -1)
            if known is None or scan.kept:
                (c,), kept = scan.forward(u, v.view(2, -1), c0, is_init, keep=True)
        if known is not None:
            c, gate = known
            h = gate * c
        else:
            if narrow:
                c, o = impl.forward_narrow(x, weight, bias, v, weight_out, bias_out, c0, is_init)
            else:
                o = torch.addmm(bias_out, rows, weight_out.t()).view_as(c)
            gate = o.view(T * B, -1).addmm_(c.reshape(T * B, -1), recurrent_out.t()).view_as(c)
            h = impl.gate(gate, c)
        ctx.impl, ctx.scan, ctx.narrow = impl, scan, narrow
        ctx.save_for_backward(x, weight, bias, v, weight_out, recurrent_out, c0, is_init, u, c, gate, kept)
        if u is not None:
            ctx.mark_non_differentiable(u)
        ctx.set_materialize_grads(False)
        return h, c[-1].clone(), c if known is None else c.view_as(c), u

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dh: torch.Tensor | None, dfinal: torch.Tensor | None, dc: torch.Tensor | None, _: None
    ) -> Any:
        x, weight, bias, v, weight_out, recurrent_out, c0, is_init, u, c, gate, kept = ctx.saved_tensors
        impl, needs_dx = ctx.impl, ctx.needs_input_grad[2]
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
            du, dv, dc0 = ctx.scan.backward(u, v.view(2, -1), c0, is_init, c[None], kept, [dc], dfinal)
            dv = dv.flatten()
            du_rows = du.view(len(rows), -1)
            dx = (du_rows @ weight).addmm_(dgate_rows, weight_out).view_as(x) if needs_dx else None
            dweight, dbias = _weight_gradient(du_rows, rows), du_rows.sum(0)
            dweight_out, dbias_out = _weight_gradient(dgate_rows, rows), dgate_rows.sum(0)
        return None, None, dx, dweight, dbias, dv, dweight_out, drecurrent_out, dbias_out, dc0, None, None


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
    and bias_out (N) of the output gate o = sigmoid(W_o x + U_o c + b_o); h = o * c. c0_BN: the state before the first
    step; it is zeroed before step t where is_init. known: (c_TBN, o_TBN) if these weights have already been through
    this chunk, as they have when the policy acted (`ElstmAct`); then only the backward pass is left to do. Returns
    (h_TBN, c_BN, c_TBN, u_TB2N): the output, the last state, all states, and the drive (no gradient flows through it)
    or None where a kernel for narrow inputs never stored it. Gradients to everything else, from h, c_BN and c_TBN.
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
    inputs = (x_TBD, weight, bias, v_2N, weight_out, recurrent_out, bias_out, c0_BN, is_init_TB)
    impl = _LAYER.module("torch" if backend == "triton" else backend, x_TBD)
    scan = core().implementation(backend, x_TBD)
    if impl is reference or scan is None:
        return reference.layer(core(), *inputs)
    return _Layer.apply(impl, scan, *inputs, known)


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
        impl = _ACT.module(backend, x_BD)
        if not hasattr(impl, "act"):
            arguments = (weight, bias, v_2N.flatten(), weight_out, recurrent_out, bias_out, c_BN, is_init_B[None])
            h_TBN, c_BN, _, _ = elstm_layer(x_BD[None], *arguments, backend=backend)
            return torch.nn.functional.linear(h_TBN[0], weight_read_PN, bias_read_P), c_BN, None
        weights = (weight, bias, v_2N, weight_out, recurrent_out, bias_out, weight_read_PN, bias_read_P)
        result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = impl.act(x_BD, self._pack(weights), c_BN, is_init_B)
        return result

    def compiled(self, sample: torch.Tensor) -> bool:
        """Whether `calls` can be used for tensors like `sample`."""
        return hasattr(_ACT.module("auto", sample), "act_call")

    def calls(
        self,
        x_TBD: torch.Tensor,
        weights: tuple[torch.Tensor, ...],
        c_TBN: torch.Tensor,
        is_init_TB: torch.Tensor,
        read_TBP: torch.Tensor,
        gate_TBN: torch.Tensor,
    ) -> Calls:
        """The step from row t of x, c and is_init to row t of read and gate and row t + 1 of c, for `kernels.loop`.

        `weights` are those of `__call__` in their order; c and is_init have a row more than there are steps.
        """
        packed, pack = [], []
        for index, weight in enumerate(each.detach().contiguous() for each in weights):
            if index in (0, 3, 4) and x_TBD.shape[1] > 1:  # input-major
                packed.append(weight.new_empty(weight.shape[::-1]))
                pack.append(transpose(weight, packed[-1]))
            else:
                packed.append(weight)
        impl = _ACT.module("auto", x_TBD)
        return Calls([*pack], [impl.act_call(x_TBD, tuple(packed), c_TBN, is_init_TB, read_TBP, gate_TBN)])

    def _pack(self, weights: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        versions = [(w.data_ptr(), w._version) for w in weights]
        if versions != self._versions:
            w, b, v, w_out, r_out, b_out, read, b_read = (tensor.detach() for tensor in weights)
            packed = (w.t(), b, v.flatten(), w_out.t(), r_out.t(), b_out, read, b_read)
            self._packed = tuple(tensor.contiguous() for tensor in packed)
            self._versions = versions
        return self._packed


def gate_backward_call(c: Each, gate: Each, dh: torch.Tensor, dgate: torch.Tensor, dc: torch.Tensor) -> Direct:
    """The output gate's part of the backward pass, for `kernels.loop`: from the gradient of h [rows, N] those before
    the sigmoid and of the state."""
    entry = _ACT.module("cpu", dh).GATE_BACKWARD[dh.dtype]
    return Direct(entry, (dh.numel(), torch.get_num_threads(), c, gate, dh, None, dgate, dc))


def gate_call(c: Each, gate: Each, h: torch.Tensor) -> Direct:
    """h = sigmoid(gate) c, and the gate its sigmoid in place, for `kernels.loop`."""
    entry = _ACT.module("cpu", h).GATE[h.dtype]
    return Direct(entry, (h.numel(), torch.get_num_threads(), c, gate, h))
