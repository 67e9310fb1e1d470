"""What a run will hold is estimated before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lifelong.agent.runtime.memory import sequence_bytes
from tests.agent.support import make_trainer, run

TASKS: dict[str, dict[str, Any]] = {
    "without truncated steps": {"kind": "TMaze", "corridor": 3},
    "with truncated steps": {"kind": "CartPole", "max_episode_steps": 6},
    "with wide observations": {"kind": "ImageRows", "rows_per_step": 14},
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("inputs", [False, True])
def test_the_estimate_of_a_stored_sequence_is_what_it_takes(name: str, inputs: bool, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        stream={"tasks": [{"name": "one", "env": TASKS[name]}], "task_id": "hidden"},
        policy={"previous_action": inputs, "previous_reward": inputs},
        strategy=[{"kind": "clear", "capacity": 40, "start": 8}],
    )
    run(trainer, until=192)
    (clear,) = trainer.strategies
    storage = clear.replay.storage  # type: ignore[attr-defined]
    takes = sum(tensor.nbytes for tensor in vars(storage).values()) / 40
    estimate = sequence_bytes(trainer.config, trainer.rollout.env, trainer.rollout.policy)  # type: ignore[arg-type]
    assert takes / 1.1 < estimate < 1.35 * takes
