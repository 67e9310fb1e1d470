"""Projections by second moments: against recursive least squares, null spaces and the formulas of the papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.adam_nscl import AdamNSCL
from lifelong.agent.strategies.gpm import GPM, append_basis
from lifelong.agent.strategies.owm import OWM
from lifelong.agent.strategies.projection import CovarianceProjection, Projection
from lifelong.agent.strategies.recurrent_projection import RecurrentProjection
from tests.agent.strategies.test_gpm import old_experience
from tests.agent.support import make_context, make_policy

B, T = 6, 5


def ready(strategy: Projection, seeds: tuple[int, ...] = (0,)) -> tuple[Policy, list[Experience]]:
    """A policy, and the strategy after a boundary for each of some experiences."""
    policy = make_policy("elstm", 12, observation=20)
    ctx = make_context(policy, ActorCritic(policy.distribution), B, T)
    strategy.setup(ctx, 0)
    experiences = []
    for seed in seeds:
        old = old_experience(policy)
        old.chunk.obs[:] = torch.randn(old.chunk.obs.shape, generator=torch.Generator().manual_seed(seed)) @ low_rank(
            old.chunk.obs.shape[-1], 3, seed
        )
        strategy.on_task_end(ctx, lambda chunks, old=old: iter([old] * chunks))
        experiences.append(old)
    return policy, experiences


def low_rank(n: int, rank: int, seed: int) -> Tensor:
    """[n, n] of a rank."""
    g = torch.Generator().manual_seed(100 + seed)
    return torch.randn(n, rank, generator=g) @ torch.randn(rank, n, generator=g) / n


def update(policy: Policy, strategy: Projection, seed: int = 5) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A random update, before and after."""
    g = torch.Generator().manual_seed(seed)
    before = {n: torch.randn(p.shape, generator=g) for n, p in policy.named_parameters()}
    after = {n: d.clone() for n, d in before.items()}
    strategy.transform_update(make_context(policy, ActorCritic(policy.distribution), B, T), after)
    return before, after


def test_owm_is_the_recursive_least_squares_of_the_paper() -> None:
    owm = OWM(alpha=0.05, chunks=1)
    policy, experiences = ready(owm, seeds=(0, 1))
    before, after = update(policy, owm)
    for tap in owm.taps.weights:
        P = torch.eye(owm.taps.joint(tap, before).shape[1], dtype=torch.float64)
        for experience in experiences:
            vectors = owm.taps.vectors(experience)[tap].double()
            for x in vectors / len(vectors) ** 0.5:  # every one a batch of the paper: P -= k k^T / (alpha + x^T k)
                k = P @ x
                P -= torch.outer(k, k) / (0.05 + x @ k)
        expected = owm.taps.joint(tap, before).double() @ P
        torch.testing.assert_close(owm.taps.joint(tap, after).double(), expected, rtol=1e-4, atol=1e-4)


def test_adam_nscl_leaves_the_answers_to_old_inputs_and_moves_in_the_null_space() -> None:
    strategy = AdamNSCL(ratio=10.0, chunks=1)
    policy, (old,) = ready(strategy)
    before, after = update(policy, strategy)
    for tap, vectors in strategy.taps.vectors(old).items():
        delta = strategy.taps.joint(tap, after)
        answers = (delta @ vectors.T).norm() / (strategy.taps.joint(tap, before) @ vectors.T).norm()
        assert answers < 5e-3, tap
        P = strategy.projectors[tap]
        torch.testing.assert_close(P @ P, P, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(P, P.T)
    tap = next(iter(strategy.taps.weights))
    moved = strategy.taps.joint(tap, after).norm() / strategy.taps.joint(tap, before).norm()
    assert moved > 0.5, tap  # the inputs have rank 3 of 20


@pytest.mark.parametrize("sides", ["both", "input", "output"])
def test_recurrent_projection_is_the_formula_of_the_paper(sides: Any) -> None:
    strategy = RecurrentProjection(alpha=0.01, sides=sides, chunks=1)
    policy, experiences = ready(strategy, seeds=(0, 1))
    before, after = update(policy, strategy)
    weights = {n: p.detach() for n, p in policy.named_parameters()}

    def soft(S: Tensor) -> Tensor:
        return 0.01 * torch.linalg.inv(0.01 * torch.eye(len(S), dtype=torch.float64) + S)

    for tap in strategy.taps.weights:
        moments = [v.double().T @ v.double() / len(v) for v in (strategy.taps.vectors(e)[tap] for e in experiences)]
        C, W = sum(moments) / len(moments), strategy.taps.joint(tap, weights).double()  # type: ignore[arg-type]
        expected = strategy.taps.joint(tap, before).double()
        expected = expected if sides == "output" else expected @ soft(C)  # type: ignore[arg-type]
        expected = expected if sides == "input" else soft(W @ C @ W.T) @ expected
        torch.testing.assert_close(strategy.taps.joint(tap, after).double(), expected, rtol=1e-3, atol=1e-3)


MAKERS: list[Callable[[], CovarianceProjection]] = [
    lambda: OWM(chunks=1),
    lambda: AdamNSCL(chunks=1),
    lambda: RecurrentProjection(chunks=1),
]


@pytest.mark.parametrize("make", MAKERS, ids=["owm", "adam_nscl", "recurrent_projection"])
def test_before_the_first_boundary_nothing_is_projected_and_then_there_is_less_room(
    make: Callable[[], CovarianceProjection],
) -> None:
    strategy = make()
    policy, _ = ready(strategy, seeds=())
    before, after = update(policy, strategy)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert strategy.report() == {}
    strategy = make()
    policy, _ = ready(strategy)
    first = strategy.report()
    assert all(0.0 <= first[f"room/{tap}"] < 1.0 < first[f"rank/{tap}"] for tap in strategy.taps.weights)
    _, after = update(policy, strategy)
    assert not after["cell.weight_recurrent"].any() and bool(after["critic.weight"].any())


@pytest.mark.parametrize("make", MAKERS, ids=["owm", "adam_nscl", "recurrent_projection"])
def test_an_input_that_a_new_task_brings_is_free(make: Callable[[], CovarianceProjection]) -> None:
    strategy = make()
    ready(strategy)
    tap = next(iter(strategy.taps.weights))
    kept = strategy.protected[tap]
    weights, bias = strategy.taps.weights[tap]
    width = strategy.parameters[weights[0]].shape[1]
    smaller = torch.cat([kept[: width - 1], kept[width:]])
    smaller = torch.cat([smaller[:, : width - 1], smaller[:, width:]], 1)  # as if the last input had not been there
    wide = strategy.widened(tap, smaller)
    assert wide.shape == kept.shape and bias is not None
    assert not wide[width - 1].any() and not wide[:, width - 1].any()
    others = [i for i in range(len(kept)) if i != width - 1]
    assert torch.equal(wide[others][:, others], smaller)


@pytest.mark.parametrize(
    "make",
    [lambda: OWM(alpha=0), lambda: AdamNSCL(ratio=0.5), lambda: RecurrentProjection(alpha=-1.0), lambda: OWM(chunks=0)],
)
def test_options_that_make_no_sense_are_refused(make: Callable[[], Projection]) -> None:
    with pytest.raises(ValueError, match="it must"):
        make()


# ---- the budget ------------------------------------------------------------------------------------------------------

BUDGETED: dict[str, Callable[..., Projection]] = {
    "gpm": lambda **o: GPM(threshold=1 - 1e-9, **o),
    "owm": OWM,
    "adam_nscl": AdamNSCL,
    "recurrent_projection": lambda **o: RecurrentProjection(sides="input", **o),
}


@pytest.mark.parametrize("name", BUDGETED)
def test_a_task_takes_no_more_than_its_share_and_the_last_room_is_never_taken(name: str) -> None:
    make = BUDGETED[name]
    rooms = []
    for tasks in range(1, 5):
        strategy = make(chunks=1, room=0.4, per_task=0.25)
        ready(strategy, seeds=tuple(range(tasks)))
        rooms.append(strategy.rooms)
        for tap, room in strategy.rooms.items():
            width = strategy.taps.joint(tap, strategy.parameters).shape[1]
            before = rooms[-2][tap] if tasks > 1 else 1.0
            assert room >= max(0.4, before - 0.25) - 1e-5, tap
            assert strategy.report()[f"rank/{tap}"] == pytest.approx(width * (1 - room))
            assert float(strategy.project(tap, torch.eye(width)).trace()) / width == pytest.approx(room, abs=1e-4), tap
    without = make(chunks=1)
    ready(without, seeds=tuple(range(4)))
    taken = [tap for tap, room in without.rooms.items() if room < 0.4]
    assert taken, "the budget was never needed"
    for tap in taken:  # as little is left as the budget allows
        width = without.taps.joint(tap, without.parameters).shape[1]
        assert 0.4 - 1e-5 <= rooms[-1][tap] <= 0.4 + 1 / width, tap


def test_what_the_budget_gives_up_is_what_matters_least() -> None:
    """Soft: alpha is raised, so the order of the directions stays; hard: the directions with most energy are kept."""
    eigenvalues = torch.tensor([0.0, 1e-9, 1e-3, 0.1, 1.0, 30.0], dtype=torch.float64)
    soft = OWM(alpha=1e-3)
    assert torch.equal(soft.share(eigenvalues, 0.0), 1e-3 / (1e-3 + eigenvalues))
    raised = soft.share(eigenvalues, 0.7)
    assert float(raised.mean()) == pytest.approx(0.7, abs=1e-6)
    alpha = raised[3:] * eigenvalues[3:] / (1 - raised[3:])  # of the formula
    torch.testing.assert_close(alpha, alpha[:1].expand(3), rtol=1e-9, atol=0)
    assert AdamNSCL().share(eigenvalues, 0.0).tolist() == [1, 1, 0, 0, 0, 0]
    assert AdamNSCL().share(eigenvalues, 0.5).tolist() == [1, 1, 1, 0, 0, 0]
    energy = torch.diag(torch.tensor([5.0, 3.0, 2.0, 1.0]))
    basis = append_basis(torch.zeros(4, 0), energy, 1.0, most=2)
    torch.testing.assert_close((basis @ basis.T).diagonal(), torch.tensor([1.0, 1.0, 0.0, 0.0]))


@pytest.mark.parametrize("options", [{"room": 1.0}, {"room": -0.1}, {"per_task": 0.0}, {"per_task": 1.5}])
def test_a_budget_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="it must"):
        GPM(**options)
