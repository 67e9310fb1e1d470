"""CellularAutomaton: rules as Wolfram numbers them, rule 90 as the binomial coefficients that it is known to make."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch

from lifelong.envs.prediction.cellular_automaton import CellularAutomaton


def by_the_rule(rule: int, cells: list[int], ahead: int) -> list[int]:
    table = f"{rule:08b}"[::-1]
    for _ in range(ahead):
        cells = [int(table[int(f"{cells[i - 1]}{c}{cells[(i + 1) % len(cells)]}", 2)]) for i, c in enumerate(cells)]
    return cells


@pytest.mark.parametrize("rule", [30, 110, 184, 255])
def test_the_truth_is_what_the_rule_makes_of_the_cells(rule: int) -> None:
    env = CellularAutomaton(5, cells=7, length=2, rule=rule, ahead=[0, 1, 2, 3, 8], seed=0)
    obs, _ = env.reset()
    for _ in range(4):
        shown = obs.long().tolist()
        obs, reward, _, _, info = env.step(torch.zeros(5, 7, dtype=torch.int64))
        wanted = [by_the_rule(rule, cells, k) for cells, k in zip(shown, [0, 1, 2, 3, 8], strict=True)]
        assert info["target"].tolist() == wanted
        assert np.allclose(reward, [row.count(0) / 14 for row in wanted])


def test_rule_90_makes_pascals_triangle_modulo_two() -> None:
    env = CellularAutomaton(1, cells=21, rule=90, ahead=8, seed=0)
    env.reset()
    env.state.cells.copy_((torch.arange(21) == 10).long()[None])
    truth = env.step(torch.zeros(1, 21, dtype=torch.int64))[4]["target"][0].tolist()
    wanted = [0] * 21
    for k in range(9):
        wanted[10 - 8 + 2 * k] = comb(8, k) % 2
    assert truth == wanted
