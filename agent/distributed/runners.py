"""Environment runners: Ray actors that step the environments on CPUs while the learner learns.

M runners own B / M of the copies each, with a copy of the policy and the memory of their episodes. They send whole
[T, B / M] blocks, one array a field, each with the version of the weights that acted. `RunnerRollout` takes the place
of `Rollout` in the training process: its chunk is what the runners have ready, at most one block of each, so that every
copy's history stays in order. Before the learner learns from the chunk, the runners that gave it are asked for the next
block, with the newest weights: data lags by one update or more, which the objective must correct for (V-trace;
Espeholt et al. 2018, IMPALA).

Runners are expected to be late and to die. The learner goes on with half of them; what comes late is used later. A
runner that died comes back with fresh episodes: nothing is lost but the block that it was working on.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong.agent.config import Config
from lifelong.agent.distributed.cluster import connect
from lifelong.agent.errors import ClusterError
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.build import build_rollout, subseed
from lifelong.agent.runtime.rollout import Experience, Rollout
from lifelong.envs.tasks import TaskEnv
from lifelong.kernels.allocator import keep_freed_memory
from lifelong.replay.chunk import SLOTS, Chunk, copies_dim

#: once half of the runners have delivered, the others are waited for until they took so many times as long as those
PATIENCE = 2.0
#: blocks that were acted by weights older than so many updates are not learned from
MAX_LAG = 16
#: seconds after which a runner that died is asked again
RETRY = 0.5
#: seconds that runners have to start
START_TIMEOUT = 120.0
#: seconds after which a run without any living runner ends
DEAD_TIMEOUT = 60.0
#: seconds that a checkpoint waits for the state of the runners
SAVE_TIMEOUT = 30.0

#: Makes the rollout of a runner: (copies, seed) -> Rollout on the CPU. It travels to the runner's process.
MakeRollout = Callable[[int, int], Rollout]


@dataclass
class Request:
    """What a runner is to do next."""

    version: int  # of the weights that come with the request
    steps: int
    task_B: Tensor
    fresh: bool  # copies whose task changes start a fresh episode
    params: dict[str, float]  # task parameters of a stream that drifts
    units: list[Tensor]  # units of the cell that were re-initialised since the last request
    restart: bool  # start fresh episodes in every copy


@dataclass
class Block:
    """T steps of a runner's copies, and how they came about."""

    version: int  # of the weights that acted
    reborn: bool  # the first block of a runner that took the place of a dead one
    seconds: float  # that the runner took
    units: list[Tensor]  # re-initialised before the first step
    arrays: dict[str, np.ndarray]  # the fields of Experience and of its chunk

    @property
    def frames(self) -> int:
        """T times copies."""
        return int(self.arrays["reward"].size)

    def as_tensors(self) -> dict[str, Any]:
        """The block as a checkpoint holds it."""
        return {**vars(self), "arrays": {name: torch.from_numpy(x.copy()) for name, x in self.arrays.items()}}

    @classmethod
    def from_tensors(cls, saved: dict[str, Any]) -> Block:
        """The block that `as_tensors` gave."""
        return cls(**{**saved, "arrays": {name: x.numpy() for name, x in saved["arrays"].items()}})


#: what runners send of an experience besides its chunk
_TRAVELS = ("x_TBD", "state_TBS", "episode_return_TB", "done_TB")


def pack(experience: Experience) -> dict[str, np.ndarray]:
    """The fields of an experience on the CPU as contiguous arrays, which travel without being copied."""
    tensors: dict[str, Tensor] = {**vars(experience.chunk), **{name: getattr(experience, name) for name in _TRAVELS}}
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}


def unpack(parts: list[dict[str, np.ndarray]], device: torch.device, copies: Tensor | None = None) -> Experience:
    """Packed experiences side by side as one, on `device`; they belong to the `copies` of all."""
    tensors: dict[str, Any] = {}
    slots = max(len(part["final_step"]) for part in parts)
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if name in SLOTS:
            empty = len(parts[0]["reward"]) if name == "final_step" else 0
            widths = [[(0, slots - len(array)), *[(0, 0)] * (array.ndim - 1)] for array in arrays]
            arrays = [np.pad(*pair, constant_values=empty) for pair in zip(arrays, widths, strict=True)]
        joined = np.concatenate(arrays, copies_dim(name))  # a copy: what was sent is read-only
        tensors[name] = torch.from_numpy(joined).to(device)
    chunk = Chunk(**{f.name: tensors.pop(f.name) for f in fields(Chunk)})
    return Experience(chunk, **tensors, copies=copies, lags=True)


def weights_of(policy: Policy) -> np.ndarray:
    """All parameters as one vector."""
    return torch.nn.utils.parameters_to_vector(policy.parameters()).detach().cpu().numpy()


@torch.no_grad()
def load_weights(policy: Policy, weights: np.ndarray) -> None:
    """Write what `weights_of` gave into the parameters, in place, so that whoever caches them notices."""
    parameters = list(policy.parameters())
    flat = torch.from_numpy(weights.copy())  # what was sent is read-only
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.view_as(parameter))


class Runner:
    """The actor: some copies of the environment and a policy that acts in them.

    Args:
        make_rollout: makes the rollout.
        copies: number of copies of this runner.
        seed: randomness of the environments and of the actions; None for a runner that takes the place of a dead one.
            It draws a seed, as does one that Ray has restarted, so as not to play the episodes of the beginning again.
    """

    def __init__(self, make_rollout: MakeRollout, copies: int, seed: int | None) -> None:
        import ray

        torch.set_num_threads(1)
        keep_freed_memory()
        self.reborn = seed is None or ray.get_runtime_context().was_current_actor_reconstructed
        self.rollout = make_rollout(copies, secrets.randbits(31) if seed is None or self.reborn else seed)
        self.version = -1

    def collect(self, weights: np.ndarray, request: Request) -> Block:
        """Act for a block with the weights of the request."""
        begun, rollout, reborn = time.perf_counter(), self.rollout, self.reborn and self.version == -1
        if request.version != self.version:
            load_weights(rollout.policy, weights)
            self.version = request.version
        if request.restart:
            rollout.start()
        rollout.switch(request.task_B, fresh=request.fresh)
        rollout.env.set_params(**request.params)
        for units in request.units:
            rollout.reset_units(units)
        arrays = pack(rollout.collect(request.steps))
        return Block(self.version, reborn, time.perf_counter() - begun, request.units, arrays)

    def state_dict(self) -> dict[str, Any]:
        """The state of the rollout after the last block."""
        return self.rollout.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.rollout.load_state_dict(saved)


@dataclass
class Copies:
    """What the trainer tells the environments; the runners get it with their next request."""

    task_B: Tensor  # int64 on the host
    device: torch.device  # where the chunks go
    exact_state: bool
    params: dict[str, float] = field(default_factory=dict)

    @property
    def num_envs(self) -> int:
        """B."""
        return len(self.task_B)

    def set_params(self, **params: float) -> None:
        """Write task parameters of all copies while their episodes go on."""
        self.params = params


@dataclass
class Slot:
    """The learner's view of one runner."""

    actor: Any
    block: Any = None  # reference to the block that it works on, or has ready
    asked: float = 0.0  # when it was asked for it
    failed: float | None = None  # since when it does not answer
    retry: float = 0.0  # when it is asked again
    units: list[Tensor] = field(default_factory=list)  # to be reset in its state before its next block


class RunnerRollout:
    """`Acting` for a learner whose environments live in runners. Use it inside `running()`.

    Args:
        policy: the learner's.
        engine: the learner's; its carry follows every copy.
        make_rollout: makes the rollout of a runner.
        seeds: one seed a runner.
        env: tasks of all copies and the learner's device.
        cpus: that Ray reserves for a runner.
        address: of the Ray cluster, see `cluster.connect`.
    """

    owns_environments = False
    capturable = False

    def __init__(
        self,
        policy: Policy,
        engine: GradientEngine,
        make_rollout: MakeRollout,
        seeds: list[int],
        env: Copies,
        *,
        cpus: float = 1.0,
        address: str = "",
    ) -> None:
        self.policy, self.engine, self.make_rollout, self.seeds, self.env = policy, engine, make_rollout, seeds, env
        self.cpus, self.address = cpus, address
        self.size = env.num_envs // len(seeds)  # copies of a runner
        self.fresh = True
        self.version = 0  # of the weights: updates so far
        self.slots: list[Slot] = []
        self.saved: dict[str, Any] | None = None
        self.restarts = self.dropped = 0
        self.error = ""  # of the last runner that died
        self._start_clock()

    # ---- the life of the runners ---------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """Connect to Ray, start the runners and give them the state of the checkpoint, if one was loaded.

        Raises:
            ConfigError: Ray is not installed.
            ClusterError: the cluster cannot be reached or is too small, or a runner cannot start.
        """
        with connect(self.address) as self.ray:
            self._check_resources()
            try:
                self._start()
                yield
            finally:
                for slot in self.slots:
                    self.ray.kill(slot.actor)
                self.slots = []

    def _check_resources(self) -> None:
        runners, has = len(self.seeds), self.ray.cluster_resources().get("CPU", 0.0)
        if runners * self.cpus > has:
            raise ClusterError(
                f"runtime.env_runners is {runners} and runtime.cpus_per_runner {self.cpus:g}, but the Ray cluster has "
                f"{has:g} CPUs; lower one of them"
            )

    def _start(self) -> None:
        ray = self.ray
        self.slots = [Slot(self._spawn(seed)) for seed in self.seeds]
        self._start_clock()
        states = self.saved["runners"] if self.saved else [None] * len(self.slots)
        started = [
            slot.actor.__ray_ready__.remote() if state is None else slot.actor.load_state_dict.remote(state["rollout"])
            for slot, state in zip(self.slots, states, strict=True)
        ]
        ready, late = ray.wait(started, num_returns=len(started), timeout=START_TIMEOUT)
        if late:
            raise ClusterError(
                f"{len(late)} of {len(started)} environment runners did not start in {START_TIMEOUT:g} s; "
                f"{ray.available_resources().get('CPU', 0.0):g} CPUs of the Ray cluster are free"
            )
        try:
            ray.get(ready)
        except ray.exceptions.RayError as error:
            raise ClusterError(f"an environment runner cannot start: {_cause(error)}") from error
        for slot, state in zip(self.slots, states, strict=True):
            if state is not None:
                slot.units = state["units"]
                if state["block"] is not None:
                    slot.block, slot.asked = ray.put(Block.from_tensors(state["block"])), time.monotonic()
        self.saved = None

    def _spawn(self, seed: int | None) -> Any:
        actor = self.ray.remote(num_cpus=self.cpus, max_restarts=-1, max_task_retries=0)(Runner)
        return actor.remote(self.make_rollout, self.size, seed)

    # ---- what the trainer does with a rollout --------------------------------------------------------------------

    def switch(self, task_B: Tensor, *, fresh: bool = True) -> None:
        """Put the copies on `task_B` from their next block on."""
        self.env.task_B, self.fresh = task_B, fresh

    def reset_units(self, units: Tensor) -> None:
        """Zero what the memory of every copy holds of the `units`, from their next block on."""
        for slot in self.slots:
            slot.units.append(units.cpu())

    def restart(self, mask_B: Tensor) -> None:
        """Nothing: `build` refuses what would ask for it."""
        raise NotImplementedError("environment runners cannot restart single copies")

    def collect(self, steps: int) -> Experience:
        """A chunk of the blocks that are ready, T = `steps`; `copies` says whose, None means all in order.

        Raises:
            ClusterError: a runner met an error in its environment, or all have been dead for too long.
        """
        weights = self.ray.put(weights_of(self.policy))
        begun = time.perf_counter()
        blocks: dict[int, Block] = {}
        while (patience := self._patience(blocks)) is None or patience > 0:
            self._check_alive()
            self._ask(weights, steps, without=blocks)
            blocks |= self._receive(patience, without=blocks)
        self.waited += time.perf_counter() - begun
        order = sorted(blocks)
        copies = torch.cat([self._copies_of(runner) for runner in order]) if len(order) < len(self.slots) else None
        self._ask(weights, steps)  # before learning, so that they act meanwhile
        self.version += 1
        return unpack([blocks[runner].arrays for runner in order], self.env.device, copies)

    def _patience(self, blocks: dict[int, Block]) -> float | None:
        """Seconds for which the runners that have not delivered are still waited for; None: as long as it takes."""
        alive = [runner for runner, slot in enumerate(self.slots) if slot.failed is None]
        if len(blocks) < max(1, min(-(-len(self.slots) // 2), len(alive))):
            return None
        usual = PATIENCE * median(block.seconds for block in blocks.values())
        ends = [self.slots[runner].asked + usual for runner in alive if runner not in blocks]
        return max(ends, default=0.0) - time.monotonic()

    def _ask(self, weights: Any, steps: int, without: dict[int, Block] | None = None) -> None:
        """Ask every runner that does nothing for its next block, but not those that have just delivered one."""
        now = time.monotonic()
        for runner, slot in enumerate(self.slots):
            if slot.block is not None or slot.retry > now or (without and runner in without):
                continue
            task_B = self.env.task_B[runner :: len(self.slots)]  # every runner has a share of every task
            request = Request(
                self.version, steps, task_B, self.fresh, self.env.params, slot.units, slot.failed is not None
            )
            slot.block, slot.asked, slot.units = slot.actor.collect.remote(weights, request), now, []

    def _receive(self, patience: float | None, without: dict[int, Block]) -> dict[int, Block]:
        """The blocks that are ready once one is, if that is in time; old ones are dropped, the dead are noted."""
        working = {s.block: r for r, s in enumerate(self.slots) if s.block is not None and r not in without}
        timeout = RETRY if patience is None else min(RETRY, patience)
        if not working:
            time.sleep(timeout)
            return {}
        self.ray.wait(list(working), num_returns=1, timeout=timeout)
        ready, _ = self.ray.wait(list(working), num_returns=len(working), timeout=0)
        blocks = {}
        for runner in [working[reference] for reference in ready]:
            block = self._fetch(runner)
            if block is not None:
                blocks[runner] = block
        return blocks

    def _fetch(self, runner: int) -> Block | None:
        """The block that `runner` has ready; None if it died or the block is too old."""
        slot, exceptions = self.slots[runner], self.ray.exceptions
        reference, slot.block = slot.block, None
        try:
            block: Block = self.ray.get(reference)
        except exceptions.RayTaskError as error:
            raise ClusterError(f"environment runner {runner} failed: {_cause(error)}") from error
        except exceptions.RayError as error:
            self._lost(slot, error)
            return None
        slot.failed = None
        self.restarts += block.reborn
        copies = self._copies_of(runner)
        for units in block.units:
            self.engine.reset_units(units.to(self.env.device), copies)
        lag = self.version - block.version
        self.lags.append(lag)
        self.frames += block.frames
        self.bytes = sum(array.nbytes for array in block.arrays.values()) * len(self.slots)
        if lag <= MAX_LAG:
            return block
        self.dropped += 1
        old = unpack([block.arrays], self.env.device)  # the carry must not miss what the memory has lived through
        self.engine.advance(self.engine.trace(old.x_TBD, old.state_TBS, old.chunk.is_init, copies))
        return None

    def _lost(self, slot: Slot, error: Exception) -> None:
        """A runner or its block is gone: it will start fresh episodes, which resets memory and carry."""
        now = time.monotonic()
        slot.failed = now if slot.failed is None else slot.failed
        slot.retry = now + RETRY
        if isinstance(error, self.ray.exceptions.ActorDiedError):  # for good, so Ray does not restart it
            slot.actor = self._spawn(None)
        self.error = _cause(error)

    def _check_alive(self) -> None:
        now = time.monotonic()
        if all(slot.failed is not None and now - slot.failed > DEAD_TIMEOUT for slot in self.slots):
            raise ClusterError(f"no environment runner has answered for {DEAD_TIMEOUT:g} s: {self.error}")

    def _copies_of(self, runner: int) -> Tensor:
        return torch.arange(runner * self.size, (runner + 1) * self.size, device=self.env.device)

    # ---- the log -------------------------------------------------------------------------------------------------

    def _start_clock(self) -> None:
        self.since, self.waited = time.perf_counter(), 0.0
        self.frames, self.bytes = 0, 0
        self.lags: list[int] = []

    def timing(self) -> dict[str, float]:
        """Scalars since the last call that depend on the clock; restarts and dropped blocks since the start."""
        seconds = time.perf_counter() - self.since
        scalars = {
            "runners/lag": sum(self.lags) / max(len(self.lags), 1),
            "runners/restarts": float(self.restarts),
            "runners/dropped": float(self.dropped),
            "runners/waiting_share": self.waited / seconds,
            "runners/frames_per_second": self.frames / seconds,
            "runners/object_store_bytes": float(self.bytes),
        }
        self._start_clock()
        return scalars

    # ---- the checkpoint ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state of every runner after its last block, and that block if it has not been learned from.

        A runner that does not answer in time is saved as None: it will start fresh episodes, with an empty memory.
        """
        states = [slot.actor.state_dict.remote() for slot in self.slots]
        blocks = [slot.block for slot in self.slots if slot.block is not None]
        self.ray.wait(states + blocks, num_returns=len(states) + len(blocks), timeout=SAVE_TIMEOUT)
        runners = [self._state_of(slot, ref) for slot, ref in zip(self.slots, states, strict=True)]
        return {"runners": runners, "version": self.version}

    def _state_of(self, slot: Slot, state: Any) -> dict[str, Any] | None:
        references = [state] if slot.block is None else [state, slot.block]
        _, late = self.ray.wait(references, num_returns=len(references), timeout=0)
        if late or slot.failed is not None:
            return None
        try:
            rollout, *block = self.ray.get(references)
        except self.ray.exceptions.RayError:
            return None
        return {"rollout": rollout, "units": slot.units, "block": block[0].as_tensors() if block else None}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take what `state_dict` returned; the runners get it when they start."""
        found = len(saved.get("runners", []))
        if found != len(self.seeds):
            raise ValueError(f"it was made with runtime.env_runners={found}, and now it is {len(self.seeds)}")
        self.saved, self.version = saved, saved["version"]


def runner_rollout(config: Config, policy: Policy, engine: GradientEngine, env: TaskEnv) -> RunnerRollout:
    """The runners of a config, for `build`; they are started by `running`."""
    copies = torch.zeros(config.rollout.copies, dtype=torch.int64)
    return RunnerRollout(
        policy,
        engine,
        partial(build_rollout, config),
        [subseed(config.seed, "runner", runner) for runner in range(config.runtime.env_runners)],
        Copies(copies, env.device, env.exact_state),
        cpus=config.runtime.cpus_per_runner,
        address=config.runtime.address,
    )


def _cause(error: Exception) -> str:
    """The last line of what went wrong in another process, which says what it was."""
    text = str(getattr(error, "cause", None) or error).strip()
    return text.splitlines()[-1] if text else type(error).__name__
