"""Twelve configs, each killed five times at random and once inside a write: no difference, duplicate or step back.

Slow (`make kill`). Figures are printed (`pytest -s`): for every config where it was killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.agent.runtime.killer import CALLS
from tests.agent.runtime.test_kill import ENVIRONMENT, ROOT, assert_log_in_order, assert_same_run
from tests.agent.support import THREE_TASKS

KILLS = 5  # of a config at random times; there is one inside a write, too

#: overrides, and the environment of the process
CONFIGS: dict[str, tuple[list[str], dict[str, str]]] = {
    "finetune": (["strategy=finetune"], {}),
    "clear": (["strategy=clear"], {}),
    "ewc": (["strategy=ewc"], {}),
    "gpm": (["strategy=gpm"], {}),
    "gpm and clear": (["strategy=[gpm, clear]"], {}),
    "bptt, gru": (["policy.cell={kind: gru, size: 16}", "gradient=bptt"], {}),
    "diagonal_lstm": (["policy.cell={kind: diagonal_lstm, size: 16}"], {}),
    "ppo": (["objective={kind: ppo, epochs: 2, minibatches: 2}"], {}),
    "blurry": (["stream.schedule=blurry", "stream.boundaries=hidden"], {}),
    "heads": (["policy.heads=per_task", "stream.task_id=observed", "stream.cycles=2", "strategy=ewc"], {}),
    "torch kernels": (["strategy=clear", "optimizer={kind: sgd, lr: 0.01}"], {"LIFELONG_KERNELS": "torch"}),
    "gymnasium": (
        ["stream.tasks.1.env={kind: gymnasium, id: CartPole-v1, score: [0, 50]}", "rollout.random_initial_age=false"],
        {},
    ),
}


def command(name: str, config: Path, folder: Path, *killer: object) -> subprocess.Popen[str]:
    """The run of a config, which goes on if it was killed before."""
    overrides, environment = CONFIGS[name]
    module = "tests.agent.runtime.killer" if killer else "lifelong.agent.cli"
    words = [*killer, "run", config, "--out", folder, "--resume", "--quiet"]
    words += overrides if not (folder / "config.yaml").exists() else []
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def whole_run(name: str, config: Path, folder: Path) -> dict[str, int]:
    """A run that nobody kills; how often it does each call."""
    output = finish(command(name, config, folder, CALLS[0], 0))
    calls: dict[str, int] = json.loads(output.rpartition("calls ")[2])
    return calls


def kill_in_training(process: subprocess.Popen[str], log: Path, length: int, pause: float) -> str:
    """Kill -9 once the log has `length` bytes, and `pause` seconds more; says where."""
    while process.poll() is None and not (log.exists() and log.stat().st_size >= length):
        time.sleep(0.002)
    time.sleep(pause)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return f"byte {log.stat().st_size if log.exists() else 0} of the log"


def kill_inside(process: subprocess.Popen[str], what: str) -> str:
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, (what, output)
    return what


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_killed_at_random_is_the_run_that_was_not(name: str, tmp_path: Path) -> None:
    draw = random.Random(int(os.environ.get("KILL_SEED", "0")) * 1000 + list(CONFIGS).index(name))
    config, whole, killed = tmp_path / "small.yaml", tmp_path / "whole", tmp_path / "killed"
    config.write_text(THREE_TASKS)
    calls = whole_run(name, config, whole)
    length = (whole / "metrics.jsonl").stat().st_size
    shares = [0.0, *sorted(draw.uniform(0, 0.8) for _ in range(KILLS - 1))]
    call = draw.choice([call for call in CALLS if calls[call]])
    inside_at = draw.randrange(KILLS)
    places = []
    for index, share in enumerate(shares):
        process = command(name, config, killed)
        places.append(kill_in_training(process, killed / "metrics.jsonl", int(share * length), draw.uniform(0, 0.05)))
        if index == inside_at:
            number = draw.randrange(1, max(2, int(calls[call] * (1 - share) * 0.7)))
            process = command(name, config, killed, call, number)
            places.append(kill_inside(process, f"inside {call} {number} of {calls[call]}"))
    finish(command(name, config, killed))
    print(f"{name}: {'; '.join(places)}")
    if summary(whole)["exact_environment_state"]:
        assert_same_run(killed, whole)
        assert summary(killed) == summary(whole)
    assert_log_in_order(killed)
    assert yaml.safe_load((killed / "config.yaml").read_text()) == yaml.safe_load((whole / "config.yaml").read_text())


def summary(folder: Path) -> dict[str, Any]:
    """summary.json without what depends on the clock."""
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in content.items() if key != "steps_per_second"}
