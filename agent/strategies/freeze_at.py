"""A control: stop learning, and see what learning on would have been worth."""

from __future__ import annotations

from typing import Any, ClassVar

from lifelong.agent.strategies.base import Context, Strategy
from lifelong.envs.options import Count, Steps


class FreezeAt(Strategy):
    """From a step on, or after so many tasks, the policy acts and does not learn.

    Chunks are lived through: memory and carry go on, parameters and the optimiser's state stay bit for bit, and other
    strategies neither take part nor store. What an agent that never stops learning must beat.

    Args:
        step: environment steps after which nothing is learned; 0: after `tasks`.
        tasks: segments of the stream that are learned from; boundaries must be given.
    """

    data_parallel: ClassVar[str] = "equal"
    clock_option: ClassVar[str] = "step"

    def __init__(self, *, step: Steps = 0, tasks: Count = 1) -> None:
        self.step, self.tasks = step, tasks
        self.needs_boundaries = step == 0
        self.frozen = False

    def learns(self, ctx: Context) -> bool:
        self.frozen = ctx.step >= self.step if self.step else ctx.segment >= self.tasks
        return not self.frozen

    def report(self) -> dict[str, float]:
        return {"frozen": float(self.frozen)}

    def state_dict(self) -> dict[str, Any]:
        return {"frozen": self.frozen}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.frozen = saved["frozen"]
