"""GPM: after consolidation the policy answers old inputs as before, whatever Adam does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

from lifelong.agent.cells.base import Cell
from lifelong.agent.cells.gru import GRU
from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.gpm import GPM, append_basis
from lifelong.agent.strategies.taps import Taps
from tests.agent.support import act_through, make_context, make_policy, random_chunk

B, T = 6, 8
ENCODERS: dict[str, dict[str, Any]] = {
    "identity": {"kind": "identity"},
    "mlp": {"kind": "mlp", "hidden": [40]},
}


# ---- the basis -------------------------------------------------------------------------------------------------------


def low_rank_data(n: int, rank: int, seed: int, samples: int = 60) -> Tensor:
    """Presynaptic vectors [samples, n] with singular values that fall over two orders of magnitude."""
    g = torch.Generator().manual_seed(seed)
    directions, _ = torch.linalg.qr(torch.randn(n, rank, generator=g, dtype=torch.float64))
    scale = torch.logspace(0, -2, rank, dtype=torch.float64)
    return torch.randn(samples, rank, generator=g, dtype=torch.float64) * scale @ directions.T


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99, 0.9999])
def test_the_basis_follows_the_singular_value_criterion_of_the_paper(threshold: float) -> None:
    """Saha et al. 2021: eq. 5 for the first task, eqs. 8-9 for later ones, on the data itself by torch.linalg.svd."""
    first, second = low_rank_data(20, 8, 0), low_rank_data(20, 9, 1)
    u, s, _ = torch.linalg.svd(first.T)
    energy = s.square().cumsum(0) / s.square().sum()
    k = int((energy < threshold).sum()) + 1
    got = append_basis(torch.zeros(20, 0, dtype=torch.float64), first.T @ first, threshold)
    assert got.shape == (20, k)
    torch.testing.assert_close(got @ got.T, u[:, :k] @ u[:, :k].T, rtol=0, atol=1e-8)

    residual = second.T - got @ (got.T @ second.T)
    u, s, _ = torch.linalg.svd(residual)
    total = second.square().sum()
    held = total - residual.square().sum()
    k = next(k for k in range(len(s) + 1) if held + s[:k].square().sum() >= threshold * total)
    both = append_basis(got, second.T @ second, threshold)
    assert both.shape[1] == got.shape[1] + k
    expected = torch.cat([got, u[:, :k]], 1)
    torch.testing.assert_close(both @ both.T, expected @ expected.T, rtol=0, atol=1e-7)


def test_the_basis_stays_orthonormal_and_never_exceeds_the_width() -> None:
    basis = torch.zeros(10, 0)
    widths = []
    for seed in range(12):
        data = low_rank_data(10, 3, seed)
        basis = append_basis(basis, data.T @ data, 0.999)
        widths.append(basis.shape[1])
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), rtol=0, atol=1e-5)
    assert widths == sorted(widths) and widths[-1] == 10 and 0 < widths[0] <= 3


def test_what_the_basis_holds_already_adds_nothing() -> None:
    data = low_rank_data(20, 5, 0)
    moment = data.T @ data
    basis = append_basis(torch.zeros(20, 0, dtype=torch.float64), moment, 0.999)
    assert append_basis(basis, moment, 0.999).shape == basis.shape
    assert append_basis(basis, torch.zeros(20, 20, dtype=torch.float64), 0.999).shape == basis.shape


# ---- protection through the real learner ----------------------------------------------------------------------------


def old_experience(policy: Policy) -> Experience:
    """Data of an old task: few observations, short episodes, so the presynaptic vectors do not fill their space."""
    chunk = random_chunk(policy, T, B, seed=1)
    g = torch.Generator().manual_seed(2)
    symbols = torch.randn(2, chunk.obs.shape[-1], generator=g)
    chunk.obs = symbols[torch.randint(2, (T, B), generator=g)]
    chunk.is_init = (torch.arange(T) % 3 == 0).unsqueeze(1).expand(T, B).clone()
    return act_through(policy, chunk)[0]


def test_the_presynaptic_vectors_are_what_the_layers_read_while_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded by hooks on the layers of a GRU policy in a plain forward pass; steps without weight are left out."""
    monkeypatch.setattr(GRU, "sequence", Cell.sequence)  # the compiled sequence calls no layer that could be hooked
    policy = make_policy("gru", 7, observation=5, encoder={"kind": "mlp", "hidden": [6]})
    chunk = random_chunk(policy, T, B, seed=1)
    chunk.state = torch.randn(B, 7, generator=torch.Generator().manual_seed(5))
    chunk.is_init[0, :3], chunk.is_init[0, 3:], chunk.is_init[4] = True, False, True
    chunk.weight[2:4, 1] = 0.0
    experience = act_through(policy, chunk)[0]
    read: dict[str, list[Tensor]] = {}
    cell: Any = policy.cell
    layers = {"cell.recurrent": cell.hidden, "cell.input": cell.input}
    layers["encoder.layers.0"] = policy.encoder.layers[0]  # type: ignore[index]
    handles = [
        layer.register_forward_hook(lambda _, args, __, tap=tap: read.setdefault(tap, []).append(args[0].detach()))
        for tap, layer in layers.items()
    ]
    said = policy.sequence(chunk, chunk.state)
    assert said.features is not None  # actor and critic are one product, which is no layer either
    read["actor"] = [said.features.detach()]
    for handle in handles:
        handle.remove()
    counts = chunk.weight.flatten() > 0
    got = Taps(policy).vectors(experience)
    assert got.keys() == read.keys()
    for tap, inputs in read.items():
        expected = torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs])[counts]
        expected = torch.cat([expected, torch.ones(len(expected), 1)], 1)
        torch.testing.assert_close(got[tap], expected, rtol=0, atol=1e-6)


class GradientProjection(GPM):
    """The published form for plain SGD: the gradient is projected, then Adam does what it wants."""

    def transform_gradients(self, ctx: Context, gradients: Mapping[str, Tensor]) -> None:
        super().transform_update(ctx, gradients)

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        return None


def train_on(policy: Policy, strategy: GPM, old: Experience, steps: int = 100) -> None:
    """Consolidate on `old`, then Adam steps on other data through the real learner."""
    objective = ActorCritic(policy.distribution)
    ctx = make_context(policy, objective, B, T)
    strategy.setup(ctx, 0)

    def source(chunks: int) -> Iterator[Experience]:
        for _ in range(chunks):
            yield old

    strategy.on_task_end(ctx, source)
    engine: Any = (RTRL if policy.cell.jacobian in RTRL.jacobians else BPTT)(policy.cell, B)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    learner = Learner(policy, engine, objective, optimizer, [strategy], 1.0, torch.Generator())
    for step in range(steps):
        learner.update(ctx, act_through(policy, random_chunk(policy, T, B, seed=100 + step))[0])


def leaks(policy: Policy, before: dict[str, Tensor], taps: Taps, vectors: dict[str, Tensor]) -> dict[str, float]:
    """||dW X_old|| / (||dW|| ||X_old||) of every protected matrix, bias included."""
    after = dict(policy.named_parameters())
    found = {}
    for tap, (weights, bias) in taps.weights.items():
        names = [*weights, *([bias] if bias else [])]
        parts = [(after[n].detach() - before[n]).reshape(after[n].shape[0], -1) for n in names]
        delta = torch.cat(parts, 1).double()
        assert delta.norm() > 1e-3, f"{tap} was not trained at all"
        x = vectors[tap].double()
        found[tap] = float((delta @ x.T).norm() / (delta.norm() * x.norm()))
    return found


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("cell", ["elstm", "gru", "lstm"])
def test_a_hundred_adam_steps_on_other_data_do_not_touch_the_answers_to_old_inputs(cell: str, encoder: str) -> None:
    policy = make_policy(cell, 30, observation=20, encoder=ENCODERS[encoder])
    old = old_experience(policy)
    gpm = GPM(threshold=1 - 1e-13, chunks=1)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    answers = policy.sequence(old.chunk, old.chunk.state)
    taps = Taps(policy)
    vectors = taps.vectors(old)
    train_on(policy, gpm, old)
    found = leaks(policy, before, taps, vectors)
    print(f"\nlargest leak {max(found.values()):.1e}")
    assert max(found.values()) < 1e-5, found
    again = policy.sequence(old.chunk, old.chunk.state)
    torch.testing.assert_close(again.policy, answers.policy, rtol=0, atol=1e-4)
    assert float((again.value - answers.value).detach().abs().max()) > 1e-2  # the critic is free
    report = gpm.report()
    assert set(report) == {f"{what}/{tap}" for tap in taps.weights for what in ("rank", "room")}
    for tap, basis in gpm.protected.items():
        assert report[f"rank/{tap}"] == pytest.approx(basis.shape[1])
        assert report[f"room/{tap}"] == pytest.approx(1 - basis.shape[1] / basis.shape[0]) and 0 < basis.shape[1] < len(
            basis
        )


def test_projecting_the_gradient_instead_of_the_step_would_leak_under_adam() -> None:
    policy = make_policy("elstm", 30, observation=20, encoder=ENCODERS["mlp"])
    old = old_experience(policy)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    answers = policy.sequence(old.chunk, old.chunk.state)
    taps = Taps(policy)
    vectors = taps.vectors(old)
    train_on(policy, GradientProjection(threshold=1 - 1e-13, chunks=1), old)
    worst = max(leaks(policy, before, taps, vectors).values())
    print(f"\nlargest leak of projecting gradients {worst:.1e}")
    assert worst > 0.01
    again = policy.sequence(old.chunk, old.chunk.state)
    assert float((again.policy - answers.policy).detach().abs().max()) > 1e-2


def test_the_convolutions_of_an_image_encoder_are_protected_patch_by_patch() -> None:
    space = Box(0, 1, (12, 12, 3), np.float32)
    policy = make_policy("elstm", 30, observation=space, encoder={"kind": "cnn", "channels": [4, 4], "hidden": 20})
    old = old_image_experience(policy)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    taps = Taps(policy)
    vectors = taps.vectors(old)
    answers = policy.sequence(old.chunk, old.chunk.state)
    train_on(policy, GPM(threshold=1 - 1e-13, chunks=1), old, steps=30)
    found = leaks(policy, before, taps, vectors)
    assert {"encoder.convolutions.0", "encoder.convolutions.2", "encoder.linear.0"} < found.keys()
    print(f"\nlargest leak {max(found.values()):.1e}")
    assert max(found.values()) < 1e-5, found
    again = policy.sequence(old.chunk, old.chunk.state)
    torch.testing.assert_close(again.policy, answers.policy, rtol=0, atol=1e-4)


def old_image_experience(policy: Policy) -> Experience:
    """Two images that are constant along both axes: few different patches."""
    chunk = random_chunk(policy, T, B, seed=1)
    images = torch.ones(2, 12, 12, 3)
    images[1] = 0.5
    chunk.obs = images[torch.randint(2, (T, B), generator=torch.Generator().manual_seed(2))]
    chunk.is_init = (torch.arange(T) % 3 == 0).unsqueeze(1).expand(T, B).clone()
    return act_through(policy, chunk)[0]


@pytest.mark.parametrize("elementwise", ["frozen", "free"])
def test_element_wise_recurrent_weights_freeze_after_the_first_task_unless_they_are_free(
    elementwise: Literal["frozen", "free"],
) -> None:
    policy = make_policy("elstm", 30, observation=20)
    old = old_experience(policy)
    gpm = GPM(threshold=0.99, elementwise=elementwise, chunks=1)
    objective = ActorCritic(policy.distribution)
    ctx = make_context(policy, objective, B, T)
    gpm.setup(ctx, 0)
    deltas = {n: torch.ones_like(p) for n, p in policy.named_parameters()}
    gpm.transform_update(ctx, deltas)
    assert all(bool((delta == 1).all()) for delta in deltas.values())
    gpm.on_task_end(ctx, lambda chunks: iter([old] * chunks))
    gpm.transform_update(ctx, deltas)
    assert bool(deltas["cell.weight_recurrent"].any()) == (elementwise == "free")
    assert bool((deltas["critic.weight"] == 1).all())


def test_with_a_head_a_task_only_the_head_in_training_moves() -> None:
    policy = make_policy("elstm", 30, observation=20, tasks=3, task_observed=True, heads="per_task")
    gpm = GPM(threshold=0.99, chunks=1)
    ctx = make_context(policy, ActorCritic(policy.distribution), B, T, task=1)
    gpm.setup(ctx, 0)
    assert gpm.needs_task_id
    gpm.on_task_end(ctx, lambda chunks: iter([old_experience(policy)] * chunks))
    deltas = {n: torch.ones_like(p) for n, p in policy.named_parameters()}
    gpm.transform_update(ctx, deltas)
    rows = deltas["actor.linear.weight"].view(3, -1)
    assert not rows[0].any() and not rows[2].any() and bool((rows[1] == 1).all())
    assert deltas["actor.linear.bias"].view(3, -1).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"threshold": 1.1}, {"chunks": 0}, {"every": -1}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(it|they) must"):
        GPM(**options)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_layers_that_read_the_observation_have_a_threshold_of_their_own(encoder: str) -> None:
    policy = make_policy("elstm", 30, observation=20, encoder=ENCODERS[encoder])
    old = old_experience(policy)
    old.chunk.obs[:] = torch.randn(old.chunk.obs.shape, generator=torch.Generator().manual_seed(0))
    gpm = GPM(threshold=0.99, observation_threshold=0.3, chunks=1)
    ctx = make_context(policy, ActorCritic(policy.distribution), B, T)
    gpm.setup(ctx, 0)
    gpm.on_task_end(ctx, lambda chunks: iter([old] * chunks))
    first = {"encoder.layers.0"} if encoder == "mlp" else {"cell.input", "cell.output"}
    assert set(gpm.of_observation) == first
    for tap, vectors in gpm.taps.vectors(old).items():
        energy = torch.linalg.svdvals(vectors.double()).square()
        share = 0.3 if tap in first else 0.99
        held = int((energy.cumsum(0) / energy.sum() < share).sum()) + 1
        assert gpm.protected[tap].shape[1] == held, tap
