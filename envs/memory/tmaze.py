"""TMaze: remember a cue from the start of a corridor until the junction at its end.

Source: Bakker (2002), "Reinforcement learning with long short-term memory". With `auto_move` (the default) walking is
not part of the task; the published use with noise has a corridor of 32 steps, three distractors and chunks of T = 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.errors import EnvError
from lifelong.envs.options import Range
from lifelong.envs.render import COLOURS, GREY, Canvas

FORWARD, UP, DOWN = 0, 1, 2


@dataclass(frozen=True)
class TMazeState:
    """Where each copy is and what it is shown."""

    position: Tensor  # int64 [B], 0 at the start, `corridor` at the junction
    cue: Tensor  # float32 [B], +1 (up) or -1 (down)
    first: Tensor  # bool [B], true until the first action: only then the cue is visible
    distractors: Tensor  # float32 [B, distractors], +1 or -1


class TMaze(BatchedEnv):
    """TMaze with per-copy corridor length.

    Observation: float32 [B, 2 + distractors]: [cue, junction, distractors...]. `cue` is +1 (up) or -1 (down) in the
    first observation of an episode and 0 afterwards; `junction` is 1 at the junction, else 0; each distractor is +1 or
    -1, drawn afresh for every observation. Actions: 0 forward, 1 up, 2 down.

    The junction is `corridor` moves away, so the choice is the (corridor + 1)-th action. The right side gives +1, the
    wrong one -1, and both end the episode. `info["success"]` [B] float32 is 1 on a step that ended on the right side,
    else 0.

    Args:
        num_envs: number of copies B.
        auto_move: the agent moves forward in the corridor whatever it does, without penalty, so that only memory is
            tested; `forward` at the junction then counts as the wrong side, so that every episode ends. Otherwise only
            `forward` moves, every other corridor action and `forward` at the junction cost `penalty`.
        distractors: number of extra observation entries.
        **kwargs: see `BatchedEnv`.

    Raises:
        EnvError: `distractors` is negative; see also `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "corridor": Param(10, 1, 1999, "moves from the start to the junction", integer=True),
        "reversed": Param(0, 0, 1, "1: the rewarded side is the opposite of the cue", integer=True),
        "penalty": Param(0.05, 0.0, 1.0, "cost of an action that does not move (only without auto_move)"),
    }
    SCORE: ClassVar[tuple[float, float]] = (0.0, 1.0)
    #: for agents that never reach a side without auto_move; with it every episode ends before
    MAX_EPISODE_STEPS: ClassVar[int] = 2000

    def __init__(
        self,
        num_envs: int = 1,
        *,
        auto_move: bool = True,
        distractors: Annotated[int, Range(0, 10_000)] = 0,
        **kwargs: Any,
    ) -> None:
        if distractors < 0:
            raise EnvError(f"TMaze.distractors is {distractors}; it must be at least 0")
        self.auto_move = auto_move
        self.distractors = distractors
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Numbers in [-1, 1]; forward, up and down."""
        return Box(-1.0, 1.0, (2 + self.distractors,), np.float32), Discrete(3)

    def draw_state(self) -> TMazeState:
        """At the start, with a cue of either side."""
        signs = self._signs(1 + self.distractors)
        return TMazeState(
            position=torch.zeros(self.num_envs, dtype=torch.int64, device=self.device),
            cue=signs[:, 0],
            first=torch.ones(self.num_envs, dtype=torch.bool, device=self.device),
            distractors=signs[:, 1:],
        )

    def advance(self, state: TMazeState, action: Tensor) -> tuple[TMazeState, Tensor, Tensor, dict[str, Tensor]]:
        """Move in the corridor, or choose at the junction."""
        p = self.params
        junction = state.position >= p["corridor"]
        forward = action == FORWARD
        side = (action == UP).float() - (action == DOWN).float()
        success = junction & (side * state.cue * (1 - 2 * p["reversed"]) > 0)
        if self.auto_move:
            moved, terminated = ~junction, junction
            cost = torch.zeros_like(state.cue)
        else:
            moved, terminated = forward & ~junction, junction & ~forward
            cost = p["penalty"] * (forward == junction).float()
        reward = torch.where(terminated, 2.0 * success.float() - 1.0, -cost)
        following = TMazeState(
            position=state.position + moved.long(),
            cue=state.cue,
            first=torch.zeros_like(state.first),
            distractors=self._signs(self.distractors),
        )
        return following, reward, terminated, {"success": success.float()}

    def observe(self, state: TMazeState) -> Tensor:
        """[cue, junction, distractors...]."""
        junction = (state.position >= self.params["corridor"]).float()
        return torch.cat((torch.stack((state.cue * state.first, junction), 1), state.distractors), 1)

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The corridor, its junction, the agent, and the cue, pale when it is not seen any more."""
        state = state or self.state
        length, position = int(self.params["corridor"][index]), int(state.position[index])
        cue, first = float(state.cue[index]), bool(state.first[index])
        canvas = Canvas((-1.5, length + 1.5), (-2.5, 2.5))
        for x in range(length + 1):
            canvas.box(x - 0.45, -0.45, 0.9, 0.9, (225, 228, 232))
        for y in (-1, 1):
            canvas.box(length - 0.45, y - 0.45, 0.9, 0.9, (225, 228, 232))
        tip = 1.6 if cue > 0 else -1.6
        canvas.area((-0.4, tip / 2), (0.4, tip / 2), (0, tip), colour=COLOURS[2] if first else GREY)
        canvas.disc(position, 0, 0.35, COLOURS[0])
        return canvas.array()

    def _signs(self, count: int) -> Tensor:
        return 2.0 * self.randint(2, self.num_envs, count).float() - 1.0
