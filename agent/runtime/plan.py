"""The plan: whole chunks as one program of compiled calls, from acting to the optimiser's step, on a CPU.

A small chunk (few copies, few steps, few units) costs Python and torch some milliseconds, whatever it computes. Where
nothing has to be asked in between, it is a list of calls of our own kernels, and K chunks are K rounds of that list:

    pack        read the parameters
    act         T steps of policy and environment
    bootstrap   the value of what comes after the last step
    final       the value of the last observation of every episode that was cut off
    learn       log-probabilities, V-trace, loss and its slopes, backward pass, carry, norm of the gradient
    step        Adam

Rows of all rounds lie one after the other, so the memory of a round's last step is that of the next one's first, and
random numbers are drawn ahead in the order of the chunks one by one. The result is theirs to rounding, however many
rounds are made at once, and to the bit the same for every number of rounds.

`refusal` says why a run has no plan. A round whose loss or gradient is not finite ends the program before its step.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lifelong.agent.modules.heads import Categorical
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.objectives.base import Metrics
from lifelong.agent.objectives.ppo import PPO
from lifelong.agent.runtime import backward
from lifelong.agent.runtime.acting import Actions, CompiledActing, actions, compiled
from lifelong.agent.runtime.finite import NotFinite
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.runtime.plan_actor_critic import OneUpdate
from lifelong.agent.runtime.plan_ppo import Epochs
from lifelong.agent.runtime.rollout import Experience, Rollout
from lifelong.agent.runtime.step import adam_of, tensors_of
from lifelong.agent.strategies.base import Strategy, overrides
from lifelong.envs.compiled import CompiledSteps
from lifelong.kernels import acting, adam
from lifelong.kernels.dense import copy
from lifelong.kernels.loop import Call, Calls, Direct, Each, Segment, Watched, program
from lifelong.replay.chunk import Chunk

if TYPE_CHECKING:
    from lifelong.agent.runtime.trainer import Trainer

#: steps of all copies together that a program is made for at once, where nothing is due before
ROWS = 4096
#: what learns from a chunk, by objective: its calls, what they leave, and whether `many` chunks are made at once
UPDATES: dict[type, Any] = {ActorCritic: OneUpdate, PPO: Epochs}

_log = logging.getLogger("lifelong.plan")


def refusal(rollout: Any, learner: Learner, strategies: list[Strategy], *, watched: bool) -> str | None:
    """What keeps a run from having a plan, in a few words; None if nothing does.

    Args:
        rollout: acts.
        learner: learns.
        strategies: all of them.
        watched: whether somebody looks at every chunk.
    """
    policy, objective = learner.policy, learner.objective
    if type(rollout) is not Rollout or rollout.dense:
        return "acting elsewhere"
    later = ("after_chunk", "on_clock")
    others = [each for name in later for each in overrides(strategies, name) if name not in each.idle()]
    hooked = [type(strategy).__name__ for strategy in (strategies if learner.hooked else others)]
    checks = {
        "policy.weight_drop or rollout.initial_state": learner.changed is not None,
        f"the strategy {', '.join(hooked)}": bool(hooked),
        "a detector": watched,
        "several workers": learner.workers.count > 1,
        "on_nonfinite: skip": learner.finite.skip,
        f"the objective {type(objective).__name__}": type(objective) not in UPDATES,
        "policy.reset_memory_on": rollout.reset_memory_on != "episode",
        "the policy's encoder or cell": not compiled(policy),
        "the action space": type(policy.distribution) is not Categorical,
        "heads per task": policy.actor.tasks > 1 or policy.values > 1,
        "the optimiser": adam_of(learner.optimizer) is None,
        "parameters that lie apart": not all(p.is_contiguous() for p in learner.parameters),
    }
    found = next((name for name, applies in checks.items() if applies), None)
    if found is None:
        found = UPDATES[type(objective)].refusal(objective, rollout.env.num_envs)
    return found or backward.refusal(policy.cell, learner.engine)


class Plan:
    """Makes rounds of a run that `refusal` has nothing against.

    Args:
        rollout: acts.
        learner: learns.
        steps: T.
    """

    def __init__(self, rollout: Rollout, learner: Learner, steps: int) -> None:
        self.rollout, self.learner, self.steps = rollout, learner, steps
        self.dtype = learner.policy.critic.weight.dtype

    def ready(self) -> bool:
        """Whether the next round can be made: the optimiser has its state, and actions are the environment's own."""
        made = all(self.learner.optimizer.state.get(p) for p in self.learner.parameters)
        read = torch.int64 if self.learner.policy.encoder.counts else self.dtype
        return made and self.rollout.obs.dtype == read and self.rollout.env.action_border() is None

    @torch.no_grad()
    def run(self, rounds: int) -> tuple[Experience, Metrics, Experience] | None:
        """Make the next rounds.

        Returns:
            The last chunk, scalars [K] of all rounds, and an experience of all steps; None if the environment has no
            compiled calls.

        Raises:
            NotFinite: a loss or a gradient is not.
        """
        rollout, K, T, B = self.rollout, rounds, self.steps, self.rollout.env.num_envs
        acted = actions(self.learner.policy, K * T, B, rescaled=False)
        made = rollout.env.compiled_steps(acted.given_TB)
        if made is None:
            return None
        made.obs[0], made.is_init[0] = rollout.obs, rollout.is_init
        scale_B = rollout.env.reward_scale_B if rollout.env.scaled else None
        parts = CompiledActing(
            self.learner.policy,
            rollout.inputs(),
            made.obs,
            rollout.state_BS,
            made.is_init,
            made.reward,
            scale_B,
            acted,
            None,
            rollout.generator,
            beyond=True,
        )
        rows = Rounds(self, K, made, parts, acted)
        done = program(K, rows.segments, rows.watched, self.dtype)
        self._finish(rows)
        last = rows.experience((K - 1) * T if done == K else done * T, T)
        if done < K:
            self.learner.finite.before_learning(last)
            numbers = rows.update.numbers
            raise NotFinite("loss" if not numbers.view(K, -1, 2)[done, :, 0].isfinite().all() else "gradient")
        return last, rows.update.metrics(), rows.experience(0, K * T)

    def _finish(self, rows: Rounds) -> None:
        """Put rollout and learner after the last round."""
        rollout, learner, made, last = self.rollout, self.learner, rows.made, rows.rounds * self.steps
        made.finish()
        rollout.obs, rollout.is_init = made.obs[last].clone(), made.is_init[last].clone()
        rollout.state_BS = rows.parts.state_TBS[last].clone()
        action, reward = rows.parts.shown(rollout.inputs())
        rollout.previous_action, rollout.previous_reward = action[last].clone(), reward[last].clone()
        rows.update.finish()
        learner.steps += len(rows.update.numbers)
        torch.autograd.graph.increment_version(learner.parameters)


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
        rounds = max(1, min(ROWS // frames, *[-(-(end - step) // frames) for end in ends]))
        tasks = stream.tasks_at(step, trainer.copies)
        while rounds > 1 and not torch.equal(stream.tasks_at(step + (rounds - 1) * frames, trainer.copies), tasks):
            rounds //= 2
        return rounds

    def advance(self, trainer: Trainer) -> Experience | None:
        """The next rounds of a trainer; None if they have to be made one by one.

        Raises:
            NotFinite: see `Plan.run`.
        """
        if self.plan is None or not self.plan.ready():
            return None
        rounds, self.plan.steps = self.rounds(trainer), trainer.chunk.steps
        made = self.plan.run(rounds)
        if made is None:
            return None
        last, metrics, all_ = made
        trainer.frames = rounds * trainer.copies * trainer.chunk.steps
        trainer.step += trainer.frames
        trainer.record.add(metrics, all_, rounds)
        return last


class Rounds:
    """The segments of K rounds and what they leave."""

    def __init__(self, plan: Plan, rounds: int, made: CompiledSteps, parts: CompiledActing, acted: Actions) -> None:
        self.plan, self.rounds, self.made, self.parts, self.acted = plan, rounds, made, parts, acted
        self.learner, self.policy, T = plan.learner, plan.learner.policy, plan.steps
        B, K = made.reward.shape[1], rounds
        self.B, self.dtype = B, plan.dtype
        self.log_prob, self.final_value = self.empty(K * T, B), torch.zeros(K * T, B, dtype=self.dtype)
        self._gradients()
        self.update = UPDATES[type(self.learner.objective)](self)
        final, before = self._final(), [*parts.before, *made.calls, *parts.after]
        self.segments = [
            Segment([*parts.pack, *self.update.pack, *final.pack]),
            Segment(before, T),
            Segment([_shifted(call, T) for call in parts.before[:-1]]),
            Segment(final.step, where=(made.truncated.flatten(), made.terminated.flatten())),
            *self.update.segments,
        ]
        self.watched = Watched(len(self.segments) - len(self.update.segments) + self.update.guard, self.update.numbers)

    def fixed(self, call: Call | Direct) -> Call | Direct:
        """The call on the first row of everything, whatever the step."""
        return _fixed(call)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def _gradients(self) -> None:
        """One piece of memory for all gradients; those of actor and critic side by side, as they are read out."""
        named, actor, critic = self.learner.named, self.policy.actor.linear, self.policy.critic
        first = ["actor.linear.weight", "critic.weight", "actor.linear.bias", "critic.bias"]
        names = [*first, *[name for name in named if name not in first]]
        self.flat = self.empty(sum(p.numel() for p in named.values()))
        pieces = self.flat.split([named[name].numel() for name in names])
        self.grads = {name: piece.view_as(named[name]) for name, piece in zip(names, pieces, strict=True)}
        outputs = actor.out_features + critic.out_features
        weight = self.flat[: outputs * actor.in_features].view(outputs, -1)
        self.read_grads = weight, self.flat[weight.numel() : weight.numel() + outputs]

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The gradients of one module's parameters, by their names in it."""
        return {name.removeprefix(prefix): grad for name, grad in self.grads.items() if name.startswith(prefix)}

    def _final(self) -> Calls:
        """The critic's value of the last observation of an episode that was cut off, for one row of all rounds."""
        made, parts, policy, rows = self.made, self.parts, self.policy, self.rounds * self.plan.steps
        n, features = rows * self.B, policy.encoder.output_size
        obs = made.final_obs.new_zeros(2, 1, *made.final_obs.shape[2:])
        state = self.empty(1, parts.state_TBS.shape[-1])
        nothing, reward = torch.zeros(2, 1, dtype=torch.bool), self.empty(1, 1)
        inputs = self.plan.rollout.inputs()
        first = type(inputs)(
            obs[0], inputs.previous_action[:1], inputs.previous_reward[:1], inputs.task[:1], inputs.action_mask[:1]
        )
        drawn = Actions(*[self.acted.drawn_TB.new_zeros(1, 1)] * 3)
        one = CompiledActing(policy, first, obs, state, nothing, reward, None, drawn, None, None)
        given = made.final_obs.flatten(0, 1), parts.state_TBS[1 : rows + 1].flatten(0, 1), one.x_TBD[0]
        calls: list[Call | Direct] = [copy(Each(given[0]), obs[0]), copy(Each(given[1]), one.state_TBS[0])]
        # what follows the features is that of the step itself, but for action and reward, which are its own
        seen = parts.x_TBD[:rows].flatten(0, 1)
        if features < policy.cell.input_size:
            calls.append(copy(Each(seen[:, features:]), given[2][0, features:]))
            after = features
            if policy.with_action:
                width = policy.distribution.feature_size
                action = self.acted.drawn_TB.view(n, 1)
                columns = one.x_TBD[..., after : after + width].expand(n, 1, width)
                calls.append(acting.one_hot(action, acting.previous_offsets([width]), _never(n), columns))
                after += width
            if policy.with_reward:
                calls.append(copy(Each(made.reward.view(n, 1)), given[2][0, after : after + 1]))
        calls += [_fixed(call) for call in one.before[:-1]]
        calls.append(copy(one.value_TB[0], Each(self.final_value.view(n, 1))))
        return Calls(one.pack, calls)

    def step(self, watched: Each) -> Direct:
        """Adam on all parameters, unless a number that is watched is not finite."""
        numbers = adam_of(self.learner.optimizer)
        assert numbers is not None
        grads = [self.grads[name] for name in self.learner.named]
        return adam.step_call(tensors_of(self.learner.optimizer, self.learner.parameters, grads), numbers, watched)

    def experience(self, first: int, steps: int) -> Experience:
        """Steps of all rounds as they were acted."""
        made, parts, rollout = self.made, self.parts, self.plan.rollout
        now, rest = slice(first, first + steps), first + steps
        env, nowhere = rollout.env, rollout.nowhere
        previous_action, previous_reward = parts.shown(rollout.inputs())
        chunk = Chunk(
            obs=made.obs[now],
            previous_action=previous_action[now],
            previous_reward=previous_reward[now],
            task=env.task_device_B.expand(steps, -1),
            action_mask=env.action_mask_BA.expand(steps, -1, -1),
            is_init=made.is_init[now],
            action=self.acted.drawn_TB[now],
            reward=made.reward[now],
            terminated=made.terminated[now],
            truncated=made.truncated[now],
            log_prob=self.log_prob[now],
            policy=parts.policy_TBP[now],
            value=parts.value_TB[now],
            final_value=self.final_value[now],
            target=made.info["target"][now] if "target" in made.info else torch.zeros(steps, self.B, 0),
            target_mask=made.info["target_mask"][now] if "target_mask" in made.info else nowhere.expand(steps, -1),
            weight=torch.ones(steps, self.B, dtype=self.dtype),
            final_step=torch.zeros(0, self.B, dtype=torch.int64),
            final_obs=made.final_obs[:0],
            next_obs=made.obs[rest],
            next_is_init=made.is_init[rest],
            bootstrap_value=parts.value_TB[rest],
            state=parts.state_TBS[first],
        )
        states = parts.state_TBS[now]
        return Experience(chunk, parts.x_TBD[now], states, made.episode_return[now], made.is_init[first + 1 : rest + 1])


def _never(rows: int) -> Tensor:
    """bool [rows, 1], False."""
    return torch.zeros(1, 1, dtype=torch.bool).expand(rows, 1)


def _shifted(call: Call | Direct, steps: int) -> Call | Direct:
    """The call on the row after the last of every round."""

    def shift(argument: Any) -> Any:
        return Each(argument.rows[steps::steps]) if isinstance(argument, Each) else argument

    return call._replace(arguments=tuple(map(shift, call.arguments)))


def _fixed(call: Call | Direct) -> Call | Direct:
    """The call on the first row of everything, whatever the step."""

    def fix(argument: Any) -> Any:
        return argument.rows[0] if isinstance(argument, Each) else argument

    return call._replace(arguments=tuple(map(fix, call.arguments)))
