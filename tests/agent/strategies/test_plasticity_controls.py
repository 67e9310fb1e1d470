"""shrink_perturb, weight_clipping, freeze_at, reset_on_task: what they do to parameters, against closed forms."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.errors import ConfigError
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.initial import initial_bounds
from lifelong.agent.strategies.shrink_perturb import ShrinkPerturb
from lifelong.agent.strategies.weight_clipping import WeightClipping
from tests.agent.support import assert_identical, make_context, make_policy, make_trainer, one_by_one, run

MLP = {"encoder": {"kind": "mlp", "hidden": [12]}}
TIME = {"cell.bias", "cell.output_bias", "cell.weight_recurrent"}


def context_of(policy: Policy, **changes: Any) -> Context:
    return make_context(policy, ActorCritic(policy.distribution), 4, 4, **changes)


def parameters_of(policy: Policy) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}


# ---- new parameters --------------------------------------------------------------------------------------------------


def test_redrawn_parameters_are_those_of_a_new_policy_and_disturb_no_other_randomness() -> None:
    policy = make_policy("elstm", 6, **MLP)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = policy.redrawn(torch.Generator().manual_seed(1))
    assert torch.equal(torch.rand(3), expected)
    again = policy.redrawn(torch.Generator().manual_seed(1))
    other = policy.redrawn(torch.Generator().manual_seed(2))
    assert_identical(one, again)
    assert {n: p.shape for n, p in one.items()} == {n: p.shape for n, p in policy.named_parameters()}
    drawn = [name for name in one if not torch.equal(one[name], other[name])]
    assert "cell.weight_input" in drawn and "encoder.layers.0.weight" in drawn
    gram = one["encoder.layers.0.weight"].T @ one["encoder.layers.0.weight"]  # orthogonal with gain sqrt(2)
    torch.testing.assert_close(gram, 2 * torch.eye(3), rtol=0, atol=1e-5)
    assert float(one["cell.bias"][:6].min()) >= 0 and float(one["cell.bias"][:6].max()) <= 4


# ---- shrink and perturb ----------------------------------------------------------------------------------------------


def test_without_noise_weights_shrink_geometrically_and_what_sets_the_memory_stays() -> None:
    policy = make_policy("elstm", 6, **MLP)
    before = parameters_of(policy)
    strategy = ShrinkPerturb(shrink=0.01, noise=0.0)
    strategy.setup(context_of(policy), 0)
    for _ in range(50):
        strategy.after_update(context_of(policy))
    for name, value in parameters_of(policy).items():
        torch.testing.assert_close(value, before[name] * (1.0 if name in TIME else 0.99**50))


def test_without_a_gradient_weights_settle_at_the_stated_share_of_their_initial_deviation() -> None:
    policy = make_policy("gru", 40, observation=30)
    strategy = ShrinkPerturb(shrink=0.05, noise=0.2)
    strategy.setup(context_of(policy), 0)
    for _ in range(150):
        strategy.after_update(context_of(policy))
    settled = 0.2 / (1 - 0.95**2) ** 0.5  # times 40^-0.5 / sqrt(3), the deviation of the uniform initialisation
    deviation = float(policy.cell.hidden.weight.detach().std())  # type: ignore[union-attr, operator]
    assert deviation == pytest.approx(settled * 40**-0.5 / 3**0.5, rel=0.05)
    assert settled == pytest.approx(0.2 / (2 * 0.05) ** 0.5, rel=0.03)  # what the docstring says


def test_at_boundaries_it_acts_at_every_one_but_the_first_and_at_no_update(tmp_path: Path) -> None:
    spec = {"kind": "shrink_perturb", "at": "boundary", "shrink": 0.4, "noise": 0.0}
    trainer = make_trainer(tmp_path, strategy=[spec], optimizer={"kind": "sgd", "lr": 0.0})
    before = parameters_of(trainer.rollout.policy)
    run(trainer)
    for name, value in parameters_of(trainer.rollout.policy).items():
        torch.testing.assert_close(value, before[name] * (1.0 if name in TIME else 0.6))


def test_at_boundaries_that_are_hidden_it_is_refused_in_a_sentence(tmp_path: Path) -> None:
    spec = [{"kind": "shrink_perturb", "at": "boundary"}]
    with pytest.raises(
        ConfigError, match=r"needs task boundaries, but stream\.boundaries is hidden; set it to given or detected$"
    ):
        make_trainer(tmp_path, strategy=spec, stream={"boundaries": "hidden"})


# ---- weight clipping -------------------------------------------------------------------------------------------------


def test_the_bound_of_a_uniform_initialisation_is_its_own_and_that_of_small_or_zero_layers_torchs_default() -> None:
    policy = make_policy("gru", 64, observation=50, encoder={"kind": "mlp", "hidden": [32]})
    bounds = initial_bounds(policy, 0)
    assert bounds["cell.hidden.weight"] == pytest.approx(64**-0.5, rel=0.03)
    assert bounds["actor.linear.weight"] == pytest.approx(64**-0.5)  # begins a hundred times smaller
    assert bounds["actor.linear.bias"] == pytest.approx(64**-0.5)
    assert bounds["encoder.layers.0.bias"] == pytest.approx(50**-0.5)
    assert all(bound > 0 for bound in bounds.values())


@pytest.mark.parametrize("recurrence", [False, True])
def test_after_every_update_no_weight_is_beyond_its_bound(recurrence: bool, tmp_path: Path) -> None:
    spec = {"kind": "weight_clipping", "kappa": 0.5, "recurrence": recurrence}
    optimizer = {"kind": "sgd", "lr": 20.0}
    objective = {"kind": "ppo", "epochs": 2, "minibatches": 2}
    trainer = make_trainer(tmp_path, strategy=[spec], optimizer=optimizer, objective=objective, policy=MLP)
    clipping, learner = trainer.strategies[0], trainer.learner
    assert isinstance(clipping, WeightClipping)
    beyond: list[bool] = []

    class Look:
        def after_update(self, ctx: Context) -> None:
            beyond.append(any(bool((p.abs() > bound).any()) for p, bound in clipping.parameters))

    one_by_one(trainer)
    before = parameters_of(learner.policy)
    learner.after_hooks.append(Look())  # type: ignore[arg-type]
    seen = run(trainer).seen
    assert len(beyond) == 4 * 12 and not any(beyond)
    assert 0 < seen["strategy/weight_clipping/clipped"] < 1
    names = {name for name, p in learner.policy.named_parameters() if any(p is q for q, _ in clipping.parameters)}
    assert names == before.keys() - (set() if recurrence else TIME)
    free = [float(p.abs().max()) for n, p in learner.policy.named_parameters() if n not in names]
    assert recurrence or max(free) > 2


@pytest.mark.parametrize("kind", ["shrink_perturb", "weight_clipping"])
def test_scales_and_shifts_of_a_norm_are_no_weights(kind: str, tmp_path: Path) -> None:
    policy = {"encoder": {"kind": "mlp", "hidden": [12], "norm": "layer"}}
    spec = {"kind": kind, **({"shrink": 0.5} if kind == "shrink_perturb" else {"kappa": 1e-9})}
    trainer = make_trainer(tmp_path, strategy=[spec], policy=policy, optimizer={"kind": "sgd", "lr": 0.0})
    before = parameters_of(trainer.rollout.policy)
    run(trainer)
    after = parameters_of(trainer.rollout.policy)
    assert {name for name in after if torch.equal(after[name], before[name])} >= {
        "encoder.layers.1.weight",
        "encoder.layers.1.bias",
    }
    assert not torch.equal(after["encoder.layers.0.weight"], before["encoder.layers.0.weight"])


# ---- freezing --------------------------------------------------------------------------------------------------------


def learned_state(trainer: Trainer) -> Any:
    return copy.deepcopy([trainer.rollout.policy.state_dict(), trainer.learner.optimizer.state_dict()])


@pytest.mark.parametrize("spec", [{"step": 100}, {"tasks": 1}], ids=["step", "task"])
@pytest.mark.parametrize("objective", ["actor_critic", "ppo"])
def test_nothing_moves_after_the_freeze_bit_for_bit_and_the_carry_lives_on(
    objective: str, spec: dict[str, Any], tmp_path: Path
) -> None:
    strategy = [{"kind": "freeze_at", **spec}, {"kind": "shrink_perturb", "noise": 0.1}]
    trainer = make_trainer(tmp_path, strategy=strategy, objective={"kind": objective})
    until = 128 if "step" in spec else 192
    before = learned_state(trainer)
    run(trainer, until=until)
    frozen, carry = learned_state(trainer), copy.deepcopy(trainer.learner.engine.state_dict())
    assert not torch.equal(before[0]["cell.weight_input"], frozen[0]["cell.weight_input"])
    seen = run(trainer).seen
    assert trainer.step == 384 and seen["strategy/freeze_at/frozen"] == 1.0
    assert_identical(learned_state(trainer), frozen)
    assert not torch.equal(carry["weight"], trainer.learner.engine.state_dict()["weight"])


def test_up_to_the_freeze_the_run_is_the_one_without_it(tmp_path: Path) -> None:
    frozen = make_trainer(tmp_path / "a", strategy=[{"kind": "freeze_at", "step": 96}])
    free = make_trainer(tmp_path / "b")
    free.planned.plan = None  # equal to rounding only
    run(frozen)
    run(free, until=96)
    assert_identical(learned_state(frozen), learned_state(free))


def test_a_chunk_that_is_not_learned_from_is_not_stored(tmp_path: Path) -> None:
    strategy = [{"kind": "freeze_at", "step": 96}, {"kind": "clear", "capacity": 1000, "start": 8}]
    trainer = make_trainer(tmp_path, strategy=strategy)
    run(trainer)
    assert trainer.strategies[1].report()["replay_size"] == 3 * 8


# ---- resetting -------------------------------------------------------------------------------------------------------

WHAT = {"all": "", "head": "actor.", "critic": "critic.", "optimizer": "nothing"}


def at_the_border(folder: Path, what: str) -> Trainer:
    """A trainer that learned for a task, and has just heard that the next one begins."""
    changes = {"policy": {**MLP, "reset_memory_on": "never"}, "optimizer": {"kind": "adam", "lr": 0.01}}
    trainer = make_trainer(folder, strategy=[{"kind": "reset_on_task", "what": what}], **changes)
    run(trainer, until=192)
    return trainer


@pytest.mark.parametrize("what", WHAT)
def test_a_reset_reaches_the_parameters_it_names_with_their_optimiser_state_and_no_others(
    what: str, tmp_path: Path
) -> None:
    trainer = at_the_border(tmp_path, what)
    policy, optimizer, rollout = trainer.rollout.policy, trainer.learner.optimizer, trainer.rollout
    before, state = parameters_of(policy), copy.deepcopy(rollout.state_dict()["state"])
    fresh = policy.redrawn(copy.deepcopy(trainer.strategies[0].generator))  # type: ignore[attr-defined]
    assert len(optimizer.state) == len(before) and bool(state.any())
    trainer.follow_stream()
    for name, parameter in policy.named_parameters():
        reset = name.startswith(WHAT[what])
        assert torch.equal(parameter, fresh[name] if reset else before[name]), name
        assert (parameter in optimizer.state) == (not reset and what != "optimizer")
    carry = trainer.learner.engine.state_dict()["weight"]
    assert bool(carry.any()) == bool(rollout.state_dict()["state"].any()) == (what != "all")
    assert trainer.strategies[0].report() == {"resets": 1.0}


def test_a_reset_agent_is_a_fresh_build_in_distribution(tmp_path: Path) -> None:
    large = {"policy": {"encoder": {"kind": "mlp", "hidden": [64]}, "cell": {"kind": "elstm", "size": 64}}}
    trainer = make_trainer(tmp_path / "a", strategy=[{"kind": "reset_on_task"}], optimizer={"lr": 0.1}, **large)
    run(trainer, until=192)
    trainer.follow_stream()
    after, fresh = (parameters_of(t.rollout.policy) for t in (trainer, make_trainer(tmp_path / "b", seed=7, **large)))
    for name, value in after.items():
        for power in (1, 2):  # moments
            got, expected = float((value**power).mean()), float((fresh[name] ** power).mean())
            assert got == pytest.approx(expected, rel=0.3, abs=0.02), name
    assert not torch.equal(after["cell.weight_input"], fresh["cell.weight_input"])


@pytest.mark.parametrize("stop", [96, 192, 256])
def test_what_a_reset_draws_is_the_same_after_a_resume(stop: int, tmp_path: Path) -> None:
    strategy = [{"kind": "reset_on_task", "every": 64}]
    whole = make_trainer(tmp_path / "whole", strategy=strategy, stream={"boundaries": "hidden"})
    run(whole)
    cut = make_trainer(tmp_path / "cut", strategy=strategy, stream={"boundaries": "hidden"})
    run(cut, until=stop)
    resumed = make_trainer(tmp_path / "cut", strategy=strategy, stream={"boundaries": "hidden"})
    saved, _ = checkpoint.load(tmp_path / "cut" / "checkpoints")
    resumed.load_state_dict(saved)
    resumed.evaluations = cut.evaluations
    run(resumed)
    assert whole.strategies[0].report() == {"resets": 5.0}
    assert_identical(whole.state_dict(), resumed.state_dict())
