"""AssociativeRecall: what was shown together with the thing that is shown again?

Source: Ba, Hinton, Mnih, Leibo & Ionescu (NeurIPS 2016, arXiv 1610.06258), "Using fast weights to attend to the recent
past", section 4.1: letters and digits in turn, and at the end one of the letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import gymnasium
import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.errors import EnvError
from lifelong.envs.options import Range


@dataclass(frozen=True)
class AssociativeRecallState:
    """`held` int64 [B, keys]: the value of each key; `shown` bool [B, keys]: keys so far; `key`, `step` int64 [B]: the
    present key, and steps made so far."""

    held: Tensor
    shown: Tensor
    key: Tensor
    step: Tensor


def one_of(allowed: Tensor, share: Tensor) -> Tensor:
    """The place of one of what is allowed, bool [B, n] with at least one, by `share` [B] of [0, 1): int64 [B]."""
    count = allowed.long().cumsum(1)
    which = 1 + (share * count[:, -1]).long()
    return (allowed & (count == which.unsqueeze(1))).long().argmax(1)


class AssociativeRecall(BatchedEnv):
    """Associative recall with a number of pairs for every copy.

    Observation: Discrete(keys + values + 1), a symbol: keys first, then values, then the sign of a question. `pairs`
    different keys are shown, each with a value after it; then the sign, and then one of the keys, whose value the
    action, Discrete(values), must be in that step. An episode is 2 `pairs` + 2 steps and then terminates. The reward of
    the answer is 1 if it is right; guessing has 1 / values, which counts as 0 for ten values. Every step's info has the
    truth, `target` int64 [B], and `target_mask` bool [B], true at the end.

    Args:
        num_envs: number of copies B.
        keys: different keys.
        values: different values.
        **kwargs: see `BatchedEnv`.

    Raises:
        EnvError: more `pairs` than `keys` (also see `BatchedEnv`).
    """

    PARAMS: ClassVar[dict[str, Param]] = {"pairs": Param(4, 1, 256, "keys that are shown with a value", integer=True)}
    SCORE: ClassVar[tuple[float, float]] = (0.1, 1.0)
    PREDICTION: ClassVar[bool] = True

    def __init__(
        self,
        num_envs: int = 1,
        *,
        keys: Annotated[int, Range(2, 256)] = 26,
        values: Annotated[int, Range(2, 256)] = 10,
        **kwargs: Any,
    ) -> None:
        self.keys, self.values = keys, values
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """A symbol; a value."""
        return Discrete(self.keys + self.values + 1), Discrete(self.values)

    def draw_state(self) -> AssociativeRecallState:
        """A value for every key, and a first key."""
        held = self.randint(self.values, self.num_envs, self.keys)
        key = self.randint(self.keys, self.num_envs)
        return AssociativeRecallState(held, self._is(key), key, torch.zeros_like(self.age_B))

    def advance(
        self, state: AssociativeRecallState, action: Tensor
    ) -> tuple[AssociativeRecallState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the answer in the last step; else show a value, another key, the sign, or the question."""
        truth, pairs, step = self._value(state), self.params["pairs"], state.step + 1
        ends = step > 2 * pairs + 1
        share = self.uniform(0, 1, self.num_envs)
        another, asked = one_of(~state.shown, share), one_of(state.shown, share)
        key = torch.where((step % 2 == 0) & (step < 2 * pairs), another, state.key)
        key = torch.where(step == 2 * pairs + 1, asked, key)
        following = AssociativeRecallState(state.held, state.shown | self._is(key), key, step)
        return following, ends & (action == truth), ends, {"target": truth, "target_mask": ends}

    def observe(self, state: AssociativeRecallState) -> Tensor:
        """A key, a value, the sign of a question, or the key that is asked for."""
        pairs = self.params["pairs"]
        pair = (state.step % 2 == 1) & (state.step < 2 * pairs)
        shown = torch.where(pair, self.keys + self._value(state), state.key)
        return torch.where(state.step == 2 * pairs, self.keys + self.values, shown)

    def _value(self, state: AssociativeRecallState) -> Tensor:
        return state.held.gather(1, state.key.unsqueeze(1)).squeeze(1)

    def _is(self, key: Tensor) -> Tensor:
        return key.unsqueeze(1) == torch.arange(self.keys, device=self.device)

    def params_changed(self) -> None:
        """Refuse what does not go together."""
        most = int(self.params["pairs"].max())
        if most > self.keys:
            raise EnvError(f"AssociativeRecall.pairs is {most}, above keys, {self.keys}; set keys to {most}")
