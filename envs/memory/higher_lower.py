"""HigherLower: is the next card higher or lower than this one?

Source: POPGym (see `envs.memory.popgym`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.envs.memory.popgym import POPGymTask, below, deal

RANKS = 13
HIGHER = 0


@dataclass(frozen=True)
class HigherLowerState:
    """`card` int64 [B]: the rank in view; `left` int64 [B, 13]: cards in the deck."""

    card: Tensor
    left: Tensor


class HigherLower(POPGymTask):
    """Guess at every step, until 1, 2 or 3 decks are dealt; whoever counts the cards guesses better.

    Observation: the rank in view, one-hot float32 [B, 13]. Actions: 0 higher, 1 lower. A guess gives +1 / cards if
    right, -1 / cards if wrong and 0 if the next card has the same rank.
    """

    CARDS: ClassVar[tuple[str, ...]] = ("rank",)
    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": {"decks": 1, "score": (0.0, 0.53)},
        "medium": {"decks": 2, "score": (0.0, 0.51)},
        "hard": {"decks": 3, "score": (0.0, 0.51)},
    }

    def arrange(self, decks: int) -> None:
        """So many decks of 52 cards."""
        self.cards, self.categories, self.actions = 52 * decks, (RANKS,), 2

    def draw_state(self) -> HigherLowerState:
        """The first card is dealt."""
        first = below(self.unit(), RANKS)
        left = self.zeros(RANKS) + self.cards // RANKS - torch.nn.functional.one_hot(first, RANKS)
        return HigherLowerState(first, left)

    def advance(
        self, state: HigherLowerState, action: Tensor
    ) -> tuple[HigherLowerState, Tensor, Tensor, dict[str, Tensor]]:
        """Deal the next card and judge the guess."""
        card, left = deal(state.left, self.unit())
        right = (card > state.card) == (action == HIGHER)
        reward = torch.where(card == state.card, 0.0, (2.0 * right.float() - 1.0) / self.cards)
        return HigherLowerState(card, left), reward, state.left.sum(1) <= 1, {}

    def shown(self, state: HigherLowerState) -> Tensor:
        """The rank in view."""
        return state.card.unsqueeze(1)
