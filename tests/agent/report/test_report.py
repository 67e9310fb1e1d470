"""Reports on run folders that the tests write themselves."""

import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from lifelong.agent.report import colours, figures, plots, tables
from lifelong.agent.report import page as html_page
from lifelong.agent.report import runs as reading
from lifelong.agent.report.runs import ReportError
from lifelong.agent.runtime import metrics
from lifelong.agent.runtime.metrics import Evaluations

PNG = b"\x89PNG\r\n"


def write_run(
    folder: Path,
    *,
    name: str = "quickstart",
    strategy: str = "gpm",
    seed: int = 0,
    tasks: tuple[str, ...] = ("recall", "cartpole"),
    kept: float = 0.9,
    **settings: Any,
) -> Path:
    """A run folder: each task rises to 0.9 + seed/100 while it is trained and then falls to `kept` of it."""
    folder.mkdir(parents=True)
    length, count = 1000, len(tasks)
    evaluations = Evaluations(tasks, [(0.0, 1.0)] * count, [length * (i + 1) for i in range(count)])
    for step in range(0, length * count + 1, 100):
        rows = []
        for i in range(count):
            into = step - i * length
            top = 0.9 + seed / 100
            value = 0.0 if into < 0 else top * into / length if into <= length else top * kept
            rows.append([value, value])
        evaluations.add(step, np.array(rows))
    evaluations.save(folder / "evaluation.npz")
    learned, final = metrics.learned(evaluations), metrics.final(evaluations)
    summary = {
        "config": {
            "name": name,
            "seed": seed,
            "strategy": [{"kind": kind} for kind in strategy.split("+")],
            **settings,
        },
        "seed": seed,
        "env_steps": length * count,
        "steps_per_second": 12345.6,
        "tasks": [
            {"name": task, "learned": float(a), "final": float(b)}
            for task, a, b in zip(tasks, learned, final, strict=True)
        ],
        "average_performance": metrics.average_performance(evaluations),
        "forgetting": metrics.forgetting(evaluations),
        "versions": {"lifelong": "0.1.0", "torch": "2.9.0"},
        "machine": {"cpu": "Example <CPU> & Co", "cores": 8},
        "segments": [{"start": length * i, "end": length * (i + 1), "task": i} for i in range(count)],
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss/total": 0.5}\n{"step": 2, "loss/total": 0.25}\n')
    return folder


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of a run's summary."""
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shown(table: Table, width: int = 160) -> str:
    """The table as a terminal shows it."""
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def line(text: str, start: str) -> list[str]:
    """The cells of the first line of a shown table that begins with `start`."""
    found = next(line for line in text.splitlines() if line.strip().startswith(start))
    return [cell.strip() for cell in re.split(r"\s{2,}", found.strip())]


@pytest.fixture
def runs_folder(tmp_path: Path) -> Path:
    """runs/quickstart/{gpm-0, gpm-1, gpm-2, finetune-0}."""
    for seed in range(3):
        write_run(tmp_path / "runs" / "quickstart" / f"gpm-{seed}", seed=seed)
    write_run(tmp_path / "runs" / "quickstart" / "finetune-0", strategy="finetune", kept=0.1)
    return tmp_path / "runs"


def test_a_run_folder_and_its_parents_are_found(runs_folder: Path) -> None:
    one = reading.load_runs([runs_folder / "quickstart" / "gpm-1"])
    assert [run.summary["seed"] for run in one] == [1]
    assert one[0].evaluations.tasks == ["recall", "cartpole"]
    assert one[0].rows[1] == {"step": 2, "loss/total": 0.25}
    assert len(reading.load_runs([runs_folder])) == 4
    assert len(reading.load_runs([runs_folder, runs_folder / "quickstart"])) == 4  # none twice


def test_runs_are_found_three_levels_below_and_no_deeper(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "b" / "c" / "run")
    assert len(reading.load_runs([tmp_path / "a"])) == 1
    with pytest.raises(ReportError, match="no finished run in"):
        reading.load_runs([tmp_path])


def test_damage_is_told_in_one_sentence(tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return write_run(tmp_path / name)

    (no_evaluation := broken("a") / "evaluation.npz").unlink()
    (bad_evaluation := broken("b") / "evaluation.npz").write_bytes(b"PK no zip")
    (bad_json := broken("c") / "summary.json").write_text('{"config": ')
    (short := broken("d") / "summary.json").write_text('{"config": {}, "seed": 0}')
    (list_json := broken("e") / "summary.json").write_text("[]")
    cut = broken("f") / "evaluation.npz"
    cut.write_bytes(cut.read_bytes()[:200])
    edit(no_config := broken("g"), config={"name": "x"})
    Evaluations(["recall"], [(0, 1)], [1]).save((unevaluated := broken("h")) / "evaluation.npz")
    for path, sentence in [
        (tmp_path / "nowhere", "there is no such folder"),
        (no_evaluation.parent, "has no evaluation.npz"),
        (bad_evaluation.parent, "cannot read .*evaluation.npz"),
        (bad_json.parent, "summary.json is damaged: Expecting value"),
        (short.parent, "summary.json is damaged: config.name is missing"),
        (list_json.parent, "summary.json is damaged: the whole is missing"),
        (cut.parent, "cannot read .*evaluation.npz"),
        (no_config, "summary.json is damaged: config.strategy is missing"),
        (unevaluated, "no evaluation point"),
    ]:
        with pytest.raises(ReportError, match=sentence) as caught:
            reading.load_runs([path])
        assert "\n" not in str(caught.value)


def places(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything inside of JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [where, *(path for key, item in inner for path in places(item, (*where, key)))]


def test_a_summary_of_which_anything_was_changed_is_reported_on_or_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    change = {"step": 5, "kind": "override", "key": "optimizer.lr", "old": 1, "new": 2}
    edit(folder, changes=[change])
    whole, refused = (folder / "summary.json").read_text(), 0
    for path in places(json.loads(whole))[1:]:
        for value in (None, "x", 7, [], {}, ...):
            content = place = json.loads(whole)
            for key in path[:-1]:
                place = place[key]
            if value is ...:
                del place[path[-1]]
            else:
                place[path[-1]] = value
            (folder / "summary.json").write_text(json.dumps(content))
            try:
                (run,) = reading.load_runs([folder])
            except ReportError as error:
                refused += 1
                assert "summary.json is damaged: " in str(error)
            else:
                assert shown(tables.table(run.summary)) and tables.comparison_cells([run]).rows
                tables.change_cells(run.summary)
    assert refused > 100


@pytest.mark.parametrize("seed", range(20))
def test_evaluations_of_which_bytes_were_changed_are_read_or_refused(seed: int, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run") / "evaluation.npz"
    damaged, draw = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for where in draw.integers(0, len(damaged), 3):
        damaged[where] ^= 1 << draw.integers(8)
    headers = damaged.rfind(b"PK\x01\x02")  # whose fields decide what zip and numpy try
    damaged[headers + draw.integers(4, 46)] ^= 1 << draw.integers(8)
    for content in (bytes(damaged), bytes(len(damaged)), b"", b"\x93NUMPY", bytes(damaged[:-10])):
        path.write_bytes(content)
        try:
            reading.load_runs([path.parent])
        except ReportError as error:
            assert "evaluation.npz" in str(error)


def test_damaged_metrics_are_told_when_they_are_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("{")
    (run,) = reading.load_runs([folder])
    with pytest.raises(ReportError, match=r"metrics\.jsonl"):
        assert run.rows


def test_the_table_of_a_run_shows_what_was_kept(tmp_path: Path) -> None:
    write_run(tmp_path / "run", kept=0.5)
    text = shown(tables.table(json.loads((tmp_path / "run" / "summary.json").read_text())))
    assert line(text, "recall") == ["recall", "0.90", "0.45", "50%"]
    assert line(text, "cartpole") == ["cartpole", "0.90", "0.90", "100%"]
    assert line(text, "average performance")[1] == "0.68"
    assert line(text, "forgetting")[1] == "0.45"


def test_undefined_numbers_show_as_a_dash(tmp_path: Path) -> None:
    edit(write_run(tmp_path / "run"), forgetting=None, tasks=[{"name": "[b]a", "learned": 0.0, "final": -0.001}])
    text = shown(tables.table(json.loads((tmp_path / "run" / "summary.json").read_text())))
    assert line(text, "[b]a") == [
        "[b]a",
        "0.00",
        "0.00",
        "never learned",
    ]  # names are no markup, and there is no minus zero
    assert line(text, "forgetting")[1] == "–"


def test_the_comparison_groups_seeds_and_puts_the_best_first(runs_folder: Path) -> None:
    text = shown(tables.comparison(reading.load_runs([runs_folder])))
    rows = [line(text, "quickstart"), line(text[text.index("gpm") :].split("\n", 1)[1], "quickstart")]
    # per seed: learned 0.90, 0.91, 0.92; the first task falls to 0.9 of it
    assert rows[0][:5] == ["quickstart", "gpm", "3", "0.86 (0.85..0.87)", "0.09"]
    assert rows[0][5:] == ["0.09", "0.91 → 0.82", "0.91 → 0.91", "12,346"]
    assert rows[1][:5] == ["quickstart", "finetune", "1", "0.49", "0.81"]


def test_the_comparison_of_configs_with_other_tasks_has_dashes(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", strategy="ewc+clear")
    write_run(tmp_path / "runs" / "b", name="arcade", tasks=("recall", "pong"))
    table = tables.comparison(reading.load_runs([tmp_path / "runs"]))
    assert [str(column.header) for column in table.columns[6:9]] == ["recall", "cartpole", "pong"]
    text = shown(table)
    assert line(text, "quickstart")[1] == "ewc+clear"
    assert line(text, "quickstart")[6:9] == ["0.90 → 0.81", "0.90 → 0.90", "–"]
    assert line(text, "arcade")[6:9] == ["0.90 → 0.81", "–", "0.90 → 0.90"]


def test_a_task_that_was_never_learned_is_named_in_every_table(tmp_path: Path) -> None:
    """Forgetting is 0.00 there, and a share of what was never there would be 1,500,000 %."""
    tasks = [{"name": "maze", "learned": 0.00005, "final": 0.75}, {"name": "pole", "learned": 0.1, "final": 0.05}]
    edit(write_run(tmp_path / "run"), tasks=tasks, forgetting=0.0)
    runs = reading.load_runs([tmp_path / "run"])
    text = shown(tables.table(runs[0].summary))
    assert line(text, "maze") == ["maze", "0.00", "0.75", "never learned"]
    assert line(text, "pole") == ["pole", "0.10", "0.05", "50%"]
    assert line(text, "never learned") == ["never learned", "1 of 2"]
    assert line(shown(tables.comparison(runs)), "quickstart")[6:8] == ["never learned → 0.75", "0.10 → 0.05"]
    page = html_page.html(runs, tmp_path / "page").read_text()
    assert page.count("never learned") == 5  # and in the chart, and where it is explained


def test_forward_transfer_is_shown_where_every_task_has_a_run_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "stream")
    alone = [(task, seed) for seed in (1, 0) for task in ("recall", "cartpole")]  # the one with the same seed is taken
    folders = [write_run(tmp_path / f"{t}-{s}", name=f"{t} alone", tasks=(t,), seed=s) for t, s in alone]
    paths = [tmp_path / "stream", *folders]
    assert "transfer" not in shown(tables.comparison(reading.load_runs(paths[:2])))
    runs = reading.load_runs(paths)
    assert reading.forward_transfer(runs[0], runs) == pytest.approx(0.0, abs=1e-12)  # learned as fast as alone
    assert reading.forward_transfer(runs[0], runs[:3]) < 0  # those of seed 1 are better
    text = shown(tables.comparison(runs))
    assert line(text, "quickstart")[6] == "0.00" and line(text, "recall alone")[6] == "–"


def test_runs_with_other_settings_are_not_seeds_of_each_other(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", gradient={"kind": "rtrl"}, checkpoint={"keep": 1})
    write_run(tmp_path / "runs" / "b", gradient={"kind": "bptt", "steps": 8}, checkpoint={"keep": 2}, seed=1)
    write_run(tmp_path / "runs" / "c", gradient={"kind": "rtrl"}, checkpoint={"keep": 3}, seed=2)
    groups = reading.group_runs(reading.load_runs([tmp_path / "runs"]))
    assert {group.label: group.seeds for group in groups} == {
        "gpm (gradient=bptt, gradient.steps=8)": 1,
        "gpm (gradient=rtrl)": 2,
    }


def test_a_setting_that_most_rows_have_is_not_named(tmp_path: Path) -> None:
    for seed in range(2):  # seeds do not make it the usual one, rows do
        write_run(tmp_path / "runs" / f"a{seed}", seed=seed, policy={"heads": "shared"}, rollout={"steps": 8})
    write_run(tmp_path / "runs" / "b", policy={"heads": "per_task"}, rollout={"steps": 8})
    write_run(tmp_path / "runs" / "c", policy={"heads": "shared"}, rollout={"steps": 16})
    write_run(tmp_path / "runs" / "d", policy={"heads": "shared", "squash": "tanh"}, rollout={"steps": 8})
    groups = reading.group_runs(reading.load_runs([tmp_path / "runs"]))
    assert {group.label: group.seeds for group in groups} == {
        "gpm": 2,
        "gpm (policy.heads=per_task)": 1,
        "gpm (rollout.steps=16)": 1,
        "gpm (policy.squash=tanh)": 1,
    }


def test_plots_are_written_without_pyplot_state(runs_folder: Path, tmp_path: Path) -> None:
    runs = reading.load_runs([runs_folder])
    plots.plot_run(runs[0], tmp_path / "one.png")
    plots.plot_comparison(runs, tmp_path / "plots" / "all.png")
    for path in (tmp_path / "one.png", tmp_path / "plots" / "all.png"):
        assert path.read_bytes().startswith(PNG)
    first = (tmp_path / "one.png").read_bytes()
    plots.plot_run(runs[0], tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes() == first


def test_a_run_without_segments_or_with_joint_training_is_plotted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    edit(folder, segments=[{"start": 0, "end": 2000, "task": None}])
    plots.plot_run(reading.load_runs([folder])[0], tmp_path / "joint.png")
    summary = json.loads((folder / "summary.json").read_text())
    del summary["segments"]
    (folder / "summary.json").write_text(json.dumps(summary))
    plots.plot_run(reading.load_runs([folder])[0], tmp_path / "none.png")
    assert (tmp_path / "joint.png").read_bytes() != (tmp_path / "none.png").read_bytes()


def test_labels_are_moved_apart_and_stay_below_the_top() -> None:
    assert plots._spread([0.1, 0.5, 0.9], 0.1, 1.0) == [0.1, 0.5, 0.9]
    np.testing.assert_allclose(plots._spread([0.5, 0.5, 0.5], 0.1, 1.0), [0.4, 0.5, 0.6])
    np.testing.assert_allclose(plots._spread([0.97, 0.98, 0.99], 0.1, 1.0), [0.8, 0.9, 1.0])


def test_the_page_is_one_file_with_tables_and_charts(runs_folder: Path, tmp_path: Path) -> None:
    write_run(runs_folder / "arcade" / "0", name="<arcade>", tasks=("pong",))
    page = html_page.html(reading.load_runs([runs_folder]), tmp_path / "out").read_text()
    assert page.count("<table>") == 2 * 2 + 5  # a comparison and the costs per config, a table per run
    assert len(list((tmp_path / "out" / "plots").glob("*.png"))) == 2 + 5
    assert not re.search(r'(src|href)="(?!data:)', page) and "url(" not in page and "@import" not in page
    assert "0.86 (0.85..0.87)" in page and "continual/forgetting" in page
    assert "&lt;arcade&gt;" in page and "Example &lt;CPU&gt; &amp; Co" in page  # escaped
    assert "kind: gpm" in page and "2.9.0" in page
    assert "strategy finetune instead of gpm" in page


def circles(chart: ElementTree.Element, label: str) -> list[tuple[int, float]]:
    """(step, value) of the points of a line, as they are told when they are pointed at."""
    titles = [title.text or "" for title in chart.iter("title")]
    found = [re.fullmatch(rf"{label}, step ([\d,]+): (\S+)", title) for title in titles]
    return [(int(match[1].replace(",", "")), float(match[2])) for match in found if match]


def test_charts_show_the_evaluations_of_the_runs(runs_folder: Path) -> None:
    runs = reading.load_runs([runs_folder])
    groups = reading.group_runs(runs)
    drawn = figures.figures(groups)
    assert {title: len(charts) for title, charts in drawn.items()} == {
        "What was learned": 4,
        "Evaluation matrix": 2,
        "Inside": 0,
    }
    average, bars, recall, _ = (ElementTree.fromstring(chart) for chart in drawn["What was learned"])
    performance = np.median([run.evaluations.performance() for run in groups[0].runs], axis=0)
    steps = groups[0].runs[0].evaluations.steps
    expected = dict(zip(steps, performance.mean(1), strict=True))
    assert dict(circles(average, "gpm")) == pytest.approx(expected, rel=1e-2)
    assert dict(circles(recall, "gpm")) == pytest.approx(dict(zip(steps, performance[:, 0], strict=True)), rel=1e-2)
    told = [title.text for title in bars.iter("title")]
    assert "finetune, recall: 0.09 at the end, 0.90 when learned" in told
    assert len([line for line in average.iter("line") if line.get("class") == "border"]) == 1
    matrix = ElementTree.fromstring(drawn["Evaluation matrix"][0])
    assert len([cell for cell in matrix.iter("rect") if cell.get("class") == "cell"]) == performance.size


def test_curves_of_the_log_are_drawn_with_a_band_over_seeds(runs_folder: Path) -> None:
    for seed in range(3):
        lines = [{"step": step, "plasticity/dormant_units": step * seed} for step in (10, 20)]
        (runs_folder / f"quickstart/gpm-{seed}/metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (chart,) = figures.figures(reading.group_runs(reading.load_runs([runs_folder])))["Inside"]
    assert circles(ElementTree.fromstring(chart), "gpm") == [(10, 10.0), (20, 20.0)] and "<polygon" in chart


def test_a_strategy_has_one_colour_whatever_it_is_compared_with() -> None:
    names = ["clear", "gpm", "ewc", "finetune"]
    alone = {name: colours.places([name])[0] for name in names}
    assert dict(zip(names, colours.places(names), strict=True)) == alone
    assert colours.places(names[::-1]) == [alone[name] for name in names[::-1]]
    many = colours.places([f"row {i}" for i in range(25)])
    assert len(set(many)) == 25


def test_whoever_reads_the_page_chooses_light_or_dark(runs_folder: Path, tmp_path: Path) -> None:
    page = html_page.html(reading.load_runs([runs_folder]), tmp_path / "out").read_text()
    (dark,) = re.findall(r"@media \(prefers-color-scheme: dark\) \{\s*:root \{(.*?)\} \}", page, re.DOTALL)
    light = page[page.index(":root {") : page.index("@media")]
    for name in set(re.findall(r"var\((--\w+)\)", page)):
        assert f"{name}:" in light and f"{name}:" in dark, f"{name} has no colour"

    def contrast(sheet: str, name: str) -> float:  # WCAG 2.2, relative luminance
        def luminance(key: str) -> float:
            (found,) = re.findall(rf"{key}: #(\w+)", sheet)
            full = found if len(found) == 6 else "".join(c * 2 for c in found)
            parts = [int(full[i : i + 2], 16) / 255 for i in (0, 2, 4)]
            linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
            return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

        low, high = sorted([luminance("--paper"), luminance(name)])
        return (high + 0.05) / (low + 0.05)

    for sheet in (light, dark):
        assert min(contrast(sheet, name) for name in ("--ink", "--soft", "--bad")) >= 4.5
        assert min(contrast(sheet, f"--c{i}") for i in range(7)) >= 3.0  # of lines and areas


def test_write_report_prints_the_tables_and_returns_the_page(runs_folder: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    path = html_page.write_report([runs_folder], tmp_path / "out", console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert path == tmp_path / "out" / "report.html" and path.is_file()
    assert text.count("quickstart · gpm") == 3 and "finetune" in text
    assert "0.86 (0.85..0.87)" in text
