"""Nearest mean: streaming means are batch means, the written head is the nearest mean, training is untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.agent.errors import ConfigError
from lifelong.agent.strategies.nmc import NMC
from tests.agent.support import assert_identical, make_trainer, run

ROWS = {
    "stream": {"tasks": [{"name": "rows", "env": "ImageRows"}], "steps_per_task": 28 * 8 * 12},
    "objective": "supervised",
    "rollout": {"copies": 8, "steps": 28},
    "evaluation": {"every": 10**6, "episodes": 4, "max_steps": 30},
}


def seen(trainer: Any, chunks: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Features and labels of the steps that have a target, as the policy sees them chunk by chunk."""
    found = []
    for _ in range(chunks):
        experience = trainer.advance()
        chunk, policy = experience.chunk, trainer.rollout.policy
        with torch.no_grad():
            y = policy.sequence(chunk, chunk.state).features
        counts = chunk.target_mask & (chunk.weight > 0)
        found.append((y[counts].double(), chunk.target[counts].long()))
    return found


def test_with_features_that_stay_the_streaming_means_are_those_of_all_steps_at_once(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, strategy=[{"kind": "nmc", "learn": False}], **ROWS)
    before = {n: p.detach().clone() for n, p in trainer.rollout.policy.named_parameters()}
    found = seen(trainer, 12)
    strategy = trainer.strategies[0]
    features, labels = (torch.cat(part) for part in zip(*found, strict=True))
    assert isinstance(strategy, NMC) and len(labels) >= 90
    for label in labels.unique():
        mean = features[labels == label].mean(0)
        torch.testing.assert_close(strategy.sums[label] / strategy.counts[label], mean, atol=1e-6, rtol=0)
    assert float(strategy.counts.sum()) == len(labels)
    for name, parameter in trainer.rollout.policy.named_parameters():
        assert torch.equal(parameter, before[name])


def test_the_head_that_is_evaluated_chooses_the_nearest_mean_and_is_taken_out_again(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, strategy=["nmc"], **ROWS)
    seen(trainer, 12)
    strategy, policy = trainer.strategies[0], trainer.rollout.policy
    assert isinstance(strategy, NMC)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    experience = trainer.rollout.collect(28)
    known = strategy.counts > 0
    means = strategy.sums[known] / strategy.counts[known].unsqueeze(1)
    with strategy.evaluation_view(trainer.context(), 0), torch.no_grad():
        outputs = policy.sequence(experience.chunk, experience.chunk.state)
    chosen = outputs.policy.argmax(-1)
    expected = known.nonzero().flatten()[torch.cdist(outputs.features.double(), means.expand(28, -1, -1)).argmin(-1)]
    assert float((chosen == expected).double().mean()) > 0.999  # but for ties of single precision
    assert len(chosen.unique()) > 1
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name])


def test_the_policy_that_is_trained_does_not_notice(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path / "plain", strategy=["finetune"])
    beside = make_trainer(tmp_path / "beside", strategy=["nmc"])
    plain.planned.plan = None  # equal to rounding only
    run(plain)
    run(beside)
    assert_identical(plain.rollout.policy.state_dict(), beside.rollout.policy.state_dict())
    assert beside.strategies[0].report()["classes"] > 0


def test_without_targets_the_classes_are_the_actions_that_were_taken(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, strategy=["nmc"], optimizer={"kind": "sgd", "lr": 0.0})
    actions = torch.cat([trainer.advance().chunk.action.flatten().clone() for _ in range(4)])  # type: ignore[union-attr]
    strategy = trainer.strategies[0]
    assert isinstance(strategy, NMC)
    assert strategy.counts.tolist() == torch.bincount(actions, minlength=len(strategy.counts)).tolist()


def test_where_features_move_old_ones_may_be_forgotten(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, strategy=[{"kind": "nmc", "decay": 0.5}])
    for _ in range(3):
        trainer.advance()
    strategy = trainer.strategies[0]
    assert isinstance(strategy, NMC) and float(strategy.counts.sum()) == pytest.approx(32 * 1.75)


def test_actions_without_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs Discrete actions"):
        make_trainer(tmp_path, strategy=["nmc"], stream={"tasks": [{"name": "p", "env": "Pendulum"}]})
