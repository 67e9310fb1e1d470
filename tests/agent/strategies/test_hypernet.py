"""Hypernetworks: the gradient reaches the generator whole, and old tasks are held by the regulariser alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.modules.generators import Form, Generator
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Outputs
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.strategies.hypernet import Hypernet
from tests.agent.gradients.test_rtrl import EXACT, B, history, split
from tests.agent.strategies.test_isolation import Life, grown_policy, lived
from tests.agent.support import make_policy

FORMS: list[Form] = ["chunked", "recurrent"]
every_form = pytest.mark.parametrize("form", FORMS)
SMALL: dict[str, Any] = {"chunk": 30, "hidden": [7, 6], "embedding": 4, "chunk_embedding": 3}


def learned(strategy: Hypernet) -> dict[str, Tensor]:
    """All that is learned, by name."""
    tasks = {f"e{task}": e for task, e in strategy.tasks.items()}
    return {n: p.detach().clone() for n, p in [*strategy.net.named_parameters(), *tasks.items()]}


# ---- the generator ---------------------------------------------------------------------------------------------------


def test_the_chunked_form_is_the_perceptron_of_the_paper_chunk_by_chunk() -> None:
    net = Generator(23, form="chunked", chunk=5, hidden=[4, 6], embedding=3, chunk_embedding=2)
    torch.nn.init.normal_(net.last.weight)
    torch.nn.init.normal_(net.last.bias)
    e = torch.randn(2, 3)
    got = net(e)
    first, second = net.layers[0], net.layers[2]
    for task in range(2):
        rows = []
        for place in net.places:
            h = torch.relu(first.weight @ torch.cat([e[task], place]) + first.bias)  # type: ignore[union-attr, operator]
            h = torch.relu(second.weight @ h + second.bias)  # type: ignore[union-attr, operator]
            rows.append(net.last.weight @ h + net.last.bias)
        torch.testing.assert_close(got[task], torch.cat(rows)[:23])


def test_in_the_recurrent_form_a_chunk_depends_on_those_before_it_and_on_none_after() -> None:
    net = Generator(20, form="recurrent", chunk=5, hidden=[6], embedding=3, chunk_embedding=2)
    torch.nn.init.normal_(net.last.weight)
    for chunk in range(4):
        made = net(torch.randn(1, 3))[0, 5 * chunk : 5 * chunk + 5]
        (by_place,) = torch.autograd.grad(made.square().sum(), net.places)
        assert (by_place.abs().sum(1) > 0).tolist() == [place <= chunk for place in range(4)]


@every_form
def test_the_policy_begins_as_it_was_built(form: Form) -> None:
    strategy = Hypernet(form=form, **SMALL)
    life = Life([strategy])
    before, said = life.values(), life.outputs(0)
    life.start(0)
    assert all(torch.equal(value, before[n]) for n, value in life.values().items())
    assert torch.equal(life.outputs(0), said)
    life.train(0)
    moved = [n for n, value in life.values().items() if not torch.equal(value, before[n])]
    assert set(moved) == set(before)  # the optimiser moves the critic


# ---- gradients -------------------------------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("cell", EXACT)
def test_the_gradient_of_the_generator_is_exact_through_the_carry(cell: str, form: Form) -> None:
    """Three chunks, resets inside and on borders. The reference is one graph: theta = theta_0 + s h(e), the policy run
    over all steps with it, all losses added up. Truncated BPTT has another gradient."""
    strategy = Hypernet(form=form, lr=0.0, critic="free", **SMALL)
    policy = make_policy(cell, 7, observation=4, tasks=2).double()
    objective = ActorCritic(policy.distribution)
    optimizer = torch.optim.SGD(policy.parameters(), 0.0)
    life = Life([])
    life.policy, life.optimizer, life.learner.objective = policy, optimizer, objective
    strategy.setup(life.ctx(None), 3)
    for parameter in (strategy.net.last.weight, strategy.net.last.bias):
        torch.nn.init.normal_(parameter, std=0.3)
    strategy.on_task_start(life.ctx(1))
    data = history(policy, 4, 3)
    parts = split(policy, data, 4)
    wanted = [*strategy.net.parameters(), strategy.tasks[1]]

    theta = strategy.named(strategy.generate([1])[0])
    whole = functional_call(Sequence(policy), {f"policy.{n}": x for n, x in theta.items()}, (data,))
    total = torch.zeros((), dtype=torch.float64)
    for start, part in zip(range(0, 12, 4), parts, strict=True):
        here = Outputs(whole[0][start : start + 4], whole[1][start : start + 4])
        total = total + objective.loss(here, part.chunk, {})[0]
    expected = torch.autograd.grad(total, wanted)
    assert all(bool(g.any()) for g in expected)

    def error(engine: GradientEngine) -> float:
        learner = Learner(policy, engine, objective, optimizer, [strategy], 0.0, torch.Generator())
        sums = [torch.zeros_like(p) for p in wanted]
        for part in parts:
            learner.update(life.ctx(1), part)
            for total, p in zip(sums, wanted, strict=True):
                assert p.grad is not None
                total += p.grad
        return max(float((g - e).abs().max() / e.abs().max()) for g, e in zip(sums, expected, strict=True))

    assert error(RTRL(policy.cell, B)) < 1e-10  # type: ignore[arg-type]
    assert error(BPTT(policy.cell, B)) > 1e-3


class Sequence(torch.nn.Module):
    """The policy on a whole chunk, as a function of its parameters."""

    def __init__(self, policy: torch.nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, data: Any) -> tuple[Tensor, Tensor]:
        policy: Any = self.policy
        x_TBD = policy.encoder(data.obs.flatten(0, 1)).view(data.steps, data.copies, -1)
        y_TBH, _ = policy.cell.sequence(x_TBD, data.state, data.is_init)
        return policy.actor.linear(y_TBH), policy.critic(y_TBH).squeeze(-1)


def test_a_step_is_that_of_torchs_adam_on_the_generator() -> None:
    strategy = Hypernet(**SMALL, lr=0.01)
    life = Life([strategy])
    life.start(0)
    life.train(0, 3)
    gradients: list[list[Tensor]] = []
    copies = [torch.nn.Parameter(p.detach().clone()) for p in [*strategy.net.parameters(), strategy.tasks[0]]]
    adam = torch.optim.Adam(copies, 0.01)
    adam.load_state_dict(copy.deepcopy(strategy.optimizer.state_dict()))
    for _ in range(2):
        life.train(0, 1)
        gradients.append([p.grad.clone() for p in [*strategy.net.parameters(), strategy.tasks[0]]])  # type: ignore[union-attr]
        for parameter, gradient in zip(copies, gradients[-1], strict=True):
            parameter.grad = gradient
        adam.step()
    for got, p in zip(copies, [*strategy.net.parameters(), strategy.tasks[0]], strict=True):
        torch.testing.assert_close(got, p)
    theta = strategy.named(strategy.generate([0])[0])
    assert all(torch.equal(life.policy.get_parameter(n), x) for n, x in theta.items())


# ---- the regulariser -------------------------------------------------------------------------------------------------


@every_form
def test_the_regulariser_is_zero_at_rest_and_the_formula_when_something_has_moved(form: Form) -> None:
    strategy = Hypernet(form=form, beta=0.5, **SMALL)
    life = Life([strategy])
    for task in range(3):
        life.start(task)
        if task:
            assert float(strategy.distance().detach()) == 0.0
            (zero,) = torch.autograd.grad(strategy.distance(), strategy.net.last.weight)
            assert not bool(zero.any())
        then = {t: strategy.view(t) for t in range(task)}
        life.train(task)
    distances = []
    for old in then:
        now = strategy.view(old)
        distances.append(sum((now[n] - then[old][n]).square().sum() for n in strategy.made))
    expected = sum(distances) / 2
    torch.testing.assert_close(strategy.distance(), expected)
    assert float(expected) > 1e-6


def test_its_gradient_goes_to_the_generator_alone_and_other_embeddings_stay() -> None:
    """With the policy's gradient zero, the whole gradient is beta times that of the distance."""
    strategy = Hypernet(beta=2.0, **SMALL)
    life, _ = lived(strategy, [0, 1, 2])
    e0, e1, e2 = (strategy.tasks[t].detach().clone() for t in range(3))
    net = [*strategy.net.parameters()]
    expected = torch.autograd.grad(2.0 * strategy.distance(), net)
    for parameter in life.policy.parameters():
        parameter.grad = None
    strategy.backward()
    for p, gradient in zip(net, expected, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, gradient)
    assert strategy.tasks[2].grad is not None and not bool(strategy.tasks[2].grad.any())
    life.train(2)
    assert torch.equal(strategy.tasks[0], e0) and torch.equal(strategy.tasks[1], e1)
    assert not torch.equal(strategy.tasks[2], e2)


@every_form
def test_old_tasks_move_less_the_stronger_they_are_held(form: Form) -> None:
    moved = []
    for beta in (0.0, 1.0, 100.0):
        strategy = Hypernet(form=form, beta=beta, lr=3e-3, **SMALL)
        life = Life([strategy])
        life.start(0)
        life.train(0, 20)
        life.start(1)
        then = life.seen(0)
        life.train(1, 20)
        moved.append(float((life.seen(0) - then).norm()))
        assert not torch.equal(life.outputs(1), then)
    assert moved[2] < 0.5 * moved[1] < 0.25 * moved[0]


# ---- views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [["encoder"], ["cell"], ["actor"], ["encoder", "cell"]])
def test_what_is_not_made_exists_once_a_task_and_is_kept_bit_for_bit(parts: Any) -> None:
    strategy = Hypernet(parts=parts, **SMALL)
    life, _ = lived(strategy, [0, 1])
    kept = {n: x.clone() for n, x in strategy.own[0].items()}
    assert set(kept) == {n for n in life.values() if n.split(".")[0] not in parts}
    life.start(2)
    life.train(2)
    with strategy.evaluation_view(life.ctx(None), 0):
        assert all(torch.equal(life.policy.get_parameter(n), x) for n, x in kept.items())
        theta = strategy.named(strategy.generate([0])[0])
        assert all(torch.equal(life.policy.get_parameter(n), x) for n, x in theta.items())


def test_a_swap_leaves_no_trace() -> None:
    strategy = Hypernet(**SMALL)
    life, _ = lived(strategy, [0, 1])
    before, state = life.values(), learned(strategy)
    first = life.seen(0)
    assert not torch.equal(first, life.outputs(1)) and torch.equal(life.seen(1), life.outputs(1))
    assert all(torch.equal(value, before[n]) for n, value in life.values().items())
    assert all(torch.equal(value, state[n]) for n, value in learned(strategy).items())
    assert torch.equal(life.seen(0), first)


def test_the_optimisers_entries_memory_and_carry_begin_anew_with_a_task() -> None:
    strategy = Hypernet(**SMALL)
    life = Life([strategy])
    assert life.start(0) == []
    life.train(0)
    adam = strategy.optimizer
    (units,) = life.start(1)
    assert units.tolist() == list(range(8))
    assert strategy.optimizer is not adam and not strategy.optimizer.state and not life.optimizer.state


@every_form
def test_a_policy_that_gets_a_task_keeps_its_views_and_trains_the_new_one(form: Form) -> None:
    options: dict[str, Any] = {"heads": "per_task", "task_observed": True}
    old = Hypernet(form=form, **SMALL)
    life, _ = lived(old, [0, 1, 2], tasks=3, **options)
    later = Life([Hypernet(form=form, **SMALL)], tasks=4, **options)
    later.policy.load_state_dict(grown_policy(life.policy, heads="per_task").state_dict())
    later.segment = life.segment
    strategy: Any = later.strategies[0]
    strategy.load_state_dict(old.state_dict())
    for task in (0, 1):
        torch.testing.assert_close(later.seen(task), life.seen(task), rtol=1e-5, atol=1e-6)
        then, now = old.view(task), strategy.view(task)
        for name, value in then.items():
            region = tuple(slice(0, n) for n in value.shape)
            torch.testing.assert_close(now[name][region], value, rtol=1e-5, atol=1e-6)
    places = torch.cat([place.flatten() for place in strategy.place.values()])
    assert torch.equal(places.sort().values, torch.arange(len(strategy.base)))
    later.train(2, 2)  # the task in view goes on
    head = later.policy.actor.linear.weight.detach().clone()
    later.start(3)
    later.train(3)
    assert not torch.equal(later.policy.actor.linear.weight[9:], head[9:])


def test_options_that_make_no_sense_are_refused() -> None:
    for options in ({"parts": []}, {"parts": ["critic"]}, {"beta": -1.0}, {"form": "x"}, {"hidden": []}):
        with pytest.raises((ValueError, RuntimeError)):
            Hypernet(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no parameters in encoder"):
        Life([Hypernet(parts=["encoder"])], encoder={"kind": "identity"})
