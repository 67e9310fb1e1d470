"""The streaming actor-critic's part of a plan: one step along its trace as calls (see `planned.plan`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lifelong.agent.objectives.ac_lambda import ACLambda
from lifelong.agent.optimizers.obgd import ObGD
from lifelong.agent.optimizers.step_size import StepSize
from lifelong.agent.runtime.planned.actor_critic import OneUpdate
from lifelong.kernels import adam
from lifelong.kernels.dense import clear
from lifelong.kernels.loop import Call, Direct, Each
from lifelong.kernels.traces import Bound, slopes_call, trace_call

if TYPE_CHECKING:
    from lifelong.agent.runtime.learner import Learner


class Traced(OneUpdate):
    """The update of every round, which is one step of one copy: one trace, one backward pass."""

    METRICS: ClassVar[tuple[str, ...]] = (
        *("loss/total", "gradient/norm", "loss/td_error", "loss/value", "loss/entropy"),
    )

    @staticmethod
    def refusal(learner: Learner, copies: int) -> str | None:
        """What keeps the objective from a plan: more copies, each of which has a gradient of its own."""
        if isinstance(learner.optimizer, StepSize) and type(learner.optimizer) is not ObGD:
            return f"the step size {type(learner.optimizer).__name__}"
        if learner.hooked:
            return "a strategy beside traces"
        return "traces of several copies" if copies > 1 else None

    @staticmethod
    def addresses(learner: Learner) -> list[int]:
        """Where the trace lies."""
        objective = learner.objective
        assert isinstance(objective, ACLambda)
        size = sum(p.numel() for p in learner.parameters)
        if objective.trace_RP is None or objective.trace_RP.shape != (1, size):
            weight = learner.parameters[0]
            objective.trace_RP = torch.zeros(1, size, dtype=weight.dtype)
            objective.goes_on_B = torch.zeros(1, dtype=torch.bool)
            objective.task_B = torch.zeros(1, dtype=torch.int64)
        return [objective.trace_RP.data_ptr()]

    def begin(self) -> None:
        """Before the first round: a trace ends where its copy gets another task, or was put elsewhere."""
        objective, task_B = self.rows.learner.objective, self.rows.acted.parts.task_B
        assert isinstance(objective, ACLambda) and objective.trace_RP is not None
        if not (bool(objective.goes_on_B[0]) and bool(objective.task_B[0] == task_B[0])):
            objective.trace_RP.zero_()

    def finish(self) -> None:
        """After the last round."""
        learner, made, last = self.rows.learner, self.rows.acted.made, self.rows.rounds - 1
        assert isinstance(learner.objective, ACLambda)
        learner.objective.goes_on_B = ~(made.terminated[last] | made.truncated[last])
        learner.objective.task_B = self.rows.acted.parts.task_B.clone()
        super().finish()

    def _learn(self) -> list[Call | Direct]:
        rows, made, parts, learner = self.rows, self.rows.acted.made, self.rows.acted.parts, self.rows.learner
        K, objective, optimizer = rows.rounds, learner.objective, learner.optimizer
        assert isinstance(objective, ACLambda) and objective.trace_RP is not None
        gamma = float(max(objective.discounts))
        action = Each(rows.acted.actions.drawn_TB)
        logits, value, bootstrap = Each(parts.policy_TBP[:K]), Each(parts.value_TB[:K]), Each(parts.value_TB[1:])
        ended = Each(rows.acted.final_value), Each(made.terminated), Each(made.truncated)
        entropy, delta, *slopes = (rows.empty(1) for _ in range(5))
        weights = gamma, objective.value_weight, objective.entropy_weight
        outcome: list[Tensor | Each] = [delta, *slopes, Each(self.numbers[:, :1]), Each(self.statistics)]
        gradients = rows.gradients
        calls: list[Call | Direct] = [
            clear(gradients.flat),
            self.likelihood.forward(logits, action, Each(rows.log_prob), entropy),
            slopes_call(weights, [Each(made.reward), value, bootstrap, *ended, entropy], outcome),
            *self.live.back((logits, action, entropy), slopes, gradients, learner.engine),
        ]
        pieces = objective.trace_RP[0].split([p.numel() for p in learner.parameters])
        grads, group = [gradients.named[name] for name in learner.named], optimizer.param_groups[0]
        bound = Bound(group["lr"], group["kappa"]) if isinstance(optimizer, ObGD) else None
        decay = gamma * objective.lam
        calls.append(trace_call(decay, bound, delta, Each(made.is_init), pieces, grads))
        return [*calls, adam.clip_call(gradients.flat, learner.max_grad_norm, Each(self.numbers[:, 1:]))]
