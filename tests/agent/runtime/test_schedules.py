"""Options that change over a run: learning rate, weights of the loss, clip range."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from lifelong.agent.config import check, to_dict
from lifelong.agent.errors import ConfigError
from lifelong.agent.runtime import checkpoint, learner
from lifelong.agent.runtime.build import build
from lifelong.agent.runtime.planned.step import make_step
from lifelong.agent.schedules import Ramp
from lifelong.agent.schema import schema
from tests.agent.support import assert_identical, make_config, make_trainer, one_by_one, run

LR = {"from": 1e-2, "to": 1e-3, "over": 192}
PPO: dict[str, Any] = {
    "optimizer": {"kind": "adam", "lr": LR},
    "objective": {
        "kind": "ppo",
        "clip": {"from": 0.3, "to": 0.1, "over": 96, "after": 96},
        "entropy_weight": {"from": 0.1, "to": 0.001, "over": 192, "shape": "exponential"},
    },
}


def test_a_ramp_is_constant_before_and_after_and_has_its_shape_between() -> None:
    linear = Ramp.of({"from": 2, "to": 1, "over": 100, "after": 50})
    assert [linear.at(step) for step in (0, 50, 75, 100, 150, 10**9)] == [2.0, 2.0, 1.75, 1.5, 1.0, 1.0]
    torch_cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer := torch.optim.SGD([torch.zeros(1, requires_grad=True)], 2.0), 10, eta_min=0.5
    )
    cosine = Ramp.of({"from": 2, "to": 0.5, "over": 1000, "shape": "cosine"})
    for step in range(0, 1001, 100):
        assert math.isclose(cosine.at(step), torch_cosine.get_last_lr()[0], rel_tol=1e-9)
        optimizer.step()
        torch_cosine.step()
    exponential = Ramp.of({"from": 1e-2, "to": 1e-4, "over": 100, "shape": "exponential"})
    assert math.isclose(exponential.at(50), 1e-3) and exponential.at(100) == 1e-4


@pytest.mark.parametrize(("shape", "kind"), [("linear", "sgd"), ("cosine", "rmsprop"), ("exponential", "adam")])
def test_every_chunk_is_learned_with_the_value_of_the_step_it_begins_at(
    shape: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp = {**LR, "shape": shape}
    trainer = make_trainer(tmp_path, **{**PPO, "optimizer": {"kind": kind, "lr": ramp}})
    expected = Ramp.of(ramp)
    seen = []

    def watched(optimizer: torch.optim.Optimizer) -> None:
        objective: Any = trainer.learner.objective
        seen.append((optimizer.param_groups[0]["lr"], objective.clip, objective.entropy_weight))
        make_step(optimizer)

    monkeypatch.setattr(learner, "make_step", watched)
    one_by_one(trainer)  # a plan makes the steps itself (see test_plan)
    log = run(trainer)
    assert len(seen) == 12 * 16
    for index, (lr, clip, entropy) in enumerate(seen):
        begun = 32 * (index // 16)
        assert lr == expected.at(begun)
        assert math.isclose(clip, 0.3 - 0.2 * min(1, max(0, begun - 96) / 96))
        assert math.isclose(entropy, 0.1 * 0.01 ** min(1, begun / 192))
    assert log.seen["schedule/lr"] == 1e-3 and log.seen["schedule/clip"] == 0.1


def test_a_scheduled_run_resumes_bit_for_bit_and_is_another_than_a_constant_one(tmp_path: Path) -> None:
    whole, first, second = (make_trainer(tmp_path / n, **PPO) for n in ("whole", "cut", "cut"))
    run(whole)
    run(first, until=96)
    saved, _ = checkpoint.load(tmp_path / "cut" / "checkpoints")
    second.load_state_dict(saved)
    second.evaluations = first.evaluations
    run(second)
    assert_identical(whole.state_dict(), second.state_dict())
    constant = make_trainer(tmp_path / "constant", objective={"kind": "ppo"}, optimizer={"kind": "adam", "lr": 1e-2})
    run(constant)
    pairs = zip(constant.rollout.policy.parameters(), whole.rollout.policy.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("lr", "sentence"),
    [
        ({"from": 1e-3, "to": 0}, "lr has no over; a schedule is {from: 1e-3, to: 0, over: 1_000_000}"),
        ({"to": 0, "over": 5}, "lr has no from"),
        ({"from": 1e-3, "to": -1, "over": 5}, "lr has to -1; it must be"),
        ({"from": 1e-3, "to": 0, "over": 0}, "lr has over 0; it must be an integer of at least 1"),
        ({"from": 1e-3, "to": 0, "over": 5, "after": 0.5}, "lr has after 0.5; it must be an integer of at least 0"),
        ({"from": 1e-3, "to": 0, "ovr": 5}, r"unknown key 'ovr'.*did you mean 'over'"),
        ({"from": 1e-3, "to": 0, "over": 5, "shape": "cosin"}, r"unknown shape 'cosin'.*did you mean 'cosine'"),
        ({"from": 1e-3, "to": 0, "over": 5, "shape": "exponential"}, "from 0.001 to 0; both must be above 0"),
    ],
)
def test_a_mistake_in_a_schedule_is_one_sentence(lr: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence) as refusal:
        build(make_config(optimizer={"kind": "adam", "lr": lr}), tmp_path)
    assert "\n" not in str(refusal.value) and "optimizer adam: " in str(refusal.value)


def test_what_cannot_be_scheduled_is_refused_as_before(tmp_path: Path) -> None:
    ramp = {"from": 1, "to": 2, "over": 5}
    for changes, option in (
        ({"objective": {"kind": "ppo", "epochs": ramp}}, "epochs"),
        ({"optimizer": {"kind": "adam", "eps": ramp}}, "eps"),
    ):
        with pytest.raises(ConfigError, match=f"{option} is .* it must be"):
            build(make_config(**changes), tmp_path)


def test_the_schema_knows_schedules() -> None:
    good = to_dict(check({**to_dict(make_config()), **PPO}))
    jsonschema.validate(good, schema())
    for bad in ({"from": 1, "to": 0}, {"from": 1, "to": 0, "over": 1, "by": 2}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**good, "optimizer": {"kind": "adam", "lr": bad}}, schema())


SHORT: dict[str, Any] = {"steps": 12, "short_first": {"steps": 2, "over": 240}}


def test_chunks_grow_and_neither_acting_nor_the_carry_notices(tmp_path: Path) -> None:
    still = {"optimizer": {"kind": "sgd", "lr": 0.0}, "stream": {"steps_per_task": 960}}
    growing = make_trainer(tmp_path / "growing", rollout=SHORT, **still)
    lengths = []
    while growing.step < 800:  # within the first task
        begun = growing.step
        experience = growing.advance()
        assert experience is not None and experience.chunk.steps == round(2 + 10 * min(1, begun / 240))
        lengths.append(experience.chunk.steps)
    assert lengths[0] == 2 and lengths[-1] == 12 and lengths == sorted(lengths) and len(set(lengths)) > 6
    other = make_trainer(tmp_path / "other", rollout={"steps": 1}, **still)
    other.planned.rounds = lambda trainer: 1  # type: ignore[method-assign]
    while other.step < growing.step:
        other.advance()
    ours, theirs = (t.learner.engine.state_dict() for t in (growing, other))
    for name, carry in ours.items():  # the parameters are the same, so it does not matter where the history was cut
        torch.testing.assert_close(carry, theirs[name], rtol=1e-4, atol=1e-6)
    assert_identical(growing.rollout.state_dict(), other.rollout.state_dict())


def test_a_run_of_growing_chunks_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, first, second = (make_trainer(tmp_path / n, rollout=SHORT) for n in ("whole", "cut", "cut"))
    log = run(whole)
    assert log.seen["schedule/chunk_steps"] == 12.0
    run(first, until=96)
    saved, _ = checkpoint.load(tmp_path / "cut" / "checkpoints")
    second.load_state_dict(saved)
    second.evaluations = first.evaluations
    run(second)
    assert_identical(whole.state_dict(), second.state_dict())


def test_what_needs_chunks_of_one_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"strategy clear has sequences of one length.*short_first\.steps to 0"):
        make_trainer(tmp_path, rollout=SHORT, strategy=["clear"])
    with pytest.raises(ConfigError, match=r"short_first\.steps is 20, above rollout\.steps, 12"):
        make_config(rollout={"steps": 12, "short_first": {"steps": 20}})
    with pytest.raises(ConfigError, match=r"runtime\.env_runners, 2, give chunks of one length"):
        make_config(rollout=SHORT, runtime={"backend": "ray", "env_runners": 2})
