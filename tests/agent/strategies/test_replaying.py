"""What all strategies that replay share: what stands beside the live copies, the burn-in, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.agent.errors import ConfigError
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import inputs_of
from lifelong.agent.strategies.er import ER
from lifelong.envs.base import BatchedEnv
from tests.agent.support import (
    COUNT,
    filled,
    make_context,
    make_rollout,
    make_trainer,
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
        ConfigError, match=f"{kind} replays old data, which objective ppo .* actor_critic or supervised"
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
