"""Environment runners: what arrives is what a rollout in process gives; late and dead runners harm nobody else."""

from __future__ import annotations

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("ray")

from lifelong.agent import config as configs
from lifelong.agent import run as commands
from lifelong.agent.distributed import runners
from lifelong.agent.distributed.runners import Copies, RunnerRollout, load_weights, pack, unpack, weights_of
from lifelong.agent.errors import ClusterError, ConfigError
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.runtime import checkpoint, session
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.runtime.rollout import Experience, Rollout
from lifelong.replay.chunk import concatenate
from tests.agent.support import (
    COUNT,
    act_through,
    assert_identical,
    make_config,
    make_context,
    make_policy,
    make_rollout,
    make_trainer,
    policy_for,
    random_chunk,
    run,
    task_env,
)

ROOT = Path(__file__).parents[3]
T = 4

# ---- what runs in the runners ----------------------------------------------------------------------------------------


def count_rollout(copies: int, seed: int) -> Rollout:
    """Episodes of 7 steps that count, on two tasks."""
    tasks = ({"kind": COUNT, "length": 7}, {"kind": COUNT, "length": 7, "bonus": 100.0})
    env = task_env(*tasks, copies=copies, seed=seed)
    return make_rollout(env, policy_for(env, previous_action=True), seed=seed)


class Late(Rollout):
    """Takes its time."""

    def collect(self, steps: int) -> Experience:
        time.sleep(0.4)
        return super().collect(steps)


def second_is_late(copies: int, seed: int) -> Rollout:
    """`count_rollout`; the runner with seed 1, and any that takes its place, is late."""
    rollout = count_rollout(copies, seed)
    if seed:
        rollout.__class__ = Late
    return rollout


class Broken(Rollout):
    """Its environment fails."""

    def steps(self, steps: int) -> Any:
        raise RuntimeError("the simulator is out of fuel")


def broken_rollout(copies: int, seed: int) -> Rollout:
    rollout = count_rollout(copies, seed)
    rollout.__class__ = Broken
    return rollout


def cannot_start(copies: int, seed: int) -> Rollout:
    raise OSError("no display")


def starts_once(copies: int, seed: int) -> Rollout:
    """A runner that takes the place of a dead one has another seed, and cannot start."""
    if seed not in (0, 1):
        raise OSError("no display")
    return count_rollout(copies, seed)


# ---- helpers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray of our own that the tests of this file share."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def runner_rollout(
    make: Callable[[int, int], Rollout] = count_rollout, seeds: tuple[int, ...] = (0, 1)
) -> RunnerRollout:
    """Two copies a runner; the learner's weights are not those that the runners are made with."""
    policy = count_rollout(1, 0).policy
    perturb(policy)
    copies = 2 * len(seeds)
    env = Copies(torch.zeros(copies, dtype=torch.int64), torch.device("cpu"), True)
    return RunnerRollout(policy, RTRL(policy.cell, copies), make, list(seeds), env)  # type: ignore[arg-type]


@torch.no_grad()
def perturb(policy: torch.nn.Module) -> None:
    for parameter in policy.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.1)


def twin(rollout: RunnerRollout, runner: int) -> Rollout:
    """What `runner` is, in this process."""
    made = count_rollout(2, rollout.seeds[runner])
    made.policy.load_state_dict(rollout.policy.state_dict())
    return made


def side_by_side(parts: list[Experience]) -> Experience:
    """Oracle for `unpack`: torch instead of numpy."""
    apart = ("chunk", "copies", "acted", "lags", "engine")
    rest = {k: torch.cat([vars(p)[k] for p in parts], 1) for k in vars(parts[0]) if k not in apart}
    return Experience(concatenate([part.chunk for part in parts]), **rest)


def assert_same(a: Experience, b: Experience) -> None:
    """Equal in everything that travels; what acting kept is of no use once the weights have changed."""
    assert_identical(*({**vars(x), "chunk": vars(x.chunk), "acted": None, "lags": None} for x in (a, b)))


def advance(rollout: RunnerRollout, part: Experience) -> None:
    """What the learner does with the carry."""
    rollout.engine.advance(rollout.engine.trace(part.x_TBD, part.state_TBS, part.chunk.is_init, part.copies))


def copies_of(part: Experience, rollout: RunnerRollout) -> list[int]:
    return list(range(len(rollout.env.task_B))) if part.copies is None else part.copies.tolist()


def carry_of_history(rollout: RunnerRollout, runner: int, blocks: int) -> dict[str, Tensor]:
    """The carry of a runner's copies after so many blocks, all acted with the learner's (unchanged) weights."""
    local = twin(rollout, runner)
    engine = RTRL(local.policy.cell, 2)  # type: ignore[arg-type]
    for _ in range(blocks):
        part = local.collect(T)
        engine.advance(engine.trace(part.x_TBD, part.state_TBS, part.chunk.is_init))
    return engine.state_dict()


def pid_of(rollout: RunnerRollout, runner: int) -> int:
    return int(rollout.ray.get(rollout.slots[runner].actor.__ray_call__.remote(lambda _: os.getpid())))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


# ---- without Ray -----------------------------------------------------------------------------------------------------


def test_packed_experiences_come_out_side_by_side() -> None:
    parts = [count_rollout(2, seed).collect(T) for seed in (0, 1)]
    for arrays in map(pack, parts):
        assert all(array.flags.c_contiguous for array in arrays.values())
    joined = unpack([pack(part) for part in parts], torch.device("cpu"))
    assert_same(joined, side_by_side(parts))
    joined.chunk.weight.zero_()  # its own memory


def test_blocks_with_more_and_with_fewer_truncated_steps_come_out_side_by_side() -> None:
    """Episodes of 2 steps end several times in a block, those of 50 never; the learner's critic bootstraps both."""
    parts = []
    for seed, limit in ((0, 2), (1, 50)):
        rollout = count_rollout(2, seed)
        rollout.env.envs[0].set_params(None, max_episode_steps=limit, length=60)
        parts.append(rollout.collect(T))
    assert [part.chunk.slots for part in parts] == [T // 2, 0]
    joined = unpack([pack(part) for part in parts], torch.device("cpu"))
    assert joined.lags and joined.chunk.slots == T // 2
    assert_same(joined, side_by_side(parts))
    policy = rollout.policy
    perturb(policy)
    chunk = joined.chunk
    (bootstrap, final), alone = (policy.sequence(c, c.state).after() for c in (chunk, parts[0].chunk))  # type: ignore
    torch.testing.assert_close((bootstrap[:2], final[:, :2]), alone)
    assert not final[:, 2:].any() and bool((final[:, :2] != chunk.final_value[:, :2]).any())


def test_acting_changes_when_weights_arrive() -> None:
    sender, receiver = count_rollout(3, 0), count_rollout(3, 0)
    for rollout in (sender, receiver):
        rollout.collect(2)  # the compiled layer has cached the old weights
    perturb(sender.policy)
    load_weights(receiver.policy, weights_of(sender.policy))
    assert_same(receiver.collect(T), sender.collect(T))


def test_learning_from_some_copies_moves_their_carry_and_no_other() -> None:
    """The same step and carry as of a learner that has these copies only."""
    policy = make_policy()
    torch.nn.Module.double(policy)
    whole, part = RTRL(policy.cell, 5), RTRL(policy.cell, 2)  # type: ignore[arg-type]
    first, state = act_through(policy, random_chunk(policy, T, 5, seed=1, dtype=torch.float64))
    whole.advance(whole.trace(first.x_TBD, first.state_TBS, first.chunk.is_init))
    copies = torch.tensor([3, 1])
    part.load_state_dict({name: carry[copies] for name, carry in whole.state_dict().items()})
    before = copy.deepcopy(whole.state_dict())

    data = random_chunk(policy, T, 2, seed=2, dtype=torch.float64)
    data.state = state[copies]
    data.is_init[0] = False
    second, _ = act_through(policy, data)
    gradients = []
    for engine, which in ((whole, copies), (part, None)):
        objective = ActorCritic(policy.distribution)
        still = torch.optim.SGD(policy.parameters(), 0.0)
        learner = Learner(policy, engine, objective, still, [], 0.0, torch.Generator())
        second.copies = which
        learner.update(make_context(policy, objective, 5, T), second)
        gradients.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
    assert_identical(*gradients)
    for name, carry in whole.state_dict().items():
        assert torch.equal(carry[copies], part.state_dict()[name])
        assert not torch.equal(carry[copies], before[name][copies])
        assert torch.equal(carry[[0, 2, 4]], before[name][[0, 2, 4]])


def test_units_are_reset_in_the_carry_of_the_copies_that_forgot_them() -> None:
    policy = make_policy()
    engine = RTRL(policy.cell, 4)  # type: ignore[arg-type]
    part, _ = act_through(policy, random_chunk(policy, T, 4))
    engine.advance(engine.trace(part.x_TBD, part.state_TBS, part.chunk.is_init))
    before = copy.deepcopy(engine.state_dict())
    engine.reset_units(torch.tensor([1, 4]), torch.tensor([0, 3]))
    for name, carry in engine.state_dict().items():
        expected = before[name].clone()
        for b in (0, 3):
            for n in (1, 4):
                expected[b, :, n] = 0.0
        assert torch.equal(carry, expected)


# ---- what arrives ----------------------------------------------------------------------------------------------------


def test_what_arrives_is_what_rollouts_in_process_give(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, tasks, parameters and resets of units reach the runners with the next request, one block later."""
    monkeypatch.setattr(runners, "PATIENCE", 1e6)
    rollout = runner_rollout()
    twins = [twin(rollout, runner) for runner in (0, 1)]
    with rollout.running():
        task_B = torch.tensor([0, 0, 1, 1])
        rollout.switch(task_B)
        for runner, local in enumerate(twins):
            local.switch(task_B[runner::2])  # every runner has a share of every task
        for _ in range(2):
            chunk = rollout.collect(T)
            assert chunk.copies is None
            assert_same(chunk, side_by_side([local.collect(T) for local in twins]))
        perturb(rollout.policy)
        rollout.env.set_params(bonus=7.0)
        rollout.switch(torch.tensor([1, 1, 1, 0]))
        rollout.reset_units(torch.tensor([2]))
        rollout.engine.weight_BGND.fill_(1.0)  # type: ignore[attr-defined]
        # asked for before the changes
        assert_same(rollout.collect(T), side_by_side([local.collect(T) for local in twins]))
        assert bool((rollout.engine.weight_BGND == 1.0).all())  # type: ignore[attr-defined]
        for runner, local in enumerate(twins):
            local.policy.load_state_dict(rollout.policy.state_dict())
            local.switch(torch.tensor([1, 1, 1, 0])[runner::2])
            local.env.set_params(bonus=7.0)
            local.reset_units(torch.tensor([2]))
        chunk = rollout.collect(T)
        assert_same(chunk, side_by_side([local.collect(T) for local in twins]))
        carry = rollout.engine.weight_BGND  # type: ignore[attr-defined]
        assert not carry[:, :, 2].any() and bool((carry[:, :, 3] == 1.0).all())  # with the block that forgot the unit
        timing = rollout.timing()
    assert timing["runners/lag"] == 0.75  # of four chunks only the first did not lag
    assert timing["runners/restarts"] == timing["runners/dropped"] == 0
    assert timing["runners/frames_per_second"] > 0 and 0 < timing["runners/waiting_share"] < 1


def test_a_restored_rollout_goes_on_bit_for_bit(cluster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The blocks that were under way are saved too, so nothing is lost."""
    monkeypatch.setattr(runners, "PATIENCE", 1e6)
    rollout = runner_rollout()
    with rollout.running():
        for _ in range(3):
            rollout.collect(T)
        torch.save(rollout.state_dict(), tmp_path / "state.pt")
        expected = [rollout.collect(T) for _ in range(3)]
    again = runner_rollout()
    again.policy.load_state_dict(rollout.policy.state_dict())
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with again.running():
        for chunk in expected:
            assert_same(chunk, again.collect(T))
        timing = again.timing()
    assert timing["runners/lag"] == 1.0 and timing["runners/restarts"] == 0


# ---- late and dead runners -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_lag", [10_000, pytest.param(1, marks=pytest.mark.slow)])
def test_a_straggler_is_not_waited_for_and_its_late_blocks_are_in_order(
    max_lag: int, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late blocks are learned from, or dropped if they are too old; the carry of every copy is exact either way."""
    monkeypatch.setattr(runners, "MAX_LAG", max_lag)
    rollout = runner_rollout(second_is_late)
    blocks = [0, 0]
    lags: list[int] = []
    with rollout.running():
        while blocks[1] + rollout.dropped < 3:
            part = rollout.collect(T)
            advance(rollout, part)
            copies = copies_of(part, rollout)
            for runner in (0, 1):
                blocks[runner] += 2 * runner in copies
            if copies == [0, 1, 2, 3]:
                lags.append(rollout.lags[-1])
            time.sleep(0.02)  # the learner learns
    assert blocks[0] > 6
    if max_lag == 1:
        assert rollout.dropped >= 2 and blocks[1] <= 1  # the very first has no lag
    else:
        assert rollout.dropped == 0 and blocks[1] == 3 and max(lags, default=0) >= 0
    carry = rollout.engine.state_dict()
    for runner in (0, 1):
        done = blocks[runner] + (rollout.dropped if runner else 0)
        expected = carry_of_history(rollout, runner, done)
        for name, rows in expected.items():
            torch.testing.assert_close(carry[name][2 * runner : 2 * runner + 2], rows, rtol=0, atol=1e-6)


@pytest.mark.parametrize("death", ["SIGKILL", pytest.param("for good", marks=pytest.mark.slow)])
def test_a_runner_that_dies_is_replaced_and_the_others_go_on(
    death: str, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "MAX_LAG", 10_000)
    rollout = runner_rollout(second_is_late)
    with rollout.running():
        for _ in range(3):
            rollout.collect(T)
        pid = pid_of(rollout, 1)
        while copies_of(rollout.collect(T), rollout) == [0, 1]:
            pass  # until the late one has just been asked again
        if death == "SIGKILL":
            os.kill(pid, signal.SIGKILL)
        else:
            cluster.kill(rollout.slots[1].actor)
        count, without = None, 0
        end = time.monotonic() + 60
        while time.monotonic() < end:
            part = rollout.collect(T)
            if 0 in copies_of(part, rollout):
                first = part.chunk.obs[0, 0, 0].item()
                assert count is None or first == (count + T) % 7  # the other goes on without a gap
                count = first
            if 2 in copies_of(part, rollout):
                break
            without += 1
            time.sleep(0.02)
        assert without >= 1 and rollout.restarts == 1
        reborn = part.chunk.is_init[:, -2:]
        assert bool(reborn[0].all()) and float(part.chunk.obs[0, -1, 0]) == 0  # fresh episodes, an empty memory
        pids = [pid_of(rollout, runner) for runner in (0, 1)]
        assert pid not in pids
    for each in (pid, *pids):
        wait_until(lambda each=each: not alive(each), 20)  # type: ignore[misc]


def test_an_error_in_an_environment_ends_the_run_with_its_message(cluster: Any) -> None:
    rollout = runner_rollout(broken_rollout, seeds=(0,))
    with rollout.running(), pytest.raises(ClusterError, match="runner 0 failed: the simulator is out of fuel"):
        rollout.collect(T)


def test_a_runner_that_cannot_start_is_named_at_once(cluster: Any) -> None:
    with pytest.raises(ClusterError, match=r"cannot start: .*no display"), runner_rollout(cannot_start, (0,)).running():
        pass


@pytest.mark.slow
def test_without_any_living_runner_the_run_ends(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "DEAD_TIMEOUT", 3.0)
    rollout = runner_rollout(starts_once, seeds=(0,))
    with rollout.running():
        rollout.collect(T)
        os.kill(pid_of(rollout, 0), signal.SIGKILL)
        with pytest.raises(ClusterError, match="no environment runner has answered for 3 s: "):
            for _ in range(3):  # what it had delivered before can still be learned from
                rollout.collect(T)


@pytest.mark.slow
def test_a_checkpoint_does_not_wait_for_a_runner_that_hangs(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is saved without a state, and starts fresh episodes when the run goes on."""
    monkeypatch.setattr(runners, "SAVE_TIMEOUT", 0.1)
    rollout = runner_rollout(second_is_late)
    with rollout.running():
        rollout.collect(T)
        wait_until(lambda: rollout.slots[1].block is not None)
        rollout.collect(T)
        saved = rollout.state_dict()
    assert saved["runners"][1] is None and saved["runners"][0] is not None
    monkeypatch.setattr(runners, "PATIENCE", 1e6)
    again = runner_rollout()
    again.load_state_dict(saved)
    with again.running():
        chunk = again.collect(T).chunk
    assert chunk.is_init[0].tolist()[2:] == [True, True]


# ---- before anything starts ------------------------------------------------------------------------------------------


def test_too_few_cpus_are_an_answer_not_a_hang(cluster: Any) -> None:
    rollout = runner_rollout(seeds=(0, 1))
    rollout.cpus = 3.0
    with pytest.raises(ClusterError, match=r"env_runners is 2 .*cpus_per_runner 3.* 4 CPUs"), rollout.running():
        pass


def test_a_checkpoint_of_another_number_of_runners_is_refused() -> None:
    with pytest.raises(ValueError, match="env_runners=3, and now it is 2"):
        runner_rollout().load_state_dict({"runners": [None] * 3, "version": 0})
    with pytest.raises(ValueError, match="env_runners=0, and now it is 2"):
        runner_rollout().load_state_dict(count_rollout(4, 0).state_dict())
    with pytest.raises(ValueError, match="env_runners=3, and now it is 0"):
        count_rollout(4, 0).load_state_dict({"runners": [None] * 3, "version": 0})


def test_an_objective_that_trusts_its_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="objective ppo does not correct for; use objective actor_critic"):
        make_trainer(tmp_path, objective="ppo", runtime={"backend": "ray", "env_runners": 2})


# ---- a life goes on --------------------------------------------------------------------------------------------------

THROUGH_RUNNERS = {"backend": "ray", "env_runners": 2, "device": "cpu", "address": "auto"}


def trained(folder: Path, **more: Any) -> Any:
    """A run through runners on two small mazes; its last checkpoint has blocks under way."""
    settings = {"evaluation": {"every": 192, "episodes": 4, "max_steps": 8}, "checkpoint": {"every": 64}}
    config = make_config(**configs.merge({**settings, "runtime": THROUGH_RUNNERS, "gradient": "rtrl"}, more))
    return commands.start(config, folder, quiet=True)[0]


@pytest.mark.slow
@pytest.mark.parametrize("observed", ["observed", "hidden"])
def test_new_tasks_come_to_a_run_with_runners(observed: str, cluster: Any, tmp_path: Path) -> None:
    """Blocks that were under way when it was saved are learned from, although the policy has grown since."""
    trained(tmp_path / "run", stream={"task_id": observed})
    saved, _ = checkpoint.load(tmp_path / "run/checkpoints")
    assert any(runner["block"] is not None for runner in saved["rollout"]["runners"])
    new = {"name": "longer", "env": {"kind": "TMaze", "corridor": 6}, "steps": 128}
    (tmp_path / "task.yaml").write_text(json.dumps(new))
    trainer, finished = commands.resume(tmp_path / "run", add=[str(tmp_path / "task.yaml")], quiet=True)
    assert finished and trainer.step == 512
    assert all(bool(p.isfinite().all()) for p in trainer.rollout.policy.parameters())


@pytest.mark.slow
def test_more_copies_start_afresh_with_seeds_of_their_own(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "PATIENCE", 1e6)
    before = trained(tmp_path / "run")
    words = ["rollout.copies=12", "stream.tasks.1.steps=576"]
    firsts = []
    for _ in range(2):
        config = session.load_config(tmp_path / "run", words)
        trainer, _ = session.load(config, tmp_path / "run", commands._planned(config), commands._acting(config))
        assert not set(trainer.rollout.seeds) & set(before.rollout.seeds)  # type: ignore[attr-defined]
        assert trainer.step == before.step and trainer.rollout.env.num_envs == 12
        trainer.follow_stream()
        with trainer.rollout.running():
            experience = trainer.rollout.collect(8)
        trainer.close()
        assert experience.chunk.is_init[0].all()
        assert all(carry.shape[0] == 12 and not carry.any() for carry in trainer.learner.engine.state_dict().values())
        firsts.append(experience.chunk)
    assert_identical(*map(vars, firsts))
    trainer, finished = commands.resume(tmp_path / "run", words, quiet=True)
    assert finished and trainer.step == 768


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["gpm", pytest.param("ewc", marks=pytest.mark.slow)])
def test_strategies_that_take_fresh_experience_train_with_runners(strategy: str, cluster: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, strategy=strategy, runtime={"backend": "ray", "env_runners": 2, "device": "cpu"})
    with trainer.rollout.running():
        run(trainer)
    assert trainer.step >= 384 and trainer.segment == 1
    assert all(bool(p.isfinite().all()) for p in trainer.rollout.policy.parameters())


LEARNABLE: dict[str, Any] = {
    "stream": {"tasks": [{"name": "maze", "env": {"kind": "TMaze", "corridor": 5}}], "steps_per_task": 100_000},
    "policy": {"encoder": {"kind": "mlp", "hidden": [32]}, "cell": {"kind": "elstm", "size": 32}},
    "objective": {"kind": "actor_critic", "gamma": 0.97, "lam": 0.95},
    "optimizer": {"kind": "adam", "lr": 2e-3},
    "rollout": {"copies": 32, "steps": 8},
    "evaluation": {"every": 1_000_000, "episodes": 32, "max_steps": 64},
    "checkpoint": {"every": 1_000_000},
}


@pytest.mark.parametrize("env_runners", [0, 2])
def test_a_maze_is_learned_through_runners_as_it_is_inline(env_runners: int, cluster: Any, tmp_path: Path) -> None:
    runtime = {"backend": "ray" if env_runners else "inline", "env_runners": env_runners, "device": "cpu"}
    trainer = make_trainer(tmp_path, **LEARNABLE, runtime=runtime)
    with trainer.rollout.running():
        run(trainer)
    assert trainer.performance()["maze"] > 0.95


SMALL = """
stream:
  steps_per_task: 10000000
  tasks:
    - {name: maze, env: {kind: TMaze, corridor: 3, distractors: 1}}
policy: {encoder: {kind: mlp, hidden: [16]}, cell: {kind: elstm, size: 16}}
gradient: rtrl
strategy: clear
strategy_options: {clear: {capacity: 64, start: 16}}
rollout: {copies: 8, steps: 8}
evaluation: {every: 10000000, episodes: 4, max_steps: 60}
checkpoint: {every: 5000}
log_every: 1000
runtime: {backend: ray, env_runners: 2, address: local}
"""


def lifelong(*arguments: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lifelong.agent.cli", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def descendants(pid: int) -> dict[int, str]:
    """All processes below `pid`: pid -> command line."""
    parent = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below, found = {pid}, set()
    while below := {child for child, above in parent.items() if above in below}:
        found |= below
    return {child: Path(f"/proc/{child}/cmdline").read_text() for child in found if alive(child)}


def last(path: Path) -> dict[str, float]:
    """The last whole line of a log."""
    lines = path.read_text().splitlines() if path.exists() else []
    found: dict[str, float] = json.loads(lines[-1]) if lines else {}
    return found


@pytest.mark.slow
def test_death_of_the_raylet_ends_the_run_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    process = lifelong("run", tmp_path / "small.yaml", "--out", tmp_path / "run", "--quiet")
    timing = tmp_path / "run" / "timing.jsonl"
    wait_until(lambda: process.poll() is not None or last(timing).get("step", 0) > 5_000)
    assert process.poll() is None, process.communicate()[0].decode()
    os.kill(next(pid for pid, line in descendants(process.pid).items() if "raylet/raylet" in line), signal.SIGKILL)
    (sentence,) = process.communicate(timeout=60)[0].decode().splitlines()
    assert process.returncode == 1
    assert "raylet on this machine was killed" in sentence and len(sentence) <= 300


@pytest.mark.slow
def test_death_of_a_runner_of_the_run_and_by_signal_leave_no_process_and_lose_nothing(tmp_path: Path) -> None:
    """SIGKILL of a runner: learning goes on and it is replaced. SIGKILL of the run, resume, SIGTERM: exit 3."""
    (tmp_path / "small.yaml").write_text(SMALL)
    folder = tmp_path / "run"
    timing = folder / "timing.jsonl"
    process = lifelong("run", tmp_path / "small.yaml", "--out", folder, "--quiet")
    wait_until(lambda: process.poll() is not None or last(timing).get("step", 0) > 5_000)
    assert process.poll() is None, process.communicate()[0].decode()
    killed = next(pid for pid, line in descendants(process.pid).items() if "ray::Runner" in line)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: last(timing)["runners/restarts"] == 1)
    below = descendants(process.pid)
    assert killed not in below and sum("ray::Runner" in line for line in below.values()) == 2
    process.kill()
    process.communicate()
    # two agents of Ray's take a minute of their own to see that their cluster is gone
    ours = [pid for pid, line in below.items() if not line.startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent"))]
    assert len(below) - len(ours) <= 2
    wait_until(lambda: not any(map(alive, ours)), 30)

    saved = max(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))
    process = lifelong("resume", folder, "--quiet")
    wait_until(lambda: process.poll() is not None or last(folder / "metrics.jsonl").get("step", 0) > saved + 5_000)
    below = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[0].decode().startswith("stopped at step") and process.returncode == 3
    wait_until(lambda: not any(map(alive, below)), 30)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and max(b - a for a, b in itertools.pairwise(steps)) < 1_200
