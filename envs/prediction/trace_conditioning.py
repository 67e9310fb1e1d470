"""TraceConditioning: a signal, a pause of uncertain length, and what it announces.

Source: Rafiee, Abbas, Ghiassian, Kumaraswamy, Sutton, Ludvig & White (Adaptive Behavior 2022, doi
10.1177/10597123221085039), "From eye-blinks to state construction: Diagnostic benchmarks for online representation
learning"; intervals as in Farr et al. 2026 (arXiv 2605.24709).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param

#: trials that are drawn ahead: more than 400 steps whatever the intervals are, where less than 2 % of any return lies
#: for an isi of up to 100
AHEAD = 6
#: steps that the conditioned and the unconditioned stimulus are there
CS, US = 4, 2
#: the least and the most steps from the end of the unconditioned stimulus to the next signal
PAUSE = 80, 120
#: the first trial of an episode begins within so many steps
FIRST = 8


@dataclass(frozen=True)
class TraceConditioningState:
    """`cs`, `us` int64 [B, 6]: steps until each stimulus of the next trials begins; negative once it has."""

    cs: Tensor
    us: Tensor


class TraceConditioning(BatchedEnv):
    """How much of the unconditioned stimulus (US) is still to come?

    A trial: the conditioned stimulus (CS) is there for 4 steps; some steps after it began, drawn uniformly from `isi` -
    isi // 3 to `isi` + isi // 3, the US begins and is there for 2; after it nothing happens for 80 to 120 steps. The
    first trial of an episode begins within 8 steps.
    Observation: float32 [B, 2], whether CS and US are there. The action [B, 1] is the prediction, and acts on nothing.
    The truth is sum_i gamma^i US[t + 1 + i] with gamma = 1 - 1 / isi, taken from the trials that come: `target` float32
    [B, 1] in every step's info, with `target_mask` bool [B]. To learn it from what is observed alone use objective td
    with that gamma and cumulant 1. The reward of a step is minus the squared error over `max_episode_steps`, so that
    the return of an episode is minus the mean squared error. Nothing ends: an episode of `max_episode_steps` steps is
    truncated.

    No agent is perfect, as nobody knows when the US begins; the score is 1 for the mean squared error of 0.03 at the
    default isi, and 0 for 0.2, about that of a constant.

    Args:
        num_envs: number of copies B.
        **kwargs: see `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "isi": Param(20, 6, 200, "mean steps from the beginning of the CS to that of the US", integer=True),
    }
    SCORE: ClassVar[tuple[float, float]] = (-0.2, -0.03)
    MAX_EPISODE_STEPS: ClassVar[int] = 1000
    PREDICTION: ClassVar[bool] = True

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """CS and US; a prediction."""
        return Box(0.0, 1.0, (2,), np.float32), Box(-np.inf, np.inf, (1,), np.float32)

    def draw_state(self) -> TraceConditioningState:
        """A first trial that begins within the first steps, and those after it."""
        begin, cs, us = self.randint(FIRST, self.num_envs), [], []
        for _ in range(AHEAD):
            cs.append(begin)
            us.append(begin + self._interval())
            begin = us[-1] + US + self._pause()
        return TraceConditioningState(torch.stack(cs, 1), torch.stack(us, 1))

    def advance(
        self, state: TraceConditioningState, action: Tensor
    ) -> tuple[TraceConditioningState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the prediction and go on."""
        target = self._to_come(state.us)
        reward = -(action.squeeze(1) - target).square() / self.params["max_episode_steps"].clamp(min=1)
        cs, us = state.cs - 1, state.us - 1
        begin = us[:, -1] + US + self._pause()
        over = (us[:, 0] <= -US).unsqueeze(1)
        cs = torch.where(over, torch.cat((cs[:, 1:], begin.unsqueeze(1)), 1), cs)
        us = torch.where(over, torch.cat((us[:, 1:], (begin + self._interval()).unsqueeze(1)), 1), us)
        never = torch.zeros_like(over.squeeze(1))
        info = {"target": target.unsqueeze(1), "target_mask": ~never}
        return TraceConditioningState(cs, us), reward, never, info

    def observe(self, state: TraceConditioningState) -> Tensor:
        """Whether CS and US are there."""
        cs, us = state.cs[:, 0], state.us[:, 0]
        return torch.stack(((cs <= 0) & (cs > -CS), (us <= 0) & (us > -US)), 1).float()

    def _to_come(self, us: Tensor) -> Tensor:
        """The discounted sum [B] of the US from the next observation on."""
        gamma = 1.0 - 1.0 / self.params["isi"].float()
        rate = gamma.log().unsqueeze(1)
        of_step = [torch.exp((us + i - 1).float() * rate) * (us + i >= 1) for i in range(US)]
        return torch.stack(of_step).sum(0).sum(1)

    def _pause(self) -> Tensor:
        return PAUSE[0] + self.randint(PAUSE[1] - PAUSE[0] + 1, self.num_envs)

    def _interval(self) -> Tensor:
        """Steps from CS to US [B]."""
        isi = self.params["isi"]
        spread = isi // 3
        drawn = (self.uniform(0.0, 1.0, self.num_envs) * (2 * spread + 1)).long().clamp(max=2 * spread)
        return isi - spread + drawn
