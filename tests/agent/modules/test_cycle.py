"""The encoder `cycle`: a pattern is taken out of what the cell reads, and put back into what it predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from lifelong.agent.config import check
from lifelong.agent.errors import ConfigError
from lifelong.agent.modules.encoders import Cycle
from lifelong.agent.runtime.build import build
from lifelong.envs.prediction.series import pattern_of
from tests.agent.support import run

RAW: dict[str, Any] = {
    "name": "series",
    "stream": {"steps_per_task": 40_000, "tasks": [{"name": "series", "env": {"kind": "Series", "period": 6}}]},
    "policy": {"encoder": {"kind": "cycle", "period": 6}, "cell": {"kind": "elstm", "size": 8}},
    "gradient": "rtrl",
    "objective": "supervised",
    "optimizer": {"kind": "adam", "lr": 3e-2},
    "rollout": {"copies": 16, "steps": 8},
    "evaluation": {"every": 40_000, "episodes": 16},
    "log_every": 40_000,
    "runtime": {"device": "cpu"},
}


def test_it_takes_out_the_phase_that_is_there_and_puts_back_the_next_one() -> None:
    encoder = Cycle(Box(-9, 9, (3,), np.float32), period=4)
    with torch.no_grad():
        encoder.pattern.copy_(torch.arange(8.0).view(4, 2))
    obs = torch.tensor([[10.0, 20.0, 0.0], [10.0, 20.0, 3.0], [10.0, 20.0, 5.0]])
    assert encoder(obs).tolist() == [[10.0, 19.0], [4.0, 13.0], [8.0, 17.0]]
    assert encoder.offset(obs).tolist() == [[2.0, 3.0], [0.0, 1.0], [4.0, 5.0]]


def test_it_learns_the_pattern_itself_and_predicts_as_well_as_can_be(tmp_path: Path) -> None:
    trainer = build(check(RAW), tmp_path)
    run(trainer)
    encoder: Any = trainer.rollout.policy.encoder
    assert float((encoder.pattern[:, 0].detach() - pattern_of(0, 6)).abs().max()) < 0.25
    assert trainer.performance()["series"] > 0.9


def test_it_refuses_what_has_no_phase_and_actions_that_are_no_predictions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a vector of values and, at last, a phase"):
        Cycle(Box(0, 255, (4, 4), np.uint8))
    copy = {"stream": {"tasks": [{"name": "copy", "env": "Copy"}]}}
    with pytest.raises(ConfigError, match="encoder cycle predicts 7 values, and the action space is"):
        build(check({**RAW, **copy}), tmp_path)
