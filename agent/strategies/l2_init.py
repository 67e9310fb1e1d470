"""L2 Init: regenerative regularisation towards the parameters that the run began with.

Kumar, Marklund & Van Roy 2023, *Maintaining Plasticity in Continual Learning via Regenerative Regularization* (arXiv
2308.11958, eq. 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.consolidation import QuadraticPenalty
from lifelong.envs.options import Weight


class L2Init(QuadraticPenalty):
    """Adds strength/2 * sum_i (theta_i - theta_i at the start of the run)^2 to the loss.

    It keeps nothing of a task: what no task needs any more goes back to where it was as good as new, so that later ones
    can be learned. It has no boundary and no state that learning changes. Recurrent parameters go back to their
    initial time constants, too.

    Args:
        strength: twice the paper's lambda.
        critic: whether the critic goes back, too, as in the paper.
    """

    data_parallel: ClassVar[str] = "equal"

    def __init__(self, *, strength: Weight = 1e-3, critic: bool = True) -> None:
        super().__init__(strength, critic)

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        self.hold_all_alike()

    def on_reset(self, ctx: Context, entries: Mapping[str, Tensor]) -> None:
        """As new is what a re-initialised entry is now."""
        importance = dict(self.importance)
        super().on_reset(ctx, entries)
        self.importance = importance  # is that of all alike
