"""Where a cell stands still: fixed and slow points of its state under a constant input.

From a state that was visited the speed q(h) = |f(h, x) - h|^2 / 2 is made as small as it gets, x being held. Where it
gets to zero, h is a fixed point; where it does not, a slow point. The eigenvalues of df/dh say what happens around it:
all inside the unit circle, nearby states fall into it. Source: Sussillo & Barak 2013, Neural Computation 25, 626.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong.agent.cells.base import Cell

#: the Jacobian of a larger state would not be computed in a reasonable time
LARGEST = 1024
#: a point is fixed if no entry of its state moves by more than this in a step
STILL = 1e-9
#: an eigenvalue is on the unit circle if its absolute value differs from 1 by no more than this
MARGIN = 1e-6
#: two points are one if no entry differs by more than this
APART = 1e-4


@dataclass
class FixedPoint:
    """A point where the state stands still, or nearly does.

    Args:
        state: h [S].
        speed: q(h) = |f(h, x) - h|^2 / 2.
        kind: `stable`: all eigenvalues of df/dh lie inside the unit circle; `marginal`: some lie on it and none
            outside, so that what is written along them stays; `saddle`: some lie outside; `unstable`: all do; `slow`:
            it is not fixed.
        radius: largest absolute value of the eigenvalues.
        growing: how many of them lie outside.
        starts: how many of the states that the search began with led here.
    """

    state: Tensor
    speed: float
    kind: str
    radius: float
    growing: int
    starts: int = 1


def fixed_points(cell: Cell, x_D: Tensor, start_KS: Tensor, iterations: int = 200) -> list[FixedPoint]:
    """The fixed and slow points that K states lead to, those of most starts first.

    The speed falls by damped Gauss-Newton steps (Levenberg and Marquardt), in double precision.

    Args:
        cell: its state has at most `LARGEST` numbers.
        x_D: the input that is held.
        start_KS: where the search begins.
        iterations: of one search at most.

    Raises:
        ValueError: the state is too large.
    """
    if cell.state_size > LARGEST:
        raise ValueError(
            f"the state has {cell.state_size:,} numbers, and fixed points are sought in one of at most {LARGEST:,}"
        )
    cell, x_1D = copy.deepcopy(cell).double().requires_grad_(False), x_D.double()[None]
    found: list[FixedPoint] = []
    for start_S in start_KS.double():
        point = _search(cell, x_1D, start_S, iterations)
        same = [other for other in found if (other.state - point.state).abs().max() <= APART]
        if not same:
            found.append(point)
            continue
        point.starts = same[0].starts = same[0].starts + 1
        if point.speed < same[0].speed:
            vars(same[0]).update(vars(point))
    return sorted(found, key=lambda point: (-point.starts, point.speed))


def _search(cell: Cell, x_1D: Tensor, h_S: Tensor, iterations: int) -> FixedPoint:
    eye, damping = torch.eye(len(h_S), dtype=torch.float64, device=h_S.device), 1e-3
    moves_S, jacobian_SS = _linear(cell, x_1D, h_S)
    for _ in range(iterations):
        if moves_S.abs().max() <= 1e-13:
            break
        slope_SS = jacobian_SS - eye
        normal, towards = slope_SS.T @ slope_SS, slope_SS.T @ moves_S
        while damping < 1e12:
            step_S, failed = torch.linalg.solve_ex(normal + damping * eye, -towards)
            there_S = h_S + step_S
            if not failed and _moves(cell, x_1D, there_S).square().sum() < moves_S.square().sum():
                break
            damping *= 4
        else:
            break  # no step makes it slower
        h_S, damping = there_S, max(damping / 8, 1e-12)
        moves_S, jacobian_SS = _linear(cell, x_1D, h_S)
    eigenvalues = torch.linalg.eigvals(jacobian_SS).abs()
    growing, radius = int((eigenvalues > 1 + MARGIN).sum()), float(eigenvalues.max())
    if moves_S.abs().max() > STILL:
        kind = "slow"
    elif growing:
        kind = "unstable" if growing == len(h_S) else "saddle"
    else:
        kind = "marginal" if radius >= 1 - MARGIN else "stable"
    return FixedPoint(h_S, float(moves_S.square().sum() / 2), kind, radius, growing)


def _moves(cell: Cell, x_1D: Tensor, h_S: Tensor) -> Tensor:
    """f(h, x) - h."""
    with torch.no_grad():
        return cell.step(x_1D, h_S[None])[1][0] - h_S


def _linear(cell: Cell, x_1D: Tensor, h_S: Tensor) -> tuple[Tensor, Tensor]:
    """f(h, x) - h, and df/dh [S, S]: row i is the gradient of entry i, all of them by one backward pass of S copies."""
    size = len(h_S)
    h_CS = h_S.expand(size, size).clone().requires_grad_()
    with torch.enable_grad():
        f_CS = cell.step(x_1D.expand(size, -1), h_CS)[1]
        (jacobian_SS,) = torch.autograd.grad(f_CS.diagonal().sum(), h_CS)
    return (f_CS[0] - h_S).detach(), jacobian_SS
