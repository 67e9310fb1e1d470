"""MultiarmedBandit: find out in an episode which arm pays most often.

Source: POPGym (see `envs.memory.popgym`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lifelong.envs.memory.popgym import POPGymTask
from lifelong.envs.render import bars


@dataclass(frozen=True)
class MultiarmedBanditState:
    """`pays` float32 [B, arms]: how often each arm pays; `paid` and `step` int64 [B]."""

    pays: Tensor
    paid: Tensor
    step: Tensor


class MultiarmedBandit(POPGymTask):
    """10, 20 or 30 arms that pay with probabilities drawn from [0, 1) for an episode of 200, 400 or 600 steps.

    Observation: whether the last pull paid, one-hot float32 [B, 2]; the agent needs its last action besides. Actions:
    the arms. A pull gives +1/steps if it pays and -1/steps if not. Always pulling the best arm has 0.818, 0.905, 0.935.
    """

    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": {"arms": 10, "length": 200, "score": (0.0, 0.818)},
        "medium": {"arms": 20, "length": 400, "score": (0.0, 0.905)},
        "hard": {"arms": 30, "length": 600, "score": (0.0, 0.935)},
    }

    def arrange(self, arms: int, length: int) -> None:
        """So many arms and steps."""
        self.length, self.categories, self.actions = length, (2,), arms

    def draw_state(self) -> MultiarmedBanditState:
        """Other arms."""
        return MultiarmedBanditState(self.unit(self.actions), self.zeros(), self.zeros())

    def advance(
        self, state: MultiarmedBanditState, action: Tensor
    ) -> tuple[MultiarmedBanditState, Tensor, Tensor, dict[str, Tensor]]:
        """Pull an arm."""
        paid = self.unit() < state.pays.gather(1, action.unsqueeze(1)).squeeze(1)
        step = state.step + 1
        following = MultiarmedBanditState(state.pays, paid.long(), step)
        return following, (2.0 * paid.float() - 1.0) / self.length, step >= self.length, {}

    def render(self, state: Any = None, index: int = 0) -> Any:
        """How often each arm pays."""
        pays = (state or self.state).pays[index].cpu().numpy()
        return bars(pays, [str(i) for i in range(len(pays))])

    def shown(self, state: MultiarmedBanditState) -> Tensor:
        """Whether the last pull paid."""
        return state.paid.unsqueeze(1)
