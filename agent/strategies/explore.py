"""Explore: an entropy bonus after every boundary, so that a policy that has settled finds the next task.

A policy that has learned a task is nearly deterministic, and what it does in the next one is left to chance: where that
never meets a reward, nothing is learned, whatever protects the old task. The bonus is that of Williams & Peng (1991,
"Function optimization using connectionist reinforcement learning algorithms", eq. 9) with a weight that falls to zero.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.policy import Outputs
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.agent.strategies.planned import HookCalls, Update
from lifelong.envs.options import Steps, Weight
from lifelong.kernels import hooks
from lifelong.replay.chunk import Chunk


class Explore(Strategy):
    """Subtracts w_t * H(pi) of the live copies from the loss; w_t falls from `weight` to 0 over `steps`, after every
    boundary but the first, where the policy is new.

    Stands beside a strategy that protects: its own tasks are not learned here. Nothing of it depends on time, so cells
    and carry see no more than another loss.

    Args:
        weight: w at a boundary, beside the entropy weight of the objective.
        steps: environment steps until it is 0.
        every: begin anew every so many steps instead of at boundaries; 0: at boundaries.
    """

    data_parallel: ClassVar[str] = "equal"

    def __init__(self, *, weight: Weight = 0.05, steps: Steps = 100_000, every: Steps = 0) -> None:
        if weight < 0 or steps < 1 or every < 0:
            raise ValueError("weight and every must not be negative, steps must be at least 1")
        self.weight, self.steps, self.every = weight, steps, every
        self.needs_boundaries = every == 0
        self.begun: int | None = None  # step of the last boundary
        #: w in the last chunk
        self.now = torch.zeros((), dtype=torch.float64)

    def on_task_start(self, ctx: Context) -> None:
        if not self.every and ctx.segment > 0:
            self.begun = ctx.step

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        now = self.weight_at(ctx.step)
        self.now.fill_(now)
        if not now:
            return None
        _, entropy_TB = ctx.policy.distribution.log_prob_and_entropy(outputs.policy, chunk.action)
        entropy_TB = entropy_TB * (torch.arange(chunk.copies, device=entropy_TB.device) < live)
        return -now * ctx.objective.mean(chunk)(entropy_TB)

    def weight_at(self, step: int) -> float:
        """w at an environment step."""
        begun = self.begun if not self.every else step // self.every * self.every or None
        return 0.0 if begun is None else self.weight * max(0.0, 1.0 - (step - begun) / self.steps)

    def calls(self, update: Update) -> HookCalls:
        if self.begun is None and not self.every:
            return {}
        numbers = self.weight, self.begun or 0, self.steps, self.every
        sample = update.gradients["critic.weight"]
        return {"before_loss": [hooks.ramp_call(sample, numbers, update.step, self.now, update.entropy_weight)]}

    def made_for(self) -> tuple[int | float, ...]:
        return (-1 if self.begun is None else self.begun,)

    def report(self) -> dict[str, float]:
        return {"weight": float(self.now)}

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun, "now": float(self.now)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.begun = saved["begun"]
        self.now.fill_(saved["now"])
