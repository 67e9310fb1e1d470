"""What all strategies that replay share: what stands beside the live copies, the burn-in, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.agent.errors import ConfigError
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy, inputs_of
from lifelong.agent.runtime import checkpoint
from lifelong.agent.strategies.er import ER
from lifelong.agent.strategies.replaying import Replaying
from lifelong.envs.base import BatchedEnv
from lifelong.replay.buffer import SequenceReplay
from lifelong.replay.sampling import Dissimilar, Prioritised
from lifelong.replay.writing import NoveltyQuota
from tests.agent.support import (
    COUNT,
    assert_identical,
    filled,
    make_context,
    make_rollout,
    make_trainer,
    one_by_one,
    perturb,
    policy_for,
    random_chunk,
    random_truncations,
    run,
    task_env,
)

B, T = 6, 4


def er(**options: Any) -> ER:
    return ER(**{"capacity": 50, "start": 1, **options})


@pytest.mark.parametrize("cell", ["elstm", "gru"])
@pytest.mark.parametrize("burn_in", [1, 5])
def test_after_a_burn_in_the_loss_is_that_of_the_rest_from_the_memory_of_the_policy_as_it_is_now(
    cell: str, burn_in: int
) -> None:
    """Against the plain objective on a chunk that begins after the burn-in; episodes end in any of its steps."""
    steps = 8
    env = task_env({"kind": COUNT, "ten": 0.1, "length": 50}, copies=B)
    random_truncations(env, 2, 8)
    inner: BatchedEnv = env.envs[0]
    inner.set_params(torch.arange(B) == 3, length=4)
    policy = policy_for(env, cell=cell)
    ctx = make_context(policy, ActorCritic(policy.distribution, lam=0.9), B, steps)
    strategy = er(burn_in=burn_in)
    strategy.setup(ctx, 0)
    rollout = make_rollout(env, policy)
    rollout.collect(3)
    strategy.after_chunk(ctx, rollout.collect(steps))
    perturb(policy)
    before = strategy.replay.generator.get_state()
    drawn = strategy.draw(ctx, 10 * B)
    assert drawn is not None and drawn.steps == steps
    assert bool(drawn.truncated[: steps - burn_in].any()) and bool((drawn.weight.sum(0) == steps - burn_in).all())
    outputs = policy.sequence(drawn, drawn.state)
    got, _ = ctx.objective.loss(outputs, drawn, {})
    strategy.replay.generator.set_state(before)
    whole, _ = strategy.replay.sample(10 * B, 0)  # the same sequences
    whole = replace(whole, state=whole.state.chunk(2, -1)[0])
    with torch.no_grad():
        x_TBD = policy.encode(inputs_of(whole))
        _, state = policy.cell.sequence(x_TBD[:burn_in], whole.state, whole.is_init[:burn_in])
    rest = whole.map(lambda name, x, dim: x[burn_in:] if dim == 1 and not name.startswith("final_") else x)
    rest = replace(rest, state=state, final_value=whole.final_value[burn_in:], final_obs=whole.final_obs)
    inside = (whole.final_step >= burn_in) & (whole.final_step < steps)
    rest.final_step = torch.where(inside, whole.final_step - burn_in, steps - burn_in)
    expected, _ = ctx.objective.loss(policy.sequence(rest, rest.state), rest, {})
    torch.testing.assert_close(got, expected)
    parameters = list(policy.parameters())
    for a, b in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b)


def test_staleness_is_the_distance_of_the_memory_that_acting_had_after_the_burn_in_to_the_recomputed_one() -> None:
    strategy = er(burn_in=2)
    policy, ctx = filled(strategy, B, T)
    strategy.draw(ctx, B)
    assert strategy.report()["replay_staleness"] == pytest.approx(0.0, abs=1e-6)
    perturb(policy)
    drawn = strategy.draw(ctx, B)
    assert strategy.report()["replay_staleness"] > 1e-2
    assert drawn is not None and drawn.state.shape[-1] == policy.cell.state_size


def test_writing_by_class_needs_classes_and_by_regions_rows_for_each(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"strategy er: writing class_quota needs prediction tasks .* novelty_quota"):
        make_trainer(tmp_path, strategy=[{"kind": "er", "writing": "class_quota"}])
    spec = {"kind": "er", "capacity": 24, "start": 4, "writing": "novelty_quota"}
    with pytest.raises(ConfigError, match="regions is 7, and 24 sequences are kept; have at least four for a region"):
        make_trainer(tmp_path, strategy=[{**spec, "regions": 7}])
    trainer = make_trainer(tmp_path, strategy=[{**spec, "regions": 4}], stream={"task_id": "hidden"})
    run(trainer)
    (strategy,) = trainer.strategies
    assert isinstance(strategy, ER) and isinstance(strategy.replay.writing, NoveltyQuota)
    counts = torch.bincount(strategy.replay.writing.regions.now(strategy.replay.kind))
    held = counts[counts > 0]
    assert int(held.sum()) == 24 and 1 < len(held) <= 4


def test_a_capacity_of_the_whole_stream_is_a_perfect_memory() -> None:
    strategy = er(capacity=3 * B)
    filled(strategy, B, T)
    assert strategy.replay.size == strategy.replay.seen == 3 * B


@pytest.mark.parametrize("options", [{"writing": "task_quota"}, {"sampling": "task_balanced"}])
def test_policies_that_read_the_task_are_refused_where_it_is_hidden(options: dict[str, str], tmp_path: Path) -> None:
    spec = [{"kind": "er", **options}]
    with pytest.raises(ConfigError, match="strategy er needs the task id here"):
        make_trainer(tmp_path, strategy=spec, stream={"task_id": "hidden"})
    make_trainer(tmp_path, strategy=spec)


def test_under_a_quota_every_task_of_a_run_keeps_its_rows(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, strategy=[{"kind": "er", "capacity": 16, "start": 4, "writing": "task_quota", "burn_in": 1}]
    )
    run(trainer)
    (strategy,) = trainer.strategies
    assert isinstance(strategy, ER) and strategy.replay.storage is not None
    assert torch.bincount(strategy.replay.storage.task[-1]).tolist() == [8, 8]


@pytest.mark.parametrize("kind", ["agem", "clear", "er", "der", "der_pp"])
def test_with_ppo_it_is_refused_naming_the_objectives_that_work(kind: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"{kind} replays old data, which objective ppo .* actor_critic or q_learning or supervised"
    ):
        make_trainer(tmp_path, strategy=[{"kind": kind}], objective={"kind": "ppo"})


def test_sequences_stored_for_another_burn_in_are_refused() -> None:
    strategy, other = er(burn_in=1), er(burn_in=2)
    filled(strategy, B, T)
    with pytest.raises(ValueError, match=r"burn_in is 2, but a replay holds sequences stored for 1; keep that"):
        other.load_state_dict(strategy.state_dict())


def test_er_gives_live_and_replayed_steps_the_same_weight() -> None:
    """At ratio 1 the loss is half that of the live copies and half that of the replayed ones, each by itself."""
    strategy = er()
    policy, ctx = filled(strategy, B, T)
    perturb(policy)
    live = random_chunk(policy, T, B)
    both = strategy.transform_batch(ctx, live)
    assert both.copies == 2 * B

    def loss(copies: slice) -> torch.Tensor:
        part = both.select(torch.arange(2 * B)[copies])
        return ctx.objective.loss(policy.sequence(part, part.state), part, {})[0]

    torch.testing.assert_close(loss(slice(None)), (loss(slice(0, B)) + loss(slice(B, None))) / 2)
    assert strategy.extra_loss(ctx, both, policy.sequence(both, both.state), B) is None


def test_beside_l2_init_the_loss_of_each_is_there(tmp_path: Path) -> None:
    spec = [{"kind": "er", "capacity": 24, "start": 8}, {"kind": "l2_init", "strength": 1.0}]
    seen = run(make_trainer(tmp_path / "both", strategy=spec)).seen
    alone = run(make_trainer(tmp_path / "alone", strategy=spec[:1])).seen
    assert seen["strategy/l2_init/penalty"] > 0
    assert (
        seen["strategy/er/replay_age"] == alone["strategy/er/replay_age"] and seen["loss/total"] != alone["loss/total"]
    )


KEPT: dict[str, dict[str, Any]] = {
    "prioritised": {"sampling": "prioritised", "burn_in": 1},
    "inscl": {"sampling": "inscl", "writing": "task_quota"},
    "refresh": {"refresh": True, "writing": "ring"},
    "refresh-burn-in": {"refresh": True, "burn_in": 1, "storage": "compact"},
    "compact": {"storage": "compact"},
    "host": {"place": "host"},
    "disk": {"place": "disk"},
}


@pytest.mark.parametrize("kind", ["er", "der_pp", "clear", "agem"])
@pytest.mark.parametrize("kept", KEPT)
def test_with_every_way_of_keeping_and_drawing_a_resumed_run_is_the_uninterrupted_one(
    kept: str, kind: str, tmp_path: Path
) -> None:
    spec = [{"kind": kind, "capacity": 24, "start": 8, **KEPT[kept]}]
    whole = make_trainer(tmp_path / "whole", strategy=spec)
    run(whole)
    first = make_trainer(tmp_path / "cut", strategy=spec)
    run(first, until=224)
    second = make_trainer(tmp_path / "cut", strategy=spec)
    saved, _ = checkpoint.load(tmp_path / "cut" / "checkpoints")
    second.load_state_dict(saved)
    second.evaluations = first.evaluations
    run(second)
    assert_identical(whole.state_dict(), second.state_dict())


@pytest.mark.parametrize("kept", ["host", "disk"])
def test_where_sequences_lie_changes_nothing_that_is_learned(kept: str, tmp_path: Path) -> None:
    spec = {"kind": "er", "capacity": 24, "start": 8}
    here = make_trainer(tmp_path / "here", strategy=[spec])
    there = make_trainer(tmp_path / "there", strategy=[{**spec, **KEPT[kept]}])
    for each in (here, there):  # a plan has only what lies on the device
        one_by_one(each)
    run(here)
    run(there)
    assert_identical(here.rollout.policy.state_dict(), there.rollout.policy.state_dict())


@pytest.mark.parametrize("kind", ["er", "der_pp", "agem"])
def test_priorities_follow_the_errors_of_the_sequences_that_were_drawn(kind: str, tmp_path: Path) -> None:
    """Recomputed by hand with the parameters of the pass: with a learning rate of 0 they are those of now."""
    spec = {"kind": kind, "capacity": 24, "start": 8, "sampling": "prioritised", "writing": "ring", "priority_mix": 0.7}
    trainer = make_trainer(tmp_path, strategy=[spec], optimizer={"kind": "sgd", "lr": 0.0})
    run(trainer, until=320)
    (strategy,) = trainer.strategies
    assert isinstance(strategy, Replaying) and isinstance(strategy.sampling, Prioritised)
    priority = strategy.sampling.priority.clone()
    stored = strategy.replay.rows.take(torch.arange(24))
    policy, objective = trainer.rollout.policy, trainer.learner.objective
    outputs = policy.sequence(stored, stored.state)
    objective.loss(outputs, stored, {})
    assert outputs.error is not None
    error = outputs.error.detach().abs()
    expected = (0.7 * error.amax(0) + 0.3 * error.mean(0)).double()
    close = (priority - expected).abs() < 1e-5
    highest = priority == priority.max()  # new ones that nobody has drawn
    assert bool((close | highest).all()) and int(close.sum()) > 4
    assert strategy.drawn == []


def test_the_weight_of_what_is_drawn_by_priority_is_that_of_a_uniform_draw_in_the_mean() -> None:
    strategy = er(sampling="prioritised")
    policy, ctx = filled(strategy, B, T)
    assert isinstance(strategy.sampling, Prioritised)
    strategy.sampling.scored(torch.arange(3 * B), torch.linspace(0.1, 3.0, 3 * B))
    batch = strategy.transform_batch(ctx, random_chunk(policy, T, B))
    weight = batch.weight[:, B:]
    assert float(weight.mean()) == pytest.approx(1.0) and float(weight.std()) > 0.1
    rows = strategy.drawn[0][0]
    high, low = int(rows.argmax()), int(rows.argmin())
    assert float(weight[0, high]) < float(weight[0, low])


def test_an_objective_that_does_not_say_its_errors_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ActorCritic, "says_error", False)
    with pytest.raises(ConfigError, match="prioritised needs an objective that says how wrong it was"):
        make_trainer(tmp_path, strategy=[{"kind": "er", "sampling": "prioritised"}])


@pytest.mark.parametrize("burn_in", [0, 2])
def test_a_refreshed_start_is_the_memory_that_the_policy_has_at_the_end_of_the_sequence_before(burn_in: int) -> None:
    strategy = er(refresh=True, burn_in=burn_in, writing="ring", capacity=3 * B)
    policy, ctx = filled(strategy, B, T)
    replay = strategy.replay
    replay.stamp = 100 + torch.arange(3).repeat_interleave(B) * B * T  # `filled` writes all at one step
    assert replay.storage is not None
    size = policy.cell.state_size
    before = replay.storage.state[:, :size].clone()
    torch.testing.assert_close(before[B : 2 * B], end_of(policy, replay, torch.arange(B)))  # nothing has changed yet
    perturb(policy)
    strategy.draw(ctx, 1)
    drawn = strategy.report()
    for _ in range(40):
        strategy.draw(ctx, B)
    assert drawn["replay_correction"] >= 0 and strategy.report()["replay_correction"] >= 0
    after = replay.storage.state[:, :size]
    assert torch.equal(after[:B], before[:B])  # nothing came before the first ones
    torch.testing.assert_close(after[B : 2 * B], end_of(policy, replay, torch.arange(B)))
    torch.testing.assert_close(after[2 * B :], end_of(policy, replay, torch.arange(B, 2 * B)))
    assert float((after[B:] - before[B:]).norm(dim=-1).min()) > 1e-3


def end_of(policy: Policy, replay: SequenceReplay, rows: torch.Tensor) -> torch.Tensor:
    """The memory after the sequences in `rows`, from the one that is stored at their start."""
    chunk = replay.rows.take(rows)
    x_TBD = policy.encode(inputs_of(chunk))
    with torch.no_grad():
        return policy.cell.sequence(x_TBD, chunk.state[:, : policy.cell.state_size], chunk.is_init)[1]


def test_tasks_are_compared_by_what_the_heads_read_and_the_unlike_one_is_replayed(tmp_path: Path) -> None:
    spec = [{"kind": "er", "capacity": 48, "start": 8, "sampling": "inscl", "writing": "task_quota"}]
    trainer = make_trainer(tmp_path, strategy=spec)
    run(trainer)
    (strategy,) = trainer.strategies
    assert isinstance(strategy, ER) and isinstance(strategy.sampling, Dissimilar)
    assert strategy.sampling.distance[1] == 0.0 < strategy.sampling.distance[0]  # the second task is in training
    drawn = strategy.draw(trainer.context(), 64)
    assert drawn is not None and bool((drawn.task[-1] == 0).all())


@pytest.mark.parametrize("storage", ["exact", "compact"])
def test_a_bound_in_mib_keeps_as_many_sequences_as_fit(storage: str, tmp_path: Path) -> None:
    spec = [{"kind": "er", "mib": 1, "storage": storage, "start": 8}]
    trainer = make_trainer(tmp_path, strategy=spec)
    run(trainer, until=64)
    (strategy,) = trainer.strategies
    assert isinstance(strategy, ER) and strategy.replay.storage is not None
    takes = sum(tensor.nbytes for tensor in vars(strategy.replay.storage).values())
    assert 0.75 * 2**20 < takes < 1.1 * 2**20 and strategy.replay.capacity == strategy.capacity > 1000
