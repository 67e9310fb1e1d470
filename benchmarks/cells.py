"""What a chunk costs with each cell beside the eLSTM, and what solving all of its steps at once costs beside the loop.

    lifelong bench cells [--json FILE] [--parts speed,solver] [--seconds S]

- *speed*: forward, backward and carry of a chunk (`SIZE`), one thread: `rtrl` where the cell's Jacobian allows it, else
  `bptt`, which carries nothing. Each cell takes turns with the eLSTM; median of the ratios of the processor's time.
- *solver*: forward and backward of T steps, one thread; each solver in turns with the loop, and its iterations.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.engines import chunk
from benchmarks.measure import finish, ratios, take_turns
from lifelong.agent import registry
from lifelong.agent.cells.base import Cell
from lifelong.agent.gradients.parts import engine_for
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.kernels.allocator import keep_freed_memory

#: copies, steps, units, input
SIZE = {"B": 32, "T": 16, "N": 64, "D": 32}
SOLVED = ("elstm", "diagonal_gru", "diagonal_lstm", "brc", "min_gru")
STEPS, SOLVERS = (16, 64, 256, 1024), ("newton", "gauss_seidel")


def cell_of(kind: str, **options: Any) -> Cell:
    """The cell at `SIZE`, the same whenever it is asked for."""
    torch.manual_seed(0)
    cell: Cell = registry.build("cell", {"kind": kind, "size": SIZE["N"], **options}, SIZE["D"])
    return cell


def learner(kind: str) -> tuple[Callable[[], None], str]:
    """A chunk with the cell, and the engine that it has."""
    cell = cell_of(kind)
    name = "rtrl" if cell.composite or cell.jacobian in RTRL.jacobians else "bptt"
    engine = engine_for({"kind": name}, cell, SIZE["B"])
    return lambda: chunk(engine, cell, SIZE["T"]), name


def speed(seconds: float) -> dict[str, Any]:
    """Cell -> engine, time over that of the eLSTM, milliseconds of a chunk."""
    found: dict[str, Any] = {}
    base, _ = learner("elstm")
    for kind in registry.REGISTRY["cell"]:
        run, engine = learner(kind)
        times = take_turns({"elstm": base, "cell": run}, seconds=seconds, clock=time.process_time)
        over = median(ratios(times["cell"], times["elstm"]))
        found[kind] = {"engine": engine, "over_elstm": over, "ms": median(times["cell"]) * 1e3}
        print(f"{kind:20} {engine:6} {over:6.2f}", flush=True)
    return {"size": SIZE, "cells": found}


def solver(seconds: float) -> dict[str, Any]:
    """Cell -> T -> solver -> time over that of the loop, and the iterations."""
    found: dict[str, Any] = {}
    for kind in SOLVED:
        cells = {name: cell_of(kind, solver=name) for name in ("loop", *SOLVERS)}
        found[kind] = {}
        for T in STEPS:
            x = torch.randn(T, SIZE["B"], SIZE["D"], generator=torch.Generator().manual_seed(0))
            start, is_init = torch.zeros(SIZE["B"], cells["loop"].state_size), torch.zeros(T, SIZE["B"]) > 0

            def run(cell: Cell, x: torch.Tensor = x, state: torch.Tensor = start, init: torch.Tensor = is_init) -> None:
                cell.sequence(x, state, init)[0].sum().backward()

            times = take_turns(
                {n: lambda cell=cell: run(cell) for n, cell in cells.items()}, seconds=seconds, clock=time.process_time
            )  # type: ignore[misc]
            row = {}
            for name in SOLVERS:
                took = cells[name].solver
                assert took is not None
                over = median(ratios(times[name], times["loop"]))
                row[name] = {"over_loop": over, "iterations": took.iterations, "failed": took.failed}
            found[kind][T] = row
            print(kind, T, {n: f"{r['over_loop']:.1f} ({r['iterations']:.0f})" for n, r in row.items()}, flush=True)
    return {"size": {name: SIZE[name] for name in "BND"}, "cells": found}


PARTS = {"speed": speed, "solver": solver}


def main(parts: list[str], seconds: float, json_file: Path | None) -> dict[str, Any]:
    """Measure, print, and write the JSON."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run does
    return finish("cells", {part: PARTS[part](seconds) for part in parts}, json_file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    main(arguments.parts.split(","), arguments.seconds, arguments.json)
