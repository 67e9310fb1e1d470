"""SnAp-1 (Menick, Elsen, Evci, Osindero, Simonyan, Graves, ICLR 2021, arXiv 2006.07232, section 3.1)."""

from __future__ import annotations

from torch import Tensor

from lifelong.agent.cells.local import Local
from lifelong.agent.gradients.unit_traces import UnitTraces


class SnAp1(UnitTraces):
    """Keeps of the sensitivity what a parameter reaches within one step: the state of its own unit. Its history reaches
    the present through that unit alone, over the diagonal (blocks) of the state Jacobian. Exact if no two units are
    coupled. Costs as much as the parameters, in time and memory.
    """

    approximation = "SnAp-1: what reaches the present through a parameter's own unit alone"

    def blocks(self, local: Local) -> Tensor:
        return local.blocks()
