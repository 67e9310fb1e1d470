"""Linear layers with an activation as compiled calls for `kernels.loop`, forward and backward, on the CPU.

    y = act(x W^T + b)        act: none, tanh, relu, crelu (max(z, 0) and max(-z, 0) side by side: 2N outputs)

Small layers over few rows cost torch more in overhead than in work; here all calls of a chunk are made in one. Products
are tiles of registers over weights that were packed once (`Dense.pack`), and their sums run in one order, whatever the
number of rows and threads. Rows may lie apart: every tensor of rows is [..., rows, columns] with its last stride 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lifelong.kernels.dispatch import Op
from lifelong.kernels.loop import Call, Each

_OP = Op("dense", "lifelong.kernels.dense", backends=("cpu",))
#: by name, as in cpu.c
ACTIVATIONS = {"none": 0, "tanh": 1, "relu": 2, "crelu": 3}
_ALIGNED = 16  # numbers that a row of packed weights is filled up to; a multiple of what cpu.c needs

Rows = Tensor | Each


def available(sample: Tensor) -> bool:
    """Whether layers of tensors like `sample` can be compiled."""
    return _OP.compiled(sample)


def packed(weight: Tensor, *, transposed: bool = False) -> Tensor:
    """The weight [N, K], or its transpose, with rows as the products of compiled kernels read them (`PADDED`)."""
    weight = weight.detach().contiguous()
    rows, columns = weight.shape[::-1] if transposed else weight.shape
    to = weight.new_empty(rows * _filled(columns))
    _OP.module("cpu", weight).PACK_NOW[weight.dtype](rows, columns, transposed, weight.data_ptr(), to.data_ptr())
    return to


class Dense:
    """A linear layer with its activation.

    Args:
        weight: [N, K], contiguous.
        bias: [N].
        activation: one of `ACTIVATIONS`.
        offsets: where the layer reads categories one-hot, int64: at which of the K inputs each of them begins.

    The tensors are read where they lie: `pack` has to run whenever they have changed.
    """

    def __init__(self, weight: Tensor, bias: Tensor, activation: str = "none", offsets: Tensor | None = None) -> None:
        self.weight, self.bias, self.offsets = weight.detach(), bias.detach(), offsets
        self.kind = ACTIVATIONS[activation]
        self.units, self.inputs = weight.shape
        #: columns of the output
        self.outputs = self.units * (2 if activation == "crelu" else 1)
        full = [_filled(n) for n in (self.units, self.inputs)]
        self._by_input = weight.new_zeros(self.inputs * full[0])
        self._by_unit = weight.new_zeros(self.units * full[1])
        self._bias = weight.new_zeros(full[0])

    def pack(self, backward: bool = True) -> list[Call]:
        """Read the weights, as `forward` and, with `backward`, `inputs` need them."""
        cpu = _OP.module("cpu", self.weight)
        calls = [
            Call(cpu.PACK, (self.inputs, self.units, 1), (self.weight, self._by_input)),
            Call(cpu.PACK, (1, self.units, 0), (self.bias, self._bias)),
        ]
        return (
            [*calls, Call(cpu.PACK, (self.units, self.inputs, 0), (self.weight, self._by_unit))] if backward else calls
        )

    def forward(self, x: Rows, y: Rows) -> Call:
        """From x [M, K], or ids int64 [M, categories], contiguous, to y [M, outputs]."""
        cpu, threads, (M, width), ys = _OP.module("cpu", self.weight), torch.get_num_threads(), _shape(x), _stride(y)
        if self.offsets is not None:
            arguments = (x, self.offsets, self._by_input, self._bias, y)
            return Call(cpu.COLUMNS, (M, width, self.units, self.kind, ys, threads), arguments)
        sizes = (M, width, self.units, self.kind, _stride(x), ys, threads)
        return Call(cpu.FORWARD, sizes, (x, self._by_input, self._bias, y))

    def backward(
        self,
        x: Tensor,
        y: Tensor,
        dy: Tensor,
        dz: Tensor,
        dweight: Tensor,
        dbias: Tensor,
        dx: Tensor | None,
        *,
        add: bool,
    ) -> list[Call]:
        """Add to `dweight` [N, K] and `dbias` [N], and write the gradient of x if `dx` is given, or add to it.

        Args:
            x, y: [M, ...] as `forward` had them.
            dy: the gradient of y.
            dz: scratch [M, N]; `dy` itself will do unless the activation is crelu.
            dweight, dbias, dx: what is computed.
            add: whether `dx` is added to.
        """
        cpu, threads, (M, width) = _OP.module("cpu", self.weight), torch.get_num_threads(), _shape(x)
        N, zs = self.units, _stride(dz)
        calls = []
        if self.kind or dz is not dy:
            sizes = (M, N, self.kind, _stride(y), _stride(dy), zs, threads)
            calls.append(Call(cpu.SLOPE, sizes, (y, dy, dz)))
        if self.offsets is not None:
            arguments = (x, self.offsets, dz, dweight, dbias)
            return [*calls, Call(cpu.COLUMNS_WEIGHTS, (M, width, N, self.inputs, zs), arguments)]
        calls.append(Call(cpu.WEIGHTS, (M, width, N, _stride(x), zs, threads), (x, dz, dweight, dbias)))
        if dx is not None:
            sizes = (M, width, N, zs, _stride(dx), int(add), threads)
            calls.append(Call(cpu.INPUTS, sizes, (dz, self._by_unit, dx)))
        return calls


def _filled(n: int) -> int:
    return -(-n // _ALIGNED) * _ALIGNED


def _rows(x: Rows) -> Tensor:
    return x.rows if isinstance(x, Each) else x


def _shape(x: Rows) -> Sequence[int]:
    return _rows(x).shape[-2:]


def _stride(x: Rows) -> int:
    """How far rows lie apart; the last dimension must be in one piece."""
    rows = _rows(x)
    assert rows.stride(-1) == 1 or rows.shape[-1] == 1
    return rows.stride(-2)
