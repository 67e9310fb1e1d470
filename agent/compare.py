"""`lifelong compare`: train a config in several variants and over several seeds, and hold them against each other.

Every run is a process of its own with one thread, in `OUT/<row>/<seed>`. Runs that are there and finished are not made
again, unfinished ones go on, so the same command goes on after a stop.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from lifelong.agent import config as configs
from lifelong.agent.errors import ConfigError, PartError
from lifelong.agent.files import make_folder

#: rows that every comparison wants: nothing done, begun anew, stopped, without a memory, and the bound of all tasks at
#: once
CONTROLS: tuple[tuple[str, ...], ...] = (
    ("strategy=finetune",),
    ("strategy=reset_on_task",),
    ("strategy=freeze_at",),
    ("strategy=finetune", "policy.reset_memory_on=step"),
    ("strategy=finetune", "stream.schedule=interleaved"),
)
#: seconds between two looks at the runs
POLL = 0.1
#: seconds that a run may take to save itself
PATIENCE = 120.0


def declare(commands: Any) -> Any:
    """Add the command to those of the command line."""
    made = commands.add_parser("compare", help="train a config in several variants and seeds, and one table of them")
    made.add_argument("config", metavar="CONFIG", help="a bundled name (see `lifelong list config`) or a path")
    made.add_argument(
        "overrides",
        metavar="a.b=x,y",
        nargs="*",
        help="overrides; of several values each is tried, in all combinations",
    )
    made.add_argument("--row", action="append", default=[], metavar="'a.b=x c.d=y'", help="one more row; repeatable")
    made.add_argument("--controls", action="store_true", help="add finetune, reset, freeze and interleaved")
    made.add_argument("--alone", action="store_true", help="train every task alone, too, for forward transfer")
    made.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1; default 3")
    made.add_argument("--parallel", type=int, metavar="N", help="runs at once; default: the number of cores")
    made.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs; default compare/<config>")
    made.add_argument("--csv", type=Path, metavar="FILE", help="write every task of every run there")
    made.add_argument("--json", type=Path, metavar="FILE", help="write every row, with machine and versions, there")
    made.add_argument("--latex", type=Path, metavar="FILE", help="write that table for LaTeX there")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="write a table with intervals there")
    return made


def alternatives(word: str) -> list[str]:
    """`strategy=ewc,[gpm, clear]` as `strategy=ewc` and `strategy=[gpm, clear]`: commas within brackets do not count.

    Raises:
        ConfigError: no `=`, or nothing between two commas.
    """
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"{word!r} is no override; write a.b=value, or a.b=one,another to compare")
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth <= 0:
            values.append("")
        else:
            values[-1] += letter
    values = [value.strip() for value in values]
    if len(values) > 1 and not all(values):
        raise ConfigError(f"{word!r} has nothing between two commas; write a.b=one,another")
    return [f"{key}={value}" for value in values]


def rows(words: Sequence[str], more: Sequence[str] = (), controls: bool = False) -> list[tuple[str, ...]]:
    """The overrides of every row: all combinations of the alternatives in `words`, then those of `more` (overrides with
    spaces between them), then the controls; each once.

    Raises:
        ConfigError: an override that is none.
    """
    found = list(itertools.product(*map(alternatives, words))) if words or not more else []
    for text in more:
        row = tuple(re.split(r"\s+(?=[\w.]+=)", text.strip()))
        for word in row:
            alternatives(word)
        found.append(row)
    shared = tuple(word for word in words if len(alternatives(word)) == 1)
    for control in CONTROLS if controls else ():
        named = {word.partition("=")[0] for word in control}
        found.append((*(word for word in shared if word.partition("=")[0] not in named), *control))
    return list(dict.fromkeys(found))


@dataclass
class Run:
    """One run of a comparison.

    Args:
        row: its overrides.
        seed: its seed.
        folder: its run folder.
        config: its checked config, as plain data.
        script: a program that makes it, in place of `lifelong run` (see `agent.published`).
    """

    row: tuple[str, ...]
    seed: int
    folder: Path
    config: dict[str, Any]
    script: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    #: what it says on standard error
    said: IO[bytes] | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{label(self.row)} seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end."""
        return (self.folder / "summary.json").is_file()


def alone(config: str, words: Sequence[str]) -> list[tuple[str, ...]]:
    """A row for every task of a config by itself, without a strategy: what forward transfer is measured against.

    Args:
        config: a bundled name or a path.
        words: the overrides as given; those with one value hold here, too.

    Raises:
        ConfigError: a config that cannot be.
    """
    shared = tuple(word for word in words if len(alternatives(word)) == 1 and not word.startswith("strategy="))
    tasks = configs.to_dict(configs.choose(config, list(shared)))["stream"]["tasks"]
    return [(*shared, "strategy=finetune", f"stream.tasks={json.dumps([task])}") for task in tasks]


def label(row: Sequence[str]) -> str:
    """A row, for people."""
    return " ".join(row) or "as it is"


def folder_name(row: Sequence[str]) -> str:
    """The folder of a row: its overrides as far as a file system takes them."""
    text = "_".join(row) or "as_it_is"
    legible = re.sub(r"\s*,\s*", "+", re.sub(r"[\[\]{}\"']", "", text))
    plain = re.sub(r"[^a-zA-Z0-9._=+-]+", "_", legible)[:100]
    return plain if plain == text else f"{plain}-{sha256(text.encode()).hexdigest()[:6]}"


def plan(config: str, chosen: Sequence[tuple[str, ...]], seeds: Iterable[int], out: Path) -> list[Run]:
    """The runs of a comparison, seed by seed; nothing is written yet.

    Raises:
        ConfigError: a config that cannot be, or a folder that holds a run of another one.
    """
    found = []
    for seed, row in itertools.product(seeds, chosen):
        wanted = configs.to_dict(configs.choose(config, [*row, f"seed={seed}"]))
        run = Run(row, seed, out / folder_name(row) / str(seed), wanted)
        kept = run.folder / "config.yaml"
        if kept.is_file() and _learned(configs.to_dict(configs.load(str(kept.resolve())))) != _learned(wanted):
            raise ConfigError(f"{run.folder} holds a run of another config than {label(row)} is now; use another --out")
        found.append(run)
    return found


def _learned(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what says nothing of what is learned: its name, and options of strategies it might have had."""
    return {key: value for key, value in config.items() if key not in ("name", "strategy_options")}


def train(
    config: str, runs: Sequence[Run], parallel: int, tell: Callable[[str], None], stop: Callable[[], bool]
) -> bool:
    """Make the runs that are not finished, `parallel` at once; False if `stop()` asked to stop: they have saved.

    Raises:
        PartError: runs that failed, after the others have ended.
    """
    waiting = [run for run in runs if not run.finished]
    done, failed = len(runs) - len(waiting), []
    if done:
        tell(f"{done} of {len(runs)} runs are there")
    going: list[Run] = []
    with ExitStack() as closing:
        closing.callback(_end, going)
        while (waiting or going) and not stop():
            while waiting and len(going) < parallel:
                going.append(_started(config, waiting.pop(0)))
            for run in [run for run in going if run.process is not None and run.process.poll() is not None]:
                going.remove(run)
                problem = _problem(run)
                if problem:
                    failed.append(f"{run.name}: {problem}")
                else:
                    done += 1
                tell(f"{done} of {len(runs)}: {run.name} {'failed' if problem else 'finished'}")
            time.sleep(POLL)
        stopped = bool(waiting or going)
    if failed and not stopped:
        others = f" ({len(failed)} of {len(runs)} failed; the others are there)" if len(runs) > 1 else ""
        raise PartError(f"{failed[0]}{others}")
    return not stopped


def _started(config: str, run: Run) -> Run:
    make_folder(run.folder.parent)
    if run.script:
        words = [str(run.script), "--out", str(run.folder), "--seed", str(run.seed), *run.row]
    else:
        words = ["-m", "lifelong.agent.cli", "run", config, "--resume", "--quiet", "--out", str(run.folder)]
        words += [*run.row, f"seed={run.seed}"]
    run.said = tempfile.TemporaryFile()  # noqa: SIM115  # `_problem` closes it
    run.process = subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=run.said,
        start_new_session=True,  # a terminal's ctrl-C comes to the runs once, from here
    )
    return run


def _problem(run: Run) -> str:
    """Why an ended run is not finished, or nothing."""
    assert run.process is not None and run.said is not None
    run.said.seek(0)
    said = run.said.read().decode(errors="replace").splitlines()
    run.said.close()
    if run.finished:
        return ""
    sentences = [line.removeprefix("lifelong: ") for line in said if line.startswith("lifelong: ")]
    return (sentences or said or [f"it ended with {run.process.returncode}"])[-1]


def _end(going: Sequence[Run]) -> None:
    """Ask what still runs to save itself, and wait for it."""
    for run in going:
        if run.process is not None and run.process.poll() is None:
            run.process.terminate()
    deadline = time.monotonic() + PATIENCE
    for run in going:
        if run.process is not None:
            try:
                run.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                run.process.kill()
