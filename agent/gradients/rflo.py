"""RFLO: random feedback local online learning (Murray 2019, eLife 8:e43299), the eligibility trace of a unit's leak."""

from __future__ import annotations

from torch import Tensor

from lifelong.agent.cells.local import Local
from lifelong.agent.gradients.unit_traces import UnitTraces


class RFLO(UnitTraces):
    """The carry is Murray's eligibility trace: it decays as a unit's state does by itself, and no recurrent weight
    takes part, not even that of a unit to itself: p <- (1 - alpha) p + alpha phi'(u) z in the paper's leaky network.
    Here the leak is what the cell's update keeps of a unit's state at fixed drives: the update gate of a GRU, the
    forget gate of an LSTM, nothing in a plain `rnn`. Errors come back through the weights, not through random ones, and
    inside the chunk the gradient is exact.
    """

    approximation = "RFLO: what reaches the present through the leak of a parameter's own unit alone"

    def blocks(self, local: Local) -> Tensor:
        return local.own_TBPPN
