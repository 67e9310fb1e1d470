"""Replay in a plan: sequences that are drawn, learned from beside the live copies, and written, as calls (see
`planned.plan`).

Which rows of the buffer are drawn and written depends on nothing that is learned, so it is known ahead for all rounds,
in the order of the chunks one by one. The live copies need no forward pass, as acting has left theirs; the replayed
ones have passes of their own. All steps meet in the loss, the live ones first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lifelong.agent.modules.heads import NEGATIVE, Gaussian
from lifelong.agent.runtime.planned import backward
from lifelong.agent.runtime.planned.acting import Actions, CompiledActing
from lifelong.agent.runtime.planned.block import Block
from lifelong.agent.runtime.planned.likelihood import Likelihood
from lifelong.agent.runtime.rollout import Rollout
from lifelong.agent.strategies.planned import Replays
from lifelong.kernels import acting, replay
from lifelong.kernels.advantages.cpu import vtrace_call
from lifelong.kernels.dense import Dense, copy
from lifelong.kernels.loop import Call, Direct, Each, fixed
from lifelong.replay.chunk import copies_dim

if TYPE_CHECKING:
    from lifelong.agent.runtime.planned.plan import Rounds


def fits(told: Replays, rollout: Rollout) -> bool:
    """Whether chunks can be stored as they are acted: some are, with the same masks and observations."""
    stored = told.buffer.rows.rows
    masked, kind = rollout.env.action_mask_BA.shape[-1], rollout.obs.dtype
    return stored is not None and stored.action_mask.shape[-1] == masked and stored.obs.dtype == kind


class Written:
    """The rounds' chunks as they go into the buffer.

    Args:
        rows: the rounds.
        told: what is replayed.

    Attributes:
        calls: after the optimiser's step.
        index: row of the buffer for every copy of every round, [K, B]; -1: none.
    """

    def __init__(self, rows: Rounds, told: Replays) -> None:
        self.rows, self.told, K = rows, told, rows.rounds
        self.index = torch.empty(K, rows.B, dtype=torch.int64)
        acted, made, stored = rows.acted, rows.acted.made, told.buffer.rows.rows
        assert stored is not None
        self.stored, T, parts = stored, rows.steps, acted.parts
        shown = parts.action_TBF, parts.reward_TB
        #: what the policy is shown where it reads neither action nor reward: the same at every step
        self.still = stored.previous_action.new_empty(rows.B, stored.previous_action.shape[-1]), rows.empty(rows.B)
        same: dict[str, Tensor] = {
            "task": parts.task_B,
            "action_mask": parts.mask_BA,
        }
        names = "previous_action", "previous_reward"
        same |= {name: x for name, x, read in zip(names, self.still, shown, strict=True) if read is None}
        each_step: dict[str, Tensor | None] = {
            "obs": made.obs,
            "previous_action": shown[0],
            "previous_reward": shown[1],
            "is_init": made.is_init,
            "action": acted.actions.drawn_TB,
            **{name: getattr(made, name) for name in ("reward", "terminated", "truncated")},
            "log_prob": rows.log_prob,
            "policy": parts.policy_TBP,
            "value": parts.value_TB,
            "final_value": acted.final_value,
            "weight": acted.weight_TB,
            **{name: made.info[name] for name in ("target", "target_mask") if name in made.info},
        }
        once = {
            "next_obs": made.obs[T::T],
            "next_is_init": made.is_init[T::T],
            "bootstrap_value": parts.value_TB[T::T],
            "state": parts.state_TBS[: K * T : T],
        }
        each = rows.each
        fields: dict[str, Each | Tensor] = {name: x.expand(T, *x.shape) for name, x in same.items()}
        fields |= {name: each(x) for name, x in each_step.items() if name not in same and x is not None}
        fields |= {name: Each(x[:K]) for name, x in once.items()}
        index = Each(self.index)
        self.calls = [
            replay.put_call(index, field, getattr(stored, name), copies_dim(name))
            for name, field in fields.items()
            if getattr(stored, name).numel()
        ]
        if stored.slots:
            ended = each(made.truncated), each(made.terminated), each(made.final_obs)
            self.calls.append(replay.put_slots_call(index, *ended, stored.final_step, stored.final_obs))

    def begin(self, first: int) -> list[Tensor]:
        """Choose the rows that are written, and between them those that are drawn, of all rounds from step `first` on.

        Returns:
            The rows of every draw.
        """
        rows, buffer, drawn = self.rows, self.told.buffer, list[Tensor]()
        inputs = rows.acted.first
        self.still[0].copy_(inputs.previous_action)
        self.still[1].copy_(inputs.previous_reward)
        nothing = torch.zeros(rows.B, dtype=torch.int64)
        self.index.fill_(-1)
        for k in range(rows.rounds):
            now = first + k * rows.steps * rows.B
            if self.told.drawing:
                drawn += [buffer.draw(count, now) for count, _ in self.told.draws]
                age = now - buffer.stamp[drawn[-1]].double().mean()
                self.told.metrics["replay_age"] = age
            placed = buffer.place(nothing, nothing, now)
            if placed:
                self.index[k, list(placed.values())] = torch.tensor(list(placed))
        return drawn

    def finish(self) -> None:
        """Note how many truncated steps the chunks have had that were written."""
        made, K, T = self.rows.acted.made, self.rows.rounds, self.rows.steps
        cut = made.truncated[: K * T] & ~made.terminated[: K * T]
        if self.stored.slots and cut.any():
            most = cut.unflatten(0, (K, T)).sum(1).amax(1)[(self.index >= 0).any(1)]
            self.told.buffer.rows.slots = max(self.told.buffer.rows.slots, *most.tolist(), 0)


class Replayed:
    """T steps of R replayed copies, M in all: drawn, and passed forward and back.

    Args:
        rows: the rounds.
        told: what is replayed.
        read_out: weight and bias of actor and critic side by side, which acting packs.

    Attributes:
        index: rows of the buffer that are drawn in every round, [K, R].
        pack: what reads the parameters.
        policy, value: what the policy says, [M, P] and [M].
    """

    def __init__(self, rows: Rounds, told: Replays, read_out: tuple[Tensor, Tensor]) -> None:
        self.rows, self.told, policy, T = rows, told, rows.policy, rows.steps
        stored = told.buffer.rows.rows
        assert stored is not None
        R = self.R = sum(count for count, _ in told.draws)
        M, self.M, F = T * R, T * R, policy.encoder.output_size
        self.stored, self.index = stored, torch.empty(rows.rounds, R, dtype=torch.int64)
        self.factor = torch.cat([torch.full((count,), factor, dtype=rows.dtype) for count, factor in told.draws])
        seen = self.seen = backward.room(policy.cell, T, R)
        cell, read = backward.calls_of(policy.cell, seen, again=True), Dense(*read_out, rows=M)
        #: calls in the order in which they are made
        self.calls: list[Call | Direct] = []
        obs = self._take("obs")
        x = seen.x_TBD.view(1, M, -1)
        encoder = policy.encoder.act_calls(obs.view(1, M, *obs.shape[2:]), x[..., :F])
        self._take("is_init", seen.is_init_TB)
        self._take("state", seen.state_TBS[0])
        self._beside(seen.x_TBD[..., F:])
        y, said = cell.outputs.rows[0] if isinstance(cell.outputs, Each) else cell.outputs, rows.empty(M, read.units)
        self.calls += [fixed(call) for call in (*encoder.step, *cell.forward(), read.forward(y, said))]
        self.policy, self.value = rows.empty(M, policy.distribution.size), rows.empty(M)
        self._heads(said)
        self.block = Block(policy, 1, Likelihood(policy, M), read, cell, encoder)
        self.pack = [fixed(call) for call in (*encoder.pack, *cell.pack, *read.pack())]
        self.own, self.plain, self.means = rows.empty(1), rows.empty(T, R), torch.zeros(2, dtype=rows.dtype)

    def returns(
        self,
        gammas: tuple[float, ...],
        log_prob: Tensor,
        value: Tensor,
        entropy: Tensor,
        target: Tensor,
        advantage: Tensor,
        weight: Tensor,
    ) -> list[Call | Direct]:
        """The forward pass and V-trace, whose numbers are gamma, lam, rho_bar, c_bar and mix; all else [M] is
        written."""
        T, R, ratio = self.rows.steps, self.R, self.rows.empty(self.M)
        self.action, reward, known = (self._take(name) for name in ("action", "reward", "log_prob"))
        ended = self._take("terminated"), self._take("truncated")
        self.calls += [
            self.block.likelihood.forward(self.policy, self.action, log_prob, entropy),
            replay.subtract_call(log_prob, known, ratio),
        ]
        bootstrap, final = self._after(reward)
        inputs = ratio, reward, self.value, bootstrap, *ended, final
        self.calls += [vtrace_call(T, R, gammas, *inputs, target, advantage), copy(self.value, value)]
        self._weigh(None, weight)
        return self.calls

    def predictions(self, log_prob: Tensor, entropy: Tensor, weight: Tensor) -> list[Call | Direct]:
        """The forward pass, and log-probabilities of what was to be predicted; all [M] are written."""
        self.action, asked = self._take("target"), self._take("target_mask")
        self.calls.append(self.block.likelihood.forward(self.policy, self.action, log_prob, entropy))
        self._weigh(asked, weight)
        return self.calls

    def back(self, entropy: Tensor, slopes: list[Tensor], total: Tensor, loss: Each) -> list[Call | Direct]:
        """From the slopes of log-probability, entropy and value [M] to the gradients; what the policy is held to is
        added to them and to `loss`. `total` is the weight of all steps."""
        self.calls = []
        held = self._match(slopes[2], total, loss)
        said, gradients = (self.policy, self.action, entropy), self.rows.gradients
        back = self.block.back(said, slopes, gradients, held=held)
        return [*self.calls, *(call if any(call is each for each in held) else fixed(call) for call in back)]

    def finish(self) -> None:
        """After the last round: what the strategy reports."""
        if self.told.match is not None:
            self.told.metrics |= dict(zip(self.told.match.names, self.means.clone().unbind(), strict=True))

    def _take(self, name: str, to: Tensor | None = None) -> Tensor:
        """A field of what is drawn, [T, R, ...] or [R, ...]."""
        stored, dim = getattr(self.stored, name), copies_dim(name)
        if to is None:
            to = stored.new_empty(*stored.shape[:dim], self.R, *stored.shape[dim + 1 :])
        if to.numel():  # episodes that are never cut off have no last observations
            self.calls.append(replay.take_call(Each(self.index), stored, to, dim))
        return to

    def _beside(self, columns: Tensor) -> None:
        """What the cell reads beside the features."""
        policy, first = self.rows.policy, 0
        if policy.with_action:
            first = policy.distribution.feature_size
            self._take("previous_action", columns[..., :first])
        if policy.with_reward:
            self._take("previous_reward", columns[..., first])
            first += 1
        self.task = self._take("task")
        if policy.tasks_shown:
            self.calls.append(replay.one_hot_call(self.task, columns[..., first:]))

    def _heads(self, said: Tensor) -> None:
        """Parameters and values from the read-out."""
        policy, distribution = self.rows.policy, self.rows.policy.distribution
        masked = self.stored.action_mask.shape[-1]
        mask = self._take("action_mask").view(self.M, -1) if masked else torch.empty(self.M, 0, dtype=torch.bool)
        log_std = policy.actor.log_std.detach() if isinstance(distribution, Gaussian) else None
        counts, to = (policy.actor.tasks, policy.values), (self.policy[None], self.value[None])
        self.calls.append(fixed(acting.heads(said[None], self.task.view(-1), mask, log_std, counts, NEGATIVE, *to)))

    def _after(self, reward: Tensor) -> tuple[Tensor, Tensor]:
        """The critic's values of what came after the steps: [R], and [T, R] where an episode was cut off."""
        rows, policy, stored, R, S = self.rows, self.rows.policy, self.stored, self.R, self.stored.slots
        distribution, A = policy.distribution, (1 + S) * R
        obs, nothing = stored.obs.new_zeros(1, A, *stored.obs.shape[2:]), torch.zeros(1, A, dtype=torch.bool)
        drawn = Actions(*[stored.action.new_zeros(1, A, *stored.action.shape[2:])] * 3)
        given = obs, nothing, rows.empty(1, A), drawn, None, None
        one = CompiledActing(policy, *given, masked=0, scaled=False, beyond=True)
        self._take("next_obs", obs[0, :R])
        step, is_init, final = self._take("final_step"), self._take("next_is_init"), rows.empty(rows.steps, R)
        if S:
            self._take("final_obs", obs[0, R:].view(S, R, *obs.shape[2:]))
        width = distribution.feature_size if policy.with_action else 0
        bounds = rows.empty(2, width)
        if isinstance(distribution, Gaussian) and width:
            bounds.copy_(torch.stack([distribution.low, distribution.high]))
        beside = policy.encoder.output_size, width, policy.with_reward, policy.tasks_shown
        seen = step, is_init, self.seen.state_TBS, self.action, reward, self.task
        to = one.state_TBS[0], one.x_TBD[0], nothing[0], one.task_B
        self.pack += map(fixed, one.pack)
        self.calls += [
            replay.following_call(*beside, seen, bounds, to),
            *map(fixed, one.before[:-1]),
            replay.place_final_call(step, one.value_TB[0, R:], final),
        ]
        return one.value_TB[0, :R], final

    def _weigh(self, asked: Tensor | None, to: Tensor) -> None:
        """How much every step counts, in the objective and by itself."""
        stored = self._take("weight")
        self.calls.append(
            replay.weigh_call(self.told.draws[0][0], stored, asked, self.factor, self.plain, self.own, to)
        )

    def _match(self, d_value: Tensor, total: Tensor, loss: Each) -> list[Call | Direct]:
        """What the policy is held to, on the copies of the first draw."""
        match, rows, policy, T, R = self.told.match, self.rows, self.rows.policy, self.rows.steps, self.R
        if match is None:
            return []
        then = self._take("policy"), self._take("value")
        gaussian = isinstance(policy.distribution, Gaussian)
        kind = "squared" if match.distance == "squared" else "gaussians" if gaussian else "categories"
        spread = rows.gradients.named["actor.log_std"] if gaussian else None
        d_policy = self.block.likelihood.slopes
        said = self.policy.view(T, R, -1), then[0], self.value.view(T, R), then[1]
        counted = self.plain, self.own, total if match.of_all else self.own
        slopes = d_policy.view(T, R, -1), spread, d_value
        count = self.told.draws[0][0]
        return [replay.match_call(kind, count, match.weights, said, counted, slopes, self.means, loss)]  # type: ignore[arg-type]
