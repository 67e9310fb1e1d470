"""Gradient engines for dense cells beside `exact` and truncated BPTT: error, cost, and what they learn.

    lifelong bench engines [--json FILE] [--figure PNG] [--parts error,cost,copy]

- *error*: the gradient of a loss over 64 steps, cut into chunks of T, against that of `exact`: the bias of every
  engine, and the standard deviation of those that draw random numbers, both over the norm of the exact gradient. Cells
  as they are initialised, 16 units, root mean square over histories of white noise.
- *cost*: seconds of this process for a chunk, forward, backward and carry, over those of `bptt`, one thread, in turns.
- *copy*: four bits are to be said again 16 steps after they were shown, in chunks of 8 steps, so that truncated BPTT
  never sees a word and its answer together. Accuracy in the last eighth of 192,000 steps, and the steps until 0.95.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor

from benchmarks.measure import finish
from lifelong.agent import config as configs
from lifelong.agent import registry
from lifelong.agent.cells.base import Cell
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.gradients.noise import Noisy
from lifelong.agent.gradients.parts import carry_numbers
from lifelong.agent.runtime.build import build

CELLS = ("rnn", "gru", "lstm")
ENGINES = ("bptt", "exact", "snap1", "uoro", "kf_rtrl", "rflo", "eprop", "dsf")
CUTS = (1, 2, 4, 8, 16)
STEPS, HISTORIES, DRAWS = 64, 3, 32
SEEDS, COPY_STEPS, WINDOWS = 5, 192_000, 24


# ---- error -----------------------------------------------------------------------------------------------------------


class History:
    """White noise, the states that it leaves, and a loss: the outputs times fixed random weights.

    Args:
        cell: in float64.
        seed: of all that is random.
    """

    def __init__(self, cell: Cell, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.cell = cell
        self.x = torch.randn(STEPS, 1, cell.input_size, generator=g, dtype=torch.float64)
        self.weight = torch.randn(STEPS, 1, cell.output_size, generator=g, dtype=torch.float64)
        self.is_init = torch.zeros(STEPS, 1, dtype=torch.bool)
        start = torch.zeros(1, cell.state_size, dtype=torch.float64)
        self.before = torch.cat([start[None], cell.states(self.x, start, self.is_init)[:-1]])

    def gradients(self, engine: GradientEngine, cut: int) -> Tensor:
        """The gradient of every copy of `engine`, [copies, P], if chunks have `cut` steps."""
        copies, names = engine.copies, self.cell.recurrent_parameters()
        parameters = [self.cell.get_parameter(name) for name in names]
        total = torch.zeros(copies, sum(p.numel() for p in parameters), dtype=torch.float64)
        for start in range(0, STEPS, cut):
            here = slice(start, start + cut)
            state = self.before[start].clone().requires_grad_()
            y, _ = engine.sequence(self.x[here], state, self.is_init[here])
            loss = (y * self.weight[here]).sum()
            boundary, *inside = torch.autograd.grad(loss, [state, *parameters], materialize_grads=True)
            total += torch.cat([gradient.flatten() for gradient in inside])
            for copy in range(copies):
                attached = engine.attach(torch.zeros_like(state), torch.tensor([copy]))
                if attached.requires_grad:
                    found = torch.autograd.grad(attached, parameters, boundary)
                    total[copy] += torch.cat([gradient.flatten() for gradient in found])
            many = [x[here].expand(-1, copies, *x.shape[2:]) for x in (self.x, self.before, self.is_init)]
            engine.advance(engine.trace(*many))
        return total


def error() -> dict[str, Any]:
    """Bias and standard deviation, cell -> engine -> one number a cut."""
    found: dict[str, Any] = {}
    for kind in CELLS:
        squares = {name: torch.zeros(3, len(CUTS)) for name in ENGINES}
        for seed in range(HISTORIES):
            torch.manual_seed(seed)
            cell = registry.build("cell", {"kind": kind, "size": 16}, 8).double()
            history = History(cell, seed)
            exact = history.gradients(registry.build("gradient", {"kind": "exact"}, cell, 1), STEPS)[0]
            for name in ENGINES:
                for column, cut in enumerate(CUTS):
                    noisy = issubclass(registry.load("gradient", name), Noisy)
                    engine = registry.build("gradient", {"kind": name}, cell, DRAWS if noisy else 1)
                    engine.seed(seed)
                    got = history.gradients(engine, cut)
                    variance = float(got.var(0).sum()) if noisy else 0.0
                    off = float((got.mean(0) - exact).square().sum())
                    row = torch.tensor([off, variance, variance / DRAWS]) / float(exact.square().sum())
                    squares[name][:, column] += row / HISTORIES
        found[kind] = {
            name: dict(zip(("bias", "deviation", "standard_error"), square.sqrt().tolist(), strict=True))
            for name, square in squares.items()
        }
        print(kind, {name: [f"{x:.2g}" for x in row["bias"]] for name, row in found[kind].items()}, flush=True)
        print(" deviation", {n: [f"{x:.2g}" for x in found[kind][n]["deviation"]] for n in ("uoro", "kf_rtrl")})
    return {"cuts": CUTS, "steps": STEPS, "cells": found}


def figure(found: dict[str, Any], path: Path) -> None:
    """Bias on top, deviation below, one column a cell."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(CELLS), figsize=(10, 5.6), sharex=True, sharey="row", layout="constrained")
    for column, kind in enumerate(CELLS):
        for index, name in enumerate(n for n in ENGINES if n != "exact"):
            row, colour = found["cells"][kind][name], f"C{index}"
            if max(row["deviation"]):
                axes[1, column].plot(found["cuts"], row["deviation"], "o-", color=colour, label=name)
            else:
                axes[0, column].plot(found["cuts"], row["bias"], "o-", color=colour, label=name)
        for line, what in enumerate(("bias", "standard deviation")):
            axis = axes[line, column]
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(found["cuts"], [str(cut) for cut in found["cuts"]])
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
            if not column:
                axis.set_ylabel(f"{what} / |exact gradient|")
        axes[0, column].set_title(kind)
        axes[1, column].set_xlabel("steps of a chunk T")
    for line in range(2):
        axes[line, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=110)


# ---- cost ------------------------------------------------------------------------------------------------------------


def chunk(engine: GradientEngine, cell: Cell, T: int) -> None:
    """What the learner does with a chunk, but for the heads and the optimiser."""
    B = engine.copies
    x, state, is_init = torch.randn(T, B, cell.input_size), torch.zeros(T, B, cell.state_size), torch.zeros(T, B) > 0
    trace = engine.trace(x, state, is_init)
    y, _ = engine.sequence(x, engine.attach(state[0]), is_init)
    y.sum().backward()
    engine.advance(trace)


def seconds(engine: GradientEngine, cell: Cell, T: int, times: int = 5) -> float:
    """Of this process, for a chunk."""
    begun = time.process_time()
    for _ in range(times):
        chunk(engine, cell, T)
    return (time.process_time() - begun) / times


def cost(rounds: int = 12) -> dict[str, Any]:
    """Time over `bptt` and the carry over the parameters, of a GRU; medians of turns."""
    found: dict[str, Any] = {}
    for N, T, B in ((16, 8, 16), (32, 16, 16), (64, 16, 16)):
        cell = registry.build("cell", {"kind": "gru", "size": N}, N)
        engines = {name: registry.build("gradient", {"kind": name}, cell, B) for name in ENGINES}
        times: dict[str, list[float]] = {name: [] for name in ENGINES}
        for turn in range(rounds + 1):  # the first one warms up
            for name, engine in engines.items():
                took = seconds(engine, cell, T, 1 if name == "exact" else 5)
                times[name] += [took] if turn else []
        parameters = sum(p.numel() for p in cell.parameters())
        found[f"gru N={N} T={T} B={B}"] = {
            name: {
                "time_over_bptt": median(a / b for a, b in zip(times[name], times["bptt"], strict=True)),
                "carry_over_parameters": carry_numbers({"kind": name}, cell) / parameters,
                "ms": median(times[name]) * 1e3,
            }
            for name in ENGINES
        }
        print(f"N={N} T={T} B={B}", {n: f"{r['time_over_bptt']:.2f}" for n, r in list(found.values())[-1].items()})
    return found


# ---- copy ------------------------------------------------------------------------------------------------------------


def copy_task(engine: str, seed: int) -> list[float]:
    """The accuracy in each of `WINDOWS` parts of a run."""
    task = {"name": "copy", "env": {"kind": "Copy", "length": 1, "bits": 4, "delay": 15}}
    raw: dict[str, Any] = {
        "name": "copy",
        "seed": seed,
        "stream": {"tasks": [task], "steps_per_task": COPY_STEPS},
        "policy": {"encoder": "identity", "cell": {"kind": "gru", "size": 32}},
        "gradient": engine,
        "objective": "supervised",
        "optimizer": {"kind": "adam", "lr": 1e-2},
        "rollout": {"copies": 32, "steps": 8, "random_initial_age": True},
        "runtime": {"device": "cpu"},
    }
    accuracy, chunks = [], COPY_STEPS // (32 * 8 * WINDOWS)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(configs.check(raw), Path(folder))
        for _ in range(WINDOWS):
            lived = [trainer.advance() for _ in range(chunks)]
            accuracy.append(float(torch.cat([e.episode_return_TB[e.done_TB] for e in lived]).mean()))
    return accuracy


def copy() -> dict[str, Any]:
    """Accuracies of every engine and seed."""
    found = {}
    for name in ENGINES:
        curves = [copy_task(name, seed) for seed in range(SEEDS)]
        final = [sum(curve[-3:]) / 3 for curve in curves]
        known = [next((i + 1 for i, a in enumerate(curve) if a > 0.95), None) for curve in curves]
        learned = [None if window is None else window * COPY_STEPS // WINDOWS for window in known]
        found[name] = {"final": final, "learned_at": learned, "curves": curves}
        print(name, [f"{a:.3f}" for a in final], learned, flush=True)
    return found


PARTS = {"error": error, "cost": cost, "copy": copy}


def main(parts: list[str], json_file: Path | None, picture: Path | None) -> dict[str, Any]:
    """Measure, print, and write the JSON and the figure."""
    torch.set_num_threads(1)
    found = {part: PARTS[part]() for part in parts}
    if picture is not None and "error" in found:
        figure(found["error"], picture)
    return finish("engines", found, json_file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    arguments = parser.parse_args()
    main(arguments.parts.split(","), arguments.json, arguments.figure)
