"""Write policies: which row of the buffer a new sequence goes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.replay.chunk import Chunk
from lifelong.replay.regions import Regions, described


class Writing:
    """Base of all write policies. Everything but chunks is on the host."""

    #: whether it reads the tasks of sequences; those are zero otherwise
    by_task: ClassVar[bool] = False
    #: whether it reads their targets, which must be classes
    by_class: ClassVar[bool] = False

    def kinds(self, chunk: Chunk) -> Tensor:
        """What it tells the sequences of a chunk apart by, int64 [n], not negative; zeros if by nothing."""
        return torch.zeros(chunk.copies, dtype=torch.int64)

    def rows(self, kind: Tensor, held: Tensor, seen: int, generator: torch.Generator) -> Tensor:
        """The row of each of n new sequences, int64 [n]; -1 drops it.

        Args:
            kind: of the new sequences (see `kinds`), int64 [n].
            held: the kind of every row, int64 [capacity]; -1: the row is not in use.
            seen: so many sequences were offered before.
            generator: of the draws.
        """
        raise NotImplementedError

    def resized(
        self, held: Tensor, seen: int, had: int, capacity: int, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """What a buffer of `had` rows, those in use of the kinds `held`, keeps when it gets `capacity` rows.

        Returns:
            The rows that are kept, int64, in the order in which they become the first rows; and `seen` from then on.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What resume needs besides the rows."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; of another policy, what fits."""


class Ring(Writing):
    """The newest sequences replace the oldest."""

    def rows(self, kind: Tensor, held: Tensor, seen: int, generator: torch.Generator) -> Tensor:
        return (seen + torch.arange(len(kind))) % len(held)

    def resized(
        self, held: Tensor, seen: int, had: int, capacity: int, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        kept = min(len(held), capacity)  # the newest
        return (seen - kept + torch.arange(kept)) % had, kept


class Reservoir(Writing):
    """Every sequence ever offered is in the buffer with the same probability (Vitter 1985, algorithm R).

    A smaller buffer keeps that. A larger one cannot bring back what was dropped: what it holds counts as all that was
    offered so far.
    """

    def rows(self, kind: Tensor, held: Tensor, seen: int, generator: torch.Generator) -> Tensor:
        count, capacity = len(kind), len(held)
        position = seen + torch.arange(count)
        drawn = (torch.rand(count, generator=generator, dtype=torch.float64) * (position + 1)).long()
        drawn = torch.where(drawn < capacity, drawn, torch.full_like(drawn, -1))
        return torch.where(position < capacity, position, drawn)

    def resized(
        self, held: Tensor, seen: int, had: int, capacity: int, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        size = len(held)
        if capacity >= size:
            return torch.arange(size), size if capacity > had else seen
        return torch.randperm(size, generator=generator)[:capacity].sort().values, seen


class Quota(Writing):
    """Base of those under which every kind of sequence that was seen has equally many rows, give or take one; within a
    kind every sequence offered is kept alike (Chrysakis & Moens 2020, the class-balancing reservoir).

    A new kind takes its rows from whoever has most, drawn uniformly, so what the others keep is a smaller reservoir.
    """

    def __init__(self) -> None:
        self.offered: Counter[int] = Counter()  # sequences of each kind

    def rows(self, kind: Tensor, held: Tensor, seen: int, generator: torch.Generator) -> Tensor:
        held = held.clone()
        count = Counter(held[held >= 0].tolist())
        self.offered |= count  # rows that another policy has filled were offered, too
        free = (held < 0).nonzero().flatten().tolist()[::-1]
        rows = []
        for new, (accepted, which) in zip(
            kind.tolist(), torch.rand(len(kind), 2, generator=generator, dtype=torch.float64).tolist(), strict=True
        ):
            self.offered[new] += 1
            most = max(count, key=lambda k: (count[k], -k)) if count else new
            row = -1
            if free:
                row = free.pop()
            elif count[most] - count[new] > 1 or accepted < count[new] / self.offered[new]:
                loses = most if count[most] - count[new] > 1 else new
                row = int((held == loses).nonzero()[int(which * count[loses])])
                count[loses] -= 1
            if row >= 0:
                held[row] = new
                count[new] += 1
            rows.append(row)
        return torch.tensor(rows, dtype=torch.int64)

    def resized(
        self, held: Tensor, seen: int, had: int, capacity: int, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        if capacity > had:  # as a reservoir: what it holds is all there was
            self.offered = Counter(held.tolist())
        order = torch.randperm(len(held), generator=generator)
        rank = torch.empty_like(held)  # in its kind
        for kind in held.unique().tolist():
            of_kind = order[held[order] == kind]
            rank[of_kind] = torch.arange(len(of_kind))
        return order[rank[order].argsort(stable=True)[:capacity]].sort().values, seen

    def state_dict(self) -> dict[str, Any]:
        return {"offered": dict(self.offered)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.offered = Counter(saved.get("offered", {}))


class TaskQuota(Quota):
    """The kind of a sequence is its task in its last step."""

    by_task: ClassVar[bool] = True

    def kinds(self, chunk: Chunk) -> Tensor:
        return chunk.task[-1].cpu().long()


class ClassQuota(Quota):
    """The kind of a sequence is the class that it is to be told, the last if there are several."""

    by_class: ClassVar[bool] = True
    #: of sequences without a target; above all classes
    NOTHING: ClassVar[int] = 2**40

    def kinds(self, chunk: Chunk) -> Tensor:
        asked = chunk.target_mask.cpu()
        last = (asked * torch.arange(1, len(asked) + 1).unsqueeze(1)).argmax(0)
        target = chunk.target.cpu().long().gather(0, last.unsqueeze(0)).squeeze(0)
        return torch.where(asked.any(0), target, self.NOTHING)


class NoveltyQuota(Quota):
    """The kind of a sequence is the region of what was ever observed that it lies in (see `replay.regions`), so that
    what is seen seldom has as many rows as what is seen all the time; no task is asked for.

    Where regions become one, so do their rows and counts.

    Args:
        regions: at most.
    """

    def __init__(self, regions: int = 32) -> None:
        super().__init__()
        self.regions = Regions(regions)

    def kinds(self, chunk: Chunk) -> Tensor:
        return self.regions.add(described(chunk))

    def rows(self, kind: Tensor, held: Tensor, seen: int, generator: torch.Generator) -> Tensor:
        self._follow()
        return super().rows(self.regions.now(kind), self.regions.now(held), seen, generator)

    def resized(
        self, held: Tensor, seen: int, had: int, capacity: int, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        self._follow()
        return super().resized(self.regions.now(held), seen, had, capacity, generator)

    def _follow(self) -> None:
        """Count what was offered of regions that are others now."""
        offered: Counter[int] = Counter()
        for kind, count in self.offered.items():
            offered[int(self.regions.now(torch.tensor(kind)))] += count
        self.offered = offered

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "regions": self.regions.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        if "regions" in saved:
            self.regions.load_state_dict(saved["regions"])


WRITING: dict[str, Callable[..., Writing]] = {
    "ring": Ring,
    "reservoir": Reservoir,
    "task_quota": TaskQuota,
    "class_quota": ClassQuota,
    "novelty_quota": NoveltyQuota,
}
