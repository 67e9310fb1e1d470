"""Concentration: turn cards of which equal ones must be found.

Source: POPGym (see `envs.memory.popgym`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import torch
from gymnasium.spaces import Discrete, MultiDiscrete
from torch import Tensor

from lifelong.envs.memory.popgym import POPGymTask, deal
from lifelong.envs.render import COLOURS, GREY, board

NONE = -1


@dataclass(frozen=True)
class ConcentrationState:
    """`kinds` uint8 [B, N]: the kind of every card that was ever turned, K where none was; `up` bool [B, N]: cards that
    were found; `first` int64 [B]: the card that is in play, -1 if none; `second` and `other` int64 [B]: the cards
    turned last, in view, -1 if none; `found` and `step` int64 [B]; `left` int64 [B, K]: kinds that were never turned;
    `luck` float32 [B]: what decides the kind of the next card that is turned for the first time."""

    kinds: Tensor
    up: Tensor
    first: Tensor
    second: Tensor
    other: Tensor
    found: Tensor
    step: Tensor
    left: Tensor
    luck: Tensor


class Concentration(POPGymTask):
    """N cards lie face down; two are turned one after the other, and stay if they are of a kind.

    Colours of 1 deck, colours of 2, ranks of 1. Observation: for every card its kind if it lies face up or was just
    turned, else K, "face down"; int64 [B, N], categories that encoders read one-hot. Actions: the card to turn. A pair
    gives +2/N, two cards that differ, or the same card twice, -2/L; a card that lies face up -1/L for every card in
    play, which are turned back. L = ceil(2N - N / (2N - 1)) steps are an episode, if not all pairs are found before.
    """

    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": {"decks": 1, "kinds": 2, "score": (-0.19, 1.0)},
        "medium": {"decks": 2, "kinds": 2, "score": (-0.19, 1.0)},
        "hard": {"decks": 1, "kinds": 13, "score": (-0.84, 1.0)},
    }

    def arrange(self, decks: int, kinds: int) -> None:
        """So many decks of 52 cards, told apart by so many kinds."""
        self.cards, self.kinds = 52 * decks, kinds
        self.length = math.ceil(2 * self.cards - self.cards / (2 * self.cards - 1))
        self.categories, self.actions = (kinds + 1,) * self.cards, self.cards

    def draw_state(self) -> ConcentrationState:
        """All cards face down."""
        none = self.zeros() + NONE
        return ConcentrationState(
            kinds=self.zeros(self.cards, dtype=torch.uint8) + self.kinds,
            up=self.zeros(self.cards, dtype=torch.bool),
            first=none,
            second=none,
            other=none,
            found=self.zeros(),
            step=self.zeros(),
            left=self.zeros(self.kinds) + self.cards // self.kinds,
            luck=self.unit(),
        )

    def advance(
        self, state: ConcentrationState, action: Tensor
    ) -> tuple[ConcentrationState, Tensor, Tensor, dict[str, Tensor]]:
        """Turn a card."""
        place, alone = action.unsqueeze(1), state.first == NONE
        known = state.kinds.gather(1, place).squeeze(1).long()
        fresh = known == self.kinds
        drawn, left = deal(state.left, state.luck)
        kind = torch.where(fresh, drawn, known)
        kinds = state.kinds.scatter(1, place, kind.unsqueeze(1).to(torch.uint8))
        before = state.first.clamp(min=0).unsqueeze(1)
        partner = state.kinds.gather(1, before).squeeze(1).long()
        taken = state.up.gather(1, place).squeeze(1)
        pair = ~taken & ~alone & (kind == partner) & (action != state.first)
        wrong = torch.where(taken & alone, 1.0, 2.0) / -self.length
        reward = torch.where(pair, 2.0 / self.cards, torch.where(taken | ~alone, wrong, 0.0))
        index = torch.arange(self.cards, device=self.device)
        up = state.up | (pair.unsqueeze(1) & ((index == place) | (index == before)))
        found, step = state.found + 2 * pair.long(), state.step + 1
        following = ConcentrationState(
            kinds=kinds,
            up=up,
            first=torch.where(alone & ~taken, action, NONE),
            second=action,
            other=state.first,
            found=found,
            step=step,
            left=torch.where(fresh.unsqueeze(1), left, state.left),
            luck=self.unit(),
        )
        return following, reward, (found == self.cards) | (step >= self.length), {}

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """A kind or none of every card; the cards."""
        return MultiDiscrete(list(self.categories)), Discrete(self.actions)

    def observe(self, state: ConcentrationState) -> Tensor:
        """Kinds of the cards in view: so many numbers take longer to write one-hot than all else takes."""
        return self.shown(state)

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The cards, those in view with their kind."""
        kinds = self.shown(state or self.state)[index].view(-1, 13).cpu().numpy()
        colours = [COLOURS[i % len(COLOURS)] for i in range(self.kinds)]
        return board(kinds, [*colours, GREY], [*map(str, range(self.kinds)), ""])

    def shown(self, state: ConcentrationState) -> Tensor:
        """Kinds of the cards in view."""
        index = torch.arange(self.cards, device=self.device)
        view = state.up | (index == state.second.unsqueeze(1)) | (index == state.other.unsqueeze(1))
        return torch.where(view, state.kinds, self.kinds).long()
