"""Every choice that the config of a policy gives can be run, or is refused in a sentence of ours."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lifelong.agent.config import PolicyConfig
from lifelong.agent.errors import ConfigError
from tests.agent.support import make_trainer

TASKS: dict[str, dict[str, Any]] = {
    "categories": {"stream": {"tasks": [{"name": "a", "env": {"kind": "CartPole", "max_episode_steps": 7}}]}},
    "continuous": {"stream": {"tasks": [{"name": "a", "env": {"kind": "Pendulum", "max_episode_steps": 7}}]}},
    "predictions": {"stream": {"tasks": [{"name": "a", "env": "Copy"}]}, "objective": "supervised"},
}
CHOICES = [(field.name, value) for field in fields(PolicyConfig) for value in field.metadata.get("choices", ())]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("key", "value"), CHOICES)
def test_a_choice_can_be_run(key: str, value: str, task: str, tmp_path: Path) -> None:
    changes = {**TASKS[task], "policy": {key: value}}
    changes["stream"] = {**changes["stream"], "task_id": "observed"}
    try:
        made = make_trainer(tmp_path, **changes)
    except ConfigError as refused:
        assert key in str(refused) and "Error" not in str(refused), refused
        return
    for _ in range(3):
        made.advance()
    assert made.learner.steps == 3


def test_there_are_choices() -> None:
    assert len(CHOICES) >= 10 and {"squash", "heads", "reset_memory_on"} <= {key for key, _ in CHOICES}
