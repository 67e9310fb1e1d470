"""What a run will hold in memory, estimated beforehand: a mistyped size is a sentence, not a killed machine."""

from __future__ import annotations

import math
import os

import gymnasium
import torch

from lifelong.agent.config import Config
from lifelong.agent.errors import ConfigError
from lifelong.agent.policy import Policy
from lifelong.agent.strategies.base import Strategy
from lifelong.envs.tasks import TaskEnv

#: numbers a step of a copy has besides observation, state and outputs of the policy
_SMALL = 16


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a device, or of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 2**63


def sequence_bytes(config: Config, space: gymnasium.Space, policy: Policy) -> int:
    """Bytes of one stored sequence of T steps."""
    shape, dtype = space.shape or (), space.dtype
    width = 4 if dtype is None or dtype.kind == "f" else dtype.itemsize
    step = width * math.prod(shape) + 4 * (policy.distribution.size + policy.distribution.feature_size + _SMALL)
    return config.rollout.steps * step + 4 * policy.cell.state_size


def needs_of(
    config: Config, env: TaskEnv, policy: Policy, strategies: list[Strategy], copies: int
) -> list[tuple[str, int]]:
    """What needs how many bytes: (the key to lower, bytes)."""
    sequence = sequence_bytes(config, env.single_observation_space, policy)
    carry = sum(p.numel() for p in policy.cell.parameters()) if config.gradient["kind"] == "rtrl" else 0
    chunk = 2 * (sequence + 4 * config.rollout.steps * policy.cell.state_size)  # what was seen, and acting's steps
    needs = [
        ("rollout.copies x rollout.steps", copies * chunk),
        ("rollout.copies with gradient rtrl", 4 * copies * carry),
    ]
    for spec, strategy in zip(config.strategy, strategies, strict=True):
        needs.append((f"options of strategy {spec['kind']}", strategy.replay_sequences() * sequence))
    return needs


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
