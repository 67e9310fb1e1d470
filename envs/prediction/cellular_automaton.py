"""CellularAutomaton: what is a ring of cells like some steps later?

Sources: the rules of Wolfram (1983), "Statistical mechanics of cellular automata"; to look several steps ahead as a
test of depth: Burtsev (2024, arXiv 2412.01417), "Learning elementary cellular automata with transformers".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.options import Range

#: the most steps to look ahead; all of them are always made
FURTHEST = 8


@dataclass(frozen=True)
class CellularAutomatonState:
    """`cells` int64 [B, cells], 0 or 1; `step` int64 [B]: rings answered."""

    cells: Tensor
    step: Tensor


class CellularAutomaton(BatchedEnv):
    """A ring of random cells, and the question what an elementary rule makes of them in `ahead` steps.

    Observation: the cells, float32 [B, cells] of 0 and 1, each drawn anew. The action is what they will be,
    MultiDiscrete([2] * `cells`). An episode is `length` rings, one a step, and then terminates; the return is the share
    of the cells that are right. Under rule 30, whose rings stay random, guessing has 0.5. Every step's info has the
    truth, `target` int64 [B, cells], and `target_mask` bool [B].

    Args:
        num_envs: number of copies B.
        cells: of the ring.
        length: rings of an episode.
        **kwargs: see `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "rule": Param(30, 0, 255, "its number: bit 4 left + 2 middle + right is what becomes of a cell", integer=True),
        "ahead": Param(1, 0, FURTHEST, "steps to look ahead", integer=True),
    }
    SCORE: ClassVar[tuple[float, float]] = (0.5, 1.0)
    PREDICTION: ClassVar[bool] = True

    def __init__(
        self,
        num_envs: int = 1,
        *,
        cells: Annotated[int, Range(3, 1000)] = 16,
        length: Annotated[int, Range(1, 100_000)] = 16,
        **kwargs: Any,
    ) -> None:
        self.cells, self.length = cells, length
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Cells; cells."""
        return Box(0.0, 1.0, (self.cells,), np.float32), MultiDiscrete([2] * self.cells)

    def draw_state(self) -> CellularAutomatonState:
        """Random cells."""
        return CellularAutomatonState(self.randint(2, self.num_envs, self.cells), torch.zeros_like(self.age_B))

    def advance(
        self, state: CellularAutomatonState, action: Tensor
    ) -> tuple[CellularAutomatonState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the answer and show other cells."""
        rule, ahead = self.params["rule"].unsqueeze(1), self.params["ahead"].unsqueeze(1)
        cells = state.cells
        for done in range(FURTHEST):
            left, right = (
                torch.cat(pair, 1) for pair in ((cells[:, -1:], cells[:, :-1]), (cells[:, 1:], cells[:, :1]))
            )
            cells = torch.where(done < ahead, (rule >> (4 * left + 2 * cells + right)) % 2, cells)
        step, reward = state.step + 1, (action == cells).float().mean(1) / self.length
        following = CellularAutomatonState(self.randint(2, self.num_envs, self.cells), step)
        info = {"target": cells, "target_mask": torch.ones_like(step, dtype=torch.bool)}
        return following, reward, step >= self.length, info

    def observe(self, state: CellularAutomatonState) -> Tensor:
        """The cells."""
        return state.cells.float()
