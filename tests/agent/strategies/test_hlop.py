"""HLOP: the rule against its definition, what it finds against PCA, and frozen rows that never change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.strategies.hlop import HLOP
from tests.agent.strategies.test_taps import B, T, consolidated, old_experience, policy_with
from tests.agent.support import make_context

TAP = "cell.input"


def ready(**options: Any) -> tuple[HLOP, int]:
    """A strategy that has seen nothing, and the width of its tap."""
    policy = policy_with("elstm", "mlp")
    strategy = HLOP(**options)
    strategy.setup(make_context(policy, ActorCritic(policy.distribution), B, T), 0)
    return strategy, strategy.taps.joint(TAP, strategy.parameters).shape[1]


def task(width: int, seed: int, rank: int = 8) -> tuple[Tensor, torch.Generator]:
    """A mixing matrix [rank, n] with scales that fall over one order of magnitude, and a generator of samples."""
    g = torch.Generator().manual_seed(seed)
    directions, _ = torch.linalg.qr(torch.randn(width, rank, generator=g))
    return torch.logspace(0, -1, rank).unsqueeze(1) * directions.T, g


def draw(mixing: Tensor, g: torch.Generator, count: int = 64, noise: float = 0.02) -> Tensor:
    """[count, n] inputs: the task's directions and a little noise in all of them."""
    clean = torch.randn(count, len(mixing), generator=g) @ mixing
    return clean + noise * torch.randn(count, mixing.shape[1], generator=g)


def look(strategy: HLOP, x_MN: Tensor) -> None:
    strategy.learn(TAP, x_MN.shape[1], lambda rows: rows @ (x_MN.T @ x_MN) / x_MN.square().sum())


def residual(held_nk: Tensor, x_MN: Tensor) -> float:
    """Share of the energy that is not in the span of some columns."""
    q, _ = torch.linalg.qr(held_nk.double())
    x = x_MN.double()
    return float((x - x @ q @ q.T).square().sum() / x.square().sum())


def best(x_MN: Tensor, count: int) -> float:
    """The same for the leading principal directions, by numpy's singular values."""
    s = torch.linalg.svdvals(x_MN.double()).square()
    return float(s[count:].sum() / s.sum())


def test_a_step_is_the_hebbian_and_anti_hebbian_rule_sample_by_sample() -> None:
    strategy, width = ready(iterations=1, momentum=0.0, rate=0.3, per_task=0.1)
    frozen, _ = torch.linalg.qr(torch.randn(width, 2, generator=torch.Generator().manual_seed(0)))
    strategy.protected[TAP], strategy.rooms[TAP] = frozen, 1 - 2 / width
    x_MN = draw(*task(width, 1))
    strategy._begin(TAP, frozen)
    rows = strategy.rows[TAP].clone()
    change = torch.zeros_like(rows)
    for x in x_MN:
        y, y_frozen = rows @ x, frozen.T @ x
        back = rows.T @ y + frozen @ y_frozen  # what all rows together make of it
        change += torch.outer(y, x) - torch.outer(y, back)
    look(strategy, x_MN)
    expected = rows + 0.3 * change / x_MN.square().sum()
    assert len(rows) == int(0.1 * width)
    torch.testing.assert_close(strategy.rows[TAP], expected, rtol=1e-4, atol=1e-6)


def test_the_rows_come_within_five_percent_of_the_principal_directions() -> None:
    strategy, width = ready(per_task=0.26)
    count = int(0.26 * width)
    mixing, g = task(width, 2)
    for _ in range(200):
        look(strategy, draw(mixing, g))
    rows, test = strategy.rows[TAP], draw(mixing, g, 4096)
    got, optimum = residual(rows.T, test), best(test, count)
    print(f"\nresidual {got:.5f}, PCA {optimum:.5f}")
    assert got <= 1.05 * optimum
    assert float((rows @ rows.T - torch.eye(count)).abs().max()) < 5e-3
    assert float(strategy.residual[TAP]) == pytest.approx(got, rel=0.5)


def test_new_rows_learn_what_the_frozen_ones_do_not_hold() -> None:
    strategy, width = ready(per_task=0.26, room=0.2)
    first, g = task(width, 3)
    for _ in range(200):
        look(strategy, draw(first, g))
    strategy.consolidate(None, lambda chunks: iter([]))  # type: ignore[arg-type]
    frozen = strategy.protected[TAP].clone()
    assert frozen.shape[1] <= int(0.26 * width)
    torch.testing.assert_close(frozen.T @ frozen, torch.eye(frozen.shape[1]), rtol=0, atol=1e-5)
    second, g = task(width, 4)
    for _ in range(300):
        look(strategy, draw(second, g))
    rows, test = strategy.rows[TAP], draw(second, g, 4096)
    rest = test - test @ frozen @ frozen.T
    got = residual(torch.cat([frozen, rows.T], 1), test)
    optimum = best(rest, len(rows)) * float(rest.square().sum() / test.square().sum())
    print(
        f"\nresidual {got:.5f}, PCA of the rest {optimum:.5f}, largest overlap {float((rows @ frozen).abs().max()):.1e}"
    )
    assert got <= 1.05 * optimum
    assert float((rows @ frozen).abs().max()) < 2e-2
    strategy.consolidate(None, lambda chunks: iter([]))  # type: ignore[arg-type]
    both = strategy.protected[TAP]
    assert torch.equal(both[:, : frozen.shape[1]], frozen)  # bit for bit
    torch.testing.assert_close(both.T @ both, torch.eye(both.shape[1]), rtol=0, atol=1e-5)


def test_rows_without_energy_are_not_kept_and_there_are_never_more_than_the_budget_has() -> None:
    strategy, width = ready(per_task=0.5, room=0.3, threshold=0.99)
    ranks = []
    for seed in range(4):
        mixing, g = task(width, seed, rank=3)
        for _ in range(200):
            look(strategy, draw(mixing, g, noise=0.0))
        strategy.consolidate(None, lambda chunks: iter([]))  # type: ignore[arg-type]
        ranks.append(strategy.protected[TAP].shape[1])
    assert ranks[0] <= 3 < int(0.5 * width) and ranks == sorted(ranks)
    assert ranks[-1] <= int(0.7 * width) and strategy.report()[f"rank/{TAP}"] == pytest.approx(ranks[-1])


def test_it_learns_while_it_trains_and_asks_for_no_fresh_experience() -> None:
    policy = policy_with("gru", "mlp")
    strategy = HLOP(period=2, per_task=0.5)
    ctx = make_context(policy, ActorCritic(policy.distribution), B, T)
    strategy.setup(ctx, 0)
    assert strategy.fresh_sequences(B) == 0
    assert HLOP(elementwise="importance").fresh_sequences(B) > 0
    old = old_experience(policy)
    strategy.after_chunk(ctx, old)
    assert strategy.rows.keys() == strategy.taps.weights.keys()
    once = {tap: rows.clone() for tap, rows in strategy.rows.items()}
    strategy.after_chunk(ctx, old)
    assert all(torch.equal(rows, once[tap]) for tap, rows in strategy.rows.items())
    strategy.after_chunk(ctx, old)
    assert not any(torch.equal(rows, once[tap]) for tap, rows in strategy.rows.items())

    def refuse(chunks: int) -> Any:
        raise AssertionError("asked for experience")

    strategy.on_task_end(ctx, refuse)
    assert strategy.protected.keys() == strategy.taps.weights.keys() and not strategy.rows


def test_long_and_short_chunks_go_two_ways_to_the_same_rows() -> None:
    """By second moments where there are more steps than inputs, else by the vectors themselves."""
    policy, found = policy_with("elstm", "mlp"), []
    for copies in (B, 1):  # what the context says decides, the experience is the same
        strategy = HLOP(per_task=0.5)
        ctx = make_context(policy, ActorCritic(policy.distribution), copies, T)
        strategy.setup(ctx, 0)
        for _ in range(20):
            strategy.after_chunk(ctx, old_experience(policy))
        found.append(strategy)
    assert all(T < rows.shape[1] <= B * T for rows in found[0].rows.values())
    for tap, rows in found[0].rows.items():
        torch.testing.assert_close(found[1].rows[tap], rows, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[1].residual[tap], found[0].residual[tap], rtol=1e-2, atol=1e-4)


def test_what_was_never_seen_is_not_protected() -> None:
    policy = policy_with("elstm", "mlp")
    strategy = HLOP()
    consolidated(strategy, policy)
    deltas = {n: torch.ones_like(p) for n, p in policy.named_parameters()}
    strategy.transform_update(make_context(policy, ActorCritic(policy.distribution), B, T), deltas)
    assert all(bool((delta == 1).all()) for delta in deltas.values())


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"momentum": 1.0}, {"threshold": 0.0}, {"per_task": 0.0}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        HLOP(**options)
