"""The streaming actor-critic's part of a plan: one step along its trace as calls (see `agent.runtime.plan`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lifelong.agent.objectives.ac_lambda import ACLambda
from lifelong.agent.optimizers.obgd import ObGD
from lifelong.agent.optimizers.step_size import StepSize
from lifelong.agent.runtime import backward
from lifelong.kernels import acting, adam
from lifelong.kernels.categorical.cpu import log_prob_backward_call, log_prob_call
from lifelong.kernels.dense import Dense, clear
from lifelong.kernels.loop import Call, Direct, Each, Segment
from lifelong.kernels.traces import Bound, slopes_call, trace_call

if TYPE_CHECKING:
    from lifelong.agent.runtime.learner import Learner
    from lifelong.agent.runtime.plan import Rounds


class Traced:
    """The update of every round, which is one step of one copy: one trace, one backward pass.

    Args:
        rows: the rounds, acted but not learned from.

    Attributes:
        pack: what reads the parameters, beside what acting reads.
        segments: the update, then the step; the numbers have to be finite after the one at `guard`.
        numbers: loss and norm of the gradient of every update, [K, 2].
    """

    #: what is logged of an update, as the learner names it
    METRICS: ClassVar[tuple[str, ...]] = (
        *("loss/total", "gradient/norm", "loss/td_error", "loss/value", "loss/entropy"),
    )
    many: ClassVar[bool] = True
    guard: ClassVar[int] = 0

    def __init__(self, rows: Rounds) -> None:
        self.rows, K = rows, rows.rounds
        self.numbers, self.statistics = rows.empty(K, 2), rows.empty(K, 3)
        parts, made = rows.acted.parts, rows.acted.made
        seen = backward.CellRows(K, parts.x_TBD[:K], parts.state_TBS, made.is_init, parts.kept)
        self.cell = backward.calls_of(rows.policy.cell, seen)
        self.read = Dense(*parts.read_out)
        learn = self._learn()  # adds to what has to be packed
        self.pack = [*self.cell.pack, *self.read.pack(forward=False)]
        self.segments = [Segment(learn), Segment([rows.step(Each(self.numbers))])]

    @staticmethod
    def refusal(learner: Learner, copies: int) -> str | None:
        """What keeps the objective from a plan: more copies, each of which has a gradient of its own."""
        if isinstance(learner.optimizer, StepSize) and type(learner.optimizer) is not ObGD:
            return f"the step size {type(learner.optimizer).__name__}"
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

    def scalars(self) -> Tensor:
        """What is logged of every round, [K, n]."""
        return torch.cat([self.numbers, self.statistics], 1)

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
        self.cell.finish(learner.engine)

    def _learn(self) -> list[Call | Direct]:
        rows, made, parts, learner = self.rows, self.rows.acted.made, self.rows.acted.parts, self.rows.learner
        K, policy, objective, optimizer = rows.rounds, rows.policy, learner.objective, learner.optimizer
        assert isinstance(objective, ACLambda) and objective.trace_RP is not None and isinstance(objective.gamma, float)
        A, action = parts.policy_TBP.shape[-1], Each(rows.acted.actions.drawn_TB)
        logits, value, bootstrap = Each(parts.policy_TBP[:K]), Each(parts.value_TB[:K]), Each(parts.value_TB[1:])
        ended = Each(rows.acted.final_value), Each(made.terminated), Each(made.truncated)
        entropy, size, delta, *slopes = (rows.empty(1) for _ in range(6))
        d_logits, d_read, dy = rows.empty(1, A), rows.empty(1, A + 1), rows.empty(1, policy.cell.output_size)
        weights = objective.gamma, objective.value_weight, objective.entropy_weight
        outcome: list[Tensor | Each] = [delta, *slopes, Each(self.numbers[:, :1]), Each(self.statistics)]
        gradients, cell_gradients = rows.gradients, rows.gradients.below("cell.")
        calls: list[Call | Direct] = [
            clear(gradients.flat),
            log_prob_call(1, A, logits, action, Each(rows.log_prob), entropy, size),
            slopes_call(weights, [Each(made.reward), value, bootstrap, *ended, entropy], outcome),
            log_prob_backward_call(1, A, logits, action, entropy, size, slopes[0], slopes[1], d_logits),
            acting.place_rows(d_logits, d_read[:, :A]),
            acting.place_rows(slopes[2][:, None], d_read[:, A:]),
            *self.cell.before,
            *self.read.backward(self.cell.outputs, d_read, d_read, d_read, *gradients.read, dy, add=False),
        ]
        encoder = parts.encoder.backward
        dx = rows.empty(1, policy.cell.input_size) if encoder else None
        calls += [*self.cell.backward(dy, cell_gradients, dx), *self.cell.carry(learner.engine, cell_gradients)]
        if encoder and dx is not None:
            calls += encoder(K, dx[:, : policy.encoder.output_size], gradients.below("encoder."))
        pieces = objective.trace_RP[0].split([p.numel() for p in learner.parameters])
        grads, group = [gradients.named[name] for name in learner.named], optimizer.param_groups[0]
        bound = Bound(group["lr"], group["kappa"]) if isinstance(optimizer, ObGD) else None
        decay = objective.gamma * objective.lam
        calls.append(trace_call(decay, bound, delta, Each(made.is_init), pieces, grads))
        return [*calls, adam.clip_call(gradients.flat, learner.max_grad_norm, Each(self.numbers[:, 1:]))]
