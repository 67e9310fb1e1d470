"""Streaming objectives: every update is that of the forward view over the whole history, taken by autograd; traces end
where they must; they are state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.agent.errors import ConfigError
from lifelong.agent.modules.values import Predictions
from lifelong.agent.objectives.streaming import Streaming
from lifelong.agent.online import OnlineAgent
from lifelong.agent.policy import Inputs, Outputs, inputs_of
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.replay.chunk import Chunk
from tests.agent.support import assert_identical, make_trainer, run

OBSERVATIONS = Box(-10, 10, (3,), np.float32)
GAMMA, LAM = 0.9, 0.8
STILL: dict[str, Any] = {"kind": "sgd", "lr": 0.0}
KINDS: dict[str, dict[str, Any]] = {
    "td": {"kind": "td", "gamma": GAMMA, "lam": LAM},
    "horde": {"kind": "td", "gamma": [0.5, 0.9, 0.0], "lam": LAM, "cumulants": ["reward", 1, 0]},
    "q_lambda": {"kind": "q_lambda", "gamma": GAMMA, "lam": LAM, "epsilon": 0.4},
    "ac_lambda": {"kind": "ac_lambda", "gamma": GAMMA, "lam": LAM, "value_weight": 0.7, "entropy_weight": 0.1},
}
ACTIONS = {"td": Box(-np.inf, np.inf, (1,), np.float32), "horde": Box(-np.inf, np.inf, (3,), np.float32)}


@contextmanager
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@dataclass
class Life:
    """What an agent lived through, and the gradients that it took."""

    agent: OnlineAgent
    chunks: list[Chunk]
    steps: list[dict[str, Tensor]]


def live(name: str, steps: int, copies: int = 3, seed: int = 0, **changes: Any) -> Life:
    """An agent among random observations and rewards; some copies' episodes end at every few steps."""
    config = {
        "policy": {"encoder": "identity", "cell": {"kind": "elstm", "size": 5}, "previous_action": True},
        "gradient": "rtrl",
        "objective": KINDS[name],
        "optimizer": STILL,
        "max_grad_norm": 0.0,
        "rollout": {"steps": 1},
        "seed": 3,
        **changes,
    }
    agent = OnlineAgent(OBSERVATIONS, ACTIONS.get(name, Discrete(3)), config, copies=copies)
    with torch.no_grad():  # heads of a size that shows
        for parameter in agent._rollout.policy.actor.parameters():
            parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(seed))
    chunks, taken = list[Chunk](), list[dict[str, Tensor]]()
    collect, advance = agent._rollout.collect, agent._trainer.advance

    def collected(steps: int) -> Experience:
        experience = collect(steps)
        chunks.append(experience.chunk)
        return experience

    def advanced() -> Any:
        result = advance()
        taken.append({n: p.grad.clone() for n, p in agent._trainer.learner.named.items() if p.grad is not None})
        return result

    agent._rollout.collect, agent._trainer.advance = collected, advanced  # type: ignore[method-assign]
    draw = np.random.default_rng(seed)
    agent.act(draw.normal(size=(copies, 3)))
    for _ in range(steps):
        end = draw.random(copies) < 0.15
        terminated = end & (draw.random(copies) < 0.5)
        obs, final = draw.normal(size=(2, copies, 3))
        agent.act(obs, draw.normal(size=copies), terminated, end & ~terminated, final_obs=final)
    return Life(agent, chunks, taken)


def moments_of(life: Life, *, truncated: bool = False) -> list[list[dict[str, Any]]]:
    """For every step and copy: predictions and scores as functions of the parameters, errors, and which are linked."""
    policy, objective = life.agent._rollout.policy, life.agent._trainer.learner.objective
    state = policy.cell.initial_state(life.chunks[0].copies)
    moments = []
    for chunk in life.chunks:
        now = inputs_of(chunk)
        now = Inputs(
            *(getattr(now, n)[0] for n in ("obs", "previous_action", "previous_reward", "task", "action_mask"))
        )
        state = state.detach() if truncated else state
        said = policy.step(now, state, chunk.is_init[0])
        state = said.state_BS
        following = chunk.next_obs.clone()
        cut = chunk.truncated[0]
        if chunk.slots:
            following[cut] = chunk.final_obs[0][cut]
        seen = Inputs(
            following, policy.distribution.features(chunk.action[0]), chunk.reward[0], now.task, now.action_mask
        )
        after = policy.step(seen, state, torch.zeros_like(cut)).outputs
        moments.append([of_copy(objective, chunk, b, said.outputs, after, following) for b in range(chunk.copies)])
    return moments


def of_copy(objective: Any, chunk: Chunk, b: int, now: Any, after: Any, following: Tensor) -> dict[str, Any]:
    """One copy at one step, from the equations of the docstrings."""
    ends, action, reward = bool(chunk.terminated[0, b]), chunk.action[0, b], chunk.reward[0, b]
    found: dict[str, Any] = {"ends": ends or bool(chunk.truncated[0, b]), "greedy": True}
    kind = type(objective).__name__
    if kind == "TD":
        gammas = [GAMMA] if objective.predictions == 1 else KINDS["horde"]["gamma"]
        cumulants = (
            [reward] if objective.predictions == 1 else [reward, *(following[b, i] * (not ends) for i in (1, 0))]
        )
        value, later = now.policy[b], after.policy[b].detach() * (not ends)
        found["score"] = list(value)
        found["error"] = [c + g * v - w for c, g, v, w in zip(cumulants, gammas, later, value.detach(), strict=True)]
        return {**found, "decay": [g * LAM for g in gammas]}
    found["decay"] = [GAMMA * LAM]
    if kind == "QLambda":
        q = now.policy[b]
        found["greedy"] = int(q.argmax()) == int(action)
        later = after.policy[b].max().detach() * (not ends)
        return {**found, "score": [q[action]], "error": [reward + GAMMA * later - q[action].detach()]}
    error = reward + GAMMA * after.value[b].detach() * (not ends) - now.value[b].detach()
    log_p = torch.log_softmax(now.policy[b], -1)
    entropy = -(log_p.exp() * log_p).sum()
    return {**found, "score": [0.7 * now.value[b] + log_p[action] + 0.1 * error.sign() * entropy], "error": [error]}


def expected(life: Life, *, truncated: bool = False) -> list[dict[str, Tensor]]:
    """The gradient of every step: minus the mean over the copies of delta_t sum_k (product of decays) grad f_k."""
    named = dict(life.agent._rollout.policy.named_parameters())
    zero = {n: torch.zeros_like(p) for n, p in named.items()}
    moments, steps = moments_of(life, truncated=truncated), []
    slopes: dict[tuple[int, int, int], dict[str, Tensor]] = {}
    for t, row in enumerate(moments):
        total = {n: x.clone() for n, x in zero.items()}
        for b, moment in enumerate(row):
            for k, score in enumerate(moment["score"]):
                grads = torch.autograd.grad(score, list(named.values()), retain_graph=True, allow_unused=True)
                slopes[t, b, k] = {n: g for n, g in zip(named, grads, strict=True) if g is not None}
                weight = 1.0
                for past in range(t, -1, -1):  # back to the last end or exploratory action
                    for n, g in slopes[past, b, k].items():
                        total[n] -= moment["error"][k] * weight * g / len(row)
                    weight *= moments[past][b]["decay"][k] * moments[past][b]["greedy"]
                    if past and moments[past - 1][b]["ends"]:
                        break
        steps.append(total)
    return steps


CASES = [
    ("td", "elstm", {}),
    ("td", "rtu", {"copies": 1}),
    ("horde", "min_gru", {"copies": 2}),
    ("q_lambda", "elstm", {}),
    ("q_lambda", "rtu", {"copies": 1}),
    ("ac_lambda", "elstm", {}),
    ("ac_lambda", "diagonal_lstm", {"copies": 1}),
    ("ac_lambda", "elstm", {"reset": "never", "copies": 2}),
]


@pytest.mark.parametrize(("name", "cell", "options"), CASES)
def test_every_update_is_the_forward_view_over_the_whole_history(name: str, cell: str, options: dict[str, Any]) -> None:
    policy = {"encoder": "identity", "cell": {"kind": cell, "size": 5}, "previous_action": True}
    policy |= {"reset_memory_on": options.get("reset", "episode")}
    with double():
        life = live(name, 24, options.get("copies", 3), policy=policy)
        exact, cut = expected(life), expected(life, truncated=True)
    assert len(life.steps) == 24
    recurrent = [f"cell.{n}" for n in life.agent._rollout.policy.cell.recurrent_parameters()]
    apart = 0.0
    for t, step in enumerate(life.steps):
        for n, gradient in exact[t].items():
            assert float((step.get(n, torch.zeros(())) - gradient).abs().max()) <= 1e-10, (t, n)
        apart = max(apart, *(float((step[n] - cut[t][n]).abs().max()) for n in recurrent))
    assert apart > 1e-3  # truncation at one step is something else


@pytest.mark.parametrize("name", ["td", "q_lambda", "ac_lambda"])
def test_one_step_truncation_is_what_bptt_gives(name: str) -> None:
    with double():
        life = live(name, 16, gradient="bptt")
        for step, cut in zip(life.steps, expected(life, truncated=True), strict=True):
            for n, gradient in cut.items():
                assert float((step.get(n, torch.zeros(())) - gradient).abs().max()) <= 1e-10, n


def test_the_updates_of_an_episode_add_up_to_lambda_returns() -> None:
    """sum_t delta_t z_t = sum_t (G_t - v_t) grad v_t with G_t by its definition, the mean of n-step returns."""
    with double():
        life = live("td", 40, 1, seed=2)
        moments = [row[0] for row in moments_of(life)]
        last = next(t for t, moment in enumerate(moments) if moment["ends"] and t > 4)
        first = max((t + 1 for t in range(last) if moments[t]["ends"]), default=0)
        named = dict(life.agent._rollout.policy.named_parameters())
        total = {n: torch.zeros_like(p) for n, p in named.items()}
        value = [moments[t]["score"][0] for t in range(first, last + 1)]
        error = [moments[t]["error"][0] for t in range(first, last + 1)]
        T = len(value)
        assert T >= 5
        for t in range(T):
            n_step = [sum(GAMMA**i * error[t + i] for i in range(n)) for n in range(1, T - t + 1)]  # minus v_t
            parts = [(1 - LAM) * LAM ** (n - 1) * x for n, x in enumerate(n_step[:-1], 1)]
            advantage = sum(parts) + LAM ** (T - t - 1) * n_step[-1]
            grads = torch.autograd.grad(value[t], list(named.values()), retain_graph=True, allow_unused=True)
            for n, g in zip(named, grads, strict=True):
                if g is not None:
                    total[n] -= advantage * g
        for n, gradient in total.items():
            got = sum(life.steps[t][n] for t in range(first, last + 1))
            assert float((got - gradient).abs().max()) <= 1e-10, n


def test_exploratory_actions_cut_traces_and_not_the_carry() -> None:
    objective = {**KINDS["q_lambda"], "epsilon": 1.0}
    with double():
        for seed in range(20):
            life = live("q_lambda", 6, 1, seed, objective=objective)
            moments = [row[0] for row in moments_of(life)]
            if not (moments[-1]["greedy"] or moments[-2]["ends"]):
                break
        assert not moments[-1]["greedy"] and not moments[-2]["ends"]
        learner = life.agent._trainer.learner
        slope = torch.autograd.grad(moments[-1]["score"][0], learner.parameters, allow_unused=True)
        alone = [torch.zeros_like(p) if g is None else g for p, g in zip(learner.parameters, slope, strict=True)]
        assert isinstance(learner.objective, Streaming) and learner.objective.trace_RP is not None
        torch.testing.assert_close(learner.objective.trace_RP[0], torch.cat([g.reshape(-1) for g in alone]))
        other = live("q_lambda", 6, 1, seed, objective={**objective, "lam": 0.0})
    assert_identical(other.agent._trainer.learner.engine.state_dict(), learner.engine.state_dict())


def test_another_task_ends_the_traces(tmp_path: Path) -> None:
    tasks = [{"name": n, "env": {"kind": "TMaze", "corridor": 30, "reversed": int(n == "b")}} for n in ("a", "b")]
    trainer = make_trainer(
        tmp_path,
        stream={"tasks": tasks, "steps_per_task": 40},
        objective={"kind": "ac_lambda", "gamma": 1.0, "lam": 1.0},
        optimizer=STILL,
        rollout={"copies": 4, "steps": 1},
    )
    objective = trainer.learner.objective
    assert isinstance(objective, Streaming)
    seen = []
    for _ in range(12):
        trainer.advance()
        assert objective.trace_RP is not None
        seen.append(float(objective.trace_RP.norm()))
    assert seen[9] > 2 * seen[10]  # the eleventh step is the first of b


# ---- QRC(lambda) -----------------------------------------------------------------------------------------------------

QRC = {"kind": "qrc_lambda", "gamma": GAMMA, "lam": LAM, "epsilon": 0.4, "h_lr": 0.1, "beta": 0.3}


def corrected(life: Life) -> tuple[list[dict[str, Tensor]], Tensor]:
    """The gradient of every step of QRC(lambda) from its equations, by autograd over the whole history, and h."""
    policy = life.agent._rollout.policy
    named, state = dict(policy.named_parameters()), policy.cell.initial_state(life.chunks[0].copies)
    B = life.chunks[0].copies
    h = torch.zeros(3, policy.cell.output_size + 1)
    z = [{n: torch.zeros_like(p) for n, p in named.items()} for _ in range(B)]
    z_h, e, lives, steps = [torch.zeros_like(h) for _ in range(B)], [0.0] * B, [False] * B, []

    def gradient(x: Tensor) -> dict[str, Tensor]:
        grads = torch.autograd.grad(x, list(named.values()), retain_graph=True, allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), grads, strict=True)}

    for chunk in life.chunks:
        now = inputs_of(chunk)
        fields = ("obs", "previous_action", "previous_reward", "task", "action_mask")
        x = policy.encode(Inputs(*(getattr(now, n)[0] for n in fields)))
        y, state = policy.cell.step(x, state * (~chunk.is_init[0]).unsqueeze(1))
        q = policy.heads(y, Inputs(*(getattr(now, n)[0] for n in fields))).policy
        following, cut = chunk.next_obs.clone(), chunk.truncated[0]
        if chunk.slots:
            following[cut] = chunk.final_obs[0][cut]
        action = policy.distribution.features(chunk.action[0])
        seen = Inputs(following, action, chunk.reward[0], now.task[0], now.action_mask[0])
        later = policy.heads(policy.cell.step(policy.encode(seen), state)[0], seen).policy.max(1).values
        step, moved = {n: torch.zeros_like(p) for n, p in named.items()}, torch.zeros_like(h)
        for b in range(B):
            a, live = int(chunk.action[0, b]), float(~chunk.terminated[0, b])
            delta = chunk.reward[0, b] + GAMMA * live * later[b] - q[b, a]
            slope, of_delta = gradient(q[b, a]), gradient(delta)
            keep = GAMMA * LAM * lives[b] * (int(q[b].argmax()) == a)
            of_h = torch.zeros_like(h)
            of_h[a] = torch.cat([y[b].detach(), torch.ones(1)])
            h_now = (of_h * h).sum()
            z[b] = {n: keep * z[b][n] + slope[n] for n in named}
            z_h[b], e[b] = keep * z_h[b] + of_h, keep * e[b] + h_now
            for n in named:
                step[n] -= (delta.detach() * z[b][n] - h_now * slope[n] - e[b] * of_delta[n]) / B
            moved += (delta.detach() * z_h[b] - h_now * of_h) / B
            lives[b] = not bool(chunk.terminated[0, b] | chunk.truncated[0, b])
        h = h + 0.1 * (moved - 0.3 * h)
        steps.append(step)
    return steps, h


@pytest.mark.parametrize(("cell", "copies"), [("elstm", 2), ("rtu", 1)])
def test_qrc_follows_its_equations_over_the_whole_history(cell: str, copies: int) -> None:
    policy = {"encoder": "identity", "cell": {"kind": cell, "size": 5}, "previous_action": True}
    with double():
        life = live("q_lambda", 20, copies, objective=QRC, policy=policy)
        exact, h = corrected(life)
        for t, step in enumerate(life.steps):
            for n, gradient in exact[t].items():
                assert float((step[n] - gradient).abs().max()) <= 1e-10, (t, n)
        objective: Any = life.agent._trainer.learner.objective
        torch.testing.assert_close(objective.h_AH, h, rtol=0, atol=1e-10)
        plain = live("q_lambda", 20, copies, objective=QRC | {"h_lr": 0.0}, policy=policy)
        semi = live("q_lambda", 20, copies, policy=policy)
    assert float(h.abs().max()) > 1e-2
    for n, gradient in semi.steps[-1].items():
        torch.testing.assert_close(plain.steps[-1][n], gradient)  # h is zero: the same as q_lambda
        assert not torch.allclose(life.steps[-1][n], gradient)


# ---- all copies at once ----------------------------------------------------------------------------------------------

POLICIES: list[dict[str, Any]] = [
    {"encoder": {"kind": "mlp", "hidden": [7, 6], "norm": "layer"}, "cell": {"kind": "elstm", "size": 5}},
    {"encoder": {"kind": "mlp", "activation": "crelu", "hidden": [7]}, "cell": {"kind": "lru", "size": 5}},
    {"encoder": {"kind": "depth_recurrent", "hidden": 5}, "cell": {"kind": "diagonal_gru", "size": 4}},
    {"encoder": {"kind": "mlp", "hidden": [7]}, "cell": {"kind": "rtu", "size": 5, "form": "nonlinear"}},
    {"encoder": {"kind": "mlp", "hidden": [7]}, "cell": {"kind": "qrnn", "size": 5}},
]


@pytest.mark.parametrize("engine", ["rtrl", "bptt", "online_rtrl", "immediate"])
@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_of_all_copies_at_once_are_those_one_by_one(policy: dict[str, Any], engine: str) -> None:
    with double():
        names = ["ac_lambda", "horde"] if policy is POLICIES[0] else ["ac_lambda"]
        for name in names:
            policy = {**policy, "previous_action": True}
            at_once = live(name, 9, policy=policy, gradient=engine)
            assert at_once.agent._trainer.learner.objective.per_copy is not None  # type: ignore[attr-defined]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("lifelong.agent.objectives.streaming.refusal", lambda *_: "a test")
                one_by_one = live(name, 9, policy=policy, gradient=engine)
            assert one_by_one.agent._trainer.learner.objective.per_copy is None  # type: ignore[attr-defined]
            for a, b in zip(at_once.steps, one_by_one.steps, strict=True):
                for n in a:
                    assert float((a[n] - b[n]).abs().max()) <= 1e-12, n
            assert_identical(
                at_once.agent._trainer.learner.engine.state_dict(),
                one_by_one.agent._trainer.learner.engine.state_dict(),
            )


def test_a_gaussian_policy_and_a_policy_that_is_not_known_through_and_through(tmp_path: Path) -> None:
    """A free standard deviation has its gradient; a dense cell is differentiated copy by copy."""
    tasks = [{"name": "p", "env": {"kind": "Pendulum", "max_episode_steps": 20}}]
    steps = {}
    for cell, engine in (("elstm", "rtrl"), ("gru", "snap1")):
        for at_once in (True, False):
            with pytest.MonkeyPatch.context() as patch:
                if not at_once:
                    patch.setattr("lifelong.agent.objectives.streaming.refusal", lambda *_: "a test")
                trainer = make_trainer(
                    tmp_path / f"{cell}{at_once}",
                    stream={"tasks": tasks, "steps_per_task": 1000},
                    policy={"cell": {"kind": cell, "size": 5}},
                    gradient=engine,
                    objective={"kind": "ac_lambda"},
                    optimizer=STILL,
                    rollout={"copies": 3, "steps": 1},
                )
                for _ in range(5):
                    trainer.advance()
            objective: Any = trainer.learner.objective
            assert (objective.per_copy is not None) == (at_once and cell == "elstm")
            steps[cell, at_once] = objective.trace_RP
        assert float(steps[cell, True].abs().sum()) > 0
        torch.testing.assert_close(steps[cell, True], steps[cell, False], rtol=1e-4, atol=1e-5)


# ---- as part of a run ------------------------------------------------------------------------------------------------

SMALL = {"rollout": {"copies": 2, "steps": 1}, "stream": {"steps_per_task": 60}}
RULES = ["sgd", "adam", "obgd", "intentional", "autostep"]


@pytest.mark.parametrize(
    ("name", "rule"), [("ac_lambda", rule) for rule in RULES] + [("q_lambda", "obgd"), ("qrc_lambda", "sgd")]
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, name: str, rule: str) -> None:
    options = {"objective": {"kind": name}, "optimizer": {"kind": rule, "lr": 0.01}, **SMALL}
    whole, part, rest = (make_trainer(tmp_path / folder, **options) for folder in ("whole", "part", "part"))
    run(whole)
    run(part, until=70)
    saved, _ = checkpoint.load(tmp_path / "part" / "checkpoints")
    assert saved["traces"]["trace"].abs().sum() > 0
    rest.load_state_dict(saved)
    run(rest)
    assert_identical(rest.state_dict(), whole.state_dict())


@pytest.mark.parametrize(("name", "copies"), [("ac_lambda", 2), ("horde", None)])
def test_an_agent_that_was_saved_goes_on_bit_for_bit(tmp_path: Path, name: str, copies: int | None) -> None:
    config = {
        "policy": {"encoder": "identity", "cell": {"kind": "elstm", "size": 5}},
        "gradient": {"kind": "online_rtrl", "window": 6, "taylor": True},
        "objective": KINDS[name],
        "optimizer": "intentional",
        "rollout": {"steps": 1},
    }
    agent = OnlineAgent(OBSERVATIONS, ACTIONS.get(name, Discrete(3)), config, copies=copies)
    draw, shape = np.random.default_rng(0), () if copies is None else (copies,)
    moments = [(draw.normal(size=(*shape, 3)), draw.normal(size=shape) if shape else draw.normal()) for _ in range(40)]
    agent.act(moments[0][0])
    for obs, reward in moments[1:20]:
        agent.act(obs, reward)
    agent.save(tmp_path / "agent.pt")
    other = OnlineAgent.load(tmp_path / "agent.pt")
    for obs, reward in moments[20:]:
        np.testing.assert_array_equal(agent.act(obs, reward), other.act(obs, reward))
    assert_identical(agent._trainer.shared_state(), other._trainer.shared_state())
    assert_identical(agent._trainer.own_state()["traces"], other._trainer.own_state()["traces"])


def test_copies_of_two_batches_do_not_see_each_other() -> None:
    """The gradient of a batch is the mean of those of its copies alone."""
    with double():
        both = live("td", 10, 2)
        rows = both.agent._trainer.learner.objective.trace_RP  # type: ignore[attr-defined]
        alone = expected(Life(both.agent, [c.select(torch.tensor([1])) for c in both.chunks], []))
        twice = expected(Life(both.agent, [c.select(torch.tensor([0])) for c in both.chunks], []))
    assert len(rows) == 2
    for n, gradient in both.steps[-1].items():
        assert float((gradient - 0.5 * (alone[-1][n] + twice[-1][n])).abs().max()) <= 1e-10


def test_steps_that_are_not_learned_from_end_the_traces() -> None:
    life = live("ac_lambda", 5, 2)
    objective = life.agent._trainer.learner.objective
    assert isinstance(objective, Streaming) and objective.trace_RP is not None
    assert float(objective.trace_RP.abs().sum()) > 0
    objective.reset(torch.tensor([True, False]))
    assert float(objective.trace_RP[0].abs().sum()) == 0 < float(objective.trace_RP[1].abs().sum())


class Shrinks(Strategy):
    """A loss of a strategy whose gradient is half the parameters."""

    def extra_loss(self, ctx: Context, batch: Chunk, outputs: Outputs, live: int) -> Tensor:
        return torch.stack([0.25 * p.square().sum() for p in ctx.policy.parameters()]).sum()


def test_losses_of_strategies_are_added(tmp_path: Path) -> None:
    options = {"objective": {"kind": "ac_lambda"}, "optimizer": STILL, "max_grad_norm": 0.0, **SMALL}
    plain = make_trainer(tmp_path / "a", **options)
    drawn = make_trainer(tmp_path / "b", strategy=[{"kind": f"{__name__}:Shrinks"}], **options)
    for _ in range(3):
        plain.advance()
        drawn.advance()
    for name, parameter in drawn.learner.named.items():
        added = parameter.grad - plain.learner.named[name].grad  # type: ignore[operator]
        torch.testing.assert_close(added, 0.5 * parameter.detach(), msg=name)


REFUSED = [
    ({"rollout": {"steps": 4}, "objective": "ac_lambda"}, "set it to 1"),
    ({"objective": "actor_critic", "optimizer": "obgd"}, "optimizer obgd sizes steps along traces"),
    ({"objective": "qrc_lambda", "optimizer": "obgd", "rollout": {"steps": 1}}, "whose steps are more than that"),
    ({"objective": "td", "rollout": {"steps": 1}}, "one-dimensional Box"),
    ({"objective": "ac_lambda", "rollout": {"steps": 1}, "strategy": "clear"}, "replays old data"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_trainer(tmp_path, **changes)


def test_predictions_are_not_drawn() -> None:
    predictions = Predictions(Box(-1, 1, (2,), np.float32))
    params = torch.tensor([[0.5, 3.0]])
    assert predictions.act(params, None).tolist() == predictions.mode(params).tolist() == [[0.5, 3.0]]
    assert predictions.clip(params).tolist() == [[0.5, 1.0]]
    other = torch.tensor([[0.0, 1.0]])
    gaussian = torch.distributions.Normal(params, 1.0)
    torch.testing.assert_close(predictions.log_prob(params, other), gaussian.log_prob(other).sum(-1))
    torch.testing.assert_close(predictions.entropy(params), gaussian.entropy().sum(-1))
    expected = torch.distributions.kl_divergence(gaussian, torch.distributions.Normal(other, 1.0)).sum(-1)
    torch.testing.assert_close(predictions.kl(params, other), expected)
