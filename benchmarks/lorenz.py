"""Generalised teacher forcing on the Lorenz system: what a model that was trained with each share goes on to do alone.

    lifelong bench lorenz [--json FILE] [--updates U] [--seeds S]

A shallow PLRNN with 3 units and 100 hidden ones learns windows of T = 60 steps of 0.05, which are 2.7 Lyapunov times,
with the engine `gtf`. Then it hears the truth for 50 steps, and goes on from its own predictions.

- *valid time*: until its error is above 0.4 standard deviations, in Lyapunov times (1 / 0.906); mean over 256 points.
- *divergence*: of the distributions of points in state space, Kullback-Leibler in 20^3 cells between -3 and 3 standard
  deviations, 10^-6 added to each; 256 free runs of 1,000 steps against the true ones (D_stsp of Hess et al. 2023).
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
from torch import Tensor, nn

from benchmarks.measure import finish
from lifelong.agent import config as configs
from lifelong.agent.gradients.gtf import GTF
from lifelong.agent.runtime.build import build
from lifelong.envs.prediction.lorenz import CENTER, DEFAULTS, SCALE, move, starts

T, B, DT, LYAPUNOV = 60, 16, 0.05, 0.906
WARM, FREE, COPIES, BINS = 50, 1000, 256, 20
SHARES: dict[str, dict[str, Any]] = {
    "α = 0": {"alpha": 0.0},
    "α = 0.1": {"alpha": 0.1},
    "α = 0.3": {"alpha": 0.3},
    "adaptive": {"alpha": 0.3, "adaptive": True},
    "α = 1": {"alpha": 1.0},
}


def series(copies: int, steps: int, seed: int) -> Tensor:
    """Standardised trajectories [steps, copies, 3] from points of the attractor."""
    drawn = torch.randint(len(starts()), (copies,), generator=torch.Generator().manual_seed(seed))
    point, points = starts()[drawn].double(), []
    for _ in range(steps):
        points.append(point)
        point = move(point, DT, *DEFAULTS)
    return ((torch.stack(points) - torch.tensor(CENTER)) / torch.tensor(SCALE)).float()


def model(options: dict[str, Any], seed: int) -> GTF:
    """The engine of a fresh policy, whose read-out begins at the identity, as in the paper."""
    raw: dict[str, Any] = {
        "name": "lorenz",
        "seed": seed,
        "stream": {"tasks": [{"name": "lorenz", "env": {"kind": "Lorenz", "dt": DT}}], "steps_per_task": 10**6},
        "policy": {"encoder": "identity", "cell": {"kind": "plrnn", "size": 3, "hidden": 100, "observed": True}},
        "gradient": {"kind": "gtf", **options},
        "objective": "supervised",
        "rollout": {"copies": B, "steps": T},
        "runtime": {"device": "cpu"},
    }
    with tempfile.TemporaryDirectory() as folder:
        engine = build(configs.check(raw), Path(folder)).learner.engine
    assert isinstance(engine, GTF)
    nn.init.eye_(engine.readout.weight)
    return engine


def train(engine: GTF, data: Tensor, updates: int, seed: int) -> tuple[float, int]:
    """Adam with a rate that falls from 5e-3 to 5e-5, gradients clipped to a norm of 1; returns the median of the norms
    before that, and how many updates were left out because one was not finite."""
    parameters = [*engine.cell.parameters(), *engine.readout.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / updates))
    g, norms = torch.Generator().manual_seed(seed), []
    is_init = torch.zeros(T, B, dtype=torch.bool)
    is_init[0] = True
    for _ in range(updates):
        copy = torch.randint(data.shape[1], (B,), generator=g)
        start = torch.randint(len(data) - T, (B,), generator=g)
        window = data[start + torch.arange(T + 1)[:, None], copy]
        y, _ = engine.sequence(window[:-1], torch.zeros(B, engine.cell.state_size), is_init)
        loss = (engine.readout(y) - window[1:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(parameters, 1.0)))
        if norms[-1] < float("inf"):
            optimizer.step()
        schedule.step()
    finite = [norm for norm in norms if norm < float("inf")]
    return median(finite) if finite else float("inf"), updates - len(finite)


@torch.no_grad()
def alone(engine: GTF, truth: Tensor) -> dict[str, float]:
    """Valid time and divergence of free runs beside `truth` [WARM + FREE, COPIES, 3]."""
    state = engine.cell.initial_state(truth.shape[1])
    for x in truth[:WARM]:
        _, state = engine.cell.step(x, state)
    said, seen = engine.readout(state), []
    for _ in range(FREE):
        seen.append(said)
        _, state = engine.cell.step(said, state)
        said = engine.readout(state)
    free, true = torch.stack(seen), truth[WARM:]
    wrong = ~((free - true).square().mean(-1).sqrt() <= 0.4)
    valid = torch.where(wrong.any(0), wrong.float().argmax(0), FREE) * DT * LYAPUNOV

    def share(points: Tensor) -> Tensor:
        cell = ((points.nan_to_num(9.0).clamp(-2.999, 2.999) + 3) / 6 * BINS).long()
        index = (cell[..., 0] * BINS + cell[..., 1]) * BINS + cell[..., 2]
        counts = torch.bincount(index.flatten(), minlength=BINS**3).double()
        return (counts / counts.sum() + 1e-6) / (1 + 1e-6 * BINS**3)

    p, q = share(true), share(free)
    return {"valid_time": float(valid.mean()), "divergence": float((p * (p / q).log()).sum())}


def main(updates: int, seeds: int, json_file: Path | None) -> dict[str, Any]:
    """Train, judge, print, and write the JSON."""
    torch.set_num_threads(1)
    data, truth = series(64, 2000, 0), series(COPIES, WARM + FREE, 1)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SHARES}
    result: dict[str, Any] = {}
    for seed in range(seeds):
        for name, options in SHARES.items():
            begun, engine = time.perf_counter(), model(options, seed)
            norm, left_out = train(engine, data, updates, seed)
            row = {**alone(engine, truth), "gradient_norm": norm, "left_out": left_out}
            row["alpha"] = float(engine.alpha_B[0])
            found[name].append(row)
            print(name, {k: round(v, 3) for k, v in row.items()}, f"{time.perf_counter() - begun:.0f} s", flush=True)
        result = finish("lorenz", {"updates": updates, "T": T, "rows": found}, json_file)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.updates, arguments.seeds, arguments.json)
