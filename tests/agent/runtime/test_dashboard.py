"""What a run shows in TensorBoard, read back with TensorBoard's own code."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lifelong.agent import cli
from lifelong.agent.config import Config, to_dict
from lifelong.agent.registry import REGISTRY, load
from lifelong.agent.runtime.dashboard import borders, charts, hyperparameters, interval
from lifelong.agent.runtime.metrics import Evaluations
from lifelong.agent.strategies.base import Strategy

CONFIG = """
stream:
  steps_per_task: 512
  spaces: pad
  tasks: [{name: maze, env: {kind: TMaze, corridor: 2}}, {name: pole, env: CartPole, score: [10, 200]}]
policy: {encoder: identity, cell: {kind: elstm, size: 4}}
gradient: rtrl
strategy: {kind: er, capacity: 64}
optimizer: {kind: adam, lr: 0.003}
rollout: {copies: 8, steps: 8}
evaluation: {every: 128, episodes: 3, max_steps: 16}
checkpoint: {every: 256}
log_every: 128
runtime: {device: cpu}
"""


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    events.Reload()
    return events


def layout_of(events: EventAccumulator) -> dict[str, dict[str, Any]]:
    (point,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(point.tensor_proto.string_val[0])
    return {category.title: {chart.title: chart for chart in category.chart} for category in layout.category}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "x.yaml").write_text(CONFIG)
    assert cli.main(["run", str(folder / "x.yaml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


def test_every_chart_finds_its_curves(run: Path) -> None:
    events = read(run)
    tags, layout = events.Tags()["scalars"], layout_of(events)
    for chapter, found in layout.items():
        for title, chart in found.items():
            for pattern in chart.multiline.tag:
                assert [tag for tag in tags if re.match(pattern, tag)], f"{chapter}, {title}: {pattern} finds nothing"
    (tasks,) = layout["every task"].values()
    named = {tag for series in tasks.margin.series for tag in (series.value, series.lower, series.upper)}
    assert named <= {*tags} and {"evaluation/maze", "evaluation/pole"} <= named


def test_margins_are_one_standard_error_of_the_episodes(run: Path) -> None:
    events, seen = read(run), Evaluations.load(run / "evaluation.npz")
    scaled = (seen.tensor()[:, 1] - 10) / 190
    error = np.std(scaled, axis=-1, ddof=1) / 3**0.5
    for name, side in (("low", -1), ("high", 1)):
        points = events.Scalars(f"interval/pole/{name}")
        assert [point.step for point in points] == seen.steps
        np.testing.assert_allclose([point.value for point in points], scaled.mean(-1) + side * error, atol=1e-6)


def test_one_episode_has_no_margin() -> None:
    seen = Evaluations(["a"], [(0.0, 2.0)], [1])
    seen.add(0, np.array([[1.0]]))
    assert interval(seen) == {"interval/a/low": 0.5, "interval/a/high": 0.5}


def test_the_shade_changes_at_every_border_and_nowhere_else(run: Path) -> None:
    points = [(point.step, point.value) for point in read(run).Scalars("stretch/odd")]
    assert points == [(s, 0) for s in (0, 128, 256, 384, 511)] + [(s, 1) for s in (512, 640, 768, 896, 1024)]
    drawn = [(at, line["stretch/odd"]) for at, line in borders([0, 10, 20, 30], 5, 25)]
    assert drawn == [(9, 0.0), (10, 1.0), (19, 1.0), (20, 0.0), (25, 0.0)]


def test_hyperparameters_are_there_for_every_run(run: Path) -> None:
    events = read(run)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    shown = HParamsPluginData.FromString(content).session_start_info.hparams
    assert shown["strategy"].string_value == "er" and shown["strategy.er.capacity"].number_value == 64
    assert shown["optimizer.lr"].number_value == 0.003 and shown["seed"].number_value == 0
    assert "log_every" not in shown and not [key for key in shown if key.startswith("stream.tasks.")]


def test_the_text_page_has_what_is_not_the_default_and_the_default(run: Path) -> None:
    (page,) = read(run).Tensors("config/text_summary")
    lines = page.tensor_proto.string_val[0].decode().splitlines()
    assert "| `stream.tasks.maze.env.corridor` | 2 | 10 |" in lines
    assert "| `optimizer.lr` | 0.003 | 0.001 |" in lines
    assert not [line for line in lines if line.startswith("| `max_grad_norm`")]


def test_the_matrix_is_a_picture_of_its_size(run: Path) -> None:
    pictures = read(run).Images("performance of every task over time")
    assert [picture.step for picture in pictures] == [896, 1024]  # of 8 points, and at the end
    decoded = matplotlib.image.imread(io.BytesIO(pictures[-1].encoded_image_string), format="png")
    assert decoded.shape[:2] == (pictures[-1].height, pictures[-1].width)


def test_returns_of_unlike_tasks_have_no_mean(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("return/pole" in line for line in lines)
    assert not [line for line in lines if "continual/online_return" in line]


def test_forgetting_is_logged_as_it_was_at_the_time(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["continual/forgetting"] for line in lines if "continual/forgetting" in line}
    seen = Evaluations.load(run / "evaluation.npz")
    maze = dict(zip(seen.steps, seen.performance()[:, 0].tolist(), strict=True))
    assert logged == pytest.approx({step: maze[512] - value if step > 512 else 0.0 for step, value in maze.items()})


def test_what_stands_at_the_beginning_stands_once_in_a_run_that_goes_on(run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(CONFIG)
    arguments = ["run", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "run"), "--quiet", "--resume"]
    assert cli.main([*arguments, "stream.steps_per_task=256"]) == 0
    assert cli.main(["resume", str(tmp_path / "run"), "stream.tasks.1.steps=512", "--quiet"]) == 0
    events = read(tmp_path / "run")
    assert len(list((tmp_path / "run").glob("events.*"))) == 2
    assert len(events.Tensors("custom_scalars__config__")) == len(events.Tensors("config/text_summary")) == 1
    steps = [point.step for point in events.Scalars("evaluation/maze")]
    assert steps == sorted({*steps}) and steps[-1] == 768


@pytest.mark.parametrize("strategy", REGISTRY["strategy"])
def test_there_is_a_page_for_every_strategy(strategy: str) -> None:
    config = {**to_dict(Config(strategy=[{"kind": strategy}])), "seed": 3}
    found, silent = charts(config, ["a"]).get("strategy", {}), load("strategy", strategy).report is Strategy.report
    assert bool(found) != silent and all(title.startswith(strategy) for title in found)
    assert hyperparameters(config)["strategy"] == strategy
