"""The kernels that only act: one step of an eLSTM layer, and a draw of actions."""

from __future__ import annotations

import pytest
import torch

from lifelong.kernels.allocator import keep_freed_memory
from lifelong.kernels.categorical import categorical_sample
from lifelong.kernels.elstm import ElstmAct, elstm_layer


def layer(B: int, D: int, N: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = [(2 * N, D), (2 * N,), (2 * N,), (N, D), (N, N), (N,), (B, N)]
    return [torch.randn(shape, dtype=dtype) * 0.4 for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("B", "D", "N"), [(1, 1, 1), (4, 3, 16), (5, 7, 33), (64, 4, 128), (3, 40, 20)])
def test_a_step_for_acting_equals_the_reference_layer(B: int, D: int, N: int, dtype: torch.dtype) -> None:
    *weights, c = layer(B, D, N, dtype)
    x, init = torch.randn(B, D, dtype=dtype), torch.rand(B) < 0.4
    expected, last, _, _ = elstm_layer(x[None], *weights, c, init[None], backend="reference")
    tolerance = 2e-6 if dtype is torch.float32 else 1e-14
    for P in (1, 3, 40):
        read, bias = torch.randn(P, N, dtype=dtype) * 0.4, torch.randn(P, dtype=dtype)
        with torch.no_grad():
            got, following, gate = ElstmAct()(x, *weights, read, bias, c, init)
        assert gate is not None
        torch.testing.assert_close(gate * following, expected[0], rtol=0, atol=tolerance)
        torch.testing.assert_close(got, torch.nn.functional.linear(expected[0], read, bias), rtol=0, atol=2 * tolerance)
    torch.testing.assert_close(following, last, rtol=0, atol=tolerance)


@pytest.mark.parametrize("fused", [False, True])
def test_acting_follows_the_optimiser(fused: bool) -> None:
    """The packed weights are renewed after every kind of update; fused optimisers need their writes counted."""
    *weights, c = layer(4, 3, 8, torch.float32)
    weights = [torch.nn.Parameter(w) for w in (*weights, torch.randn(2, 8), torch.randn(2))]
    optimizer = torch.optim.Adam(weights, lr=0.1, fused=fused)
    act, x, init = ElstmAct(), torch.randn(4, 3), torch.zeros(4, dtype=torch.bool)
    with torch.no_grad():
        before, _, _ = act(x, *weights, c, init)
    h, _, _, _ = elstm_layer(x[None], *weights[:6], c, init[None])
    torch.nn.functional.linear(h, *weights[6:]).sum().backward()
    optimizer.step()
    torch.autograd.graph.increment_version(weights)
    with torch.no_grad():
        after, _, _ = act(x, *weights, c, init)
        expected, _, _ = ElstmAct()(x, *weights, c, init)
    assert torch.equal(after, expected) and not torch.allclose(after, before)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_draws_follow_the_probabilities_and_the_reference(backend: str) -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).expand(40_000, 4)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    action = categorical_sample(logits, uniform, backend=backend)
    share = torch.bincount(action, minlength=4) / 40_000
    torch.testing.assert_close(share, torch.softmax(logits[0], 0), rtol=0, atol=0.01)
    few = categorical_sample(logits[:500], uniform[:500], backend="reference")
    assert (few == action[:500]).float().mean() > 0.99  # rounding may move a draw that lies on an edge


def test_draws_from_a_slice_are_those_from_its_copy() -> None:
    wide, uniform = torch.randn(50, 6), torch.rand(50)
    for part in (wide[:, :4], wide[:, ::2], wide[::2, 1:].repeat(2, 1)):
        assert torch.equal(categorical_sample(part, uniform), categorical_sample(part.contiguous(), uniform))


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_impossible_actions_are_never_drawn_and_certain_ones_always(backend: str) -> None:
    logits = torch.tensor([[-1e9, 0.0, -1e9], [0.0, -1e9, -1e9], [-1e9, -1e9, 0.0]]).repeat(50, 1)
    uniform = torch.cat([torch.zeros(3), torch.rand(144), torch.full((3,), 1 - 2**-24)])
    action = categorical_sample(logits, uniform, backend=backend)
    assert action.tolist() == [1, 0, 2] * 50


def test_the_allocator_can_be_told_more_than_once() -> None:
    assert keep_freed_memory() == keep_freed_memory()
