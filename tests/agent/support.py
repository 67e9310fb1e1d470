"""Shared by the agent tests: tiny environments, a user's own cell, policies, chunks and trainers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor

from lifelong.agent import config as configuration
from lifelong.agent.cells.base import BlockCell, DiagonalCell
from lifelong.agent.cells.linear import LinearCell
from lifelong.agent.cells.rtu import RTU
from lifelong.agent.config import PolicyConfig
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.objectives.base import Objective
from lifelong.agent.policy import Policy, inputs_of
from lifelong.agent.registry import REGISTRY, load
from lifelong.agent.runtime.build import build
from lifelong.agent.runtime.rollout import Experience, Rollout
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.replaying import Replaying
from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.tasks import Task, TaskEnv
from lifelong.replay.chunk import SLOTS, Chunk

CELLS = list(REGISTRY["cell"])
#: of every kind of state and Jacobian some, for tests that are long
REPRESENTATIVE = {"elstm", "diagonal_lstm", "min_gru", "lru", "qrnn", "retnet", "delta", "gru", "plrnn"}
#: those whose units can be reset one by one
UNIT_CELLS = [name for name in CELLS if load("cell", name).units_apart]

# ---- cells a user could have written ---------------------------------------------------------------------------------


class DiagonalGRU(DiagonalCell):
    """A GRU whose recurrent weights are element-wise; no derivative is written anywhere."""

    GATES = ("reset", "update", "new")
    VECTORS = ("reset", "update", "new")

    def recurrence(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], c: Tensor) -> Tensor:
        r = torch.sigmoid(drives[0] + vectors[0] * c)
        z = torch.sigmoid(drives[1] + vectors[1] * c)
        n = torch.tanh(drives[2] + r * vectors[2] * c)
        return (1 - z) * n + z * c


class GatedSum(LinearCell):
    """A gated linear recurrence without any recurrent weight (K = 0), with an output function of its own."""

    GATES = ("forget", "value")
    VECTORS = ()

    def coefficients(self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        f = torch.sigmoid(drives[0] + 1)
        return f, (1 - f) * drives[1]

    def output(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(state)


class Spiral(BlockCell):
    """Two parts a unit that drive each other; no derivative is written anywhere."""

    GATES = ("decay", "input")
    VECTORS = ("forward", "back")

    def recurrence(
        self, drives: tuple[Tensor, ...], vectors: tuple[Tensor, ...], h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        decay = torch.sigmoid(drives[0] + c)
        h = decay * h + (1 - decay) * torch.tanh(drives[1] + vectors[0] * c)
        return h, torch.tanh(decay * c + vectors[1] * h)


class NonlinearRTU(RTU):
    """The registered cell in its other form."""

    def __init__(self, input_size: int, *, size: int = 8) -> None:
        super().__init__(input_size, size=size, form="nonlinear")


OWN_CELLS = [f"tests.agent.support:{name}" for name in ("DiagonalGRU", "GatedSum", "Spiral", "NonlinearRTU")]


def some_slow(cells: Iterable[str], also: Iterable[str] = ()) -> list[Any]:
    """Parameters of a test that is long: those that are not representative, nor in `also`, are in `make test-all`."""
    quick = {*REPRESENTATIVE, *OWN_CELLS, *also}
    return [cell if cell in quick else pytest.param(cell, marks=pytest.mark.slow) for cell in cells]


# ---- environments ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CountState:
    """`count` int64 [B]: steps of the episode; `last` float32 [B]: the last action; `episode` int64 [B]."""

    count: Tensor
    last: Tensor
    episode: Tensor


class Count(BatchedEnv):
    """Observation [count, last action, copy]; reward `bonus` + 10 * count + action; terminates after `length` steps."""

    PARAMS: ClassVar[dict[str, Param]] = {
        "length": Param(5, 1, 1000, integer=True),
        "bonus": Param(0.0),
        "ten": Param(10.0),
    }

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        return Box(-np.inf, np.inf, (3,), np.float32), Discrete(3)

    def draw_state(self) -> CountState:
        zero = torch.zeros(self.num_envs, dtype=torch.int64)
        return CountState(zero, torch.zeros(self.num_envs), zero)

    def advance(self, state: CountState, action: Tensor) -> tuple[CountState, Tensor, Tensor, dict[str, Tensor]]:
        reward = self.params["bonus"] + self.params["ten"] * state.count + action
        count = state.count + 1
        return CountState(count, action.float(), state.episode), reward.float(), count >= self.params["length"], {}

    def observe(self, state: CountState) -> Tensor:
        return torch.stack((state.count.float(), state.last, torch.arange(self.num_envs).float()), 1)


class Constant(BatchedEnv):
    """Reward 1 at every step. Episodes end after `max_episode_steps` (truncated) or after `length` (terminated)."""

    PARAMS: ClassVar[dict[str, Param]] = {"length": Param(10**6, 1, 10**6, integer=True)}
    MAX_EPISODE_STEPS: ClassVar[int] = 5

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        return Box(-np.inf, np.inf, (2,), np.float32), Discrete(2)

    def draw_state(self) -> CountState:
        zero = torch.zeros(self.num_envs, dtype=torch.int64)
        return CountState(zero, torch.zeros(self.num_envs), zero)

    def advance(self, state: CountState, action: Tensor) -> tuple[CountState, Tensor, Tensor, dict[str, Tensor]]:
        count = state.count + 1
        end = count >= self.params["length"]
        return CountState(count, state.last, state.episode), torch.ones(self.num_envs), end, {}

    def observe(self, state: CountState) -> Tensor:
        return torch.stack((torch.ones(self.num_envs), state.count.float() / 5), 1)


class Buttons(Count):
    """`Count` with a MultiDiscrete([2, 3]) action; random lengths of episodes."""

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        return Box(-np.inf, np.inf, (3,), np.float32), MultiDiscrete([2, 3])

    def advance(self, state: CountState, action: Tensor) -> tuple[CountState, Tensor, Tensor, dict[str, Tensor]]:
        following, reward, end, info = super().advance(state, action.sum(-1))
        return following, reward / 10, end | (self.uniform(0, 1, self.num_envs) < 0.2), info


COUNT, CONSTANT, BUTTONS = (f"tests.agent.support:{name}" for name in ("Count", "Constant", "Buttons"))


def task_env(*specs: dict[str, Any], copies: int = 4, seed: int = 0, **options: Any) -> TaskEnv:
    """A TaskEnv with one task a spec, named t0, t1, ..."""
    tasks = [Task.from_spec(f"t{i}", spec, 1000) for i, spec in enumerate(specs)]
    return TaskEnv(tasks, copies, seed=seed, **options)


def random_truncations(env: BatchedEnv | TaskEnv, low: int, high: int) -> None:
    """Give every copy a time limit of its own, so that episodes end at mixed steps."""
    inner = env.envs[0] if isinstance(env, TaskEnv) else env
    inner.set_params(None, max_episode_steps=[low + i % (high - low) for i in range(env.num_envs)])


# ---- policies, rollouts, chunks --------------------------------------------------------------------------------------


def make_policy(
    cell: str | dict[str, Any] = "elstm",
    size: int = 6,
    observation: int | gymnasium.Space[Any] = 3,
    action: gymnasium.Space[Any] | None = None,
    tasks: int = 1,
    task_observed: bool = False,
    seed: int = 0,
    composed: bool = False,
    **options: Any,
) -> Policy:
    """A small policy; the heads are enlarged, so that probabilities and values differ from step to step."""
    torch.manual_seed(seed)
    space = Box(-10, 10, (observation,), np.float32) if isinstance(observation, int) else observation
    options = {"encoder": {"kind": "identity"}, **options}
    spec = {"kind": cell} if isinstance(cell, str) else cell
    config = PolicyConfig(cell={"size": size, **spec}, **options)
    policy = Policy(config, space, action or Discrete(3), tasks, task_observed, composed=composed)
    with torch.no_grad():
        for name, parameter in policy.cell.named_parameters():
            if name.endswith("weight_input") and not parameter.any():  # it begins as if it heard nothing
                parameter.normal_(std=0.1)
        policy.actor.linear.weight.normal_(std=0.5)
        policy.actor.linear.bias.normal_(std=0.5)
    return policy


def policy_for(env: TaskEnv, cell: str = "elstm", size: int = 8, **options: Any) -> Policy:
    """A small policy for the environment."""
    space = env.single_observation_space
    return make_policy(cell, size, space, env.single_action_space, len(env.tasks), **options)


def make_rollout(env: TaskEnv, policy: Policy, seed: int = 0, **options: Any) -> Rollout:
    return Rollout(env, policy, torch.Generator().manual_seed(seed), **options)


def make_context(policy: Policy, objective: Objective, copies: int, steps: int, **changes: Any) -> Context:
    optimizer = torch.optim.SGD(policy.parameters(), 0.0)
    ctx = Context(policy, objective, 0, 0, None, copies, steps, torch.device("cpu"), optimizer)
    return replace(ctx, **changes)


def filled(strategy: Replaying, copies: int = 6, steps: int = 4) -> tuple[Policy, Context]:
    """Three real chunks of a policy in the buffer of a strategy, and the policy."""
    env = task_env({"kind": "TMaze", "corridor": 3, "distractors": 2}, copies=copies)
    policy = policy_for(env)
    ctx = make_context(policy, ActorCritic(policy.distribution), copies, steps, step=100)
    strategy.setup(ctx, 0)
    rollout = make_rollout(env, policy)
    for _ in range(3):
        strategy.after_chunk(ctx, rollout.collect(steps))
    return policy, ctx


@torch.no_grad()
def perturb(policy: Policy, by: float = 0.1) -> None:
    """Move every parameter."""
    for parameter in policy.parameters():
        parameter += by * torch.randn_like(parameter)


def random_chunk(policy: Policy, steps: int, copies: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Chunk:
    """Random data for a policy with Discrete actions and one head: observations, actions, rewards and episode ends."""
    g = torch.Generator().manual_seed(seed)
    shape = (steps, copies)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=g, dtype=torch.float64).to(dtype)

    def flags(p: float) -> Tensor:
        return torch.rand(shape, generator=g) < p

    terminated, truncated = flags(0.1), flags(0.1)
    started = torch.cat([flags(0.5)[:1], (terminated | truncated)[:-1]])
    size = policy.distribution.size
    logits = normal(*shape, size)
    action = torch.randint(size, shape, generator=g)
    return Chunk(
        obs=normal(*shape, *policy.encoder.space.shape),
        previous_action=torch.zeros(*shape, size if policy.with_action else 0, dtype=dtype),
        previous_reward=torch.zeros(shape, dtype=dtype),
        task=torch.zeros(shape, dtype=torch.int64),
        action_mask=torch.ones(*shape, 0, dtype=torch.bool),
        is_init=started,
        action=action,
        reward=normal(*shape),
        terminated=terminated,
        truncated=truncated,
        log_prob=torch.log_softmax(logits, -1).gather(-1, action.unsqueeze(-1)).squeeze(-1),
        policy=logits,
        value=normal(*shape),
        final_value=normal(*shape),
        target=torch.zeros(*shape, 0, dtype=dtype),
        target_mask=torch.zeros(shape, dtype=torch.bool),
        weight=torch.ones(shape, dtype=dtype),
        **empty_ends(steps, copies, normal(copies, *policy.encoder.space.shape)),
        bootstrap_value=normal(copies),
        state=torch.zeros(copies, policy.cell.state_size, dtype=dtype),
    )


def empty_ends(steps: int, copies: int, next_obs: Tensor) -> dict[str, Tensor]:
    """What a chunk has of the time after its steps, without any truncated one: the values in it are all there is."""
    return {
        "final_step": torch.full((0, copies), steps),
        "final_obs": next_obs.new_zeros(0, *next_obs.shape),
        "next_obs": next_obs,
        "next_is_init": torch.zeros(copies, dtype=torch.bool),
    }


def slice_steps(chunk: Chunk, start: int, stop: int, state: Tensor, bootstrap: Tensor) -> Chunk:
    """Steps [start, stop) of a chunk, beginning in `state`."""
    part = chunk.map(lambda name, x, dim: x if dim == 0 or name in SLOTS else x[start:stop])
    return replace(part, state=state, bootstrap_value=bootstrap)


@torch.no_grad()
def act_through(policy: Policy, chunk: Chunk) -> tuple[Experience, Tensor]:
    """The experience of acting through the chunk's observations step by step, and the memory after it."""
    x_TBD = policy.encode(inputs_of(chunk))
    state, states = chunk.state, []
    for t in range(chunk.steps):
        states.append(state)
        _, state = policy.cell.step(x_TBD[t], state * (~chunk.is_init[t]).unsqueeze(-1))
    nothing = torch.zeros_like(chunk.reward)
    return Experience(chunk, x_TBD, torch.stack(states), nothing, nothing > 0), state


# ---- trainers --------------------------------------------------------------------------------------------------------


class Silent:
    """A log and a progress line that remember the scalars."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.seen |= values

    def histograms(self, step: int, values: dict[str, list[float]]) -> None: ...

    def clock(self, step: int, values: dict[str, float]) -> None: ...

    def update(self, *args: Any) -> None: ...

    def evaluation(self, evaluations: Any) -> None: ...

    def sizes(self) -> dict[str, int]:
        return {}

    def rate(self, step: int) -> float:
        return 1.0


MAZES = [
    {"name": "maze", "env": {"kind": "TMaze", "corridor": 3}},
    {"name": "opposite", "env": {"kind": "TMaze", "corridor": 3, "reversed": 1}},
]


#: a config of three small tasks that are padded to one space, with every strategy's options
THREE_TASKS = """
stream:
  steps_per_task: 10000
  spaces: pad
  tasks:
    - {name: maze, env: {kind: TMaze, corridor: 3, distractors: 1}}
    - {name: cartpole, env: {kind: CartPole, max_episode_steps: 50}, reward_scale: 0.1}
    - {name: repeat, env: {kind: RepeatPrevious, lag: 1, length: 9}}
policy:
  encoder: {kind: mlp, hidden: [16]}
  cell: {kind: elstm, size: 16}
  previous_action: true
  previous_reward: true
gradient: rtrl
strategy_options: {clear: {capacity: 64, start: 16}, ewc: {sequences: 8}, gpm: {chunks: 2}}
rollout: {copies: 8, steps: 8, random_initial_age: true}
evaluation: {every: 5000, episodes: 4, max_steps: 60}
checkpoint: {every: 2000}
log_every: 1000
"""


def make_config(**changes: Any) -> configuration.Config:
    """A checked config of two small mazes, 8 copies and T = 4; `changes` are merged over it."""
    raw: dict[str, Any] = {
        "name": "test",
        "stream": {"tasks": MAZES, "steps_per_task": 192, "task_id": "observed"},
        "policy": {"encoder": {"kind": "identity"}, "cell": {"kind": "elstm", "size": 6}},
        "gradient": "rtrl",
        "rollout": {"copies": 8, "steps": 4},
        "evaluation": {"every": 10_000, "episodes": 4, "max_steps": 8},
        "checkpoint": {"every": 10_000},
        "log_every": 32,
        "runtime": {"device": "cpu"},
    }
    return configuration.check(configuration.merge(raw, changes))


def make_trainer(folder: Path, **changes: Any) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    return build(make_config(**changes), folder)


def one_by_one(trainer: Trainer, *, compiled: bool = False) -> None:
    """Let it act chunk by chunk as `Rollout.collect` does, and learn from each by itself: with torch, or with compiled
    passes if there are any."""
    trainer.planned.plan, trainer.chunk.collector = None, None
    if not compiled:
        trainer.learner.passes.why = "a test"


def run(trainer: Trainer, until: int | None = None) -> Silent:
    """Train to the end, or stop at step `until` (which saves a checkpoint)."""
    log: Any = Silent()
    trainer.train(log, log, lambda: until is not None and trainer.step >= until)
    silent: Silent = log
    return silent


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of nested dicts and lists."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}/{index}")
    else:
        yield path, value


def assert_identical(left: Any, right: Any) -> None:
    """Bit for bit the same nested data."""
    a, b = dict(leaves(left)), dict(leaves(right))
    assert a.keys() == b.keys()
    for path, value in a.items():
        if isinstance(value, Tensor):
            assert value.dtype == b[path].dtype and torch.equal(value, b[path]), path
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, b[path], err_msg=path)
        else:
            assert value == b[path], path
