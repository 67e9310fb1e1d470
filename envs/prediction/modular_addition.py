"""ModularAddition: (a + b) mod p of pairs that were never shown, after training on a share of all pairs.

Sources: Power et al. (2022, arXiv 2201.02177), "Grokking: generalization beyond overfitting on small algorithmic
datasets"; its progress measures: Nanda et al. (ICLR 2023, arXiv 2301.05217).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.options import Range


@lru_cache(maxsize=256)
def order_of(seed: int, modulus: int) -> Tensor:
    """All pairs as a * p + b, in the order of a split: the first ones are trained on, int64 [p * p]."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(modulus * modulus))


@dataclass(frozen=True)
class ModularAdditionState:
    """`pair` int64 [B]: a * p + b; `second` bool [B]: b is shown."""

    pair: Tensor
    second: Tensor


class ModularAddition(BatchedEnv):
    """Two numbers below `modulus`, one a step, and their sum modulo `modulus` is asked for with the second.

    Observation: the number, a category. The action is the sum; that of the first step does not count. The reward of the
    second step is 1 if it is right, and the episode terminates; guessing has 1 / `modulus`. Pairs are drawn from the
    share `share` of all ordered pairs that is trained on, in evaluations from the others. Every step's info has the
    truth, `target` int64 [B], and `target_mask` bool [B].

    Args:
        num_envs: number of copies B.
        modulus: p.
        share: of the pairs that are trained on.
        **kwargs: see `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "split": Param(0, 0, 2**31, "seed of which pairs are trained on", integer=True),
    }
    PREDICTION: ClassVar[bool] = True

    def __init__(
        self,
        num_envs: int = 1,
        *,
        modulus: Annotated[int, Range(2, 1000)] = 31,
        share: Annotated[float, Range(0.01, 0.99)] = 0.5,
        **kwargs: Any,
    ) -> None:
        self.modulus, self.share = modulus, share
        #: pairs that are trained on, at least one, and not all
        self.trained = min(max(round(share * modulus**2), 1), modulus**2 - 1)
        # Depends on an option, hence on the instance.
        self.SCORE = (1.0 / modulus, 1.0)  # type: ignore[misc]
        super().__init__(num_envs, **kwargs)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """A number; a number."""
        return Discrete(self.modulus), Discrete(self.modulus)

    def draw_state(self) -> ModularAdditionState:
        """A pair of those that are trained on, or of the others."""
        which = self.randint(self.pairs_BM.shape[1], self.num_envs, 1)
        pair = self.pairs_BM.gather(1, which).squeeze(1)
        return ModularAdditionState(pair, torch.zeros_like(pair, dtype=torch.bool))

    def advance(
        self, state: ModularAdditionState, action: Tensor
    ) -> tuple[ModularAdditionState, Tensor, Tensor, dict[str, Tensor]]:
        """Show the second number, or judge the answer."""
        target = (state.pair // self.modulus + state.pair) % self.modulus
        reward = (state.second & (action == target)).float()
        following = ModularAdditionState(state.pair, torch.ones_like(state.second))
        return following, reward, state.second, {"target": target, "target_mask": state.second}

    def observe(self, state: ModularAdditionState) -> Tensor:
        """The first or the second number."""
        return torch.where(state.second, state.pair % self.modulus, state.pair // self.modulus)

    def params_changed(self) -> None:
        """Look up what belongs to the task of every copy."""
        mine = slice(self.trained, None) if self.evaluation else slice(self.trained)
        rows = [order_of(seed, self.modulus)[mine] for seed in self.params["split"].tolist()]
        self.pairs_BM = torch.stack(rows).to(self.device)
