"""The loop of compiled calls: each call is made in turn, on the row of its step."""

from __future__ import annotations

import pytest
import torch

from lifelong.kernels.categorical import categorical_call, categorical_sample
from lifelong.kernels.elstm import ElstmAct
from lifelong.kernels.loop import loop


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_loop_of_two_calls_is_the_calls_one_by_one(steps: int, dtype: torch.dtype) -> None:
    T, B, D, N, A = steps, 7, 3, 20, 4
    shapes = [(2 * N, D), (2 * N,), (2 * N,), (N, D), (N, N), (N,), (A + 1, N), (A + 1,)]
    weights = tuple(torch.randn(shape, dtype=dtype) for shape in shapes)
    x, uniform, is_init = torch.randn(T, B, D, dtype=dtype), torch.rand(T, B, dtype=dtype), torch.rand(T + 1, B) < 0.3
    state, read = torch.full((T + 1, B, N), float("nan"), dtype=dtype), torch.empty(T, B, A + 1, dtype=dtype)
    gate, action = torch.empty(T, B, N, dtype=dtype), torch.full((T, B), -1)
    state[0] = torch.randn(B, N, dtype=dtype)
    act = ElstmAct()
    assert act.compiled(x)
    c = state[0].clone()
    calls = [act.call(x, weights, state, is_init, read, gate), categorical_call(read[..., :-1], uniform, action)]
    loop(steps, calls, dtype)
    for t in range(steps):
        expected, c, expected_gate = act(x[t], *weights, c, is_init[t])
        assert torch.equal(read[t], expected) and torch.equal(state[t + 1], c)
        assert expected_gate is not None and torch.equal(gate[t], expected_gate)
        assert torch.equal(action[t], categorical_sample(expected[:, :-1], uniform[t]))
