"""The cells of the field against what we did not write, or against a second implementation of a paper's equations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong.agent import registry
from lifelong.agent.cells.base import Cell

D, N, T, B = 5, 6, 9, 3


def make(name: str, input_size: int = D, **options: Any) -> Any:
    torch.manual_seed(1)
    cell: Cell = registry.build("cell", {"kind": name, "size": N, **options}, input_size).double()
    return cell


def data(cell: Cell) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, a state and resets, of which some are at the first step."""
    g = torch.Generator().manual_seed(2)
    x = torch.randn(T, B, cell.input_size, generator=g, dtype=torch.float64)
    state = torch.randn(B, cell.state_size, generator=g, dtype=torch.float64)
    return x, state, torch.rand(T, B, generator=g) < 0.3


def arrays(cell: Any) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy() for name, parameter in cell.named_parameters()}


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


# ---- complex units, with NumPy's complex numbers ---------------------------------------------------------------------


@pytest.mark.parametrize("form", ["linear", "nonlinear"])
def test_rtu_is_a_decaying_rotation_of_the_paper(form: str) -> None:
    cell = make("rtu", form=form, max_radius=0.9)
    x, state, is_init = data(cell)
    p, h = arrays(cell), state[:, :N].numpy() + 1j * state[:, N:].numpy()
    y, final = cell.sequence(x, state, is_init)
    weight, bias = p["weight_input"].reshape(2, N, D), p["bias"].reshape(2, N)
    r = np.minimum(np.exp(-np.exp(p["weight_recurrent"][0])), 0.9)
    assert (r == 0.9).any() and (r < 0.9).any()
    turn = r * np.exp(1j * np.exp(p["weight_recurrent"][1]))
    for t in range(T):
        h = h * ~is_init[t].numpy()[:, None]
        u = x[t].numpy() @ (weight[0] + 1j * weight[1]).T + bias[0] + 1j * bias[1]
        h = turn * h + np.sqrt(1 - r**2) * u
        said = np.tanh(h.real) + 1j * np.tanh(h.imag)
        h = said if form == "nonlinear" else h
        np.testing.assert_allclose(y[t].detach(), np.concatenate([said.real, said.imag], -1), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(final.detach(), np.concatenate([h.real, h.imag], -1), rtol=1e-10, atol=1e-12)


def test_lru_is_a_convolution_with_the_powers_of_its_eigenvalues() -> None:
    """Without a reset h_T = lambda^T h_0 + sum lambda^(T-s) gamma B x_s (Orvieto et al. 2023, eq. 4)."""
    cell = make("lru")
    x, state, is_init = data(cell)
    p, h0 = arrays(cell), state[:, :N].numpy() + 1j * state[:, N:].numpy()
    y, _ = cell.sequence(x, state, torch.zeros_like(is_init))
    decay, angle, scale = np.exp(p["weight_recurrent"])
    eigen = np.exp(-decay + 1j * angle)
    B_ND = p["weight_input"][:N] + 1j * p["weight_input"][N:]
    C_NN = p["output_state"][:, :N] - 1j * p["output_state"][:, N:]
    for t in range(T):
        h = eigen ** (t + 1) * h0
        for s in range(t + 1):
            h = h + eigen ** (t - s) * scale * (x[s].numpy() @ B_ND.T)
        expected = (h @ C_NN.T).real + x[t].numpy() @ p["output_input"].T
        np.testing.assert_allclose(y[t].detach(), expected, rtol=1e-10, atol=1e-12)
    # a driven unit has the variance of its input: gamma is the square root of 1 - |lambda|^2
    np.testing.assert_allclose(scale**2 + np.abs(eigen) ** 2, 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["rtu", "lru"])
def test_the_eigenvalues_are_spread_uniformly_over_the_ring(name: str) -> None:
    torch.manual_seed(0)
    cell = registry.build("cell", {"kind": name, "size": 4000, "radius": [0.6, 0.9], "max_phase": 1.0}, 2)
    decay, angle = cell.weight_recurrent.detach().exp()[:2]
    radius = torch.exp(-decay)
    assert float(radius.min()) >= 0.6 and float(radius.max()) <= 0.9 and float(angle.max()) <= 1
    area = (radius**2 - 0.36) / (0.81 - 0.36)
    assert abs(float(area.mean()) - 0.5) < 0.02 and abs(float(angle.mean()) - 0.5) < 0.02


# ---- gates that read the input alone ---------------------------------------------------------------------------------


def test_min_gru_is_a_weighted_sum_of_its_candidates() -> None:
    """h_T = h_0 prod (1 - z) + sum_s z_s cand_s prod_{r > s} (1 - z_r): the paper's scan, in logarithms."""
    cell = make("min_gru")
    x, state, _ = data(cell)
    y, _ = cell.sequence(x, state, torch.zeros(T, B, dtype=torch.bool))
    u = x @ cell.weight_input.T + cell.bias
    kept = torch.nn.functional.logsigmoid(-u[..., :N]).cumsum(0)
    weights = torch.exp(kept[:, None] - kept[None]) * torch.sigmoid(u[..., :N])[None]  # [t, s]
    weights = weights * torch.ones(T, T).tril()[..., None, None]
    expected = (weights * u[None, ..., N:]).sum(1) + kept.exp() * state
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    bias = registry.build("cell", {"kind": "min_gru", "size": 500}, 2).bias.detach()
    assert float(bias[:500].min()) >= -4 and float(bias[:500].max()) <= 0 and not bias[500:].any()
    assert math.isclose(float(bias[:500].mean()), -2, abs_tol=0.3)
