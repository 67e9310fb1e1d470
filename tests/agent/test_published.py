"""`lifelong reproduce`: recipes are what they say, and the page is what came of them."""

from __future__ import annotations

import ast
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lifelong.agent import compare, reproduce
from lifelong.agent import config as configs
from lifelong.agent import published as recipes
from lifelong.agent.cli import main
from lifelong.agent.compare import Run
from lifelong.agent.errors import ConfigError
from lifelong.agent.report import board, published, published_figure
from lifelong.agent.report.runs import RunData
from lifelong.agent.runtime.metrics import Evaluations
from tests.agent.test_compare import TINY

NAMES = list(recipes.recipes())
ROOT = Path(__file__).parent.parent.parent
KEPT = [name for name in NAMES if published.kept(name).is_file()]
TOY: dict[str, Any] = {
    "title": "A toy",
    "claim": "More steps teach more.",
    "source": "nobody",
    "protocol": "none",
    "published": [["published", "average"], ["long", "0.9"], ["short", "0.1"]],
    "config": TINY,
    "rows": {"long": [], "short": ["stream.steps_per_task=32"]},
    "budgets": {"small": {"seeds": 1, "overrides": ["evaluation.episodes=3"]}, "full": {"seeds": 5}},
    "measures": ["average_performance", "tasks_kept", "steps_to_learn", "error"],
    "checks": ["long.tasks_kept >= 0", "short.tasks_kept > 2", "long.average_performance > short"],
    "headline": {"published": "long 0.9", "got": "short kept {short.tasks_kept}"},
    "targets": {"long": {"average_performance": 0.9}},
    "differs": "everything",
    "cause": "two steps teach nothing",
}
#: makes a row in no time, and counts how often it was called
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from benchmarks.measure import recipe_row
def measure(seed, height, slow=False):
    with open({log!r}, "a") as log:
        log.write(f"{{height}} {{seed}}\\n")
    if slow and not Path({log!r}).with_suffix(".go").exists():
        import time
        time.sleep(600)
    return {{"height": height + seed, "curve": [[1, 2], [height, seed]]}}
recipe_row(measure)
"""
SCRIPTED: dict[str, Any] = {
    **{key: TOY[key] for key in ("title", "claim", "source", "protocol", "published", "differs", "cause")},
    "script": "scripted.py",
    "axes": {"x": "steps", "y": "height", "log": "x"},
    "rows": {"low": ["height=1"], "high": ["height=5"]},
    "budgets": {"small": {"seeds": 1}, "full": {"seeds": 3}},
    "measures": {"height": "height, m"},
    "checks": ["high.height > low", "low.height = 1.5 ± 0.5"],
    "headline": {"published": "high", "got": "high {high.height}"},
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
    for module in (recipes, published, reproduce):
        monkeypatch.setattr(module, "RECIPES", tmp_path / "published")
    monkeypatch.setattr(published, "ROOT", tmp_path)
    monkeypatch.setattr(compare, "train", here)
    monkeypatch.setattr(board, "PAGE", tmp_path / "docs" / "published.md")
    monkeypatch.setattr(board, "BOARD", tmp_path / "published" / "README.md")
    (tmp_path / "published" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    path = tmp_path / "published" / "toy.yaml"
    path.write_text(yaml.safe_dump(TOY, sort_keys=False))
    return path


def test_seeds_are_so_many_or_those_that_are_named(toy: Path) -> None:
    named = {"small": {"seeds": [2, 5]}, "full": {"seeds": 3}}
    toy.write_text(yaml.safe_dump({**TOY, "budgets": named}))
    recipe = recipes.load("toy")
    assert [recipe.budgets[budget].seeds for budget in ("small", "full")] == [(2, 5), (0, 1, 2)]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_a_recipe_is_a_run_under_every_budget(name: str, tmp_path: Path) -> None:
    recipe = recipes.load(name)
    assert len({len(row) for row in recipe.published}) == 1 and recipe.checks
    config = str(recipe.config)
    if isinstance(recipe.config, dict):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(recipe.config))
        config = str(tmp_path / "config.yaml")
    for words in (words for budget in recipes.BUDGETS for words in recipe.variants(budget).values()):
        if recipe.script:
            called = ast.parse((recipe.path.parent / recipe.script).read_text())
            (measure,) = [x for x in called.body if isinstance(x, ast.FunctionDef) and x.name == "measure"]
            names = [argument.arg for argument in (*measure.args.args, *measure.args.kwonlyargs)]
            assert {word.partition("=")[0] for word in words} <= set(names) - {"seed"}
        else:
            assert configs.load(config, list(words))


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_result_is_that_of_its_recipe(name: str) -> None:
    recipe, found = recipes.load(name), published.read(published.kept(name))
    variants = recipe.variants(found["budget"])
    assert {row["label"]: tuple(row["overrides"]) for row in found["rows"]} == variants
    assert all(len(row["seeds"]) == len(set(row["seeds"])) == len(row["seconds"]) for row in found["rows"])
    assert all(len(values) == len(row["seeds"]) for row in found["rows"] for values in row["measures"].values())
    assert published.differences(recipe, found, []) == []
    medians = {
        row["label"]: {m: np.median([math.inf if x is None else x for x in xs]) for m, xs in row["measures"].items()}
        for row in found["rows"]
    }
    of_order, of_level = [], []
    for check, said in zip(recipe.checks, found["checks"], strict=True):
        left = check.times * medians[check.left][check.measure]
        right = check.right if isinstance(check.right, float) else medians[check.right][check.measure]
        near = abs(left - right) <= check.within if math.isfinite(left) else False
        holds = {">": left > right, ">=": left >= right, "<": left < right, "<=": left <= right, "=": near}[check.sign]
        assert said["holds"] == holds, check.text
        (of_level if isinstance(check.right, float) else of_order).append(holds)
    in_order = bool(of_order) and all(of_order)
    best = "reproduced" if of_level and all(of_level + of_order) else "same order" if in_order else "not reproduced"
    assert found["verdict"] == best
    assert bool(recipe.cause) >= (best == "not reproduced"), "what is not reproduced has a cause"


def test_the_page_and_the_board_are_made_from_the_results_and_every_figure_is_there() -> None:
    assert board.PAGE.read_text() == board.page() and board.BOARD.read_text() == board.board()
    assert all(published.kept_figure(name).is_file() for name in KEPT)


@pytest.mark.parametrize("name", KEPT)
def test_the_numbers_of_the_page_are_those_of_the_stored_results(name: str) -> None:
    """Read back from the Markdown, and made again without what wrote it."""
    found = json.loads(published.kept(name).read_text())
    section = board.PAGE.read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
    table = section[section.index("| ours |") :].split("\n\n")[0].splitlines()[2:]
    for line, row in zip(table, found["rows"], strict=True):
        label, seeds, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert (label, int(seeds)) == (row["label"], len(row["seeds"]))
        for cell, values in zip(cells, row["measures"].values(), strict=False):
            known = [x for x in values if x is not None]
            assert ("never" in cell) == (len(known) < len(values))
            if known:
                digits = 0.5 if abs(np.mean(known)) >= 100 else 0.005
                assert float(cell.split()[0].strip(",").replace(",", "")) == pytest.approx(np.mean(known), abs=digits)
    assert found["verdict"] in section
    (row_of_board,) = [line for line in board.BOARD.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    assert f"**{found['verdict']}**" in row_of_board and found["date"] in row_of_board


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
    assert page == board.page()
    for told in ("published 0.90", "**does not hold**: short.tasks_kept > 2", "| long | 0.9 |"):
        assert told in page
    assert published.kept_figure("toy").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["reproduce", "--list"]) == 0
    assert "A toy: not reproduced" in capsys.readouterr().out
    kept = published.read(published.kept("toy"))
    kept_score = kept["rows"][1]["measures"]["tasks_kept"][0]
    row = (toy.parent / "README.md").read_text().splitlines()[3]
    assert f"long 0.9 | short kept {kept_score:.2f} | **not reproduced**: two steps" in row and " | 1 | " in row


def test_a_check_finds_what_a_stored_result_says_wrongly(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = toy.parent / "out"
    assert main(["reproduce", "toy", "--quiet", "--out", str(out), "--keep"]) == 0
    words = ["reproduce", "--check", "toy", "--out", str(out)]
    capsys.readouterr()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "does not hold: short.tasks_kept > 2\n" in said
    assert f"(small budget), from stored numbers and 2 runs in {out}" in said
    file = published.kept("toy")
    honest = file.read_text()
    changed = json.loads(honest)
    changed["rows"][0]["measures"]["average_performance"] = [0.75]
    file.write_text(json.dumps(changed))
    assert main(words) == 1
    assert "long, seed 0: average_performance is stored as 0.75, the run has" in capsys.readouterr().err
    changed = json.loads(honest)
    changed["verdict"], changed["checks"][1]["holds"] = "reproduced", True
    file.write_text(json.dumps(changed))
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "the stored verdict is reproduced, that of its numbers not reproduced" in said
    assert "short.tasks_kept > 2 holds; by its numbers: short.tasks_kept > 2 does not hold" in said


@pytest.mark.parametrize(
    ("held", "word"),
    [
        ([True, True, True], "reproduced"),
        ([True, False, True], "same order"),
        ([False, True, True], "not reproduced"),
        ([True, True, False], "not reproduced"),
    ],
)
def test_a_verdict_is_of_levels_and_of_order(held: list[bool], word: str) -> None:
    labels = {"a": (), "b": ()}
    texts = ("a.error < b", "a.error = 0.5 ± 0.02", "3 x a.error <= b")
    checks = [recipes._check(text, labels, {"error": "error"}, Path("toy.yaml")) for text in texts]
    assert recipes.verdict(checks, held) == word
    assert recipes.verdict(checks[1:2], held[1:2]) == ("reproduced" if held[1] else "not reproduced")
    assert recipes.verdict(checks[:1], [True]) == "same order"  # no number that was published is met
    assert checks[1].holds({"a": {"error": 0.485}}) and not checks[1].holds({"a": {"error": 0.475}})


def test_rows_of_a_comparison_are_taken_and_marked_and_the_other_seeds_made(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundled config, so that a comparison's name says which."""
    toy.write_text(
        yaml.safe_dump(
            {
                **TOY,
                "config": "quickstart",
                "rows": {"nothing": ["strategy=finetune"], "ewc": ["strategy={kind: ewc, strength: 10}"]},
                "budgets": {"small": {"seeds": 2}, "full": {"seeds": 5}},
                "measures": ["average_performance", "learned"],
                "checks": ["ewc.average_performance > nothing"],
                "headline": {"published": "", "got": "{ewc.learned}"},
                "targets": {},
            },
            sort_keys=False,
        )
    )
    arms = [
        {
            "variant": words,
            "tasks": [{"learned": [x, x]}, {"learned": [x + 0.2, x]}],
            "average_performance": [x, x],
            "steps_per_second": [10, 20],
            "env_steps": 100,
        }
        for words, x in (
            ("strategy=finetune", 0.25),
            ("strategy={kind: ewc, strength: 10}", 0.5),
        )
    ]
    source = toy.parent / "compare.json"
    source.write_text(json.dumps({"config": "quickstart", "date": "2026-01-02", "arms": arms}))
    words = ["reproduce", "toy", "--quiet", "--out", str(toy.parent / "out"), "--from", str(source), "--keep"]
    assert main(words) == 0
    found = published.read(published.kept("toy"))
    assert (found["date"], found["verdict"]) == ("2026-01-02", "same order")
    assert found["rows"][1]["measures"] == {"average_performance": [0.5, 0.5], "learned": [0.6, 0.5]}
    assert found["rows"][1]["seconds"] == [10.0, 5.0] and found["rows"][0]["from"]["file"] == "compare.json"
    assert "Taken from `benchmarks/results/compare.json`" in board.PAGE.read_text()
    source.write_text(json.dumps({"config": "tmaze", "date": "2026-01-02", "arms": arms}))
    capsys.readouterr()
    assert main(words) == 2
    assert "compares tmaze; recipe toy is about quickstart" in capsys.readouterr().err


def test_a_recipe_of_a_script_calls_it_for_every_row_and_seed_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "scripted.py").write_text(SCRIPT.format(root=str(ROOT), log=str(log)))
    (tmp_path / "scripted.yaml").write_text(yaml.safe_dump(SCRIPTED, sort_keys=False))
    out = tmp_path / "out"
    words = ["reproduce", str(tmp_path / "scripted.yaml"), "--quiet", "--out", str(out), "--parallel", "2"]
    assert main(words) == 0
    found = json.loads((out / "result.json").read_text())
    assert [row["measures"]["height"] for row in found["rows"]] == [[1], [5]]
    assert found["verdict"] == "reproduced" and found["rows"][1]["curve"] == [[[1, 2], [5, 0]]]
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert main(words) == 0 and sorted(log.read_text().splitlines()) == ["1 0", "5 0"]
    assert main(["reproduce", str(tmp_path / "scripted.yaml"), "--keep"]) == 2  # not one of the source tree


def begun_and_killed(words: Sequence[str], out: Path, when: Callable[[], bool]) -> None:
    """`lifelong reproduce`, ended with what it started as by a power cut, once `when()` is true."""
    process = subprocess.Popen([sys.executable, "-m", "lifelong.agent.cli", *words, str(out)])
    deadline = time.monotonic() + 240
    while not when() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    theirs = subprocess.run(["pgrep", "-f", str(out)], capture_output=True, text=True, check=False).stdout
    for pid in theirs.split():
        os.kill(int(pid), signal.SIGKILL)
    assert not (out / "result.json").exists()


@pytest.mark.slow
def test_a_killed_recipe_of_a_script_makes_again_the_row_it_was_at_alone(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    (tmp_path / "scripted.py").write_text(SCRIPT.format(root=str(ROOT), log=str(log)))
    slow = {**SCRIPTED, "rows": {"low": ["height=1"], "high": ["height=5", "slow=true"]}}
    (tmp_path / "scripted.yaml").write_text(yaml.safe_dump(slow, sort_keys=False))
    words = ["reproduce", str(tmp_path / "scripted.yaml"), "--quiet", "--parallel", "1", "--budget", "full", "--out"]
    begun_and_killed(words, out, lambda: log.exists() and "5 0" in log.read_text())
    assert log.read_text().splitlines() == ["1 0", "5 0"]
    log.with_suffix(".go").touch()
    assert main([*words, str(out)]) == 0
    assert log.read_text().splitlines() == ["1 0", "5 0", "5 0", "1 1", "5 1", "1 2", "5 2"]
    assert json.loads((out / "result.json").read_text())["verdict"] == "reproduced"


@pytest.mark.slow
def test_a_killed_recipe_of_runs_ends_as_one_that_was_not(tmp_path: Path) -> None:
    longer = {
        **TINY,
        "stream": {**TINY["stream"], "steps_per_task": 4096},
        "evaluation": {"every": 4096, "episodes": 2, "max_steps": 8},
        "checkpoint": {"every": 512},
    }
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(yaml.safe_dump({**TOY, "config": longer}, sort_keys=False))
    words = ["reproduce", str(recipe), "--quiet", "--parallel", "1", "--out"]
    killed = tmp_path / "killed"
    begun_and_killed(words, killed, lambda: any(killed.glob("*/0/checkpoints/*")))
    for folder in ("killed", "whole"):
        assert main([*words, str(tmp_path / folder)]) == 0
    one, other = (json.loads((tmp_path / folder / "result.json").read_text()) for folder in ("killed", "whole"))
    assert [row["measures"] for row in one["rows"]] == [row["measures"] for row in other["rows"]]


def test_rows_of_a_benchmark_are_taken_for_a_script_of_its_name(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy.parent / "height.yaml").write_text(yaml.safe_dump(SCRIPTED, sort_keys=False))
    toy.unlink()
    made = {"low": [{"height": 1}, {"height": 2}], "high": [{"height": 5}]}
    source = toy.parent / "bench.json"
    content = {"benchmark": "height", "date": "2026-01-02", "commit": "0123456789", "rows": made}
    source.write_text(json.dumps(content))
    found = published.stored_rows(recipes.load("height"), "small", source)
    assert found["low"]["measures"] == {"height": [1, 2]} and found["low"]["seeds"] == [0, 1]
    assert found["high"]["from"] == {"file": "bench.json", "date": "2026-01-02", "commit": "0123456"}
    result = published.result(recipes.load("height"), "small", [], found)
    assert (result["verdict"], result["commit"]) == ("reproduced", "0123456")
    assert "| low | 2 | 1.50 (1.00 to 2) | – |" in board.ours(recipes.load("height"), result)
    source.write_text(json.dumps({**content, "benchmark": "width"}))
    assert main(["reproduce", "height", "--from", str(source)]) == 2
    assert "is of benchmark width; recipe height is about another one" in capsys.readouterr().err


@pytest.mark.parametrize("drawn", ["image", "curve", "nothing"])
def test_the_figure_shows_what_a_script_gave(toy: Path, drawn: str) -> None:
    """Other numbers, another picture."""
    (toy.parent / "height.yaml").write_text(yaml.safe_dump(SCRIPTED, sort_keys=False))
    recipe, pictures = recipes.load("height"), []
    for height in (5.0, 6.0):
        given = {"image": [[[0.0, height], [1.0, 2.0]]], "curve": [[[1, 10], [1.0, height]]]}
        row = {"seeds": [0], "seconds": [1.0], "measures": {"height": [height]}}
        row |= {drawn: given[drawn]} if drawn in given else {}
        rows = [{"label": label, **row} for label in recipe.rows]
        rows[0] = {**rows[0], "measures": {"height": [1.0]}}
        path = toy.parent / f"{height}.png"
        published_figure.figure(recipe, {"rows": rows, "budget": "small"}, [], path)
        pictures.append(path.read_bytes())
    assert pictures[0].startswith(b"\x89PNG") and pictures[0] != pictures[1]


def test_a_recipe_at_a_path_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "nowhere/toy.yaml"]) == 2
    assert "there is no recipe nowhere/toy.yaml" in capsys.readouterr().err


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
        ({"script": "toy.py"}, "toy.yaml needs either a config or a script"),
        ({"headline": {"published": "", "got": "{shorter.error}"}}, "unknown row in toy.yaml 'shorter'"),
        ({"headline": {"published": ""}}, "toy.yaml is no recipe: 'got'"),
        ({"targets": {"long": {"height": 1}}}, "unknown measure in toy.yaml 'height'"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_sentence(toy: Path, change: dict[str, Any], sentence: str) -> None:
    toy.write_text(yaml.safe_dump({**TOY, **change}, sort_keys=False))
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
    check = recipes._check("3 x RTRL, λ = 0.9.error <= one step, λ = 0.9", labels, {"error": ""}, Path("toy.yaml"))
    assert (check.left, check.measure, check.times, check.right) == ("RTRL, λ = 0.9", "error", 3.0, "one step, λ = 0.9")
    plain = recipes._check("RTRL, λ = 0.9.error <= 0.06", labels, {"error": ""}, Path("toy.yaml"))
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
    assert published.measure(run, "return_over_run", 0.95) == 5.25
    lines = [{"step": step, "continual/online_return": step / 10} for step in (10, 20, 30)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    early = RunData(tmp_path, {"env_steps": 100}, evaluations)
    assert published.measure(early, "early_return", 0.95) == 1.5
    early.rows.append({"step": 90, "continual/online_return": 9.0})
    assert published.measure(early, "lived_change", 0.95) == 7.5
