"""`lifelong analyse`: everything that is looked at inside of a trained policy, as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong.agent import run
from lifelong.agent.analysis.fixed_points import LARGEST, fixed_points
from lifelong.agent.analysis.lived import Layers, layers, live
from lifelong.agent.analysis.ordinal import ENOUGH, complexity, entropy, order_for, pattern_shares, windows
from lifelong.agent.analysis.representation import cka, overlap
from lifelong.agent.errors import ConfigError, LifelongError
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.plasticity import dormant_units, effective_rank
from lifelong.agent.runtime.trainer import Trainer
from lifelong.replay.chunk import Chunk

#: steps between the values of a window
DELAYS = (1, 2, 4, 8, 16, 32)
#: trajectories that are drawn beside the fixed points of a task, and steps of each
DRAWN = 6, 120


def analyse(folder: Path, *, steps: int = 256, copies: int = 32, starts: int = 0, seed: int = 0) -> dict[str, Any]:
    """Look inside the policy of a run at its newest checkpoint, as it is evaluated; nothing is written.

    Args:
        folder: of the run.
        steps: that are lived in every task, from the start of an episode.
        copies: side by side.
        starts: visited states from which fixed points are sought in every task; 0: none are.
        seed: of which ones.

    Returns:
        Plain data, as docs/analysis.md describes it.

    Raises:
        CheckpointError: there is no run, or no usable checkpoint.
        ConfigError: the cell's state is too large for fixed points.
    """
    assignments = [f"evaluation.episodes={copies}"]
    trainer = run.opened(folder, assignments)
    with closing(trainer):
        size = trainer.rollout.policy.cell.state_size
        if starts and size > LARGEST:
            raise ConfigError(
                f"the state of cell {trainer.config.policy.cell['kind']} has {size:,} numbers here, and fixed points "
                f"are sought in one of at most {LARGEST:,}; leave --fixed-points out"
            )
        names = [task.name for task in trainer.stream.tasks]
        chunks = [live(trainer, task, steps) for task in range(len(names))]
        said = [layers(trainer, task, chunk) for task, chunk in enumerate(chunks)]
        found: dict[str, Any] = {
            "run": str(folder),
            "name": trainer.config.name,
            "seed": trainer.config.seed,
            "step": trainer.step,
            "tasks": names,
            "steps": steps,
            "copies": copies,
            "layers": [row for name, one in zip(names, said, strict=True) for row in _rows(name, one)],
            **_trajectories(names, said, chunks),
            "overlap": _overlap(said),
        }
        generator = torch.Generator().manual_seed(seed)
        found["fixed_points"] = [
            _still(trainer, names[task], one, chunks[task], starts, generator)
            for task, one in enumerate(said)
            if starts
        ]
        found["drift"] = _drift(trainer, folder, assignments, said, chunks)
    return found


def memory_of(one: Layers) -> Tensor:
    """The whole memory after each step, [T, B, S]."""
    parts = [part for name, part in one.named.items() if name.startswith("memory")]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _rows(task: str, one: Layers) -> Iterator[dict[str, Any]]:
    for layer, y in one.named.items():
        y_MN = y.flatten(0, 1)
        yield {
            "task": task,
            "layer": layer,
            "units": y_MN.shape[1],
            "effective_rank": effective_rank(y_MN),
            "dormant_units": dormant_units(y_MN),
        }


def _trajectories(names: Sequence[str], said: Sequence[Layers], chunks: Sequence[Chunk]) -> dict[str, Any]:
    """Entropy and complexity of every number of the memory, [delays, S] a task."""
    masks = [chunk.is_init.cpu().numpy() for chunk in chunks]
    order = order_for(masks)
    rows = []
    for name, one, mask in zip(names, said, masks, strict=True) if order else ():
        assert order is not None
        enough = ENOUGH * math.factorial(order)
        delays = [delay for delay in DELAYS if windows(mask, order, delay).sum() >= enough]
        memory = memory_of(one).cpu().numpy()
        shares = [pattern_shares(memory, mask, order, delay) for delay in delays]
        told = {
            "entropy": [entropy(share).tolist() for share in shares],
            "complexity": [complexity(share).tolist() for share in shares],
        }
        rows.append({"task": name, "delays": delays, **told})
    return {"order": order, "trajectories": rows}


def _overlap(said: Sequence[Layers]) -> dict[str, list[list[float | None]]]:
    """Layer -> how much of the row's task lies where the column's task does."""
    flat = [{layer: y.flatten(0, 1) for layer, y in one.named.items()} for one in said]
    return {layer: [[_defined(overlap(a[layer], b[layer])) for b in flat] for a in flat] for layer in flat[0]}


def _drift(
    trainer: Trainer, folder: Path, assignments: Sequence[str], said: Sequence[Layers], chunks: Sequence[Chunk]
) -> dict[str, Any]:
    """How alike the layers were before to what they are now, on what the policy of now goes through: [steps, tasks]."""
    drift: dict[str, Any] = {"steps": [], "layers": {layer: [] for layer in said[0].named}, "left_out": []}

    def add(step: int, other: Trainer) -> None:
        then = [layers(other, task, chunk) for task, chunk in enumerate(chunks)]
        drift["steps"].append(step)
        for layer, rows in drift["layers"].items():
            pairs = [
                (a.named[layer].flatten(0, 1), b.named[layer].flatten(0, 1)) for a, b in zip(then, said, strict=True)
            ]
            rows.append([_defined(cka(a, b)) for a, b in pairs])

    beginning = run.opened(folder, assignments, beginning=True)
    with closing(beginning):
        add(0, beginning)
    for saved in checkpoint.each(folder / "checkpoints"):
        try:
            trainer.load_state_dict(saved)
        except (LifelongError, RuntimeError, KeyError, ValueError):  # the run was changed since
            drift["left_out"].append(saved["step"])
            continue
        add(saved["step"], trainer)
    return drift


def _still(
    trainer: Trainer, task: str, one: Layers, chunk: Chunk, starts: int, generator: torch.Generator
) -> dict[str, Any]:
    """Fixed points under the mean input of a task, and some trajectories, on the plane of their two largest principal
    components."""
    memory = memory_of(one)
    visited_MS = memory.flatten(0, 1)
    x_D = one.x_TBD.flatten(0, 1).mean(0)
    chosen = torch.randperm(len(visited_MS), generator=generator)[:starts]
    points = fixed_points(trainer.rollout.policy.cell, x_D, visited_MS[chosen])
    mean_S = visited_MS.double().mean(0)
    _, singular, axes = torch.linalg.svd(visited_MS.double() - mean_S, full_matrices=False)
    plane = axes[:2]

    def at(state: Tensor) -> list[Any]:
        return np.round(((state.double() - mean_S) @ plane.T).numpy(), 5).tolist()  # type: ignore[no-any-return]

    copies, steps = DRAWN
    borders = [chunk.is_init[1:steps, b].nonzero().flatten().add(1).tolist() for b in range(min(copies, chunk.copies))]
    ways = [way for b, cuts in enumerate(borders) for way in memory[:steps, b].tensor_split(cuts)]
    return {
        "task": task,
        "input": x_D.tolist(),
        "explained": float(singular[:2].square().sum() / singular.square().sum().clamp(min=1e-300)),
        "points": [{**vars(point), "state": point.state.tolist(), "at": at(point.state)} for point in points],
        "trajectories": [at(way) for way in ways if len(way) > 1],
    }


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
