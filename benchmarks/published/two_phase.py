"""One method, tuned on the stream that it is judged on (one phase) and on another one (two phases; Cha & Cho 2024).

    python benchmarks/published/two_phase.py --out FOLDER --seed S method=ewc

Streams are four permutations of the pixels of MNIST: of the digits 0 to 4 where hyper-parameters are tuned, of 5 to 9
where the method is judged. Every method has two step sizes and two values of a hyper-parameter of its own.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.measure import recipe_row
from lifelong.agent import config as configs
from lifelong.agent.run import start
from lifelong.agent.runtime.metrics import Evaluations

RATES = (1e-3, 5e-3)
METHODS: dict[str, list[dict[str, Any]]] = {
    "finetune": [{"kind": "finetune"}],
    "ewc": [{"kind": "ewc", "strength": strength} for strength in (0.01, 1.0)],
    "si": [{"kind": "si", "strength": strength} for strength in (0.1, 10.0)],
    "er": [{"kind": "er", "capacity": 500, "ratio": ratio} for ratio in (0.25, 1.0)],
}
TUNED, JUDGED = "tuned", "judged"


def accuracy(stream: str, rate: float, strategy: dict[str, Any], seed: int, steps: int) -> float:
    """Mean over the four tasks at the end of a run."""
    first, digits = (1, {"classes_to": 5}) if stream == TUNED else (11, {"classes_from": 5, "relabel": 1})
    env = {"kind": "ImageRows", "rows_per_step": 28, **digits}
    raw: dict[str, Any] = {
        "name": f"{stream}",
        "seed": seed,
        "stream": {
            "tasks": [{"name": f"p{n}", "env": {**env, "permutation": n}} for n in range(first, first + 4)],
            "steps_per_task": steps,
        },
        "policy": {
            "encoder": {"kind": "mlp", "hidden": [64], "activation": "relu"},
            "cell": {"kind": "elstm", "size": 64},
        },
        "gradient": "bptt",
        "objective": "supervised",
        "optimizer": {"kind": "adam", "lr": rate},
        "strategy": [strategy],
        "rollout": {"copies": 64, "steps": 1},
        "evaluation": {"every": 4 * steps, "episodes": 500, "max_steps": 1},
        "checkpoint": {"every": 4 * steps},
        "log_every": 4 * steps,
        "runtime": {"device": "cpu"},
    }
    seen: list[Evaluations] = []
    with tempfile.TemporaryDirectory() as folder:
        start(configs.check(raw), Path(folder) / "run", quiet=True, on_evaluation=lambda _, found: seen.append(found))
    return float(seen[-1].performance()[-1].mean())


def measure(seed: int, method: str, steps: int = 4096) -> dict[str, float]:
    """Accuracy on the stream that judges, as each protocol has it, and what the one that tunes on it gains by that."""
    found = {
        stream: [
            accuracy(stream, rate, strategy, seed, steps)
            for rate, strategy in itertools.product(RATES, METHODS[method])
        ]
        for stream in (TUNED, JUDGED)
    }
    chosen = max(range(len(found[TUNED])), key=found[TUNED].__getitem__)
    one, two = max(found[JUDGED]), found[JUDGED][chosen]
    return {"one_phase": one, "two_phase": two, "lost": one - two, "spread": one - min(found[JUDGED])}


if __name__ == "__main__":
    recipe_row(measure, __doc__)
