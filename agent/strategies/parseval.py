"""Parseval regularisation: the rows of every weight matrix stay orthogonal.

Chung, Cherif, Meger & Precup 2024, *Parseval Regularization for Continual Reinforcement Learning* (NeurIPS, eq. 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.initial import initial_scales
from lifelong.agent.strategies.matrices import MatrixPenalty
from lifelong.envs.options import Weight


class Parseval(MatrixPenalty):
    """Adds strength * sum_l ||W_l W_l^T - s_l I||^2 to the loss, over the encoder's layers and the gates of the cell.

    With all singular values alike no direction is lost, whatever was learned before. s_l is the mean square of the
    singular values that the layer is initialised with: 2 for an orthogonal layer of gain sqrt 2, the paper's; the paper
    has no gates. Where a matrix has more rows than columns W^T W is taken, which is smaller and has the same gradient.

    Args:
        strength: lambda.
        heads: actor and critic, too; the paper leaves the last layer out.
    """

    def __init__(self, *, strength: Weight = 1e-3, heads: bool = False) -> None:
        super().__init__(strength, heads)

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        scales = initial_scales(ctx.policy, seed)
        self.squares: dict[str, float] = {}
        for name, (parameter, count) in self.matrices.items():
            rows, columns = parameter.shape[0] // count, parameter[0].numel()
            self.squares[name] = scales[name] ** 2 * max(rows, columns)  # ||W||^2 / min(rows, columns)

    def penalty_of(self, name: str, weight_Gmn: Tensor) -> Tensor:
        small = weight_Gmn if weight_Gmn.shape[1] <= weight_Gmn.shape[2] else weight_Gmn.transpose(1, 2)
        gram = small @ small.transpose(1, 2)
        unit = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        return (gram - self.squares[name] * unit).square().sum((1, 2))
