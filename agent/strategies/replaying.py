"""What strategies share that replay: a buffer of whole sequences, and how it is written, sampled and warmed up."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.agent.modules.heads import Categorical
from lifelong.agent.policy import Outputs, inputs_of
from lifelong.agent.runtime.memory import sequence_bytes
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.agent.strategies.planned import Replays
from lifelong.envs.options import LARGEST, Count, Range, Share, Steps, Weight
from lifelong.replay.buffer import SequenceReplay
from lifelong.replay.chunk import Chunk, concatenate, resumed
from lifelong.replay.sampling import (
    SAMPLING,
    Dissimilar,
    Exponential,
    PowerLaw,
    Uniform,
    sequence_priority,
    sliced_wasserstein,
)
from lifelong.replay.storage import Place
from lifelong.replay.writing import WRITING, NoveltyQuota, Reservoir, Ring


class Replaying(Strategy):
    """Stores every chunk that was learned from, and learns from live and replayed sequences side by side.

    A replayed sequence starts from the memory stored with it, as a constant: it has no carry, so its gradient is
    truncated at its start. With `burn_in` the first steps only recompute the memory under the parameters as they are
    now, without a gradient (Kapturowski et al. 2019, R2D2, section 3). `replay_staleness` is then the mean distance
    between the memory that acting had after these steps and the recomputed one.

    With `refresh` a replayed sequence is run to its end under the parameters as they are now, without a gradient, and
    the memory that it ends with becomes the start of the sequence that came after it, if that is in the buffer.
    `replay_correction` is the mean distance between the old start and the new one.

    Args:
        capacity: sequences kept, by all workers together; each keeps its own.
        mib: keep about as many as fit into so many MiB instead; 0: `capacity`.
        ratio: replayed copies per live copy; 1 is half and half.
        writing: what is kept: `reservoir` (every sequence alike), `ring` (the newest), or equally many of every kind,
            a reservoir within it: `task_quota` (of every task seen; needs the task id), `class_quota` (of every class
            that is a target) or `novelty_quota` (of every region of what was observed).
        regions: of `novelty_quota`, at most.
        sampling: what is replayed: `uniform`, `power_law` (age^-age_exponent), `exponential` (exp(-age / age_scale)),
            `task_balanced` (every task in the buffer alike; needs the task id), `prioritised` (where the objective was
            wrong) or `inscl` (more of tasks that are unlike the one in training; needs the task id).
        age_exponent: of `power_law`.
        age_scale: of `exponential`, environment steps.
        priority_exponent: alpha of `prioritised`.
        importance_exponent: beta of `prioritised`.
        priority_mix: eta of `prioritised`: the priority of a sequence is eta times the largest error of its steps and
            1 - eta times their mean.
        burn_in: first steps of a replayed sequence that only warm up the memory.
        refresh: bring the memories that sequences start from up to date.
        start: replay once so many sequences are stored.
        storage: `exact`, or `compact`: observations, policies and memories as float16, integers in 32 bits.
        place: where sequences lie: on the `device`, in memory of the `host`, or on the `disk`, in the run folder.
    """

    #: tasks are compared (`inscl`) at every so many draws and when there is a new one, by so many sequences of each
    COMPARE_EVERY: ClassVar[int] = 200
    COMPARED: ClassVar[int] = 16

    needs_off_policy = True
    data_parallel: ClassVar[str] = "shard"

    def __init__(
        self,
        *,
        capacity: Annotated[int, Range(1, LARGEST)] = 8192,
        ratio: Annotated[float, Range(0.0, 1000.0, above=True)] = 1.0,
        mib: Annotated[int, Range(0, 10**9)] = 0,
        writing: Literal["reservoir", "ring", "task_quota", "class_quota", "novelty_quota"] = "reservoir",
        regions: Count = 32,
        sampling: Literal["uniform", "power_law", "exponential", "task_balanced", "prioritised", "inscl"] = "uniform",
        age_exponent: Weight = 0.5,
        age_scale: Annotated[float, Range(0.0, LARGEST, above=True)] = 20_000.0,
        priority_exponent: Weight = 0.9,
        importance_exponent: Share = 0.6,
        priority_mix: Share = 0.9,
        burn_in: Steps = 0,
        refresh: bool = False,
        start: Count = 256,
        storage: Literal["exact", "compact"] = "exact",
        place: Place = "device",
    ) -> None:
        if capacity < 1 or ratio <= 0 or burn_in < 0:
            raise ValueError("capacity must be at least 1, ratio above 0, burn_in not negative")
        self.capacity, self.mib, self.ratio, self.burn_in, self.start = capacity, mib, ratio, burn_in, start
        self.priority_mix, self.refresh = priority_mix, refresh
        self.compact, self.place = storage == "compact", place
        self.writing = WRITING[writing](*((regions,) if writing == "novelty_quota" else ()))
        arguments: dict[str, tuple[float, ...]] = {"power_law": (age_exponent,), "exponential": (age_scale,)}
        arguments["prioritised"] = (priority_exponent, importance_exponent)
        self.sampling = SAMPLING[sampling](*arguments.get(sampling, ()))
        self.needs_task_id = self.writing.by_task or self.sampling.by_task
        self.metrics: dict[str, Tensor] = {}
        #: of sequences in the minibatch whose error is asked for: their rows, their first copy, the steps that count
        self.drawn: list[tuple[Tensor, int, Tensor]] = []
        self.measured = 0  # draws since tasks were compared

    def replay_bytes(self, exact: int, compact: int) -> dict[str, int]:
        size = compact if self.compact else exact
        return {self.place: self.mib * 2**20 if self.mib else self.capacity * size}

    def replay_memories(self) -> int:
        return 2 if self.burn_in else 1

    def setup(self, ctx: Context, seed: int) -> None:
        if self.burn_in >= ctx.steps:
            raise ValueError(f"burn_in is {self.burn_in}; it must be below rollout.steps ({ctx.steps})")
        workers = ctx.workers.count
        if self.sampling.by_error and not ctx.objective.says_error:
            raise ValueError("sampling prioritised needs an objective that says how wrong it was at each step")
        if self.writing.by_class and not (
            ctx.objective.needs_target and isinstance(ctx.policy.distribution, Categorical)
        ):
            raise ValueError(
                "writing class_quota needs prediction tasks whose target is one class a step; use novelty_quota or "
                "task_quota"
            )
        if self.mib:
            each = sequence_bytes(ctx.policy, ctx.steps, 1, self.replay_memories(), compact=self.compact)
            self.capacity = self.mib * 2**20 // each
            if self.capacity < workers:
                raise ValueError(f"mib is {self.mib}, and a sequence has {each / 2**20:,.2f} MiB; raise it")
        if self.capacity < workers:
            raise ValueError(f"capacity is {self.capacity}; it must be at least one sequence for {workers} workers")
        if isinstance(self.writing, NoveltyQuota) and self.writing.regions.most * 4 > self.capacity // workers:
            raise ValueError(
                f"regions is {self.writing.regions.most}, and {self.capacity // workers:,} sequences are kept; have at "
                "least four for a region"
            )
        self.device, self.workers, self.steps = ctx.device, workers, ctx.steps
        self.share, self.begin = self.capacity // workers, max(1, min(self.start, self.capacity) // workers)
        self.replay = SequenceReplay(
            self.share,
            self.writing,
            self.sampling,
            seed,
            place=self.place,
            compact=self.compact,
            linked=self.refresh,
            folder=ctx.folder,
        )

    def beside(self, live: int) -> int:
        """How many sequences stand beside so many live copies."""
        return max(1, round(self.ratio * live))

    def draw(self, ctx: Context, live: int, first: int | None = None) -> Chunk | None:
        """Stored sequences to stand beside so many live copies, warmed up; None before there are enough of them. In the
        minibatch they begin at the copy `first`, by default after these."""
        if self.replay.size < self.begin:
            return None
        if isinstance(self.sampling, Dissimilar):
            self._compare(ctx, self.sampling)
        drawn, rows = self.replay.sample(self.beside(live), ctx.step)
        self.metrics["replay_age"] = ctx.step - self.replay.stamp[rows].double().mean()
        if self.burn_in or self.refresh:
            drawn = self._recomputed(ctx, drawn, rows)
        if self.sampling.by_error:
            self.drawn.append((rows, live if first is None else first, drawn.weight > 0))
            importance = self.sampling.importance(rows)
            if importance is not None:
                drawn = replace(drawn, weight=drawn.weight * importance.to(drawn.weight))
        return drawn

    @torch.no_grad()
    def _recomputed(self, ctx: Context, drawn: Chunk, rows: Tensor) -> Chunk:
        """The sequences after the burn-in, which start from the memory that the policy as it is now has there; those
        that come after them in the buffer start from what it has at their end."""
        cell, first = ctx.policy.cell, self.burn_in
        x_TND, state_NS = ctx.policy.encode(inputs_of(drawn)), drawn.state
        if first:
            start_NS, acted_NS = state_NS.chunk(2, -1)
            _, state_NS = cell.sequence(x_TND[:first], start_NS, drawn.is_init[:first])
            self.metrics["replay_staleness"] = (acted_NS - state_NS).norm(dim=-1).mean()
        if self.refresh:
            after = self.replay.following(rows, ctx.copies, ctx.copies * ctx.steps * self.workers)
            has = (after >= 0).nonzero().flatten()
            if len(has):
                at = has.to(state_NS.device)
                _, end_NS = cell.sequence(x_TND[first:, at], state_NS[at], drawn.is_init[first:, at])
                self.metrics["replay_correction"] = self.replay.restart(after[has], end_NS)
        return resumed(drawn, first, state_NS) if first else drawn

    @torch.no_grad()
    def _compare(self, ctx: Context, sampling: Dissimilar) -> None:
        """Measure how far every task in the buffer is from the newest one, in what the heads read, once in a while."""
        replay, size = self.replay, self.replay.size
        task = replay.task[:size]
        current = int(task[replay.stamp[:size].argmax()])
        known = set(task.unique().tolist()) == sampling.distance.keys() and sampling.distance[current] == 0.0
        self.measured += 1
        if known and self.measured < self.COMPARE_EVERY:
            return
        self.measured, features = 0, {}
        for each in task.unique().tolist():
            its = (task == each).nonzero().flatten()
            chosen = its[torch.randint(len(its), (self.COMPARED,), generator=replay.generator)]
            some = replay.rows.take(chosen)
            state = some.state[:, : ctx.policy.cell.state_size]
            said = ctx.policy.sequence(some, state).features
            assert said is not None  # of a whole chunk they are there
            features[each] = said.flatten(0, 1)
        sampling.distance = {k: float(sliced_wasserstein(x, features[current])) for k, x in features.items()}

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        """None; the priorities of what was drawn follow the errors of this pass."""
        drawn, self.drawn = self.drawn, []
        for rows, first, counts in drawn:
            assert outputs.error is not None  # the objective says so
            error = outputs.error[:, first : first + len(rows)].detach().abs()
            self.sampling.scored(rows, sequence_priority(error, counts, self.priority_mix).cpu())
        return None

    def transform_batch(self, ctx: Context, chunk: Chunk) -> Chunk:
        drawn = self.draw(ctx, chunk.copies)
        return chunk if drawn is None else concatenate([chunk, drawn])

    def replays_alone(self) -> bool:
        own = type(self).draw is not Replaying.draw or type(self).after_chunk is not Replaying.after_chunk
        exact = self.place == "device" and not self.compact and not self.burn_in and not self.refresh
        known = type(self.writing) in (Ring, Reservoir) and type(self.sampling) in (Uniform, PowerLaw, Exponential)
        return exact and known and not own

    def replays(self, copies: int) -> Replays:
        return Replays(self.replay, self.begin, [(self.beside(copies), 1.0)], metrics=self.metrics)

    def made_for(self) -> tuple[int | float, ...]:
        rows = self.replay.storage
        places = [] if rows is None else [x.data_ptr() for x in vars(rows).values()]
        return self.replay.size >= self.begin, self.ratio, *places

    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        chunk = experience.chunk
        if self.burn_in:  # beside the memory at the start, that after the burn-in
            chunk = replace(chunk, state=torch.cat([chunk.state, experience.state_TBS[self.burn_in]], -1))
        self.replay.write(chunk, ctx.step, in_order=experience.copies is None)

    def report(self) -> dict[str, float]:
        return {
            "replay_size": float(self.replay.size * self.workers),
            **{name: float(x) for name, x in self.metrics.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "replay": self.replay.state_dict(),
            "metrics": self.metrics,
            "burn_in": self.burn_in,
            "measured": self.measured,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if saved["replay"]["size"] and saved["burn_in"] != self.burn_in:
            raise ValueError(
                f"burn_in is {self.burn_in}, but a replay holds sequences stored for {saved['burn_in']}; keep that"
            )
        self.replay.load_state_dict(saved["replay"], self.device, self.steps)
        self.metrics, self.measured = saved["metrics"], saved.get("measured", 0)
