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
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.build import build
from lifelong.agent.schedules import Ramp
from lifelong.agent.schema import schema
from tests.agent.support import assert_identical, make_config, make_trainer, run

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
def test_every_chunk_is_learned_with_the_value_of_the_step_it_begins_at(shape: str, kind: str, tmp_path: Path) -> None:
    ramp = {**LR, "shape": shape}
    trainer = make_trainer(tmp_path, **{**PPO, "optimizer": {"kind": kind, "lr": ramp}})
    expected = Ramp.of(ramp)
    seen = []
    step = trainer.learner.optimizer.step

    def watched(*args: Any) -> Any:
        objective: Any = trainer.learner.objective
        seen.append((trainer.learner.optimizer.param_groups[0]["lr"], objective.clip, objective.entropy_weight))
        return step(*args)

    trainer.learner.optimizer.step = watched  # type: ignore[method-assign]
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
