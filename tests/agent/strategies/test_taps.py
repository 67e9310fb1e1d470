"""Nothing that acting depends on is left out: a parameter is projected, held, frozen or the head of another task."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, MultiDiscrete
from torch import Tensor, nn

from lifelong.agent.modules.encoders import Encoder
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy
from lifelong.agent.registry import REGISTRY
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.gpm import GPM
from lifelong.agent.strategies.projection import Projection
from lifelong.agent.strategies.taps import Taps
from tests.agent.support import CELLS, OWN_CELLS, act_through, make_context, make_policy, random_chunk

B, T = 6, 8


class Normed(Encoder):
    """Layers with normalisation, one of them read twice, a grouped convolution, and one read part by part."""

    def __init__(self, space: Any) -> None:
        super().__init__(space)
        self.first, self.norm = nn.Linear(12, 12), nn.LayerNorm(12)
        self.parts = nn.Linear(4, 4)
        self.grouped = nn.Conv2d(2, 2, 1, groups=2)
        self.output_size = 12

    def forward(self, obs: Tensor) -> Tensor:
        x = torch.tanh(self.first(self.norm(torch.tanh(self.first(obs.flatten(1))))))
        x = torch.tanh(self.parts(x.view(-1, 3, 4)))
        return torch.tanh(self.grouped(x.reshape(-1, 2, 2, 3))).flatten(1)


OWN = "tests.agent.strategies.test_taps:Normed"
ENCODERS: dict[str, tuple[dict[str, Any], gymnasium.Space[Any]]] = {
    "identity": ({"kind": "identity"}, Box(-10, 10, (12,), np.float32)),
    "mlp": ({"kind": "mlp", "hidden": [30, 20]}, Box(-10, 10, (12,), np.float32)),
    "one_hot": ({"kind": "mlp", "hidden": [30]}, MultiDiscrete([6, 5, 4])),
    "cnn": ({"kind": "cnn", "channels": [4, 5], "hidden": 20}, Box(0, 1, (8, 8, 3), np.float32)),
    "mlp norm crelu": (
        {"kind": "mlp", "hidden": [20, 20], "norm": "layer", "activation": "crelu"},
        Box(-10, 10, (12,), np.float32),
    ),
    "cnn norm": (
        {"kind": "cnn", "channels": [4, 5], "hidden": 20, "norm": "layer"},
        Box(0, 1, (8, 8, 3), np.float32),
    ),
    "mlp rational": ({"kind": "mlp", "hidden": [30], "activation": "rational"}, Box(-10, 10, (12,), np.float32)),
    "depth_recurrent": ({"kind": "depth_recurrent", "hidden": 20, "depth": 2}, Box(-10, 10, (12,), np.float32)),
    "nature_cnn": ({"kind": "nature_cnn", "hidden": 20}, Box(0, 1, (36, 36, 3), np.float32)),
    "impala_cnn": ({"kind": "impala_cnn", "channels": [4, 5], "hidden": 20}, Box(0, 1, (8, 8, 3), np.float32)),
    "cycle": ({"kind": "cycle", "period": 5}, Box(-10, 10, (12,), np.float32)),
    OWN: ({"kind": OWN}, Box(-10, 10, (12,), np.float32)),
}
PAIRS = [(cell, "mlp") for cell in [*CELLS, *OWN_CELLS]] + [(c, e) for c in ("elstm", "lstm") for e in ENCODERS]


def policy_with(cell: str, encoder: str, **options: Any) -> Policy:
    spec, space = ENCODERS[encoder]
    if encoder == "cycle":  # which predicts what it reads
        options["action"] = Box(-10, 10, (11,), np.float32)
    whole = {"kind": cell, "block": 1} if cell == "block_recurrent" else cell  # its memory acts after a block
    policy = make_policy(whole, 24, observation=space, encoder=spec, **options)
    if policy.actor.gaussian:
        torch.nn.init.constant_(policy.actor.log_std, 0.1)
    return policy


def old_experience(policy: Policy) -> Experience:
    """Two observations and short episodes, so that what the layers read does not fill its space."""
    space, g = policy.encoder.space, torch.Generator().manual_seed(2)
    if isinstance(space, MultiDiscrete):
        two = torch.tensor([[0, 1, 2], [3, 1, 0]])
    else:
        two = torch.ones(2, *space.shape) if len(space.shape) == 3 else torch.randn(2, *space.shape, generator=g)
        two[1] *= 0.5
    chunk = random_chunk(policy, T, B, seed=1)
    chunk.obs = two[torch.randint(2, (T, B), generator=g)]
    chunk.is_init = (torch.arange(T) % 2 == 0).unsqueeze(1).expand(T, B).clone()
    return act_through(policy, chunk)[0]


def consolidated(strategy: Projection, policy: Policy, **context: Any) -> tuple[Any, Experience]:
    """After a boundary behind `old_experience`."""
    ctx = make_context(policy, ActorCritic(policy.distribution), B, T, **context)
    strategy.setup(ctx, 0)
    old = old_experience(policy)
    strategy.on_task_end(ctx, lambda chunks: iter([old] * chunks))
    return ctx, old


@torch.no_grad()
def random_step(strategy: Projection, policy: Policy, ctx: Any, size: float = 0.3) -> dict[str, Tensor]:
    """A random update of every parameter, as the strategy lets it through."""
    g = torch.Generator().manual_seed(7)
    deltas = {n: size * torch.randn(p.shape, generator=g) for n, p in policy.named_parameters()}
    strategy.transform_update(ctx, deltas)
    for name, parameter in policy.named_parameters():
        parameter += deltas[name]
    return deltas


@pytest.mark.parametrize(("cell", "encoder"), PAIRS, ids=[f"{c.split(':')[-1]}-{e.split(':')[-1]}" for c, e in PAIRS])
def test_whatever_moves_the_policy_does_on_old_inputs_what_it_did(cell: str, encoder: str) -> None:
    policy = policy_with(cell, encoder, action=Box(-1, 1, (2,), np.float32) if encoder == "mlp" else None)
    strategy = GPM(threshold=1 - 1e-13, chunks=1)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    ctx, old = consolidated(strategy, policy)
    with torch.no_grad():
        said = policy.sequence(old.chunk, old.chunk.state).policy
        random_step(strategy, policy, ctx)
        again = policy.sequence(old.chunk, old.chunk.state).policy
    torch.testing.assert_close(again, said, rtol=0, atol=1e-4)
    frozen = set(strategy.frozen)
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name


@pytest.mark.parametrize(("cell", "encoder"), PAIRS, ids=[f"{c.split(':')[-1]}-{e.split(':')[-1]}" for c, e in PAIRS])
def test_every_parameter_that_acting_uses_is_projected_or_has_no_subspace(cell: str, encoder: str) -> None:
    """What acting uses is found by autograd, so nothing that somebody forgot to name is left out."""
    policy = policy_with(cell, encoder)
    old = old_experience(policy)
    parameters = dict(policy.named_parameters())
    outputs = policy.sequence(old.chunk, old.chunk.state).policy
    used = torch.autograd.grad(outputs.square().sum(), list(parameters.values()), allow_unused=True)
    names = {n for n, gradient in zip(parameters, used, strict=True) if gradient is not None and bool(gradient.any())}
    taps = Taps(policy)
    tapped = [name for weights, bias in taps.weights.values() for name in (*weights, *([bias] if bias else []))]
    assert len(tapped) == len(set(tapped)) and not set(tapped) & set(taps.rest())
    assert names == {name for name in (*tapped, *taps.rest()) if parameters[name].numel()}
    expected = {f"cell.{name}" for name in policy.cell.elementwise_parameters()}
    for name, module in policy.encoder.named_modules():
        if not list(module.children()) and not isinstance(module, nn.Linear | nn.Conv2d):
            prefix = f"encoder.{name}." if name else "encoder."
            expected |= {prefix + parameter for parameter, _ in module.named_parameters()}
    if encoder == "cycle":
        expected.add("actor.log_std")
    if encoder == OWN:
        expected |= {"encoder.grouped.weight", "encoder.grouped.bias"}
    assert {n for n in taps.rest() if parameters[n].numel()} == {n for n in expected if parameters[n].numel()}


def test_with_a_head_a_task_the_other_heads_stay_and_the_own_one_moves() -> None:
    policy = policy_with("elstm", "mlp", tasks=3, task_observed=True, heads="per_task")
    strategy = GPM(threshold=1 - 1e-13, chunks=1)
    ctx, old = consolidated(strategy, policy, task=1)
    assert "actor" not in strategy.taps.weights and not any(n.startswith("actor") for n in strategy.taps.rest())
    with torch.no_grad():
        said = policy.sequence(old.chunk, old.chunk.state).policy  # of task 0
        random_step(strategy, policy, ctx)
        torch.testing.assert_close(policy.sequence(old.chunk, old.chunk.state).policy, said, rtol=0, atol=1e-4)
        old.chunk.task = torch.ones_like(old.chunk.task)
        assert float((policy.sequence(old.chunk, old.chunk.state).policy - said).abs().max()) > 0.1


@pytest.mark.parametrize("critic", ["free", "projected"])
def test_the_critic_is_free_or_says_of_old_inputs_what_it_said(critic: Any) -> None:
    policy = policy_with("elstm", "mlp")
    strategy = GPM(threshold=1 - 1e-13, chunks=1, critic=critic)
    ctx, old = consolidated(strategy, policy)
    with torch.no_grad():
        said = policy.sequence(old.chunk, old.chunk.state).value
        deltas = random_step(strategy, policy, ctx)
        moved = float((policy.sequence(old.chunk, old.chunk.state).value - said).abs().max())
    assert bool(deltas["critic.weight"].any())
    assert moved < 1e-4 if critic == "projected" else moved > 0.1


def test_steps_that_do_not_count_are_no_vectors_of_any_layer() -> None:
    """A blank observation behind the end of an episode, also for the patches of a convolution and shared layers."""
    for encoder in ENCODERS:
        policy = policy_with("elstm", encoder)
        old = old_experience(policy)
        old.chunk.weight[3:] = 0.0
        spoilt = old_experience(policy)
        spoilt.chunk.weight[3:] = 0.0
        spoilt.chunk.obs[3:] = 1 - spoilt.chunk.obs[3:].clamp(0, 1)
        found, again = (Taps(policy).vectors(e) for e in (old, spoilt))
        assert found.keys() == again.keys() == Taps(policy).weights.keys()
        for tap, vectors in found.items():
            assert torch.equal(vectors, again[tap]) and len(vectors) % (3 * B) == 0, tap


def test_parameters_without_a_subspace_are_pulled_back_by_their_importance() -> None:
    policy = policy_with("elstm", "mlp", action=Box(-1, 1, (2,), np.float32))
    strategy = GPM(elementwise="importance", pull=3.0, chunks=1)
    ctx, old = consolidated(strategy, policy)
    names = {"cell.weight_recurrent", "actor.log_std"}
    held = strategy.held
    assert held.importance.keys() == names and not strategy.frozen
    anchor = {name: p.detach().clone() for name, p in policy.named_parameters() if name in names}
    deltas = random_step(strategy, policy, ctx)
    loss = strategy.extra_loss(ctx, old.chunk, policy.sequence(old.chunk, old.chunk.state), B)
    assert loss is not None
    expected = sum(1.5 * (held.importance[name] * deltas[name].square()).sum() for name in names)
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    for name, parameter in policy.named_parameters():
        if name in names:
            assert float(held.importance[name].mean()) == pytest.approx(1.0) and float(held.importance[name].min()) >= 0
            pull = 3.0 * held.importance[name] * (parameter.detach() - anchor[name])
            torch.testing.assert_close(parameter.grad, pull)
            assert bool(parameter.grad.any()) and bool(deltas[name].any())
        else:
            assert parameter.grad is None


def test_all_parts_of_the_registry_are_covered() -> None:
    assert {name for _, name in PAIRS} >= {*REGISTRY["encoder"]} and {cell for cell, _ in PAIRS} >= set(CELLS)
