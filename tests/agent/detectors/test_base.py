"""What all detectors share: the signal, the gap, and that data-parallel workers decide the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.detectors.base import Detector
from lifelong.agent.parallel import TorchWorkers
from lifelong.agent.registry import REGISTRY, build
from lifelong.agent.runtime.rollout import Experience
from tests.agent.group import in_group
from tests.agent.support import act_through, make_policy, random_chunk

DETECTORS = list(REGISTRY["detector"])


def seen(seed: int = 0, copies: int = 4) -> Experience:
    policy = make_policy()
    return act_through(policy, random_chunk(policy, 5, copies, seed))[0]


class Every(Detector):
    """Gives an alarm at every chunk, which it says began seven chunks ago."""

    def update(self, values_TBD: Tensor) -> int:
        return 7


def test_alarms_are_apart_by_the_gap_and_do_not_look_back_beyond_their_limit() -> None:
    detector = Every(gap=4, lookback=3)
    detector.setup(0, 4, torch.device("cpu"))
    said = [detector.watch(seen(), {}) for _ in range(10)]
    # the chunks that are of the new context already count as its age
    assert said == [0, 0, 0, 0, 3, 0, 3, 0, 3, 0]


@pytest.mark.parametrize("signal", ["observation", "input", "memory", "reward", "value", "loss"])
def test_the_signal_is_what_is_asked_for(signal: str) -> None:
    experience = seen()
    chunk, detector = experience.chunk, Every(signal=signal)  # type: ignore[arg-type]
    detector.setup(0, 4, torch.device("cpu"))
    values = detector.values(experience, {"loss/total": torch.tensor(2.5)})
    expected = {
        "observation": chunk.obs,
        "input": experience.x_TBD,
        "memory": experience.state_TBS,
        "reward": chunk.reward.unsqueeze(-1),
        "value": chunk.value.unsqueeze(-1),
        "loss": torch.full((1, 1, 1), 2.5),
    }[signal]
    assert values is not None and torch.equal(values, expected)
    assert signal != "loss" or detector.watch(experience, {}) == 0  # nothing was learned from it


def test_a_projection_keeps_distances_and_is_the_same_at_every_chunk() -> None:
    detector = Every(dimensions=64)
    detector.setup(3, 4, torch.device("cpu"))
    values = torch.randn(2, 40, 5000, generator=torch.Generator().manual_seed(0))
    small = detector.projected(values)
    assert small.shape == (2, 40, 64) and torch.equal(small, detector.projected(values))
    before, after = torch.pdist(values.flatten(0, 1)), torch.pdist(small.flatten(0, 1))
    assert float((after / before - 1).abs().mean()) < 2 * (1 / (2 * 64)) ** 0.5  # chi(64) / 8 has that deviation


def test_a_sample_takes_every_copy_alike_and_no_phase_alone() -> None:
    detector = Every(rows=32)
    detector.setup(0, 16, torch.device("cpu"))
    time_TB = torch.arange(8.0).view(8, 1, 1).expand(8, 16, 1)
    copy_TB = torch.arange(16.0).view(1, 16, 1).expand(8, 16, 1)
    rows = detector.sample(torch.cat([time_TB, copy_TB], -1))
    assert rows.shape == (2, 16, 2)
    assert torch.equal(rows[..., 1], torch.arange(16.0).expand(2, 16))
    assert torch.bincount(rows[..., 0].flatten().long(), minlength=8).tolist() == [4] * 8


def stream(detector: Any, rank: int, count: int) -> list[int]:
    """What a detector says to the share of worker `rank` of a stream that changes."""
    said = []
    for chunk in range(60):
        draw = torch.Generator().manual_seed(chunk)
        values = torch.randn(6, 16, 2, generator=draw, dtype=torch.float64) + (4.0 if chunk >= 45 else 0.0)
        share = slice(16 * rank // count, 16 * (rank + 1) // count)
        detector.age += 1
        said.append(detector.update(values[:, share]))
        if said[-1]:
            detector.restart()
    return said


def in_a_group(workers: TorchWorkers, folder: Path) -> dict[str, list[int]]:
    found = {}
    for name in DETECTORS:
        detector = build("detector", {"kind": name})
        detector.setup(0, 16, torch.device("cpu"), workers)
        found[name] = stream(detector, workers.rank, workers.count)
    return found


def test_data_parallel_workers_find_what_one_would_find(tmp_path: Path) -> None:
    both = in_group(2, tmp_path, {"found": in_a_group})["found"]
    for name in DETECTORS:
        alone = build("detector", {"kind": name})
        alone.setup(0, 16, torch.device("cpu"))
        expected = stream(alone, 0, 1)
        assert not any(expected[:45]) and any(expected[45:53]), name
        assert both[0][name] == both[1][name] == expected, name
