"""What the history of a run costs it: quickstart's chunks and evaluations after 10 evaluations and after 10,000.

    lifelong bench history [--json FILE]

Two runs of the same config in this process take turns; in one of them the first evaluation is in the log 10,000 times.
Chunks are trained and logged, evaluations made and written as `Trainer.train` does it. The median of the ratios of
neighbouring turns is reported, in seconds of this process: 1 is no cost.
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

from benchmarks.measure import finish, ratios
from lifelong.agent import config as configs
from lifelong.agent.runtime.build import build
from lifelong.agent.runtime.logging import Progress, RunLog
from lifelong.agent.runtime.trainer import Trainer

POINTS = (10, 10_000)
CHUNKS = 8  # of a turn
TURNS = 40
EVALUATE_EVERY = 4  # turns


def run_with(points: int, folder: Path) -> tuple[Trainer, RunLog, float]:
    """A run with so many evaluations behind it, its log, and the seconds it took to note each of them."""
    trainer = build(configs.load("quickstart", ["runtime.device=cpu", "log_every=1024"]), folder)
    folder.mkdir()
    log = RunLog(folder, {})
    trainer.evaluate(log, None)
    begun = time.process_time()
    for _ in range(points - 1):
        trainer.evaluations.add(trainer.step, trainer.evaluations.returns[-1])
        log.evaluation(trainer.evaluations)
    return trainer, log, (time.process_time() - begun) / points


def main(json_file: Path | None) -> dict[str, Any]:
    """Measure, print, and write the JSON."""
    chunks: dict[int, list[float]] = {points: [] for points in POINTS}
    evaluations: dict[int, list[float]] = {points: [] for points in POINTS}
    with tempfile.TemporaryDirectory() as folder:
        runs = {points: run_with(points, Path(folder) / str(points)) for points in POINTS}
        progress = Progress(10**9, 0, quiet=True)
        for turn in range(TURNS + 1):  # the first one warms up
            for points, (trainer, log, _) in runs.items():
                begun = time.process_time()
                for _ in range(CHUNKS):
                    experience = trainer.advance()
                    trainer.log(log, progress)
                    progress.update(trainer.step, trainer.task_name(), trainer.performance())
                trained = time.process_time()
                if turn % EVALUATE_EVERY == 0:
                    trainer.evaluate(log, experience)
                if turn:
                    chunks[points].append(trained - begun)
                    if turn % EVALUATE_EVERY == 0:
                        evaluations[points].append(time.process_time() - trained)
        noted = {str(points): seconds for points, (_, _, seconds) in runs.items()}
        for _, log, _ in runs.values():
            log.close()
    few, many = POINTS
    found = {
        "chunk": median(ratios(chunks[many], chunks[few])),
        "evaluation": median(ratios(evaluations[many], evaluations[few])),
    }
    print(f"seconds after {many:,} evaluations over those after {few}")
    for name, ratio in found.items():
        print(f"  {name:12} {ratio:6.3f}")
    print(f"  noting one of {many:,} evaluations took {noted[str(many)] * 1e6:.0f} microseconds on average")
    return finish("history", {"ratios": found, "seconds_to_note_an_evaluation": noted}, json_file)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--json", type=Path)
    main(arguments.parse_args().json)
