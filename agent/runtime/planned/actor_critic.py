"""Actor-critic's part of a plan: one update from a chunk, as calls (see `planned.plan`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.runtime.planned import backward
from lifelong.agent.runtime.planned.block import Block
from lifelong.agent.runtime.planned.likelihood import Likelihood
from lifelong.agent.runtime.planned.replay import Replayed, Written
from lifelong.agent.strategies.planned import HookCalls
from lifelong.kernels import adam, hooks, replay
from lifelong.kernels.actor_critic_loss.cpu import loss_call
from lifelong.kernels.advantages.cpu import vtrace_call
from lifelong.kernels.dense import Dense, clear, copy
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
    #: whether it learns from what is replayed, too
    replays: ClassVar[bool] = True
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
        self.likelihood, read = Likelihood(rows.policy, rows.steps * rows.B), Dense(*parts.read_out)
        self.live = Block(rows.policy, K, self.likelihood, read, self.cell, parts.encoder)
        told = rows.told
        self.written = None if told is None else Written(rows, told)
        self.replayed = None if told is None or not told.drawing else Replayed(rows, told, parts.read_out)
        learn = self._learn()  # adds to what has to be packed
        self.pack = [*self.cell.pack, *read.pack(forward=False)]
        if self.replayed is not None:
            self.pack += self.replayed.pack
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
        """Before the first round: nothing is left of earlier ones; what is replayed is drawn."""
        if self.written is not None:
            drawn = self.written.begin(int(self.rows.step_count))
            if self.replayed is not None:
                self.replayed.index.copy_(torch.cat(drawn).view_as(self.replayed.index))

    def finish(self) -> None:
        """After the last round."""
        self.cell.finish(self.rows.learner.engine)
        if self.written is not None:
            self.written.finish()
        if self.replayed is not None:
            self.replayed.finish()

    def _learn(self) -> list[Call | Direct]:
        rows, made, parts = self.rows, self.rows.acted.made, self.rows.acted.parts
        K, T, B, M = rows.rounds, rows.steps, rows.B, rows.steps * rows.B
        objective, replayed = rows.learner.objective, self.replayed
        assert isinstance(objective, ActorCritic)
        each, many = rows.each, M if replayed is None else M + replayed.M
        logits, action = by_round(parts.policy_TBP, K, T), each(rows.acted.actions.drawn_TB)
        log_prob, value, bootstrap = each(rows.log_prob), each(parts.value_TB), Each(parts.value_TB[T::T])
        entropy, target, advantage, error, *slopes = (rows.empty(many) for _ in range(7))
        weight, total = each(rows.acted.weight_TB), rows.acted.total
        ended = each(made.terminated), each(made.truncated), each(rows.acted.final_value)
        numbers = Each(self.numbers[:, :1]), Each(self.numbers[:, 1:])
        self.hooks = rows.strategy_calls(numbers[0], Each(self.numbers))
        changing = "before_loss" in self.hooks and replayed is None
        weights = objective.value_weight, rows.entropy_weight if changing else objective.entropy_weight
        gammas = objective.gamma, objective.lam, objective.rho_bar, objective.c_bar, objective.advantage_lam
        calls: list[Call | Direct] = [
            clear(rows.gradients.flat),
            *self.hooks.get("before_loss", []),
            self.likelihood.forward(logits, action, log_prob, entropy[:M]),
            vtrace_call(
                *(T, B, gammas, torch.zeros(M, dtype=rows.dtype), each(made.reward), value, bootstrap, *ended),
                *(target[:M], advantage[:M]),
            ),
        ]
        inputs: tuple[Each | Tensor, ...] = (log_prob, entropy, value, advantage, target, weight, total)
        if replayed is not None:  # all steps side by side
            said, counted, total = rows.empty(2, many), rows.empty(many), rows.empty(1)
            joined = (log_prob, said[0]), (value, said[1]), (weight, counted)
            calls += [copy(one, to[:M]) for one, to in joined]
            rest = said[0], said[1], entropy, target, advantage, counted
            calls += [*replayed.returns(gammas, *(x[M:] for x in rest)), replay.total_call(counted, total)]
            inputs = said[0], entropy, said[1], advantage, target, counted, total
        calls += [
            loss_call(many, weights, inputs, (numbers[0], Each(self.statistics), error, *slopes)),
            *([] if replayed is None else self._live_entropy(entropy[:M], weight, total, slopes[1])),
            *self.live.back(
                (logits, action, entropy[:M]), [x[:M] for x in slopes], rows.gradients, rows.learner.engine
            ),
        ]
        if replayed is not None:
            calls += replayed.back(entropy[M:], [x[M:] for x in slopes], total, numbers[0])
        calls += [*self.hooks.get("extra_loss", []), *self.hooks.get("transform_gradients", [])]
        return [*calls, adam.clip_call(rows.gradients.flat, rows.learner.max_grad_norm, numbers[1])]

    def _live_entropy(self, entropy: Tensor, weight: Each, total: Tensor, d_entropy: Tensor) -> list[Call | Direct]:
        """What strategies add to the weight of the entropy holds for live steps alone."""
        if "before_loss" not in self.hooks:
            return []
        before, now = self.rows.learner.objective.entropy_weight, self.rows.entropy_weight  # type: ignore[attr-defined]
        return [replay.more_entropy_call(before, now, entropy, weight, total, d_entropy, Each(self.numbers[:, :1]))]

    def _end(self) -> list[Call | Direct]:
        """The step and what comes after it."""
        rows, after = self.rows, self.hooks
        calls = [rows.step(Each(self.numbers)), *after.get("transform_update", []), *after.get("after_update", [])]
        calls += [] if self.written is None else self.written.calls
        frames = rows.steps * rows.B
        return [*calls, hooks.count_call(rows.gradients.flat, frames, rows.step_count)] if after else [*calls]
