"""Copy: say again the binary words that were shown, in the order that belongs to the task.

Sources: the copy task of Graves, Wayne & Danihelka (2014), "Neural Turing Machines", section 4.1; in a permuted order
for every task: Ehret et al. (ICLR 2021, arXiv 2006.12109), "Continual Learning in Recurrent Neural Networks".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.errors import EnvError
from lifelong.envs.options import Range


@lru_cache(maxsize=4096)
def order_of(seed: int, length: int) -> Tensor:
    """The order in which a task asks for the words, int64 [length]; seed 0 is that in which they were shown."""
    order = np.arange(length) if seed == 0 else np.random.default_rng(seed).permutation(length)
    return torch.from_numpy(order)


@dataclass(frozen=True)
class CopyState:
    """`words` bool [B, length, bits]; `count` int64 [B]: words to be shown; `step` int64 [B]: steps answered."""

    words: Tensor
    count: Tensor
    step: Tensor


class Copy(BatchedEnv):
    """Copy with a per-copy order of the answer.

    Observation: float32 [B, bits + 1] of zeros and ones. First `length` random words of `bits` bits, one a step; then
    `delay` steps of zeros; then a step whose last entry alone is 1; then zeros for `length` - 1 steps. From the step
    with the 1 on, the action must be the words, one a step: the first asked for is answered while the 1 is seen. An
    episode is 2 `length` + `delay` steps, and then terminates. The reward of an answer is the share of its bits that
    are right, divided by `length`: the return is the accuracy, and guessing has 0.5. Every step's info has the truth,
    `target` int64 [B, bits], and `target_mask` bool [B].

    Args:
        num_envs: number of copies B.
        length: words to be remembered.
        shortest: episodes have from so many words on to `length`, drawn uniformly, which are asked for in the order in
            which they were shown (permutation 0); 0: all have `length`.
        bits: of a word.
        delay: steps between the last word and the first answer.
        **kwargs: see `BatchedEnv`.

    Raises:
        EnvError: `shortest` is above `length`, or words of a changing number are permuted (also see `BatchedEnv`).
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "permutation": Param(0, 0, 2**31, "seed of the order of the answer; 0: as shown", integer=True),
    }
    SCORE: ClassVar[tuple[float, float]] = (0.0, 1.0)
    PREDICTION: ClassVar[bool] = True

    def __init__(
        self,
        num_envs: int = 1,
        *,
        length: Annotated[int, Range(1, 1000)] = 5,
        shortest: Annotated[int, Range(0, 1000)] = 0,
        bits: Annotated[int, Range(1, 256)] = 7,
        delay: Annotated[int, Range(0, 100_000)] = 0,
        **kwargs: Any,
    ) -> None:
        if shortest > length:
            raise EnvError(f"Copy.shortest is {shortest}, above length, {length}")
        self.length, self.shortest, self.bits, self.delay = length, shortest or length, bits, delay
        self.order_BL = torch.empty(0)
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """A word and the sign to answer; a word."""
        return Box(0.0, 1.0, (self.bits + 1,), np.float32), MultiDiscrete([2] * self.bits)

    def draw_state(self) -> CopyState:
        """Fresh words, none of them shown yet but the first."""
        words = self.randint(2, self.num_envs, self.length, self.bits).bool()
        begin = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        if self.shortest == self.length:
            return CopyState(words, begin + self.length, begin)
        return CopyState(words, self.shortest + self.randint(self.length - self.shortest + 1, self.num_envs), begin)

    def advance(self, state: CopyState, action: Tensor) -> tuple[CopyState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the answer and go on."""
        answer = state.step - state.count - self.delay  # which of the answers this is
        asked = self.order_BL.gather(1, answer.clamp(min=0).unsqueeze(1))
        target = self._word(state.words, asked).long()
        counts = answer >= 0
        reward = counts * (action == target).float().mean(-1) / state.count
        step = state.step + 1
        info = {"target": target, "target_mask": counts}
        return CopyState(state.words, state.count, step), reward, step >= 2 * state.count + self.delay, info

    def observe(self, state: CopyState) -> Tensor:
        """The word of this step, and whether the answer begins."""
        shown = state.step.clamp(max=self.length - 1).unsqueeze(1)
        word = self._word(state.words, shown) & (state.step < state.count).unsqueeze(1)
        begins = state.step == state.count + self.delay
        return torch.cat((word, begins.unsqueeze(1)), 1).float()

    def _word(self, words: Tensor, which_B1: Tensor) -> Tensor:
        return words.gather(1, which_B1.unsqueeze(2).expand(-1, 1, self.bits)).squeeze(1)

    def params_changed(self) -> None:
        """Look up what belongs to the task of every copy."""
        if self.shortest < self.length and bool((self.params["permutation"] != 0).any()):
            raise EnvError("Copy.permutation must be 0 where shortest is below length")
        seeds = self.params["permutation"].tolist()
        self.order_BL = torch.stack([order_of(seed, self.length) for seed in seeds]).to(self.device)
