"""A captured chunk is the eager one bit for bit, whatever happens between two chunks; and whatever cannot be captured
stays eager, with nothing lost. On the CPU with a graph that has the semantics of a CUDA graph (`emulated_graph`)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gymnasium.spaces import MultiDiscrete
from torch import Tensor, nn

from lifelong.agent.distributed.runners import RunnerRollout
from lifelong.agent.optimizers.base import build_optimizer
from lifelong.agent.parallel import ALONE, Workers
from lifelong.agent.runtime import capture, walk
from lifelong.agent.runtime.build import can_capture
from lifelong.agent.runtime.capture import Captured, ChunkRunner
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.runtime.walk import map_tensors
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.envs.adapters.gymnasium import GymnasiumEnv
from lifelong.envs.base import BatchedEnv
from lifelong.envs.control.cartpole import CartPole
from lifelong.kernels import dispatch
from lifelong.kernels.recurrence import carry
from lifelong.kernels.rtrl import torch_backend as rtrl
from lifelong.kernels.rtrl_block import torch_backend as rtrl_block
from tests.agent.emulated_graph import EmulatedGraph
from tests.agent.support import assert_identical, make_config, make_trainer, run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything goes through torch's dispatcher, and an index is not looked at, as on a GPU."""
    for name, backend in (("rtrl_boundary", rtrl), ("rtrl_block_boundary", rtrl_block)):
        boundary = backend.boundary
        monkeypatch.setattr(carry, name, lambda S, b, index=None, run=boundary: run(S, b, index))
    with dispatch.force("torch"):
        yield


def trainer_of(folder: Path, graph: Any = EmulatedGraph, **changes: Any) -> Trainer:
    """A trainer that does what it would do on a GPU: with a graph, or eagerly if `graph` is None."""
    trainer = make_trainer(folder, **changes)
    trainer.rollout.dense = trainer.learner.objective.dense = True  # type: ignore[attr-defined, union-attr]
    trainer.chunk = ChunkRunner(trainer.rollout, trainer.learner, trainer.strategies, trainer.steps, graph)
    return trainer


def replays(trainer: Trainer) -> int:
    """How many chunks the graph has made; none if it was given up."""
    captured = trainer.chunk.captured
    assert captured is not None
    return 0 if captured.eager else captured.replays


def both(folder: Path, graph: Any = EmulatedGraph, **changes: Any) -> tuple[Trainer, Trainer]:
    """The same run eagerly and captured; every line of the log and the final state must be equal."""
    eager, captured = trainer_of(folder, None, **changes), trainer_of(folder, graph, **changes)
    lines, seen = run(eager), run(captured)
    assert_identical(lines.seen, seen.seen)
    assert_identical(eager.state_dict(), captured.state_dict())
    return eager, captured


def tasks(*specs: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": f"t{i}", "env": spec} for i, spec in enumerate(specs)]


POLE = {"kind": "CartPole", "max_episode_steps": 9}
PPO_ONCE = {"kind": "ppo", "epochs": 1, "minibatches": 1}
PPO = {"kind": "ppo", "epochs": 2, "minibatches": 3}
MLP = {"policy": {"encoder": {"kind": "mlp", "hidden": [5]}, "cell": {"kind": "elstm", "size": 6}}}
POLES = {**MLP, "stream": {"tasks": tasks(POLE), "steps_per_task": 320, "task_id": "hidden"}}


class Squares(CartPole):
    """CartPole of which only two squares are seen: where the cart is, and where the pole."""

    def spaces(self) -> Any:
        return MultiDiscrete([3, 2]), super().spaces()[1]

    def observe(self, state: Any) -> Tensor:
        return torch.stack([state.physics[:, 0].sign().long() + 1, (state.physics[:, 2] > 0).long()], 1)

    def step(self, actions: Any) -> Any:
        return BatchedEnv.step(self, actions)


# ---- whole runs ------------------------------------------------------------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {
    "cartpole, ppo, bptt": {**POLES, "gradient": "bptt", "objective": PPO_ONCE},
    "cartpole, ppo with minibatches, bptt": {**POLES, "gradient": "bptt", "objective": PPO},
    "cartpole, ppo, rtrl": {**POLES, "objective": PPO_ONCE},
    "cartpole, ppo with minibatches, rtrl": {**POLES, "objective": PPO},
    "two mazes": {},
    "q-learning with its target network": {"objective": "q_learning"},
    "one step a chunk": {"rollout": {"copies": 8, "steps": 1}, "stream": {"steps_per_task": 40}},
    "all that the cell can read": {"policy": {"previous_action": True, "previous_reward": True}},
    "memory that goes on": {"policy": {"reset_memory_on": "never"}},
    "memory of a task": {"policy": {"reset_memory_on": "task", "previous_action": True}},
    "a head for each task": {"policy": {"heads": "per_task"}},
    "continuous actions": {
        **MLP,
        "objective": PPO,
        "stream": {"tasks": tasks({"kind": "Pendulum", "max_episode_steps": 7}), "steps_per_task": 320},
    },
    "prediction": {
        "objective": "supervised",
        "stream": {"tasks": tasks({"kind": "ImageRows", "rows_per_step": 14}), "steps_per_task": 320},
    },
    "symbols, a dense cell, sgd": {
        "gradient": "bptt",
        "policy": {"cell": {"kind": "gru", "size": 6}},
        "optimizer": {"kind": "sgd", "lr": 0.01},
        "stream": {"tasks": tasks({"kind": "RepeatPrevious", "lag": 2, "length": 7}), "steps_per_task": 320},
    },
    "two parts of a state": {"policy": {"cell": {"kind": "diagonal_lstm", "size": 5}}, "objective": PPO},
    "a parameter that jumps": {
        **MLP,
        "stream": {"tasks": tasks(POLE, {**POLE, "gravity": 20.0, "force_mag": -10.0}), "steps_per_task": 192},
    },
    "parameters that drift": {
        **MLP,
        "stream": {
            "tasks": tasks(POLE, {**POLE, "gravity": 20.0}, {**POLE, "length": 2.0}),
            "schedule": "drift",
            "steps_per_task": 128,
        },
    },
    "observations that are categories": {
        **MLP,
        "stream": {"tasks": tasks({"kind": f"{__name__}:Squares", "max_episode_steps": 9}), "steps_per_task": 320},
    },
    "scaled rewards": {"stream": {"tasks": [{"name": "a", "env": POLE, "reward_scale": 0.1}], "steps_per_task": 320}},
    "environments side by side": {
        "stream": {
            "tasks": tasks(POLE, {"kind": "TMaze", "corridor": 3}),
            "schedule": "interleaved",
            "spaces": "pad",
            "task_id": "observed",
        }
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_a_captured_run_is_the_eager_one_bit_for_bit(name: str, tmp_path: Path) -> None:
    eager, captured = both(tmp_path, **RUNS[name])
    chunks = eager.step // eager.frames
    assert replays(captured) == chunks - 1  # the first makes the optimiser's state; it is not captured


@pytest.mark.parametrize("kind", ["continual_backprop", "reset_on_task"])
def test_what_begins_anew_between_two_replays_is_seen(kind: str, tmp_path: Path) -> None:
    options = {"continual_backprop": {"rate": 0.1, "maturity": 1}, "reset_on_task": {"every": 128}}[kind]
    eager, captured = both(tmp_path, **RUNS["two parts of a state"], strategy=[{"kind": kind, **options}])
    chunks = eager.step // eager.frames
    resets = sum(value for name, value in eager.strategies[0].report().items() if name.startswith("resets"))
    assert resets >= 2
    lost = 1 if kind == "continual_backprop" else 1 + resets  # an optimiser that has begun anew makes its state again
    assert replays(captured) >= chunks - lost


def test_other_environments_are_another_graph(tmp_path: Path) -> None:
    stream = {
        "tasks": tasks(POLE, {"kind": "TMaze", "corridor": 3}),
        "cycles": 2,
        "spaces": "pad",
        "steps_per_task": 160,
    }
    _, captured = both(tmp_path, stream=stream)
    assert replays(captured) == 20 - 4  # the first chunk on each of four segments


def test_a_run_goes_on_from_a_checkpoint_in_the_middle(tmp_path: Path) -> None:
    eager, first = (trainer_of(tmp_path, graph, **RUNS["a parameter that jumps"]) for graph in (None, EmulatedGraph))
    run(eager)
    run(first, until=160)
    saved, seen = copy.deepcopy(first.state_dict()), copy.deepcopy(first.evaluations)
    run(first)
    assert_identical(eager.state_dict(), first.state_dict())
    second = trainer_of(tmp_path, **RUNS["a parameter that jumps"])
    second.load_state_dict(copy.deepcopy(saved))
    second.evaluations = copy.deepcopy(seen)
    run(second)
    assert_identical(eager.state_dict(), second.state_dict())
    first.evaluations = seen
    first.load_state_dict(copy.deepcopy(saved))  # back to the middle, with a graph that has run to the end
    before = replays(first)
    run(first)
    assert_identical(eager.state_dict(), first.state_dict())
    assert replays(first) > before


def test_clear_updates_eagerly_and_keeps_what_it_saw(tmp_path: Path) -> None:
    strategy = [{"kind": "clear", "capacity": 24, "start": 8}]
    _, captured = both(tmp_path, strategy=strategy)
    assert not captured.chunk.whole and replays(captured) == 12 - 1  # acting is captured


class Collector(Strategy):
    """Keeps every experience."""

    def __init__(self) -> None:
        self.kept: list[Experience] = []

    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        self.kept.append(experience)


def test_experience_that_a_strategy_keeps_is_not_overwritten(tmp_path: Path) -> None:
    strategy = [{"kind": f"{__name__}:Collector"}]
    eager, captured = both(tmp_path, strategy=strategy)
    assert captured.chunk.whole and replays(captured)
    kept, expected = (t.strategies[0].kept for t in (captured, eager))  # type: ignore[attr-defined]
    for a, b in zip(kept, expected, strict=True):
        assert_identical(vars(a.chunk), vars(b.chunk))


def test_evaluation_between_two_chunks_sees_the_new_parameters(tmp_path: Path) -> None:
    """Python's caches of what is computed from weights: fails if a replay does not count as a write to them."""
    trainer = trainer_of(tmp_path)
    for _ in range(5):
        trainer.follow_stream()
        trainer.chunk(trainer.context())
        with torch.no_grad():
            weight, bias = trainer.rollout.policy.read_out()
        policy = trainer.rollout.policy
        assert torch.equal(weight, torch.cat([policy.actor.linear.weight, policy.critic.weight]))
        assert torch.equal(bias, torch.cat([policy.actor.linear.bias, policy.critic.bias]))
    assert replays(trainer) == 4


def test_results_and_slots_hold_no_memory_of_each_other(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, rollout={"copies": 8, "steps": 1})
    for _ in range(4):
        trainer.follow_stream()
        experience, _, _ = trainer.chunk(trainer.context())
    captured = trainer.chunk.captured
    assert captured is not None and captured.replays == 3
    buffers = {b.untyped_storage().data_ptr() for b in captured.buffers.values() if b.numel()}
    results: list[Tensor] = []
    map_tensors(experience, lambda x: results.append(x) or x)  # type: ignore[func-returns-value]
    assert not buffers & {x.untyped_storage().data_ptr() for x in results if x.numel()}


def test_an_option_of_the_device_is_not_loaded_from_a_checkpoint_of_another(tmp_path: Path) -> None:
    trainer, other = (trainer_of(tmp_path, optimizer="rmsprop") for _ in range(2))
    trainer.learner.optimizer.param_groups[0]["capturable"] = True
    other.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert other.learner.optimizer.param_groups[0]["capturable"] is False


# ---- what cannot be captured -----------------------------------------------------------------------------------------


class WrongAt(EmulatedGraph):
    """A graph whose replay number `when` ends with a parameter that is wrong by a percent."""

    when = 1

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def replay(self) -> None:
        self.count += 1
        super().replay()
        if self.count == self.when:
            steps = [args for op, args, _, _ in self.ops if op._schema.name.startswith("aten::_fused_adam")]
            parameters = steps[-1][0]
            parameters[0].mul_(1.01)


class WrongAtOnce(WrongAt):
    when = 1


class WrongLater(WrongAt):
    when = 2


class BrokenReplay(EmulatedGraph):
    def replay(self) -> None:
        super().replay()  # half of the harm is done
        raise RuntimeError("the driver is gone")


class NoMemory(EmulatedGraph):
    def capture(self, function: Any, generators: Any) -> Any:
        super().capture(function, generators)
        raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize("graph", [WrongAtOnce, WrongLater, BrokenReplay, NoMemory])
@pytest.mark.parametrize("name", ["cartpole, ppo with minibatches, rtrl", "two mazes"])
def test_a_graph_that_does_something_else_is_given_up_and_nothing_is_lost(
    name: str, graph: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, captured = both(tmp_path, graph, **RUNS[name])
    assert captured.chunk.captured is not None and captured.chunk.captured.eager
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    expected = {BrokenReplay: "the driver is gone", NoMemory: "out of memory"}.get(graph, "differs by")
    assert line.name == "lifelong.capture" and expected in line.getMessage()


class Asking(CartPole):
    """Asks the device for a number at every step, which no graph can repeat."""

    def advance(self, state: Any, action: Tensor) -> Any:
        result = super().advance(state, action)
        assert float(result[1].sum()) > 0
        return result


class Counting(CartPole):
    """Counts its steps in Python, which no graph can repeat."""

    calls = 0

    def advance(self, state: Any, action: Tensor) -> Any:
        self.calls += 1
        return super().advance(state, action)


class Secretive(CartPole):
    """Draws from a generator that hangs on nothing."""

    def draw_state(self) -> Any:
        return type(super().draw_state())(torch.rand(self.num_envs, 4, generator=_secret) * 0.1)


class Fresh(CartPole):
    """Makes a tensor of host data at every step."""

    def advance(self, state: Any, action: Tensor) -> Any:
        self._limits = torch.tensor([2.4, 0.2])
        return super().advance(state, action)


_secret = torch.Generator()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Asking", "not permitted when a stream is capturing"),
        ("Counting", ".rollout.env.envs.0.calls"),
        ("Secretive", "not registered"),
        ("Fresh", "not permitted when a stream is capturing"),
    ],
)
def test_an_environment_that_cannot_be_captured_runs_eagerly(
    name: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = {"tasks": tasks({"kind": f"{__name__}:{name}"}), "steps_per_task": 960}
    changes = {**MLP, "stream": stream, "objective": PPO}
    eager, captured = (trainer_of(tmp_path, graph, **changes) for graph in (None, EmulatedGraph))
    for trainer in (eager, captured):
        _secret.manual_seed(0)
        trainer.rollout.start(0)
        run(trainer)
    if name != "Secretive":  # a capture that fails draws from it once
        assert_identical(eager.state_dict(), captured.state_dict())
    assert captured.chunk.captured is not None and captured.chunk.captured.eager
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert reason in line.getMessage()


# ---- one function ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    new: Tensor
    old: Tensor


class Machine:
    """State of every shape: a frozen dataclass, a tuple, a dict; tensors that are shared; a generator; a switch."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.pair = Pair(torch.arange(3.0), torch.zeros(3))
        self.kept = (torch.ones(3), {"sum": torch.zeros(3)})
        self.gain = torch.full((3,), 2.0)
        self.same_gain = self.gain
        self.views = [self.gain[:2], self.gain[1:]]
        self.weight = nn.Parameter(torch.ones(3))
        self.count = torch.zeros(3)
        self.same_count = self.count
        self.double = False
        self.hidden: Any = None

    def step(self, x: Tensor | None) -> dict[str, Any]:
        noise = torch.rand(3, generator=self.generator)
        total = self.pair.new * self.gain + self.same_gain + noise + (0.0 if x is None else x) + self.weight
        total = total * 2 if self.double else total
        self.pair = Pair(total.detach(), self.pair.new)  # what was new is old now
        first, sums = self.kept
        self.kept = (sums["sum"], {"sum": first})  # change places
        first.add_(self.pair.old)
        self.count.add_(1)
        with torch.no_grad():
            self.weight.add_(0.1)
        total = total + self.same_count
        return {"total": total.detach(), "old": self.pair.old, "views": [view * 2 for view in self.views]}


def seen(machine: Machine) -> dict[str, Any]:
    tensors = {"new": machine.pair.new, "old": machine.pair.old, "first": machine.kept[0], **machine.kept[1]}
    return {**tensors, "weight": machine.weight.detach(), "random": machine.generator.get_state()}


def _nothing(machine: Machine) -> None:
    """Nothing happens."""


def _gain(machine: Machine) -> None:
    machine.gain = torch.full((3,), 5.0)  # and nobody who had the old one notices


def _views(machine: Machine) -> None:
    machine.views = [machine.gain[1:], machine.pair.new[:2]]


def _swap(machine: Machine) -> None:
    machine.pair = Pair(machine.pair.old, machine.pair.new)


def _alias(machine: Machine) -> None:
    machine.pair = replace(machine.pair, old=machine.pair.new)


def _switch(machine: Machine) -> None:
    machine.double = not machine.double


def _weight(machine: Machine) -> None:
    machine.weight.data = torch.full((3,), -1.0)


def _count(machine: Machine) -> None:
    machine.count = machine.count + 10  # the other one counts no more


def _template(machine: Machine) -> None:
    machine.pair = TEMPLATE  # which must not change


TEMPLATE = Pair(torch.full((3,), 0.5), torch.full((3,), 0.25))


def _seed(machine: Machine) -> None:
    machine.generator.manual_seed(7)


def _other_generator(machine: Machine) -> None:
    machine.generator = torch.Generator().manual_seed(9)


def _wider(machine: Machine) -> None:
    machine.views = [machine.gain.clone(), machine.gain[1:]]


@pytest.mark.parametrize(
    "event",
    [_nothing, _gain, _views, _swap, _alias, _switch, _weight, _count, _template, _seed, _other_generator, _wider],
)
@pytest.mark.parametrize("with_input", [False, True])
def test_whatever_happens_to_the_objects_between_two_calls(event: Any, with_input: bool) -> None:
    eager, machine = Machine(), Machine()
    captured = Captured(machine.step, {"machine": machine}, CPU, EmulatedGraph)
    for call in range(9):
        if call in (4, 7):
            event(eager)
            event(machine)
        x = torch.full((3,), float(call)) if with_input else None
        expected, got = eager.step(x), captured(x)
        assert_identical(expected, got)
        assert_identical(seen(eager), seen(machine))
    assert not captured.eager and captured.replays >= 5


def test_python_is_not_run_again_and_tensors_are_baked_in() -> None:
    """The emulated graph does not do what a real one would not do."""
    runs, x, box = [], torch.ones(2), [torch.ones(2)]

    def function() -> Tensor:
        runs.append(1)
        x.add_(1)
        return x * box[0]

    graph = EmulatedGraph()
    result = graph.capture(function, [])
    assert x.tolist() == [1, 1] and bool(result.isnan().all())  # nothing has run
    box[0] = torch.zeros(2)
    graph.replay()
    assert x.tolist() == [2, 2] and result.tolist() == [2, 2]
    graph.replay()
    assert result.tolist() == [3, 3] and len(runs) == 1
    for wrong in (lambda: x.sum().item(), lambda: x[x > 1], lambda: torch.tensor([1.0]), lambda: bool(x.any())):
        with pytest.raises(RuntimeError, match="not permitted"):
            EmulatedGraph().capture(wrong, [])
    with pytest.raises(RuntimeError, match="not registered"):
        EmulatedGraph().capture(lambda: torch.rand(2, generator=torch.Generator()), [])


def test_a_layout_that_never_comes_twice_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    machine, eager = Machine(), Machine()
    captured = Captured(machine.step, {"machine": machine}, CPU, EmulatedGraph)
    for call in range(capture.PATIENCE + 3):
        machine.hidden = call
        assert_identical(eager.step(None), captured(None))
    assert captured.eager and not captured.replays
    assert ".machine.hidden changes all the time" in caplog.text


def test_the_difference_of_tensors() -> None:
    a = torch.tensor([3.0, 4.0])
    assert walk.difference(a, a.clone()) == 0.0
    assert walk.difference(a + torch.tensor([0.0, 0.05]), a) == pytest.approx(0.01, rel=1e-4)
    nan = torch.tensor([1.0, torch.nan])
    assert walk.difference(nan, nan.clone()) == 0.0
    assert walk.difference(nan, torch.ones(2)) == float("inf")
    assert walk.difference(torch.tensor([True, False]), torch.tensor([True, True])) > 0.5


# ---- when it is on ---------------------------------------------------------------------------------------------------


def test_on_a_cpu_nothing_is_captured(tmp_path: Path) -> None:
    assert make_trainer(tmp_path).chunk.captured is None


def test_what_is_captured_on_a_gpu() -> None:
    def asked(workers: Workers = ALONE, device: str = "cuda", capturable: bool = True, **runtime: Any) -> bool:
        rollout: Any = SimpleNamespace(env=SimpleNamespace(device=torch.device(device)), capturable=capturable)
        return can_capture(make_config(runtime=runtime), rollout, workers)

    assert asked()
    assert not asked(device="cpu")
    assert not asked(capture="off")
    assert not asked(workers=Workers(0, 2))
    assert not asked(capturable=False)
    assert not RunnerRollout.capturable
    assert CartPole.capturable and not GymnasiumEnv(2, id="CartPole-v1").capturable


def test_optimisers_count_their_steps_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu(nn.Parameter):
        is_cuda = property(lambda self: True)  # type: ignore[assignment]

    class Of:
        def parameters(self) -> Iterator[nn.Parameter]:
            return iter([OnGpu(torch.zeros(1))])

    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        "lifelong.agent.registry.build", lambda kind, spec, parameters, **ours: seen.update({spec["kind"]: ours})
    )
    for kind in ("adam", "adamw", "sgd", "rmsprop"):
        build_optimizer(make_config(optimizer=kind), Of())  # type: ignore[arg-type]
    assert [bool(ours.get("capturable")) for ours in seen.values()] == [True, True, False, True]
