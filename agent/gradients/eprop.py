"""e-prop (Bellec, Scherr, Subramoney, Hajek, Salaj, Legenstein, Maass 2020, Nature Communications 11:3625)."""

from __future__ import annotations

from torch import Tensor

from lifelong.agent.cells.local import Local
from lifelong.agent.gradients.local_feedback import LocalFeedback


class EProp(LocalFeedback):
    """dL/dW = sum_t L_t e_t (eq. 1): a learning signal L_t, what step t's state does to the outputs of step t, meets an
    eligibility trace e_t, filtered by the unit's own dynamics (eqs. 13 and 14); all that goes from unit to unit over
    time is left out, inside the chunk as before it. Feedback is symmetric: L_t comes through the weights of the heads.
    """

    approximation = "e-prop: eligibility traces along a unit's own dynamics"
    inside = "learning signals do not go back from unit to unit"

    def blocks(self, local: Local) -> Tensor:
        return local.own_TBPPN
