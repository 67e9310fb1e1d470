"""Acting over K rounds of T steps as one program of compiled calls, on tensors that stay: all a learner has to know.

    pack        read the parameters
    act         T steps of policy and environment
    bootstrap   the value of what comes after the last step
    final       the value of the last observation of every episode that was cut off

Rows of all rounds lie one after the other, so the memory of a round's last step is that of the next one's first, and
random numbers are drawn ahead in the order of the chunks one by one. Building such a program takes about a millisecond,
so it is kept and used again (`Kept`), and what it leaves is valid until then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lifelong.agent.cells.base import Acted
from lifelong.agent.modules.heads import Gaussian, MultiCategorical
from lifelong.agent.runtime.planned import backward
from lifelong.agent.runtime.planned.acting import Actions, CompiledActing, actions, compiled
from lifelong.agent.runtime.planned.kept import Kept
from lifelong.agent.runtime.rollout import Experience, Rollout
from lifelong.envs.compiled import CompiledSteps
from lifelong.kernels import acting
from lifelong.kernels.dense import copy
from lifelong.kernels.loop import Call, Calls, Direct, Each, Program, Segment, fixed
from lifelong.replay.chunk import Chunk


def refusal(rollout: Any, kind: type[Rollout] = Rollout) -> str | None:
    """What keeps the steps of a rollout of some kind from such a program, in a few words; None if nothing does."""
    if not isinstance(rollout, kind) or type(rollout) is not kind or rollout.dense:
        return "acting elsewhere"
    checks = {
        "action masks that change": rollout.env.masks_vary,
        "policy.reset_memory_on": rollout.reset_memory_on != "episode",
        "the policy's encoder or cell": not compiled(rollout.policy),
        "parameters that lie apart": not all(p.is_contiguous() for p in rollout.policy.parameters()),
    }
    found = next((name for name, applies in checks.items() if applies), None)
    return found or backward.cell_refusal(rollout.policy.cell)  # some cells read copies of their weights


def ready(rollout: Rollout) -> bool:
    """Whether the next steps can be made: observations are as they are read, and actions the environment's own, or
    rescaled to its bounds."""
    policy, border = rollout.policy, rollout.env.action_border()
    read = torch.int64 if policy.encoder.counts else policy.critic.weight.dtype
    return rollout.obs.dtype == read and (border is None or border.scale is not None)


def key_of(rollout: Rollout, *shape: int) -> tuple[Any, ...]:
    """All that rows are built for."""
    env = rollout.env
    masked, kind, border = env.action_mask_BA.shape, rollout.obs.dtype, env.action_border()
    return (
        *shape,
        *masked,
        kind,
        env.scaled,
        border and id(border),
        *[parameter.data_ptr() for parameter in rollout.policy.parameters()],
    )


@dataclass
class ActedInRows(Acted):
    """What acting computed, and where all of it lies."""

    rows: ActedRows


class ActedRows:
    """K rounds of T steps.

    Args:
        rollout: acts; `refusal` found nothing, and it is `ready`.
        rounds: K.
        steps: T.
        made: the environment's calls.
        drawn: the actions that these read.
    """

    def __init__(self, rollout: Rollout, rounds: int, steps: int, made: CompiledSteps, drawn: Actions) -> None:
        self.rollout, self.rounds, self.steps, self.made, self.actions = rollout, rounds, steps, made, drawn
        self.policy, T, self.B = rollout.policy, steps, made.reward.shape[1]
        self.dtype = self.policy.critic.weight.dtype
        env = rollout.env
        self.parts = parts = CompiledActing(
            self.policy,
            made.obs,
            made.is_init,
            made.reward,
            drawn,
            env.action_border(),
            None if rollout.deterministic else rollout.generator,
            masked=env.action_mask_BA.shape[-1],
            scaled=env.scaled,
            beyond=True,
        )
        self.final_value = torch.zeros(rounds * T, self.B, dtype=self.dtype)
        #: what every step counts, and the sum of it in a round
        self.weight_TB = torch.ones_like(self.final_value)
        self.total = self.final_value.new_full((1,), T * self.B)
        #: what is the same at every step, and the rows of it
        self._of_copies: list[tuple[Tensor, Tensor]] = []
        final = self._final()
        self.pack = [*parts.pack, *final.pack]
        self.segments = [
            Segment([*parts.before, *made.calls, *parts.after], T),
            Segment([_shifted(call, T) for call in parts.before[:-1]]),
            Segment(final.step, where=(made.truncated.flatten(), made.terminated.flatten())),
        ]

    @classmethod
    def build(cls, rollout: Rollout, rounds: int, steps: int) -> ActedRows | None:
        """None if the environment has no compiled calls."""
        rescaled = rollout.env.action_border() is not None
        drawn = actions(rollout.policy, rounds * steps, rollout.env.num_envs, rescaled=rescaled)
        made = rollout.env.compiled_steps(drawn.given_TB)
        return None if made is None else cls(rollout, rounds, steps, made, drawn)

    def begin(self) -> None:
        """Read where the rollout is, and draw random numbers for all steps."""
        rollout, env = self.rollout, self.rollout.env
        self.made.begin()
        self.first = rollout.inputs()
        self.parts.begin(self.first, rollout.state_BS, rollout.is_init, env.reward_scale_B if env.scaled else None)
        self.renew()

    def renew(self) -> None:
        """What `begin` does beside reading where rollout and environment are."""
        for now, rows in self._of_copies:
            rows.copy_(now)
        self.final_value.zero_()

    def finish(self) -> None:
        """Put the rollout after the last round."""
        rollout, made, last = self.rollout, self.made, self.rounds * self.steps
        made.finish()
        rollout.obs, rollout.is_init = made.obs[last].clone(), made.is_init[last].clone()
        rollout.state_BS = self.parts.state_TBS[last].clone()
        action, reward = self.parts.shown(self.first)
        rollout.previous_action, rollout.previous_reward = action[last].clone(), reward[last].clone()

    def _final(self) -> Calls:
        """The critic's value of the last observation of an episode that was cut off, for one row of all rounds."""
        made, parts, policy, rows = self.made, self.parts, self.policy, self.rounds * self.steps
        n, features, distribution = rows * self.B, policy.encoder.output_size, policy.distribution
        obs, masked = made.final_obs.new_zeros(2, 1, *made.final_obs.shape[2:]), parts.mask_BA.shape[1]
        nothing, reward = torch.zeros(2, 1, dtype=torch.bool), parts.state_TBS.new_empty(1, 1)
        drawn = Actions(*[self.actions.drawn_TB.new_zeros(1, 1, *self.actions.drawn_TB.shape[2:])] * 3)
        one = CompiledActing(policy, obs, nothing, reward, drawn, None, None, masked=masked, scaled=False)
        state, x = one.state_TBS[0], one.x_TBD[0]
        calls: list[Call | Direct] = [
            copy(Each(made.final_obs.flatten(0, 1)), obs[0]),
            copy(Each(parts.state_TBS[1 : rows + 1].flatten(0, 1)), state),
        ]
        of_copies = [(parts.task_B, one.task_B)] if policy.actor.tasks > 1 or policy.values > 1 else []
        of_copies += [(parts.mask_BA, one.mask_BA)] if masked else []
        for now, to in of_copies:
            row = now.new_empty(rows, *now.shape)
            self._of_copies.append((now, row))
            calls.append(copy(Each(row.flatten(0, 1)), to))
        # what follows the features is that of the step itself, but for action and reward, which are its own
        if features < policy.cell.input_size:
            seen = parts.x_TBD[:rows].flatten(0, 1)
            calls.append(copy(Each(seen[:, features:]), x[0, features:]))
            after = features
            if policy.with_action:
                width = distribution.feature_size
                columns = one.x_TBD[..., after : after + width]
                if isinstance(distribution, Gaussian):
                    calls.append(copy(Each(self.actions.clipped_TB.flatten(0, 1)), columns[0, 0]))
                else:
                    counts = distribution.counts if isinstance(distribution, MultiCategorical) else [width]
                    action, to = self.actions.drawn_TB.view(n, 1, -1), columns.expand(n, 1, width)
                    calls.append(acting.one_hot(action, acting.previous_offsets(counts), _never(n), to))
                after += width
            if policy.with_reward:
                calls.append(copy(Each(made.reward.view(n, 1)), x[0, after : after + 1]))
        calls += [fixed(call) for call in one.before[:-1]]
        calls.append(copy(one.value_TB[0], Each(self.final_value.view(n, 1))))
        return Calls(one.pack, calls)

    def experience(self, first: int, steps: int, log_prob_TB: Tensor, *, slots: bool = False) -> Experience:
        """Steps of all rounds as they were acted, valid until the next `begin`.

        Args:
            first, steps: which.
            log_prob_TB: of the actions.
            slots: with the last observations of episodes that were cut off.
        """
        made, parts, rollout = self.made, self.parts, self.rollout
        now, rest = slice(first, first + steps), first + steps
        env, nowhere = rollout.env, rollout.nowhere
        previous_action, previous_reward = parts.shown(self.first)
        final_step, final_obs = torch.zeros(0, self.B, dtype=torch.int64), made.final_obs[:0]
        if slots:
            ended = {"truncated": made.truncated[now], "terminated": made.terminated[now]}
            final_step, final_obs = rollout.truncated(ended, lambda: made.final_obs[now])
        chunk = Chunk(
            obs=made.obs[now],
            previous_action=previous_action[now],
            previous_reward=previous_reward[now],
            task=env.task_device_B.expand(steps, -1),
            action_mask=env.action_mask_BA.expand(steps, -1, -1),
            is_init=made.is_init[now],
            action=self.actions.drawn_TB[now],
            reward=made.reward[now],
            terminated=made.terminated[now],
            truncated=made.truncated[now],
            log_prob=log_prob_TB,
            policy=parts.policy_TBP[now],
            value=parts.value_TB[now],
            final_value=self.final_value[now],
            target=made.info["target"][now] if "target" in made.info else torch.zeros(steps, self.B, 0),
            target_mask=made.info["target_mask"][now] if "target_mask" in made.info else nowhere.expand(steps, -1),
            weight=self.weight_TB[now],
            final_step=final_step,
            final_obs=final_obs,
            next_obs=made.obs[rest],
            next_is_init=made.is_init[rest],
            bootstrap_value=parts.value_TB[rest],
            state=parts.state_TBS[first],
        )
        states, after = parts.state_TBS[now], parts.state_TBS[first + 1 : rest + 1]
        done = made.is_init[first + 1 : rest + 1]
        left = ActedInRows(after, tuple(each[now] for each in parts.kept), self)
        return Experience(chunk, parts.x_TBD[now], states, made.episode_return[now], done, acted=left)


class Collector:
    """Chunks of a rollout from kept programs.

    Args:
        rollout: acts.
    """

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout
        #: why there are none; empty if there are
        self.why = refusal(rollout) or ""
        self._kept: Kept[tuple[ActedRows, Program]] = Kept()

    @torch.no_grad()
    def collect(self, steps: int) -> Experience | None:
        """What `Rollout.collect` returns, valid until the next chunk; None where the environment has no compiled
        calls."""
        if self.why or not ready(self.rollout):
            return None
        key = key_of(self.rollout, steps)
        if key in self._kept and not self._kept[key][0].made.fits():
            del self._kept[key]
        made = self._kept.get_or_build(key, lambda: self._build(steps))
        if made is None:
            return None
        rows, program = made
        rows.begin()
        program.run()
        rows.finish()
        policy = rows.parts.policy_TBP[:steps]
        log_prob = self.rollout.policy.distribution.act_log_prob(policy, rows.actions.drawn_TB)
        return rows.experience(0, steps, log_prob, slots=True)

    def _build(self, steps: int) -> tuple[ActedRows, Program] | None:
        rows = ActedRows.build(self.rollout, 1, steps)
        if rows is None:
            return None
        return rows, Program(1, [Segment(rows.pack), *rows.segments], None, rows.dtype)


def _never(rows: int) -> Tensor:
    """bool [rows, 1], False."""
    return torch.zeros(1, 1, dtype=torch.bool).expand(rows, 1)


def _shifted(call: Call | Direct, steps: int) -> Call | Direct:
    """The call on the row after the last of every round."""

    def shift(argument: Any) -> Any:
        return Each(argument.rows[steps::steps]) if isinstance(argument, Each) else argument

    return call._replace(arguments=tuple(map(shift, call.arguments)))
