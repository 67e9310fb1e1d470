"""Experience replay of whole sequences (Chaudhry et al. 2019, arXiv 1902.10486; reservoir: Riemer et al. 2019)."""

from __future__ import annotations

from lifelong.agent.strategies.replaying import Replaying


class ER(Replaying):
    """Learns from live and replayed sequences side by side, through the same objective and with the same weight a step:

        L = (sum over all steps, live and replayed, of the objective) / M

    The objective corrects for the age of what is replayed (V-trace); nothing holds the policy to what it was. Needs no
    boundaries.
    """
