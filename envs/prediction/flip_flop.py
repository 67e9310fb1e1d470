"""FlipFlop: say of several channels which way each was pushed last.

Source: Sussillo & Barak (Neural Computation 2013), "Opening the black box: low-dimensional dynamics in high-dimensional
recurrent neural networks", section 3 (three bits). A trained network has a fixed point for every memory: see
`lifelong analyse`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.options import Range


@dataclass(frozen=True)
class FlipFlopState:
    """`memory` int64 [B, bits]: 0 or 1; `pulse` float32 [B, bits]: -1, 0 or 1; `step` int64 [B]: steps made so far."""

    memory: Tensor
    pulse: Tensor
    step: Tensor


class FlipFlop(BatchedEnv):
    """Flip-flop of several bits.

    Observation: float32 [B, bits]. A pulse of 1 or -1 comes on every channel in the first step, and afterwards with
    probability `rate`; between pulses there is 0. The action is the sign of every channel's last pulse, the present one
    included, as MultiDiscrete([2] * bits). The reward of a step is the share of bits that are right, divided by
    `length`, so the return is the accuracy. Guessing has 0.5, and who sees the present pulse only 0.5 + `rate` / 2 for
    long episodes. Every step's info has the truth, `target` int64 [B, bits], and `target_mask` bool [B].

    Args:
        num_envs: number of copies B.
        bits: channels.
        length: steps of an episode, which then terminates.
        **kwargs: see `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {"rate": Param(0.2, 0.0, 1.0, "probability of a pulse in a step of a channel")}
    SCORE: ClassVar[tuple[float, float]] = (0.5, 1.0)
    PREDICTION: ClassVar[bool] = True

    def __init__(
        self,
        num_envs: int = 1,
        *,
        bits: Annotated[int, Range(1, 64)] = 3,
        length: Annotated[int, Range(1, 100_000)] = 64,
        **kwargs: Any,
    ) -> None:
        self.bits, self.length = bits, length
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Pulses; signs."""
        return Box(-1.0, 1.0, (self.bits,), np.float32), MultiDiscrete([2] * self.bits)

    def draw_state(self) -> FlipFlopState:
        """A pulse on every channel."""
        memory = self.randint(2, self.num_envs, self.bits)
        return FlipFlopState(memory, 2.0 * memory.float() - 1.0, torch.zeros_like(self.age_B))

    def advance(self, state: FlipFlopState, action: Tensor) -> tuple[FlipFlopState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the signs, and send pulses."""
        right = (action == state.memory).float().mean(1)
        sign = self.randint(2, self.num_envs, self.bits)
        drawn = self.uniform(0, 1, self.num_envs, self.bits)
        comes = drawn < self.params["rate"].unsqueeze(1)
        following = FlipFlopState(
            torch.where(comes, sign, state.memory), (2.0 * sign.float() - 1.0) * comes, state.step + 1
        )
        info = {"target": state.memory, "target_mask": torch.ones_like(self.age_B, dtype=torch.bool)}
        return following, right / self.length, following.step >= self.length, info

    def observe(self, state: FlipFlopState) -> Tensor:
        """The pulses of this step."""
        return state.pulse
