"""MemoryChain: what was shown at the beginning is asked for at the end.

Source: `memory_len` and `memory_size` of Osband et al. (ICLR 2020, arXiv 1908.03568), "Behaviour Suite for
Reinforcement Learning".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.options import Range
from lifelong.envs.render import cards


@dataclass(frozen=True)
class MemoryChainState:
    """`context` int64 [B, bits]; `query` int64 [B]; `step` int64 [B]: steps made so far."""

    context: Tensor
    query: Tensor
    step: Tensor


class MemoryChain(BatchedEnv):
    """MemoryChain with a length for every copy.

    Observation: float32 [B, bits + 2]. The first entry is the time left, 1 - t / length; the second which bit is asked
    for, in the observation of time length - 1, and else 0; the others are the bits as -1 and 1, at time 0, and else 0.
    The first two observations are both of time 0, as in bsuite, so an episode has length + 1 steps. The last action,
    0 or 1, is rewarded with 1 if it is the bit that is asked for and with -1 if not, and the episode terminates; all
    others give 0.

    Args:
        num_envs: number of copies B.
        bits: to be remembered, one of which is asked for.
        **kwargs: see `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "length": Param(16, 1, 100_000, "time at which the bit is asked for, plus one", integer=True)
    }
    SCORE: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, num_envs: int = 1, *, bits: Annotated[int, Range(1, 256)] = 1, **kwargs: Any) -> None:
        self.bits = bits
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Time left, query and bits; the bit that is asked for."""
        low = np.array([0.0, 0.0, *[-1.0] * self.bits], np.float32)
        high = np.array([1.0, max(1.0, self.bits - 1.0), *[1.0] * self.bits], np.float32)
        return Box(low, high, dtype=np.float32), Discrete(2)

    def draw_state(self) -> MemoryChainState:
        """Bits, and which of them will be asked for."""
        context = self.randint(2, self.num_envs, self.bits)
        return MemoryChainState(context, self.randint(self.bits, self.num_envs), torch.zeros_like(self.age_B))

    def advance(
        self, state: MemoryChainState, action: Tensor
    ) -> tuple[MemoryChainState, Tensor, Tensor, dict[str, Tensor]]:
        """One step nearer to the question, or its answer."""
        last = state.step >= self.params["length"]
        asked = state.context.gather(1, state.query.unsqueeze(1)).squeeze(1)
        reward = (2.0 * (action == asked).float() - 1.0) * last
        return MemoryChainState(state.context, state.query, state.step + 1), reward, last, {}

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The bits to remember, and the one that is asked for."""
        state = state or self.state
        step, length = int(state.step[index]), int(self.params["length"][index])
        names = ["asked for" if i == int(state.query[index]) else "" for i in range(self.bits)]
        return cards(state.context[index].tolist()[:12], names[:12], f"step {step} of {length + 1}")

    def observe(self, state: MemoryChainState) -> Tensor:
        """Time left, the query at the end and the bits at the beginning."""
        length, time = self.params["length"], (state.step - 1).clamp(min=0)
        left = 1.0 - time.float() / length.float()
        query = state.query * (time == length - 1)
        bits = (2.0 * state.context.float() - 1.0) * (time == 0).unsqueeze(1)
        return torch.cat((left.unsqueeze(1), query.float().unsqueeze(1), bits), 1)
