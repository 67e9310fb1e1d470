"""Compiled linear layers: values and gradients are those of torch, whatever the shape and wherever rows lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lifelong.kernels.dense import ACTIVATIONS, Dense
from lifelong.kernels.loop import Each, Prepared, loop

SHAPES = [
    (1, 4, 64),
    (64, 5, 64),
    (1, 128, 200),
    (7, 3, 5),
    (129, 100, 100),
    (13, 1, 17),
    (65, 33, 33),
    (2, 2, 2),
    (600, 7, 40),
]
FUNCTIONS: dict[str, Any] = {
    "none": lambda z: z,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "crelu": lambda z: torch.cat([z.relu(), (-z).relu()], -1),
}


def apart(rows: int, columns: int, gap: int, dtype: torch.dtype) -> Tensor:
    """Rows that lie `gap` numbers apart, the last of them at the very end of their memory; NaN between them."""
    memory = torch.full((rows * (columns + gap) - gap,), float("nan"), dtype=dtype)
    return memory.as_strided((rows, columns), (columns + gap, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_a_layer_and_its_gradients_are_torchs(M: int, K: int, N: int, activation: str, dtype: torch.dtype) -> None:
    linear = nn.Linear(K, N, dtype=dtype)
    x, known = apart(M, K, 3, dtype), torch.randn(M, K, dtype=dtype, requires_grad=True)
    x.copy_(known.detach())
    expected = FUNCTIONS[activation](linear(known))
    layer = Dense(linear.weight, linear.bias, activation, rows=M)
    y, dy = apart(M, layer.outputs, 2, dtype), torch.randn(M, layer.outputs, dtype=dtype)
    expected.backward(dy)
    dz, dx, before = apart(M, N, 1, dtype), apart(M, K, 5, dtype), torch.randn(M, K, dtype=dtype)
    dx.copy_(before)
    dweight, dbias = torch.ones(N, K, dtype=dtype), torch.ones(N, dtype=dtype)
    backward = layer.backward(x, y, dy, dz, dweight, dbias, dx, add=True)
    loop(1, [*layer.pack(), layer.forward(x, y), *backward], dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    assert known.grad is not None and linear.weight.grad is not None and linear.bias.grad is not None
    pairs = [(y, expected), (dx - before, known.grad), (dweight - 1, linear.weight.grad), (dbias - 1, linear.bias.grad)]
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted.detach(), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("M", "N"), [(50, 21), (2, 21), (50, 64), (3, 150)])
def test_categories_are_read_as_one_hot(M: int, N: int, dtype: torch.dtype) -> None:
    """Many rows and few, sums that stay in registers and that do not."""
    counts = torch.tensor([3, 1, 5])
    offsets = counts.cumsum(0) - counts
    linear = nn.Linear(9, N, dtype=dtype)
    ids = torch.stack([torch.randint(int(count), (M,)) for count in counts], 1)
    one_hot = torch.zeros(M, 9, dtype=dtype).scatter_(1, ids + offsets, 1.0)
    layer, y = Dense(linear.weight, linear.bias, "tanh", offsets), torch.empty(M, N, dtype=dtype)
    expected, dy = linear(one_hot).tanh(), torch.randn(M, N, dtype=dtype)
    expected.backward(dy)
    dweight, dbias = torch.zeros(N, 9, dtype=dtype), torch.zeros(N, dtype=dtype)
    backward = layer.backward(ids, y, dy, dy, dweight, dbias, None, add=False)
    loop(1, [*layer.pack(), layer.forward(ids, y), *backward], dtype)
    assert linear.weight.grad is not None and linear.bias.grad is not None
    for got, wanted in [(y, expected.detach()), (dweight, linear.weight.grad), (dbias, linear.bias.grad)]:
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_categories_of_another_type_are_refused() -> None:
    linear, ids = nn.Linear(9, 4), torch.zeros(2, 3, dtype=torch.uint8)
    layer = Dense(linear.weight, linear.bias, "tanh", torch.tensor([0, 3, 4]))
    with pytest.raises(TypeError, match=r"torch.int64 here, not torch.uint8"):
        layer.forward(ids, torch.empty(2, 4))


def test_a_row_is_the_same_alone_and_among_others() -> None:
    """What acts on one copy and what learns from many agree to the last bit."""
    linear, x = nn.Linear(37, 130), torch.randn(100, 37)
    layer, all_, alone = Dense(linear.weight, linear.bias, "tanh"), torch.empty(100, 130), torch.empty(100, 1, 130)
    loop(1, [*layer.pack(), layer.forward(x, all_)], x.dtype)
    loop(100, [layer.forward(Each(x[:, None]), Each(alone))], x.dtype)
    assert torch.equal(all_, alone[:, 0])


def test_packed_weights_are_those_of_the_last_pack() -> None:
    linear, x, y = nn.Linear(3, 4), torch.randn(2, 3), torch.empty(2, 4)
    layer = Dense(linear.weight, linear.bias)
    pack, forward = Prepared(layer.pack(), x.dtype), Prepared([layer.forward(x, y)], x.dtype)
    pack.run()
    old = linear(x).detach()
    with torch.no_grad():
        linear.weight.add_(1.0)
    forward.run()
    torch.testing.assert_close(y, old)
    pack.run()
    forward.run()
    torch.testing.assert_close(y, linear(x).detach())
