"""L2: the parameters at the last boundary, all of them alike: the plainest way to hold on to something."""

from __future__ import annotations

from typing import ClassVar

from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.consolidation import Consolidating, QuadraticPenalty
from lifelong.envs.options import Steps, Weight


class L2(Consolidating, QuadraticPenalty):
    """Adds strength/2 * sum_i (theta_i - anchor_i)^2 to the loss; the anchor is the parameters at the last boundary.

    The control of every importance: `ewc`, `si` and `mas` with importance 1 (Kirkpatrick et al. 2017, figure 2A).

    Args:
        strength: of the penalty.
        critic: whether the critic is held, too.
        every: move the anchor every so many steps instead of at boundaries; 0: at boundaries.
    """

    data_parallel: ClassVar[str] = "equal"

    def __init__(self, *, strength: Weight = 0.1, critic: bool = False, every: Steps = 0) -> None:
        Consolidating.__init__(self, every)
        QuadraticPenalty.__init__(self, strength, critic)

    def consolidate(self, ctx: Context, source: Source) -> None:
        self.hold_all_alike()
