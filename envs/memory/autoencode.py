"""Autoencode: watch cards, then say their suits in reverse order.

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
PLAY, WATCH = 0, 1
PACK = 31  # suits in an int64, so that it stays positive


@dataclass(frozen=True)
class AutoencodeState:
    """`cards` int64 [B, W]: the suits in the order in which they were dealt, two bits each, 31 of them in a number;
    `step` int64 [B]: steps so far; `card` int64 [B]: the suit in view; `left` int64 [B, 4]: cards in the deck."""

    cards: Tensor
    step: Tensor
    card: Tensor
    left: Tensor


class Autoencode(POPGymTask):
    """N cards of 1, 2 or 3 decks are shown, then their suits must be said, the last one first.

    Observation: whether to watch on (the last card is shown with "play"), and the suit in view, the first one while
    playing; one-hot float32 [B, 2 + 4]. Actions: the suits. An answer gives +1/N if right and -1/N if wrong, actions
    while watching give nothing. An episode has 2 N - 1 steps.
    """

    CARDS: ClassVar[tuple[str, ...]] = ("watch or play", "suit")
    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": {"decks": 1, "score": (-0.5, 1.0)},
        "medium": {"decks": 2, "score": (-0.5, 1.0)},
        "hard": {"decks": 3, "score": (-0.5, 1.0)},
    }

    def arrange(self, decks: int) -> None:
        """So many decks of 52 cards."""
        self.count, self.categories, self.actions = 52 * decks, (2, SUITS), SUITS

    def draw_state(self) -> AutoencodeState:
        """The first card is in view."""
        first = below(self.unit(), SUITS)
        cards = torch.cat((first.unsqueeze(1), self.zeros((self.count - 1) // PACK)), 1)
        left = self.zeros(SUITS) + self.count // SUITS - torch.nn.functional.one_hot(first, SUITS)
        return AutoencodeState(cards, self.zeros(), first, left)

    def advance(
        self, state: AutoencodeState, action: Tensor
    ) -> tuple[AutoencodeState, Tensor, Tensor, dict[str, Tensor]]:
        """Deal a card, or judge an answer."""
        N, watching = self.count, state.step < self.count - 1
        dealt, left = deal(state.left, self.unit())
        step = state.step + 1
        word = torch.arange(state.cards.shape[1], device=self.device) == (step // PACK).unsqueeze(1)
        cards = state.cards | torch.where(word & watching.unsqueeze(1), (dealt << 2 * (step % PACK)).unsqueeze(1), 0)
        asked = (2 * N - 2 - state.step).clamp(0, N - 1)
        packed = state.cards.gather(1, (asked // PACK).unsqueeze(1)).squeeze(1)
        right = action == (packed >> 2 * (asked % PACK)) & 3
        reward = torch.where(watching, 0.0, (2.0 * right.float() - 1.0) / N)
        card = torch.where(watching, dealt, 0)
        left = torch.where(watching.unsqueeze(1), left, state.left)
        return AutoencodeState(cards, step, card, left), reward, step >= 2 * N - 1, {}

    def shown(self, state: AutoencodeState) -> Tensor:
        """Mode and suit."""
        mode = torch.where(state.step < self.count - 1, WATCH, PLAY)
        return torch.stack((mode, state.card), 1)
