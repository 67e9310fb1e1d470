"""Which pairs of learning rates train: a map over those of the recurrent layer and of the read-out, with an engine.

    trainability.py --out FOLDER [--seed S] engine=rtrl|bptt [grid=64] [updates=1000]

Units of an IndRNN hear only themselves, so that grid^2 networks of 8 units are one cell, which the gradient engine of
the library takes as it is: a learning rate for every group of units, a read-out for every group. All learn by plain
gradient descent, from one initialisation and the same 16 fixed sequences, to say again what they heard 3 steps before,
in chunks of T = 2. A pair trains if its error ends below that of saying nothing.

- *trainable*: share of the pairs; *best*: least error at the end, over that of saying nothing.
- *dimension*: of the border between what trains and what does not, by counting boxes of 1, 2, 4 and 8 cells.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import recipe_row
from lifelong.agent import registry
from lifelong.agent.cells.indrnn import IndRNN

UNITS, COPIES, LENGTH, DELAY, T = 8, 16, 32, 3, 2
#: powers of ten: learning rates of the recurrent layer (x) and of the read-out (y)
EDGES = (-1.0, 1.0), (-0.75, -0.4)


def signals(seed: int) -> tuple[Tensor, Tensor]:
    """What is heard, +1 or -1, and what is to be said, [LENGTH, COPIES, 1] each."""
    heard = torch.randint(2, (LENGTH, COPIES, 1), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1
    return heard, torch.cat([torch.zeros(DELAY, COPIES, 1), heard[:-DELAY]])


def networks(grid: int, seed: int) -> IndRNN:
    """grid^2 equal networks as one cell; unit g * UNITS + k is unit k of network g."""
    torch.manual_seed(seed)
    small, cell = IndRNN(1, size=UNITS, activation="tanh"), IndRNN(1, size=UNITS * grid**2, activation="tanh")
    for name, parameter in cell.named_parameters():
        one = small.get_parameter(name).detach()
        axis = one.shape.index(UNITS)
        parameter.data.copy_(one.repeat([grid**2 if i == axis else 1 for i in range(one.dim())]))
    return cell


def final_errors(engine: str, grid: int, updates: int, seed: int) -> np.ndarray:
    """Mean squared error of the last quarter of the updates, [grid, grid] over read-out and recurrent rate; nan or inf
    where it is beyond all numbers."""
    heard, wanted = signals(seed)
    cell = networks(grid, seed)
    learner = registry.build("gradient", {"kind": engine}, cell, COPIES)
    readout = torch.zeros(grid**2, UNITS).add_(0.1 * torch.randn(UNITS)).requires_grad_()
    rates = [10.0 ** torch.linspace(*edges, grid) for edges in EDGES]
    recurrent_G, readout_G = rates[0].repeat(grid), rates[1].repeat_interleave(grid)
    recurrent_N = recurrent_G.repeat_interleave(UNITS)
    state, total = cell.initial_state(COPIES), torch.zeros(grid**2)
    for update in range(updates):
        at = T * update % LENGTH
        x_TBD, is_init = heard[at : at + T], torch.zeros(T, COPIES, dtype=torch.bool)
        is_init[0] = at == 0
        y_TBN, end = learner.sequence(x_TBD, learner.attach(state), is_init)
        said = torch.einsum("tbgk,gk->tbg", y_TBN.unflatten(-1, (-1, UNITS)), readout)
        error_G = (said - wanted[at : at + T]).square().mean((0, 1))
        parameters = [*cell.parameters(), readout]
        gradients = torch.autograd.grad(error_G.sum(), parameters)
        trace = learner.trace(x_TBD, torch.cat([state[None], y_TBN[:-1].detach()]), is_init)
        with torch.no_grad():
            for parameter, gradient in zip(parameters[:-1], gradients[:-1], strict=True):
                axis = parameter.shape.index(len(recurrent_N))
                shape = [-1 if i == axis else 1 for i in range(parameter.dim())]
                parameter.sub_(recurrent_N.view(shape) * gradient)
            readout.sub_(readout_G[:, None] * gradients[-1])
        learner.advance(trace)
        state = end.detach()
        if update >= updates * 3 // 4:
            total += error_G.detach()
    return (total / (updates - updates * 3 // 4)).view(grid, grid).numpy()


def dimension(trains: np.ndarray) -> float:
    """Slope of log(boxes that hold border) over -log(their side); a border lies between cells that differ."""
    border = np.zeros_like(trains)
    for axis in (0, 1):
        differs = np.diff(trains.astype(int), axis=axis) != 0
        border |= np.pad(differs, [(0, int(i == axis)) for i in (0, 1)])
    sides, counts = [1, 2, 4, 8], []
    for side in sides:
        blocks = border.reshape(len(border) // side, side, -1, side).any((1, 3))
        counts.append(max(int(blocks.sum()), 1))
    return float(-np.polyfit(np.log(sides), np.log(counts), 1)[0])


def measure(seed: int, engine: str, grid: int = 64, updates: int = 1000) -> dict[str, Any]:
    """Numbers and image of a row; the image is the error over that of saying nothing, at most 2."""
    error = final_errors(engine, grid, updates, seed)
    nothing = float(signals(seed)[1].square().mean())
    ratio = np.nan_to_num(error / nothing, nan=np.inf)
    trains = ratio < 1.0
    return {
        "trainable": trains.mean(),
        "best": ratio.min(),
        "dimension": dimension(trains),
        "image": np.minimum(ratio, 2.0).round(3).tolist(),
    }


if __name__ == "__main__":
    recipe_row(measure, __doc__)
