"""Shared by the kernel tests: the backends, the error measure, poisoned memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lifelong.agent.registry import load
from lifelong.kernels.recurrence import Recurrence

#: element-wise cells, and how many drives, weights and parts of state they have
RECURRENCES = {"elstm": (2, 2, 1), "diagonal_gru": (3, 3, 1), "diagonal_lstm": (3, 5, 2)}
BACKENDS = ["reference", "torch", "cpu"]
FAST_BACKENDS = ["torch", "cpu"]


@functools.cache
def recurrence(name: str) -> Recurrence:
    """The recurrence of a registered cell."""
    return Recurrence(functools.partial(load("cell", name).recurrence, None), *RECURRENCES[name])


def elstm_sequence(
    u: torch.Tensor, v: torch.Tensor, c0: torch.Tensor, is_init: torch.Tensor, *, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(c_TBN, c_BN) of the eLSTM's recurrence; v is [2N]."""
    (c,), last = recurrence("elstm").sequence(u, v.reshape(2, -1), c0, is_init, backend=backend)
    return c, last


def elstm_local(
    u: torch.Tensor, v: torch.Tensor, c_prev: torch.Tensor, is_init: torch.Tensor, *, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(a_TBN, l_TB2N)."""
    J, l, _ = recurrence("elstm").local(u, v.reshape(2, -1), c_prev, is_init, backend=backend)  # noqa: E741
    return J[:, :, 0, 0], l[:, :, 0].flatten(2)


def relative_rms(got: torch.Tensor, expected: torch.Tensor) -> float:
    """RMS of the difference over RMS of what is expected (absolute where all of that is zero)."""
    assert got.shape == expected.shape, f"{tuple(got.shape)} is not {tuple(expected.shape)}"
    got, expected = got.detach().cpu(), expected.detach().cpu()
    kind = torch.complex128 if expected.is_complex() else torch.float64
    scale = expected.to(kind).norm().item()
    return (got.to(kind) - expected.to(kind)).norm().item() / (scale or 1.0)


def assert_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    error = relative_rms(got, expected)
    assert error <= tolerance, f"relative RMS error {error:.2e} is above {tolerance:.0e}"


def gradients(
    outputs: tuple[torch.Tensor, ...], inputs: tuple[torch.Tensor, ...], allow_unused: bool = False
) -> tuple[torch.Tensor, ...]:
    """Gradients of a fixed random linear function of all outputs."""
    generator = torch.Generator().manual_seed(99)
    total: torch.Tensor = torch.zeros(())
    for output in outputs:
        weight = torch.randn(output.shape, dtype=torch.float64, generator=generator).to(output.device, output.dtype)
        total = total + (output * weight).sum().real
    return torch.autograd.grad(total, inputs, allow_unused=allow_unused)


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty and torch.empty_like return NaN, as uninitialised memory might."""

    def poison(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() or tensor.is_complex() else tensor

        return poisoned

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
