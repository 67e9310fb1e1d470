"""Actor-critic's part of a plan: one update from a chunk, as calls (see `planned.plan`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.runtime.planned import backward
from lifelong.agent.runtime.planned.likelihood import Likelihood
from lifelong.agent.strategies.planned import HookCalls
from lifelong.kernels import acting, adam, hooks
from lifelong.kernels.actor_critic_loss.cpu import loss_call
from lifelong.kernels.advantages.cpu import vtrace_call
from lifelong.kernels.dense import Dense, clear
from lifelong.kernels.loop import Call, Direct, Each, Segment, by_round

if TYPE_CHECKING:
    from lifelong.agent.runtime.learner import Learner
    from lifelong.agent.runtime.planned.plan import Rounds


class OneUpdate:
    """The update of every round.

    Args:
        rows: the rounds, acted but not learned from.

    Attributes:
        pack: what reads the parameters, beside what acting reads.
        segments: the update, then the step; the numbers have to be finite after the one at `guard`.
        numbers: loss and norm of the gradient of every update, [K, 2].
    """

    #: what is logged of an update, as the learner names it
    METRICS: ClassVar[tuple[str, ...]] = (
        *("loss/total", "gradient/norm", "loss/policy", "loss/value", "loss/entropy", "loss/explained_variance"),
    )
    many: ClassVar[bool] = True
    #: whether a step may count for nothing
    weighs: ClassVar[bool] = True
    guard: ClassVar[int] = 0
    #: what strategies do in an update
    hooks: HookCalls = {}

    def __init__(self, rows: Rounds) -> None:
        self.rows, K = rows, rows.rounds
        self.numbers, self.statistics = rows.empty(K, 2), rows.empty(K, len(self.METRICS) - 2)
        parts, made = rows.acted.parts, rows.acted.made
        seen = backward.CellRows(K, parts.x_TBD[: K * rows.steps], parts.state_TBS, made.is_init, parts.kept)
        self.cell = backward.calls_of(rows.policy.cell, seen)
        self.read = Dense(*parts.read_out)
        self.likelihood = Likelihood(rows.policy, rows.steps * rows.B)
        learn = self._learn()  # adds to what has to be packed
        self.pack = [*self.cell.pack, *self.read.pack(forward=False)]
        self.segments = [Segment(learn), Segment(self._end())]

    @staticmethod
    def refusal(learner: Learner, copies: int) -> str | None:
        """What keeps the objective from a plan: nothing."""
        return None

    @staticmethod
    def addresses(learner: Learner) -> list[int]:
        """Where what it keeps from chunk to chunk lies: it keeps nothing."""
        return []

    def scalars(self) -> Tensor:
        """What is logged of every round, [K, n]."""
        return torch.cat([self.numbers, self.statistics], 1)

    def begin(self) -> None:
        """Before the first round: nothing is left of earlier ones."""

    def finish(self) -> None:
        """After the last round."""
        self.cell.finish(self.rows.learner.engine)

    def _learn(self) -> list[Call | Direct]:
        rows, made, parts = self.rows, self.rows.acted.made, self.rows.acted.parts
        K, T, B, M = rows.rounds, rows.steps, rows.B, rows.steps * rows.B
        objective = rows.learner.objective
        assert isinstance(objective, ActorCritic)

        def each(tensor: Tensor) -> Each:
            return Each(tensor[: K * T].unflatten(0, (K, T)))

        logits, action = by_round(parts.policy_TBP, K, T), each(rows.acted.actions.drawn_TB)
        value = each(parts.value_TB)
        log_prob, bootstrap = each(rows.log_prob), Each(parts.value_TB[T::T])
        entropy, target, advantage, error = (rows.empty(M) for _ in range(4))
        weight, zero = each(rows.acted.weight_TB), torch.zeros(M, dtype=rows.dtype)
        slopes = [rows.empty(M) for _ in range(3)]
        ended = each(made.terminated), each(made.truncated), each(rows.acted.final_value)
        numbers = Each(self.numbers[:, :1]), Each(self.numbers[:, 1:])
        self.hooks = rows.strategy_calls(numbers[0], Each(self.numbers))
        changing = "before_loss" in self.hooks
        weights = objective.value_weight, rows.entropy_weight if changing else objective.entropy_weight
        gammas = objective.gamma, objective.lam, objective.rho_bar, objective.c_bar, objective.advantage_lam
        calls: list[Call | Direct] = [
            clear(rows.gradients.flat),
            *self.hooks.get("before_loss", []),
            self.likelihood.forward(logits, action, log_prob, entropy),
            vtrace_call(T, B, gammas, zero, each(made.reward), value, bootstrap, *ended, target, advantage),
            loss_call(
                M,
                weights,
                (log_prob, entropy, value, advantage, target, weight, rows.acted.total),
                (numbers[0], Each(self.statistics), error, *slopes),
            ),
            *self._back(logits, action, entropy, slopes),
            *self.hooks.get("extra_loss", []),
            *self.hooks.get("transform_gradients", []),
        ]
        return [*calls, adam.clip_call(rows.gradients.flat, rows.learner.max_grad_norm, numbers[1])]

    def _end(self) -> list[Call | Direct]:
        """The step and what comes after it."""
        rows, after = self.rows, self.hooks
        calls = [rows.step(Each(self.numbers)), *after.get("transform_update", []), *after.get("after_update", [])]
        frames = rows.steps * rows.B
        return [*calls, hooks.count_call(rows.gradients.flat, frames, rows.step_count)] if after else [*calls]

    def _back(self, logits: Each, action: Each, entropy: Tensor, slopes: Sequence[Tensor]) -> list[Call | Direct]:
        """From the slopes of log-probability, entropy and value to the gradients of all parameters; moves the carry."""
        rows, parts, engine, grads = self.rows, self.rows.acted.parts, self.rows.learner.engine, self.rows.gradients
        K, M, policy, actor = rows.rounds, rows.steps * rows.B, rows.policy, self.likelihood
        d_read, dy = rows.empty(M, actor.outputs + 1), rows.empty(M, policy.cell.output_size)
        encoder = parts.encoder.backward
        dx = rows.empty(M, policy.cell.input_size) if encoder else None
        calls: list[Call | Direct] = [
            *actor.backward(logits, action, entropy, slopes, d_read, grads.named),
            acting.place_rows(slopes[2][:, None], d_read[:, actor.outputs :]),
            *self.cell.before,
            *self.read.backward(self.cell.outputs, d_read, d_read, d_read, *grads.read, dy, add=False),
            *self.cell.backward(dy, grads.below("cell."), dx),
            *self.cell.carry(engine, grads.below("cell.")),
        ]
        if encoder and dx is not None:
            calls += encoder(K, dx[:, : policy.encoder.output_size], grads.below("encoder."))
        return calls
