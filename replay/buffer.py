"""SequenceReplay: preallocated storage of whole chunks, one row a copy, on the device of the run."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from lifelong.replay.chunk import Chunk, copies_dim
from lifelong.replay.sampling import Sampling
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
    """

    def __init__(self, capacity: int, writing: Writing, sampling: Sampling, seed: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"replay capacity is {capacity}; it must be at least 1 sequence")
        self.capacity = capacity
        self.writing = writing
        self.sampling = sampling
        self.generator = torch.Generator()
        self.generator.manual_seed(seed)
        self.storage: Chunk | None = None
        self.size = 0  # rows in use
        self.seen = 0  # sequences offered so far
        self.stamp = torch.zeros(capacity, dtype=torch.int64)  # environment step at which a row was written
        #: whether the tasks of sequences are asked for, for which the host waits for the device
        self.by_task = writing.by_task or sampling.by_task
        self.task = torch.full((capacity,), -1)  # of a row in its last step, -1: not in use

    def write(self, chunk: Chunk, step: int) -> None:
        """Offer every copy of `chunk` (made at environment step `step`) to the buffer."""
        if self.storage is None:
            self.storage = chunk.map(lambda name, x, dim: _allocate(x, dim, self.capacity))
        slots = max(self.storage.slots, chunk.slots)
        self.storage, chunk = self.storage.with_slots(slots), chunk.with_slots(slots)
        self.storage = self.storage.masking(chunk.action_mask.shape[-1])
        task = self._tasks(chunk)
        rows = self.writing.rows(task, self.task, self.seen, self.generator)
        self.seen += chunk.copies
        # a row that two copies of this chunk claim goes to the later one
        last = {row: copy for copy, row in enumerate(rows.tolist()) if row >= 0}
        if not last:
            return
        device = chunk.reward.device
        target = torch.tensor(list(last), device=device)
        if len(last) < chunk.copies:
            chunk = chunk.select(torch.tensor(list(last.values()), device=device))
        for name, new in vars(chunk).items():
            if new.numel():
                dim = copies_dim(name)
                getattr(self.storage, name).index_copy_(dim, target, new)
        written = list(last)
        self.stamp[written] = step
        self.task[written] = task[list(last.values())]
        self.size = max(self.size, int(max(last)) + 1)

    def sample(self, count: int, now: int) -> tuple[Chunk, Tensor]:
        """`count` sequences, drawn with replacement at environment step `now`: `(chunk with `count` copies, their rows
        int64 on the host)`."""
        if self.storage is None or self.size == 0:
            raise ValueError("cannot sample from an empty replay buffer")
        stamp, task = self.stamp[: self.size], self.task[: self.size]
        rows = self.sampling.rows(count, stamp, task, now, self.generator)
        return self.storage.select(rows.to(self.storage.reward.device)), rows

    def state_dict(self) -> dict[str, Any]:
        """The rows in use, the counters and the generator."""
        used = torch.arange(self.size)
        storage = None
        if self.storage is not None:
            kept = self.storage.select(used.to(self.storage.reward.device))
            storage = {f.name: getattr(kept, f.name) for f in fields(kept)}
        return {
            "storage": storage,
            "size": self.size,
            "seen": self.seen,
            "stamp": self.stamp,
            "generator": self.generator.get_state(),
            "writing": self.writing.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any], device: torch.device, steps: int | None = None) -> None:
        """Restore what `state_dict` returned. Where there is room for fewer sequences now, the write policy says which
        are kept.

        Raises:
            ValueError: the sequences do not have `steps` steps, if that is given.
        """
        if saved["storage"] is not None and steps not in (None, len(saved["storage"]["reward"])):
            raise ValueError(
                f"rollout.steps is {steps}, but a replay holds {saved['size']} sequences of "
                f"{len(saved['storage']['reward'])} steps; keep that, or go on without the strategy that holds them"
            )
        self.seen = saved["seen"]
        self.generator.set_state(saved["generator"])
        self.writing.load_state_dict(saved["writing"])
        had = len(saved["stamp"])
        rows = torch.arange(saved["size"])
        held = rows
        if saved["storage"] is not None:
            stored = Chunk(**{name: tensor.to(device) for name, tensor in saved["storage"].items()})
            held = self._tasks(stored)
        if had != self.capacity:
            rows, self.seen = self.writing.resized(held, saved["seen"], had, self.capacity, self.generator)
        self.size = len(rows)
        self.stamp = torch.zeros(self.capacity, dtype=torch.int64)
        self.stamp[: self.size] = saved["stamp"][rows]
        self.task = torch.full((self.capacity,), -1)
        self.task[: self.size] = held[rows]
        if saved["storage"] is not None:
            kept = stored.select(rows.to(device))
            self.storage = kept.map(lambda name, x, dim: _allocate(x, dim, self.capacity))
            into = torch.arange(self.size, device=device)
            for f in fields(kept):
                getattr(self.storage, f.name).index_copy_(copies_dim(f.name), into, getattr(kept, f.name))

    def _tasks(self, chunk: Chunk) -> Tensor:
        """The task of every sequence in its last step, int64 [B] on the host, or zeros where nobody asks."""
        return chunk.task[-1].cpu() if self.by_task else torch.zeros(chunk.copies, dtype=torch.int64)


def _allocate(like: Tensor, dim: int, capacity: int) -> Tensor:
    shape = list(like.shape)
    shape[dim] = capacity
    return torch.zeros(shape, dtype=like.dtype, device=like.device)
