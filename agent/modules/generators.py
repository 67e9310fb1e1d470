"""Generators: networks that make the parameters of another network, chunk by chunk, from the embedding of a task.

Shapes: J tasks, E embedding of a task, K chunks, C embedding of a chunk, P numbers to be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

#: how the chunks come about: each by itself, or one after the other
Form = Literal["chunked", "recurrent"]


class Generator(nn.Module):
    """h(e): P numbers in K chunks, chunk k from the embedding of the task and its own embedding c_k, all with the same
    weights.

    `chunked` (von Oswald, Henning, Sacramento, Grewe 2020, "Continual learning with hypernetworks", section 2.2): a
    multilayer perceptron on [e, c_k]. `recurrent` (after Chandra, Varanasi, Lall, Hebbalaguppe 2023, "Continual
    Learning with Dependency Preserving Hypernetworks"): a GRU goes through [e, c_1], [e, c_2], ..., so that a layer
    depends on those before it; its last width is that of `hidden`.

    The last layer begins at zero, so h is zero at first.

    Args:
        size: P.
        form: `chunked` or `recurrent`.
        chunk: numbers made at once.
        hidden: widths of the layers in between.
        embedding: E.
        chunk_embedding: C.
    """

    def __init__(
        self, size: int, *, form: Form, chunk: int, hidden: Sequence[int], embedding: int, chunk_embedding: int
    ) -> None:
        super().__init__()
        self.size = size
        self.places = nn.Parameter(torch.randn(-(-size // chunk), chunk_embedding))  # c, [K, C]
        widths = [embedding + chunk_embedding, *hidden]
        self.recurrent: nn.GRU | None = None
        layers: list[nn.Module] = []
        if form == "recurrent":
            self.recurrent = nn.GRU(widths[0], widths[-1])
        else:
            for width_in, width_out in pairwise(widths):
                layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(widths[-1], chunk)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, embedding_JE: Tensor) -> Tensor:
        """[J, P] of the embeddings of J tasks."""
        chunks, tasks = len(self.places), len(embedding_JE)
        pairs = (embedding_JE.expand(chunks, -1, -1), self.places.unsqueeze(1).expand(-1, tasks, -1))
        x_KJD = torch.cat(pairs, -1)
        made_KJM = self.last(self.layers(x_KJD) if self.recurrent is None else self.recurrent(x_KJD)[0])
        made: Tensor = made_KJM.transpose(0, 1).flatten(1)[:, : self.size]
        return made
