"""The plan of an agent in somebody else's loop: one call an action, learning in compiled calls.

What a chunk costs around the arithmetic (some milliseconds of Python and torch) is what limits an agent that acts and
learns step by step. Here the rows of a chunk (`planned.rows`) are filled from outside, and what `act` does is

    hear     observation, reward and flags go into row t, and into row t + 1 what its action is shown of them
    learn    after T rows, in one call: bootstrap, loss, backward pass, carry, optimiser; of an agent that is frozen the
             carry alone. The last row becomes the first
    decide   the parameters are read (once a chunk), and the policy acts on the row

The result is that of the way through `OutsideRollout` to rounding. The lane begins and is left between two steps:
`sync` writes what there is where everybody else looks for it, the records of a chunk under way included, and `enter`
goes on from there to the bit.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lifelong.agent.cells.base import ElementwiseCell
from lifelong.agent.runtime.finite import NotFinite
from lifelong.agent.runtime.outside import OutsideRollout
from lifelong.agent.runtime.planned import backward, rows
from lifelong.agent.runtime.planned.acting import actions
from lifelong.agent.runtime.planned.cell_calls import CellCalls
from lifelong.agent.runtime.planned.kept import Kept
from lifelong.agent.runtime.planned.plan import UPDATES, Rounds, hook_refusal, key_of, ready, update_refusal
from lifelong.agent.runtime.planned.rows import ActedRows
from lifelong.agent.runtime.planned.step import FlatGradients
from lifelong.envs.compiled import CompiledSteps
from lifelong.kernels.acting import place_rows
from lifelong.kernels.dense import copy
from lifelong.kernels.loop import Call, Direct, Prepared, Program, Segment, Watched

if TYPE_CHECKING:
    from lifelong.agent.runtime.trainer import Trainer

#: of all copies [B], or of one environment
Number = float | np.ndarray
Flag = Any


def refusal(trainer: Trainer) -> str | None:
    """What keeps an agent out of the lane, in a few words; None if nothing does."""
    rollout, learner, schedules = trainer.rollout, trainer.learner, trainer.schedules
    if schedules.ramps or schedules.lengths:
        return "hyper-parameters that change"
    if rollout.keep:  # type: ignore[attr-defined]
        return "chunks that are kept for a strategy"
    if learner.objective.needs_target:
        return "predictions"
    found = hook_refusal(learner, trainer.strategies, watched=trainer.detection is not None)
    return found or update_refusal(learner, trainer.copies) or rows.refusal(rollout, OutsideRollout)


class Lane:
    """Chunks of copies that are stepped outside.

    Args:
        trainer: of an agent whose `refusal` is None.
        batch: its copies have an axis of their own, and act on the last observation of an episode, too.

    Attributes:
        running: whether the rows are what goes on; else `OutsideRollout` is.
        waiting: whether an action waits for its outcome.
    """

    def __init__(self, trainer: Trainer, *, batch: bool) -> None:
        assert isinstance(trainer.rollout, OutsideRollout)
        self.trainer, self.rollout, self.batch = trainer, trainer.rollout, batch
        self.weighs = UPDATES[type(trainer.learner.objective)].weighs
        self.running, self.waiting, self.t = False, False, 0
        self._kept: Kept[LiveRows] = Kept()

    def ready(self, *, frozen: bool = False) -> bool:
        """Whether the lane can be entered, or gone on in: nothing unusual comes next, and the optimiser has its state
        if it is to step."""
        rollout = self.rollout
        able = rows.ready(rollout) if frozen else ready(rollout, self.trainer.learner)
        return (
            able and not rollout.forgets and rollout.lanes is None and (self.weighs or not bool(rollout.over_B.any()))
        )

    @torch.no_grad()
    def enter(self, steps: int) -> None:
        """Go on from where the rollout is, in a chunk of T steps, some of which it may have made."""
        rollout, learner = self.rollout, self.trainer.learner
        key = key_of(rollout, learner, 1, steps)
        made = self._kept.get_or_build(key, lambda: LiveRows(self.trainer, steps, batch=self.batch))
        assert made is not None
        self.rows, self.running, self.steps = made, True, steps
        self.t, self.waiting = len(rollout.records), rollout.decided is not None
        now = {name: getattr(rollout, name) for name in ("obs", "previous_action", "previous_reward", "is_init")}
        under_way = rollout.decided or {**now, "state": rollout.state_BS}
        made.begin([*rollout.records, under_way], decided=self.waiting)

    @torch.no_grad()
    def decide(self) -> Tensor:
        """The actions [B, ...] on the row under way, whose observations are there."""
        self.rows.decide(self.t)
        self.waiting = True
        return self.rows.acted.actions.clipped_TB[self.t]

    @torch.no_grad()
    def hear(
        self, reward: Number, terminated: Flag, truncated: Flag, last: Tensor | None = None, *, frozen: bool = False
    ) -> None:
        """What came of the actions; the observations are in the next row. An agent that is `frozen` does not learn from
        a chunk that is complete.

        Args:
            reward, terminated, truncated: [B], or of one environment.
            last: [B, ...], the last observation where an episode ended; None: it is the one in the next row.
            frozen: see above.

        Raises:
            NotFinite: a loss or gradient is not; the lane has been left.
        """
        self.rows.hear(self.t, reward, terminated, truncated, last)
        self.t, self.waiting = self.t + 1, False
        if self.t == self.steps:
            if frozen:
                self.rows.live_through()
            else:
                self._learn()
                self.trainer.frames = self.steps * self.trainer.copies
            self.t = 0
            self.trainer.step += self.steps * self.trainer.copies
        if self.rows.over is not None and not self.weighs:
            self.leave()

    def _learn(self) -> None:
        learner, rounds = self.trainer.learner, self.rows.rounds
        update = rounds.update
        rounds.step_count.fill_(self.trainer.step)
        finite = self.rows.learn()
        learner.steps += len(update.numbers)
        torch.autograd.graph.increment_version(learner.parameters)
        if not finite:
            self.leave()
            self.rollout.records = []
            learner.finite.before_learning(rounds.experience(0, self.steps))
            raise NotFinite("loss" if not update.numbers[:, 0].isfinite().all() else "gradient")

    @torch.no_grad()
    def sync(self) -> None:
        """Write what there is into the rollout; the lane goes on."""
        if not self.running:
            return
        rollout, made = self.rollout, self.rows
        rollout.records = [made.record(t) for t in range(self.t)]
        now = made.seen(self.t)
        rollout.decided = {**now, **made.said(self.t)} if self.waiting else None
        for name in ("obs", "previous_action", "previous_reward", "is_init"):
            setattr(rollout, name, now[name])
        rollout.state_BS = made.acted.parts.state_TBS[self.t + self.waiting].clone()
        rollout.return_B = torch.from_numpy(made.returned.copy())
        rollout.over_B = rollout.nowhere if made.over is None else torch.from_numpy(made.over.copy())

    def leave(self) -> None:
        """Let the rollout go on from here."""
        self.sync()
        self.running = False


class LiveRows:
    """The rows of one chunk, and the calls on them.

    Args:
        trainer: of the agent.
        steps: T.
        batch: see `Lane`.
    """

    def __init__(self, trainer: Trainer, steps: int, *, batch: bool) -> None:
        rollout, T, B = trainer.rollout, steps, trainer.copies
        assert isinstance(rollout, OutsideRollout)
        self.rollout, self.learner, self._record, self._batch = rollout, trainer.learner, trainer.record, batch
        drawn = actions(rollout.policy, T, B, rescaled=rollout.env.action_border() is not None)
        self.acted = acted = ActedRows(rollout, 1, T, _empty(rollout, T), drawn)
        parts, made, dtype = acted.parts, acted.made, acted.dtype
        self._before, self._after = Prepared(parts.before, dtype), Prepared(parts.after, dtype)
        self._said = Prepared(parts.before[:-1], dtype)
        self._pack = Prepared(acted.pack, dtype)
        reward_TB1 = None if parts.reward_TB is None else parts.reward_TB[..., None]
        columns = [each for each in (parts.action_TBF, reward_TB1) if each is not None]
        shift: list[Call | Direct] = [copy(each[T], each[0]) for each in (made.obs, made.is_init, parts.state_TBS)]
        shift += [place_rows(each[T], each[0]) for each in columns]
        self._shift = Prepared(shift, dtype)
        self._packed = False
        # the same memory, for numbers one at a time
        self._reward, self._returns = made.reward.numpy(), made.episode_return.numpy()
        self._ended, self._weight = (made.terminated.numpy(), made.truncated.numpy()), acted.weight_TB.numpy()
        self._init, self._obs, self._final = made.is_init.numpy(), made.obs.numpy(), made.final_obs.numpy()
        self._given = self._obs if batch else self._obs[:, 0]
        #: whether every step so far counts
        self._whole = True
        #: return of the episode under way of every copy
        self.returned = np.zeros(B, np.float32)
        #: copies that act on the last observation of an episode, which counts for nothing; None: there are none
        self.over: np.ndarray | None = None
        #: of the episodes that ended in this chunk
        self._ended_with: list[float] = []
        #: the record's sums as one tensor, and the dict that has its parts
        self._sums, self._sums_of = torch.empty(0), {"": torch.empty(0)}

    @cached_property
    def rounds(self) -> Rounds:
        """What learns from the rows; an agent that is frozen from the beginning has no optimiser's state to step by."""
        return Rounds(self.learner, self.acted)

    @cached_property
    def _learn(self) -> Program:
        acted, update = self.acted, self.rounds.update
        rest = [Segment(update.pack), *acted.segments[1:], *update.segments]
        watched = Watched(len(acted.segments) + update.guard, update.numbers)
        return Program(1, rest, watched, acted.dtype)

    @cached_property
    def _carry(self) -> tuple[CellCalls, Prepared]:
        """What moves the carry: calls that read what a backward pass leaves, so there is one, of slopes of zero."""
        parts, T, policy = self.acted.parts, self.acted.steps, self.learner.policy
        seen = backward.CellRows(1, parts.x_TBD[:T], parts.state_TBS, self.acted.made.is_init, parts.kept)
        cell = backward.calls_of(policy.cell, seen)
        slopes = torch.zeros(T, policy.cell.output_size, dtype=self.acted.dtype)
        grads = FlatGradients(self.learner.named).below("cell.")
        before = [*cell.before, *cell.backward(slopes, grads, None)]
        carry = cell.carry(self.learner.engine, grads)
        return cell, Prepared([*cell.pack, *before, *carry] if carry else [], self.acted.dtype)

    # ---- one step ------------------------------------------------------------------------------------------------

    def put(self, t: int, obs: Any) -> bool:
        """Put an observation into row t: whether that went; else it has another shape or type, or is not finite."""
        row = self._given[t]
        if type(obs) is not np.ndarray or obs.shape != row.shape or obs.dtype.kind != "f" or row.dtype.kind != "f":
            return False
        row[...] = obs
        flat = row.reshape(-1)
        return math.isfinite(float(flat.dot(flat)))

    def decide(self, t: int) -> None:
        """Act on row t."""
        if not self._packed:
            self._pack.run()
            self._packed = True
        self.acted.parts.draw(t)
        self._before.run(1, t)

    def hear(self, t: int, reward: Number, terminated: Flag, truncated: Flag, last: Tensor | None) -> None:
        """What came of the actions of row t (see `Lane.hear`); the observations are in row t + 1."""
        over, done = self.over, terminated | truncated
        if over is not None:  # what these did counts for nothing
            live = ~over
            reward = np.where(live, reward, 0)
            terminated, truncated, done = terminated & live, truncated & live, done & live
            self._weight[t], self._whole = live, False
        with np.errstate(over="ignore"):  # too large for the log, as in torch
            self.returned += np.asarray(reward, np.float32)
        self._reward[t], self._returns[t] = reward, self.returned
        self._ended[0][t], self._ended[1][t] = terminated, truncated
        self._init[t + 1], self.over = over is not None and over, None
        if done.any() if self._batch else done:
            ended = np.flatnonzero(done)
            self._final[t, ended] = self._obs[t + 1, ended] if last is None else last.numpy()[ended]
            self._ended_with += self.returned[ended].tolist()
            self.returned[ended] = 0
            if self._batch and last is None:
                self.over = done
            else:
                self._init[t + 1, ended] = True
        self._after.run(1, t)

    def learn(self) -> bool:
        """Learn from all rows; the last one becomes the first. Whether everything was finite."""
        update = self.rounds.update
        update.begin()
        self.acted.final_value.zero_()
        if not self._whole:
            self.acted.total.fill_(max(1, int(self._weight.sum())))
        finite = bool(self._learn.run())
        update.finish()
        self._packed = False
        if finite:
            self._note()
            self._first()
        return finite

    def live_through(self) -> None:
        """Move the carry over all rows; the last one becomes the first."""
        cell, carry = self._carry
        carry.run()
        cell.finish(self.learner.engine)
        self._note_ends()
        self._first()

    def _first(self) -> None:
        """The last row becomes the first of a chunk in which every step counts so far."""
        self._shift.run()
        if not self._whole:
            self._count_all()

    def _count_all(self) -> None:
        self._weight.fill(1)
        self.acted.total.fill_(self._weight.size)
        self._whole = True

    def _note(self) -> None:
        """A chunk for the record, as `Record.add` has it."""
        record, update = self._record, self.rounds.update
        if record.sums is not self._sums_of:  # somebody else has added to it, or has read it out
            self._sums = torch.stack([record.sums.get(name, torch.zeros(())) for name in update.METRICS])
            record.sums = self._sums_of = {**record.sums, **dict(zip(update.METRICS, self._sums, strict=True))}
        self._sums += update.scalars()[0]
        self._note_ends()

    def _note_ends(self) -> None:
        record = self._record
        record.updates += 1
        if self._ended_with:
            task = int(self.rollout.env.task_B[0])
            for total in self._ended_with:
                record.return_sum[task] += total
                record.return_count[task] += 1
            self._ended_with = []

    # ---- and what others know of them ----------------------------------------------------------------------------

    def begin(self, records: list[dict[str, Any]], *, decided: bool) -> None:
        """Put in place what there is: whole steps, then the one under way, which may be `decided`."""
        env, parts = self.rollout.env, self.acted.parts
        self.acted.first = self.rollout.inputs()
        scale_B = env.reward_scale_B if env.scaled else None
        parts.begin(self.acted.first, records[0]["state"], records[0]["is_init"], scale_B, draw=False)
        self.acted.renew()
        self._packed, self._sums_of = False, {"": torch.empty(0)}
        self._count_all()
        self.returned[...] = self.rollout.return_B.numpy()
        over_B = self.rollout.over_B.numpy()
        self.over = over_B.copy() if over_B.any() else None
        self._ended_with = [x for each in records[:-1] for x in each["episode_return"][each["done"]].tolist()]
        last = len(records) - 1
        for t, record in enumerate(records):
            made = self.acted.made
            made.obs[t], made.is_init[t] = record["obs"], record["is_init"]
            if parts.action_TBF is not None:
                parts.action_TBF[t] = record["previous_action"]
            if parts.reward_TB is not None:
                parts.reward_TB[t] = record["previous_reward"]
            if t < last or decided:  # the same calls give the same numbers
                if not self._packed:
                    self._pack.run()
                    self._packed = True
                self._said.run(1, t)
                drawn, shown = self.acted.actions.drawn_TB, self.acted.actions.clipped_TB
                drawn[t], shown[t] = record["action"], self.rollout.policy.distribution.clip(record["action"])
            if t < last:
                self._weight[t] = record["valid"].numpy()
                self._whole &= bool(record["valid"].all())
                made.reward[t], made.episode_return[t] = record["reward"], record["episode_return"]
                made.terminated[t], made.truncated[t] = record["terminated"], record["truncated"]
                made.final_obs[t] = record["final_obs"]

    def seen(self, t: int) -> dict[str, Any]:
        """What the policy reads in row t."""
        parts, made = self.acted.parts, self.acted.made
        action, reward = parts.shown(self.acted.first)
        read = {"obs": made.obs[t], "previous_action": action[t], "previous_reward": reward[t]}
        read |= {"is_init": made.is_init[t], "state": parts.state_TBS[t]}
        return {name: tensor.clone() for name, tensor in read.items()}

    def said(self, t: int) -> dict[str, Any]:
        """What it did there."""
        parts = self.acted.parts
        made = {"action": self.acted.actions.drawn_TB[t], "policy": parts.policy_TBP[t], "value": parts.value_TB[t]}
        made |= {"x": parts.x_TBD[t]}
        again = isinstance(self.rollout.policy.cell, ElementwiseCell)  # others keep nothing in torch
        kept = tuple(each[t].clone() for each in parts.kept) if again else ()
        return {**{name: tensor.clone() for name, tensor in made.items()}, "kept": kept}

    def record(self, t: int) -> dict[str, Any]:
        """A whole step, as `Rollout.receive` returns it."""
        made, rollout = self.acted.made, self.rollout
        rows = {name: getattr(made, name)[t].clone() for name in ("reward", "terminated", "truncated")}
        done_B = rows["terminated"] | rows["truncated"]
        rows |= {"episode_return": made.episode_return[t].clone(), "done": done_B}
        rows["final_obs"] = made.obs[t + 1].clone()
        rows["final_obs"][done_B] = made.final_obs[t][done_B]
        none = {"target": torch.zeros(len(done_B), 0), "target_mask": rollout.nowhere}
        return {**self.seen(t), **self.said(t), **rows, **none, "valid": self.acted.weight_TB[t] > 0}


def _empty(rollout: OutsideRollout, steps: int) -> CompiledSteps:
    """Rows for T steps that are filled from outside."""

    def nothing() -> None:
        pass

    B, obs = len(rollout.obs), rollout.obs.new_zeros(steps + 1, *rollout.obs.shape)
    flags = torch.zeros(steps + 1, B, dtype=torch.bool)
    return CompiledSteps(
        [],
        obs=obs,
        is_init=flags,
        final_obs=torch.zeros_like(obs[:steps]),
        reward=torch.zeros(steps, B),
        terminated=torch.zeros_like(flags[:steps]),
        truncated=torch.zeros_like(flags[:steps]),
        episode_return=torch.zeros(steps, B),
        info={},
        begin=nothing,
        finish=nothing,
        fits=lambda: True,
    )
