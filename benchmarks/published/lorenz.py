"""Generalised teacher forcing of one strength on the Lorenz system, with the functions of `benchmarks/lorenz.py`.

python benchmarks/published/lorenz.py --out FOLDER --seed S alpha=0.3 adaptive=true
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.lorenz import COPIES, FREE, WARM, alone, model, series, train
from benchmarks.measure import recipe_row


def measure(seed: int, alpha: float, adaptive: bool = False, updates: int = 4000) -> dict[str, float]:
    """Valid time and divergence of free runs, and the median norm of gradients while it learned."""
    engine = model({"alpha": alpha, **({"adaptive": True} if adaptive else {})}, seed)
    norm, left_out = train(engine, series(64, 2000, 0), updates, seed)
    return {**alone(engine, series(COPIES, WARM + FREE, 1)), "gradient_norm": norm, "left_out": left_out}


if __name__ == "__main__":
    recipe_row(measure, __doc__)
