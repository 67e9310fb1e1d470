"""The memory of a policy that is called with it and returns it: `action, memory = policy(observation, memory)`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong.agent.errors import EnvError
from lifelong.agent.runtime.converter import plain_array

#: how long a memory lasts, by `policy.reset_memory_on`
RULES = {
    "episode": "the memory is emptied when an episode ends",
    "task": "the memory goes on over the ends of episodes, and is emptied when the task changes",
    "never": "the memory goes on for ever",
    "step": "there is no memory",
}


@dataclass(frozen=True)
class Memory:
    """What a policy remembers between two calls; None in its place is an empty one."""

    state_BS: Tensor  # of the cell
    previous_action: Tensor  # [B, F], zeros where an episode begins
    fresh_B: Tensor  # bool: reset before the next observation
    lead: tuple[int, ...]  # () for one environment, (B,) for a batch


class Remembering:
    """What a policy that is called with its memory does with it; `deterministic` or not, it keeps none itself.

    Attributes:
        resets: `policy.reset_memory_on` of the config that it was trained with.
        with_reward: it reads the last reward.
    """

    resets: str
    with_reward: bool

    def reset(self, memory: Memory | None, ended: Any = True) -> Memory | None:
        """The memory after the end of episodes, by the rule that the policy was trained with: it is emptied if
        `policy.reset_memory_on` was episode, and goes on if that was task or never. None empties it in any case.

        Args:
            ended: bool, or bool [B] for a batch: where an episode has ended.
        """
        if memory is None or self.resets in ("task", "never"):
            return memory
        array = np.array(plain_array(ended, "ended"), dtype=bool)
        if array.shape not in ((), memory.lead):
            raise EnvError(f"ended has shape {array.shape}, and the memory is of {_said(memory.lead)}")
        ended_B = torch.as_tensor(array, device=memory.fresh_B.device)
        return replace(memory, fresh_B=memory.fresh_B | ended_B)

    def _fits(self, memory: Memory, lead: tuple[int, ...]) -> Memory:
        """The memory, if it is of as many environments as the observation."""
        if memory.lead != lead:
            raise EnvError(
                f"the memory is of {_said(memory.lead)}, and the observation of {_said(lead)}; give memory=None"
            )
        return memory

    def _reward(self, reward: Any, fresh_B: Tensor, lead: tuple[int, ...]) -> Tensor:
        """The last reward as it was given, [B], float32; zero where nothing has gone before."""
        nothing = torch.zeros(len(fresh_B), device=fresh_B.device)
        if not self.with_reward or bool(fresh_B.all()):
            return nothing
        if reward is None:
            raise EnvError(
                "this policy reads the last reward (policy.previous_reward); give it: policy(obs, memory, reward)"
            )
        array = plain_array(reward, "the reward")
        if array.shape != lead:
            raise EnvError(f"the reward has shape {array.shape}; it must be {lead}, one number an environment")
        given_B = torch.from_numpy(np.array(array, dtype=np.float64)).reshape(-1).to(nothing)
        return given_B.masked_fill(fresh_B, 0.0)


def _said(lead: tuple[int, ...]) -> str:
    return f"a batch of {lead[0]}" if lead else "one environment"
