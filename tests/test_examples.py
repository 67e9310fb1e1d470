"""The examples of the docs run, and do what is said of them."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lifelong.agent.online import OnlineAgent

EXAMPLES = sorted((Path(__file__).parent.parent / "docs/examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_is_in_the_docs_with_its_picture(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
    page = "".join((path.parent.parent / f"{name}.md").read_text() for name in ("online", "streaming"))
    assert f"(examples/{path.name})" in (path.parent.parent / "examples.md").read_text()
    assert f"(examples/{path.name})" in page and f"(images/{path.stem}.png)" in page
    assert (path.parent.parent / f"images/{path.stem}.png").is_file()


def example(name: str) -> dict[str, Any]:
    (path,) = [path for path in EXAMPLES if path.stem == name]
    return runpy.run_path(str(path))


def test_a_plain_loop_learns_in_every_call_and_leaves_a_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes = example("gymnasium_loop")["main"](200, tmp_path)
    assert sum(length for _, length in episodes) == episodes[-1][0] <= 200
    assert OnlineAgent.load(tmp_path / "agent.pt").report()["step"] == 200
    assert "an episode of the policy alone: " in capsys.readouterr().out
    assert (tmp_path / "gymnasium_loop.png").is_file() and (tmp_path / "log/metrics.jsonl").is_file()


def test_gravity_has_drifted_for_both_and_only_the_learner_has_learned(tmp_path: Path) -> None:
    learner, frozen = example("drifting_pendulum")["main"](100, tmp_path)
    assert learner.step == frozen.step == 200 and learner.episodes[0][0] < 100 < frozen.episodes[0][0]
    assert learner.env.unwrapped.gravity == pytest.approx(40.0) == frozen.env.unwrapped.gravity
    saved = torch.load(tmp_path / "pendulum.pt")["policy"]
    now, still = (life.agent._trainer.rollout.policy.state_dict() for life in (learner, frozen))
    assert all(torch.equal(still[name], value) for name, value in saved.items())
    assert not all(torch.equal(now[name], value) for name, value in saved.items())
    assert (tmp_path / "drifting_pendulum.png").is_file()


def test_every_program_behind_the_queue_gets_its_answers(tmp_path: Path) -> None:
    episodes = example("agent_behind_a_queue")["main"](120, tmp_path)
    assert len(episodes) == 3
    for ended in episodes:
        assert sum(length for _, length in ended) == ended[-1][0] <= 120
    assert (tmp_path / "agent_behind_a_queue.png").is_file()


def test_two_programs_go_on_with_one_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    shifts = example("two_programs")["main"](60, tmp_path, 2)
    assert [name for name, _ in shifts] == ["short", "long"] and all(sum(lengths) <= 60 for _, lengths in shifts)
    assert OnlineAgent.load(tmp_path / "shared.pt").report()["step"] == 120
    assert (tmp_path / "two_programs.png").is_file()


def test_the_copy_is_the_learner_at_half_time_and_stays_so(tmp_path: Path) -> None:
    learner, frozen = example("learner_and_frozen_copy")["main"](80, tmp_path)
    assert learner.step == frozen.step == 160
    assert learner.env.unwrapped.force_mag == frozen.env.unwrapped.force_mag == -10.0
    assert learner.episodes[0][0] < 80 < frozen.episodes[0][0]
    saved = torch.load(tmp_path / "learner.pt")["policy"]
    now, still = (life.agent._trainer.rollout.policy.state_dict() for life in (learner, frozen))
    assert all(torch.equal(still[name], value) for name, value in saved.items())
    assert not all(torch.equal(now[name], value) for name, value in saved.items())
    assert (tmp_path / "learner_and_frozen_copy.png").is_file()


def test_the_sine_is_predicted_and_the_frozen_copy_stays_as_it_was(tmp_path: Path) -> None:
    (path,) = [path for path in EXAMPLES if path.stem == "predicting_a_sine"]
    module = runpy.run_path(str(path))
    x = np.array([1.0, 0.0, 2.0, 1.0])
    np.testing.assert_allclose(module["to_come"](x), [0.9 * 2 + 0.81, 2 + 0.9, 1.0, 0.0])
    errors = module["main"](300, tmp_path)
    assert np.isfinite(errors["learner"]).all() and len(errors["learner"]) == 100
    assert np.isnan(errors["frozen copy"][:32]).all() and np.isfinite(errors["frozen copy"][34:]).all()
    assert np.abs(errors["frozen copy"][40:] - errors["learner"][40:]).max() > 1e-3  # the learner went on
    assert (tmp_path / "predicting_a_sine.png").is_file()
