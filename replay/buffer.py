"""SequenceReplay: preallocated storage of whole chunks, one row a copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelong.replay.chunk import Chunk
from lifelong.replay.sampling import Sampling
from lifelong.replay.storage import Place, Storage
from lifelong.replay.writing import Writing


class SequenceReplay:
    """Holds up to `capacity` sequences of T steps with the state they start from, and stamps of when they were made.

    Where a new sequence goes is the write policy's choice, which ones are drawn the sampling policy's; both draw from
    one generator on the host, so nothing waits for the device.

    Args:
        capacity: sequences.
        writing: write policy.
        sampling: sampling policy.
        seed: seed of both policies.
        place: where the rows lie (see `Storage`).
        compact: keep them in fewer bytes (see `replay.storage.compact`).
        linked: know which row holds the sequence that came after another one, for `following`.
        folder: for the place `disk`.
    """

    #: rows that are read at once where all are
    READ = 1024

    def __init__(
        self,
        capacity: int,
        writing: Writing,
        sampling: Sampling,
        seed: int = 0,
        *,
        place: Place = "device",
        compact: bool = False,
        linked: bool = False,
        folder: Path | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"replay capacity is {capacity}; it must be at least 1 sequence")
        self.capacity = capacity
        self.writing = writing
        self.sampling = sampling
        self.generator = torch.Generator()
        self.generator.manual_seed(seed)
        self.rows = Storage(capacity, place, compact=compact, folder=folder)
        self.size = 0  # rows in use
        self.seen = 0  # sequences offered so far
        self.stamp = torch.zeros(capacity, dtype=torch.int64)  # environment step at which a row was written
        self.kind = torch.full((capacity,), -1)  # of a row to the write policy, -1: not in use
        self.task = torch.full((capacity,), -1)  # of a row in its last step, if the sampling policy asks
        self.linked = linked
        self.serial = torch.full((capacity,), -1)  # of a row's sequence among all that were offered, if `linked`
        self.row_of: dict[int, int] = {}  # serial -> row

    @property
    def storage(self) -> Chunk | None:
        """All rows as one chunk, as they are stored; None before the first is written."""
        return self.rows.rows

    def write(self, chunk: Chunk, step: int, *, in_order: bool = True) -> None:
        """Offer every copy of `chunk` (made at environment step `step`) to the buffer; `in_order`: as it goes on where
        the last one ended, if that was made just before."""
        last = self.place(self.writing.kinds(chunk), self._tasks(chunk), step, in_order=in_order)
        if not last:
            return
        if len(last) < chunk.copies:
            chunk = chunk.select(torch.tensor(list(last.values()), device=chunk.reward.device))
        self.rows.put(list(last), chunk)

    def place(self, kind: Tensor, task: Tensor, step: int, *, in_order: bool = True) -> dict[int, int]:
        """Note that the copies of a chunk are written, of these kinds and tasks (int64 [n]).

        Returns:
            Row -> copy; a row that two copies claim goes to the later one.
        """
        rows = self.writing.rows(kind, self.kind, self.seen, self.generator)
        first, self.seen = self.seen, self.seen + len(kind)
        last = {row: copy for copy, row in enumerate(rows.tolist()) if row >= 0}
        if not last:
            return last
        written, at, copies = list(last), torch.tensor(list(last)), torch.tensor(list(last.values()))
        self.stamp[at] = step
        self.kind[at], self.task[at] = kind[copies], task[copies]
        self.size = max(self.size, int(max(last)) + 1)
        self.sampling.written(written, self.capacity)
        if self.linked:
            for row, copy in last.items():
                self.row_of.pop(int(self.serial[row]), None)
                self.serial[row] = first + copy if in_order else -1
                if in_order:
                    self.row_of[first + copy] = row
        return last

    def sample(self, count: int, now: int) -> tuple[Chunk, Tensor]:
        """`count` sequences, drawn with replacement at environment step `now`: `(chunk with `count` copies, their rows
        int64 on the host)`."""
        rows = self.draw(count, now)
        return self.rows.take(rows), rows

    def draw(self, count: int, now: int) -> Tensor:
        """The rows of `sample`."""
        if self.size == 0:
            raise ValueError("cannot sample from an empty replay buffer")
        stamp, task = self.stamp[: self.size], self.task[: self.size]
        return self.sampling.rows(count, stamp, task, now, self.generator)

    def following(self, rows: Tensor, copies: int, frames: int) -> Tensor:
        """The rows of the sequences that came right after those in `rows` in the same copy, -1 where it is not there:
        when each chunk has so many `copies`, and is made so many `frames` after the one before."""
        found = [self.row_of.get(int(self.serial[row]) + copies, -1) for row in rows.tolist()]
        after = torch.tensor(found, dtype=torch.int64)
        fits = (self.serial[rows] >= 0) & (self.stamp[after] == self.stamp[rows] + frames)
        return torch.where(fits, after, -1)

    def restart(self, rows: Tensor, state_NS: Tensor) -> Tensor:
        """Let the sequences in `rows` (int64 on the host) start from another memory; its mean distance to the old."""
        assert self.storage is not None
        before = self.storage.state[rows.to(self.storage.state.device), : state_NS.shape[1]].to(state_NS)
        self.rows.put_state(rows, state_NS)
        return (before - state_NS).norm(dim=-1).mean()

    def state_dict(self) -> dict[str, Any]:
        """The rows in use, the counters and the generator."""
        return {
            "storage": self.rows.used(self.size),
            "size": self.size,
            "seen": self.seen,
            "stamp": self.stamp,
            "serial": self.serial,
            "kind": {type(self.writing).__name__: self.kind},
            "generator": self.generator.get_state(),
            "writing": self.writing.state_dict(),
            "sampling": self.sampling.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any], device: torch.device, steps: int | None = None) -> None:
        """Restore what `state_dict` returned. Where there is room for fewer sequences now, the write policy says which
        are kept.

        Raises:
            ValueError: the sequences do not have `steps` steps, if that is given.
        """
        storage = saved["storage"]
        if storage is not None and steps not in (None, len(storage["reward"])):
            raise ValueError(
                f"rollout.steps is {steps}, but a replay holds {saved['size']} sequences of "
                f"{len(storage['reward'])} steps; keep that, or go on without the strategy that holds them"
            )
        self.seen = saved["seen"]
        self.generator.set_state(saved["generator"])
        self.writing.load_state_dict(saved["writing"])
        had = len(saved["stamp"])
        rows = torch.arange(saved["size"])
        held, task = torch.zeros_like(rows), torch.zeros_like(rows)
        if storage is not None:
            held = self._kinds(storage, saved.get("kind", {}).get(type(self.writing).__name__), len(rows))
            task = storage["task"][-1].cpu().long() if self.sampling.by_task else task
        if had != self.capacity:
            rows, self.seen = self.writing.resized(held, saved["seen"], had, self.capacity, self.generator)
        self.size = len(rows)
        self.stamp = torch.zeros(self.capacity, dtype=torch.int64)
        self.stamp[: self.size] = saved["stamp"][rows]
        self.kind, self.task = torch.full((self.capacity,), -1), torch.full((self.capacity,), -1)
        self.kind[: self.size], self.task[: self.size] = held[rows], task[rows]
        self.sampling.load_state_dict(saved.get("sampling", {}), rows, self.capacity)
        self.serial = torch.full((self.capacity,), -1)
        if self.linked and had == self.capacity and "serial" in saved:
            self.serial[: self.size] = saved["serial"][rows]
        self.row_of = {serial: row for row, serial in enumerate(self.serial.tolist()) if serial >= 0}
        if storage is not None:
            self.rows.load(storage, rows, device)

    def _tasks(self, chunk: Chunk) -> Tensor:
        """The task of every sequence in its last step, int64 [B] on the host, or zeros where nobody asks."""
        return chunk.task[-1].cpu() if self.sampling.by_task else torch.zeros(chunk.copies, dtype=torch.int64)

    def _kinds(self, storage: dict[str, Tensor], saved: Tensor | None, size: int) -> Tensor:
        """The kinds of stored sequences: as they were saved, or found anew where another policy wrote them."""
        if saved is not None:
            return saved[:size]
        chunk, some = Chunk(**storage), torch.arange(size).split(self.READ)
        device = chunk.reward.device
        return torch.cat([self.writing.kinds(chunk.select(rows.to(device))) for rows in some])
