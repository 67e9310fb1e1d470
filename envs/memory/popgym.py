"""What the tasks of POPGym share: a difficulty, observations that are categories, cards that are dealt.

Source: Morad, Kortvelesy, Bettini, Liwicki & Prorok (ICLR 2023), "POPGym: Benchmarking partially observable
reinforcement learning", and its package. A task's returns lie in [-1, 1], and an episode's length is a part of the
task: where the package truncates at its last step, these terminate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor
from torch.nn.functional import one_hot

from lifelong.envs.base import BatchedEnv
from lifelong.envs.errors import EnvError, unknown_name
from lifelong.envs.render import cards

Difficulty = Literal["easy", "medium", "hard"]


class POPGymTask(BatchedEnv):
    """A task in three sizes that shows categories.

    Observation: the categories that `shown` gives, each one-hot and one after the other, float32. Subclasses set
    `categories` and `actions` in `arrange`, which gets the row of `LEVELS`.

    Args:
        num_envs: number of copies B.
        difficulty: easy, medium or hard, as in POPGym.
        **kwargs: see `BatchedEnv`.

    Raises:
        EnvError: another difficulty; see also `BatchedEnv`.
    """

    #: difficulty -> what `arrange` gets, and `score`
    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]]
    #: what each category that is observed is called in a picture
    CARDS: ClassVar[tuple[str, ...]] = ()
    #: how many values each category has that is observed
    categories: tuple[int, ...]
    actions: int

    def __init__(self, num_envs: int = 1, *, difficulty: Difficulty = "easy", **kwargs: Any) -> None:
        if difficulty not in self.LEVELS:
            raise EnvError(unknown_name(f"difficulty of {type(self).__name__}", str(difficulty), self.LEVELS))
        level = dict(self.LEVELS[difficulty])
        # Depends on an option, hence on the instance.
        self.SCORE = level.pop("score")  # type: ignore[misc]
        self.arrange(**level)
        super().__init__(num_envs, **kwargs)

    def arrange(self, *args: Any, **level: Any) -> None:
        """Set up what a difficulty means."""
        raise NotImplementedError

    def shown(self, state: Any) -> Tensor:
        """The categories that are observed, int64 [B, number of categories]."""
        raise NotImplementedError

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """One-hot categories; the actions."""
        return Box(0.0, 1.0, (sum(self.categories),), np.float32), Discrete(self.actions)

    def observe(self, state: Any) -> Tensor:
        """The categories, one-hot."""
        shown = self.shown(state)
        if len(set(self.categories)) == 1:
            return one_hot(shown, self.categories[0]).flatten(1).float()
        parts = zip(shown.unbind(1), self.categories, strict=True)
        return torch.cat([one_hot(each, count) for each, count in parts], 1).float()

    def render(self, state: Any = None, index: int = 0) -> Any:
        """What is in view, as cards."""
        return cards(self.shown(state or self.state)[index].tolist(), self.CARDS)

    def unit(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), float32 [B, *shape]. All draws of a task are of this one kind: they are fast."""
        return self.uniform(0.0, 1.0, self.num_envs, *shape)

    def zeros(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Zeros [B, *shape]."""
        return torch.zeros(self.num_envs, *shape, dtype=dtype, device=self.device)


def below(unit: Tensor, count: Tensor | int) -> Tensor:
    """Uniform integers in [0, count) from uniform numbers in [0, 1), int64."""
    return (unit * count).long()


def deal(left_BK: Tensor, unit_B: Tensor) -> tuple[Tensor, Tensor]:
    """A card of those that are left in a shuffled deck.

    A shuffled deck of which only the dealt cards are known is one from which each card is drawn at random when it is
    dealt; what matters of a card is its kind.

    Args:
        left_BK: cards of every kind that are left, int64 [B, K].
        unit_B: uniform numbers in [0, 1).

    Returns:
        The kind of the card, int64 [B], and what is left after it.
    """
    kinds = left_BK.shape[1]
    place = below(unit_B, left_BK.sum(1))
    kind = (place.unsqueeze(1) >= left_BK.cumsum(1)).sum(1).clamp(max=kinds - 1)
    return kind, left_BK - one_hot(kind, kinds)
