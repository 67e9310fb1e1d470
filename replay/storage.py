"""Where the rows of a replay lie, and in which numbers: on the device, in host memory or a file; exact or compact."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lifelong.replay.chunk import SLOTS, Chunk, copies_dim

Place = Literal["device", "host", "disk"]
#: fields that `compact` keeps as float16, with three digits; what enters importance weights and targets stays exact
HALVED = ("obs", "previous_action", "policy", "target", "final_obs", "next_obs", "state")
_LARGEST = torch.finfo(torch.float16).max


def compact(name: str, tensor: Tensor) -> Tensor:
    """A field of a chunk in fewer bytes: reals of `HALVED` fields as float16, clamped to its range, int64 as int32."""
    if tensor.dtype == torch.int64:
        return tensor.to(torch.int32)
    if name in HALVED and tensor.is_floating_point():
        return tensor.clamp(-_LARGEST, _LARGEST).to(torch.float16)
    return tensor


class Storage:
    """Rows of sequences. On the device they lie as chunks do, time first; elsewhere row by row, so that a sequence is
    in one piece of every field.

    Args:
        capacity: rows.
        place: `device`; `host`: in memory, page-locked if the device is a GPU; `disk`: mapped into memory from files in
            `folder`, which have no name there and go when the process ends.
        compact: keep fields in fewer bytes (see `compact`).
        folder: for `disk`.
    """

    def __init__(
        self, capacity: int, place: Place = "device", *, compact: bool = False, folder: Path | None = None
    ) -> None:
        self.capacity, self.place, self.compact, self.folder = capacity, place, compact, folder
        self.plain = place == "device" and not compact
        self.rows: Chunk | None = None
        self.dtypes: dict[str, torch.dtype] = {}  # of what is given and taken
        self.device = torch.device("cpu")  # of what is given and taken
        self.slots = 0  # for truncated steps that what was given had; there may be room for more

    def put(self, rows: list[int], chunk: Chunk) -> None:
        """Write the copies of `chunk` into `rows`, each once."""
        if self.rows is None:
            self.device = chunk.reward.device
            self.dtypes = {name: tensor.dtype for name, tensor in vars(chunk).items()}
            stored = self._inside(chunk)
            self.rows = stored.map(lambda name, x, dim: self._allocate(x, dim))
        self.slots = max(self.slots, chunk.slots)
        slots, actions = max(self.rows.slots, chunk.slots), chunk.action_mask.shape[-1]
        if slots != self.rows.slots or actions != self.rows.action_mask.shape[-1]:
            wider, old = self.rows.with_slots(slots).masking(actions), vars(self.rows)
            self.rows = wider.map(lambda name, x, dim: x if x is old[name] else self._moved(x, dim))
        chunk = self._inside(chunk.with_slots(slots))
        target = torch.tensor(rows, device=chunk.reward.device)
        for name, new in vars(chunk).items():
            if new.numel():
                getattr(self.rows, name).index_copy_(copies_dim(name), target, new)

    def reserve(self, slots: int) -> None:
        """Have room for so many truncated steps of a sequence."""
        if self.rows is not None and self.rows.slots < slots:
            wider, old = self.rows.with_slots(slots), vars(self.rows)
            self.rows = wider.map(lambda name, x, dim: x if x is old[name] else self._moved(x, dim))

    def take(self, rows: Tensor) -> Chunk:
        """The sequences in `rows` (int64 on the host), as they were put."""
        assert self.rows is not None
        taken = self._given().select(rows.to(self.rows.reward.device))
        if self.plain:
            return taken
        return taken.map(lambda name, x, dim: x.to(self.device, non_blocking=True).to(self.dtypes[name]))

    def put_state(self, rows: Tensor, state_NS: Tensor) -> None:
        """Write the first numbers of the state in `rows` (int64 on the host)."""
        assert self.rows is not None
        stored = self.rows.state
        rows = rows.to(stored.device)
        state_NS = (compact("state", state_NS) if self.compact else state_NS).to(stored.device)
        stored[:, : state_NS.shape[1]].index_copy_(0, rows, state_NS)

    def used(self, size: int) -> dict[str, Tensor] | None:
        """The first `size` rows, name -> tensor as it is stored: a copy, or views of what is on the disk."""
        if self.rows is None:
            return None
        rows = self._given()
        if self.place != "disk":
            return vars(rows.select(torch.arange(size, device=rows.reward.device)))
        return {name: x.narrow(copies_dim(name), 0, size) for name, x in vars(rows).items()}

    def load(self, saved: dict[str, Tensor], rows: Tensor, device: torch.device) -> None:
        """Put back `rows` of what `used` returned, into the first rows."""
        chunk = Chunk(**saved).select(rows.to(saved["reward"].device))
        self.device, self.slots = device, chunk.slots
        self.dtypes = {name: _wide(name, x.dtype, chunk.reward.dtype) for name, x in vars(chunk).items()}
        chunk = chunk.map(lambda name, x, dim: x.to(self.dtypes[name]))
        stored = self._inside(chunk if self.place != "device" else chunk.map(lambda name, x, dim: x.to(device)))
        self.rows = stored.map(lambda name, x, dim: self._allocate(x, dim))
        into = torch.arange(len(rows), device=stored.reward.device)
        for name, new in vars(stored).items():
            getattr(self.rows, name).index_copy_(copies_dim(name), into, new)

    def _given(self) -> Chunk:
        """The rows with as many slots as were given."""
        assert self.rows is not None
        if self.rows.slots == self.slots:
            return self.rows
        return replace(self.rows, **{name: getattr(self.rows, name)[: self.slots] for name in SLOTS})

    def _inside(self, chunk: Chunk) -> Chunk:
        """The chunk in the numbers and the place of the rows."""
        if self.plain:
            return chunk
        if self.compact:
            chunk = chunk.map(lambda name, x, dim: compact(name, x))
        return chunk if self.place == "device" else chunk.map(lambda name, x, dim: x.cpu())

    def _allocate(self, like: Tensor, dim: int) -> Tensor:
        """Zeros for all rows of a field of which `like` has some."""
        shape = list(like.shape)
        shape[dim] = self.capacity
        if self.place == "device":
            return torch.zeros(shape, dtype=like.dtype, device=like.device)
        del shape[dim]
        shape.insert(0, self.capacity)
        if self.place == "disk":
            return _mapped(shape, like.dtype, self.folder).movedim(0, dim)
        pinned = self.device.type == "cuda"
        return torch.zeros(shape, dtype=like.dtype, pin_memory=pinned).movedim(0, dim)

    def _moved(self, tensor: Tensor, dim: int) -> Tensor:
        """A field that has become wider, where the rows lie."""
        return tensor if self.place == "device" else self._allocate(tensor, dim).copy_(tensor)


def _wide(name: str, dtype: torch.dtype, real: torch.dtype) -> torch.dtype:
    """The type that a field had before `compact`, if it may have been."""
    if dtype == torch.int32 and name in ("task", "action", "final_step", "target"):
        return torch.int64
    return real if dtype == torch.float16 and name in HALVED else dtype


def _mapped(shape: list[int], dtype: torch.dtype, folder: Path | None) -> Tensor:
    """Zeros in a file in `folder`, which is reserved on the disk and has no name any more.

    Raises:
        OSError: the disk is full.
    """
    count = 1
    for size in shape:
        count *= size
    if not count:
        return torch.zeros(shape, dtype=dtype)
    handle, name = tempfile.mkstemp(prefix=".replay-", dir=folder)
    try:
        os.posix_fallocate(handle, 0, count * dtype.itemsize)  # a full disk is an error now and no signal later
        return torch.from_file(name, shared=True, size=count, dtype=dtype).view(shape)
    finally:
        os.close(handle)
        os.unlink(name)
