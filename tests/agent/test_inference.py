"""A policy loaded from a run acts as evaluation does, in somebody else's loop."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

import lifelong
from lifelong.agent.errors import CheckpointError, ConfigError, EnvError
from lifelong.agent.inference import LoadedPolicy, load
from lifelong.agent.policy import Inputs
from lifelong.agent.runtime.converter import Converter
from lifelong.agent.runtime.trainer import Trainer
from lifelong.envs.adapters.outside import KIND, describe, undescribe
from lifelong.envs.tasks import Task, TaskEnv
from tests.agent.support import THREE_TASKS, assert_identical, make_config

NAMES = ["maze", "cartpole", "repeat"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run of three padded tasks, whose policy reads the task, the last action and the last reward."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    (folder.parent / "three.yaml").write_text(THREE_TASKS)
    view = "strategy={kind: hare_tortoise, evaluate: tortoise}"
    small = ["stream.steps_per_task=1024", "stream.task_id=observed", "runtime.device=cpu", view]
    trainer, done = lifelong.run(lifelong.load_config(str(folder.parent / "three.yaml"), small), folder, quiet=True)
    assert done
    return trainer


def folder_of(trainer: Trainer) -> Path:
    return trainer.record.folder


@pytest.mark.parametrize("name", NAMES)
def test_it_gets_the_returns_of_the_last_evaluation(finished: Trainer, name: str) -> None:
    policy, task, evaluator = load(folder_of(finished), name), NAMES.index(name), finished.evaluator
    env, B = evaluator.env, evaluator.env.num_envs
    env.set_tasks(torch.full((B,), task))
    group = env.group_of[task]
    inner, seed = env.envs[group], evaluator.seed + task + 1_000_003 * group
    obs, _ = inner.reset(seed=seed)
    total_B, running_B = torch.zeros(B), torch.ones(B, dtype=torch.bool)
    memory, reward = None, None
    for _ in range(evaluator.max_steps):
        action, memory = policy(obs, memory, reward)
        assert isinstance(action, np.ndarray) and len(action) == B
        obs, reward, terminated, truncated, info = inner.step(torch.as_tensor(action))
        total_B = torch.where(running_B, info["episode_return"], total_B)
        memory = policy.reset(memory, terminated | truncated)
        running_B &= ~(terminated | truncated)
        if not running_B.any():
            break
    np.testing.assert_array_equal(total_B.double().numpy(), finished.evaluations.returns[-1][task])


def test_one_environment_and_a_batch_numpy_and_torch_are_the_same(finished: Trainer) -> None:
    policy = load(folder_of(finished), "cartpole")
    obs = np.random.default_rng(0).normal(size=(6, 3, 4)).astype(np.float32)
    reward = np.arange(18, dtype=np.float32).reshape(6, 3)
    together, memory = [], None
    for t in range(6):
        action, memory = policy(obs[t], memory, reward[t])
        together.append(action)
    for copy in range(3):
        memory = None
        for t in range(6):
            action, memory = policy(torch.from_numpy(obs[t, copy]), memory, float(reward[t, copy]))
            assert isinstance(action, int) and action == together[t][copy]
            assert len(memory.state_BS) == 1


def test_an_episode_that_ended_is_forgotten_and_the_others_go_on(finished: Trainer) -> None:
    policy = load(folder_of(finished), "cartpole")
    obs = np.random.default_rng(1).normal(size=(2, 4))
    _, memory = policy(obs, None)
    _, memory = policy(obs, policy.reset(memory, [False, True]), [5.0, 7.0])
    fresh, going = policy(obs, None)[1], policy(obs, policy(obs, None)[1], [5.0, 7.0])[1]
    assert_identical(memory.state_BS[1], fresh.state_BS[1])
    assert_identical(memory.state_BS[0], going.state_BS[0])
    assert not torch.equal(memory.state_BS[0], fresh.state_BS[0])
    assert policy.reset(None) is None


def test_a_policy_that_never_forgets_keeps_its_memory(tmp_path: Path) -> None:
    config = make_config(policy={"reset_memory_on": "never"}, stream={"task_id": "hidden", "steps_per_task": 64})
    lifelong.run(config, tmp_path / "run", quiet=True)
    policy = load(tmp_path / "run")  # two mazes alike in their spaces, and nothing shows which
    obs = np.ones(policy._env.single_observation_space.shape, np.float32)
    _, memory = policy(obs)
    assert policy.reset(memory) is memory


def test_draws_are_those_of_the_policy_and_come_again_with_their_seed(finished: Trainer) -> None:
    obs = np.full((4000, 4), 0.1, np.float32)
    first, again, other = (load(folder_of(finished), "cartpole", seed=s, deterministic=False) for s in (1, 1, 2))
    a, b, c = (policy(obs)[0] for policy in (first, again, other))
    assert (a == b).all() and (a != c).any()
    again.seed(2)
    assert (again(obs)[0] == c).all()
    inputs = Inputs(
        torch.full((1, 4), 0.1), torch.zeros(1, 4), torch.zeros(1), torch.tensor([1]), first._converter.mask(1, 1)
    )
    cell, yes = first._policy.cell, torch.ones(1, dtype=torch.bool)
    logits = first._policy.step(inputs, cell.initial_state(1, torch.device("cpu")), yes).outputs.policy
    share = float(logits.softmax(-1)[0, 1])
    assert abs(a.mean() - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    assert set(load(folder_of(finished), "cartpole")(obs)[0]) == {int(logits.argmax())}


def test_it_sees_what_evaluation_sees(finished: Trainer) -> None:
    slow = finished.strategies[0].slow  # type: ignore[attr-defined]  # HareTortoise
    policy = load(folder_of(finished), "maze")
    loaded = dict(policy._policy.named_parameters())
    fast = dict(finished.rollout.policy.named_parameters())
    assert any(not torch.equal(fast[name], slow[name]) for name in slow)
    for name, value in slow.items():
        assert torch.equal(loaded[name], value)


def test_loading_draws_nothing_from_the_randomness_of_the_program(finished: Trainer) -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]

    before = states()
    load(folder_of(finished), "maze")
    assert states() == before


class Mixed(gymnasium.Env):
    """Observations of several parts; a continuous action."""

    observation_space = Dict({"a": Box(-1, 1, (2,)), "b": Discrete(3)})
    action_space = Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return {"a": np.zeros(2, np.float32), "b": 0}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return {"a": np.ones(2, np.float32), "b": 1}, 0.0, False, True, {}


def test_a_policy_of_a_gymnasium_environment_takes_its_own_observations(tmp_path: Path) -> None:
    gymnasium.register("lifelong-tests/Mixed-v0", Mixed)
    try:
        task = {"name": "mixed", "env": {"kind": "gymnasium", "id": "lifelong-tests/Mixed-v0"}}
        config = make_config(stream={"tasks": [task], "steps_per_task": 64}, rollout={"copies": 2})
        lifelong.run(config, tmp_path / "run", quiet=True)
        policy = load(tmp_path / "run")
    finally:
        gymnasium.registry.pop("lifelong-tests/Mixed-v0")
    env = Mixed()
    obs, _ = env.reset()
    action, memory = policy(obs)
    assert env.action_space.contains(action)
    both, _ = policy({"a": np.zeros((2, 2)), "b": [0, 0]})
    np.testing.assert_allclose(both, np.stack([action, action]), rtol=1e-6)
    with pytest.raises(EnvError, match="parts a; it must be a dict with the parts a, b"):
        policy({"a": np.zeros(2)}, memory)
    with pytest.raises(EnvError, match="not in the space Discrete"):
        policy({"a": np.zeros(2), "b": 3})


@pytest.mark.parametrize("detector", ["cusum", "distribution_shift"])
def test_what_only_learning_needs_is_not_asked_of_one_copy(tmp_path: Path, detector: str) -> None:
    stream = {"task_id": "hidden", "steps_per_task": 192, "boundaries": "detected"}
    parts = {"objective": {"kind": "ppo", "minibatches": 4}, "detector": detector, "strategy": ["functional"]}
    trainer, _ = lifelong.run(make_config(**parts, stream=stream, rollout={"copies": 16}), tmp_path / "run", quiet=True)
    policy = load(tmp_path / "run")
    assert_identical(policy._policy.state_dict(), trainer.rollout.policy.state_dict())
    assert policy(np.ones(policy._env.single_observation_space.shape))[0] in range(4)


SPACES = [
    Box(0, 255, (4, 4, 3), np.uint8),
    Box(np.array([-1.0, -np.inf]), np.array([1.0, np.inf]), dtype=np.float64),
    Discrete(4, start=2),
    MultiDiscrete([2, 3], start=[1, 0]),
    MultiBinary(3),
    Dict({"a": Box(-1, 1, (2,)), "b": Tuple([Discrete(2), MultiBinary([2, 2])])}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_comes_back_from_plain_data(space: gymnasium.Space[Any]) -> None:
    assert undescribe(describe(space)) == space


def converter(observation: gymnasium.Space[Any], action: gymnasium.Space[Any]) -> Converter:
    spec = {"kind": KIND, "observation": describe(observation), "action": describe(action)}
    return Converter(TaskEnv([Task.from_spec("one", spec, 10)], 1), torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_observations_are_those_of_the_gymnasium_adapter(space: gymnasium.Space[Any]) -> None:
    space.seed(0)
    made, sample = converter(space, Discrete(2)), space.sample()
    assert made.lead(sample, 0) == ()
    read = made.observations(sample, 0, ())
    if isinstance(space, Box):
        np.testing.assert_array_equal(read[0].numpy(), sample.astype(read.numpy().dtype))
    else:
        np.testing.assert_array_equal(read[0].numpy(), gymnasium.spaces.flatten(space, sample))


@pytest.mark.parametrize(
    ("space", "drawn", "given"),
    [
        (Discrete(3, start=5), torch.tensor([2]), 7),
        (MultiDiscrete([2, 3]), torch.tensor([[1, 2]]), [1, 2]),
        (MultiBinary(2), torch.tensor([[1, 0]]), [1, 0]),
        (Box(-2.0, 6.0, (2,), np.float32), torch.tensor([[1.0, -0.5]]), [6.0, 0.0]),
        (Box(0, 9, (1, 1), np.int32), torch.tensor([[1.0]]), [[9]]),
    ],
)
def test_actions_are_those_of_the_space(space: gymnasium.Space[Any], drawn: torch.Tensor, given: Any) -> None:
    made = converter(Box(-1, 1, (2,)), space)
    action = made.actions(drawn, 0, ())
    np.testing.assert_array_equal(action, given)
    assert space.contains(action)
    assert made.actions(drawn, 0, (1,)).shape == (1, *space.shape)


def refusals(policy: LoadedPolicy) -> list[tuple[Any, str]]:
    obs = np.zeros(4, np.float32)
    one, two = policy(obs)[1], policy(np.stack([obs, obs]))[1]
    return [
        ((np.zeros(3),), r"shape \(3,\); it must be \(4,\) for one"),
        ((np.zeros((0, 4)),), r"shape \(0, 4\)"),
        ((np.full(4, np.nan),), "not finite"),
        ((["a", "b", "c", "d"],), "must be numbers"),
        ((obs, two), "memory is of a batch of 2, and the observation of one environment"),
        ((obs, one), "reads the last reward"),
        ((obs, one, np.zeros(2)), r"reward has shape \(2,\); it must be \(\)"),
        ((obs, one, np.inf), "the reward has a number that is not finite"),
    ]


def test_what_does_not_fit_is_one_sentence_and_nothing_is_lost(finished: Trainer) -> None:
    policy = load(folder_of(finished), "cartpole")
    before = policy(np.ones(4))
    for arguments, sentence in refusals(policy):
        with pytest.raises(EnvError, match=sentence):
            policy(*arguments)
    assert_identical(before[1].state_BS, policy(np.ones(4))[1].state_BS)


@pytest.mark.parametrize("reads", [True, False])
def test_a_task_must_be_named_where_rewards_are_read_in_units_of_their_own(tmp_path: Path, reads: bool) -> None:
    mazes = [{"name": str(n), "env": {"kind": "TMaze", "corridor": 4}, "reward_scale": n} for n in (1.0, 0.5)]
    stream = {"task_id": "hidden", "steps_per_task": 64, "tasks": mazes}
    lifelong.run(make_config(policy={"previous_reward": reads}, stream=stream), tmp_path / "run", quiet=True)
    if not reads:
        load(tmp_path / "run")
        return
    with pytest.raises(ConfigError, match="it reads the last reward, whose scale is not that of every task; name one"):
        load(tmp_path / "run")
    obs, scaled = None, []
    for name in ("1.0", "0.5"):
        policy = load(tmp_path / "run", name)
        obs = np.ones(policy._env.single_observation_space.shape, np.float32)
        scaled.append(policy(obs, policy(obs)[1], 0.5 if name == "1.0" else 1.0)[1].state_BS)
    assert_identical(*scaled)


def test_a_task_that_makes_a_difference_must_be_named(finished: Trainer, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="trained on maze, cartpole, repeat, and it reads which task it is on; name one"
    ):
        load(folder_of(finished))
    with pytest.raises(ConfigError, match=r"unknown task 'cartpol'.*cartpole"):
        load(folder_of(finished), "cartpol")
    with pytest.raises(CheckpointError, match="there is nothing at"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("no agent")
    with pytest.raises(CheckpointError, match="does not load"):
        load(tmp_path / "file")
