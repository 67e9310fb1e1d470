"""Sweeps: what is tried, what is chosen, what a killed sweep repeats, and which mistakes are refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from lifelong.agent import cli, run
from lifelong.agent import config as configs
from lifelong.agent.distributed.cluster import connect
from lifelong.agent.runtime.metrics import Evaluations
from lifelong.agent.sweep import plan as sweep_plan
from lifelong.agent.sweep import report as sweep_report
from lifelong.agent.sweep.ledger import Standing, read_entries

ROOT = Path(__file__).parents[3]

TINY: dict[str, Any] = {
    "stream": {
        "steps_per_task": 512,
        "tasks": [
            {"name": "left", "env": {"kind": "TMaze", "corridor": 3}},
            {"name": "right", "env": {"kind": "TMaze", "corridor": 3, "reversed": 1}},
        ],
    },
    "policy": {"encoder": "identity", "cell": {"kind": "elstm", "size": 4}},
    "gradient": "rtrl",
    "rollout": {"copies": 4, "steps": 8},
    "evaluation": {"every": 128, "episodes": 8, "max_steps": 16},
    "checkpoint": {"every": 128},
    "log_every": 256,
}
SWEEP: dict[str, Any] = {
    "run": "tiny.yaml",
    "seeds": [0, 1],
    "space": {"optimizer.lr": [1e-3, 3e-2]},
    "groups": {
        "finetune": {},
        "ewc": {"overrides": {"strategy": "ewc"}, "space": {"strategy.0.strength": [1]}},
        "clear": {"overrides": {"strategy": {"kind": "clear", "capacity": 64}}},
    },
    "protocol": {
        "kind": "two_phase",
        "seeds": [7, 8],
        "evaluate_on": {"stream.tasks.0.env.corridor": 4, "stream.tasks.1.env.corridor": 4},
    },
}
PLAIN = {"groups": {}, "protocol": {}}


def write_sweep(folder: Path, **changes: Any) -> Path:
    """The small run config and a sweep over it; `changes` replace keys of the sweep."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, **changes}))
    return path


def lifelong(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def steps_of(folder: Path) -> int:
    return int(Evaluations.load(folder / "evaluation.npz").steps[-1])


# ---- the plan --------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_with_every_seed(tmp_path: Path) -> None:
    plan = sweep_plan.load(str(write_sweep(tmp_path)))
    assert [t.name for t in plan.trials("ewc")] == [
        f"ewc,lr={lr},strength=1,seed={seed}" for lr in (0.001, 0.03) for seed in (0, 1)
    ]
    assert len(plan.trials("finetune")) == 4
    trial = plan.trials("ewc")[-1]
    assert trial.config.optimizer == {"kind": "adam", "lr": 0.03}
    assert trial.config.strategy == [{"kind": "ewc", "strength": 1}] and trial.config.seed == 1


def test_the_second_phase_has_the_other_stream_and_only_the_first_share_is_tuned_on(tmp_path: Path) -> None:
    plan = sweep_plan.load(str(write_sweep(tmp_path)))
    config = plan.trial(sweep_plan.EVALUATION, "ewc", plan.candidates("ewc")[0], 7).config
    assert [task.env["corridor"] for task in config.stream.tasks] == [4, 4] and config.stream.share == 1
    k_percent = {"kind": "k_percent", "percent": 25, "seeds": [5]}
    plan = sweep_plan.load(str(write_sweep(tmp_path, protocol=k_percent)))
    assert plan.trial(sweep_plan.TUNING, "finetune", {"optimizer.lr": 1e-3}, 0).config.stream.share == 0.25
    assert plan.trial(sweep_plan.EVALUATION, "finetune", {"optimizer.lr": 1e-3}, 5).config.stream.share == 1


def test_a_group_that_tunes_two_numbers_has_a_map_of_its_means(tmp_path: Path) -> None:
    plan = sweep_plan.load(str(write_sweep(tmp_path)))  # ewc: learning rate and strength, clear: the rate alone
    pair = {"optimizer.lr": 0.03, "strategy.0.strength": 1}
    (drawn,) = sweep_report.trainability_maps(plan, [Standing("ewc", pair, {0: 0.25, 1: 0.75})])
    assert drawn.count('class="cell"') == 1 and "<title>0.03, 1: 0.5</title>" in drawn
    assert drawn.count('class="blank"') == 1  # the other rate has no finished run
    assert "strategy.0.strength" in drawn and "optimizer.lr" in drawn
    named = {"policy.cell.kind": ["gru", "elstm"]}
    assert not sweep_report.trainability_maps(sweep_plan.load(str(write_sweep(tmp_path, space=named))), [])


def test_more_random_trials_keep_the_ones_before(tmp_path: Path) -> None:
    space = {"optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "policy.cell.size": {"low": 2, "high": 9}}
    draws = {}
    for trials in (5, 200):
        search = {"kind": "random", "trials": trials}
        draws[trials] = sweep_plan.load(str(write_sweep(tmp_path, space=space, search=search))).candidates("finetune")
    assert draws[200][:5] == draws[5]
    rates = np.log10([d["optimizer.lr"] for d in draws[200]])
    assert stats.kstest(rates, stats.uniform(-4, 3).cdf).pvalue > 0.01  # uniform in the logarithm
    assert {d["policy.cell.size"] for d in draws[200]} == set(range(2, 10))


def test_names_of_trials_are_fit_for_folders_and_tell_trials_apart() -> None:
    hard: list[Any] = [[64, 64], [64], "a/b", "a:b", "x" * 300, "x" * 301]
    names = [sweep_plan.trial_name("g", {"policy.encoder.hidden": value}, 0) for value in hard]
    assert len(set(names)) == len(names)
    assert all(len(name) < 200 and "/" not in name for name in names)
    same = sweep_plan.trial_name("g", {"policy.cell.size": 1, "policy.encoder.size": 2}, 3)
    assert same == "g,policy.cell.size=1,policy.encoder.size=2,seed=3"


def test_the_standard_error_is_that_of_scipy() -> None:
    values = {0: 0.3, 1: 0.9, 5: 0.4}
    assert Standing("g", {}, values).standard_error == pytest.approx(stats.sem(list(values.values())))


# what is changed in the sweep, and words that the sentence must contain
MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"spaces": {}}, ["spaces", "space"]),
    "no run config": ({"run": ""}, ["run", "quickstart"]),
    "unknown run config": ({"run": "quikstart"}, ["quikstart", "quickstart"]),
    "unknown search": ({"search": {"kind": "ahsa"}}, ["search.kind", "ahsa", "asha"]),
    "unknown metric": ({"metric": "forgetting"}, ["metric", "forgetting", "continual/forgetting"]),
    "unknown protocol": ({"protocol": {"kind": "twophase"}}, ["protocol.kind", "twophase", "two_phase"]),
    "tuned key that is none": ({"space": {"optimizr.lr": [1]}}, ["optimizr", "optimizer"]),
    "tuned option that is none": ({"space": {"optimizer.learning_rate": [1]}}, ["learning_rate", "adam"]),
    "tuned value of a wrong type": ({"space": {"rollout.steps": [8, "many"]}}, ["rollout.steps", "many", "integer"]),
    "value that cannot be built": ({"space": {"policy.cell": ["elstm", "lstm"]}}, ["cell=lstm", "rtrl", "bptt"]),
    "tuned seed": ({"space": {"seed": [1, 2]}}, ["space.seed", "seeds"]),
    "values that are no list": ({"space": {"optimizer.lr": 0.1}}, ["space.optimizer.lr", "0.1", "list"]),
    "range in a grid": ({"space": {"optimizer.lr": {"low": 0.1, "high": 1}}}, ["optimizer.lr", "grid", "random"]),
    "range that is none": ({"space": {"optimizer.lr": {"low": math.nan, "high": 1}}}, ["optimizer.lr.low", "nan"]),
    "grid that is too large": (
        {"space": {"optimizer.lr": [i * 1e-6 for i in range(1, 40)], "policy.cell.size": list(range(1, 40))}},
        ["1,521 candidates", "random"],
    ),
    "too many trials": ({"search": {"kind": "random", "trials": 10**9}}, ["search.trials", "at most 1,000"]),
    "name of a sweep": ({"name": "../up"}, ["name", "../up", "printable"]),
    "long name of a group": ({"groups": {"g" * 99: {}}}, ["ggg", "80 bytes"]),
    "range upside down": ({"space": {"optimizer.lr": {"low": 1, "high": 0.1}}}, ["optimizer.lr", "below"]),
    "key of a range": ({"space": {"optimizer.lr": {"low": 1, "high": 2, "lgo": True}}}, ["lgo", "log"]),
    "nothing to tune": ({"space": {}, **PLAIN}, ["space", "empty"]),
    "key of a group": ({"groups": {"ewc": {"spce": {}}}}, ["spce", "space", "groups.ewc"]),
    "name of a group": ({"groups": {"a/b": {}}}, ["a/b"]),
    "override that is none": ({"overrides": {"rollout.step": 8}}, ["rollout", "step", "steps"]),
    "same seed twice": ({"seeds": [1, 1]}, ["seeds", "different"]),
    "no seeds": ({"seeds": []}, ["seeds", "empty"]),
    "seeds of both phases": ({"seeds": [0, 7]}, ["protocol.seeds", "7"]),
    "no other stream": ({"protocol": {"kind": "two_phase", "seeds": [9]}}, ["protocol.evaluate_on"]),
    "no other seeds": ({"protocol": {"kind": "k_percent"}}, ["protocol.seeds", "empty"]),
    "seeds of a plain sweep": ({"protocol": {"seeds": [3]}}, ["protocol.seeds", "plain"]),
    "percent": ({"protocol": {"kind": "k_percent", "seeds": [9], "percent": 100}}, ["protocol.percent", "100"]),
    "stream that overwrites a tuned key": (
        {"protocol": {**SWEEP["protocol"], "evaluate_on": {"optimizer": "sgd"}}},
        ["evaluate_on.optimizer", "optimizer.lr"],
    ),
    "tasks of both phases": (
        {"protocol": {**SWEEP["protocol"], "evaluate_on": {"stream.tasks.0.env.corridor": 4}}},
        ["protocol.evaluate_on", "TMaze", "3.0"],
    ),
    "asha of forgetting": (
        {"search": {"kind": "asha"}, "metric": "continual/forgetting"},
        ["asha", "continual/forgetting", "random"],
    ),
    "asha that never stops": ({"search": {"kind": "asha", "grace_steps": 2000}}, ["grace_steps", "2000", "1024"]),
    "runs on Ray": ({"overrides": {"runtime.backend": "ray"}}, ["runtime.backend", "ray", "inline"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_wrong_sweep_is_refused_before_ray_starts(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifelong.agent.sweep.trials.connect", lambda address: pytest.fail("Ray was started"))
    changes, words = MISTAKES[case]
    assert lifelong("sweep", write_sweep(tmp_path, **changes), "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("lifelong: "), error
    for word in words:
        assert word in error[0], f"{word!r} is not in {error[0]!r}"
    assert not (tmp_path / "out").exists()


def test_an_override_of_the_command_line_reaches_the_space(tmp_path: Path) -> None:
    plan = sweep_plan.load(str(write_sweep(tmp_path)), ["space.optimizer.lr=[0.5]", "overrides.rollout.steps=4"])
    (candidate,) = plan.candidates("finetune")
    assert candidate == {"optimizer.lr": 0.5}
    assert plan.trial(1, "finetune", candidate, 0).config.rollout.steps == 4


@pytest.mark.parametrize("name", configs.bundled(configs.SWEEP_FOLDER))
def test_a_bundled_sweep_can_be_run(name: str) -> None:
    plan = sweep_plan.load(name)
    assert all(plan.trials(group) for group in plan.groups)


@pytest.mark.parametrize(("module", "extra"), [("ray", "ray"), ("ray.tune", "ray"), ("optuna", "optuna")])
def test_without_a_package_the_sentence_says_what_to_install_before_anything_is_written(
    module: str, extra: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    path = write_sweep(tmp_path, search={"kind": "optuna", "trials": 2})
    assert lifelong("sweep", path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"pip install 'lifelong[{extra}]'" in error and len(error.splitlines()) == 1 and len(error) < 300
    assert not (tmp_path / "out").exists()


# ---- on Ray ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One local Ray for all tests of this file."""
    with connect("local") as ray:
        yield ray


@pytest.fixture(scope="module")
def finished(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished two-phase sweep over three strategies; tests that damage it work on a copy."""
    folder = tmp_path_factory.mktemp("sweep")
    assert lifelong("sweep", write_sweep(folder), "--out", folder / "out", "--quiet") == 0
    return folder / "out"


def test_the_choice_is_the_best_mean_of_the_summaries(finished: Path) -> None:
    """Recomputed from the summary.json of the runs, which the sweep does not read its metric from."""
    means: dict[str, dict[str, float]] = {}
    for group in SWEEP["groups"]:
        for folder in (finished / "trials").glob(f"{group},*seed=0"):
            pair = [folder, folder.with_name(folder.name.replace("seed=0", "seed=1"))]
            values = [json.loads((f / "summary.json").read_text())["average_performance"] for f in pair]
            means.setdefault(group, {})[folder.name] = float(np.mean(values))
    assert {group: len(found) for group, found in means.items()} == {"finetune": 2, "ewc": 2, "clear": 2}
    frozen = json.loads((finished / "frozen.json").read_text())["groups"]
    for group, choice in frozen.items():
        assert choice["mean"] == pytest.approx(max(means[group].values()))
        values = [f"{key.rpartition('.')[2]}={value}" for key, value in choice["parameters"].items()]
        name = ",".join([group, *values, "seed=0"])
        assert means[group][name] == pytest.approx(choice["mean"])


def test_the_second_phase_ran_the_choice_once_per_new_seed_on_the_other_stream(finished: Path) -> None:
    frozen = json.loads((finished / "frozen.json").read_text())["groups"]
    runs = {folder.name for folder in (finished / "evaluation").iterdir()}
    assert runs == {f"{group},seed={seed}" for group in SWEEP["groups"] for seed in (7, 8)}
    for group, choice in frozen.items():
        config = configs.load(str(finished / "evaluation" / f"{group},seed=8" / "config.yaml"))
        assert config.optimizer["lr"] == choice["parameters"]["optimizer.lr"] and config.seed == 8
        assert [task.env["corridor"] for task in config.stream.tasks] == [4, 4]


def test_a_trial_is_bit_for_bit_the_run_that_lifelong_run_makes(finished: Path, tmp_path: Path) -> None:
    trial = next((finished / "trials").glob("ewc,lr=0.03*seed=1"))
    run.start(configs.load(str(trial / "config.yaml")), tmp_path / "run", quiet=True)
    for name in ("evaluation.npz", "metrics.jsonl"):
        assert (trial / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_sweep_json_and_the_page_show_every_run(finished: Path) -> None:
    result = json.loads((finished / "sweep.json").read_text())
    assert len(result["trials"]) == 12 + 6 and {t["status"] for t in result["trials"]} == {"finished"}
    for trial in result["trials"]:
        summary = json.loads((finished / trial["folder"] / "summary.json").read_text())
        assert trial["metric"] == pytest.approx(summary["average_performance"]) and trial["seed"] == summary["seed"]
    means = [row["mean"] for row in result["ranking"]]
    assert means == sorted(means, reverse=True)
    page = (finished / "report.html").read_text()
    assert "The ledger holds" in page and result["ledger"]["head"] in page and page.count("data:image/png") == 2
    assert (finished / "plots/tuning.png").stat().st_size > 5000


def test_tensorboards_hparams_plugin_lists_every_run(finished: Path) -> None:
    """Asked as the HParams tab asks: through the plugin's own back end."""
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(finished))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(finished))

    context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    asked = RequestContext()
    metadata, found = context.hparams_metadata(asked, ""), context.hparams_from_data_provider(asked, "", None)
    experiment = context.experiment_from_metadata(asked, "", True, metadata, found)
    names = {info.name for info in experiment.hparam_infos}
    assert {"group", "seed", "phase", "optimizer.lr", "strategy.0.strength"} <= names
    assert [info.name.tag for info in experiment.metric_infos] == ["final/continual/average_performance"]
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING],
        col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
    )
    answer = list_session_groups.Handler(asked, context, "", request).run()
    values = sorted(group.metric_values[0].value for group in answer.session_groups)
    expected = sorted(t["metric"] for t in json.loads((finished / "sweep.json").read_text())["trials"])
    assert values == pytest.approx(expected, abs=1e-6)


def test_the_same_command_on_a_finished_sweep_runs_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifelong.agent.sweep.trials.connect", lambda address: pytest.fail("Ray was started"))
    before = (finished / "ledger.jsonl").read_bytes()
    assert lifelong("sweep", finished.parent / "small.yaml", "--out", finished) == 0
    assert (finished / "ledger.jsonl").read_bytes() == before
    assert "phase" in capsys.readouterr().out


def test_a_folder_with_another_sweep_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lifelong("sweep", finished.parent / "small.yaml", "seeds=[0]", "--out", finished) == 2
    assert "another config" in capsys.readouterr().err


def test_a_trial_that_no_node_has_room_for_is_refused(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_sweep(tmp_path)
    assert lifelong("sweep", sweep, "resources.cpus=1000", "--out", tmp_path / "out") == 1
    assert "resources.cpus is 1000" in capsys.readouterr().err


@pytest.mark.slow
def test_k_percent_tunes_on_the_first_share_and_on_its_tasks_only(cluster: Any, tmp_path: Path) -> None:
    protocol = {"kind": "k_percent", "percent": 25, "seeds": [5]}
    sweep = write_sweep(tmp_path, groups={}, seeds=[0], protocol=protocol)
    assert lifelong("sweep", sweep, "--out", tmp_path / "out", "--quiet") == 0
    result = json.loads((tmp_path / "out/sweep.json").read_text())
    tuning = [trial for trial in result["trials"] if trial["phase"] == 1]
    for trial in tuning:
        evaluations = Evaluations.load(tmp_path / "out" / trial["folder"] / "evaluation.npz")
        assert evaluations.steps[-1] == 256  # a quarter of 1,024
        assert trial["metric"] == pytest.approx(evaluations.performance()[-1][0])  # `right` comes later in life
    (whole,) = [trial for trial in result["trials"] if trial["phase"] == 2]
    assert whole["seed"] == 5 and steps_of(tmp_path / "out" / whole["folder"]) == 1024
    assert lifelong("verify", tmp_path / "out") == 0


@pytest.mark.slow
def test_asha_stops_trials_that_fall_behind_and_never_the_winner(cluster: Any, tmp_path: Path) -> None:
    search = {"kind": "asha", "trials": 1, "grace_steps": 128, "reduction_factor": 2}
    space, seeds = {"optimizer.lr": [1e-3]}, list(range(8))  # seeds differ from the first evaluation on
    sweep = write_sweep(tmp_path, **PLAIN, search=search, space=space, seeds=seeds)
    assert lifelong("sweep", sweep, "resources.concurrent=1", "--out", tmp_path / "out", "--quiet") == 0
    trials = json.loads((tmp_path / "out/sweep.json").read_text())["trials"]
    status = {trial["name"]: trial["status"] for trial in trials}
    assert len(status) == 8 and set(status.values()) == {"finished", "stopped"}
    for name, ended in status.items():
        assert (steps_of(tmp_path / "out/trials" / name) == 1024) == (ended == "finished")
    # the rule of Li et al. (2020) at the first rung: a trial in the best half of those seen so far goes on
    entries = read_entries(tmp_path / "out/ledger.jsonl")
    seen: list[float] = []
    for entry in entries:
        if entry["event"] == "read" and entry["step"] == 128:
            if seen and entry["value"] < np.percentile(seen, 50):
                assert status[entry["run"]] == "stopped"
            seen.append(entry["value"])


@pytest.mark.slow
def test_optuna_proposes_and_goes_on_from_what_is_known(cluster: Any, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    search = {"kind": "optuna", "trials": 3}
    space = {"optimizer.lr": {"low": 1e-4, "high": 0.3, "log": True}}
    sweep = write_sweep(tmp_path, **PLAIN, search=search, space=space)
    assert lifelong("sweep", sweep, "--out", tmp_path / "out", "--quiet") == 0
    first = json.loads((tmp_path / "out/sweep.json").read_text())
    assert len(first["ranking"]) == 3 and all(len(row["values"]) == 2 for row in first["ranking"])
    # as if it had been killed before the last run ended: that candidate is finished, not replaced
    ledger = tmp_path / "out/ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    cut = max(i for i, line in enumerate(lines) if json.loads(line)["event"] == "end")
    last = json.loads(lines[cut])["run"]
    ledger.write_text("".join(lines[:cut]))
    for path in (tmp_path / "out/sweep.json", tmp_path / "out/trials" / last / "summary.json"):
        path.unlink()
    assert lifelong("sweep", sweep, "--out", tmp_path / "out", "--quiet") == 0
    assert json.loads((tmp_path / "out/sweep.json").read_text())["ranking"] == first["ranking"]


def wait_for(condition: Any, process: subprocess.Popen[bytes]) -> None:
    while not condition():
        assert process.poll() is None, "the sweep ended before it was stopped"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_stopped_sweep_finishes_only_what_is_missing(number: int, cluster: Any, tmp_path: Path) -> None:
    """Longer runs, so that one is in its middle: it goes on from its checkpoint and ends as if nothing had been."""
    longer = {"stream.steps_per_task": 10_000, "checkpoint.every": 3_000, "evaluation.every": 5_000}
    space = {"optimizer.lr": [1e-3, 3e-3]}
    sweep, out = write_sweep(tmp_path, **PLAIN, seeds=[0], overrides=longer, space=space), tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "lifelong.agent.cli",
        "sweep",
        str(sweep),
        "resources.concurrent=1",
        "--out",
        str(out),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    trials = [out / "trials" / f"tiny,lr={lr},seed=0" for lr in (0.001, 0.003)]
    wait_for(lambda: len(list((trials[1] / "checkpoints").glob("[0-9]*"))) > 1, process)
    process.send_signal(number)
    _, error = process.communicate()
    if number == signal.SIGTERM:
        assert process.returncode == cli.STOPPED and f"--out {out}" in error.decode()
    assert [(folder / "summary.json").exists() for folder in trials] == [True, False]
    before = (trials[0] / "summary.json").stat().st_mtime_ns

    time.sleep(1)  # the killed cluster's processes are gone
    assert lifelong("sweep", sweep, "resources.concurrent=1", "--out", out, "--quiet") == 0
    assert (trials[0] / "summary.json").stat().st_mtime_ns == before
    entries = read_entries(out / "ledger.jsonl")
    events = {event: [e["run"] for e in entries if e["event"] == event] for event in ("start", "resume", "end")}
    assert events["start"] == events["end"] == [folder.name for folder in trials]
    assert events["resume"] == [trials[1].name]
    assert lifelong("verify", out) == 0
    run.start(configs.load(str(trials[1] / "config.yaml")), tmp_path / "whole", quiet=True)
    for name in ("evaluation.npz", "metrics.jsonl"):
        assert (trials[1] / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_processes_cannot_run_one_sweep(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lifelong.agent.sweep.ledger import Ledger

    copy = shutil.copytree(finished, tmp_path / "out")
    ledger = Ledger(copy)
    assert lifelong("sweep", finished.parent / "small.yaml", "--out", copy) == 2
    assert "another process" in capsys.readouterr().err
    ledger.close()
