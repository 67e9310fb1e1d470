"""Perfect memory: the buffer has room for the whole stream, and for what is added to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.agent.errors import ConfigError
from lifelong.agent.runtime import memory
from lifelong.agent.strategies.perfect_memory import PerfectMemory
from tests.agent.support import make_trainer, run


def memory_of(trainer: Any) -> PerfectMemory:
    (strategy,) = trainer.strategies
    assert isinstance(strategy, PerfectMemory)
    return strategy


@pytest.mark.parametrize("steps", [192, 200])
def test_every_sequence_of_the_stream_is_kept_and_no_row_is_left(steps: int, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, strategy=["perfect_memory"], stream={"steps_per_task": steps})
    run(trainer)
    replay = memory_of(trainer).replay
    assert replay.size == replay.seen == replay.capacity == trainer.step // 4
    assert torch.equal(replay.stamp, torch.arange(0, trainer.step, 32).repeat_interleave(8))


def test_a_longer_stream_keeps_all_it_had(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "short", strategy=["perfect_memory"])
    run(trainer)
    longer = make_trainer(tmp_path / "long", strategy=["perfect_memory"], stream={"steps_per_task": 384})
    old, new = memory_of(trainer), memory_of(longer)
    new.load_state_dict(old.state_dict())
    assert new.replay.capacity == 2 * old.replay.capacity and new.replay.size == old.replay.size
    new.replay.write(old.replay.rows.take(torch.arange(8)), 384)
    assert torch.equal(new.replay.stamp[: old.replay.size], old.replay.stamp) and new.replay.stamp[96] == 384


@pytest.mark.parametrize("option", [{"capacity": 10}, {"mib": 1}, {"writing": "reservoir"}])
def test_it_takes_no_capacity(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"keeps everything, so it takes no {next(iter(option))}"):
        make_trainer(tmp_path, strategy=[{"kind": "perfect_memory", **option}])


def test_a_stream_that_memory_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_of", lambda device: 2 * 10**9)
    with pytest.raises(ConfigError, match=r"options of strategy perfect_memory: .*GB would be needed"):
        make_trainer(tmp_path, strategy=["perfect_memory"], stream={"steps_per_task": 10**9})
