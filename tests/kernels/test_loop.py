"""The loop of compiled calls: each call is made in turn, on the row of its step."""

from __future__ import annotations

import pytest
import torch

from lifelong.kernels.categorical import categorical_call, categorical_sample
from lifelong.kernels.dense import copy
from lifelong.kernels.elstm import ElstmAct
from lifelong.kernels.loop import Direct, Each, Program, Segment, Watched, loop


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
    layer = act.calls(x, weights, state, is_init, read, gate)
    loop(1, layer.pack, dtype)
    loop(steps, [*layer.step, categorical_call(read[..., :-1], uniform, action)], dtype)
    for t in range(steps):
        expected, c, expected_gate = act(x[t], *weights, c, is_init[t])
        assert torch.equal(read[t], expected) and torch.equal(state[t + 1], c)
        assert expected_gate is not None and torch.equal(gate[t], expected_gate)
        assert torch.equal(action[t], categorical_sample(expected[:, :-1], uniform[t]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_function_is_called_with_its_integers_and_numbers(dtype: torch.dtype) -> None:
    """Integers, pointers and doubles reach a function in whatever order it takes them."""
    from lifelong.kernels.advantages import cpu, reference  # the longest mixed signature there is

    T, B = 5, 7
    draws = [torch.randn(T, B, dtype=dtype) for _ in range(4)]
    bootstrap, ended = torch.randn(B, dtype=dtype), [torch.rand(T, B) < 0.2 for _ in range(2)]
    target, advantage = torch.empty(T, B, dtype=dtype), torch.empty(T, B, dtype=dtype)
    numbers = 0.9, torch.tensor(0.8, dtype=torch.float64), 1.0, 0.7, 0.8
    inputs = draws[0], draws[1], draws[2], bootstrap, *ended, draws[3]
    loop(1, [Direct(cpu._VTRACE[dtype], (T, B, 1, *numbers, *inputs, target, advantage))], dtype)
    expected = reference.vtrace(inputs, 0.9, 0.8, 1.0, 0.7, 0.8)
    for got, wanted in zip((target, advantage), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_program_goes_round_until_a_watched_number_is_not_finite() -> None:
    K, T, B = 4, 3, 2
    source, steps = torch.arange(K * T * B, dtype=torch.float32).view(K * T, B), torch.full((K * T, B), -1.0)
    some, mask = torch.full((K * T * B, 1), -1.0), torch.arange(K * T * B) % 5 == 0
    veto = torch.arange(K * T * B) == 10
    watched, last = torch.tensor([[1.0], [2.0], [float("inf")], [3.0]]), torch.full((K, B), -1.0)
    segments = [
        Segment([copy(Each(source), Each(steps))], T),
        Segment([copy(Each(source.view(-1, 1)), Each(some))], where=(mask, veto)),
        Segment([]),
        Segment([copy(Each(source.view(K, T, B)[:, -1]), Each(last))]),
    ]
    assert Program(K, segments, Watched(2, watched), source.dtype).run() == 2
    assert torch.equal(steps[: 3 * T], source[: 3 * T]) and bool((steps[3 * T :] == -1).all())
    assert torch.equal(last[:2], source.view(K, T, B)[:2, -1]) and bool((last[2:] == -1).all())
    named = (mask & ~veto)[: 3 * T * B]
    assert torch.equal(some[: len(named)][named, 0], source.flatten()[: len(named)][named])
    assert bool((some[: len(named)][~named] == -1).all())
