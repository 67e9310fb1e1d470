"""The plan: whole chunks as one program of compiled calls, from acting to the optimiser's step, on a CPU.

A small chunk (few copies, few steps, few units) costs Python and torch some milliseconds, whatever it computes. Where
nothing has to be asked in between, it is a list of calls of our own kernels, and K chunks are K rounds of that list:

    pack        read the parameters
    act         T steps of policy and environment
    bootstrap   the value of what comes after the last step
    final       the value of the last observation of every episode that was cut off
    learn       log-probabilities, V-trace, loss and its slopes, backward pass, carry, norm of the gradient
    step        Adam or gradient descent

Rows of all rounds lie one after the other, so the memory of a round's last step is that of the next one's first, and
random numbers are drawn ahead in the order of the chunks one by one. The result is theirs to rounding, however many
rounds are made at once, and to the bit the same for every number of rounds.

`refusal` says why a run has no plan. A round whose loss or gradient is not finite ends the program before its step.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lifelong.agent.objectives.ac_lambda import ACLambda
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.objectives.base import Metrics
from lifelong.agent.objectives.ppo import PPO
from lifelong.agent.objectives.supervised import Supervised
from lifelong.agent.runtime.finite import NotFinite
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.runtime.planned import backward, likelihood, rows
from lifelong.agent.runtime.planned.actor_critic import OneUpdate
from lifelong.agent.runtime.planned.kept import Kept
from lifelong.agent.runtime.planned.ppo import Epochs
from lifelong.agent.runtime.planned.replay import fits
from lifelong.agent.runtime.planned.rows import ActedRows
from lifelong.agent.runtime.planned.step import FlatGradients, Stepping
from lifelong.agent.runtime.planned.streaming import Traced
from lifelong.agent.runtime.planned.supervised import Prediction
from lifelong.agent.runtime.rollout import Experience, Rollout
from lifelong.agent.strategies.base import Strategy, overrides
from lifelong.agent.strategies.planned import HookCalls, Replays, Update, compiled, hook_calls
from lifelong.kernels import hooks
from lifelong.kernels.loop import Direct, Each, Program, Segment, Watched

if TYPE_CHECKING:
    from lifelong.agent.runtime.trainer import Trainer

#: steps of all copies together that a program is made for at once, where nothing is due before
ROWS = 4096
#: what learns from a chunk, by objective: its calls, what they leave, and whether `many` chunks are made at once
UPDATES: dict[type, Any] = {ActorCritic: OneUpdate, PPO: Epochs, ACLambda: Traced, Supervised: Prediction}

_log = logging.getLogger("lifelong.plan")


def refusal(rollout: Any, learner: Learner, strategies: list[Strategy], *, watched: bool) -> str | None:
    """What keeps a run from having a plan, in a few words; None if nothing does.

    Args:
        rollout: acts.
        learner: learns.
        strategies: all of them.
        watched: whether somebody looks at every chunk.
    """
    found = hook_refusal(learner, strategies, watched=watched, replayed=True)
    if found is None and learner.finite.skip:
        return "on_nonfinite: skip"
    return found or update_refusal(learner, rollout.env.num_envs) or rows.refusal(rollout)


def hook_refusal(learner: Learner, strategies: list[Strategy], *, watched: bool, replayed: bool = False) -> str | None:
    """What has to be asked between acting and the optimiser's step; chunks that are `replayed` need not be."""
    update = UPDATES.get(type(learner.objective))
    replays = [each for each in strategies if replayed and update and update.replays and each.replays_alone()]
    others = [each for each in overrides(strategies, "on_clock") if "on_clock" not in each.idle()]
    stores = [each for each in overrides(strategies, "after_chunk") if "after_chunk" not in each.idle()]
    others += [each for each in stores if each not in replays]
    hooked = [type(each).__name__ for each in strategies if each in others or not compiled(each, Strategy)]
    called = [*overrides(strategies, "calls"), *replays]
    checks = {
        "policy.weight_drop or rollout.initial_state": learner.changed is not None,
        f"the strategy {', '.join(hooked)}": bool(hooked),
        "two strategies that replay": len(replays) > 1,
        "the strategies' hooks, which are not compiled": called and not hooks.available(learner.parameters[0]),
        "a detector": watched,
        "several workers": learner.workers.count > 1,
    }
    return next((name for name, applies in checks.items() if applies), None)


def replays_of(strategies: list[Strategy], copies: int) -> Replays | None:
    """What is replayed beside so many live copies."""
    return next((each.replays(copies) for each in overrides(strategies, "replays")), None)


def update_refusal(learner: Learner, copies: int) -> str | None:
    """What keeps an update from being calls."""
    policy, objective = learner.policy, learner.objective
    checks = {
        f"the objective {type(objective).__name__}": type(objective) not in UPDATES,
        "heads per task": policy.actor.tasks > 1 or policy.values > 1,
        "the optimiser": Stepping(learner.optimizer, learner.parameters).numbers() is None,
    }
    found = next((name for name, applies in checks.items() if applies), None)
    found = found or likelihood.refusal(policy)
    found = found or UPDATES[type(objective)].refusal(learner, copies)
    return found or backward.refusal(policy.cell, learner.engine)


def ready(rollout: Rollout, learner: Learner) -> bool:
    """Whether the next round can be made: the optimiser has its state, actions are the environment's own, and what is
    replayed is stored as it is acted."""
    told = replays_of(learner.strategies, rollout.env.num_envs)
    stored = told is None or fits(told, rollout)
    return stored and Stepping(learner.optimizer, learner.parameters).ready() and rows.ready(rollout)


def key_of(rollout: Rollout, learner: Learner, rounds: int, steps: int) -> tuple[Any, ...]:
    """All that rounds are built for."""
    step = Stepping(learner.optimizer, learner.parameters)
    carry = [tensor.data_ptr() for tensor in learner.engine.state_dict().values()]
    told = vars(learner.objective), *learner.optimizer.param_groups
    numbers = [each for options in told for each in options.values() if isinstance(each, int | float)]
    strategies = [each for strategy in learner.strategies for each in strategy.made_for()]
    own = [*UPDATES[type(learner.objective)].addresses(learner), *strategies]
    places = *step.addresses(), *carry, *own
    return *rows.key_of(rollout, rounds, steps), *places, *numbers, step.numbers(), learner.max_grad_norm


class Plan:
    """Makes rounds of a run that `refusal` has nothing against.

    Args:
        rollout: acts.
        learner: learns.
        steps: T.
    """

    def __init__(self, rollout: Rollout, learner: Learner, steps: int) -> None:
        self.rollout, self.learner, self.steps = rollout, learner, steps
        self.kept: Kept[Rounds] = Kept()

    def _build(self, rounds: int) -> Rounds | None:
        acted = ActedRows.build(self.rollout, rounds, self.steps)
        return None if acted is None else Rounds(self.learner, acted)

    @torch.no_grad()
    def run(self, rounds: int, step: int) -> tuple[Experience, Metrics, Experience] | None:
        """Make the next rounds, the first of which begins at environment step `step`.

        Returns:
            The last chunk, scalars [K] of all rounds, and an experience of all steps, valid until the next rounds; None
            if the environment has no compiled calls.

        Raises:
            NotFinite: a loss or a gradient is not.
        """
        learner, K, T = self.learner, rounds, self.steps
        told = replays_of(learner.strategies, self.rollout.env.num_envs)
        if told is not None:
            told.buffer.rows.reserve(self.rollout.env.truncations(T))
        key = key_of(self.rollout, learner, K, T)
        if key in self.kept and not self.kept[key].acted.made.fits():
            del self.kept[key]
        made = self.kept.get_or_build(key, lambda: self._build(rounds))
        if made is None:
            return None
        made.step_count.fill_(step)
        done = made.run()
        learner.steps += len(made.update.numbers)
        torch.autograd.graph.increment_version(learner.parameters)
        last = made.experience((K - 1) * T if done == K else done * T, T)
        if done < K:
            learner.finite.before_learning(last)
            numbers = made.update.numbers
            raise NotFinite("loss" if not numbers.view(K, -1, 2)[done, :, 0].isfinite().all() else "gradient")
        metrics = dict(zip(made.update.METRICS, made.update.scalars().unbind(1), strict=True))
        return last, metrics, made.experience(0, K * T)


class Planned:
    """What a trainer has of a plan: how many rounds are made before anything is due, and what becomes of them.

    Args:
        trainer: whose chunks these are.
        watched: whether somebody looks at every chunk.
    """

    def __init__(self, trainer: Trainer, *, watched: bool) -> None:
        #: why there is no plan, for the log; empty if there is one
        self.why = refusal(trainer.rollout, trainer.learner, trainer.strategies, watched=watched) or ""
        self.plan: Plan | None = None
        if not self.why:
            assert isinstance(trainer.rollout, Rollout)
            self.plan = Plan(trainer.rollout, trainer.learner, trainer.steps)
        _log.info(self.report())

    def report(self) -> str:
        """How the chunks are made, and what keeps them from being one program."""
        return f"chunks are made one by one: {self.why}" if self.why else "chunks are one program of compiled calls"

    def rounds(self, trainer: Trainer) -> int:
        """Chunks until something is due, all of which see the same tasks and hyper-parameters; at most `ROWS` steps."""
        config, stream, step = trainer.config, trainer.stream, trainer.step
        frames = trainer.copies * trainer.chunk.steps
        if (
            not UPDATES[type(trainer.learner.objective)].many
            or trainer.schedules.ramps
            or trainer.schedules.lengths
            or stream.smooth
        ):
            return 1
        every = config.log_every, config.evaluation.every, config.checkpoint.every
        ends = [(step // each + 1) * each for each in every]
        ends += [border for border in stream.borders if border > step][:1]
        most = [-(-(end - step) // frames) for end in ends]
        told = replays_of(trainer.strategies, trainer.copies)
        most += [] if told is None or told.drawing else [told.before(trainer.copies)]
        rounds = max(1, min(ROWS // frames, *most))
        tasks = stream.tasks_at(step, trainer.copies)
        while rounds > 1 and not torch.equal(stream.tasks_at(step + (rounds - 1) * frames, trainer.copies), tasks):
            rounds //= 2
        return rounds

    def advance(self, trainer: Trainer) -> Experience | None:
        """The next rounds of a trainer; None if they have to be made one by one.

        Raises:
            NotFinite: see `Plan.run`.
        """
        if self.plan is None or not ready(self.plan.rollout, self.plan.learner):
            return None
        rounds, self.plan.steps = self.rounds(trainer), trainer.chunk.steps
        made = self.plan.run(rounds, trainer.step)
        if made is None:
            return None
        last, metrics, all_ = made
        trainer.frames = rounds * trainer.copies * trainer.chunk.steps
        trainer.step += trainer.frames
        trainer.record.add(metrics, all_, rounds)
        return last


class Rounds:
    """K rounds of acting and learning.

    Args:
        learner: learns.
        acted: the rounds of acting.
    """

    def __init__(self, learner: Learner, acted: ActedRows) -> None:
        self.learner, self.acted, self.policy = learner, acted, learner.policy
        self.rounds, self.steps, self.B, self.dtype = acted.rounds, acted.steps, acted.B, acted.dtype
        #: what is replayed, if a strategy does
        self.told = replays_of(learner.strategies, self.B)
        self.log_prob = self.empty(self.rounds * self.steps, self.B)
        self.gradients = FlatGradients(learner.named)
        #: environment steps when a round begins, and the weight of the entropy in it, for hooks of strategies
        self.step_count = torch.zeros((), dtype=torch.int64)
        self.entropy_weight = torch.zeros((), dtype=torch.float64)
        self.update = UPDATES[type(learner.objective)](self)
        self.segments = [Segment([*acted.pack, *self.update.pack]), *acted.segments, *self.update.segments]

    @cached_property
    def program(self) -> Program:
        """All segments."""
        watched = Watched(len(self.segments) - len(self.update.segments) + self.update.guard, self.update.numbers)
        return Program(self.rounds, self.segments, watched, self.dtype)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def each(self, tensor: Tensor) -> Each:
        """Of a tensor with a row a step those of each round."""
        return Each(tensor[: self.rounds * self.steps].unflatten(0, (self.rounds, self.steps)))

    def run(self) -> int:
        """Make the next rounds; returns how many were made before something was not finite."""
        self.acted.begin()
        self.update.begin()
        done = self.program.run()
        self.acted.finish()
        self.update.finish()
        return done

    def step(self, watched: Each) -> Direct:
        """The optimiser's step on all parameters, unless a number that is watched is not finite."""
        grads = [self.gradients.named[name] for name in self.learner.named]
        return Stepping(self.learner.optimizer, self.learner.parameters).call(grads, watched)

    def strategy_calls(self, loss: Each, watched: Each) -> HookCalls:
        """What strategies do in an update whose loss, and loss and norm of the gradient, are these numbers."""
        parameters = {name: parameter.detach() for name, parameter in self.learner.named.items()}
        told = Update(parameters, self.gradients.named, loss, watched, self.entropy_weight, self.step_count)
        found = hook_calls(self.learner.strategies, told)
        if "before_loss" in found:
            weight = self.learner.objective.entropy_weight  # type: ignore[attr-defined]
            found["before_loss"].insert(0, hooks.set_call(self.gradients.flat, weight, self.entropy_weight))
        return found

    def experience(self, first: int, steps: int) -> Experience:
        """Steps of all rounds as they were acted."""
        return self.acted.experience(first, steps, self.log_prob[first : first + steps])
