r"""Train a config in several variants and over several seeds, and print one comparison table.

    python benchmarks/compare.py quickstart strategy=clear strategy=finetune --seeds 5
    python benchmarks/compare.py permuted_mnist strategy=gpm strategy=ewc strategy=clear strategy=finetune
    python benchmarks/compare.py tmaze gradient=rtrl gradient=bptt \
        "gradient=bptt rollout.steps=56 optimizer.lr=5e-3" --seeds 5

Every variant is a string of overrides. Runs that are finished already are not run again, so the command can be stopped
and repeated. Each run is a process with one thread; `--jobs` of them run side by side. The raw runs stay in
runs/compare/<config>/, and `--json` writes performance of every task and seed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from lifelong.agent.report.runs import load_runs
from lifelong.agent.report.tables import comparison, console
from lifelong.agent.runtime.machine import machine, versions


def folder_of(out: Path, variant: str, seed: int) -> Path:
    """Where a run of `variant` goes."""
    return out / (re.sub(r"[^a-zA-Z0-9._=-]+", "_", variant) or "default") / str(seed)


def train(config: str, variant: str, seed: int, folder: Path) -> None:
    """One run in a process of its own; an unfinished one is resumed."""
    if (folder / "summary.json").exists():
        return
    command = [sys.executable, "-m", "lifelong.agent.cli", "run", config, "--quiet", "--resume", "--out", str(folder)]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [*command, *variant.split(), f"seed={seed}"], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{config} {variant} seed {seed} ended with {done.returncode}:\n{done.stderr}")
    print(f"finished {variant or 'default'} seed {seed}", file=sys.stderr, flush=True)


def main() -> None:
    """Run, print the table, write the JSON."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("config")
    arguments.add_argument("variants", nargs="*", default=[""])
    arguments.add_argument("--seeds", type=int, default=1)
    arguments.add_argument("--jobs", type=int, default=2)
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    out = options.out or Path("runs") / "compare" / Path(options.config).stem
    work = [(variant, seed) for seed in range(options.seeds) for variant in options.variants]
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(train, options.config, v, s, folder_of(out, v, s).absolute()) for v, s in work]
        for future in futures:
            future.result()
    console().print(comparison(load_runs([folder_of(out, v, s) for v, s in work])))
    arms = [arm(out, variant, options.seeds) for variant in options.variants]
    for entry in arms:
        for task in entry["tasks"]:
            print(
                f"{entry['variant'] or 'default':<40} {task['name']:<16} learned {task['learned_median']:.3f}  "
                f"final {task['final_median']:.3f}  seeds {' '.join(f'{x:.2f}' for x in task['final'])}"
            )
    if options.json:
        result = {
            "benchmark": "compare",
            "config": options.config,
            "date": date.today().isoformat(),
            "arms": arms,
            "machine": machine("cpu"),
            "versions": versions(),
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def arm(out: Path, variant: str, seeds: int) -> dict[str, Any]:
    """Performance of every task over the seeds of one variant, from the summaries."""
    summaries = [json.loads((folder_of(out, variant, s) / "summary.json").read_text()) for s in range(seeds)]
    tasks = []
    for index, task in enumerate(summaries[0]["tasks"]):
        learned = [s["tasks"][index]["learned"] for s in summaries]
        final = [s["tasks"][index]["final"] for s in summaries]
        tasks.append(
            {
                "name": task["name"],
                "learned": learned,
                "final": final,
                "learned_median": statistics.median(learned),
                "final_median": statistics.median(final),
            }
        )
    return {
        "variant": variant,
        "tasks": tasks,
        "average_performance": [s["average_performance"] for s in summaries],
        "forgetting": [s["forgetting"] for s in summaries],
        "env_steps": summaries[0]["env_steps"],
    }


if __name__ == "__main__":
    main()
