"""Triton kernels against the reference; run by test_triton.py in a process with TRITON_INTERPRET=1, or on a GPU.

The interpreter runs about 700 program steps a second, so the cases are tiny.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lifelong.envs.control.cartpole import CartPole
from lifelong.kernels.advantages import gae, vtrace
from lifelong.kernels.cartpole import cartpole_step
from lifelong.kernels.diag_scan import diag_scan
from lifelong.kernels.elstm import elstm_layer
from lifelong.kernels.gru_sequence import gru_sequence
from lifelong.kernels.lstm_sequence import lstm_sequence
from lifelong.kernels.project import project
from lifelong.kernels.recurrence.program import traced
from lifelong.kernels.recurrence.triton_backend import OnDevice
from lifelong.kernels.rtrl import rtrl_advance, rtrl_advance_vector, rtrl_boundary
from lifelong.kernels.rtrl_block import rtrl_block_advance, rtrl_block_advance_vector, rtrl_block_boundary
from tests.kernels.support import RECURRENCES, assert_close, gradients, recurrence
from tests.kernels.test_recurrence import Random, values

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 1e-4
CASES = [(1, 2, 5, "none"), (4, 2, 13, "some"), (3, 1, 16, "all"), (3, 2, 130, "first")]


def normal(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape).to(DEVICE).requires_grad_(grad)


def resets(T: int, B: int, kind: str) -> torch.Tensor:
    is_init = torch.rand(T, B) < {"none": 0.0, "some": 0.3, "all": 2.0, "first": 0.0}[kind]
    if kind == "first":
        is_init[0] = True
    return is_init.to(DEVICE)


@pytest.fixture(autouse=True)
def seed(poisoned_memory: None) -> None:
    torch.manual_seed(0)


def same_as_reference(
    op: Callable[..., tuple[torch.Tensor, torch.Tensor]], inputs: tuple[torch.Tensor, ...], is_init: torch.Tensor
) -> None:
    """Outputs and all gradients of a sequence, from both outputs and from each of them alone."""
    got, expected = (op(*inputs, is_init, backend=name) for name in ("triton", "reference"))
    for a, b in zip((*got, *gradients(got, inputs)), (*expected, *gradients(expected, inputs)), strict=True):
        assert_close(a, b, TOLERANCE)
    for which in (0, 1):
        got, expected = (op(*inputs, is_init, backend=name) for name in ("triton", "reference"))
        for a, b in zip(gradients((got[which],), inputs), gradients((expected[which],), inputs), strict=True):
            assert_close(a, b, TOLERANCE)


def test_elstm_layer_and_advance() -> None:
    T, B, N, D = 3, 2, 5, 4
    shapes = [(T, B, D), (2 * N, D), (2 * N,), (2 * N,), (N, D), (N, N), (N,), (B, N)]
    inputs = tuple(normal(*shape, grad=True) for shape in shapes)
    is_init, boundary, S, s = resets(T, B, "some"), normal(B, N), normal(B, 2, N, D), normal(B, 4, N)
    results = []
    for name in ("triton", "reference"):
        h, last, c, u = elstm_layer(*inputs, is_init, backend=name)
        carry, small = S.clone(), s.clone()
        states = torch.cat([inputs[7][None], c[:-1]]).detach()
        x, weight, bias, v = inputs[:4]
        added = recurrence("elstm").advance(
            carry[:, None],
            small[:, None],
            x,
            weight,
            bias,
            v.view(2, N),
            states,
            is_init,
            boundary_BS=boundary,
            backend=name,
        )
        results.append((h, last, c, u, carry, small, *added, *gradients((h, last, c), inputs)))
    for a, b in zip(*results, strict=True):
        assert_close(a, b, TOLERANCE)


@pytest.mark.parametrize(("T", "B", "G", "N", "D"), [(1, 2, 1, 5, 3), (3, 3, 2, 17, 70), (4, 1, 2, 40, 9)])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_rtrl(T: int, B: int, G: int, N: int, D: int, stored: torch.dtype) -> None:
    S, l, x = normal(B, G, N, D).to(stored), normal(T, B, G, N), normal(T, B, D)  # noqa: E741
    a = normal(T, B, N).tanh().masked_fill(resets(T, B, "some")[..., None], 0.0)
    boundary = normal(B, N)
    for chosen in (None, boundary):
        (got, grad), (expected, expected_grad) = (
            rtrl_advance(S.clone(), a, l, x, boundary_BN=chosen, backend=name) for name in ("triton", "reference")
        )
        assert_close(got, expected, TOLERANCE if stored == torch.float32 else 5e-3)  # the interpreter truncates
        if chosen is not None:
            assert_close(grad, expected_grad, TOLERANCE)
    index = torch.tensor([B - 1, 0, 0], device=DEVICE)
    rows = normal(3, N)
    assert_close(
        rtrl_boundary(S, rows, index, backend="triton"), rtrl_boundary(S, rows, index, backend="reference"), TOLERANCE
    )
    assert_close(
        rtrl_boundary(S, boundary, backend="triton"), rtrl_boundary(S, boundary, backend="reference"), TOLERANCE
    )


@pytest.mark.parametrize(("T", "B", "K", "N"), [(1, 2, 1, 5), (3, 2, 2, 17), (4, 1, 3, 130)])
def test_rtrl_vector(T: int, B: int, K: int, N: int) -> None:
    S, a, l, boundary = normal(B, K, N), normal(T, B, N).tanh(), normal(T, B, K, N), normal(B, N)  # noqa: E741
    got, expected = (
        rtrl_advance_vector(S.clone(), a, l, boundary_BN=boundary, backend=name) for name in ("triton", "reference")
    )
    for p, q in zip(got, expected, strict=True):
        assert p is not None
        assert q is not None
        assert_close(p, q, TOLERANCE)


@pytest.mark.parametrize(("T", "B"), [(1, 3), (6, 5), (4, 130)])
def test_advantages(T: int, B: int) -> None:
    terminated, truncated = resets(T, B, "some"), resets(T, B, "some")
    tensors = (normal(T, B), normal(T, B), normal(B), terminated, truncated, normal(T, B))
    for a, b in zip(*(gae(*tensors, 0.9, 0.8, backend=name) for name in ("triton", "reference")), strict=True):
        assert_close(a, b, TOLERANCE)
    log_ratio = normal(T, B)
    log_ratio[0, 0] = 500.0
    for a, b in zip(
        *(vtrace(log_ratio, *tensors, 0.9, 0.8, 1.5, 0.9, backend=name) for name in ("triton", "reference")),
        strict=True,
    ):
        assert_close(a, b, TOLERANCE)


@pytest.mark.parametrize(("T", "B", "N", "kind"), CASES)
@pytest.mark.parametrize("reverse", [False, True])
def test_diag_scan(T: int, B: int, N: int, kind: str, reverse: bool) -> None:
    inputs = (normal(T, B, N, grad=True), normal(T, B, N, grad=True), normal(B, N, grad=True))
    is_init = resets(T, B, kind)
    got, expected = (diag_scan(*inputs, is_init, reverse, backend=name) for name in ("triton", "reference"))
    for a, b in zip((*got, *gradients(got, inputs)), (*expected, *gradients(expected, inputs)), strict=True):
        assert_close(a, b, TOLERANCE)
    bare, plain = (diag_scan(*inputs[:2], reverse=reverse, backend=name) for name in ("triton", "reference"))
    for a, b in zip((*bare, *gradients(bare, inputs[:2])), (*plain, *gradients(plain, inputs[:2])), strict=True):
        assert_close(a, b, TOLERANCE)


@pytest.mark.parametrize(("T", "B", "N", "kind"), CASES)
@pytest.mark.parametrize("name", RECURRENCES)
def test_recurrences_of_cells(name: str, T: int, B: int, N: int, kind: str) -> None:
    (gates, vectors, parts), made = RECURRENCES[name], recurrence(name)
    inputs = (normal(T, B, gates * N, grad=True), normal(vectors, N, grad=True), normal(B, parts * N, grad=True))

    def op(u: torch.Tensor, v: torch.Tensor, state: torch.Tensor, is_init: torch.Tensor, backend: str) -> Any:
        found, last = made.sequence(u, v, state, is_init, backend=backend)
        return torch.cat(found, -1), last

    same_as_reference(op, inputs, resets(T, B, kind))
    before, is_init = normal(T, B, parts * N), resets(T, B, kind)
    local = (made.local(*inputs[:2], before, is_init, backend=name) for name in ("triton", "reference"))
    for a, b in zip(*local, strict=True):
        assert_close(a, b, TOLERANCE)


@pytest.mark.parametrize("lines", [range(0, 14), range(12, 27), range(26, 40)])
def test_every_operation_of_the_compiler(lines: range) -> None:
    """In a recurrence of three parts that uses all the random ones of `test_recurrence.py` one after the other."""
    function = Random(2, 2, 3, [(i, (2 * i + 1, i, i + 3)) for i in lines])
    made = OnDevice(traced(function, None, 2, 2, 3))
    for got, expected in zip(values(made, function, torch.float32), values(None, function, torch.float32), strict=True):
        assert_close(got, expected, TOLERANCE)


@pytest.mark.parametrize(
    ("T", "B", "G", "N", "D", "stored", "parts"),
    [
        (*shape, stored, parts)
        for shape in ((1, 2, 1, 5, 3), (3, 3, 2, 17, 70), (4, 1, 2, 40, 9))
        for stored, parts in ((torch.float32, 2), (torch.bfloat16, 2), (torch.float32, 3))
    ]
    + [(3, 2, 1, 6, 5, torch.float32, 8)],
)
def test_rtrl_block(T: int, B: int, G: int, N: int, D: int, stored: torch.dtype, parts: int) -> None:
    S, x = normal(B, parts, G, N, D).to(stored), normal(T, B, D)
    l = normal(T, B, parts, G, N)  # noqa: E741
    J = normal(T, B, parts, parts, N).tanh().masked_fill(resets(T, B, "some")[..., None, None, None], 0.0)
    got, expected = (rtrl_block_advance(S.clone(), J, l, x, backend=name) for name in ("triton", "reference"))
    assert_close(got, expected, TOLERANCE if stored == torch.float32 else 5e-3)  # the interpreter truncates
    s = normal(B, parts, G, N)
    got, expected = (rtrl_block_advance_vector(s.clone(), J, l, backend=name) for name in ("triton", "reference"))
    assert_close(got, expected, TOLERANCE)
    rows, index = normal(B, parts, N), torch.tensor([B - 1, 0, 0], device=DEVICE)
    for boundary, chosen in ((rows, None), (normal(3, parts, N), index)):
        got, expected = (rtrl_block_boundary(S, boundary, chosen, backend=name) for name in ("triton", "reference"))
        assert_close(got, expected, TOLERANCE)


DENSE = [(1, 3, 5, "none"), (4, 17, 20, "some"), (3, 2, 16, "all"), (2, 2, 70, "first")]


@pytest.mark.parametrize(("T", "B", "N", "kind"), DENSE)
def test_gru(T: int, B: int, N: int, kind: str) -> None:
    shapes = [(T, B, 3 * N), (3 * N, N), (N,), (B, N)]
    same_as_reference(gru_sequence, tuple(normal(*shape, grad=True) for shape in shapes), resets(T, B, kind))


@pytest.mark.parametrize(("T", "B", "N", "kind"), DENSE)
def test_lstm(T: int, B: int, N: int, kind: str) -> None:
    shapes = [(T, B, 4 * N), (4 * N, N), (B, 2 * N)]
    same_as_reference(lstm_sequence, tuple(normal(*shape, grad=True) for shape in shapes), resets(T, B, kind))


def test_many_copies_of_a_dense_cell_go_through_wider_programs() -> None:
    T, B, N = 1, 2049, 3
    is_init = resets(T, B, "some")
    inputs = (
        normal(T, B, 3 * N, grad=True),
        normal(3 * N, N, grad=True),
        normal(N, grad=True),
        normal(B, N, grad=True),
    )
    same_as_reference(gru_sequence, inputs, is_init)


@pytest.mark.parametrize(("M", "N", "K", "J"), [(1, 1, 1, 1), (18, 70, 7, 0), (5, 130, 66, 3), (33, 16, 0, 20)])
def test_project(M: int, N: int, K: int, J: int) -> None:
    basis, left = (torch.linalg.qr(torch.randn(n, k))[0].to(DEVICE) for n, k in ((N, K), (M, J)))
    whole = normal(M, 2 * N)
    for sides in (None, left):
        results = [project(whole.clone()[:, ::2], basis, sides, backend=name) for name in ("triton", "reference")]
        assert_close(results[0], results[1], TOLERANCE)


@pytest.mark.parametrize("B", [3, 130])
def test_cartpole(B: int) -> None:
    """The environment in torch and the kernel, from the same states: dynamics, limits, resets."""
    env = CartPole(
        B, device=DEVICE, length=[0.5 + b % 3 for b in range(B)], max_episode_steps=[b % 4 for b in range(B)]
    )
    d, p = env._derived, env.params
    rows = (d.push_B, d.pole_share_B, d.inertia_B, d.mass_share_B, p["tau"], p["gravity"])
    constants, action = torch.stack(rows), torch.randint(2, (B,)).to(DEVICE)
    env._constants_6B = None
    env.reset(seed=1)
    env.state.physics.mul_(4.0)  # some of them fall
    env.state.physics[::3, 2] = 5.0 * torch.randn(len(env.state.physics[::3])).to(DEVICE)  # any angle
    env.age_B, env.return_B = torch.randint(3, (B,)).to(DEVICE), normal(B)
    before = (env.state.physics.clone(), env.age_B, env.return_B)
    random = env.generator.get_state()
    fresh = env.draw_state().physics
    env.generator.set_state(random)
    obs, reward, terminated, truncated, info = env.step(action)
    got = cartpole_step(
        before[0], action, fresh, before[1], before[2], p["max_episode_steps"], constants, backend="triton"
    )
    assert_close(got.physics_B4, obs, 1e-6)
    assert_close(got.final_B4, info["final_obs"], 1e-6)
    assert terminated.any() and truncated.any() and not (terminated | truncated).all()
    for a, b in (
        (got.age_B, env.age_B),
        (got.return_B, env.return_B),
        (got.final_age_B, info["episode_length"]),
        (got.final_return_B, info["episode_return"]),
        (got.reward_B, reward),
        (got.terminated_B, terminated),
        (got.truncated_B, truncated),
        (got.done_B, info["_final_obs"]),
    ):
        assert a.dtype == b.dtype and torch.equal(a, b)
