"""An agent in somebody else's loop learns what a run would learn from the same data, and survives being saved."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

import lifelong
from lifelong.agent.errors import CheckpointError, ConfigError, EnvError, LifelongError, NonFiniteError
from lifelong.agent.online import OnlineAgent
from lifelong.agent.policy import Outputs, inputs_of
from lifelong.agent.registry import REGISTRY
from lifelong.agent.runtime.build import build, subseed
from lifelong.agent.runtime.planned.lane import Lane
from lifelong.agent.runtime.rollout import Experience, Rollout
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Context, Source, Strategy
from tests.agent.support import assert_identical, make_config, one_by_one

ROOT = Path(__file__).parents[2]
SPACES = Box(-10, 10, (3,), np.float32), Discrete(3)


def config(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "policy": {"encoder": "identity", "cell": {"kind": "elstm", "size": 6}, "previous_action": True},
        "gradient": "rtrl",
        "rollout": {"steps": 4},
        "optimizer": {"kind": "adam", "lr": 0.01},
        "seed": 3,
    }
    return {**base, **changes}


def agent_for(**changes: Any) -> OnlineAgent:
    options = {key: changes.pop(key) for key in ("copies", "tasks") if key in changes}
    return OnlineAgent(*SPACES, config(**changes), **options)


class World:
    """Steps an agent in an environment that is a formula; episodes of 7 steps end in turn terminated and truncated."""

    def __init__(self, agent: OnlineAgent) -> None:
        self.agent, self.t, self.action = agent, 0, None
        self.actions: list[Any] = []

    def obs(self) -> np.ndarray:
        last = -1 if self.action is None else self.action
        return np.array([np.sin(self.t), np.cos(0.3 * self.t), last], np.float32)

    def step(self) -> Any:
        """One call of `act`, or two where an episode ends."""
        if self.t == 0:
            self.action = self.agent.act(self.obs())
        else:
            end = self.t % 7 == 0
            terminated, truncated = end and self.t % 14 == 0, end and self.t % 14 != 0
            self.action = self.agent.act(self.obs(), float(self.action == self.t % 3), terminated, truncated)
            if end:
                assert self.action is None
                self.action = self.agent.act(self.obs())
        self.actions.append(self.action)
        self.t += 1
        return self.action

    def run(self, steps: int) -> list[Any]:
        return [self.step() for _ in range(steps)]


def parameters(agent: OnlineAgent) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in agent._trainer.learner.named.items()}


# ---- the same as a run -----------------------------------------------------------------------------------------------

CARTPOLE = {"name": "online", "env": {"kind": "CartPole", "max_episode_steps": 11}}
LIKE_A_RUN = [
    {},
    {"gradient": "bptt", "objective": {"kind": "ppo", "epochs": 2, "minibatches": 2}},
    {"strategy": [{"kind": "clear", "capacity": 64, "start": 16}, {"kind": "continual_backprop", "maturity": 5}]},
    {"rollout": {"steps": 1}},
]


@pytest.fixture
def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled acting may add in another order."""
    monkeypatch.setattr(Rollout, "_compiled", lambda self, steps: None)
    monkeypatch.setattr(Lane, "ready", lambda self, frozen=False: False)


def twins(tmp_path: Path, task: dict[str, Any], **changes: Any) -> tuple[Trainer, OnlineAgent]:
    """A trainer, and an agent of the same config with spaces of the trainer's environment."""
    raw = config(**changes)
    policy = {**raw["policy"], "previous_reward": True}
    rollout = {**raw["rollout"], "copies": 4}
    raw |= {"policy": policy, "rollout": rollout}
    stream = {"tasks": [task], "task_id": "hidden", "steps_per_task": 10**6}
    trainer = build(make_config(**raw, stream=stream), tmp_path)
    one_by_one(trainer, compiled=True)
    env = trainer.rollout.env
    agent = OnlineAgent(env.single_observation_space, env.single_action_space, raw, copies=4)  # type: ignore[attr-defined]
    return trainer, agent


def assert_alike(trainer: Trainer, agent: OnlineAgent) -> None:
    own = agent._trainer
    assert trainer.step == own.step > 0
    assert_identical(own.rollout.policy.state_dict(), trainer.rollout.policy.state_dict())
    assert_identical(own.learner.optimizer.state_dict(), trainer.learner.optimizer.state_dict())
    assert_identical(own.learner.engine.state_dict(), trainer.learner.engine.state_dict())


@pytest.mark.usefixtures("step_by_step")
@pytest.mark.parametrize("changes", LIKE_A_RUN)
def test_it_learns_what_a_run_learns_from_the_same_environment(tmp_path: Path, changes: dict[str, Any]) -> None:
    trainer, agent = twins(tmp_path, CARTPOLE, **changes)
    env = build(trainer.config, tmp_path).rollout
    obs = env.obs  # type: ignore[attr-defined]  # of a Rollout: the same first observations
    chunks = 24
    for _ in range(chunks):
        trainer.advance()
    action = agent.act(obs)
    for _ in range(chunks * trainer.steps):
        obs, reward, terminated, truncated, info = env.env.step(torch.as_tensor(action))  # type: ignore[attr-defined]
        action = agent.act(obs, reward, terminated, truncated, final_obs=info["final_obs"])
    assert_alike(trainer, agent)


@pytest.mark.usefixtures("step_by_step")
@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_a_gymnasium_loop_learns_what_a_run_learns(tmp_path: Path, mode: str) -> None:
    kwargs = {"max_episode_steps": 9}
    env = {"kind": "gymnasium", "id": "CartPole-v1", "kwargs": kwargs, "autoreset": mode}
    trainer, agent = twins(tmp_path, {"name": "online", "env": env})
    chunks = 16
    for _ in range(chunks):
        trainer.advance()
    make = [lambda: gymnasium.make("CartPole-v1", **kwargs)] * 4
    envs = SyncVectorEnv(
        make, autoreset_mode=AutoresetMode.SAME_STEP if mode == "same_step" else AutoresetMode.NEXT_STEP
    )
    obs, _ = envs.reset(seed=subseed(3, "training", 0))
    action = agent.act(obs)
    for _ in range(chunks * trainer.steps):
        obs, reward, terminated, truncated, info = envs.step(action)
        action = agent.act(obs, reward, terminated, truncated, final_obs=info.get("final_obs"))
    assert_alike(trainer, agent)
    trainer.close()


# ---- exact gradients -------------------------------------------------------------------------------------------------


@contextmanager
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def whole_history(agent: OnlineAgent, chunks: list[Any], learned: list[bool], *, truncated: bool) -> dict[str, Tensor]:
    """Gradient of the sum of the losses of all chunks that were learned from, through one graph over all of them."""
    policy, objective = agent._trainer.rollout.policy, agent._trainer.learner.objective
    state, total = policy.cell.initial_state(1, torch.device("cpu")), torch.zeros(())
    for chunk, counts in zip(chunks, learned, strict=True):
        inputs = inputs_of(chunk)
        y, state = policy.cell.sequence(policy.encode(inputs), state.detach() if truncated else state, chunk.is_init)
        heads: Outputs = policy.heads(y, inputs)
        if counts:
            total = total + objective.loss(heads, chunk, objective.prepare(chunk))[0]
    names = dict(policy.named_parameters())
    return dict(zip(names, torch.autograd.grad(total, list(names.values())), strict=True))


def test_at_one_step_a_chunk_the_gradient_is_that_of_the_whole_history(monkeypatch: pytest.MonkeyPatch) -> None:
    still = {"optimizer": {"kind": "sgd", "lr": 0.0}, "max_grad_norm": 0.0, "rollout": {"steps": 1}}
    with double():
        agent = agent_for(**still)
        chunks, learned, sums = list[Any](), list[bool](), dict[str, Tensor]()
        collect, advance = agent._rollout.collect, agent._trainer.advance

        def collected(steps: int) -> Experience:
            experience = collect(steps)
            chunks.append(experience.chunk)
            learned.append(not agent._frozen)
            return experience

        def advanced() -> Any:
            result = advance()
            for name, p in agent._trainer.learner.named.items():
                sums[name] = sums.get(name, 0.0) + p.grad  # type: ignore[operator]
            return result

        monkeypatch.setattr(agent._rollout, "collect", collected)
        monkeypatch.setattr(agent._trainer, "advance", advanced)
        world = World(agent)
        world.run(20)
        agent.freeze()  # the history goes on
        world.run(4)
        agent.learn()
        world.run(17)
        assert len(chunks) == 40 and sum(learned) == 36
        exact, cut = (whole_history(agent, chunks, learned, truncated=t) for t in (False, True))
    for name, gradient in exact.items():
        assert float((sums[name] - gradient).abs().max()) <= 1e-10, name
    recurrent = [name for name in exact if name.startswith("cell.weight")]
    assert recurrent
    for name in recurrent:
        assert float((sums[name] - cut[name]).abs().max()) > 1e-4, name


# ---- saving ----------------------------------------------------------------------------------------------------------

GO_ON = """
import sys, torch
from lifelong.agent.online import OnlineAgent
from tests.agent.test_online import World, parameters
world = World(OnlineAgent.load(sys.argv[1]))
world.t, world.action = int(sys.argv[2]), int(sys.argv[3])
actions = world.run(int(sys.argv[5]))
torch.save({"actions": actions, "parameters": parameters(world.agent), "report": world.agent.report()}, sys.argv[4])
"""
CLEAR = {"strategy": [{"kind": "clear", "capacity": 32, "start": 8}], "rollout": {"steps": 16}}
#: config, steps before it is saved, steps behind that; some in the lane, some not
SAVED = [
    (CLEAR, 103, 1000),
    *(
        pytest.param(changes, before, 10_000, marks=pytest.mark.slow)
        for changes, before in [
            (
                {
                    "policy": {"encoder": {"kind": "mlp", "hidden": [8]}, "cell": {"kind": "gru", "size": 5}},
                    "gradient": "uoro",
                },
                103,
            ),
            (CLEAR, 1_021),
            ({"rollout": {"steps": 1}}, 2),
            ({"rollout": {"steps": 1}}, 517),
            ({"rollout": {"steps": 8}}, 61),
            ({"rollout": {"steps": 8}}, 67),
        ]
    ),
]


@pytest.mark.parametrize(("changes", "before", "behind"), SAVED)
def test_a_saved_agent_goes_on_bit_for_bit_in_another_process(
    tmp_path: Path, changes: dict[str, Any], before: int, behind: int
) -> None:
    world = World(agent_for(**changes))
    world.run(before)  # with an action under way, and most of them in the middle of a chunk
    world.agent.report()
    world.agent.save(tmp_path / "agent.pt")
    assert world.agent._rollout.decided and (world.agent._rollout.records or before != 103)
    arguments = [tmp_path / "agent.pt", world.t, world.action, tmp_path / "there.pt", behind]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", GO_ON, *map(str, arguments)], env=environment, capture_output=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr.decode()
    there = torch.load(tmp_path / "there.pt")
    here = world.run(behind)
    assert len(set(here)) == 3 or behind > 1000
    assert there["actions"] == here
    assert_identical(there["parameters"], parameters(world.agent))
    assert there["report"] == pytest.approx(world.agent.report(), rel=0, abs=0, nan_ok=True)  # one step has no variance


def test_saving_is_whole_or_not_at_all_and_changes_nothing(tmp_path: Path) -> None:
    world, other = World(agent_for()), World(agent_for())
    for each in (world, other):
        each.run(10)
    world.agent.save(tmp_path / "agent.pt")
    for each in (world, other):
        each.run(25)
        each.agent.save(tmp_path / "agent.pt")
    assert_identical(world.agent._trainer.state_dict(), other.agent._trainer.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["agent.pt"]
    with pytest.raises(LifelongError, match="cannot write"):
        world.agent.save(tmp_path / "nowhere/agent.pt")
    with pytest.raises(ConfigError, match=r"copies is 3, and the agent in .* has one environment"):
        OnlineAgent.load(tmp_path / "agent.pt", copies=3)
    content = (tmp_path / "agent.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="does not load"):
        OnlineAgent.load(tmp_path / "half.pt")


def test_what_is_kept_on_a_disk_is_in_the_file_and_nowhere_beside_it(tmp_path: Path) -> None:
    world = World(agent_for(strategy=[{"kind": "clear", "capacity": 16, "start": 8, "place": "disk"}]))
    world.run(30)
    world.agent.save(tmp_path / "agent.pt")
    loaded = OnlineAgent.load(tmp_path / "agent.pt")
    assert_identical(loaded._trainer.strategies[0].state_dict(), world.agent._trainer.strategies[0].state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["agent.pt"]


def test_a_saved_agent_is_a_policy_for_inference(tmp_path: Path) -> None:
    world = World(agent_for(objective={"kind": "q_learning", "epsilon": 0.0, "n_step": 1}, rollout={"steps": 4}))
    world.run(61)
    world.agent.freeze()
    world.agent.reset_memory()
    world.agent.save(tmp_path / "agent.pt")
    policy, memory = lifelong.load(tmp_path / "agent.pt"), None
    if world.agent._rollout.decided is not None:
        world.agent.act(np.zeros(3), 0.0, True)  # the episode ends, and with it the memory
    for t in range(20):
        obs = np.array([np.sin(t), t / 10, 0.0])
        action, memory = policy(obs, memory)
        assert action == (world.agent.act(obs) if t == 0 else world.agent.act(obs, 0.0))


def test_a_run_goes_on_in_another_program(tmp_path: Path) -> None:
    changes = {"strategy": [{"kind": "clear", "capacity": 64, "start": 8}], "stream": {"steps_per_task": 256}}
    trainer, _ = lifelong.run(make_config(**changes), tmp_path / "run", quiet=True)
    agent = OnlineAgent.load(tmp_path / "run")
    assert_identical(parameters(agent), {n: p.detach() for n, p in trainer.learner.named.items()})
    own = agent._trainer
    assert_identical(own.learner.optimizer.state_dict(), trainer.learner.optimizer.state_dict())
    assert_identical(own.strategies[0].state_dict(), trainer.strategies[0].state_dict())
    assert own.step == trainer.step == 512 and own.context().task == 1
    space = trainer.rollout.env.single_observation_space  # type: ignore[attr-defined]
    action, before = agent.act(space.sample()), parameters(agent)
    for _ in range(9):
        assert 0 <= action < 4
        action = agent.act(space.sample(), 1.0)
    assert any(not torch.equal(before[name], p) for name, p in parameters(agent).items())
    assert own.step == 520
    agent.boundary("maze")
    agent.act(space.sample(), 1.0)
    assert own.context().task == 0 and own.rollout.env.task_B.tolist() == [0]


# ---- what is told ----------------------------------------------------------------------------------------------------


def test_frozen_it_changes_nothing_but_its_memory() -> None:
    world = World(agent_for(strategy=[{"kind": "clear", "capacity": 32, "start": 8}]))
    world.run(41)
    world.agent.freeze()
    own = world.agent._trainer
    before = {
        "p": parameters(world.agent),
        "o": own.learner.optimizer.state_dict(),
        "s": own.strategies[0].state_dict(),
    }
    before = torch.load(_bytes(before))
    memory = own.rollout.state_BS.clone()  # type: ignore[attr-defined]
    world.run(40)
    after = {"p": parameters(world.agent), "o": own.learner.optimizer.state_dict(), "s": own.strategies[0].state_dict()}
    assert_identical(before, after)
    assert not torch.equal(memory, own.rollout.state_BS)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"frozen, .* call learn\(\) before boundary"):
        world.agent.boundary("next")
    world.agent.learn()
    world.run(8)
    assert any(not torch.equal(before["p"][name], p) for name, p in parameters(world.agent).items())


def _bytes(value: Any) -> Any:
    import io

    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def test_a_memory_that_is_reset_is_that_of_the_beginning() -> None:
    obs = np.ones(3, np.float32)
    agent = agent_for(optimizer={"kind": "sgd", "lr": 0.0})
    agent._lane = None  # what it remembers is looked at
    agent.act(obs)
    first = agent._rollout.state_BS.clone()
    agent.act(obs, 1.0)
    assert not torch.equal(first, agent._rollout.state_BS)
    agent.reset_memory()
    agent.act(obs, 1.0)
    assert torch.equal(first, agent._rollout.state_BS)
    assert agent._rollout.decided["is_init"].all()  # type: ignore[index]  # and so is the carry


class Watching(Strategy):
    """Writes down what it is told."""

    needs_boundaries = True
    clock_option = ""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_task_start(self, ctx: Context) -> None:
        self.told.append(("start", ctx.step, ctx.segment, ctx.task))

    def on_task_end(self, ctx: Context, source: Source) -> None:
        self.last = list(source(2))
        self.told.append(("end", ctx.step, ctx.segment, ctx.task, len(self.last)))

    def fresh_sequences(self, copies: int) -> int:
        return 2 * copies

    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        self.told.append(("chunk", ctx.step, ctx.task, experience.chunk.task.flatten().tolist()))
        self.seen = experience


def test_a_boundary_is_told_before_the_first_action_behind_it_with_what_was_lived_last() -> None:
    stream = {"boundaries": "given", "task_id": "observed"}
    agent = agent_for(strategy=["tests.agent.test_online:Watching"], stream=stream, tasks=("one", "two"))
    watching: Any = agent._trainer.strategies[0]
    world = World(agent)
    world.run(11)  # two chunks, and two steps of the third that have come back
    chunk = watching.seen.chunk
    agent.boundary("two")
    world.step()
    assert watching.told[0] == ("start", 0, 0, 0)
    assert watching.told[-2:] == [("end", 11, 0, 0, 2), ("start", 11, 1, 1)]
    assert [experience.chunk.steps for experience in watching.last] == [4, 4]  # not the one that was cut short
    assert torch.equal(watching.last[1].chunk.obs, chunk.obs)
    world.run(4)
    assert watching.told[-1] == ("chunk", 11, 1, [1, 1, 1, 1])
    assert watching.seen.chunk.is_init[0].all()  # of another task nothing is remembered
    with pytest.raises(ConfigError, match=r"unknown task 'twoo'.*two"):
        agent.boundary("twoo")


def test_strategies_go_without_boundaries_only_if_they_can() -> None:
    with pytest.raises(ConfigError, match="strategy ewc needs task boundaries"):
        agent_for(strategy=["ewc"], stream={"boundaries": "hidden"})
    with pytest.raises(ConfigError, match=r"stream\.boundaries is hidden, so nobody tells the agent; set it to given"):
        agent_for(stream={"boundaries": "hidden"}).boundary("next")


#: of every family one; the others are in `make test-all`
QUICK = {
    "finetune",
    "ewc",
    "clear",
    "packnet",
    "hypernet",
    "gpm",
    "continual_backprop",
    "refresh",
    "nmc",
    "perfect_memory",
}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in REGISTRY["strategy"]]
)
def test_every_strategy_lives_in_another_program_or_says_why_not(name: str) -> None:
    stream = {"boundaries": "given", "task_id": "observed"}
    try:
        agent = agent_for(strategy=[{"kind": name}], stream=stream, tasks=("one", "two"))
    except ConfigError as error:
        assert name in str(error) or "would be needed" in str(error), error
        return
    world = World(agent)
    for task in ("two", "one", "two"):
        world.run(14)
        agent.boundary(task)
    world.run(14)
    assert all(bool(p.isfinite().all()) for p in parameters(agent).values())
    assert agent.report()["step"] == 54.0  # the steps of chunks, three of which were cut short; one is under way


def test_a_clock_consolidates_from_what_was_lived_last() -> None:
    agent = agent_for(strategy=[{"kind": "ewc", "every": 16}], stream={"boundaries": "hidden"})
    world = World(agent)
    world.run(15)
    assert "strategy/ewc/penalty" not in agent.report()  # there is nothing to hold on to yet
    world.run(30)
    assert agent.report()["strategy/ewc/penalty"] > 0.0


def test_a_config_may_be_a_name_or_what_was_loaded_and_need_no_cluster() -> None:
    small = ["strategy=finetune", "policy.cell.size=8"]
    by_name = OnlineAgent(*SPACES, "quickstart", overrides=small)
    loaded = OnlineAgent(*SPACES, lifelong.load_config("quickstart", small))
    on_ray = OnlineAgent(*SPACES, "quickstart", overrides=[*small, "runtime.backend=ray", "runtime.env_runners=3"])
    other = OnlineAgent(*SPACES, "quickstart", overrides=small, seed=1)
    assert_identical(parameters(by_name), parameters(loaded))
    assert_identical(parameters(by_name), parameters(on_ray))
    assert not torch.equal(parameters(by_name)["critic.weight"], parameters(other)["critic.weight"])


# ---- what does not fit -----------------------------------------------------------------------------------------------

OBS = np.zeros(3, np.float32)
WRONG: list[tuple[tuple[Any, ...], str]] = [
    ((np.zeros(4), 0.0), r"observation has shape \(4,\); it must be \(3,\)"),
    ((np.zeros((2, 3)), 0.0), r"observation has shape \(2, 3\); it must be \(3,\)"),
    ((np.array([0.0, np.nan, 0.0]), 0.0), "the observation has a number that is not finite"),
    ((["a", "b", "c"], 0.0), "must be numbers"),
    ((OBS,), r"waits for its reward; call act\(obs, reward, terminated, truncated\)"),
    ((OBS, np.nan), "the argument reward has a number that is not finite"),
    ((OBS, 1e300), "too large"),
    ((OBS, np.zeros(2)), r"reward has shape \(2,\); it must be one number"),
    ((OBS, False, False), r"reward is a bool; the order is act\(obs, reward, terminated, truncated\)"),
    ((OBS, 0.0, 2.5), r"terminated is 2\.5; it must be a bool"),
    ((OBS, 0.0, False, np.zeros(3, bool)), r"truncated has shape \(3,\)"),
    ((OBS, 0.0, {}), "the argument terminated"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG)
def test_what_does_not_fit_is_one_sentence_and_nothing_is_lost(arguments: tuple[Any, ...], sentence: str) -> None:
    world = World(agent_for())
    world.run(6)
    before = torch.load(_bytes(world.agent._trainer.state_dict()))
    with pytest.raises(EnvError, match=sentence) as raised:
        world.agent.act(*arguments)
    assert "\n" not in str(raised.value)
    assert_identical(before, world.agent._trainer.state_dict())


def test_an_outcome_without_an_action_is_refused() -> None:
    agent = agent_for()
    with pytest.raises(EnvError, match="reward is given, and no action waits for it"):
        agent.act(OBS, 1.0)
    with pytest.raises(EnvError, match="truncated is given, and no action waits for it"):
        agent.act(OBS, 0.0, False, True)
    assert agent.act(OBS, 0.0) in (0, 1, 2)


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_a_loss_that_is_not_finite_teaches_nothing_and_life_goes_on(mode: str) -> None:
    agent = agent_for(on_nonfinite=mode)
    before = parameters(agent)
    agent.act(OBS)
    for _ in range(3):
        agent.act(OBS, 1e30)
    if mode == "stop":
        with pytest.raises(NonFiniteError, match="the loss is not finite"):
            agent.act(OBS, 1e30)
        assert agent.act(OBS) in (0, 1, 2)
    else:
        agent.act(OBS, 1e30)
        assert agent.report()["nonfinite/skipped_chunks"] == 1.0
    assert_identical(before, parameters(agent))
    assert agent._rollout.decided["is_init"].all()  # type: ignore[index]
    for _ in range(4):
        agent.act(OBS, 1.0)
    assert any(not torch.equal(before[name], p) for name, p in parameters(agent).items())


@pytest.mark.parametrize("both", [(True, False), (False, True), (True, True)])
def test_the_last_observation_of_a_truncated_episode_is_what_is_bootstrapped_from(both: tuple[bool, bool]) -> None:
    seen = []
    agent = agent_for()
    collect = agent._rollout.collect
    agent._rollout.collect = lambda steps: seen.append(collect(steps)) or seen[-1]  # type: ignore
    agent.act(OBS)
    agent.act(OBS + 1, 0.5)
    assert agent.act(OBS + 2, 0.25, *both) is None
    for t in range(3, 6):
        agent.act(OBS + t, None if t == 3 else 0.0)
    (experience,) = seen
    chunk = experience.chunk
    assert chunk.obs[:, 0, 0].tolist() == [0.0, 1.0, 3.0, 4.0]
    assert chunk.is_init[:, 0].tolist() == [True, False, True, False]
    assert chunk.reward[:, 0].tolist() == [0.5, 0.25, 0.0, 0.0]
    assert (chunk.terminated[:, 0].tolist(), chunk.truncated[:, 0].tolist()) == tuple(
        [False, flag, False, False] for flag in both
    )
    assert experience.episode_return_TB[1, 0] == 0.75 and experience.done_TB[:, 0].tolist() == [
        False,
        True,
        False,
        False,
    ]
    if both == (False, True):
        assert chunk.final_step.tolist() == [[1]] and (chunk.final_obs == 2.0).all()
    else:
        assert chunk.slots == 0


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_to_balance_a_pole_in_a_gymnasium_loop() -> None:
    env = gymnasium.make("CartPole-v1")
    agent = lifelong.OnlineAgent(env.observation_space, env.action_space, seed=0)
    lengths, length = [], 0
    obs, _ = env.reset(seed=0)
    action = agent.act(obs)
    for _ in range(20_000):
        obs, reward, terminated, truncated, _ = env.step(action)
        length += 1
        action = agent.act(obs, 0.1 * float(reward), terminated, truncated)
        if terminated or truncated:
            lengths.append(length)
            length = 0
            obs, _ = env.reset()
            action = agent.act(obs)
    assert np.mean(lengths[:20]) < 50  # a random policy has 22
    assert np.mean(lengths[-20:]) > 100
