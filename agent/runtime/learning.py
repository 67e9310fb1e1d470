"""When an agent in another program learns from a chunk: in the call that completes it, in parts, or in a thread."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from lifelong.agent import registry
from lifelong.agent.errors import ConfigError, NonFiniteError
from lifelong.agent.modules.values import EpsilonGreedy
from lifelong.agent.runtime.background import Background
from lifelong.agent.runtime.logging import NoLog, RunLog
from lifelong.agent.runtime.outside import OutsideRollout
from lifelong.agent.runtime.trainer import Trainer

Learn = Literal["now", "spread", "thread"]
MODES = ("now", "spread", "thread")
#: chunks whose actions may wait for their rewards
WAITING = 100


class Learning:
    """Learns from chunks of a rollout.

    Args:
        trainer: learns.
        rollout: its.
        mode: now, spread or thread.

    Raises:
        ConfigError: the objective takes all data for its policy's own, so nothing may lag; nothing to spread over.
    """

    def __init__(self, trainer: Trainer, rollout: OutsideRollout, mode: str) -> None:
        self.trainer, self.rollout, self.mode = trainer, rollout, mode
        self._background = None if mode == "now" else Background(mode == "spread")
        self._seen = trainer.learner.steps
        if self._background is None:
            return
        if not trainer.learner.objective.off_policy:
            raise ConfigError(
                f"learn is {mode}, so the policy that acts lags behind, which objective "
                f"{trainer.config.objective['kind']} does not correct for; use objective {_off_policy()}, or learn: now"
            )
        if trainer.steps < 2:
            raise ConfigError(
                f"learn is {mode}, and a chunk has one step, so the next one waits for it; set learn_every to 2 or "
                "more, or learn to now"
            )
        trainer.learner.pause = self._background.pause
        if mode == "thread":
            rollout.lock = threading.RLock()
            rollout.actor = copy.deepcopy(rollout.policy).requires_grad_(False)

    @property
    def busy(self) -> bool:
        """Whether an update is under way."""
        return self._background is not None and self._background.busy

    def learn(self) -> None:
        """Learn from the chunk that is complete, or begin to.

        Raises:
            NonFiniteError: see `OnlineAgent.act`; also of the update before, in these three.
        """
        with self.cleared():
            if self._background is None:
                self.trainer.advance()
            else:
                self._background.finish()
                self._see()
                self._background.start(self._advance)
        self._see()

    def go_on(self) -> None:
        """A call has begun."""
        if self._background is not None and self._background.busy:
            with self.cleared():
                self._background.step()
            self._see()

    def finish(self) -> None:
        """Nothing is under way any more."""
        if self._background is not None:
            with self.cleared():
                self._background.finish()
            self._see()

    def wait(self) -> None:
        """Nothing runs beside the caller any more."""
        if self.mode == "thread":
            self.finish()

    def _advance(self) -> None:
        self.trainer.advance()

    @torch.no_grad()
    def _see(self) -> None:
        """Act by the parameters that there are."""
        steps = self.trainer.learner.steps
        if steps == self._seen or (self.mode == "thread" and self.busy):
            return
        self._seen = steps
        self.rollout.version += 1
        if self.rollout.actor is not self.rollout.policy:
            acting, learned = self.rollout.actor.state_dict(), self.rollout.policy.state_dict()
            for name, tensor in acting.items():
                tensor.copy_(learned[name])

    @contextmanager
    def cleared(self) -> Iterator[None]:
        """If a number is not finite, life can go on, from an empty memory."""
        try:
            yield
        except NonFiniteError:
            rollout = self.rollout
            everyone_B = torch.ones_like(rollout.is_init)
            self.trainer.learner.reset(everyone_B)
            rollout.restart(everyone_B)
            rollout.abandon()
            raise


def check_apart(trainer: Trainer, *, late: bool) -> None:
    """Refuse copies with steps of their own, or rewards that come late, where something needs all copies at once.

    Raises:
        ConfigError: names it.
    """
    objective, rollout, config = trainer.learner.objective, trainer.rollout, trainer.config
    assert isinstance(rollout, OutsideRollout)
    what = "act_later" if late else "ids"
    kinds = [spec["kind"] for spec in config.strategy]
    distribution = rollout.policy.distribution
    ladder = isinstance(distribution, EpsilonGreedy) and distribution.ladder and rollout.env.num_envs > 1
    reasons: list[tuple[bool, str]] = [
        (
            not objective.off_policy,
            f"the policy that acts lags behind, which objective {config.objective['kind']} does not correct for; use "
            f"objective {_off_policy()}",
        ),
        (bool(trainer.detection), "a detector looks at all copies at once; set stream.boundaries to given or hidden"),
        (rollout.keep > 0, f"a strategy of {', '.join(kinds)} consolidates from chunks of all copies; leave it out"),
        (objective.minibatches > 1, "a chunk may have one copy; set objective.minibatches to 1"),
        (bool(ladder), "every copy explores by its place in the batch; set objective.ladder to 0"),
        (
            late and rollout.policy.with_reward,
            "the policy reads the last reward, which is not there yet; set policy.previous_reward to false",
        ),
    ]
    for applies, sentence in reasons:
        if applies:
            raise ConfigError(f"{what} cannot be used here: {sentence}")


def _off_policy() -> str:
    names = registry.REGISTRY["objective"]
    return " or ".join(name for name in names if registry.load("objective", name).off_policy)


class Gathered(NoLog):
    """A log that holds the scalars of a moment, and passes them on to the files of one, if there are any."""

    def __init__(self, log: RunLog | None) -> None:
        self.values: dict[str, float] = {}
        self._log = log

    def scalars(self, step: int, scalars: dict[str, float]) -> None:
        self.values |= scalars
        if self._log is not None:
            self._log.scalars(step, scalars)

    def clock(self, step: int, scalars: dict[str, float]) -> None:
        if self._log is not None:
            self._log.clock(step, scalars)
