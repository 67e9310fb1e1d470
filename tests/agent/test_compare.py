"""`lifelong compare`: rows from alternatives, runs that are made once, and what comes out."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import bootstrap

from lifelong.agent.cli import main
from lifelong.agent.compare import CONTROLS, alternatives, folder_name, rows
from lifelong.agent.errors import ConfigError
from lifelong.agent.report.statistics import interval

TINY: dict[str, Any] = {
    "name": "tiny",
    "stream": {
        "steps_per_task": 64,
        "tasks": [{"name": "maze", "env": {"kind": "TMaze", "corridor": 2}}, {"name": "pole", "env": "CartPole"}],
        "spaces": "pad",
    },
    "policy": {"encoder": {"kind": "mlp", "hidden": [4]}, "cell": {"kind": "elstm", "size": 4}},
    "rollout": {"copies": 4, "steps": 4},
    "evaluation": {"every": 64, "episodes": 2, "max_steps": 8},
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return tmp_path / "tiny.yaml"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("strategy=ewc", ["strategy=ewc"]),
        ("strategy=ewc,gpm", ["strategy=ewc", "strategy=gpm"]),
        ("strategy=ewc, [gpm, clear]", ["strategy=ewc", "strategy=[gpm, clear]"]),
        ("cell={kind: gru, size: 8},lstm", ["cell={kind: gru, size: 8}", "cell=lstm"]),
        ("name=", ["name="]),
    ],
)
def test_commas_outside_of_brackets_separate_alternatives(word: str, expected: list[str]) -> None:
    assert alternatives(word) == expected


@pytest.mark.parametrize("word", ["strategy", "=ewc", "strategy=ewc,", "strategy=,ewc", "strategy=a,,b"])
def test_what_is_no_list_of_alternatives_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="write a"):
        alternatives(word)


def test_rows_are_all_combinations_then_those_asked_for_then_the_controls() -> None:
    assert rows([]) == [()]
    found = rows(["a=1,2", "b=3", "c=4,5"])
    assert found == [(f"a={a}", "b=3", f"c={c}") for a in (1, 2) for c in (4, 5)]
    assert rows([], ["a=1 b={x: 2, y: 3} c=4"]) == [("a=1", "b={x: 2, y: 3}", "c=4")]
    controls = rows(["strategy=ewc,finetune", "seed=7"], controls=True)
    assert controls[:2] == [("strategy=ewc", "seed=7"), ("strategy=finetune", "seed=7")]
    assert controls[2:] == [("seed=7", *control) for control in CONTROLS]
    assert len(rows(["strategy=finetune"], controls=True)) == len(CONTROLS)  # each row once


def test_folders_of_different_rows_are_different_and_short() -> None:
    names = [folder_name(row) for row in [("a=[1,2]",), ("a=[1_2]",), ("a=1_2",), (), ("x=" + "y" * 300,)]]
    assert len(set(names)) == len(names) and max(map(len, names)) < 120
    assert folder_name(("strategy=ewc",)) == "strategy=ewc"
    assert folder_name(("strategy=[{kind: ewc}, explore]",)).rpartition("-")[0] == "strategy=kind_ewc+explore"


def test_runs_are_made_once_and_come_out_as_a_table_csv_and_json(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = [
        "compare",
        "tiny.yaml",
        "strategy=finetune,ewc",
        "--seeds",
        "1",
        "--csv",
        "out/o.csv",
        "--json",
        "o.json",
    ]
    (tmp_path / "out").mkdir()
    assert main(command) == 0
    told = capsys.readouterr()
    assert "2 of 2" in told.err and "finetune" in told.out and "never learned" in told.out
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    assert {path.parent.parent.name for path in made} == {"strategy=finetune", "strategy=ewc"}
    lines = list(csv.DictReader((tmp_path / "out/o.csv").open()))
    result = json.loads((tmp_path / "o.json").read_text())
    assert [(line["row"], line["task"]) for line in lines] == [
        (row, task) for row in ("strategy=finetune", "strategy=ewc") for task in ("maze", "pole")
    ]
    for arm, line in zip(result["arms"], lines[::2], strict=True):
        summary = json.loads((tmp_path / f"compare/tiny/{arm['variant']}/0/summary.json").read_text())
        assert arm["tasks"][0]["final"] == [summary["tasks"][0]["final"]] == [float(line["final"])]
        assert arm["average_performance"] == [summary["average_performance"]]
    page = tmp_path / "compare/tiny/report.html"
    before = page.read_bytes()
    assert b"strategy ewc instead of finetune" in before and b"against the first row" in before
    page.unlink()
    assert main(command) == 0
    assert "2 of 2 runs are there" in capsys.readouterr().err
    assert page.read_bytes() == before  # from the run folders alone
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")} == made
    config.write_text(yaml.safe_dump({**TINY, "log_every": 7}))
    assert main(command) == 2
    assert "another config" in capsys.readouterr().err


def test_tasks_alone_give_forward_transfer_and_the_markdown_table_an_interval(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["strategy=er", "rollout.steps=8", "--alone", "--seeds", "1", "--json", "o.json", "--markdown", "o.md"]
    assert main(["compare", "tiny.yaml", *words]) == 0
    assert "forward" in capsys.readouterr().out
    single = [json.loads(path.read_text()) for path in tmp_path.glob("compare/tiny/alone/*/*/summary.json")]
    assert sorted((s["tasks"][0]["name"], s["seed"]) for s in single) == [
        ("maze", 0),
        ("pole", 0),
    ]
    assert all(s["config"]["rollout"]["steps"] == 8 and len(s["tasks"]) == 1 for s in single)
    arms = json.loads((tmp_path / "o.json").read_text())["arms"]
    table = (tmp_path / "o.md").read_text()
    assert len(table.splitlines()) == 3 and "forward transfer" in table
    (mean,) = arms[0]["average_performance"]
    assert arms[0]["average_performance_interval"] == [mean, mean]
    assert f"{mean:.2f} ({mean:.2f} to {mean:.2f})".replace("-0.00", "0.00") in table
    assert arms[0]["strategy_mib"][0] > 0
    latex = (tmp_path / "compare/tiny/comparison.tex").read_text().splitlines()
    assert latex[0] == r"\begin{tabular}{lrrrrrrrrrr}" and latex[1] == r"\toprule" and latex[-1] == r"\end{tabular}"
    assert latex[2].count(" & ") == latex[4].count(" & ") == 10 and r"(95 \%)" in latex[2]
    assert r"rollout.steps=8" in latex[4] and "never learned" in latex[2]


def test_every_number_of_the_table_is_recomputed_from_the_run_folders(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["compare", "tiny.yaml", "strategy=finetune,er", "optimizer.lr=0.1", "--seeds", "2"]) == 0
    made = json.loads((tmp_path / "compare/tiny/comparison.json").read_text())
    assert [arm["variant"] for arm in made["arms"]] == [
        f"strategy={strategy} optimizer.lr=0.1" for strategy in ("finetune", "er")
    ]
    averages = []
    for arm in made["arms"]:
        folder = tmp_path / "compare/tiny" / arm["variant"].replace(" ", "_")
        finals, forgotten = [], []
        for seed in range(2):
            with np.load(folder / str(seed) / "evaluation.npz") as saved:
                scale = np.diff(saved["scores"]).squeeze()
                performance = (saved["returns"].mean(-1) - saved["scores"][:, 0]) / scale
                at = [int(np.searchsorted(saved["steps"], end)) for end in saved["training_end"]]
            finals.append(performance[-1])
            forgotten.append(performance[at[0], 0] - performance[-1, 0])
        assert arm["average_performance"] == pytest.approx([final.mean() for final in finals])
        assert arm["forgetting"] == pytest.approx(forgotten)
        assert arm["interquartile_mean"] == pytest.approx(np.sort(np.concatenate(finals))[1:3].mean())
        averages.append(np.mean(finals))
        for column, task in enumerate(arm["tasks"]):
            assert task["final"] == pytest.approx([final[column] for final in finals])
    found = [arm["against_first"] for arm in made["arms"]]
    assert found[0] is None
    assert [x["difference"] for x in found[1:]] == pytest.approx([a - averages[0] for a in averages[1:]])


def test_the_interval_is_the_percentile_bootstrap_of_the_mean() -> None:
    values = [0.2, 0.9, 0.95, 1.0, 0.7]
    result = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1))
    assert interval(values) == pytest.approx(result.confidence_interval, abs=0.02)
    assert interval([0.5]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strategy=finetune,ewcc"], "did you mean 'ewc'"),
        (["strategy"], "no override"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--parallel", "-1"], "--parallel is -1"),
        (["--row", "strategy"], "no override"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_made(
    words: list[str], said: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "tiny.yaml", *words]) == 2
    assert said in capsys.readouterr().err
    assert not Path("compare").exists()


def test_a_run_that_fails_is_told_and_the_others_are_there(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "tiny.yaml", "policy.cell=elstm,no.such:Cell", "--seeds", "1"]) == 1
    told = capsys.readouterr().err
    assert "no.such:Cell seed 0: " in told and "there is no module" in told and "the others are there" in told
    assert len(list(Path("compare").rglob("summary.json"))) == 1


@pytest.mark.slow
def test_a_comparison_that_is_stopped_saves_its_runs_and_goes_on(config: Path, tmp_path: Path) -> None:
    words = [
        "compare",
        "tiny.yaml",
        "strategy=finetune",
        "stream.steps_per_task=8000",
        "evaluation.every=100000",
        "--seeds",
        "1",
    ]
    command = [sys.executable, "-m", "lifelong.agent.cli", *words]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 3 and "the same command goes on" in told, told
    assert list(tmp_path.rglob("checkpoints/*/manifest.json")) and not list(tmp_path.rglob("summary.json"))
    assert main(words) == 0
    assert len(list(tmp_path.rglob("summary.json"))) == 1
    assert main([*words, "--out", "in_one_go"]) == 0

    def timeless(folder: str) -> list[dict[str, str]]:
        lines = csv.DictReader((tmp_path / folder / "comparison.csv").open())
        return [{k: v for k, v in line.items() if k not in ("steps_per_second", "folder")} for line in lines]

    assert timeless("compare/tiny") == timeless("in_one_go") and len(timeless("in_one_go")) == 2
