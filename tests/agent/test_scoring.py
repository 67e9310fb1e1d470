"""`lifelong score`, and what a run shows of tasks whose score nobody knows."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium.spaces import Box, Discrete

from lifelong.agent.cli import main
from lifelong.agent.runtime.metrics import Evaluations


class Steep(gymnasium.Env[Any, Any]):
    """An episode of one step: action 1 gives 10, action 0 -30."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 10.0 if action else -30.0, True, False, {}


gymnasium.register("tests/Steep-v0", entry_point=Steep, reward_threshold=9.5)


def best(obs: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(obs), dtype=torch.int64)


def scored(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["score", "tests/Steep-v0", "--episodes", "400", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_random_actions_and_the_threshold_of_gymnasium_are_the_score(capsys: pytest.CaptureFixture[str]) -> None:
    random, _, line = scored(capsys)
    low, high = yaml.safe_load(line)["score"]  # as it is pasted
    assert low == pytest.approx(-10, abs=3) and high == 9.5  # 3 standard errors of 400 draws of +-20
    assert "400 episodes of 1 steps" in random


@pytest.mark.parametrize(("reference", "high"), [("3.5", 3.5), (f"{__name__}:best", 10.0)])
def test_the_reference_may_be_a_return_or_a_policy(
    capsys: pytest.CaptureFixture[str], reference: str, high: float
) -> None:
    assert yaml.safe_load(scored(capsys, "--reference", reference)[-1])["score"][1] == high


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["Nope-v1"], "cannot make 'Nope-v1'"),
        (["CartPole", "--reference", "nowhere"], "a return, a run folder or module:function"),
        (["CartPole", "gravty=3"], "did you mean 'gravity'"),
        (["CartPole", "--episodes", "0"], "--episodes is 0"),
        (["tests/Steep-v0", "--reference", "no_such:thing"], "cannot be imported"),
    ],
)
def test_a_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    assert main(["score", *arguments]) == 2
    told = capsys.readouterr().err.strip()
    assert sentence in told and "\n" not in told


CONFIG: dict[str, Any] = {
    "stream": {
        "steps_per_task": 64,
        "tasks": [
            {"name": "steep", "env": {"kind": "gymnasium", "id": "tests/Steep-v0"}},
            {"name": "known", "env": {"kind": "gymnasium", "id": "tests/Steep-v0"}, "score": [-30, 10]},
        ],
    },
    "policy": {"encoder": "identity", "cell": {"kind": "elstm", "size": 4}},
    "rollout": {"copies": 4, "steps": 4},
    "evaluation": {"every": 64, "episodes": 4},
}


def test_a_task_without_a_score_shows_returns_and_is_told_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config, out = tmp_path / "steep.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(CONFIG))
    with caplog.at_level(logging.WARNING, "lifelong"):
        assert main(["run", str(config), "--out", str(out), "--quiet"]) == 0
    told = [record.getMessage() for record in caplog.records if "no score" in record.getMessage()]
    assert len(told) == 1 and "'steep'" in told[0] and "lifelong score tests/Steep-v0" in told[0]
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert "no score: returns" in rows["steep"] and "%" not in rows["steep"] and "no score" not in rows["known"]
    summary = json.loads((out / "summary.json").read_text())
    steep, known = summary["tasks"]
    assert steep["scored"] is False and known["scored"] is True
    assert steep["final"] in (-30.0, 10.0) and known["final"] in (0.0, 1.0)
    assert Evaluations.load(out / "evaluation.npz").scored == [False, True]
    assert main(["report", str(out)]) == 0 and (out / "report.html").is_file()
    assert main(["score", "tests/Steep-v0", "--reference", str(out)]) == 0
    best = max(steep["final"], known["final"] * 40 - 30)
    assert yaml.safe_load(capsys.readouterr().out.splitlines()[-1])["score"][1] >= best


def test_a_curriculum_over_tasks_without_a_score_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "steep.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    assert main(["run", str(config), "stream.schedule=curriculum", "--out", str(tmp_path / "run")]) == 2
    assert "task 'steep' has no score" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
