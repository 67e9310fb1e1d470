"""Supervised learning's part of a plan: one update from a chunk of predictions, as calls (see `planned.plan`).

The cross-entropy is minus the log-probability of what was to be predicted, so its gradient goes back as that of an
action does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from lifelong.agent.modules.heads import Gaussian
from lifelong.agent.runtime.planned.actor_critic import OneUpdate
from lifelong.agent.strategies.explore import Explore
from lifelong.kernels import adam, replay
from lifelong.kernels.dense import clear, copy
from lifelong.kernels.loop import Call, Direct, Each, by_round
from lifelong.kernels.prediction import prediction_call

if TYPE_CHECKING:
    from lifelong.agent.runtime.learner import Learner


class Prediction(OneUpdate):
    """The update of every round, from predicted categories."""

    METRICS: ClassVar[tuple[str, ...]] = ("loss/total", "gradient/norm", "loss/accuracy", "loss/error")

    @staticmethod
    def refusal(learner: Learner, copies: int) -> str | None:
        """What keeps the objective from a plan: deviations that nothing is learned about, and an entropy that has no
        weight."""
        if isinstance(learner.policy.distribution, Gaussian):
            return "predictions of numbers"
        explores = any(isinstance(each, Explore) for each in learner.strategies)
        return "a bonus for the entropy of predictions" if explores else None

    def _learn(self) -> list[Call | Direct]:
        rows, made, parts, replayed = self.rows, self.rows.acted.made, self.rows.acted.parts, self.replayed
        K, T, B, M = rows.rounds, rows.steps, rows.B, rows.steps * rows.B
        many = M if replayed is None else M + replayed.M
        logits, target = by_round(parts.policy_TBP, K, T), rows.each(made.info["target"])
        entropy, log_prob, counted, own = rows.empty(many), rows.empty(many), rows.empty(many), rows.empty(1)
        slopes, total = [rows.empty(many), torch.zeros(many), torch.zeros(many)], rows.empty(1)
        numbers, statistics = (Each(self.numbers[:, :1]), Each(self.numbers[:, 1:])), Each(self.statistics)
        self.hooks = rows.strategy_calls(numbers[0], Each(self.numbers))
        asked, ones = rows.each(made.info["target_mask"]), torch.ones(B, dtype=rows.dtype)
        weight, plain = rows.each(rows.acted.weight_TB), rows.empty(T, B)
        acted = rows.each(rows.acted.actions.drawn_TB)
        calls: list[Call | Direct] = [
            clear(rows.gradients.flat),
            clear(slopes[2]),  # of the values, to which a strategy may add
            self.likelihood.forward(logits, acted, log_prob[:M], entropy[:M]),
            copy(log_prob[:M], rows.each(rows.log_prob)),  # of what was done
            self.likelihood.forward(logits, target, log_prob[:M], entropy[:M]),
            replay.weigh_call(B, weight, asked, ones, plain, own, counted[:M]),
        ]
        if replayed is not None:
            calls += replayed.predictions(log_prob[M:], entropy[M:], counted[M:])
        A, outcome = self.likelihood.outputs, (statistics, numbers[0])
        said = logits, target, log_prob[:M]
        calls += [
            replay.total_call(counted, total),
            prediction_call(said, (counted[:M], total), slopes[0][:M], A, outcome, add=False),
        ]
        if replayed is not None:
            again = replayed.policy, replayed.action, log_prob[M:]
            calls.append(prediction_call(again, (counted[M:], total), slopes[0][M:], A, outcome, add=True))
        live = (logits, target, entropy[:M]), [x[:M] for x in slopes]
        calls += self.live.back(*live, rows.gradients, rows.learner.engine)
        if replayed is not None:
            calls += replayed.back(entropy[M:], [x[M:] for x in slopes], total, numbers[0])
        calls += [*self.hooks.get("extra_loss", []), *self.hooks.get("transform_gradients", [])]
        return [*calls, adam.clip_call(rows.gradients.flat, rows.learner.max_grad_norm, numbers[1])]
