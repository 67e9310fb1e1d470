"""Copies of an environment that are stepped one by one: each has steps of its own, and makes chunks of its own.

Where every call is about all copies, and a reward comes before the next action is asked for, the steps of all of them
are rows of one chunk (`agent.runtime.outside`). Where a call is about some of them, or rewards come late, every copy
has a lane: its last steps, oldest first. The first T are a chunk as soon as all of them have their rewards; what comes
after the chunk is what the next step began with. The copies that have a chunk in the same call are learned from
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lifelong.agent.runtime.rollout import Following, Steps

#: fields of a step [B, ...] that are rows of a lane
Row = dict[str, Any]


@dataclass(frozen=True)
class Ticket:
    """Of an action whose reward comes later.

    Attributes:
        action: what `env.step` takes.
    """

    action: Any
    copies: tuple[int, ...]
    serials: tuple[int, ...]  # of the steps, one a copy
    lead: tuple[int, ...]


class Lanes:
    """The steps of every copy that have not been learned from.

    Args:
        copies: B.
    """

    def __init__(self, copies: int) -> None:
        self.rows: list[list[Row]] = [[] for _ in range(copies)]
        self.next = 0  # serial number of the next step
        self.returns = [0.0] * copies  # of the episodes so far, by the steps that have left

    def begin(self, copies: Sequence[int], decided: Row, version: int) -> list[int]:
        """A step begins in some copies, `decided` [len(copies), ...]; its serial numbers."""
        serials = []
        for place, copy in enumerate(copies):
            row = _row(decided, place)
            self.rows[copy].append({**row, "serial": self.next, "version": version, "heard": False, "settled": False})
            serials.append(self.next)
            self.next += 1
        return serials

    def waiting(self, copy: int) -> Row | None:
        """The step of a copy whose outcome is not known, if there is one."""
        rows = self.rows[copy]
        return rows[-1] if rows and not rows[-1]["heard"] else None

    def knows(self, copy: int, serial: int) -> bool:
        """Whether a step is there and has no reward yet."""
        return any(row["serial"] == serial and not row["settled"] for row in self.rows[copy])

    def heard(self, copy: int) -> int:
        """How many steps of a copy have an outcome."""
        return sum(row["heard"] for row in self.rows[copy])

    def hear(self, copies: Sequence[int], outcome: Row, *, settled: bool) -> None:
        """What came of the last action of some copies, [len(copies), ...], with its reward if it is `settled`."""
        for place, copy in enumerate(copies):
            row = self.rows[copy][-1]
            early: Row = {
                name: row[name] for name in ("reward", "given", "valid") if name in row
            }  # it came before the rest
            row.update(_row(outcome, place))
            if not settled:
                row.update(early)
            row["heard"] = True
            row["settled"] = settled or row["settled"]

    def settle(self, copy: int, serial: int, reward: Tensor | None, scaled: Tensor | None) -> None:
        """The reward [1] of a step, and as it is learned from; None: it will never come, and the step does not count.

        Raises:
            KeyError: there is no such step any more, or it has its reward.
        """
        row = next((row for row in self.rows[copy] if row["serial"] == serial and not row["settled"]), None)
        if row is None:
            raise KeyError(serial)
        row["settled"] = True
        if reward is None:
            row["valid"] = torch.zeros_like(row["is_init"])
        else:
            row["given"], row["reward"] = reward, scaled

    def ready(self, steps: int) -> list[int]:
        """The copies whose first `steps` steps are settled."""
        return [
            copy
            for copy, rows in enumerate(self.rows)
            if len(rows) >= steps and all(row["heard"] and row["settled"] for row in rows[:steps])
        ]

    def longest(self) -> int:
        """Steps of the copy that has most."""
        return max(map(len, self.rows))

    def take(self, copies: Sequence[int], steps: int, now: Following) -> tuple[Steps, Following, int]:
        """The first `steps` steps of some copies, which leave their lanes.

        Args:
            copies: which.
            steps: T.
            now: what the last step of a lane is followed by, [B, ...].

        Returns:
            `(steps, what follows them, the oldest version that acted)`.
        """
        taken = [self.rows[copy][:steps] for copy in copies]
        follows = []
        for place, copy in enumerate(copies):
            after = self.rows[copy][steps : steps + 1]
            here = slice(copy, copy + 1)
            if after:
                follows.append((after[0]["obs"], after[0]["is_init"], after[0]["state"]))
            else:
                follows.append((now.obs[here], now.is_init[here], now.state_BS[here]))
            del self.rows[copy][:steps]
            self._add_up(copy, taken[place])
        then = Following(*(torch.cat(parts) for parts in zip(*follows, strict=True)))
        fields = [name for name, value in taken[0][0].items() if isinstance(value, Tensor) and name != "state"]
        seen = {
            name: torch.stack([torch.cat([lane[t][name] for lane in taken]) for t in range(steps)]) for name in fields
        }
        state = torch.stack([*(torch.cat([lane[t]["state"] for lane in taken]) for t in range(steps)), then.state_BS])
        final_obs = seen.pop("final_obs")
        versions = [row["version"] for lane in taken for row in lane]
        return Steps(seen, state, (), lambda: final_obs), then, min(versions)

    def _add_up(self, copy: int, lane: list[Row]) -> None:
        """The returns of episodes, in the unit that rewards are given in; they may have come after the steps."""
        for row in lane:
            self.returns[copy] += float(row.pop("given", 0.0))
            row["episode_return"] = torch.full_like(row["reward"], self.returns[copy])
            if bool(row["done"]):
                self.returns[copy] = 0.0

    def drop(self, copy: int) -> None:
        """The steps of a copy that have come back, or wait for their rewards, are not learned from."""
        self.rows[copy] = [row for row in self.rows[copy] if not row["heard"]]

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {"rows": self.rows, "next": self.next, "returns": self.returns}

    @staticmethod
    def of(saved: dict[str, Any]) -> Lanes:
        """What `state_dict` returned."""
        lanes = Lanes(len(saved["rows"]))
        lanes.rows, lanes.next, lanes.returns = saved["rows"], saved["next"], saved["returns"]
        return lanes


def _row(fields: Row, place: int) -> Row:
    """One copy of what was seen and done."""
    return {name: value[place : place + 1] for name, value in fields.items() if isinstance(value, Tensor)}
