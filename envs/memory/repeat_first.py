"""RepeatFirst: say the suit of the first card at every step.

Source: POPGym (see `envs.memory.popgym`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.envs.memory.popgym import POPGymTask, below, deal

SUITS = 4


@dataclass(frozen=True)
class RepeatFirstState:
    """`first` and `card` int64 [B]: the suit to say and the one in view; `left` int64 [B, 4]: cards in the deck."""

    first: Tensor
    card: Tensor
    left: Tensor


class RepeatFirst(POPGymTask):
    """Cards are dealt from 1, 8 or 16 decks, one a step, until none is left; the answer is always the first one's suit.

    Observation: the suit in view, one-hot float32 [B, 4]. Actions: the suits. Every step gives +1 / (cards - 1) if
    right and -1 / (cards - 1) if wrong.
    """

    CARDS: ClassVar[tuple[str, ...]] = ("in view",)
    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": {"decks": 1, "score": (-0.5, 1.0)},
        "medium": {"decks": 8, "score": (-0.5, 1.0)},
        "hard": {"decks": 16, "score": (-0.5, 1.0)},
    }

    def arrange(self, decks: int) -> None:
        """So many decks of 52 cards."""
        self.cards, self.categories, self.actions = 52 * decks, (SUITS,), SUITS

    def draw_state(self) -> RepeatFirstState:
        """The first card is dealt."""
        first = below(self.unit(), SUITS)
        full = self.zeros(SUITS) + self.cards // SUITS
        return RepeatFirstState(first, first, full - torch.nn.functional.one_hot(first, SUITS))

    def advance(
        self, state: RepeatFirstState, action: Tensor
    ) -> tuple[RepeatFirstState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the answer and deal the next card."""
        reward = (2.0 * (action == state.first).float() - 1.0) / (self.cards - 1)
        card, left = deal(state.left, self.unit())
        return RepeatFirstState(state.first, card, left), reward, state.left.sum(1) == 1, {}

    def shown(self, state: RepeatFirstState) -> Tensor:
        """The suit in view."""
        return state.card.unsqueeze(1)
