"""What exact history is worth to an agent that learns at every step: rows of two recipes of published tables, at their
small budgets, seed by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifelong.agent import config as configs
from lifelong.agent import published
from lifelong.agent.runtime.build import build
from tests.agent.support import Silent

SEEDS = range(2)


class Lived(Silent):
    """Returns of episodes as they were lived, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.returns: dict[int, float] = {}

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if "continual/online_return" in values:
            self.returns[step] = values["continual/online_return"]


def trained(name: str, row: str, seed: int, folder: Path) -> tuple[float, float]:
    """The mean return of the last evaluation of a row, and that of the episodes in the last quarter of its life."""
    recipe = published.load(name)
    raw = configs.override(
        recipe.config, [*recipe.variants("small")[row], f"seed={seed}", "evaluation.every=10_000_000"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    trainer = build(configs.check(raw), folder)
    trainer.save = lambda log: None  # type: ignore[method-assign]
    log: Any = Lived()
    trainer.train(log, log)
    late = [value for step, value in log.returns.items() if step > 0.75 * trainer.step]
    return float(np.mean(trainer.evaluations.tensor()[-1])), float(np.mean(late))


@pytest.mark.slow
def test_trace_conditioning_is_learned_with_the_history_when_it_is_not_yet_without(tmp_path: Path) -> None:
    """Seed 0 alone: others take off later (docs/streaming.md)."""
    exact = -trained("trace_conditioning", "RTRL, λ = 0.9", 0, tmp_path / "exact")[0]
    cut = -trained("trace_conditioning", "one-step truncation, λ = 0.9", 0, tmp_path / "cut")[0]
    assert exact <= 0.06
    assert cut >= 3 * exact


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_memory_chains_twice_as_long_are_solved_with_the_history(tmp_path: Path, seed: int) -> None:
    """While they learn; greedily and with a small step size the end is the same (docs/streaming.md)."""
    assert trained("memory_chain", "RTRL, L = 64", seed, tmp_path / "exact")[1] > 0.5
    assert trained("memory_chain", "one-step truncation, L = 64", seed, tmp_path / "cut")[1] < 0.5
