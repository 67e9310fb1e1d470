"""Orthogonal weights modification (Zeng, Chen, Cui, Yu 2019, Nature Machine Intelligence, eqs. 1-4)."""

from __future__ import annotations

from lifelong.agent.strategies.projection import SoftProjection


class OWM(SoftProjection):
    """Every realised update is multiplied by P = alpha (alpha I + C)^-1, with C the sum over old tasks of the mean
    second moment of a layer's inputs: the recursive least squares of the paper in closed form, which data-parallel
    workers can add up.

    The paper updates P at every batch, while the task is learned; an agent whose policy is still changing would lose
    its room before it has found the task, so it is done at boundaries here, from whole episodes of the policy that was
    learned. The second moments are of order 1 / width and above. The options are those of `SoftProjection`.
    """
