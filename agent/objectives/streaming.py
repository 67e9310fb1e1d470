"""Streaming objectives: an update at every step, along eligibility traces, from nothing but that step.

    z_t = gamma lambda z_{t-1} + grad v(s_t)        theta <- theta + alpha delta_t z_t

Sutton 1988 (Machine Learning 3), with function approximation Sutton & Barto 2018, section 12.2. The gradients come
through the gradient engine, so with `rtrl` both sums over the past are exact: that of the trace over earlier
predictions, and that inside each of them over what the memory has heard.

Every copy has a trace of its own for everything that it predicts: R rows of P numbers, P the number of parameters. A
trace ends with its episode, where its copy gets another task, and in Q-learning at an action that was not greedy
(Watkins 1989); the carry of the engine, which is a fact about the memory, stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.gradients.per_copy import PerCopy, refusal
from lifelong.agent.modules.heads import Distribution
from lifelong.agent.objectives.base import Metrics, Objective
from lifelong.agent.optimizers.step_size import StepSize, Streamed
from lifelong.agent.policy import Outputs, Policy
from lifelong.envs.options import Range, Share
from lifelong.replay.chunk import Chunk

#: lambda by default. With lambda = 0.8, as in feed-forward agents, what is learned reaches back some 5 steps, however
#: far the carry does: the credit horizon is that of the slower of the two (Farr et al. 2026, arXiv 2605.24709).
LAMBDA = 0.95
#: discounts of several predictions, or one of all
Discounts = Share | Sequence[Share]
Rate = Annotated[float, Range(0.0, 1e3)]


@dataclass
class Rows:
    """What is predicted at a step: K predictions of each of B copies.

    Args:
        score_BK: whose gradient goes into the trace, a function of the parameters.
        error_BK: the error delta that the step is proportional to.
        keep_BK: what is left of the trace before that gradient is added.
    """

    score_BK: Tensor
    error_BK: Tensor
    keep_BK: Tensor


class Streaming(Objective):
    """Base of streaming objectives. A subclass says what is predicted (`rows`); T is 1.

    The step that it asks the optimiser for is the mean over the copies of delta z, and the sum over predictions; a
    step-size rule (`agent.optimizers.step_size`) bounds each row by itself. Losses that strategies add are added to it.

    Args:
        distribution: of the policy's actions.
        gamma: discount.
        lam: lambda, the share of the trace that is left after a step, beside the discount.
    """

    streaming: ClassVar[bool] = True
    says_error: ClassVar[bool] = True
    #: whether a step is delta z and nothing else, so that step-size rules can bound it
    scalable: ClassVar[bool] = True
    #: predictions of a copy
    predictions: int = 1

    def __init__(self, distribution: Distribution, *, gamma: float | Sequence[float], lam: float) -> None:
        super().__init__(distribution)
        self.gamma, self.lam = gamma, lam
        #: [R, P], copy by copy; none before the first step
        self.trace_RP: Tensor | None = None
        self.goes_on_B = self.task_B = torch.empty(0)

    def setup(self, policy: Policy) -> None:
        self.policy = policy
        self.parameters: list[nn.Parameter] = list(policy.parameters())
        self.streamed: Streamed | None = None
        #: takes the gradients of all copies at once, where that can be done; of the engine of the last step
        self.per_copy: PerCopy | None = None
        self.engine: GradientEngine | None = None

    def begin(self, engine: GradientEngine, trace: Any, *, extra: bool) -> None:
        if self.engine is not engine:
            self.engine = engine
            self.per_copy = None if refusal(self.policy, engine) else PerCopy(self.policy, engine)
        self.engine_trace, self.at_once = trace, self.per_copy is not None and not extra

    def watching(self) -> AbstractContextManager[None]:
        return self.per_copy.watching() if self.per_copy and self.at_once else nullcontext()

    def passes(self, copies: int, *, extra: bool) -> int:
        return 2  # the carry is not moved by a backward pass

    def rows(self, outputs: Outputs, chunk: Chunk) -> tuple[Rows, Metrics]:
        """What is predicted, and scalars for the log."""
        raise NotImplementedError

    def loss(self, outputs: Outputs, chunk: Chunk, prepared: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        """Half the mean squared error, for the log; it has no gradient. The trace is moved."""
        rows, metrics = self.rows(outputs, chunk)
        mean = self.mean(chunk)
        weight_B = mean.weight[0]
        score_BK = rows.score_BK * weight_B.unsqueeze(1)
        if self.per_copy and self.at_once:
            slope_RP = self.per_copy(score_BK, outputs, chunk, self.engine_trace).flatten(0, 1)
        else:
            slope_RP = self.slopes(score_BK.flatten())
        with torch.no_grad():
            keep_R = (rows.keep_BK * self._live(chunk).unsqueeze(1)).flatten()
            self.trace_RP = torch.addcmul(slope_RP, keep_R.unsqueeze(1), self._trace(slope_RP))
            self.goes_on_B, self.task_B = ~(chunk.terminated | chunk.truncated)[0], chunk.task[0]
            error_R = rows.error_BK.flatten()
            share_R = (weight_B / mean.total).repeat_interleave(self.predictions)
            decay = float(max(self.discounts)) * self.lam
            self.streamed = Streamed(error_R, share_R, self.trace_RP, slope_RP, decay, self.parameters)
            outputs.error = rows.error_BK.mean(1).unsqueeze(0)
            loss = 0.5 * mean(rows.error_BK.square().sum(1).unsqueeze(0))
        self.beside_RP = self.beside(outputs, chunk, rows, keep_R, slope_RP)
        with torch.no_grad():
            return loss, {"td_error": mean(rows.error_BK.abs().mean(1).unsqueeze(0)), **metrics}

    def beside(self, outputs: Outputs, chunk: Chunk, rows: Rows, keep_R: Tensor, slope_RP: Tensor) -> Tensor | None:
        """What is added to delta z, [R, P], if anything is; `keep_R` is what was left of the traces, `slope_RP` the
        gradients of the scores."""
        return None

    def add_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Add minus the step that is asked for to the gradients."""
        streamed, self.streamed = self.streamed, None
        assert streamed is not None
        factor_R = streamed.share_R * streamed.error_R
        if isinstance(optimizer, StepSize):
            factor_R = factor_R * optimizer.scales(streamed, self.workers)
        step_P = factor_R @ streamed.trace_RP
        if self.beside_RP is not None:
            step_P = step_P + streamed.share_R @ self.beside_RP
        for parameter, step in zip(self.parameters, streamed.split(step_P), strict=True):
            parameter.grad = step.neg() if parameter.grad is None else parameter.grad - step

    def reset(self, mask_B: Tensor | None = None) -> None:
        if self.trace_RP is not None:
            rows = self.trace_RP.view(-1, self.predictions, self.trace_RP.shape[1])
            rows.masked_fill_(
                torch.ones_like(self.goes_on_B)[:, None, None] if mask_B is None else mask_B[:, None, None], 0.0
            )

    @property
    def discounts(self) -> Sequence[float]:
        """Of every prediction, or one of all."""
        return [self.gamma] if isinstance(self.gamma, (int, float)) else self.gamma

    def target(self, chunk: Chunk, reward_BK: Tensor, after_BK: Tensor, final_BK: Tensor) -> Tensor:
        """r + gamma v', [B, K], of the predictions after the step and those of the last observation where the episode
        was cut off."""
        truncated_B1, terminated_B1 = chunk.truncated[0].unsqueeze(1), chunk.terminated[0].unsqueeze(1)
        after_BK = torch.where(truncated_B1, final_BK, after_BK).masked_fill(terminated_B1, 0.0)
        return reward_BK + self.discount_of(after_BK) * after_BK

    def discount_of(self, like: Tensor) -> Tensor:
        """The discounts as a tensor [K], or [1]."""
        return torch.tensor(self.discounts, dtype=like.dtype, device=like.device)

    def slopes(self, score_R: Tensor) -> Tensor:
        """The gradient of each row by all parameters, [R, P]."""
        slopes = []
        for row in score_R.unbind():
            grads = torch.autograd.grad(row, self.parameters, retain_graph=True, allow_unused=True)
            found = (torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, grads, strict=True))
            slopes.append(torch.cat([g.reshape(-1) for g in found]))
        return torch.stack(slopes)

    def _trace(self, like_RP: Tensor) -> Tensor:
        """The trace before this step; zeros at first, or where copies or parameters have become others."""
        if self.trace_RP is None or self.trace_RP.shape != like_RP.shape:
            B = len(like_RP) // self.predictions
            self.goes_on_B = torch.zeros(B, dtype=torch.bool, device=like_RP.device)
            self.task_B = torch.zeros(B, dtype=torch.int64, device=like_RP.device)
            self.trace_RP = torch.zeros_like(like_RP)
        return self.trace_RP

    def _live(self, chunk: Chunk) -> Tensor:
        """1 where the step goes on from the one before, [B]."""
        reward_B, task_B = chunk.reward[0], chunk.task[0]
        if self.trace_RP is None or len(self.task_B) != len(task_B):
            return torch.zeros_like(reward_B)
        return (self.goes_on_B & (self.task_B == task_B)).to(reward_B.dtype)

    def own_state_dict(self) -> dict[str, Any]:
        if self.trace_RP is None:
            return {}
        return {"trace": self.trace_RP, "goes_on": self.goes_on_B, "task": self.task_B}

    def load_own_state_dict(self, saved: dict[str, Any]) -> None:
        self.trace_RP = None
        size = sum(p.numel() for p in self.parameters)
        if "trace" in saved and saved["trace"].shape[1] == size:
            device = self.parameters[0].device
            self.trace_RP, self.goes_on_B, self.task_B = (saved[k].to(device) for k in ("trace", "goes_on", "task"))
