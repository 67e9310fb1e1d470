"""Capture: a chunk, which is acting for T steps and learning from them, as one CUDA graph: no host between two steps.

A captured graph repeats the device's work of one call, at the same addresses; Python is not run again. So

- *Slots.* Every tensor that hangs on the objects a chunk works with (attributes, dicts, lists, tuples, dataclasses) is
  found by walking them; nobody has to declare anything. Each slot has a buffer, which is what the graph reads. Whoever
  puts another tensor into a slot between two chunks (a task switch, moved parameters, a loaded checkpoint) is seen
  before the next replay: its value is copied into the buffer and the buffer put back. New values are copied into the
  buffers at the end of the graph, inside it.
- *Everything else* that is found (numbers, flags, which environments are active, shapes) is the layout. It is part of
  the graph, so a chunk may not change it, and if anybody else does, the chunk is captured again.
- *Randomness* comes from generators that are found the same way and registered with the graph: a replay draws the
  numbers that eager execution would draw, and leaves the generators where it would leave them.
- *Caches* of values computed from weights go by the weights' version counters; those are moved after every replay. An
  object names them in its class attribute `TRANSIENT`, and they are no slots.

Nothing is taken on trust. A layout is captured when it comes for the second time, so kernels are compiled and the
optimiser has its state. That chunk and the next are run eagerly, and then by the graph from the same state; all slots,
generators and results are compared. If they differ by more than `TOLERANCE`, or anything raises an exception, the eager
result stands, one line of the log says why, and everything stays eager.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lifelong.agent.objectives.base import Metrics
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.runtime.planned.rows import Collector
from lifelong.agent.runtime.rollout import Acting, Experience, Rollout
from lifelong.agent.runtime.walk import PLAIN, difference, map_tensors, memory_of, overlaps_itself, tensors_of, walk
from lifelong.agent.strategies.base import Context, Strategy, overrides

#: Relative RMS difference between captured and eager that a tensor may have in the check. Both run the same kernels on
#: the same numbers, so zero is expected; a library may choose another algorithm on another stream.
TOLERANCE = 1e-4
CHECKS = 2  # calls that are compared: the second starts where the first ended, so what was frozen by mistake shows
PATIENCE = 20  # calls in a row whose layout is new, after which nothing will ever be captured

_log = logging.getLogger("lifelong.capture")


# ---- graphs ----------------------------------------------------------------------------------------------------------


class Graph(Protocol):
    """Records the device's work of a function once and repeats it; the tests have one for the CPU."""

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Run `function` eagerly, as is due before a capture."""

    def capture(self, function: Callable[[], Any], generators: Sequence[torch.Generator]) -> Any:
        """Record what `function` does, without doing it; returns its result, which the first replay fills in."""

    def replay(self) -> None:
        """Do what was recorded."""


class CudaGraph:
    """torch's CUDA graph, with the rules of its documentation: warm-up and capture on streams of their own."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def warm_up(self, function: Callable[[], Any]) -> Any:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                return function()
        finally:
            current.wait_stream(side)

    def capture(self, function: Callable[[], Any], generators: Sequence[torch.Generator]) -> Any:
        current = torch.cuda.current_stream()
        used = [*generators, torch.cuda.default_generators[torch.cuda.current_device()]]
        states = [generator.get_state() for generator in used]
        for generator in generators:
            self.graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(self.graph):
                return function()
        except BaseException:
            # A capture that fails may leave its stream current, and generators that refuse to draw outside of it.
            torch.cuda.set_stream(current)
            for generator, state in zip(used, states, strict=True):
                fresh = torch.Generator(device=generator.device)
                fresh.set_state(state)
                generator.graphsafe_set_state(fresh)
            raise

    def replay(self) -> None:
        self.graph.replay()


# ---- a call as a graph -----------------------------------------------------------------------------------------------


class State(NamedTuple):
    """What hangs on the objects: slots by path, generators, and what else there is."""

    slots: dict[str, Tensor]
    generators: list[torch.Generator]
    layout: list[tuple[Any, ...]]


class Snapshot(NamedTuple):
    """A state with the values that it had."""

    state: State
    values: dict[str, Tensor]
    random: list[Tensor]


class Captured:
    """A function of the state of some objects, which is called again and again, as a graph.

    Args:
        function: works on the device only; its arguments are tensors or None.
        objects: name -> object; everything that `function` reads or replaces hangs on them.
        device: where it works.
        graph: makes a new graph.

    What a call returns is overwritten by the next one.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        objects: dict[str, Any],
        device: torch.device,
        graph: Callable[[], Graph] = CudaGraph,
    ) -> None:
        self.function, self.device, self.new_graph = function, device, graph
        self.inputs: list[Tensor | None] = []  # slots too: every call puts new tensors there
        self.objects = {**objects, "inputs": self.inputs}
        self.eager = False  # for ever
        self.graph: Graph | None = None
        self.layout: list[tuple[Any, ...]] = []  # of the last call
        self.unstable = self.checks = self.replays = 0
        self.buffers: dict[str, Tensor] = {}
        self.addresses: dict[str, int] = {}
        self.fixed: set[str] = set()  # slots whose buffers others share, so that no other value may be put there
        self.parameters: list[nn.Parameter] = []
        self.outputs: Any = None

    def __call__(self, *inputs: Tensor | None) -> Any:
        """What `function(*inputs)` returns, having done what it does."""
        self.inputs[:] = inputs
        if self.eager:
            return self.function(*inputs)
        state = self._state()
        if self.graph is not None and (state.layout != self.layout or self._torn(state)):
            self.graph = self.outputs = None
        if self.graph is None and state.layout != self.layout:
            return self._first(state)
        self.unstable = 0
        if self.graph is None or self.checks:
            return self._checked(state)
        self._replay(state)
        return self.outputs

    # ---- the three ways of a call --------------------------------------------------------------------------------

    def _first(self, state: State) -> Any:
        """A call whose layout is new: eagerly."""
        result = self.function(*self.inputs)
        self.unstable += 1
        layout = self._state().layout
        if self.unstable > PATIENCE:
            self._give_up(f"{_changed(self.layout, state.layout)} changes all the time")
        self.layout = layout
        return result

    def _replay(self, state: State) -> None:
        """A call by the graph. It counts a write to every parameter, as eager writes do: caches go by that count."""
        assert self.graph is not None
        self._load(state.slots)
        self.graph.replay()
        torch.autograd.graph.increment_version(self.parameters)
        self.replays += 1

    def _checked(self, state: State) -> Any:
        """A call that is made eagerly and by the graph, captured if there is none; both must come to the same."""
        try:
            before = self._snapshot(state)
        except RuntimeError as error:  # not enough memory; nothing has happened yet
            self._give_up(_message(error))
            return self.function(*self.inputs)
        graph = self.new_graph() if self.graph is None else self.graph
        result = graph.warm_up(lambda: self.function(*self.inputs))
        after = None
        try:
            result = map_tensors(result, torch.clone)
            after = self._snapshot(self._state())
            if after.state.layout != before.state.layout:
                raise RuntimeError(f"a chunk changes {_changed(before.state.layout, after.state.layout)}")
            if self.graph is None:
                self._make_buffers(before, after)
            self._restore(before)
            if self.graph is None:
                self._load(before.state.slots)
                self._capture(graph, before.state)
            self._replay(self._state())
            worst, error_of_worst = self._worst(result, after)
            if error_of_worst > TOLERANCE:
                raise RuntimeError(f"{worst} differs by {error_of_worst:.1e} from its eager value")
        except Exception as error:
            if after is not None:
                self._restore(after)
            self._give_up(_message(error))
            return result
        self.checks -= 1
        _log.info("the captured chunk equals the eager one (largest relative difference %.1e)", error_of_worst)
        return self.outputs

    # ---- parts of them -------------------------------------------------------------------------------------------

    def _state(self) -> State:
        state = State({}, [], [])

        def visit(path: str, leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                if leaf.device.type == self.device.type:  # host tensors are not the graph's
                    state.slots[path] = leaf
                    state.layout.append((path, leaf.shape, leaf.dtype, leaf.requires_grad))
            elif isinstance(leaf, torch.Generator):
                if leaf.device.type == self.device.type and not any(leaf is known for known in state.generators):
                    state.generators.append(leaf)
                state.layout.append((path, id(leaf)))
            else:
                state.layout.append((path, leaf if isinstance(leaf, PLAIN) else id(leaf)))
            return leaf

        walk("", self.objects, visit, {})
        return state

    def _snapshot(self, state: State) -> Snapshot:
        copies: dict[int, Tensor] = {}
        for tensor in state.slots.values():
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor.detach().clone()
        values = {path: copies[id(tensor)] for path, tensor in state.slots.items()}
        return Snapshot(state, values, [generator.get_state() for generator in state.generators])

    @torch.no_grad()
    def _restore(self, snapshot: Snapshot) -> None:
        """Put the objects back into the state of a snapshot, with the tensors that they had. This writes to parameters,
        so what caches hold is computed anew, in a graph that is captured next too."""
        for path, tensor in snapshot.state.slots.items():
            if not overlaps_itself(tensor):  # such a tensor is never written to
                tensor.copy_(snapshot.values[path])
        self._put(snapshot.state.slots)
        for generator, state in zip(snapshot.state.generators, snapshot.random, strict=True):
            generator.set_state(state)

    def _put(self, slots: dict[str, Tensor]) -> None:
        """Put these tensors into the slots."""
        walk("", self.objects, lambda path, leaf: slots.get(path, leaf), {})

    def _make_buffers(self, before: Snapshot, after: Snapshot) -> None:
        """What each slot's buffer is: the tensor that is there, or one of its own if the chunk replaces that tensor or
        if it shares memory with another slot, as the two may part later."""
        owners: dict[int, int] = {}
        for tensor in before.state.slots.values():
            owners[memory_of(tensor)] = owners.get(memory_of(tensor), 0) + 1
        self.buffers, self.fixed = {}, set()
        for path, tensor in before.state.slots.items():
            replaced = after.state.slots[path] is not tensor
            shared = owners[memory_of(tensor)] > 1 and tensor.numel() > 0
            written = isinstance(tensor, nn.Parameter) or not torch.equal(before.values[path], after.values[path])
            if not replaced and shared and written:
                self.fixed.add(path)
            own = replaced or (shared and not written) or overlaps_itself(tensor)
            self.buffers[path] = torch.empty_like(tensor, requires_grad=False) if own else tensor
        self.addresses = {path: buffer.data_ptr() for path, buffer in self.buffers.items()}

    def _torn(self, state: State) -> bool:
        """Whether some slot has a tensor that cannot be brought into its buffer."""
        return any(
            (path in self.fixed and tensor is not self.buffers[path])
            or self.buffers[path].data_ptr() != self.addresses[path]
            for path, tensor in state.slots.items()
        )

    @torch.no_grad()
    def _load(self, slots: dict[str, Tensor]) -> None:
        """Copy what is in the slots into their buffers, and put the buffers there."""
        new = {path: tensor for path, tensor in slots.items() if tensor is not self.buffers[path]}
        torn = self.fixed.intersection(new)
        if torn:
            raise RuntimeError(f"a chunk replaces {min(torn)}, which other objects hold too")
        written = {memory_of(self.buffers[path]) for path in new}
        values = [tensor.clone() if memory_of(tensor) in written else tensor for tensor in new.values()]
        for path, value in zip(new, values, strict=True):
            self.buffers[path].copy_(value)
        if new:
            self._put(self.buffers)

    def _capture(self, graph: Graph, state: State) -> None:
        self.parameters = list({id(p): p for p in state.slots.values() if isinstance(p, nn.Parameter)}.values())

        def function() -> Any:
            outputs = self.function(*self.inputs)
            kept = {memory_of(buffer) for buffer in self.buffers.values()}
            with torch.no_grad():  # a result must not change when its slot does
                outputs = map_tensors(outputs, lambda x: x.clone() if memory_of(x) in kept else x)
            self._load(self._state().slots)
            return outputs

        for parameter in self.parameters:
            parameter.grad = None  # gradients are to lie in the graph's memory
        self.outputs = graph.capture(function, state.generators)
        for parameter in self.parameters:
            parameter.grad = None
        self.graph, self.checks = graph, CHECKS

    def _worst(self, result: Any, after: Snapshot) -> tuple[str, float]:
        """What differs most from the eager call, and by how much."""
        state = self._state()
        errors = {path: difference(tensor, after.values[path]) for path, tensor in state.slots.items()}
        for index, (got, expected) in enumerate(zip(tensors_of(self.outputs), tensors_of(result), strict=True)):
            errors[f"result {index}"] = difference(got, expected)
        for index, (generator, expected) in enumerate(zip(state.generators, after.random, strict=True)):
            errors[f"generator {index}"] = 0.0 if torch.equal(generator.get_state(), expected) else float("inf")
        worst = max(errors, key=lambda name: errors[name])
        return worst, errors[worst]

    def _give_up(self, reason: str) -> None:
        _log.warning("chunks are not captured but run eagerly: %s", reason)
        self.eager = True
        self.graph = self.outputs = None
        self.buffers, self.layout = {}, []


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _changed(old: list[tuple[Any, ...]], new: list[tuple[Any, ...]]) -> str:
    """Where two layouts differ first."""
    pairs = zip(old, new, strict=False)
    entry = next((b for a, b in pairs if a != b), (old + new)[-1])
    return str(entry[0])


# ---- the chunk -------------------------------------------------------------------------------------------------------


class ChunkRunner:
    """A chunk: `rollout.collect`, then `learner.update`.

    With a graph both are captured, or `collect` alone if a strategy takes part in the update (its hooks may look at
    anything, on the host too).

    Args:
        rollout: acts.
        learner: learns.
        strategies: all of them.
        steps: T.
        graph: makes a graph; None: everything runs eagerly.
        kept: whoever calls this keeps experiences.
    """

    def __init__(
        self,
        rollout: Acting,
        learner: Learner,
        strategies: list[Strategy],
        steps: int,
        graph: Callable[[], Graph] | None = None,
        *,
        kept: bool = False,
    ) -> None:
        self.rollout, self.learner, self.steps = rollout, learner, steps
        self.whole = graph is not None and not learner.hooked and not learner.finite.skip
        #: whoever sees the experience may keep some of it, and the next chunk overwrites it
        self.seen_later = kept or bool(overrides(strategies, "after_chunk"))
        self.captured: Captured | None = None
        if graph is not None:
            learner.finite.at_once = learner.finite.skip  # a graph does not wait
            objects = {"rollout": rollout, "learner": learner} if self.whole else {"rollout": rollout}
            function = self._whole if self.whole else self._collect
            self.captured = Captured(function, objects, rollout.env.device, graph)
        #: acts in one call where everything it needs is compiled
        self.collector = Collector(rollout) if graph is None and isinstance(rollout, Rollout) else None
        self._ctx: Context | None = None

    def __call__(self, ctx: Context) -> tuple[Experience, Metrics, list[Tensor]]:
        """Experience, metrics and re-initialised units of one chunk; all of it is valid until the next one."""
        if self.captured is None:
            experience = self._collect()
            self.learner.finite.before_learning(experience)
            return experience, *self.learner.update(ctx, experience)
        if not self.whole:
            experience = self._left(self.captured())
            self.learner.finite.before_learning(experience)
            return experience, *self.learner.update(ctx, experience)
        self._ctx = ctx
        experience, metrics = self.captured(self.learner.orders(self.rollout.env.num_envs))
        return self._left(experience), metrics, []

    def _collect(self) -> Experience:
        if self.collector is not None and (experience := self.collector.collect(self.steps)) is not None:
            return self._left(experience)
        return self.rollout.collect(self.steps)

    def _whole(self, orders: Tensor | None) -> tuple[Experience, Metrics]:
        assert self._ctx is not None
        experience = self._collect()
        metrics, _ = self.learner.update(self._ctx, experience, orders)
        return experience, metrics

    def _left(self, experience: Experience) -> Experience:
        return map_tensors(experience, torch.clone) if self.seen_later else experience  # type: ignore[no-any-return]
