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
from lifelong.kernels.loop import Call, Direct, Each

_OP = Op("dense", "lifelong.kernels.dense", backends=("cpu",))
#: by name, as in cpu.c
ACTIVATIONS = {"none": 0, "tanh": 1, "relu": 2, "crelu": 3}
_ALIGNED = 16  # numbers that a row of packed weights is filled up to; a multiple of what cpu.c needs

Rows = Tensor | Each


def available(sample: Tensor) -> bool:
    """Whether layers of tensors like `sample` can be compiled."""
    return _OP.compiled(sample)


def transpose(matrix: Tensor, to: Tensor) -> Direct:
    """to = matrix^T, both in one piece."""
    return Direct(_OP.module("cpu", to).TRANSPOSE[to.dtype], (*matrix.shape, matrix, to))


def copy(tensor: Rows, to: Rows) -> Direct:
    """As many numbers as `tensor` has, or its rows have, of any type, which lie in one piece."""
    rows = _rows(tensor)
    assert (rows[0] if isinstance(tensor, Each) else rows).is_contiguous()
    count = rows[0].numel() if isinstance(tensor, Each) else rows.numel()
    entry = _OP.module("cpu", torch.empty(0)).COPY_BYTES[torch.float32]
    return Direct(entry, (count * rows.element_size(), tensor, to))


def multiply(a: Rows, b: Rows, to: Tensor) -> Direct:
    """to = a b, element by element."""
    return Direct(_OP.module("cpu", to).MULTIPLY[to.dtype], (to.numel(), a, b, to))


def gather(index: Rows, rows_TBn: Tensor, to: Tensor) -> Direct:
    """Of every step the copies `index` [b] (int64) of rows [T, B, ...], to [T, b, ...] in one piece; any type."""
    T, B, count = rows_TBn.shape[0], rows_TBn.shape[1], _rows(index).shape[-1]
    size, bytes_ = rows_TBn.element_size(), to.numel() // (T * count) * to.element_size()
    sizes = (T, B, count, bytes_, rows_TBn.stride(1) * size)
    assert T == 1 or rows_TBn.stride(0) == B * rows_TBn.stride(1)
    return Direct(_OP.module("cpu", torch.empty(0)).GATHER[torch.float32], (*sizes, index, rows_TBn, to))


def standardize(x: Tensor) -> Direct:
    """Mean 0 and standard deviation 1, in place."""
    return Direct(_OP.module("cpu", x).STANDARDIZE[x.dtype], (x.numel(), x))


def clear(tensor: Tensor) -> Direct:
    """Zeros."""
    return Direct(_OP.module("cpu", tensor).CLEAR[tensor.dtype], (tensor.numel(), tensor))


def add_groups(groups: Tensor, to: Tensor, *, transposed: bool = False) -> Direct:
    """to += groups.sum(0); with `transposed` groups [K, G, D, N] are added to [G, N, D]."""
    cpu = _OP.module("cpu", to)
    if transposed:
        return Direct(cpu.ADD_TRANSPOSED_GROUPS[to.dtype], (*groups.shape, groups, to))
    return Direct(cpu.ADD_GROUPS[to.dtype], (len(groups), to.numel(), groups, to))


def packing(weight: Tensor, *, transposed: bool = False) -> tuple[Tensor, Direct]:
    """Room for the weight [N, K], or its transpose, with rows as the products of compiled kernels read them (`PADDED`),
    and the call that fills it."""
    rows, columns = weight.shape[::-1] if transposed else weight.shape
    to = weight.new_empty(rows * _filled(columns))
    pack = _OP.module("cpu", weight).PACK[weight.dtype]
    return to, Direct(pack, (rows, columns, int(transposed), weight.detach().contiguous(), to))


def packed(weight: Tensor, *, transposed: bool = False) -> Tensor:
    """The weight as it is now (see `packing`)."""
    to, (pack, (rows, columns, _, now, _)) = packing(weight, transposed=transposed)
    assert isinstance(now, Tensor)
    pack(rows, columns, transposed, now.data_ptr(), to.data_ptr())
    return to


class Dense:
    """A linear layer with its activation.

    Args:
        weight: [N, K], contiguous.
        bias: [N].
        activation: one of `ACTIVATIONS`.
        offsets: where the layer reads categories one-hot, int64: at which of the K inputs each of them begins.
        rows: M of what `forward` reads; one row needs no packed weight.

    The tensors are read where they lie: `pack` has to run whenever they have changed.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, activation: str = "none", offsets: Tensor | None = None, *, rows: int = 0
    ) -> None:
        self.weight, self.bias, self.offsets = weight.detach().contiguous(), bias.detach().contiguous(), offsets
        self.alone = rows == 1 and offsets is None
        self.kind = ACTIVATIONS[activation]
        self.units, self.inputs = weight.shape
        #: columns of the output
        self.outputs = self.units * (2 if activation == "crelu" else 1)
        self._bias, self._by_input, self._by_unit = self.bias, self.weight, self.weight
        self._forward: list[Direct] = []
        self._backward: list[Direct] = []
        if not self.alone:
            self._by_input, pack_weight = packing(self.weight, transposed=True)
            self._bias, pack_bias = packing(self.bias[None])
            self._forward = [pack_weight, pack_bias]
        if self.inputs % _ALIGNED and offsets is None:
            self._by_unit, pack = packing(self.weight)
            self._backward = [pack]

    def pack(self, *, forward: bool = True, backward: bool = True) -> list[Direct]:
        """Read the weights, as `forward` and `inputs`, a part of `backward`, need them."""
        return [*(self._forward if forward else []), *(self._backward if backward else [])]

    def forward(self, x: Rows, y: Rows) -> Call:
        """From x [M, K], or ids int64 [M, categories], contiguous, to y [M, outputs]."""
        cpu, threads, (M, width), ys = _OP.module("cpu", self.weight), torch.get_num_threads(), _shape(x), _stride(y)
        self._check(x)
        if self.offsets is not None:
            arguments = (x, self.offsets, self._by_input, self._bias, y)
            return Call(cpu.COLUMNS, (M, width, self.units, self.kind, ys, threads), arguments)
        if self.alone:
            assert M == 1
            return Call(cpu.ONE, (width, self.units, self.kind), (x, self.weight, self.bias, y))
        sizes = (M, width, self.units, self.kind, _stride(x), ys, threads)
        return Call(cpu.FORWARD, sizes, (x, self._by_input, self._bias, y))

    def _check(self, x: Rows) -> None:
        """The C functions take the type on trust, and a category of another type is an address of anything."""
        wanted = self.weight.dtype if self.offsets is None else torch.int64
        if _rows(x).dtype != wanted:
            raise TypeError(f"a layer reads {wanted} here, not {_rows(x).dtype}")

    def add(self, x: Rows, y: Rows) -> Direct:
        """y += x W^T; for several rows."""
        sizes = (*_shape(x), self.units, _stride(x), _stride(y), torch.get_num_threads())
        return Direct(_OP.module("cpu", self.weight).ADD[self.weight.dtype], (*sizes, x, self._by_input, y))

    def backward(
        self,
        x: Rows,
        y: Rows,
        dy: Tensor,
        dz: Tensor,
        dweight: Tensor,
        dbias: Tensor | None,
        dx: Tensor | None,
        *,
        add: bool,
    ) -> list[Call]:
        """Add to `dweight` [N, K], to `dbias` [N] if it is given, and write the gradient of x to `dx` or add it there.

        Args:
            x, y: [M, ...] as `forward` had them.
            dy: the gradient of y.
            dz: scratch [M, N]; `dy` itself will do unless the activation is crelu.
            dweight, dbias, dx: what is computed.
            add: whether `dx` is added to.
        """
        cpu, threads, (M, width) = _OP.module("cpu", self.weight), torch.get_num_threads(), _shape(x)
        N, zs = self.units, _stride(dz)
        self._check(x)
        calls = []
        if self.kind or dz is not dy:
            sizes = (M, N, self.kind, _stride(y), _stride(dy), zs, threads)
            calls.append(Call(cpu.SLOPE, sizes, (y, dy, dz)))
        if self.offsets is not None:
            arguments = (x, self.offsets, dz, dweight, dbias, torch.empty_like(self.weight))
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
