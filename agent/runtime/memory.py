"""What a run will hold in memory, estimated beforehand: a mistyped size is a sentence, not a killed machine."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from lifelong.agent import registry
from lifelong.agent.config import Config
from lifelong.agent.detectors.base import LOOKBACK
from lifelong.agent.errors import ConfigError
from lifelong.agent.gradients.parts import carry_numbers
from lifelong.agent.modules.values import Predictions
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.detection import chunks_kept
from lifelong.agent.runtime.walk import tensors_of
from lifelong.agent.strategies.base import Strategy
from lifelong.envs.tasks import TaskEnv

#: where Linux says how many bytes a container may have
_CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
#: numbers a step of a copy has besides observation, state and outputs of the policy
_SMALL = 13


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a device, or of this machine: what its container may have."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = []
    with contextlib.suppress(ValueError, OSError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in _CONTAINER:
        with contextlib.suppress(ValueError, OSError):  # no such file, or "max"
            limits.append(int(Path(file).read_text()))
    return min(limits, default=2**63)


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory was asked for that is not there, or more than can be counted."""
    said = ("allocate", "storage size", "multiplication overflow", "out of memory")
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in said)


def sequence_bytes(policy: Policy, steps: int, slots: int, memories: int = 1, *, compact: bool = False) -> int:
    """Bytes of one stored sequence of T steps, with the observation after them and those of truncated episodes.

    Args:
        policy: of the run.
        steps: T.
        slots: truncated episodes in a sequence, at most.
        memories: of the cell that are stored with it.
        compact: as `replay.storage.compact` stores it.
    """
    space = policy.spaces[0]
    shape, dtype = space.shape or (), space.dtype
    real, small = (2, _SMALL - 2) if compact else (4, _SMALL)
    width = real if dtype is None or dtype.kind == "f" else dtype.itemsize
    obs, outputs = width * math.prod(shape), policy.distribution.size
    outputs += policy.distribution.feature_size if policy.with_action else 0
    numbers = steps * outputs + memories * policy.cell.state_size
    return (steps + 1 + slots) * obs + real * numbers + 4 * steps * small


def copy_bytes(env: TaskEnv, policy: Policy) -> int:
    """Bytes of one copy of the environments that is acted in: its state as it was, drawn anew and as it will be, its
    observation, the limits of its spaces, and what the policy makes of it."""
    state = sum(tensor.nbytes for tensor in tensors_of(env.state_dict())) // env.num_envs
    obs = math.prod(env.single_observation_space.shape or ())
    return 3 * state + 4 * (4 * obs + 2 * policy.cell.state_size + policy.distribution.size + _SMALL)


def needs_of(
    config: Config, env: TaskEnv, policy: Policy, strategies: list[Strategy], copies: int
) -> list[tuple[str, int]]:
    """What needs how many bytes: (the key to lower, bytes).

    Args:
        config: of the run.
        env: its environments, with any number of copies; if they were reset, their state counts.
        policy: its policy; that has no memory of its own if it lies on the device `meta`.
        strategies: of the run, in the order of the config.
        copies: of this worker.
    """
    steps = config.rollout.steps
    slots, on_cpu = env.truncations(steps), env.device.type == "cpu"
    if on_cpu:  # there are as many as the data need
        slots = min(slots, 1)
    sequence, copy = sequence_bytes(policy, steps, slots), copy_bytes(env, policy)
    size = sum(p.numel() for p in policy.parameters())
    carry = 4 * carry_numbers(config.gradient, policy.cell)
    chunk = 2 * (sequence + 4 * steps * policy.cell.state_size)  # what was seen, and acting's steps
    needs = [
        ("policy.encoder and policy.cell", 4 * 4 * size),  # parameters, gradients, two of them in the optimiser
        ("rollout.copies x rollout.steps", copies * (chunk + copy)),
        (f"rollout.copies with gradient {config.gradient['kind']}", copies * carry),
        ("evaluation.episodes", config.evaluation.episodes * copy),
    ]
    kind = config.objective["kind"]
    if registry.load("objective", kind).streaming:  # traces, their gradients, and what they are made of
        rows = policy.distribution.size if isinstance(policy.distribution, Predictions) else 1
        needs.append((f"rollout.copies with objective {kind}", 3 * 4 * copies * rows * size))
    for spec, strategy in zip(config.strategy, strategies, strict=True):
        fresh = 2 * strategy.fresh_sequences(copies) * (chunk + carry)  # as many again while they are drawn
        stored = stored_bytes(strategy, policy, steps, slots)
        here = sum(size for place, size in stored.items() if place == "device" or (place, on_cpu) == ("host", True))
        needs.append((f"options of strategy {spec['kind']}", here + fresh))
    if config.stream.boundaries == "detected":
        kept = chunks_kept(strategies, copies, config.detector.get("lookback", LOOKBACK))
        needs.append(("what strategies look back on with stream.boundaries detected", kept * copies * sequence))
    return needs


def held_bytes(state: Any) -> int:
    """How many bytes the tensors in a state take, however they are nested."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(state))


def stored_bytes(strategy: Strategy, policy: Policy, steps: int, slots: int) -> dict[str, int]:
    """How many bytes the sequences that a strategy keeps take, by place."""
    memories = strategy.replay_memories()
    exact, small = (sequence_bytes(policy, steps, slots, memories, compact=compact) for compact in (False, True))
    return strategy.replay_bytes(exact, small)


def check_places(
    config: Config, policy: Policy, strategies: list[Strategy], device: torch.device, folder: Path
) -> None:
    """Refuse sequences that the host, if it is not the device, or the disk of the run folder cannot hold.

    Raises:
        ConfigError: names the strategy.
    """
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
    has = {"disk": shutil.disk_usage(there).free}
    if device.type != "cpu":
        has["host"] = memory_of(torch.device("cpu"))
    total = dict.fromkeys(has, 0)
    for spec, strategy in zip(config.strategy, strategies, strict=True):
        for place, size in stored_bytes(strategy, policy, config.rollout.steps, 1).items():
            if place in has:
                total[place] += size
                if total[place] > has[place]:
                    needs = f"{total[place] / 1e9:,.1f} GB would be needed on the {place}"
                    raise ConfigError(
                        f"options of strategy {spec['kind']}: {needs}, which has {has[place] / 1e9:,.1f} GB; lower "
                        "capacity or mib"
                    )


def check_memory(config: Config, needs: list[tuple[str, int]], device: torch.device) -> None:
    """Refuse a run that this machine cannot hold.

    Raises:
        ConfigError: names what needs most.
    """
    has, total = memory_of(device), sum(size for _, size in needs)
    if total > has:
        key, size = max(needs, key=lambda need: need[1])
        raise ConfigError(
            f"{key}: {size / 1e9:,.1f} GB would be needed, {total / 1e9:,.1f} GB in all, and "
            f"{'the GPU' if device.type == 'cuda' else 'this machine'} has {has / 1e9:,.1f} GB; lower it"
        )
