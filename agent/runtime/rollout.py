"""Rollout: the policy acts in the environment for T steps; what comes out is a chunk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lifelong.agent.cells.base import Acted
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.policy import Inputs, Policy
from lifelong.agent.runtime.planned import backward
from lifelong.agent.runtime.planned.acting import CompiledActing, Program, actions, compiled
from lifelong.agent.runtime.planned.kept import Kept
from lifelong.envs.tasks import TaskEnv
from lifelong.replay.chunk import Chunk


@dataclass
class Experience:
    """A chunk and what the cell saw while it was made, for the carry and for strategies that look at activations."""

    chunk: Chunk
    x_TBD: Tensor  # cell inputs
    state_TBS: Tensor  # memory before each step, before any reset
    episode_return_TB: Tensor  # return of the episodes that ended, where `done_TB`
    done_TB: Tensor
    copies: Tensor | None = None  # int64, which of the run's copies these are; None: all of them in order
    acted: Acted | None = None  # what the forward pass of acting left for learning, if the cell keeps anything
    lags: bool = False  # acted by older parameters than the learner's
    engine: GradientEngine | None = None  # holds the carry of the first states, if it goes with the data

    def start(self, copy: int) -> Tensor:
        """The memory [1, S] that `copy` starts from, as a function of the parameters if its carry is there."""
        index = torch.tensor([copy], device=self.chunk.state.device)
        state = self.chunk.state[index]
        return state if self.engine is None else self.engine.attach(state, index)


class Steps(NamedTuple):
    """T steps as they come out of acting."""

    seen: dict[str, Tensor]  # the fields of the chunk and of the experience, [T, B, ...]
    state_TBS: Tensor  # before each step and after the last, T + 1 rows
    kept: tuple[Tensor, ...]  # what the cell can use again (see `Cell.read_out`)
    final_obs: Callable[[], Tensor]  # true last observation of each step; needed at truncations only


class Following(NamedTuple):
    """What comes after the last step of a chunk."""

    obs: Tensor
    is_init: Tensor
    state_BS: Tensor


class EnvCopies(Protocol):
    """What a trainer asks of the environment copies and tells them; `TaskEnv` is one."""

    task_B: Tensor  # int64 on the host
    device: torch.device  # where the chunks are

    @property
    def exact_state(self) -> bool:
        """Whether `state_dict` holds all that the environments go on from."""

    @property
    def num_envs(self) -> int:
        """B."""

    def set_params(self, **params: float) -> None:
        """Write task parameters of all copies while their episodes go on."""


class Acting(Protocol):
    """Who gives a trainer its chunks. `Rollout` steps environments in this process; others may have them elsewhere."""

    #: whether the environments are stepped in this process, by this object
    owns_environments: bool
    #: whether `collect` may become part of a graph that is captured on the device
    capturable: bool

    @property
    def policy(self) -> Policy:
        """That acts; the learner's, or equal to it up to a lag."""

    @property
    def env(self) -> EnvCopies:
        """The copies."""

    def switch(self, task_B: Tensor, *, fresh: bool = True) -> None:
        """Put the copies on `task_B` (int64 on the host). Copies that change start a fresh episode if `fresh`."""

    def reset_units(self, units: Tensor) -> None:
        """Zero what the memory of every copy holds of the re-initialised `units` (int64)."""

    def restart(self, mask_B: Tensor) -> None:
        """Start a fresh episode with an empty memory in the copies of `mask_B` (bool [B])."""

    def collect(self, steps: int) -> Experience:
        """Act for T steps."""

    def running(self) -> AbstractContextManager[None]:
        """Whatever must run while this is used."""

    def timing(self) -> dict[str, float]:
        """Scalars for the log that depend on the clock."""

    def state_dict(self) -> dict[str, Any]:
        """All that acting goes on from."""

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class Rollout:
    """B copies of the environment and the policy's memory of each; both go on from chunk to chunk.

    Args:
        env: the environment copies.
        policy: acts, under `no_grad`.
        generator: randomness of the actions, on the environment's device.
        reset_memory_on: `episode`, `task`, `never` or `step`.
        deterministic: take the most likely action.
    """

    owns_environments = True

    def __init__(
        self,
        env: TaskEnv,
        policy: Policy,
        generator: torch.Generator,
        *,
        reset_memory_on: str = "episode",
        deterministic: bool = False,
    ) -> None:
        self.env = env
        self.policy = policy
        #: acts; another one than `policy` only while that is being changed elsewhere
        self.actor = policy
        self.generator = generator
        self.reset_memory_on = reset_memory_on
        self.deterministic = deterministic
        #: never wait for the device to know what the data are: everything is done for all copies and masked
        self.dense = env.device.type != "cpu"
        #: kept programs, for whoever is done with steps when it asks for the next
        self.programs: Kept[Program] | None = None
        self.start()
        self.capturable = env.capturable and not env.masks_vary

    def start(self, seed: int | None = None) -> None:
        """Start fresh episodes with an empty memory in every copy."""
        B, device = self.env.num_envs, self.env.device
        self.obs = self.first_obs(seed)
        self.state_BS = self.policy.cell.initial_state(B, device)
        features = self.policy.distribution.feature_size if self.policy.with_action else 0
        self.previous_action = torch.zeros(B, features, device=device)
        self.previous_reward = torch.zeros(B, device=device)
        self.is_init = torch.ones(B, dtype=torch.bool, device=device)
        self.nowhere = torch.zeros(B, dtype=torch.bool, device=device)

    def first_obs(self, seed: int | None = None, mask_B: Tensor | None = None) -> Tensor:
        """The observations after fresh episodes have begun, in all copies or in those of `mask_B` (bool [B])."""
        return self.env.reset(seed=seed, options=None if mask_B is None else {"reset_mask": mask_B})[0]

    def switch(self, task_B: Tensor, *, fresh: bool = True) -> None:
        """Put the copies on `task_B` (int64 on the host). Copies that change start a fresh episode if `fresh`."""
        if torch.equal(task_B, self.env.task_B):
            return
        changed = self.env.set_tasks(task_B)
        if not fresh:
            return
        self.obs = self.first_obs(mask_B=changed)
        if self.reset_memory_on != "never":
            self._forget(changed)

    def _forget(self, mask_B: Tensor) -> None:
        """The memory of the copies in `mask_B` is reset before their next step."""
        self.is_init = mask_B if self.is_init is self.nowhere else self.is_init | mask_B
        if self.policy.with_action:
            self.previous_action = self.previous_action.masked_fill(mask_B.unsqueeze(-1), 0.0)
        if self.policy.with_reward:
            self.previous_reward = self.previous_reward.masked_fill(mask_B, 0.0)

    def reset_units(self, units: Tensor) -> None:
        """Zero what the memory of every copy holds of the re-initialised `units` (int64)."""
        self.policy.cell.reset_units(self.state_BS, units)

    def restart(self, mask_B: Tensor) -> None:
        """Start a fresh episode with an empty memory in the copies of `mask_B` (bool [B])."""
        self.obs = self.first_obs(mask_B=mask_B)
        self.state_BS = self.state_BS.masked_fill(mask_B.unsqueeze(-1), 0.0)
        self._forget(mask_B)

    def running(self) -> AbstractContextManager[None]:
        """Whatever must run while this is used: nothing, the environments live in this process."""
        return nullcontext()

    def timing(self) -> dict[str, float]:
        """Scalars for the log that depend on the clock."""
        return {}

    def inputs(self) -> Inputs:
        """What the policy reads now."""
        env = self.env
        return Inputs(self.obs, self.previous_action, self.previous_reward, env.task_device_B, env.action_mask_BA)

    def act(self) -> dict[str, Any]:
        """One step of every copy, under `no_grad`. Returns what was seen and done, one tensor [B, ...] each."""
        decided = self.decide()
        return self.receive(decided, *self.env.step(self.policy.distribution.clip(decided["action"])))

    def decide(self) -> dict[str, Any]:
        """From the observation to the action, the first half of a step: what was seen so far, with the `action`."""
        inputs, is_init, state = self.inputs(), self.is_init, self.state_BS
        distribution = self.policy.distribution
        outputs, self.state_BS, x, kept = self.actor.step(inputs, state, is_init)
        if self.deterministic:
            action = distribution.mode(outputs.policy)
        else:
            action = distribution.act(outputs.policy, self.generator)
        masks = {"action_mask": inputs.action_mask} if self.env.masks_vary else {}
        return {
            **masks,
            "obs": inputs.obs,
            "previous_action": inputs.previous_action,
            "previous_reward": inputs.previous_reward,
            "is_init": is_init,
            "action": action,
            "policy": outputs.policy,
            "value": outputs.value,
            # not part of the chunk
            "x": x,
            "state": state,
            "kept": kept,
        }

    def receive(
        self,
        decided: dict[str, Any],
        obs: Tensor,
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        info: dict[str, Any],
    ) -> dict[str, Any]:
        """What came of an action, the second half of a step: `decided`, with what the environment returned."""
        distribution, action = self.policy.distribution, decided["action"]
        self.obs = obs
        if self.env.scaled:
            reward = reward * self.env.reward_scale_B
        if self.policy.with_action:
            self.previous_action = distribution.features(action)
        if self.policy.with_reward:
            self.previous_reward = reward
        seen = {
            **decided,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "target": info["target"],
            "target_mask": info["target_mask"],
            "valid": info["valid"],
            "final_obs": info["final_obs"],
            "episode_return": info["episode_return"],
            "done": info["_final_obs"],
        }
        self.is_init = self.nowhere
        if self.reset_memory_on == "episode":
            self._forget(info["is_init"])
        elif self.reset_memory_on == "step":
            self._forget(torch.ones_like(decided["is_init"]))
        return seen

    @torch.no_grad()
    def steps(self, steps: int) -> Steps:
        """Act for T steps."""
        return self._compiled(steps) or self._one_by_one(steps)

    @torch.no_grad()
    def collect(self, steps: int) -> Experience:
        """Act for T steps."""
        return self.experience(self.steps(steps))

    def experience(self, acted: Steps, then: Following | None = None) -> Experience:
        """Steps as a chunk; by default the last ones, up to now, whose task and mask are those of now."""
        seen, states, kept, final_obs = acted
        steps = len(states) - 1
        state_TBS, after_TBS = states[:-1], states[1:]
        env, then = self.env, then or Following(self.obs, self.is_init, self.state_BS)
        if "task" not in seen:
            seen["task"] = env.task_device_B.expand(steps, -1)
        if "action_mask" not in seen:
            seen["action_mask"] = env.action_mask_BA.expand(steps, -1, -1)
        final_step, final_obs_KB = self.truncated(seen, final_obs)
        chunk = Chunk(
            obs=seen["obs"],
            previous_action=seen["previous_action"],
            previous_reward=seen["previous_reward"],
            task=seen["task"],
            action_mask=seen["action_mask"],
            is_init=seen["is_init"],
            action=seen["action"],
            reward=seen["reward"],
            terminated=seen["terminated"],
            truncated=seen["truncated"],
            log_prob=self.policy.distribution.act_log_prob(seen["policy"], seen["action"]),
            policy=seen["policy"],
            value=seen["value"],
            final_value=torch.zeros_like(seen["value"]),
            target=seen["target"],
            target_mask=seen["target_mask"],
            weight=seen["valid"].to(seen["reward"].dtype),
            final_step=final_step,
            final_obs=final_obs_KB,
            next_obs=then.obs,
            next_is_init=then.is_init,
            bootstrap_value=torch.zeros_like(seen["value"][0]),
            state=state_TBS[0],
        )
        chunk.bootstrap_value, chunk.final_value = self.policy.after(
            chunk, then.state_BS, lambda copies: after_TBS[:, copies], dense=self.dense
        )
        left = Acted(after_TBS, kept) if kept else None
        return Experience(chunk, seen["x"], state_TBS, seen["episode_return"], seen["done"], acted=left)

    def _one_by_one(self, steps: int) -> Steps:
        """T steps of `act`."""
        return self.together([self.act() for _ in range(steps)])

    def together(self, records: list[dict[str, Any]]) -> Steps:
        """What `act` returned in the last steps, up to now."""
        apart = ("final_obs", "state", "kept")
        seen = {key: _over_time([record[key] for record in records]) for key in records[0] if key not in apart}
        states = torch.stack([*(record["state"] for record in records), self.state_BS])
        kept = tuple(torch.stack(rows) for rows in zip(*(record["kept"] for record in records), strict=True))
        return Steps(seen, states, kept, lambda: torch.stack([record["final_obs"] for record in records]))

    def _compiled(self, steps: int) -> Steps | None:
        """The same with compiled calls, all steps in one where the environment has compiled calls too; None where the
        policy has none."""
        env, policy, B = self.env, self.policy, self.env.num_envs
        read = torch.int64 if policy.encoder.counts else policy.critic.weight.dtype
        if (
            self.dense
            or env.masks_vary
            or self.reset_memory_on != "episode"
            or self.obs.dtype != read
            or not compiled(policy)
        ):
            return None
        made = self._program(steps)
        inputs, parts, env_steps = self.inputs(), made.parts, made.made
        if env_steps is not None:
            env_steps.begin()
        parts.begin(inputs, self.state_BS, self.is_init, env.reward_scale_B if env.scaled else None)
        made.pack.run()
        obs, is_init, reward = parts.obs_TB, parts.is_init_TB, made.reward
        if env_steps is None:
            stepped = self._step_between(made)
        else:
            made.before.run(steps)
            env_steps.finish()
            stepped = {
                "terminated": env_steps.terminated,
                "truncated": env_steps.truncated,
                "target": env_steps.info.get("target", torch.zeros(steps, B, 0)),
                "target_mask": env_steps.info.get("target_mask", self.nowhere.expand(steps, -1)),
                "valid": ~self.nowhere.expand(steps, -1),
                "episode_return": env_steps.episode_return,
                "done": is_init[1:],
                "final_obs": env_steps.final_obs,
            }
        previous_action, previous_reward = parts.shown(self.inputs())
        self.obs, self.is_init, self.state_BS = obs[-1].clone(), is_init[-1].clone(), parts.state_TBS[-1].clone()
        self.previous_action, self.previous_reward = previous_action[-1].clone(), previous_reward[-1].clone()
        seen = {
            "obs": obs[:-1],
            "previous_action": previous_action[:-1],
            "previous_reward": previous_reward[:-1],
            "is_init": is_init[:-1],
            "action": parts.acted.drawn_TB,
            "reward": reward,
            "policy": parts.policy_TBP.contiguous(),
            "value": parts.value_TB.contiguous(),
            "x": parts.x_TBD,
            **stepped,
        }
        final_obs = seen.pop("final_obs")
        return Steps(seen, parts.state_TBS, parts.kept, lambda: final_obs)

    def _program(self, steps: int) -> Program:
        """The calls for T steps; with `programs` those that were built for them before."""
        policy = self.policy
        if self.programs is None or backward.cell_refusal(policy.cell):  # some cells read copies of their weights
            return self._build(steps)
        addresses = [parameter.data_ptr() for parameter in policy.parameters()]
        key = steps, *self.env.groups, self.env.action_mask_BA.shape, self.env.scaled, self.obs.dtype, *addresses
        if key in self.programs and not self.programs[key].fits():
            del self.programs[key]
        made = self.programs.get_or_build(key, lambda: self._build(steps))
        assert made is not None
        return made

    def _build(self, steps: int) -> Program:
        env, policy, B = self.env, self.policy, self.env.num_envs
        border = env.action_border()
        acted = actions(policy, steps, B, rescaled=border is not None)
        made = env.compiled_steps(acted.given_TB)
        if made is None:
            border, acted = None, actions(policy, steps, B, rescaled=False)
            obs = self.obs.new_empty(steps + 1, *self.obs.shape)
            is_init, reward = torch.empty(steps + 1, B, dtype=torch.bool), torch.empty(steps, B)
        else:
            obs, is_init, reward = made.obs, made.is_init, made.reward
        masked, generator = env.action_mask_BA.shape[-1], None if self.deterministic else self.generator
        parts = CompiledActing(policy, obs, is_init, reward, acted, border, generator, masked=masked, scaled=env.scaled)
        return Program(made, parts, reward)

    def _step_between(self, made: Program) -> dict[str, Tensor]:
        """Make the calls with a step of the environment between them; what it returns beside observations, resets and
        rewards, which go where the calls read them."""
        obs, is_init, reward = made.parts.obs_TB, made.parts.is_init_TB, made.reward
        before, after, action = made.before, made.after, made.parts.acted.clipped_TB
        records = []
        for t in range(len(reward)):
            before.run(1, t)
            obs_B, reward[t], terminated, truncated, info = self.env.step(action[t])
            obs[t + 1], is_init[t + 1] = obs_B, info["is_init"]
            after.run(1, t)
            kept = {key: info[key] for key in ("target", "target_mask", "valid", "final_obs", "episode_return")}
            records.append({"terminated": terminated, "truncated": truncated, "done": info["_final_obs"], **kept})
        return {key: _over_time([record[key] for record in records]) for key in records[0]}

    def truncated(self, seen: dict[str, Tensor], final_obs: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """The slots of the truncated steps: their step [K, B] and true last observation (see `Chunk`)."""
        truncated_TB = seen["truncated"] & ~seen["terminated"]
        T, B = truncated_TB.shape
        # a device is not asked how many there are; it has slots for as many as there can be
        slots = self.env.truncations(T) if self.dense else int(truncated_TB.any() and truncated_TB.sum(0).max())
        if not slots:
            none = torch.zeros(0, B, dtype=torch.int64, device=truncated_TB.device)
            return none, self.obs.new_zeros(0, *self.obs.shape)
        step_T1 = torch.arange(T, device=truncated_TB.device).unsqueeze(-1)
        step_KB = torch.where(truncated_TB, step_T1, T).sort(0).values[:slots]
        at = step_KB.clamp(max=T - 1), torch.arange(B, device=truncated_TB.device)
        return step_KB, final_obs()[at]

    def state_dict(self) -> dict[str, Any]:
        """The memory, the environment and the randomness of the actions."""
        return {
            "env": self.env.state_dict(),
            "obs": self.obs,
            "state": self.state_BS,
            "previous_action": self.previous_action,
            "previous_reward": self.previous_reward,
            "is_init": self.is_init,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Environments that cannot save their state start fresh episodes."""
        if "runners" in saved:
            raise ValueError(f"it was made with runtime.env_runners={len(saved['runners'])}, and now it is 0")
        if "fresh" in saved:
            self.start(seed=saved["fresh"])
            self.generator.manual_seed(saved["fresh"])
            return
        self.env.load_state_dict(saved["env"])
        device = self.env.device
        self.state_BS = saved["state"].to(device)
        self.previous_action = saved["previous_action"].to(device)
        self.previous_reward = saved["previous_reward"].to(device)
        self.is_init = saved["is_init"].to(device)
        self.generator.set_state(saved["generator"].cpu())
        if self.env.exact_state:
            self.obs = saved["obs"].to(device)
        else:
            self.obs = self.first_obs()
            self._forget(torch.ones_like(self.is_init))


def _over_time(rows: list[Tensor]) -> Tensor:
    """The rows as one tensor [T, ...]; a view if they are all the same tensor (what the environment never changes)."""
    first = rows[0]
    return first.expand(len(rows), *first.shape) if all(row is first for row in rows) else torch.stack(rows)
