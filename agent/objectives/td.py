"""TD(lambda): predictions of discounted sums, learned at every step (Sutton 1988); several of them with discounts and
cumulants of their own are general value functions (Sutton et al. 2011, AAMAS, "Horde")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import gymnasium
import torch
from torch import Tensor

from lifelong.agent.modules.heads import Distribution
from lifelong.agent.modules.values import Predictions
from lifelong.agent.objectives.base import Metrics
from lifelong.agent.objectives.streaming import LAMBDA, Discounts, Rows, Streaming
from lifelong.agent.policy import Outputs
from lifelong.envs.options import Range, Share
from lifelong.replay.chunk import Chunk

Cumulant = Literal["reward"] | Annotated[int, Range(0, 10**6)]


class TD(Streaming):
    """Semi-gradient TD(lambda). An action is K predictions, of sum_i gamma_k^i c_k[t + 1 + i] each, and acts on
    nothing:

        delta_k = c_k[t + 1] + gamma_k v_k(s_{t+1}) - v_k(s_t)

    A cumulant c_k is the reward, or an entry of the next observation; where an episode terminates, whose last
    observation is not kept, the latter is 0.

    Args:
        distribution: predictions.
        gamma: discount; a list has one for each prediction.
        lam: lambda of the traces.
        cumulants: `reward`, or the index of an entry of the observation; one for all, or one for each prediction.
    """

    def __init__(
        self,
        distribution: Distribution,
        *,
        gamma: Discounts = 0.9,
        lam: Share = LAMBDA,
        cumulants: Sequence[Cumulant] = ("reward",),
    ) -> None:
        super().__init__(distribution, gamma=gamma, lam=lam)
        if not isinstance(distribution, Predictions):
            raise ValueError("td needs a distribution of predictions")
        self.predictions = distribution.size
        self.cumulants = list(cumulants)
        #: the values of a chunk are those of the first prediction
        self.reads_after = self.predictions > 1  # type: ignore[misc]
        for name, found in (("gamma", self.discounts), ("cumulants", self.cumulants)):
            if len(found) not in (1, self.predictions):
                raise ValueError(
                    f"{name} has {len(found)} entries, and the action space has {self.predictions} predictions; give "
                    "one for all or one for each"
                )

    @classmethod
    def acts_by(cls, space: gymnasium.Space[Any], squash: str, options: Mapping[str, Any]) -> Distribution:
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise ValueError(
                f"objective td takes an action for its predictions, so it needs a one-dimensional Box, not {space}; "
                "use objective q_lambda or ac_lambda to act"
            )
        return Predictions(space)

    def rows(self, outputs: Outputs, chunk: Chunk) -> tuple[Rows, Metrics]:
        value_BK = outputs.policy[0]
        with torch.no_grad():
            if self.predictions == 1:
                after_BK, final_BK = chunk.bootstrap_value.unsqueeze(1), chunk.final_value[0].unsqueeze(1)
            else:
                assert outputs.after is not None
                after_BK, final_TBK = outputs.after(read=_predictions)
                final_BK = final_TBK[0]
            error_BK = self.target(chunk, self._cumulants(chunk), after_BK, final_BK) - value_BK
            keep_BK = (self.discount_of(value_BK) * self.lam).expand_as(error_BK)
            return Rows(value_BK, error_BK, keep_BK), {"value": self.mean(chunk)(value_BK.mean(1).unsqueeze(0))}

    def _cumulants(self, chunk: Chunk) -> Tensor:
        """c, [B, K] or [B, 1]."""
        found = []
        for cumulant in self.cumulants:
            if cumulant == "reward":
                found.append(chunk.reward[0])
                continue
            seen_B = chunk.next_obs.flatten(1)[:, cumulant]
            if chunk.slots:
                last_B = chunk.final_obs[0].flatten(1)[:, cumulant]
                seen_B = torch.where(chunk.truncated[0] & ~chunk.terminated[0], last_B, seen_B)
            found.append(seen_B.masked_fill(chunk.terminated[0], 0.0).to(chunk.reward.dtype))
        return torch.stack(found, 1)


def _predictions(outputs: Outputs) -> Tensor:
    return outputs.policy
