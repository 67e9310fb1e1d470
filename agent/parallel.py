"""Data-parallel workers: who this one is, and the few things that all of them do together.

Worker `rank` of `count` owns its own environment copies, carry and replay; parameters are equal on all of them because
gradients are averaged before they are used. `ALONE` is the only worker of a run in one process: every operation below
then does nothing. `TorchWorkers` does them with torch.distributed, which `agent.runtime.cluster` has Ray set up.

Every operation is collective: all workers call it, in the same order.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lifelong.agent.errors import ClusterError

#: bytes that a worker receives at most where gloo gathers what it could reduce: below it latency decides
GATHERED = 1 << 20


class Workers:
    """This worker among `count` of them; by itself it communicates with nobody.

    Args:
        rank: this worker, 0 to count - 1. Rank 0 writes the run folder.
        count: number of workers.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    def share(self, total: int) -> slice:
        """The part of `total` things (environment copies, sequences) that this worker owns."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def owns(self, index: int) -> bool:
        """Whether this worker does thing `index` of a list that the workers go through in turn."""
        return index % self.count == self.rank

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Average every tensor over the workers, in place."""

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Add every tensor up over the workers, in place."""

    def max_(self, tensors: Sequence[Tensor]) -> None:
        """Take the largest of every element over the workers, in place."""

    def sum_ahead(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start to add `tensor` up over the workers; what is returned waits for the sum, after other work."""
        return lambda: tensor

    def stack(self, tensor: Tensor) -> Tensor:
        """The `tensor` of every worker, in order of rank: [N, ...]."""
        return tensor[None]

    def gather(self, item: Any) -> list[Any]:
        """The `item` (small, picklable) of every worker, in order of rank."""
        return [item]

    def lead(self, number: int) -> int:
        """Rank 0's `number`, on every worker."""
        return number

    def speed(self, steps: int) -> dict[str, float]:
        """For the log, after `steps` environment steps of each worker since the last call: how fast each one is."""
        return {}


ALONE = Workers()


class TorchWorkers(Workers):
    """The workers of torch's default process group.

    Tensors are reduced where they are (NCCL on GPUs, gloo on CPUs), all of them in one message. `gather` and `lead` go
    through host memory, so they never wait for a GPU.
    """

    def __init__(self) -> None:
        distributed = torch.distributed
        super().__init__(distributed.get_rank(), distributed.get_world_size())
        self.on_host = distributed.get_backend() == "gloo"
        self.host = distributed.group.WORLD if self.on_host else distributed.new_group(backend="gloo")
        self.waited, self.since = 0.0, time.perf_counter()

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        self._reduce(tensors, torch.distributed.ReduceOp.SUM, 1.0 / self.count)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        self._reduce(tensors, torch.distributed.ReduceOp.SUM)

    def max_(self, tensors: Sequence[Tensor]) -> None:
        self._reduce(tensors, torch.distributed.ReduceOp.MAX)

    @torch.no_grad()
    def _reduce(self, tensors: Sequence[Tensor], operation: Any, scale: float = 1.0) -> None:
        if self.count == 1 or not tensors:
            return
        with self._clock():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            if self.on_host and flat.nbytes * (self.count - 1) <= GATHERED:
                flat = self._gathered(flat, operation)
            else:
                torch.distributed.all_reduce(flat, operation)
            if scale != 1.0:
                flat *= scale
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def _gathered(self, flat: Tensor, operation: Any) -> Tensor:
        """The reduction done by every worker itself, in order of rank: one exchange where gloo's has several rounds."""
        parts = [torch.empty_like(flat) for _ in range(self.count)]
        torch.distributed.all_gather(parts, flat)
        combine = torch.maximum if operation == torch.distributed.ReduceOp.MAX else torch.add
        return functools.reduce(combine, parts)

    @torch.no_grad()
    def sum_ahead(self, tensor: Tensor) -> Callable[[], Tensor]:
        total = tensor.clone()
        with self._clock():
            work = torch.distributed.all_reduce(total, async_op=True)

        def wait() -> Tensor:
            with self._clock():
                work.wait()
            return total

        return wait

    @torch.no_grad()
    def stack(self, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        with self._clock():
            torch.distributed.all_gather(parts, tensor)
        return torch.stack(parts)

    def gather(self, item: Any) -> list[Any]:
        with self._clock():
            items: list[Any] = [None] * self.count
            torch.distributed.all_gather_object(items, item, group=self.host)
        return items

    def lead(self, number: int) -> int:
        with self._clock():
            message = torch.tensor([number])
            torch.distributed.broadcast(message, 0, group=self.host)
        return int(message)

    def speed(self, steps: int) -> dict[str, float]:
        """`speed/worker_<r>/env_steps_per_second`, not counting what it waited, and the share it waited.

        The slowest worker waits least. On GPUs only the host's waiting is seen.
        """
        now = time.perf_counter()
        times = self.gather((now - self.since, self.waited))
        self.waited, self.since = 0.0, now
        scalars = {}
        for rank, (passed, waited) in enumerate(times):
            scalars[f"speed/worker_{rank}/env_steps_per_second"] = steps / max(passed - waited, 1e-9)
            scalars[f"speed/worker_{rank}/waiting"] = waited / max(passed, 1e-9)
        return scalars

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """What is done together: its time counts as waiting, and where it fails a peer is gone.

        Raises:
            ClusterError: torch gave up on the others.
        """
        start = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            raise ClusterError(f"a worker is gone: {str(error).splitlines()[0]}") from error
        self.waited += time.perf_counter() - start
