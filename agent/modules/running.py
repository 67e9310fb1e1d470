"""Running means and deviations, and an encoder that reads by them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lifelong.agent.modules.encoders import Encoder, UnitLayer
from lifelong.agent.parallel import Workers


class Running(nn.Module):
    """Count, mean and sum of squared deviations of rows of numbers, as buffers: Welford 1962, merged as in Chan, Golub
    & LeVeque 1983, eq. 2.1. Equal on all workers.

    Args:
        shape: of a row.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("squares", torch.zeros(shape))

    @torch.no_grad()
    def add(self, rows: Tensor, weight: Tensor, workers: Workers) -> None:
        """Add the rows [..., *shape] that count (`weight` [...], 0 or 1) of all workers. A collective operation."""
        shape = self.mean.shape
        rows = rows.reshape(-1, *shape).to(self.mean.dtype)
        weight = weight.reshape(-1, *[1] * len(shape)).to(self.mean.dtype)
        count = weight.sum()
        mean = (rows * weight).sum(0) / count.clamp(min=1.0)
        squares = ((rows - mean).square() * weight).sum(0)
        parts = torch.stack([count.expand(shape), mean, squares])
        for counts, means, sums in workers.stack(parts) if workers.count > 1 else parts.unsqueeze(0):
            added = counts.flatten()[0]
            total = self.count + added
            apart, share = means - self.mean, added / total.clamp(min=1.0)
            self.squares.add_(sums + apart.square() * self.count * share)
            self.mean.add_(apart * share)
            self.count.copy_(total)

    def deviation(self) -> Tensor:
        """The standard deviation of what was added; 1 before there are two rows, and where they do not differ."""
        variance = self.squares / (self.count - 1.0).clamp(min=1.0)
        return torch.where((self.count > 1.0) & (variance > 1e-8), variance.sqrt(), torch.ones_like(variance))


class Normalized(Encoder):
    """An encoder that reads observations less their running mean over their running deviation, entry by entry. They
    move after a chunk was learned from, so that acting and learning read alike.

    Args:
        inner: the encoder, of real numbers.

    Raises:
        ValueError: it reads bytes or categories.
    """

    def __init__(self, inner: Encoder) -> None:
        super().__init__(inner.space)
        if inner.counts or inner.largest:
            raise ValueError(
                f"policy.normalize_observations is true, and the observation is {inner.space}, which has no unit; set "
                "it to false"
            )
        self.inner, self.output_size, self.predicted = inner, inner.output_size, inner.predicted
        self.seen = Running(tuple(inner.space.shape or ()))

    def forward(self, obs: Tensor) -> Tensor:
        features: Tensor = self.inner((obs - self.seen.mean) / self.seen.deviation())
        return features

    def offset(self, obs: Tensor) -> Tensor | None:
        return self.inner.offset(obs)

    def unit_layers(self) -> list[UnitLayer]:
        named = self.inner.unit_layers()
        return [one._replace(name=f"inner.{one.name}", norm=one.norm and f"inner.{one.norm}") for one in named]

    def compiled(self) -> bool:
        return False
