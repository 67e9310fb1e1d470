"""Calls about some copies of a batch, and rewards that come late: a part of `lifelong.OnlineAgent`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lifelong.agent.errors import EnvError
from lifelong.agent.runtime.converter import Converter
from lifelong.agent.runtime.given import Given, check_start, chosen, of_info, rewards
from lifelong.agent.runtime.lanes import Ticket
from lifelong.agent.runtime.learning import WAITING, Learning, check_apart
from lifelong.agent.runtime.outside import OutsideRollout
from lifelong.agent.runtime.trainer import Trainer


class Apart:
    """Copies with steps of their own (see `agent.runtime.lanes`), for the agent that has the rest."""

    _trainer: Trainer
    _rollout: OutsideRollout
    _converter: Converter
    _given: Given
    _learning: Learning
    _copies: int | None
    _lead: tuple[int, ...]
    _steps: int
    _boundary: str | None

    def act_later(
        self,
        obs: Any,
        terminated: Any = False,
        truncated: Any = False,
        info: Any = None,
        *,
        final_obs: Any = None,
        ids: Any = None,
    ) -> Ticket | None:
        """The next action, where the reward of the last one is not known yet (see `act`).

        Returns:
            A ticket with the `action`, for `feedback`; None where `act` returns None.

        Raises:
            EnvError: as `act`; too many actions wait for their rewards.
            ConfigError: a policy that reads the last reward, or an objective or a strategy that cannot wait.
        """
        given = {"reward": None, "terminated": terminated, "truncated": truncated, "target": None}
        stepped = self._some(obs, given, info, final_obs, ids, late=True)
        return None if stepped is None else Ticket(*stepped)

    def feedback(self, ticket: Ticket, reward: Any) -> None:
        """The reward of the action of a ticket, or None: it will never come, and the step does not count. Rewards may
        come in any order; the agent learns from a chunk when it has all of them and knows what came next.

        Raises:
            EnvError: a reward that does not fit, or was given before; nothing has changed.
        """
        rollout, lanes = self._rollout, self._rollout.lanes
        rows = None if reward is None else rewards(reward, ticket.lead, rollout.return_B.dtype)
        if lanes is None or not all(map(lanes.knows, ticket.copies, ticket.serials)):
            raise EnvError("the action of this ticket does not wait for a reward: it had one, or a boundary came since")
        self._learning.go_on()
        for place, (copy, serial) in enumerate(zip(ticket.copies, ticket.serials, strict=True)):
            one = None if rows is None else rows[place : place + 1]
            scaled = None if one is None else one * rollout.env.reward_scale_B[copy]
            lanes.settle(copy, serial, one, scaled)
        self._finish_ready()

    def _some(
        self, obs: Any, given: dict[str, Any], info: Any, final_obs: Any, ids: Any, *, late: bool
    ) -> tuple[Any, tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
        """`act` for some copies, each with steps of its own: `(action, copies, serial numbers, lead)`."""
        copies = chosen(ids, self._copies)
        check_apart(self._trainer, late=late)
        self._leave()
        self._learning.go_on()
        rollout, lead, found = self._rollout, self._lead if ids is None else (len(copies),), of_info(info)
        self._hear_task(found)
        task = self._task()
        read = self._converter.observations(obs, task, lead)
        mask = self._given.mask(found, obs, lead, task)
        waits = [rollout.waits(copy) for copy in copies]
        if any(waits) and not all(waits):
            new = [copy for copy, waiting in zip(copies, waits, strict=True) if not waiting]
            raise EnvError(
                f"no action of copy {new[0]} waits for its outcome, and of others there is one; call it apart"
            )
        index = torch.tensor(copies)
        over = False
        if not any(waits):
            check_start(given["reward"], given["terminated"], given["truncated"])
            self._part()
            rollout.obs = rollout.obs.index_copy(0, index, read)
        else:
            over_B = rollout.over_B[index]
            heard = self._given.outcome(given, found, obs, lead, task, final_obs, late or bool(over_B.all()))
            self._part()
            over = heard.last is None and bool(((heard.terminated | heard.truncated) & ~over_B).any())
            reward = None if late else heard.reward
            batch = self._copies is not None
            rollout.hear_some(copies, read, reward, *heard[1:], acts_on=batch)
        self._finish_ready()
        if self._copies is None and over:
            return None
        if self._boundary is not None:
            self._cross()
        if not self._steps:
            self._start()
        lanes = rollout.lanes
        assert lanes is not None
        if late and lanes.longest() > WAITING * self._steps:
            raise EnvError(
                f"{lanes.longest()} actions wait to be learned from, since the reward of an old one is missing; give "
                "it, or feedback(ticket, None) if it will never come"
            )
        if mask is not None:
            everything = rollout.env.num_envs, mask.shape[1]
            known = torch.ones(everything, dtype=torch.bool) if rollout.mask_BA is None else rollout.mask_BA
            rollout.mask_BA = known.index_copy(0, index, mask)
        action, serials = rollout.decide_some(copies)
        made = self._converter.actions(rollout.policy.distribution.clip(action), task, lead)
        return made, tuple(copies), tuple(serials), lead

    def _part(self) -> None:
        """Every copy has steps of its own from now on; those of a chunk under way are not learned from."""
        if self._rollout.lanes is None:
            if self._rollout.records:
                self._live_through(None)
            self._rollout.part()

    def _finish_ready(self) -> None:
        """Learn from the copies that have a chunk."""
        lanes = self._rollout.lanes
        if lanes is not None and not self._steps and any(lanes.rows):
            self._start()
        if lanes is not None and self._steps and lanes.ready(self._steps):
            self._finish()

    # ---- what the agent has --------------------------------------------------------------------------------------

    def _leave(self) -> None:
        raise NotImplementedError

    def _task(self) -> int:
        raise NotImplementedError

    def _hear_task(self, info: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _cross(self) -> None:
        raise NotImplementedError

    def _start(self) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def _live_through(self, copies: list[int] | None, steps: int = 0) -> None:
        raise NotImplementedError
