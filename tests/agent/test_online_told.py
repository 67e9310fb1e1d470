"""What a program can say beside rewards: masks, tasks, targets, some copies, late rewards; and when it is learned."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.envs.toy_text.taxi import TaxiEnv
from gymnasium.spaces import Box
from torch import Tensor

from lifelong.agent.errors import ConfigError, EnvError, NonFiniteError
from lifelong.agent.online import OnlineAgent
from lifelong.agent.runtime.background import Background
from tests.agent.support import assert_identical
from tests.agent.test_online import SPACES, World, agent_for, config, parameters

OBS = np.zeros(3, np.float32)


def chunks_of(agent: OnlineAgent) -> list[Any]:
    """The experiences that it learns from, as they come."""
    seen: list[Any] = []
    collect = agent._rollout.collect

    def collected(*arguments: Any) -> Any:
        seen.append(collect(*arguments))
        return seen[-1]

    agent._rollout.collect = collected  # type: ignore[method-assign]
    return seen


# ---- info ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["action_mask", "action_masks"])
def test_an_action_that_is_masked_is_never_taken_and_is_learned_as_such(key: str) -> None:
    agent = agent_for(policy={"encoder": "identity", "cell": {"kind": "elstm", "size": 4}})
    chunks = chunks_of(agent)
    masks = [np.array(m, np.int8) for m in ([1, 0, 1], [0, 1, 0], [0, 1, 1], [1, 1, 0])]
    action = agent.act(OBS, info={key: masks[0]})
    for t in range(1, 40):
        assert masks[(t - 1) % 4][action] == 1
        action = agent.act(OBS + t / 10, 1.0, info={key: masks[t % 4], "other": "words"})
    chunk = chunks[0].chunk
    np.testing.assert_array_equal(chunk.action_mask[:, 0].numpy(), np.stack(masks).astype(bool))
    forced = chunk.policy[1, 0].softmax(-1)
    np.testing.assert_allclose(forced, [0.0, 1.0, 0.0], atol=1e-6)
    assert float(chunk.log_prob[1, 0]) == pytest.approx(0.0, abs=1e-6)
    plain = agent_for(policy={"encoder": "identity", "cell": {"kind": "elstm", "size": 4}})
    plain.act(OBS)
    for t in range(1, 40):
        plain.act(OBS + t / 10, 1.0)
    masked, unmasked = parameters(agent)["actor.linear.weight"], parameters(plain)["actor.linear.weight"]
    assert not torch.equal(masked, unmasked)


def test_masks_of_a_vector_environment_may_be_of_some_copies() -> None:
    agent = agent_for(copies=2)
    obs, mask = np.zeros((2, 3), np.float32), np.array([[0, 0, 1], [0, 0, 0]])
    action = agent.act(obs, info={"action_mask": mask, "_action_mask": np.array([True, False])})
    assert action[0] == 2
    np.testing.assert_array_equal(agent._rollout.mask_BA, [[False, False, True], [True, True, True]])
    objects = np.array([None, np.array([1, 0, 0])], dtype=object)
    assert agent.act(obs, np.zeros(2), info={"action_mask": objects})[1] == 0


def test_taxi_of_gymnasium_is_driven_without_a_forbidden_action() -> None:
    env = TaxiEnv()
    agent = OnlineAgent(env.observation_space, env.action_space, config(policy={"encoder": {"kind": "mlp"}}))
    obs, info = env.reset(seed=0)
    action = agent.act(obs, info=info)
    for _ in range(60):
        assert info["action_mask"][action] == 1
        obs, reward, terminated, truncated, info = env.step(action)
        action = agent.act(obs, reward, terminated, truncated, info)
        if action is None:
            obs, info = env.reset()
            action = agent.act(obs, info=info)
    assert agent.report()["step"] == 60


@pytest.mark.parametrize(
    ("changes", "info", "sentence"),
    [
        ({}, {"action_mask": [1, 0]}, r"the action mask has shape \(2,\); it must be \(3,\)"),
        ({}, {"action_mask": [0, 0, 0]}, "leaves no action"),
        ({}, [1], "info is a list; it must be the dict"),
        ({"objective": {"kind": "q_learning"}}, {"action_mask": [1, 1, 0]}, "values of actions cannot be masked"),
    ],
)
def test_info_that_does_not_fit_is_one_sentence(changes: dict[str, Any], info: Any, sentence: str) -> None:
    with pytest.raises(EnvError, match=sentence):
        agent_for(**changes).act(OBS, info=info)


def test_masks_are_there_from_the_first_call_on_or_never() -> None:
    agent = agent_for()
    agent.act(OBS)
    with pytest.raises(EnvError, match="that of the first call had none; give info in every call"):
        agent.act(OBS, 0.0, info={"action_mask": [1, 1, 0]})
    assert agent.act(OBS, 0.0) in (0, 1, 2)


@pytest.mark.parametrize("said", [{"task": "two"}, {"task_id": 1}, {"task": np.array([1])}])
def test_a_task_in_info_is_a_boundary(said: dict[str, Any]) -> None:
    stream = {"boundaries": "given", "task_id": "observed"}
    by_info, by_call = (agent_for(stream=stream, tasks=("one", "two")) for _ in range(2))
    for agent in (by_info, by_call):
        agent.act(OBS, info={"task": "one"} if agent is by_info else None)
        for _ in range(5):
            agent.act(OBS, 1.0)
    by_call.boundary("two")
    for _ in range(6):
        assert by_info.act(OBS, 1.0, info=said) == by_call.act(OBS, 1.0)
    assert by_info._trainer.context().task == by_call._trainer.context().task == 1
    assert_identical(parameters(by_info), parameters(by_call))
    with pytest.raises(EnvError, match=r"unknown task in info 'too'.*two"):
        by_info.act(OBS, 1.0, info={"task": "too"})
    with pytest.raises(EnvError, match="info has task 2, and there are 2 tasks: one, two"):
        by_info.act(OBS, 1.0, info={"task": 2})


def test_final_observations_are_read_from_info() -> None:
    obs, last = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    apart, inside = agent_for(copies=2), agent_for(copies=2)
    ended = np.array([False, True])
    for agent in (apart, inside):
        agent.act(obs)
        for t in range(8):
            done = ended & (t == 2)
            how = {"final_obs": last} if agent is apart else {"info": {"final_obs": np.array([None, last[1]], object)}}
            agent.act(obs, np.ones(2), False, done, **(how if t == 2 else {}))  # type: ignore[arg-type]
    assert_identical(apart._trainer.state_dict()["rollout"], inside._trainer.state_dict()["rollout"])
    assert_identical(parameters(apart), parameters(inside))


# ---- targets ---------------------------------------------------------------------------------------------------------


def test_predictions_are_learned_from_targets_where_there_are_any() -> None:
    """The gradient of a chunk is that of the mean squared error over the steps with a target, by autograd."""
    raw = config(objective="supervised", optimizer={"kind": "sgd", "lr": 0.0}, max_grad_norm=0.0)
    agent = OnlineAgent(Box(-1, 1, (2,)), Box(-5, 5, (1,)), raw)
    chunks, obs = chunks_of(agent), np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    targets = [np.array([3.0]), None, np.array([-4.0]), None]
    prediction = agent.act(obs[0])
    for t in range(4):
        assert prediction.shape == (1,)
        prediction = agent.act(obs[t + 1], target=targets[t])
    chunk = chunks[0].chunk
    assert chunk.target_mask[:, 0].tolist() == [True, False, True, False]
    got = {name: p.grad.clone() for name, p in agent._trainer.learner.named.items() if p.grad is not None}
    policy = agent._trainer.rollout.policy
    outputs = policy.sequence(chunk, policy.cell.initial_state(1))
    mean = outputs.policy[:, 0, 0]
    loss = (0.5 * (mean[0] - 3.0) ** 2 + 0.5 * (mean[2] + 4.0) ** 2) / 2
    wanted = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    for (name, _), gradient in zip(policy.named_parameters(), wanted, strict=True):
        if gradient is not None:
            torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-5)


def test_a_sine_is_learned_from_targets_in_info() -> None:
    raw = config(objective="supervised", policy={"encoder": "identity", "cell": {"kind": "elstm", "size": 16}})
    agent = OnlineAgent(Box(-1, 1, (1,)), Box(-np.inf, np.inf, (1,)), raw)
    errors, prediction = [], agent.act(np.zeros(1))
    for t in range(1, 1500):
        truth = np.sin([t / 5])
        errors.append(abs(float(prediction[0] - truth[0])))
        prediction = agent.act(truth, info={"target": truth})
    assert np.mean(errors[-100:]) < 0.2 * np.mean(errors[:50])


@pytest.mark.parametrize(
    ("target", "sentence"),
    [(3, r"the target is 3, which is not in the space Discrete\(3\)"), ([0, 1], r"the target has shape \(2,\)")],
)
def test_a_target_that_does_not_fit_is_one_sentence(target: Any, sentence: str) -> None:
    agent = agent_for(objective="supervised")
    agent.act(OBS)
    with pytest.raises(EnvError, match=sentence):
        agent.act(OBS, target=target)
    other = agent_for()
    other.act(OBS)
    with pytest.raises(EnvError, match="objective actor_critic does not learn from targets; use supervised"):
        other.act(OBS, 0.0, target=1)


# ---- some copies, and rewards that come late -------------------------------------------------------------------------

STILL = {"optimizer": {"kind": "sgd", "lr": 0.0}, "max_grad_norm": 0.0}


class Script:
    """What a copy sees and gets at its own step t, whatever it does."""

    def __init__(self, copy: int) -> None:
        generator = np.random.default_rng(copy)
        self.obs = generator.normal(size=(60, 3)).astype(np.float32)
        self.reward = generator.normal(size=60)
        self.end = [t % 7 == 6 for t in range(60)]


def summed_gradients(agent: OnlineAgent) -> dict[str, Tensor]:
    """The gradients of all updates, in double precision, each weighted by the copies that it was made from."""
    sums: dict[str, Tensor] = {}
    advance = agent._trainer.advance

    def advanced() -> Any:
        experience = advance()
        assert experience is not None
        for name, p in agent._trainer.learner.named.items():
            if p.grad is not None:
                sums[name] = sums.get(name, torch.zeros_like(p)) + p.grad * experience.chunk.copies
        return experience

    agent._trainer.advance = advanced  # type: ignore[method-assign]
    return sums


def forced(agent: OnlineAgent) -> None:
    """The action is a function of what is seen: how often it is asked must not matter."""
    agent._lane = None  # which draws by itself
    agent._rollout.policy.distribution.act = lambda params, generator: params.argmax(-1)  # type: ignore[method-assign]


def test_copies_that_are_stepped_one_by_one_learn_what_they_learn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """With parameters that stand still the sum of all gradients is the same, in whatever order copies are asked, with
    exact gradients over the whole history of each."""
    monkeypatch.setattr(torch, "get_default_dtype", torch.get_default_dtype)
    torch.set_default_dtype(torch.float64)
    try:
        together, apart = agent_for(copies=3, **STILL), agent_for(copies=3, **STILL)
        sums = [summed_gradients(agent) for agent in (together, apart)]
        scripts = [Script(copy) for copy in range(3)]
        for agent in (together, apart):
            forced(agent)
        actions: list[list[list[int]]] = [[[] for _ in range(3)] for _ in range(2)]

        def given(t: int, copies: list[int]) -> tuple[Any, ...]:
            of = [scripts[copy] for copy in copies]
            obs = np.stack([one.obs[t] for one in of])
            if t == 0:
                return (obs,)
            end = np.array([one.end[t - 1] for one in of])
            return obs, np.array([one.reward[t - 1] for one in of]), end, np.zeros(len(of), bool)

        for t in range(41):
            for copy, action in enumerate(together.act(*given(t, [0, 1, 2]), final_obs=np.zeros((3, 3)))):
                actions[0][copy].append(int(action))
        order = np.random.default_rng(5)
        at = [0, 0, 0]
        while min(at) < 41:
            copies = [copy for copy in order.permutation(3).tolist() if at[copy] < 41 and order.random() < 0.5]
            for same in {at[copy] for copy in copies}:
                some = [copy for copy in copies if at[copy] == same]
                made = apart.act(*given(same, some), final_obs=np.zeros((len(some), 3)), ids=some)
                for copy, action in zip(some, made, strict=True):
                    actions[1][copy].append(int(action))
                    at[copy] += 1
        assert actions[0] == actions[1]
        assert together._trainer.step == apart._trainer.step == 120
        assert apart._trainer.learner.steps > together._trainer.learner.steps == 10
        for name, total in sums[0].items():
            torch.testing.assert_close(sums[1][name], total, atol=1e-10, rtol=0)
        reports = [agent.report() for agent in (together, apart)]
        assert reports[0]["continual/online_return"] == pytest.approx(reports[1]["continual/online_return"])
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("order", ["in time", "late", "backwards"])
def test_rewards_that_come_late_teach_what_rewards_in_time_do(order: str) -> None:
    """With parameters that stand still; the rewards of a chunk come in order, several steps late or backwards."""
    in_time, late = agent_for(**STILL), agent_for(**STILL)
    sums = [summed_gradients(agent) for agent in (in_time, late)]
    script = Script(0)
    for agent in (in_time, late):
        forced(agent)
    first, tickets = [in_time.act(script.obs[0])], [late.act_later(script.obs[0])]
    for t in range(1, 33):
        end = script.end[t - 1]
        action = in_time.act(script.obs[t], script.reward[t - 1], end)
        ticket = late.act_later(script.obs[t], end)
        if order == "in time":
            late.feedback(tickets[-1], script.reward[t - 1])
        if end:
            assert action is None and ticket is None
            action, ticket = in_time.act(script.obs[t]), late.act_later(script.obs[t])
        first.append(action)
        tickets.append(ticket)
        if order == "late" and t >= 6:
            late.feedback(tickets[t - 6], script.reward[t - 6])
    waiting = {"in time": [], "late": range(27, 32), "backwards": range(31, -1, -1)}[order]
    for t in waiting:
        late.feedback(tickets[t], script.reward[t])
    for _ in range(8):
        late._finish_ready()  # one chunk a call
    assert [ticket.action for ticket in tickets] == first  # type: ignore[union-attr]
    assert late._trainer.step == in_time._trainer.step == 32
    for name, total in sums[0].items():
        torch.testing.assert_close(sums[1][name], total, atol=1e-5, rtol=1e-4)
    with pytest.raises(EnvError, match="does not wait for a reward"):
        late.feedback(tickets[3], 1.0)  # type: ignore[arg-type]


def test_a_step_whose_reward_never_comes_does_not_count() -> None:
    agent = agent_for()
    chunks = chunks_of(agent)
    tickets = [agent.act_later(OBS + t) for t in range(5)]
    for t, reward in enumerate([1.0, None, 2.0, 3.0]):
        agent.feedback(tickets[t], reward)  # type: ignore[arg-type]
    assert chunks[0].chunk.weight[:, 0].tolist() == [1.0, 0.0, 1.0, 1.0]
    assert chunks[0].chunk.reward[:, 0].tolist() == [1.0, 0.0, 2.0, 3.0]


def test_steps_that_older_parameters_acted_are_known_as_such() -> None:
    agent = agent_for()
    chunks = chunks_of(agent)
    tickets = [agent.act_later(OBS + t) for t in range(9)]
    for ticket in tickets[:8]:
        agent.feedback(ticket, 1.0)  # type: ignore[arg-type]
    assert [chunk.lags for chunk in chunks] == [False, True]
    assert chunks[1].acted is None


REFUSED = [
    ({"objective": {"kind": "ppo", "minibatches": 1}}, "objective ppo does not correct for; use objective"),
    ({"strategy": ["ewc"], "stream": {"boundaries": "given"}}, "ewc consolidates from chunks of all copies"),
    ({"stream": {"boundaries": "detected"}}, "a detector looks at all copies at once"),
    ({"policy": {"previous_reward": True}}, "the policy reads the last reward, which is not there yet"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_what_needs_all_copies_or_all_rewards_at_once_is_refused(changes: dict[str, Any], sentence: str) -> None:
    agent = agent_for(**changes)
    with pytest.raises(ConfigError, match=f"act_later cannot be used here: .*{sentence}"):
        agent.act_later(OBS)
    agent.act(OBS)
    agent.act(OBS, 0.5)


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([2], r"ids is \[2\]; each must be below 2, and once"),
        ([0, 0], "and once"),
        ([0.5], "ids is"),
        ([], "ids is"),
    ],
)
def test_copies_that_are_not_there_are_refused(ids: Any, sentence: str) -> None:
    agent = agent_for(copies=2)
    with pytest.raises(EnvError, match=sentence):
        agent.act(np.zeros((len(ids), 3)), ids=ids)
    with pytest.raises(EnvError, match="this agent has one environment"):
        agent_for().act(OBS, ids=[0])


def test_a_boundary_leaves_steps_that_wait_behind() -> None:
    agent = agent_for(copies=2, stream={"boundaries": "given", "task_id": "observed"}, tasks=("one", "two"))
    tickets = [agent.act_later(np.zeros((2, 3))) for _ in range(3)]
    agent.boundary("two")
    agent.act(np.zeros((2, 3)), np.ones(2))
    with pytest.raises(EnvError, match="or a boundary came since"):
        agent.feedback(tickets[0], np.ones(2))  # type: ignore[arg-type]
    assert agent._trainer.step == 6 and agent._trainer.context().task == 1


# ---- when it is learned ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learn", ["spread", "thread"])
def test_an_update_beside_the_calls_is_one_that_lags(learn: Any) -> None:
    """The first chunk is learned from as it would be at once; the calls behind it act with older parameters until it is
    done, and what they did is learned from as data of another policy."""
    at_once, beside = (
        World(agent_for(rollout={"steps": 8})),
        World(OnlineAgent(*SPACES, config(), learn=learn, learn_every=8)),
    )
    chunks = chunks_of(beside.agent)
    for world in (at_once, beside):
        world.run(9)
    assert beside.agent._learning.busy or learn == "thread"
    beside.agent._learning.finish()
    assert_identical(parameters(at_once.agent), parameters(beside.agent))
    beside.run(24)
    assert [one.lags for one in chunks] == [False, *[one.lags for one in chunks[1:]]]
    if learn == "spread":
        assert all(one.lags for one in chunks[1:])
    assert beside.agent.report()["step"] >= 24
    assert threading.active_count() < 10


def test_a_spread_update_takes_no_call_for_itself() -> None:
    """Five parts in the calls after the chunk, the last of them with nothing under way any more."""
    world = World(OnlineAgent(*SPACES, config(), learn="spread", learn_every=16))
    world.run(17)
    before, changed, busy = parameters(world.agent), [], []
    for _ in range(8):
        world.step()
        changed.append(any(not torch.equal(before[n], p) for n, p in parameters(world.agent).items()))
        busy.append(world.agent._learning.busy)
    assert changed == sorted(changed) and changed[-1] and not changed[0]
    assert busy == sorted(busy, reverse=True) and not busy[-1] and sum(busy) == 3


@pytest.mark.parametrize("learn", ["spread", "thread"])
@pytest.mark.parametrize("after", [17, 18, 25])
def test_a_save_in_the_middle_of_an_update_goes_on_bit_for_bit(learn: Any, after: int, tmp_path: Path) -> None:
    world = World(OnlineAgent(*SPACES, config(), learn=learn, learn_every=8))
    world.run(after)
    world.agent.save(tmp_path / "agent.pt")
    assert not world.agent._learning.busy  # it is finished first
    there = World(OnlineAgent.load(tmp_path / "agent.pt", learn="spread"))
    here = World(OnlineAgent.load(tmp_path / "agent.pt", learn="spread"))
    assert here.agent._learning.mode == "spread" and OnlineAgent.load(tmp_path / "agent.pt")._learning.mode == learn
    assert_identical(parameters(world.agent), parameters(there.agent))
    worlds = [there, here] + ([world] if learn == "spread" else [])
    for one in (there, here):
        one.t, one.action = world.t, world.action
    runs = [one.run(60) for one in worlds]
    assert all(run == runs[0] for run in runs)
    for one in worlds[1:]:
        assert_identical(parameters(there.agent), parameters(one.agent))


def test_lanes_are_saved_in_the_middle(tmp_path: Path) -> None:
    agent = agent_for(copies=2)
    tickets = [agent.act_later(np.full((1, 3), t, np.float32), ids=[t % 2]) for t in range(7)]
    agent.feedback(tickets[0], [1.0])  # type: ignore[arg-type]
    agent.save(tmp_path / "agent.pt")
    loaded = OnlineAgent.load(tmp_path / "agent.pt")
    for one in (agent, loaded):
        for ticket in tickets[1:]:
            one.feedback(ticket, [0.5])  # type: ignore[arg-type]
        for t in range(12):
            one.act(np.full((1, 3), t, np.float32), [1.0], ids=[t % 2])
    assert agent._trainer.step == loaded._trainer.step > 0
    assert_identical(parameters(agent), parameters(loaded))


@pytest.mark.parametrize("learn", ["spread", "thread"])
def test_what_goes_wrong_beside_the_calls_is_told_in_one_of_them(learn: Any) -> None:
    agent = OnlineAgent(*SPACES, config(on_nonfinite="stop"), learn=learn, learn_every=4)
    agent.act(OBS)
    with pytest.raises(NonFiniteError, match="the loss is not finite"):
        for _ in range(5):
            agent.act(OBS, 1e30)
        agent._learning.finish()
    before = parameters(agent)
    for _ in range(12):
        agent.act(OBS, 1.0) if agent._rollout.decided is not None else agent.act(OBS)
    agent._learning.finish()
    assert any(not torch.equal(before[name], p) for name, p in parameters(agent).items())


def test_objectives_that_cannot_lag_learn_at_once() -> None:
    with pytest.raises(ConfigError, match="learn is spread, so the policy that acts lags behind, which objective ppo"):
        OnlineAgent(*SPACES, config(objective={"kind": "ppo", "minibatches": 1}), learn="spread")
    with pytest.raises(ConfigError, match="a chunk has one step, so the next one waits for it"):
        OnlineAgent(*SPACES, config(), learn="thread", learn_every=1)
    with pytest.raises(ConfigError, match=r"unknown learn 'spred'.*spread"):
        OnlineAgent(*SPACES, config(), learn="spred")  # type: ignore[arg-type]


def test_a_job_runs_in_parts_only_when_it_is_asked_to() -> None:
    told: list[int] = []
    background = Background(stepwise=True)

    def job(fails: bool = False) -> Callable[[], None]:
        def run() -> None:
            for part in range(3):
                told.append(part)
                background.pause()
            if fails:
                raise ValueError("at the end")

        return run

    background.start(job())
    assert told == [0] and background.busy
    background.step()
    assert told == [0, 1]
    background.finish()
    assert told == [0, 1, 2] and not background.busy
    background.start(job(fails=True))
    background.pause()  # of somebody else: nothing
    with pytest.raises(ValueError, match="at the end"):
        background.finish()
    assert not background.busy
    background.finish()


# ---- the log ---------------------------------------------------------------------------------------------------------


def test_the_log_has_the_lines_of_a_run_and_goes_on_after_a_save(tmp_path: Path) -> None:
    world = World(agent_for(log_every=16))
    world.agent.log_to(tmp_path / "log")
    world.run(41)
    world.agent.save(tmp_path / "agent.pt")
    world.run(40)
    lines = [json.loads(line) for line in (tmp_path / "log/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [16, 32, 48, 64, 80]
    assert {"loss/total", "gradient/norm", "return/online", "continual/online_return"} <= lines[1].keys()
    loaded = World(OnlineAgent.load(tmp_path / "agent.pt"))
    loaded.t, loaded.action = 41, world.actions[40]
    loaded.agent.log_to(tmp_path / "log")
    loaded.run(40)
    again = [json.loads(line) for line in (tmp_path / "log/metrics.jsonl").read_text().splitlines()]
    assert again == lines
    report = loaded.agent.report()
    assert report["step"] == 80
    with pytest.raises(ConfigError, match="has a log already, which is not of this agent"):
        agent_for().log_to(tmp_path / "log")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "log")).Reload()
    assert [e.step for e in events.Scalars("loss/total")][:5] == [16, 32, 48, 64, 80]


def test_a_detector_takes_the_place_of_borders() -> None:
    stream = {"boundaries": "detected"}
    raw = config(stream=stream, detector={"kind": "distribution_shift"}, strategy=["functional"], rollout={"steps": 8})
    agent = OnlineAgent(*SPACES, raw, copies=16)
    generator = np.random.default_rng(0)
    agent.act(generator.normal(size=(16, 3)))
    for t in range(900):
        agent.act(generator.normal(size=(16, 3)) + (6.0 if t >= 500 else 0.0), generator.normal(size=16))
    alarms = agent._trainer.detection.alarms  # type: ignore[union-attr]
    assert len(alarms) >= 1 and 500 * 16 <= alarms[-1] <= 900 * 16
