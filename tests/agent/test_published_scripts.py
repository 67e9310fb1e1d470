"""Scripts of recipes: what they measure is what they say, on cases that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.published import modular_addition, n_dms, trainability
from lifelong.agent import config as configs


def test_a_network_of_the_map_learns_as_if_it_were_alone() -> None:
    grid, updates = 3, 5
    errors = trainability.final_errors("bptt", grid, updates, seed=1)
    heard, wanted = trainability.signals(1)
    for row, column in ((0, 2), (2, 1)):
        rates = [10.0 ** torch.linspace(*edges, grid) for edges in trainability.EDGES]
        cell = trainability.networks(1, 1)
        trainability.networks(grid, 1)  # draws what the map draws
        readout = (0.1 * torch.randn(trainability.UNITS)).requires_grad_()
        state, found = cell.initial_state(trainability.COPIES), []
        for update in range(updates):
            steps = range(trainability.T * update, trainability.T * (update + 1))
            error = torch.zeros(())
            state = state.detach()
            for t in steps:
                y, state = cell.step(heard[t], state)
                error = error + (y @ readout - wanted[t, :, 0]).square().mean() / trainability.T
            found.append(float(error.detach()))
            parameters = [*cell.parameters(), readout]
            gradients = torch.autograd.grad(error, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= (rates[1][row] if parameter is readout else rates[0][column]) * gradient
        assert sum(found[3:]) / 2 == pytest.approx(float(errors[row, column]), rel=1e-4)


def test_rtrl_sees_what_lies_before_the_chunk() -> None:
    exact, truncated = (trainability.final_errors(engine, 4, 40, seed=0) for engine in ("rtrl", "bptt"))
    assert np.isfinite(exact).any() and not np.allclose(exact, truncated)


def test_the_dimension_of_a_line_is_one_and_that_of_noise_two() -> None:
    half = np.tile(np.arange(64) < 32, (64, 1))
    assert trainability.dimension(half) == pytest.approx(1.0)
    assert trainability.dimension(np.random.default_rng(0).random((64, 64)) < 0.5) > 1.7


def test_logits_of_one_frequency_have_nothing_else() -> None:
    p = 11
    waves = modular_addition.directions(p).reshape(-1, p * p)
    assert np.allclose(waves @ waves.T, np.eye(p - 1))
    total = np.add.outer(np.arange(p), np.arange(p)).ravel()
    logits = np.cos(2 * math.pi * 3 * (total[:, None] - np.arange(p)) / p)
    parts = np.einsum("kin,nc->kic", modular_addition.directions(p), logits)
    assert np.square(parts).sum((1, 2)).argmax() == 2
    assert np.allclose(np.einsum("in,ic->nc", modular_addition.directions(p)[2], parts[2]), logits)
    assert logits.argmax(1).tolist() == (total % p).tolist()


def test_gini_knows_equality_and_its_opposite() -> None:
    assert modular_addition.gini(np.ones(7)) == pytest.approx(0.0)
    assert modular_addition.gini(np.array([0.0] * 9 + [5.0])) == pytest.approx(0.9)
    assert modular_addition.gini(np.array([1.0, 3.0])) == pytest.approx(0.25)


def test_a_short_life_of_each_script_gives_its_numbers() -> None:
    row = modular_addition.measure(0, 1.0, modulus=5, share=0.5, steps=30_720, size=8)
    assert 0 <= row["held_out"] <= 1 and row["restricted"] > 0 and len(row["curve"][0]) == len(row["curve"][1]) > 20
    row = n_dms.measure(0, 2, longest=3, steps=20_000, size=8)
    assert 1 < row["time_constant"] < row["longest"] and row["kept"] <= row["learned"] <= 2


@pytest.mark.parametrize(("window", "least"), [(0, [2, 2, 2, 2]), (1, [0, 0, 0, 0]), (2, [2, 2, 3, 4])])
def test_as_many_heads_are_trained_as_the_window_has(window: int, least: list[int]) -> None:
    config = configs.check(n_dms.config_of(window, 5, 1000, 4))
    assert [task.env["least"] for task in config.stream.tasks] == least
