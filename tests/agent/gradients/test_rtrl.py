"""RTRL is exact: chunk by chunk it gives the gradient of the whole history, and truncated BPTT does not.

The references are plain autograd over the whole sequence, a literal Williams-Zipser recursion with full Jacobians, and
central differences; none of them uses `local_derivatives`, the kernels or the carry.
"""

from __future__ import annotations

import gc
import io
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent import registry
from lifelong.agent.errors import ConfigError
from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.objectives.ppo import PPO
from lifelong.agent.policy import Policy, inputs_of
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.build import build, check_gradient
from lifelong.agent.runtime.learner import Learner
from lifelong.replay.chunk import Chunk, concatenate
from tests.agent.gradients.chunks import (
    B,
    chunked_gradient,
    double_policy,
    gradients_of,
    history,
    max_relative_error,
    split,
    whole_history_gradient,
)
from tests.agent.support import (
    CELLS,
    OWN_CELLS,
    REPRESENTATIVE,
    act_through,
    make_config,
    make_context,
    make_policy,
    make_rollout,
    policy_for,
    random_chunk,
    slice_steps,
    some_slow,
    task_env,
)

EXACT = [name for name in CELLS if registry.load("cell", name).jacobian in RTRL.jacobians] + OWN_CELLS
RECURRENT = ["cell.weight_input", "cell.bias", "cell.weight_recurrent"]


def carried(policy: Policy) -> list[str]:
    """The parameters that the carry covers."""
    cell: Any = policy.cell
    return [f"cell.{name}" for name in cell.recurrent_parameters()]


#: every cell in chunks of seven steps; the others of some cells
CHUNKINGS = [(cell, 7, 3, False) for cell in EXACT] + [
    pytest.param(cell, *how, marks=() if cell in {*REPRESENTATIVE, *OWN_CELLS} else pytest.mark.slow)
    for cell in EXACT
    for how in itertools.product([1, 7], [3, 6], [False, True])
    if how != (7, 3, False)
]


@pytest.mark.parametrize(("cell", "steps", "chunks", "only_pass"), CHUNKINGS)
def test_chunked_rtrl_is_the_gradient_of_the_whole_history_and_bptt_is_not(
    cell: str, steps: int, chunks: int, only_pass: bool, record_property: Any
) -> None:
    policy = double_policy(cell)
    data = history(policy, steps, chunks)
    parts = split(policy, data, steps)
    expected = whole_history_gradient(policy, data, parts)
    rtrl = chunked_gradient(policy, parts, RTRL(policy.cell, B), only_pass=only_pass)  # type: ignore[arg-type]
    bptt = chunked_gradient(policy, parts, BPTT(policy.cell, B))
    names = carried(policy)
    errors = max_relative_error(rtrl, expected, names), max_relative_error(bptt, expected, names)
    record_property("rtrl", errors[0])
    record_property("bptt", errors[1])
    print(f"\nrelative error of {cell} T={steps} K={chunks}: rtrl {errors[0]:.1e}, bptt {errors[1]:.1e}")
    assert errors[0] <= 1e-10
    assert all(max_relative_error(bptt, expected, [name]) > 1e-3 for name in names)
    others = [n for n in expected if n not in names]  # above the recurrence: exact under both
    assert max_relative_error(rtrl, expected, others) <= 1e-10


@pytest.mark.parametrize(
    "spec",
    [{"kind": "delta", "keys": 9}, {"kind": "retnet", "heads": 2, "keys": 3}, {"kind": "longhorn", "heads": 3}],
    ids=lambda spec: spec["kind"],
)
def test_keys_that_the_units_of_a_head_share_get_the_gradient_of_the_whole_history(spec: dict[str, Any]) -> None:
    """More parts than the compiler takes, and several heads."""
    policy = make_policy(spec, 6, observation=4).double()
    data = history(policy, 4, 3)
    parts = split(policy, data, 4)
    expected, names = whole_history_gradient(policy, data, parts), carried(policy)
    assert "cell.weight_shared" in names
    rtrl = chunked_gradient(policy, parts, RTRL(policy.cell, B))  # type: ignore[arg-type]
    bptt = chunked_gradient(policy, parts, BPTT(policy.cell, B))
    assert max_relative_error(rtrl, expected, names) <= 1e-10
    assert all(max_relative_error(bptt, expected, [name]) > 1e-3 for name in names)


@pytest.mark.parametrize("cell", some_slow(EXACT))
def test_minibatches_over_copies_sum_to_the_gradient_of_the_whole_chunk(cell: str) -> None:
    policy = double_policy(cell)
    parts = split(policy, history(policy, 4, 3), 4)
    engine = RTRL(policy.cell, B)  # type: ignore[arg-type]
    chunked_gradient(policy, parts[:2], engine)
    chunk = parts[2].chunk
    objective = PPO(policy.distribution)
    prepared = objective.prepare(chunk)
    policy.zero_grad()
    objective.loss(policy.sequence(chunk, engine.attach(chunk.state)), chunk, prepared)[0].backward()
    expected = gradients_of(policy)
    policy.zero_grad()
    for index in (torch.tensor([3, 0]), torch.tensor([1]), torch.tensor([4, 2])):
        batch = chunk.select(index)
        outputs = policy.sequence(batch, engine.attach(batch.state, index))
        loss, _ = objective.loss(outputs, batch, {n: x.index_select(1, index) for n, x in prepared.items()})
        (loss * len(index) / B).backward()
    got = gradients_of(policy)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-12)


def test_the_learner_reads_the_carry_of_the_copies_that_a_minibatch_holds() -> None:
    policy = double_policy("elstm")
    parts = split(policy, history(policy, 4, 3), 4)
    engine = RTRL(policy.cell, B)  # type: ignore[arg-type]
    chunked_gradient(policy, parts[:2], engine)
    chunk, carry = parts[2].chunk, carry_of(engine)
    found: list[dict[str, Tensor]] = []

    class Remember:
        def transform_gradients(self, ctx: Any, gradients: dict[str, Tensor]) -> None:
            found.append({name: gradient.clone() for name, gradient in gradients.items()})

    objective = PPO(policy.distribution, epochs=1, minibatches=B)
    optimizer = torch.optim.SGD(policy.parameters(), 0.0)
    learner = Learner(policy, engine, objective, optimizer, [], 0.0, torch.Generator().manual_seed(1))
    learner.gradient_hooks = [Remember()]  # type: ignore[list-item]
    learner.update(make_context(policy, objective, B, 4), parts[2])
    assert len(found) == B
    engine.load_state_dict(carry)
    policy.zero_grad()
    outputs = policy.sequence(chunk, engine.attach(chunk.state))
    objective.loss(outputs, chunk, objective.prepare(chunk))[0].backward()
    for name, gradient in gradients_of(policy).items():
        mean = torch.stack([each[name] for each in found]).mean(0)
        torch.testing.assert_close(mean, gradient, rtol=1e-9, atol=1e-12)


def test_the_learner_adds_up_replayed_copies_without_giving_them_a_carry() -> None:
    policy = double_policy("elstm")
    parts = split(policy, history(policy, 4, 3), 4)
    engine = RTRL(policy.cell, B)  # type: ignore[arg-type]
    chunked_gradient(policy, parts[:2], engine)
    live, replayed = parts[2].chunk, parts[1].chunk

    class Append:
        def transform_batch(self, ctx: Any, chunk: Chunk) -> Chunk:
            return concatenate([chunk, replayed])

    objective = ActorCritic(policy.distribution)
    learner = Learner(policy, engine, objective, torch.optim.SGD(policy.parameters(), 0.0), [], 0.0, torch.Generator())
    learner.batch_hooks = [Append()]  # type: ignore[list-item]
    learner._step(make_context(policy, objective, B, 4), live, {}, None, None)
    got = gradients_of(policy)
    policy.zero_grad()
    both = concatenate([live, replayed])
    state = torch.cat([engine.attach(live.state), replayed.state])
    objective.loss(policy.sequence(both, state), both, {})[0].backward()
    for name, gradient in gradients_of(policy).items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-12)
    policy.zero_grad()
    for part, chunk in ((engine.attach(live.state), live), (replayed.state, replayed)):
        objective.loss(policy.sequence(chunk, part), chunk, {})[0].backward()
    for name, gradient in gradients_of(policy).items():
        torch.testing.assert_close(got[name], gradient / 2, rtol=1e-9, atol=1e-12)


# ---- against other references ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", some_slow(EXACT))
def test_the_carry_is_the_numerical_derivative_of_the_state(cell: str) -> None:
    policy = double_policy(cell, size=2)
    data = history(policy, 3, 3)
    engine = RTRL(policy.cell, B)  # type: ignore[arg-type]
    for part in split(policy, data, 3):
        engine.advance(engine.trace(part.x_TBD, part.state_TBS, part.chunk.is_init))
    cell: Any = policy.cell
    #: dL/dstate_0 of losses that are one number of one copy's state
    entries = torch.eye(B * cell.state_size, dtype=torch.float64).unflatten(1, (B, -1))
    for k, name in enumerate(cell.recurrent_parameters()):
        parameter = policy.cell.get_parameter(name)
        S = torch.stack([engine.boundary(entry, None)[k].flatten() for entry in entries]).view(B, -1, parameter.numel())
        for index in range(parameter.numel()):
            sides = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[index] += sign * 1e-5
                    sides.append(act_through(policy, data)[1])
                    parameter.view(-1)[index] -= sign * 1e-5
            torch.testing.assert_close((sides[0] - sides[1]) / 2e-5, S[:, :, index], rtol=1e-6, atol=1e-8)


def literal_rtrl(policy: Policy, data: Chunk, steps: int, rate: float) -> dict[str, Tensor]:
    """Williams & Zipser (1989) step by step with dense Jacobians; a gradient step after every chunk.

    S_t = dc_t/dc_{t-1} S_{t-1} + dc_t/dtheta at fixed c_{t-1};  dL/dtheta = sum_t e_t S_t with e_t = dL/dc_t at a fixed
    future: only what c_t does to the outputs of step t.
    """
    objective = ActorCritic(policy.distribution)
    cell: Any = policy.cell
    N = cell.state_size
    recurrent = {n: p for n, p in cell.named_parameters() if f"cell.{n}" in carried(policy)}
    S = {n: torch.zeros(B, N, p.numel(), dtype=torch.float64) for n, p in recurrent.items()}
    c = data.state
    for start in range(0, data.steps, steps):
        chunk = slice_steps(data, start, start + steps, c, torch.full((B,), 0.1 * start, dtype=data.reward.dtype))
        leaves, history_S = [], []
        for t in range(steps):
            keep = (~chunk.is_init[t]).double().unsqueeze(-1)
            before, x = c * keep, chunk.obs[t]
            rows, new_S = [], {n: [] for n in S}  # type: ignore[var-annotated]
            for b in range(B):

                def step(state: Tensor, *weights: Tensor, x: Tensor = x[b : b + 1]) -> Tensor:
                    values = dict(zip(recurrent, weights, strict=True))
                    after = torch.func.functional_call(
                        Step(cell), {f"cell.{n}": w for n, w in values.items()}, (x, state)
                    )
                    return after[0]

                inputs = (before[b : b + 1], *(p.detach() for p in recurrent.values()))
                jacobians = torch.autograd.functional.jacobian(step, inputs)
                for n, local in zip(recurrent, jacobians[1:], strict=True):
                    new_S[n].append(jacobians[0][:, 0] @ (S[n][b] * keep[b]) + local.reshape(N, -1))
                rows.append(step(*inputs).detach())
            c = torch.stack(rows)
            S = {n: torch.stack(values) for n, values in new_S.items()}
            leaves.append(c.clone().requires_grad_())
            history_S.append(S)
        y = torch.stack([cell.output(chunk.obs[t], leaf) for t, leaf in enumerate(leaves)])
        loss, _ = objective.loss(policy.heads(y, inputs_of(chunk)), chunk, {})
        rest = {n: p for n, p in policy.named_parameters() if n not in carried(policy)}
        found = torch.autograd.grad(loss, [*leaves, *rest.values()])
        with torch.no_grad():
            for n, parameter in recurrent.items():
                gradient = sum(
                    torch.einsum("bn,bnp->p", e, s[n]) for e, s in zip(found[:steps], history_S, strict=True)
                )
                parameter -= rate * gradient.view_as(parameter)  # type: ignore[union-attr]
            for parameter, gradient in zip(rest.values(), found[steps:], strict=True):
                parameter -= rate * gradient
    return {n: p.detach().clone() for n, p in policy.named_parameters()}


class Step(torch.nn.Module):
    """The state after one step."""

    def __init__(self, cell: torch.nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        after: Tensor = self.cell.step(x, state)[1]  # type: ignore[operator]
        return after


@pytest.mark.parametrize("cell", some_slow(EXACT))
def test_the_learner_equals_literal_per_step_rtrl_while_the_parameters_change_from_chunk_to_chunk(cell: str) -> None:
    steps, chunks, rate = 3, 4, 0.05
    policy = double_policy(cell, size=3)
    data = history(policy, steps, chunks)
    expected = literal_rtrl(double_policy(cell, size=3), data, steps, rate)
    engine = RTRL(policy.cell, B)  # type: ignore[arg-type]
    objective = ActorCritic(policy.distribution)
    learner = Learner(policy, engine, objective, torch.optim.SGD(policy.parameters(), rate), [], 0.0, torch.Generator())
    state = data.state
    for start in range(0, data.steps, steps):
        bootstrap = torch.full((B,), 0.1 * start, dtype=data.reward.dtype)
        experience, state = act_through(policy, slice_steps(data, start, start + steps, state, bootstrap))
        learner.update(make_context(policy, objective, B, steps), experience)
    before = dict(double_policy(cell, size=3).named_parameters())
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-10, atol=1e-12)
        assert parameter.numel() == 0 or not torch.equal(parameter, before[name])


def test_real_rollouts_across_chunks_give_the_gradient_of_the_whole_history() -> None:
    """Through Rollout and TMaze: the chunk's start state, its reset flags and the carry fit together."""
    env = task_env(
        {"kind": "TMaze", "corridor": 5, "distractors": 2}, {"kind": "TMaze", "corridor": 6, "distractors": 2}
    )
    policy = policy_for(env)
    rollout = make_rollout(env, policy)
    engine = RTRL(policy.cell, env.num_envs)  # type: ignore[arg-type]
    parts = []
    for k in range(4):
        if k == 2:  # a task switch resets two copies
            rollout.switch(torch.tensor([0, 1, 0, 1]))
        parts.append(rollout.collect(4))
    chunks = [part.chunk for part in parts]
    data = chunks[0].map(lambda n, x, dim: x if dim == 0 else torch.cat([getattr(c, n) for c in chunks]))
    assert bool(data.is_init[8, 1]) and bool(data.is_init[8, 3]) and int(data.is_init.sum()) > 8
    expected = whole_history_gradient(policy, data, parts)
    got = chunked_gradient(policy, parts, engine)
    truncated = chunked_gradient(policy, parts, BPTT(policy.cell, env.num_envs))
    assert max_relative_error(got, expected, RECURRENT) < 1e-4
    assert max_relative_error(truncated, expected, RECURRENT) > 1e-2


# ---- the carry as an object ------------------------------------------------------------------------------------------


def filled(cell: str = "elstm") -> tuple[Policy, RTRL]:
    policy = double_policy(cell)
    engine = RTRL(policy.cell, B)  # type: ignore[arg-type]
    data = random_chunk(policy, 5, B, seed=1, dtype=torch.float64)
    data.is_init[:] = False
    part, _ = act_through(policy, data)
    engine.advance(engine.trace(part.x_TBD, part.state_TBS, data.is_init))
    return policy, engine


def carry_of(engine: RTRL) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in engine.state_dict().items()}


def test_resetting_copies_zeroes_their_carry_and_no_other() -> None:
    _, engine = filled()
    before = carry_of(engine)
    mask = torch.tensor([True, False, False, True, False])
    engine.reset(mask)
    for name, carry in carry_of(engine).items():
        assert not carry[mask].any() and bool(before[name][mask].any())
        assert torch.equal(carry[~mask], before[name][~mask])


def test_resetting_units_zeroes_their_carry_in_every_copy_and_no_other() -> None:
    _, engine = filled()
    before = carry_of(engine)
    engine.reset_units(torch.tensor([1, 4]))
    kept = torch.tensor([0, 2, 3, 5, 6])
    for name, carry in carry_of(engine).items():
        dim = 2  # [B, G, N, D], [B, G, N], [B, K, N]
        assert not carry.index_select(dim, torch.tensor([1, 4])).any()
        assert torch.equal(carry.index_select(dim, kept), before[name].index_select(dim, kept))


def test_the_carry_goes_through_a_file_bit_for_bit_and_then_goes_on_alike() -> None:
    policy, engine = filled()
    file = io.BytesIO()
    torch.save(engine.state_dict(), file)
    file.seek(0)
    other = RTRL(policy.cell, B)  # type: ignore[arg-type]
    other.load_state_dict(torch.load(file, weights_only=True))
    data = random_chunk(policy, 5, B, seed=2, dtype=torch.float64)
    part, _ = act_through(policy, data)
    for each in (engine, other):
        each.advance(each.trace(part.x_TBD, part.state_TBS, data.is_init))
    for name, carry in engine.state_dict().items():
        assert torch.equal(carry, other.state_dict()[name])


def test_the_carry_neither_grows_nor_moves_nor_remembers_a_graph() -> None:
    policy, engine = filled()
    where = {name: (carry.data_ptr(), carry.shape) for name, carry in engine.state_dict().items()}
    data = random_chunk(policy, 3, B, seed=3, dtype=torch.float64)
    part, _ = act_through(policy, data)
    for _ in range(20):
        outputs = policy.sequence(data, engine.attach(data.state))
        (outputs.value.sum() + outputs.policy.sum()).backward()
        engine.advance(engine.trace(part.x_TBD, part.state_TBS, data.is_init))
    for name, carry in engine.state_dict().items():
        assert (carry.data_ptr(), carry.shape) == where[name] and not carry.requires_grad
    G, K, N, D = 2, 2, 7, 4
    assert sum(carry.numel() for carry in engine.state_dict().values()) == B * (G * N * D + G * N + K * N)


def living_tensor_bytes() -> int:
    gc.collect()
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in gc.get_objects() if is_tensor(x)}
    return sum(storages.values())


def is_tensor(x: object) -> bool:
    """Whether it has memory of its own: neither a lazy proxy, which isinstance would ask for its class, nor what stands
    for a tensor while a function is traced."""
    return type(x) in (Tensor, torch.nn.Parameter)


@pytest.mark.parametrize("carry_dtype", ["float32", "bfloat16"])
def test_memory_is_the_same_after_100_000_steps(carry_dtype: str) -> None:
    steps, chunks = 50, 2000
    cell = registry.build("cell", {"kind": "elstm", "size": 8}, 4)
    engine = RTRL(cell, 2, carry_dtype=carry_dtype)
    g = torch.Generator().manual_seed(1)
    x, state = torch.randn(steps, 2, 4, generator=g), torch.randn(steps, 2, 8, generator=g)
    is_init = torch.zeros(steps, 2, dtype=torch.bool)

    def advance(times: int) -> int:
        for _ in range(times):
            engine.advance(engine.trace(x, state, is_init))
            engine.boundary(state[0], None)
        return living_tensor_bytes()

    assert advance(chunks) == advance(1)
    assert bool(torch.isfinite(engine.weight_BGND).all()) and bool(engine.weight_BGND.any())


# ---- the carry in bfloat16 -------------------------------------------------------------------------------------------


def single_policy(cell: str) -> Policy:
    policy = make_policy(cell, 32, observation=16)
    with torch.no_grad():
        policy.cell.weight_recurrent.normal_(std=0.5)  # type: ignore[operator, union-attr]
    return policy


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("cell", some_slow(EXACT))
def test_a_bf16_carry_changes_the_gradient_by_less_than_a_percent(cell: str, steps: int, record_property: Any) -> None:
    policy = single_policy(cell)
    data = random_chunk(policy, 96, B, seed=4)
    data.is_init[:] = torch.rand(96, B, generator=torch.Generator().manual_seed(5)) < 0.03
    data.is_init[:, 4] = False
    parts = split(policy, data, steps)
    engine, stored = (RTRL(policy.cell, B, carry_dtype=kind) for kind in ("float32", "bfloat16"))  # type: ignore[arg-type]
    exact, rounded = chunked_gradient(policy, parts, engine), chunked_gradient(policy, parts, stored)
    name, shared = "cell.weight_input", "cell.weight_shared"
    error = float((rounded[name] - exact[name]).norm() / exact[name].norm())
    record_property("error", error)
    print(f"\nrelative RMS error of a bf16 carry, {cell} T={steps}: {error:.1e}")
    assert 0 < error <= 0.01
    for other in exact.keys() - {name, shared}:  # the small parts of the carry are stored in float32
        assert torch.equal(exact[other], rounded[other])


def test_a_bf16_carry_takes_half_the_memory() -> None:
    cell = registry.build("cell", {"kind": "elstm", "size": 32}, 16)
    full, half = (RTRL(cell, B, carry_dtype=kind).state_dict()["weight"] for kind in ("float32", "bfloat16"))
    assert full.dtype == torch.float32 and half.dtype == torch.bfloat16 and full.shape == half.shape
    assert half.untyped_storage().nbytes() * 2 == full.untyped_storage().nbytes()


def test_float32_is_the_default_and_an_unknown_type_names_the_nearest() -> None:
    cell = registry.build("cell", {"kind": "elstm", "size": 4}, 3)
    assert registry.build("gradient", {"kind": "rtrl"}, cell, B).weight_BGND.dtype == torch.float32
    with pytest.raises(
        ConfigError, match=r"carry_dtype is 'bf16'; .*float32, bfloat16 \(did you mean 'bfloat16'\?\)"
    ) as refusal:
        registry.build("gradient", {"kind": "rtrl", "carry_dtype": "bf16"}, cell, B)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("carry_dtype", ["float32", "bfloat16"])
def test_a_trained_carry_of_either_type_goes_through_a_checkpoint_bit_for_bit(carry_dtype: str, tmp_path: Path) -> None:
    config = make_config(gradient={"kind": "rtrl", "carry_dtype": carry_dtype})
    trainer, other = build(config, tmp_path / "a"), build(config, tmp_path / "b")

    def train(trainer: Any) -> dict[str, Tensor]:
        trainer.follow_stream()
        trainer.learner.update(trainer.context(), trainer.rollout.collect(trainer.steps))
        state: dict[str, Tensor] = trainer.learner.engine.state_dict()
        return {name: carry.clone() for name, carry in state.items()}

    for _ in range(3):
        carry = train(trainer)
    assert carry["weight"].any() and carry["weight"].dtype == getattr(torch, carry_dtype)
    checkpoint.save(tmp_path / "checkpoints", 1, trainer.shared_state(), trainer.own_state(), {}, 1)
    other.load_state_dict(checkpoint.load(tmp_path / "checkpoints")[0])
    for name, tensor in other.learner.engine.state_dict().items():
        assert tensor.dtype == carry[name].dtype and torch.equal(tensor, carry[name])
    expected, got = train(trainer), train(other)
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name])


def test_the_state_keeps_its_values_when_the_carry_is_attached() -> None:
    _, engine = filled()
    state = torch.randn(B, 7, dtype=torch.float64)
    attached = engine.attach(state)
    assert torch.equal(attached, state) and attached.requires_grad


def test_rtrl_with_a_dense_cell_is_refused_naming_what_works() -> None:
    config = make_config(policy={"cell": {"kind": "lstm"}}, gradient="rtrl")
    with pytest.raises(ConfigError, match=r"rtrl cannot train cell lstm.*bptt.*elstm") as refusal:
        check_gradient(config, RTRL, registry.load("cell", "lstm"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("cell", CELLS)
def test_bptt_trains_every_cell(cell: str) -> None:
    check_gradient(make_config(policy={"cell": {"kind": cell}}, gradient="bptt"), BPTT, registry.load("cell", cell))
