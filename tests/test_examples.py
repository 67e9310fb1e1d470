"""The examples of the docs run, and do what is said of them."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = sorted((Path(__file__).parent.parent / "docs/examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_is_in_the_docs_with_its_picture(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
    page = "".join((path.parent.parent / f"{name}.md").read_text() for name in ("online", "streaming"))
    assert f"(examples/{path.name})" in page and f"(images/{path.stem}.png)" in page
    assert (path.parent.parent / f"images/{path.stem}.png").is_file()


def test_the_copy_is_the_learner_at_half_time_and_stays_so(tmp_path: Path) -> None:
    (path,) = [path for path in EXAMPLES if path.stem == "learner_and_frozen_copy"]
    learner, frozen = runpy.run_path(str(path))["main"](80, tmp_path)
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
