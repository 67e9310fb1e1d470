"""What the benchmark scripts share: candidates that take turns, and the JSON that a benchmark writes.

The speed of a shared machine drifts by more than the effects that are measured. Turns in one process see the same
drift, so a ratio of neighbouring turns is worth more than one of two runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from lifelong.agent.files import make_folder, write_json
from lifelong.agent.runtime.machine import machine, versions


def take_turns(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    seconds: float,
    turns: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every turn of each candidate, for about `seconds` in all and at least `turns` turns after one to warm
    up; `time.process_time` as the clock leaves out what other processes took of the machine.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times[next(iter(times))]) < turns:
        for name, run in candidates.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Median seconds of each candidate."""
    return {name: median(values) for name, values in times.items()}


def ratios(a: list[float], b: list[float]) -> list[float]:
    """a / b of every turn, sorted."""
    return sorted(x / y for x, y in zip(a, b, strict=True))


def finish(benchmark: str, found: Mapping[str, Any], json_file: str | Path | None) -> dict[str, Any]:
    """What was found, with date, commit, machine, threads and versions; also written to `json_file` if there is one."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    result = {
        "benchmark": benchmark,
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        **found,
        "machine": {**machine("cpu"), "threads": torch.get_num_threads()},
        "versions": versions(),
    }
    if json_file is not None:
        Path(json_file).write_text(json.dumps(result, indent=2) + "\n")
    return result


def recipe_row(measure: Callable[..., Mapping[str, Any]], description: str | None = None) -> None:
    """The main function of a recipe's script, which makes one row for one seed in one thread: `SCRIPT --out FOLDER
    --seed S key=value ...` writes `FOLDER/summary.json`.

    Args:
        measure: called as `measure(seed=S, key=value, ...)`, with values as YAML has them; gives the numbers of the row
            by name, and for the figure `curve` (two lists, x and y) or `image` (rows of numbers), if it likes.
        description: for `--help`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("words", metavar="key=value", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    values = {key: yaml.safe_load(text) for key, _, text in (word.partition("=") for word in options.words)}
    begun = time.process_time()
    found = dict(measure(seed=options.seed, **values))
    drawn = {key: found.pop(key) for key in ("curve", "image") if key in found}
    make_folder(options.out)
    numbers = {name: float(value) for name, value in found.items()}
    summary = {"seed": options.seed, "seconds": round(time.process_time() - begun, 1), "measures": numbers, **drawn}
    write_json(options.out / "summary.json", summary)
    print(numbers)
