"""CountRecall: how often was a card of this kind seen?

Source: POPGym (see `envs.memory.popgym`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lifelong.envs.memory.popgym import POPGymTask, below, deal


@dataclass(frozen=True)
class CountRecallState:
    """`value` and `query` int64 [B]: the kind in view and the kind that is asked for; `values` and `queries` int64 [B,
    K]: cards of every kind in the two decks."""

    value: Tensor
    query: Tensor
    values: Tensor
    queries: Tensor


class CountRecall(POPGymTask):
    """A card of one deck is shown and one of another asks: how many of this kind were shown so far?

    Kinds are the 2 colours of 1 deck, the 4 suits of 2, the 13 ranks of 4. Observation: the kind in view and the kind
    that is asked for, one-hot float32 [B, 2 kinds]. Actions: a number, up to all cards of a kind. The card in view
    counts. Every answer gives +1 / (cards - 1) if right and -1 / (cards - 1) if wrong; the episode ends with the decks.
    """

    CARDS: ClassVar[tuple[str, ...]] = ("in view", "asked for")
    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": {"decks": 1, "kinds": 2, "score": (-0.926, 1.0)},
        "medium": {"decks": 2, "kinds": 4, "score": (-0.926, 1.0)},
        "hard": {"decks": 4, "kinds": 13, "score": (-0.882, 1.0)},
    }

    def arrange(self, decks: int, kinds: int) -> None:
        """So many decks of 52 cards, told apart by so many kinds."""
        self.cards, self.kinds, self.each = 52 * decks, kinds, 52 * decks // kinds
        self.categories, self.actions = (kinds, kinds), self.each + 1

    def draw_state(self) -> CountRecallState:
        """The first card of either deck."""
        unit = self.unit(2)
        value, query = below(unit[:, 0], self.kinds), below(unit[:, 1], self.kinds)
        full = self.zeros(self.kinds) + self.each
        return CountRecallState(value, query, full - one_hot(value, self.kinds), full - one_hot(query, self.kinds))

    def advance(
        self, state: CountRecallState, action: Tensor
    ) -> tuple[CountRecallState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the answer and deal two cards."""
        seen = self.each - state.values.gather(1, state.query.unsqueeze(1)).squeeze(1)
        reward = (2.0 * (action == seen).float() - 1.0) / (self.cards - 1)
        unit = self.unit(2)
        value, values = deal(state.values, unit[:, 0])
        query, queries = deal(state.queries, unit[:, 1])
        return CountRecallState(value, query, values, queries), reward, values.sum(1) == 0, {}

    def shown(self, state: CountRecallState) -> Tensor:
        """Kind in view, kind asked for."""
        return torch.stack((state.value, state.query), 1)
