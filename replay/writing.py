"""Write policies: which row of the buffer a new sequence goes to."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import torch
from torch import Tensor


class Writing:
    """Base of all write policies. Everything is on the host."""

    #: whether it reads the tasks of sequences; those are zero otherwise
    by_task: ClassVar[bool] = False

    def rows(self, task: Tensor, held: Tensor, seen: int, generator: torch.Generator) -> Tensor:
        """The row of each of n new sequences, int64 [n]; -1 drops it.

        Args:
            task: of the new sequences, int64 [n].
            held: the task of every row, int64 [capacity]; -1: the row is not in use.
            seen: so many sequences were offered before.
            generator: of the draws.
        """
        raise NotImplementedError

    def resized(
        self, held: Tensor, seen: int, had: int, capacity: int, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """What a buffer of `had` rows, those in use of the tasks `held`, keeps when it gets `capacity` rows.

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

    def rows(self, task: Tensor, held: Tensor, seen: int, generator: torch.Generator) -> Tensor:
        return (seen + torch.arange(len(task))) % len(held)

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

    def rows(self, task: Tensor, held: Tensor, seen: int, generator: torch.Generator) -> Tensor:
        count, capacity = len(task), len(held)
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


class TaskQuota(Writing):
    """Every task seen has equally many rows, give or take one; within a task every sequence offered is kept alike.

    A new task takes its rows from whoever has most, drawn uniformly, so what the others keep is a smaller reservoir.
    """

    by_task: ClassVar[bool] = True

    def __init__(self) -> None:
        self.offered: Counter[int] = Counter()  # sequences of each task

    def rows(self, task: Tensor, held: Tensor, seen: int, generator: torch.Generator) -> Tensor:
        held = held.clone()
        count = Counter(held[held >= 0].tolist())
        self.offered |= count  # rows that another policy has filled were offered, too
        free = (held < 0).nonzero().flatten().tolist()[::-1]
        rows = []
        for new, (accepted, which) in zip(
            task.tolist(), torch.rand(len(task), 2, generator=generator, dtype=torch.float64).tolist(), strict=True
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
        rank = torch.empty_like(held)  # in its task
        for task in held.unique().tolist():
            of_task = order[held[order] == task]
            rank[of_task] = torch.arange(len(of_task))
        return order[rank[order].argsort(stable=True)[:capacity]].sort().values, seen

    def state_dict(self) -> dict[str, Any]:
        return {"offered": dict(self.offered)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.offered = Counter(saved.get("offered", {}))


WRITING: dict[str, type[Writing]] = {"ring": Ring, "reservoir": Reservoir, "task_quota": TaskQuota}
