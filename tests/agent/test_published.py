"""`lifelong reproduce`: recipes are what they say, and the page is what came of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lifelong.agent import compare
from lifelong.agent import config as configs
from lifelong.agent import published as recipes
from lifelong.agent.cli import main
from lifelong.agent.compare import Run
from lifelong.agent.errors import ConfigError
from lifelong.agent.report import published
from lifelong.agent.report.runs import RunData
from lifelong.agent.runtime.metrics import Evaluations
from tests.agent.test_compare import TINY

NAMES = list(recipes.recipes())
TOY: dict[str, Any] = {
    "title": "A toy",
    "claim": "More steps teach more.",
    "source": "nobody",
    "protocol": "none",
    "published": [["published", "average"], ["long", "0.9"], ["short", "0.1"]],
    "config": TINY,
    "rows": {"long": [], "short": ["stream.steps_per_task=32"]},
    "budgets": {"small": {"seeds": [3], "overrides": ["evaluation.episodes=3"]}, "full": {"seeds": 5}},
    "measures": ["average_performance", "tasks_kept", "steps_to_learn", "error"],
    "checks": ["long.tasks_kept >= 0", "short.tasks_kept > 2", "long.average_performance > short"],
    "differs": "everything",
}


def here(config: str, runs: Sequence[Run], *_: Any) -> bool:
    """`compare.train` without processes of their own, which take seconds to begin."""
    for run in runs:
        if not run.finished:
            assert main(["run", config, "--quiet", "--out", str(run.folder), *run.row, f"seed={run.seed}"]) == 0
    return True


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for module in (recipes, published):
        monkeypatch.setattr(module, "RECIPES", tmp_path / "published")
    monkeypatch.setattr(published, "ROOT", tmp_path)
    monkeypatch.setattr(compare, "train", here)
    monkeypatch.setattr(published, "PAGE", tmp_path / "docs" / "published.md")
    (tmp_path / "published" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    path = tmp_path / "published" / "toy.yaml"
    path.write_text(yaml.safe_dump(TOY))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_a_recipe_is_a_run_under_every_budget(name: str, tmp_path: Path) -> None:
    recipe = recipes.load(name)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(recipe.config))
    for budget in recipes.BUDGETS:
        for words in recipe.variants(budget).values():
            assert configs.load(str(tmp_path / "config.yaml"), list(words)).name == name
    assert len({len(row) for row in recipe.published}) == 1 and recipe.checks


@pytest.mark.parametrize("name", [name for name in NAMES if published.kept(name).is_file()])
def test_a_kept_result_is_that_of_its_recipe(name: str) -> None:
    recipe, found = recipes.load(name), published.read(published.kept(name))
    variants = recipe.variants(found["budget"])
    assert {row["label"]: tuple(row["overrides"]) for row in found["rows"]} == variants
    assert [check["check"] for check in found["checks"]] == [check.text for check in recipe.checks]
    assert all(tuple(row["seeds"]) == recipe.budgets[found["budget"]].seeds for row in found["rows"])
    medians = {
        row["label"]: {m: np.median([math.inf if x is None else x for x in xs]) for m, xs in row["measures"].items()}
        for row in found["rows"]
    }
    for check, said in zip(recipe.checks, found["checks"], strict=True):
        left = medians[check.left][check.measure]
        right = check.right if isinstance(check.right, float) else medians[check.right][check.measure]
        holds = {">": left > right, ">=": left >= right, "<": left < right, "<=": left <= right}[check.sign]
        assert said["holds"] == holds, check.text


def test_the_page_is_made_from_the_results_and_has_every_figure() -> None:
    assert published.PAGE.read_text() == published.page()
    assert all(published.kept_figure(name).is_file() for name in NAMES if published.kept(name).is_file())


def test_a_recipe_runs_and_goes_on_and_its_page_says_what_came_out(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reproduce", "toy", "--quiet", "--out", str(toy.parent / "out")]
    assert main(words) == 0
    found = json.loads((toy.parent / "out" / "result.json").read_text())
    assert [row["label"] for row in found["rows"]] == ["long", "short"] and [
        row["env_steps"] for row in found["rows"]
    ] == [
        128,
        64,
    ]
    assert [check["holds"] for check in found["checks"]][:2] == [True, False]
    made = {path: path.stat().st_mtime_ns for path in (toy.parent / "out").rglob("summary.json")}
    assert len(made) == 2
    assert main([*words, "--keep"]) == 0  # nothing is trained again
    assert {path: path.stat().st_mtime_ns for path in made} == made
    page = (toy.parent.parent / "docs" / "published.md").read_text()
    assert page == published.page() and "**does not hold**: short.tasks_kept > 2" in page and "| long | 0.9 |" in page
    assert published.kept_figure("toy").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["reproduce", "--list"]) == 0
    assert "A toy: reproduced in part" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"checks": ["long.tasks_kept is 3"]}, "write `ROW.measure > ROW`"),
        ({"checks": ["longer.tasks_kept > 3"]}, "unknown row in toy.yaml 'longer' .did you mean 'long'"),
        ({"checks": ["long.forgetting > 3"]}, "unknown measure in toy.yaml 'forgetting'"),
        ({"measures": ["tasks"]}, "unknown measure in toy.yaml 'tasks'"),
        ({"clam": ""}, "unknown key in toy.yaml 'clam' .did you mean 'claim'"),
        ({"budgets": {"smal": {"seeds": 1}}}, "unknown budget in toy.yaml 'smal'"),
        ({"rows": None}, "toy.yaml is no recipe"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_sentence(toy: Path, change: dict[str, Any], sentence: str) -> None:
    toy.write_text(yaml.safe_dump({**TOY, **change}))
    with pytest.raises(ConfigError, match=sentence):
        recipes.load("toy")


def test_a_name_that_is_no_recipe_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", NAMES[0][:-1]]) == 2
    assert f"did you mean '{NAMES[0]}'" in capsys.readouterr().err


def test_what_was_learned_and_kept_is_read_off_the_evaluations(tmp_path: Path) -> None:
    evaluations = Evaluations(["a", "b"], [(0, 1), (0, 1)], [20, 40])
    for step, a, b in ((0, 0.0, 0.0), (20, 0.9, 0.1), (30, 0.5, 0.9), (40, 0.2, 1.0)):
        evaluations.add(step, np.array([[a], [b]]))
    run = RunData(tmp_path, {}, evaluations)
    assert published.measure(run, "tasks_learned", 0.9) == 2 and published.measure(run, "tasks_kept", 0.9) == 1
    assert published.measure(run, "steps_to_learn", 0.9) == 30
    assert published.measure(run, "steps_to_learn", 0.95) == math.inf


def test_a_check_may_have_a_factor_and_labels_numbers_of_their_own() -> None:
    labels = {"RTRL, λ = 0.9": (), "one step, λ = 0.9": ()}
    check = recipes._check("3 x RTRL, λ = 0.9.error <= one step, λ = 0.9", labels, ("error",), Path("toy.yaml"))
    assert (check.left, check.measure, check.times, check.right) == ("RTRL, λ = 0.9", "error", 3.0, "one step, λ = 0.9")
    plain = recipes._check("RTRL, λ = 0.9.error <= 0.06", labels, ("error",), Path("toy.yaml"))
    assert (plain.times, plain.right) == (1.0, 0.06)


def test_the_error_of_a_prediction_is_minus_its_return() -> None:
    found = Evaluations(tasks=["a"], scores=[(-1.0, 0.0)], training_end=[10])
    found.add(0, np.array([[-0.9, -0.7]]))
    found.add(10, np.array([[-0.25, -0.75]]))
    run: Any = type("Run", (), {"evaluations": found})
    assert published.measure(run, "error", 0.95) == 0.5


def test_the_return_that_was_lived_is_that_of_the_last_quarter(tmp_path: Path) -> None:
    lines = [{"step": step, "continual/online_return": value} for step, value in [(40, 9.0), (75, 9.0), (80, 1.0)]]
    lines += [{"step": 90, "evaluation/a": 5.0}, {"step": 100, "continual/online_return": 2.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluations = Evaluations(["a"], [(-1.0, 0.0)], [100])
    evaluations.add(100, np.array([[0.0, 0.0]]))
    run = RunData(tmp_path, {"env_steps": 100}, evaluations)
    assert published.measure(run, "online_return", 0.95) == 1.5
