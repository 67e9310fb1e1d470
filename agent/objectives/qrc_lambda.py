"""QRC(lambda): gradient temporal differences with traces (Elelimy, Daley, Patterson, Machado, White & White 2025, arXiv
2507.09087, "Deep Reinforcement Learning with Gradient Eligibility Traces"; the regularised correction is that of
Ghiassian et al. 2020, ICML, QRC)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.modules.heads import Distribution
from lifelong.agent.modules.values import EpsilonGreedy
from lifelong.agent.objectives.base import Metrics
from lifelong.agent.objectives.q_lambda import QLambda, Temperature
from lifelong.agent.objectives.streaming import LAMBDA, Rows
from lifelong.agent.policy import Outputs, Policy
from lifelong.envs.options import Range, Share, Weight
from lifelong.replay.chunk import Chunk


class QRCLambda(QLambda):
    """Q-learning that also follows its own target, as much as a second head h(s, a) says that the error will be:

        delta = r + gamma max_a Q(s', a) - Q(s, a)
        z, z_h, e = gamma lambda [a is greedy] (z, z_h, e) + (grad Q(s, a), grad h(s, a), h(s, a))
        theta   += alpha [delta z - h grad Q(s, a) - e grad delta]
        theta_h += alpha_h [delta z_h - h grad h - beta theta_h]

    It does not diverge where semi-gradients can. h is linear in what the heads read, without a gradient through the
    memory, and begins at zero, where all this is q_lambda. The gradient of the target goes through the engine, too:
    one step further than that of the value. The step is for torch's optimisers; no step-size rule bounds it.

    Args:
        distribution: values of discrete actions.
        gamma: discount.
        lam: lambda of the traces.
        h_lr: alpha_h, the step size of h.
        beta: how much h is drawn to zero.
        epsilon: share of random actions; may be a schedule.
        ladder: copy i of B has the share epsilon^(1 + ladder i / (B - 1)).
        temperature: softmax(Q / temperature) stands for the policy where a strategy asks for probabilities.
    """

    scalable: ClassVar[bool] = False

    def __init__(
        self,
        distribution: Distribution,
        *,
        gamma: Share = 0.99,
        lam: Share = LAMBDA,
        h_lr: Annotated[float, Range(0.0, 1e3)] = 1e-3,
        beta: Weight = 1.0,
        epsilon: Share = 0.1,
        ladder: Weight = 0.0,
        temperature: Temperature = 0.1,
    ) -> None:
        super().__init__(distribution, gamma=gamma, lam=lam, epsilon=epsilon, ladder=ladder, temperature=temperature)
        self.h_lr, self.beta = h_lr, beta

    def setup(self, policy: Policy) -> None:
        super().setup(policy)
        assert isinstance(self.distribution, EpsilonGreedy)
        #: weights and bias of h, [A, H + 1], and the rows' traces
        self.h_AH = policy.critic.weight.new_zeros(self.distribution.size, policy.cell.output_size + 1).detach()
        self.h_trace_BAH: Tensor | None = None
        self.e_B = self.h_AH.new_zeros(0)

    def begin(self, engine: GradientEngine, trace: Any, *, extra: bool) -> None:
        super().begin(engine, trace, extra=extra)
        self.at_once = False  # the gradient of the target asks for the carry before the step

    def rows(self, outputs: Outputs, chunk: Chunk) -> tuple[Rows, Metrics]:
        rows, metrics = super().rows(outputs, chunk)
        assert outputs.features is not None
        with torch.no_grad():
            y_BH = torch.cat([outputs.features[0], torch.ones_like(rows.error_BK)], 1)
            taken_BA = torch.nn.functional.one_hot(chunk.action[0], len(self.h_AH)).to(y_BH.dtype)
            self._slope_BAH = taken_BA.unsqueeze(2) * y_BH.unsqueeze(1)
            self._h_B = (self._slope_BAH * self.h_AH).sum((1, 2))
        return rows, {**metrics, "h": self.mean(chunk)(self._h_B.unsqueeze(0))}

    def beside(self, outputs: Outputs, chunk: Chunk, rows: Rows, keep_R: Tensor, slope_RP: Tensor) -> Tensor:
        h_B, error_B, mean = self._h_B, rows.error_BK[:, 0], self.mean(chunk)
        weight_B = mean.weight[0]
        target_RP = self.slopes(self._target(outputs, chunk) * weight_B)
        with torch.no_grad():
            if self.h_trace_BAH is None or len(self.h_trace_BAH) != len(h_B):
                self.h_trace_BAH, self.e_B = torch.zeros_like(self._slope_BAH), torch.zeros_like(h_B)
            self.h_trace_BAH = keep_R[:, None, None] * self.h_trace_BAH + self._slope_BAH
            self.e_B = keep_R * self.e_B + h_B
            moved_BAH = error_B[:, None, None] * self.h_trace_BAH - h_B[:, None, None] * self._slope_BAH
            moved_AH = (weight_B[:, None, None] * moved_BAH).sum(0) / mean.total
            self.workers.mean_([moved_AH])
            self.h_AH = self.h_AH + self.h_lr * (moved_AH - self.beta * self.h_AH)
            return (self.e_B - h_B).unsqueeze(1) * slope_RP - self.e_B.unsqueeze(1) * target_RP

    def _target(self, outputs: Outputs, chunk: Chunk) -> Tensor:
        """gamma max_a Q(s', a), [B], as a function of the parameters over the whole history."""
        policy, memory_BS = self.policy, outputs.memory
        assert memory_BS is not None
        obs, cut_B = chunk.next_obs, chunk.truncated[0] & ~chunk.terminated[0]
        if chunk.slots:
            obs = torch.where(cut_B.view(-1, *[1] * (obs.dim() - 1)), chunk.final_obs[0], obs)
        inputs = policy.following(chunk, obs, (-1, slice(None)))
        forgets_B = torch.full_like(cut_B, policy.memoryless)
        if policy.memoryless:
            inputs.previous_action = torch.zeros_like(inputs.previous_action)
            inputs.previous_reward = torch.zeros_like(inputs.previous_reward)
        value_B = policy.step(inputs, memory_BS, forgets_B).outputs.value
        return self.discounts[0] * value_B.masked_fill(chunk.terminated[0], 0.0)

    def reset(self, mask_B: Tensor | None = None) -> None:
        super().reset(mask_B)
        if self.h_trace_BAH is not None:
            mask_B = torch.ones_like(self.goes_on_B) if mask_B is None else mask_B
            self.h_trace_BAH.masked_fill_(mask_B[:, None, None], 0.0)
            self.e_B = self.e_B.masked_fill(mask_B, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"h": self.h_AH}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        h = saved.get("h", self.h_AH)
        self.h_AH = h.to(self.h_AH) if h.shape == self.h_AH.shape else self.h_AH

    def own_state_dict(self) -> dict[str, Any]:
        if self.h_trace_BAH is None:
            return super().own_state_dict()
        return {**super().own_state_dict(), "h": self.h_trace_BAH, "e": self.e_B}

    def load_own_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_own_state_dict(saved)
        self.h_trace_BAH = None
        if self.trace_RP is not None and "h" in saved:
            self.h_trace_BAH, self.e_B = saved["h"].to(self.h_AH.device), saved["e"].to(self.h_AH.device)
