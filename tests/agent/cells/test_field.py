"""The cells of the field against what we did not write, or against a second implementation of a paper's equations."""

from __future__ import annotations

import importlib
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


def test_min_lstm_is_the_papers_formula_with_normalised_gates() -> None:
    cell = make("min_lstm")
    x, state, is_init = data(cell)
    p, h = arrays(cell), state.numpy()
    y, _ = cell.sequence(x, state, is_init)
    for t in range(T):
        f, i, candidate = np.split(x[t].numpy() @ p["weight_input"].T + p["bias"], 3, -1)
        share = 1 / (1 + sigmoid(i) / sigmoid(f))
        h = share * h * ~is_init[t].numpy()[:, None] + (1 - share) * candidate
        np.testing.assert_allclose(y[t].detach(), h, rtol=1e-10, atol=1e-12)


def test_rg_lru_is_that_of_transformers() -> None:
    """Runs where transformers is installed; with 5.24.0 the largest difference was 1.1e-7."""
    gemma = pytest.importorskip("transformers.models.recurrent_gemma.modeling_recurrent_gemma")
    config = pytest.importorskip("transformers").RecurrentGemmaConfig(num_attention_heads=1, lru_width=N, hidden_size=N)
    reference, cell = gemma.RecurrentGemmaRglru(config).double(), make("rg_lru", N)
    with torch.no_grad():
        for kind, rows in (("recurrent", slice(0, N)), ("input", slice(N, 2 * N))):
            cell.weight_input[rows] = getattr(reference, f"{kind}_gate_weight")[0].T
            cell.bias[rows] = getattr(reference, f"{kind}_gate_bias")[0]
        cell.weight_input[2 * N :] = torch.eye(N)
        cell.weight_recurrent[0] = reference.recurrent_param
        x, state, is_init = data(cell)
        y, _ = cell.sequence(x, state, torch.zeros_like(is_init))
        for t in range(T):
            reference.recurrent_states = state
            expected = reference(x[t, :, None], torch.full((B, 1), t + 1))[:, 0]
            state = reference.recurrent_states
            torch.testing.assert_close(y[t], expected, rtol=0, atol=1e-5)


def test_rg_lru_is_the_papers_formula_and_begins_in_the_ring() -> None:
    cell = make("rg_lru")
    x, state, is_init = data(cell)
    p, h = arrays(cell), state.numpy()
    y, _ = cell.sequence(x, state, is_init)
    base = sigmoid(-p["weight_recurrent"][0])  # a of the paper: a_t = base^(8 r_t)
    assert bool((base > 0.9).all()) and bool((base < 0.999).all())
    for t in range(T):
        r, i, value = np.split(x[t].numpy() @ p["weight_input"].T + p["bias"], 3, -1)
        kept = base ** (8 * sigmoid(r))
        h = kept * h * ~is_init[t].numpy()[:, None] + np.sqrt(1 - kept**2) * sigmoid(i) * value
        np.testing.assert_allclose(y[t].detach(), h, rtol=1e-9, atol=1e-12)


def test_hgrn_is_the_papers_complex_recurrence() -> None:
    cell = make("hgrn", lower_bound=0.2)
    x, state, is_init = data(cell)
    p, h = arrays(cell), state[:, :N].numpy() + 1j * state[:, N:].numpy()
    angle = p["weight_recurrent"][0]
    np.testing.assert_allclose(angle, [10000 ** (-j / N) for j in range(N)], rtol=1e-6)
    y, _ = cell.sequence(x, state, is_init)
    for t in range(T):
        x_t = x[t].numpy()
        f, real, imaginary = np.split(x_t @ p["weight_input"].T + p["bias"], 3, -1)
        kept, c = 0.2 + 0.8 * sigmoid(f), real * sigmoid(real) + 1j * imaginary * sigmoid(imaginary)
        h = kept * np.exp(1j * angle) * h * ~is_init[t].numpy()[:, None] + (1 - kept) * c
        gate = x_t @ p["output_input"].T + p["output_bias"]
        expected = np.concatenate([h.real, h.imag], -1) * gate * sigmoid(gate)
        np.testing.assert_allclose(y[t].detach(), expected, rtol=1e-9, atol=1e-12)


def test_gateloop_is_an_attention_whose_weights_are_products_of_its_gates() -> None:
    """y_T = sum_s q_T k_s v_s Re(a_{s+1} ... a_T): the attention form of the paper, eq. 9."""
    cell = make("gateloop")
    x, _, is_init = data(cell)
    y, _ = cell.sequence(x, cell.initial_state(B), torch.zeros_like(is_init))
    p = arrays(cell)
    key, value, magnitude, phase = np.split(x.numpy() @ p["weight_input"].T + p["bias"], 4, -1)
    gate = sigmoid(magnitude) * np.exp(1j * phase)
    query = x.numpy() @ p["output_input"].T + p["output_bias"]
    for t in range(T):
        terms = [key[s] * value[s] * np.prod(gate[s + 1 : t + 1], 0) for s in range(t + 1)]
        np.testing.assert_allclose(y[t].detach(), query[t] * np.sum(terms, 0).real, rtol=1e-9, atol=1e-12)


# ---- gates that hear the state ---------------------------------------------------------------------------------------


def test_sru_is_equations_3_to_6_of_the_paper() -> None:
    cell = make("sru")
    x, state, is_init = data(cell)
    p, c = arrays(cell), state[:, N:].numpy()
    y, final = cell.sequence(x, state, is_init)
    for t in range(T):
        c = c * ~is_init[t].numpy()[:, None]
        f, r, candidate, skip = np.split(x[t].numpy() @ p["weight_input"].T + p["bias"], 4, -1)
        f, r = (sigmoid(u + v * c) for u, v in zip((f, r), p["weight_recurrent"], strict=True))
        c = f * c + (1 - f) * candidate
        np.testing.assert_allclose(y[t].detach(), r * c + (1 - r) * skip, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(final[:, N:].detach(), c, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_indrnn_is_that_of_torchrecurrent(activation: str) -> None:
    cells = importlib.import_module("torchrecurrent")
    cell = make("indrnn", activation=activation)
    oracle = cells.IndRNNCell(D, N, nonlinearity=getattr(torch, activation)).double()
    with torch.no_grad():
        oracle.weight_ih.copy_(cell.weight_input)
        oracle.bias_ih.copy_(cell.bias)
        oracle.vector_u.copy_(cell.weight_recurrent[0].view_as(oracle.vector_u))
    assert_same(cell, lambda x, h: oracle(x, h))


def assert_same(cell: Any, step: Any) -> None:
    """The cell's sequence is `step(x, h) -> h` one after the other, on states without a reset and with."""
    x, state, is_init = data(cell)
    with torch.no_grad():
        y, _ = cell.sequence(x, state, is_init)
        for t in range(T):
            state = step(x[t], state * ~is_init[t, :, None])
            torch.testing.assert_close(y[t], state, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["brc", "nbrc"])
def test_bistable_cells_are_those_of_torchrecurrent(name: str) -> None:
    cells = importlib.import_module("torchrecurrent")
    cell = make(name)
    oracle = (cells.BRCell if name == "brc" else cells.NBRCell)(D, N).double()
    weights = (cell.weight_input, cell.bias) if name == "brc" else (cell.input.weight, cell.input.bias)
    recurrent = cell.weight_recurrent if name == "brc" else cell.hidden.weight
    with torch.no_grad():
        oracle.weight_ih.copy_(weights[0])
        oracle.bias_ih.copy_(weights[1])
        oracle.weight_hh.copy_(recurrent.reshape(oracle.weight_hh.shape))
        oracle.bias_hh.zero_()
    assert_same(cell, lambda x, h: oracle(x, h))


def test_a_bistable_unit_keeps_a_bit_that_a_gru_forgets() -> None:
    """a = 1.5 > 1, no input: two stable states, of opposite sign."""
    cell = make("brc")
    with torch.no_grad():
        for parameter in (cell.weight_input, cell.weight_recurrent, cell.bias):
            parameter.zero_()
        cell.bias[:N] = math.atanh(0.5)
    x, state = torch.zeros(200, 2, D, dtype=torch.float64), torch.tensor([[0.3], [-0.3]], dtype=torch.float64)
    _, final = cell.sequence(x, state.repeat(1, N), torch.zeros(200, 2, dtype=torch.bool))
    np.testing.assert_allclose(final.detach().abs(), 0.8586, atol=1e-4)  # the root of h = tanh(1.5 h)
    assert torch.equal(final.sign(), state.sign().repeat(1, N))


# ---- dense cells -----------------------------------------------------------------------------------------------------


def test_a_step_of_scrn_is_that_of_torchrecurrent_before_its_second_layer() -> None:
    """Theirs feeds back a layer on top of the hidden units; with the identity as that layer h' is its argument."""
    cells = importlib.import_module("torchrecurrent")
    cell = make("scrn", decay=0.9)
    oracle = cells.SCRNCell(D, N).double()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.zero_()
        oracle.alpha.fill_(0.9)
        oracle.weight_ih.copy_(torch.cat([cell.slow.weight, cell.input.weight]))
        oracle.bias_ih[N:] = cell.input.bias
        oracle.weight_hh.copy_(torch.cat([cell.hidden.weight, torch.eye(N, dtype=torch.float64)]))
        oracle.weight_ch[:N] = cell.context.weight
        x, state, _ = data(cell)
        y, after = cell.step(x[0], state)
        h, s = oracle(x[0], tuple(state.chunk(2, -1)))
    torch.testing.assert_close(torch.cat([torch.atanh(h), s], -1), y, rtol=0, atol=1e-9)
    assert torch.equal(y, after)


def test_leaky_units_are_a_mixture_of_memory_and_drive_in_the_share_of_their_time_constant() -> None:
    cell = make("leaky")
    p = arrays(cell)
    tau = 1 + np.exp(p["time"])
    assert bool((tau >= 1).all()) and bool((tau <= 2).all()) and not np.diag(p["hidden.weight"]).any()
    x, state, is_init = data(cell)
    y, _ = cell.sequence(x, state, is_init)
    h = state.numpy()
    for t in range(T):
        h = h * ~is_init[t].numpy()[:, None]
        drive = h @ p["hidden.weight"].T + x[t].numpy() @ p["input.weight"].T + p["input.bias"]
        h = (1 - 1 / tau) * h + drive / tau
        h = np.where(h > 0, h, 0.1 * h)
        np.testing.assert_allclose(y[t].detach(), h, rtol=1e-9, atol=1e-12)


def test_plrnn_is_linear_in_each_of_its_regions_with_the_papers_jacobian() -> None:
    cell = make("plrnn", hidden=11)
    p = arrays(cell)
    assert abs(float(p["decay"].max())) < 1
    z = torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    jacobian = torch.autograd.functional.jacobian(lambda z: cell.step(torch.ones(1, D).double(), z[None])[1][0], z)
    u = p["inner.weight"] @ z.numpy()
    slope = (u + p["threshold"] > 0).astype(float) - (u > 0)
    assert slope.any()
    expected = np.diag(p["decay"]) + p["outer.weight"] @ np.diag(slope) @ p["inner.weight"]
    np.testing.assert_allclose(jacobian, expected, rtol=1e-10, atol=1e-12)
    far = torch.full((1, N), 1e6, dtype=torch.float64)
    bound = np.abs(p["outer.weight"]) @ np.abs(p["threshold"])  # the bend is bounded by the thresholds
    with torch.no_grad():
        grown = cell.step(torch.zeros(1, D).double(), far)[1] - cell.decay * far - cell.input.bias
    assert bool((grown[0].abs().numpy() <= bound + 1e-6).all())


# ---- matrices as state, against their attention form or their step in NumPy ------------------------------------------


def keyed(cell: Any, x: np.ndarray, gates: int, keys: int) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Drives of the units [T, B, N] each, what the heads share [T, B, H, K] each, and the query [T, B, H, Q K]."""
    p = arrays(cell)
    unit = np.split(x @ p["weight_input"].T + p["bias"], gates, -1)
    shared = x @ p["weight_shared"].T + p["bias_shared"]
    rows = cell.heads * keys
    blocks = [shared[..., s : s + rows].reshape(T, B, cell.heads, keys) for s in range(0, shared.shape[-1], rows)]
    return unit, blocks, x @ p["output_query"].T


def gate(cell: Any, x: np.ndarray) -> np.ndarray:
    p = arrays(cell)
    u = x @ p["output_input"].T + p["output_bias"]
    result: np.ndarray = u * sigmoid(u)
    return result


def test_retnet_is_the_parallel_form_of_retention() -> None:
    """o_n = sum_{m <= n} gamma^(n-m) Re(q_n e^{in theta} k_m e^{-im theta}) v_m in each head, from an empty state."""
    cell = make("retnet", keys=3, heads=2)
    x, _, is_init = data(cell)
    y, _ = cell.sequence(x, cell.initial_state(B), torch.zeros_like(is_init))
    (value,), (real, imaginary), query = keyed(cell, x.numpy(), 1, 3)
    q = (query[..., :6] + 1j * query[..., 6:]).reshape(T, B, 3, 2).transpose(0, 1, 3, 2)
    key, angle = real + 1j * imaginary, 10000.0 ** (-np.arange(3) / 3)
    for n in range(T):
        expected = np.zeros((B, N))
        for h in range(2):
            gamma, units = 1 - 2.0 ** (-5 - h), slice(3 * h, 3 * h + 3)
            for m in range(n + 1):
                turned = q[n, :, h] * np.exp(1j * n * angle) * key[m, :, h] * np.exp(-1j * m * angle)
                weight = gamma ** (n - m) * (1 - gamma) * turned.sum(-1).real
                expected[:, units] += weight[:, None] * value[m][:, units]
        np.testing.assert_allclose(y[n].detach(), expected * gate(cell, x.numpy())[n], rtol=1e-5, atol=1e-7)


def elu1(u: np.ndarray) -> np.ndarray:
    return np.where(u > 0, u + 1, np.exp(np.minimum(u, 0)))


def test_linear_attention_is_normalised_attention_over_all_that_was() -> None:
    cell = make("linear_attention", keys=3, heads=2)
    x, _, is_init = data(cell)
    y, _ = cell.sequence(x, cell.initial_state(B), torch.zeros_like(is_init))
    (value,), (key,), query = keyed(cell, x.numpy(), 1, 3)
    q = elu1(query).reshape(T, B, 3, 2).transpose(0, 1, 3, 2)
    for t in range(T):
        weights = np.einsum("bhk,sbhk->sbh", q[t], elu1(key[: t + 1]))
        weights = (weights / weights.sum(0)).repeat(3, -1)
        np.testing.assert_allclose(y[t].detach(), (weights * value[: t + 1]).sum(0), rtol=1e-5, atol=1e-7)


def test_longhorn_is_its_step_of_the_paper() -> None:
    cell = make("longhorn", keys=4, heads=2)
    x, state, is_init = data(cell)
    y, _ = cell.sequence(x, state, is_init)
    (value, rate), (key,), query = keyed(cell, x.numpy(), 2, 4)
    q = query.reshape(T, B, 4, 2).transpose(0, 1, 3, 2)
    S = state.numpy().reshape(B, 4, N)
    for t in range(T):
        S = S * ~is_init[t].numpy()[:, None, None]
        k, beta = key[t].repeat(3, 1).transpose(0, 2, 1), sigmoid(rate[t])  # [B, K, N]
        step = beta / (1 + beta * (k**2).sum(1))
        S = (1 - step[:, None] * k**2) * S + step[:, None] * value[t][:, None] * k
        expected = (q[t].repeat(3, 1).transpose(0, 2, 1) * S).sum(1) * gate(cell, x.numpy())[t]
        np.testing.assert_allclose(y[t].detach(), expected, rtol=1e-10, atol=1e-12)


def test_delta_is_the_rule_of_the_paper_and_replaces_what_is_stored_under_a_key() -> None:
    cell = make("delta", keys=4, heads=2)
    x, state, is_init = data(cell)
    y, _ = cell.sequence(x, state, is_init)
    p = arrays(cell)
    value = x.numpy() @ p["weight_input"].T + p["bias"]
    shared = x.numpy() @ p["weight_shared"].T + p["bias_shared"]
    key, rate = shared[..., :8].reshape(T, B, 2, 4), sigmoid(shared[..., 8:])
    key = key * sigmoid(key)
    key = key / np.linalg.norm(key, axis=-1, keepdims=True)
    q = (x.numpy() @ p["output_query"].T).reshape(T, B, 4, 2).transpose(0, 1, 3, 2)
    S = state.numpy().reshape(B, 4, N).transpose(0, 2, 1).reshape(B, 2, 3, 4).copy()  # [B, H, N/H, K]
    for t in range(T):
        S = S * ~is_init[t].numpy()[:, None, None, None]
        v, k, b = value[t].reshape(B, 2, 3), key[t], rate[t][..., None, None]
        eye = np.eye(4) - b * np.einsum("bhi,bhj->bhij", k, k)
        S = S @ eye + b * np.einsum("bhn,bhk->bhnk", v, k)  # S (I - b k k^T) + b v k^T
        np.testing.assert_allclose(
            y[t].detach(), np.einsum("bhnk,bhk->bhn", S, q[t]).reshape(B, N), rtol=1e-9, atol=1e-10
        )


@pytest.mark.parametrize("name", ["retnet", "linear_attention", "longhorn", "delta"])
def test_units_of_a_head_share_their_keys_and_no_others(name: str) -> None:
    """Moving the keys of a head moves its units alone."""
    cell = make(name, keys=3, heads=2)
    x, _, is_init = data(cell)
    with torch.no_grad():
        before, _ = cell.sequence(x, cell.initial_state(B), is_init)
        for block in cell.weight_shared.split([6] * (len(cell.weight_shared) // 6) + [2] * (name == "delta")):
            block[: len(block) // 2] += 1.0
        after, _ = cell.sequence(x, cell.initial_state(B), is_init)
    moved = (after != before).flatten(0, 1).any(0)
    assert bool(moved[:3].all()) and not bool(moved[3:].any())
    with pytest.raises(ValueError, match="heads is 7 for 6 units"):
        type(cell)(D, size=6, heads=7)


# ---- the others ------------------------------------------------------------------------------------------------------


def test_qrnn_is_a_masked_convolution_of_width_two_and_a_pool() -> None:
    """torch's convolution over time makes the gates, padded with a zero in front; no reset."""
    cell = make("qrnn")
    x, _, _ = data(cell)
    weight = cell.weight_input.detach().unflatten(0, (4, N))  # forget, candidate; then the same for the input before
    kernel = torch.stack([weight[2:].flatten(0, 1), weight[:2].flatten(0, 1)], -1)
    padded = torch.nn.functional.pad(x.permute(1, 2, 0), (1, 0))
    bias = cell.bias.detach()
    assert not bias[N:].any()
    gates = torch.nn.functional.conv1d(padded, kernel, bias[: 2 * N]).permute(2, 0, 1)
    f, z = torch.sigmoid(gates[..., :N]), torch.tanh(gates[..., N:])
    out = torch.sigmoid(x @ cell.output_input.T + cell.output_bias)
    y, _ = cell.sequence(x, cell.initial_state(B), torch.zeros(T, B, dtype=torch.bool))
    c = torch.zeros(B, N, dtype=torch.float64)
    for t in range(T):
        c = f[t] * c + (1 - f[t]) * z[t]
        torch.testing.assert_close(y[t], out[t] * c, rtol=0, atol=1e-10)


def test_warp_is_a_root_network_whose_weights_follow_the_changes_of_the_input() -> None:
    """With a = 1 the sum telescopes: after t steps the weights are w_0 + B x_t, whatever came before."""
    cell = make("warp")
    x, _, is_init = data(cell)
    y, _ = cell.sequence(x, cell.initial_state(B), is_init)
    assert float((y - root(cell, x, cell.output_initial.expand(T, B, -1))).detach().abs().max()) < 1e-12  # B is 0
    with torch.no_grad():
        cell.weight_input.normal_(std=0.1)
        y, _ = cell.sequence(x, cell.initial_state(B), is_init)
        torch.testing.assert_close(y, root(cell, x, cell.output_initial + x @ cell.weight_input.T), rtol=0, atol=1e-10)
        cell.weight_recurrent.fill_(0.7)
        y, _ = cell.sequence(x, cell.initial_state(B), torch.zeros_like(is_init))
        change = torch.cat([x[:1], x[1:] - x[:-1]]) @ cell.weight_input.T
        s = sum(0.7 ** (T - 1 - t) * change[t] for t in range(T))
        torch.testing.assert_close(y[-1], root(cell, x[-1], cell.output_initial + s), rtol=0, atol=1e-10)


def root(cell: Any, x: Tensor, weights: Tensor) -> Tensor:
    """torch.nn's network with these weights, one for every input."""
    flat, said = weights.reshape(-1, weights.shape[-1]), []
    inner, outer = torch.nn.Linear(D, N).double(), torch.nn.Linear(N, N).double()
    with torch.no_grad():
        for row, x_D in zip(flat, x.reshape(-1, D), strict=True):
            parts = row.split([D * N, N, N * N, N])
            for layer, weight, bias in ((inner, *parts[:2]), (outer, *parts[2:])):
                layer.weight.copy_(weight.view(-1, N).T)
                layer.bias.copy_(bias)
            said.append(outer(torch.tanh(inner(x_D))))
    return torch.stack(said).view(*x.shape[:-1], N)


def test_a_step_of_lattice_is_one_of_gradient_descent_on_the_loss_of_reading() -> None:
    """By autograd on |F(S) k - v|^2 / 2; and no slot moves along itself, seen from where it is on the sphere."""
    cell = make("lattice", keys=4)
    x, state, _ = data(cell)
    query, key, rate = cell.key(x[0]).detach().split((4, 4, 1), -1)
    value = cell.value(x[0]).detach()
    slots = state.view(B, 4, N).requires_grad_()

    def read(slots: Tensor, by: Tensor) -> Tensor:
        return (by.unsqueeze(-1) * slots / (1 + slots.square().sum(-1, keepdim=True)).sqrt()).sum(1)

    loss = (read(slots, key) - value).square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, slots)
    expected = slots.detach() - torch.sigmoid(rate).unsqueeze(-1) * gradient
    y, after = cell.step(x[0], state)
    torch.testing.assert_close(after.detach(), expected.flatten(1), rtol=0, atol=1e-10)
    torch.testing.assert_close(y.detach(), read(expected, query), rtol=0, atol=1e-10)
    large = 1e4 * state.view(B, 4, N).detach()  # far from zero the offset in the length counts for nothing
    change = cell.step(x[0], large.flatten(1))[1].detach().view(B, 4, N) - large
    along = (change * large).sum(-1) / (change.norm(dim=-1) * large.norm(dim=-1))
    assert float(along.abs().max()) < 1e-2


def test_assemblies_forget_where_they_began_whatever_their_weights_are() -> None:
    """Contraction: two states under the same input come together, with weights of any size."""
    cell = make("rnn_of_rnns", areas=3, rate=0.2)
    with torch.no_grad():
        for weight in (cell.root, cell.between, cell.input.weight):
            weight.normal_(std=0.7)
    coupling = cell.coupling().detach()
    within = torch.block_diag(*[torch.ones(2, 2)] * 3).bool()
    assert float(torch.linalg.eigvalsh(coupling * within).max()) < 1
    torch.testing.assert_close((coupling * ~within).T, -(coupling * ~within))
    assert (coupling * ~within).any()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, D, generator=g, dtype=torch.float64).expand(-1, 2, -1)
    state = 3 * torch.randn(2, N, generator=g, dtype=torch.float64)
    with torch.no_grad():
        _, final = cell.sequence(x, state, torch.zeros(4000, 2, dtype=torch.bool))
    assert float((final[0] - final[1]).abs().max()) < 1e-3 * float((state[0] - state[1]).abs().max())


def test_the_splines_of_tkan_are_those_of_scipy_and_its_step_is_the_papers() -> None:
    interpolate = importlib.import_module("scipy.interpolate")
    cell = make("tkan", layers=2, width=3, grid=4)
    kan = cell.kan[0]
    assert kan.knots.shape == (4 + 2 * 3 + 1,)
    x, state, _ = data(cell)
    p = arrays(cell)
    h, c, s = np.split(state.numpy(), [N, 2 * N], -1)
    i, f, g = np.split(sigmoid(x[0].numpy() @ p["input.weight"].T + p["input.bias"] + h @ p["hidden.weight"].T), 3, -1)
    c, said = f * c + i * g, []
    for k, part in enumerate(np.split(s, 2, -1)):
        z = x[0].numpy() @ p[f"kan.{k}.read.weight"].T + part @ p[f"kan.{k}.again.weight"].T
        basis = [interpolate.BSpline.basis_element(kan.knots[j : j + 5].numpy(), False) for j in range(7)]
        features = [z * sigmoid(z), *(np.nan_to_num(b(np.tanh(z))) for b in basis)]
        said.append(np.concatenate(features, -1) @ p[f"kan.{k}.spline.weight"].T)
    u = np.concatenate(said, -1)
    expected = sigmoid(u @ p["out.weight"].T + p["out.bias"]) * np.tanh(c)
    y, after = cell.step(x[0], state)
    np.testing.assert_allclose(y.detach(), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        after[:, 2 * N :].detach(), p["memory"][0] * u + p["memory"][1] * s, rtol=1e-6, atol=1e-9
    )


def test_a_memory_network_asks_all_inputs_since_the_reset_that_fit_and_no_others() -> None:
    cell = make("memory_network", slots=4, hops=2)
    x, _, _ = data(cell)
    is_init = torch.zeros(T, B, dtype=torch.bool)
    is_init[6, 0] = True
    y, _ = cell.sequence(x, cell.initial_state(B), is_init)
    p = arrays(cell)
    for copy, first in ((0, 6), (1, 5)):  # since the reset, and the last four
        inputs = x[first:, copy].numpy()[::-1]
        key = inputs @ p["key.weight"].T + p["key_time.weight"].T[: len(inputs)]
        value = inputs @ p["value.weight"].T + p["value_time.weight"].T[: len(inputs)]
        u = x[-1, copy].numpy() @ p["query.weight"].T + p["query.bias"]
        for _ in range(2):
            weight = np.exp(key @ u)
            u = u + (weight / (1 + weight.sum())) @ value
        np.testing.assert_allclose(y[-1, copy].detach(), u, rtol=1e-10, atol=1e-12)


def test_block_recurrent_renews_its_state_once_a_block_and_attends_as_torch_does() -> None:
    cell = make("block_recurrent", vectors=2, block=3)
    x, _, _ = data(cell)
    states = cell.states(x, cell.initial_state(B), torch.zeros(T, B, dtype=torch.bool))[..., : 2 * N]
    moved = [bool((states[t] != (states[t - 1] if t else 0)).any()) for t in range(T)]
    assert moved == [t % 3 == 2 for t in range(T)]
    # the first block: attention by torch, with one more key and value of zeros
    e = cell.embed(x[:3].flip(0)) + cell.time.weight.T[:, None]  # the last input first
    s = cell.name.expand(B, 2, N)
    query, key, value, _, _ = cell.token(e).permute(1, 0, 2).chunk(5, -1)
    _, _, _, out_key, out_value = cell.own(s).chunk(5, -1)
    attention = torch.nn.functional.scaled_dot_product_attention

    def asked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (torch.nn.functional.pad(each, (0, 0, 0, 1)) for each in (key, value))
        return attention(query, key, value, scale=1.0)

    read = torch.cat([asked(query[:, :1], key, value), asked(query[:, :1], out_key, out_value)], -1)[:, 0]
    y, _ = cell.sequence(x[:3], cell.initial_state(B), torch.zeros(3, B, dtype=torch.bool))
    torch.testing.assert_close(y[2], e[0] + cell.out(read), rtol=0, atol=1e-10)
