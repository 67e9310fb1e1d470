"""Fixed points of cells whose fixed points are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lifelong.agent.analysis.fixed_points import fixed_points
from lifelong.agent.cells.base import Cell
from tests.agent.support import CELLS, make_policy


class Map(Cell):
    """h <- f(h) + x."""

    def __init__(self, f: object, size: int) -> None:
        super().__init__(size, size, size)
        self.f, self.nothing = f, nn.Parameter(torch.zeros(1))

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        state_BS = self.f(state_BS) + x_BD  # type: ignore[operator]
        return state_BS, state_BS


def test_a_bistable_unit_has_two_stable_points_and_one_between() -> None:
    found = fixed_points(Map(lambda h: torch.tanh(2 * h), 1), torch.zeros(1), torch.linspace(-1.5, 1.5, 13)[:, None])
    by_place = sorted(found, key=lambda point: float(point.state))
    assert [point.kind for point in by_place] == ["stable", "unstable", "stable"]
    high = 0.9575040240772688  # of h = tanh(2 h)
    assert [float(point.state) for point in by_place] == pytest.approx([-high, 0.0, high], abs=1e-8)
    assert [point.radius for point in by_place] == pytest.approx([2 * (1 - high**2), 2.0, 2 * (1 - high**2)], abs=1e-7)
    assert sum(point.starts for point in found) == 13


def test_a_linear_cell_has_the_one_that_algebra_gives() -> None:
    weight = torch.tensor([[1.2, 0.0, 0.3], [0.1, 0.5, 0.0], [0.0, 0.0, -0.4]], dtype=torch.float64)
    x = torch.tensor([1.0, -2.0, 0.5])
    (point,) = fixed_points(Map(lambda h: h @ weight.T, 3), x, torch.randn(4, 3))
    assert torch.allclose(point.state, torch.linalg.solve(torch.eye(3, dtype=torch.float64) - weight, x.double()))
    assert (point.kind, point.growing, point.starts) == ("saddle", 1, 4)
    assert point.radius == pytest.approx(1.2)


def test_a_line_of_points_is_marginal() -> None:
    still = torch.tensor([1.0, 0.5])
    found = fixed_points(Map(lambda h: h * still, 2), torch.tensor([0.0, 1.0]), torch.tensor([[3.0, 0], [-1.0, 7]]))
    assert {point.kind for point in found} == {"marginal"}
    for point, along in zip(sorted(found, key=lambda p: float(p.state[0])), (-1.0, 3.0), strict=True):
        assert torch.allclose(point.state, torch.tensor([along, 2.0], dtype=torch.float64))


def test_what_never_stands_still_is_slow_where_it_is_slowest() -> None:
    def f(h: Tensor) -> Tensor:
        return h + 0.01 + (h - 1) ** 2  # past the saddle-node

    (point,) = fixed_points(Map(f, 1), torch.zeros(1), torch.tensor([[0.5]]))
    assert point.kind == "slow"
    assert float(point.state) == pytest.approx(1.0, abs=1e-4) and point.speed == pytest.approx(0.01**2 / 2)


@pytest.mark.parametrize("kind", CELLS)
def test_a_point_of_every_cell_is_what_running_it_says(kind: str) -> None:
    cell = make_policy(kind, size=4, observation=3).cell
    x = torch.tensor([0.3, -0.2, 0.1])
    start = 0.3 * torch.randn(2, cell.state_size, generator=torch.Generator().manual_seed(0))
    for point in fixed_points(cell, x, start, iterations=30):
        state = point.state[None]
        with torch.no_grad():
            after = cell.double().step(x.double()[None], state)[1]
        assert float((after - state).square().sum() / 2) == pytest.approx(point.speed, rel=1e-3, abs=1e-18)
        if point.kind == "stable":  # and so a small push dies away
            pushed = state + 1e-4 * torch.randn(state.shape, generator=torch.Generator().manual_seed(1))
            far = (pushed - state).norm()
            with torch.no_grad():
                for _ in range(400):
                    pushed = cell.step(x.double()[None], pushed)[1]
            if point.radius < 0.97:
                assert (pushed - state).norm() < 0.1 * far


def test_a_state_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="the state has 2,000 numbers"):
        fixed_points(Map(torch.tanh, 2000), torch.zeros(2000), torch.zeros(1, 2000))
