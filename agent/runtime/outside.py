"""An agent outside of its run: its config with environments that somebody else steps, and its parts from what a run, or
an agent in another program, has saved."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelong.agent import config as configs
from lifelong.agent.config import Config, RuntimeConfig
from lifelong.agent.errors import CheckpointError, ConfigError, LifelongError
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.parallel import Workers
from lifelong.agent.policy import Inputs, Policy
from lifelong.agent.runtime import checkpoint, session, state
from lifelong.agent.runtime.build import build, build_env, build_stream, subseed
from lifelong.agent.runtime.detection import Kept, chunks_kept
from lifelong.agent.runtime.lanes import Lanes
from lifelong.agent.runtime.randomness import untouched
from lifelong.agent.runtime.rollout import Acting, Experience, Following, Rollout
from lifelong.agent.runtime.source import Lived
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.runtime.walk import map_tensors
from lifelong.envs.adapters.outside import outside_of
from lifelong.envs.border import Restarts
from lifelong.envs.errors import EnvError
from lifelong.envs.stream import Schedule, Segment, TaskStream
from lifelong.envs.tasks import TaskEnv

#: steps of a life whose end nobody knows
LIFE = 10**15
#: of a file that holds an agent
FORMAT = "lifelong agent"


class Told(Schedule):
    """Task after task, as somebody says; what comes next is not known.

    Args:
        tasks: how many there are.
        segments: so far; the last one goes on.
    """

    def __init__(self, tasks: int, segments: Sequence[Segment]) -> None:
        self.steps, self.seed = [LIFE] * tasks, 0
        self.segments = [*segments[:-1], replace(segments[-1], end=LIFE)]

    def after(self, step: int, task: int) -> dict[str, Any]:
        """The state with `task` from `step` on."""
        done = [segment for segment in self.segments if segment.start < step]
        done = [*done[:-1], *(replace(segment, end=step) for segment in done[-1:])]
        return {"told": [[s.start, s.end, s.task] for s in [*done, Segment(step, LIFE, task)]]}

    def state_dict(self) -> dict[str, Any]:
        return {"told": [[s.start, s.end, s.task] for s in self.segments]}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.segments = [Segment(*segment) for segment in saved["told"]]


class OutsideRollout(Rollout):
    """B copies that another program steps. It asks for actions (`decide`) and says what came of them (`hear`); after T
    steps of this `collect` has them as a chunk.

    Attributes:
        decided: the first half of the step that is under way, if there is one.
        records: the steps since the last chunk.
        lanes: in place of both, if copies have steps of their own (see `agent.runtime.lanes`).
        keep, whole: how many of the last chunks of how many steps strategies look back on; shorter ones are left out.
        kept: these.
        forgets: the memory of every copy is to be reset before the next action.
        mask_BA: the actions that there are, as the program says it; None: it never does.
        version: of the parameters that act, a number that grows.
    """

    def __init__(self, env: TaskEnv, policy: Policy, generator: torch.Generator, *, reset_memory_on: str) -> None:
        space = env.single_observation_space
        real = space.dtype is None or space.dtype.kind == "f"
        dtype = policy.critic.weight.dtype if real else getattr(torch, str(space.dtype))
        self.obs = torch.zeros(env.num_envs, *(space.shape or ()), dtype=dtype, device=env.device)
        self.decided: dict[str, Any] | None = None
        self.records: list[dict[str, Any]] = []
        self.lanes: Lanes | None = None
        self.kept: list[Kept] = []
        self.keep = self.whole = 0
        self.forgets = False
        self.mask_BA: Tensor | None = None
        self.version = 0
        self.oldest = 0  # version that acted in `records`
        #: held while what acting goes on from changes
        self.lock: AbstractContextManager[Any] = nullcontext()
        super().__init__(env, policy, generator, reset_memory_on=reset_memory_on)
        self.return_B = torch.zeros_like(self.previous_reward)
        predicts, nothing = any(one.PREDICTION for one in env.envs), torch.zeros(env.num_envs, 0, device=env.device)
        self._no_target = None if predicts else {"target": nothing, "target_mask": self.nowhere}
        #: copies whose observation was the last one of an episode: what they do next counts for nothing
        self.over_B = self.nowhere

    def first_obs(self, seed: int | None = None, mask_B: Tensor | None = None) -> Tensor:
        """The observations that there are: nobody here can begin an episode."""
        return self.obs

    def inputs(self) -> Inputs:
        """What the policy reads now."""
        inputs = super().inputs()
        if self.mask_BA is not None:
            inputs.action_mask = self.mask_BA
        return inputs

    def decide(self) -> dict[str, Any]:
        """From the observation to the action (see `Rollout.decide`)."""
        if self.forgets:
            self._forget(torch.ones_like(self.is_init))
            self.forgets = False
        decided = super().decide()
        if self.mask_BA is not None:
            decided["action_mask"] = self.mask_BA
        if not self.records:
            self.oldest = self.version
        return decided

    @torch.no_grad()
    def hear(
        self,
        obs: Tensor,
        reward_B: Tensor,
        terminated_B: Tensor,
        truncated_B: Tensor,
        final_obs: Tensor | None,
        target: Tensor | None = None,
        *,
        acts_on: bool,
    ) -> None:
        """What came of the actions of `decide`.

        Args:
            obs: [B, ...].
            reward_B: unscaled.
            terminated_B, truncated_B: bool.
            final_obs: [B, ...], where an episode ended its true last observation; `obs` is the first of the next one
                there. None: `obs` is the last.
            target: [B, ...], what was to be predicted; None: nothing.
            acts_on: in that case copies act on their last observation, too, as they do in a batch.
        """
        assert self.decided is not None
        if self.over_B is self.nowhere and not bool((terminated_B | truncated_B).any()):  # as nearly always
            done_B = over_B = starts_B = self.nowhere
            live_B, return_B = ~self.nowhere, self.return_B + reward_B
            last, after_B = obs, return_B
        else:
            live_B = ~self.over_B
            terminated_B, truncated_B = terminated_B & live_B, truncated_B & live_B
            done_B = terminated_B | truncated_B
            reward_B = torch.where(live_B, reward_B, 0.0)
            return_B = self.return_B + reward_B
            over_B = done_B if final_obs is None and acts_on else self.nowhere
            last = obs if final_obs is None else _where(done_B, final_obs, obs)
            starts_B, after_B = self.over_B | (done_B & ~over_B), torch.where(done_B, 0.0, return_B)
        info = {
            "final_obs": last,
            "_final_obs": done_B,
            "is_init": starts_B,
            "valid": live_B,
            **self._target(target, len(obs)),
            "episode_return": return_B,
        }
        self.records.append(self.receive(self.decided, obs, reward_B, terminated_B, truncated_B, info))
        self.decided, self.over_B, self.return_B = None, over_B, after_B

    def _target(self, target: Tensor | None, count: int) -> dict[str, Tensor]:
        """What was to be predicted, and where there is such a thing; a shape for all of a life."""
        distribution, device = self.policy.distribution, self.env.device
        if self._no_target is not None:
            return self._no_target if count == len(self.obs) else {n: x[:count] for n, x in self._no_target.items()}
        there = torch.full((count,), target is not None, device=device)
        if target is None:
            target = torch.zeros(count, *distribution.action_shape, dtype=distribution.action_dtype, device=device)
        return {"target": target, "target_mask": there}

    def waits(self, copy: int) -> bool:
        """Whether an action of a copy waits for its outcome."""
        if self.lanes is not None:
            return self.lanes.waiting(copy) is not None
        return self.decided is not None

    # ---- copies one by one ---------------------------------------------------------------------------------------

    def part(self) -> None:
        """From now on every copy has steps of its own; an action that waits for its reward goes along."""
        assert not self.records
        self.lanes = Lanes(self.env.num_envs)
        self.lanes.returns = self.return_B.tolist()
        if self.decided is not None:
            self._begin(range(self.env.num_envs), self.decided)
        self.decided = None

    def _begin(self, copies: Sequence[int], decided: dict[str, Any]) -> list[int]:
        assert self.lanes is not None
        index, inputs = torch.tensor(copies), self.inputs()
        seen = {"task": inputs.task[index], "action_mask": inputs.action_mask[index], **decided}
        return self.lanes.begin(copies, seen, self.version)

    @torch.no_grad()
    def decide_some(self, copies: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Actions [n, ...] of some copies, and the serial numbers of these steps."""
        if self.forgets:
            self._forget(torch.ones_like(self.is_init))
            self.forgets = False
        index = torch.tensor(copies, device=self.env.device)
        inputs, distribution = self.inputs(), self.policy.distribution
        inputs = Inputs(*(each[index] for each in vars(inputs).values()))
        is_init, state = self.is_init[index], self.state_BS[index]
        outputs, after, x, _ = self.actor.step(inputs, state, is_init)
        drawn = None if self.deterministic else distribution.act(outputs.policy, self.generator)
        action = distribution.mode(outputs.policy) if drawn is None else drawn
        self.state_BS = self.state_BS.index_copy(0, index, after)
        decided = {
            "obs": inputs.obs,
            "previous_action": inputs.previous_action,
            "previous_reward": inputs.previous_reward,
            "is_init": is_init,
            "action": action,
            "policy": outputs.policy,
            "value": outputs.value,
            "x": x,
            "state": state,
        }
        return action, self._begin(copies, decided)

    @torch.no_grad()
    def hear_some(
        self,
        copies: Sequence[int],
        obs: Tensor,
        reward: Tensor | None,
        terminated: Tensor,
        truncated: Tensor,
        final_obs: Tensor | None,
        target: Tensor | None = None,
        *,
        acts_on: bool,
    ) -> None:
        """What came of the last actions of some copies (see `hear`), [n, ...] each; of their rewards, if they are not
        None."""
        assert self.lanes is not None
        index = torch.tensor(copies, device=self.env.device)
        over, distribution = self.over_B[index], self.policy.distribution
        live = ~over
        terminated, truncated = terminated & live, truncated & live
        done = terminated | truncated
        now_over = done if final_obs is None and acts_on else torch.zeros_like(done)
        given = torch.zeros_like(self.return_B[index]) if reward is None else torch.where(live, reward, 0.0)
        scaled = given * self.env.reward_scale_B[index]
        is_init = over | (done & ~now_over)
        outcome = {
            "reward": scaled,
            "given": given,
            "terminated": terminated,
            "truncated": truncated,
            **self._target(target, len(copies)),
            "valid": live,
            "final_obs": obs if final_obs is None else _where(done, final_obs, obs),
            "episode_return": given,
            "done": done,
        }
        rows = [self.lanes.waiting(copy) for copy in copies]
        action = torch.cat([row["action"] for row in rows if row is not None])
        self.lanes.hear(copies, outcome, settled=reward is not None)
        self.obs = self.obs.index_copy(0, index, obs)
        self.over_B = self.over_B.index_copy(0, index, now_over)
        if self.policy.with_action:
            self.previous_action = self.previous_action.index_copy(
                0, index, distribution.features(action).to(self.previous_action.dtype)
            )
        if self.policy.with_reward:
            self.previous_reward = self.previous_reward.index_copy(0, index, scaled)
        self.is_init = self.is_init.index_fill(0, index, False)
        forgets = {"episode": is_init, "step": torch.ones_like(is_init)}.get(self.reset_memory_on)
        if forgets is not None:
            self._forget(self.nowhere.index_copy(0, index, forgets))

    # ---- the chunk -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self, steps: int, copies: Sequence[int] | None = None) -> Experience:
        """The steps since the last chunk, as one; of lanes the first T of the copies that have so many, or of some."""
        if self.lanes is not None:
            copies = self.lanes.ready(steps) if copies is None else copies
            acted, then, oldest = self.lanes.take(copies, steps, Following(self.obs, self.is_init, self.state_BS))
            index = None if len(copies) == self.env.num_envs else torch.tensor(copies, device=self.env.device)
            return replace(self.experience(acted, then), copies=index, lags=oldest != self.version)
        experience = self.experience(self.together(self.records))
        self.records = []
        if self.oldest != self.version:
            experience = replace(experience, lags=True, acted=None)
        if self.keep and steps == self.whole:
            one = Kept(0, experience.chunk, experience.episode_return_TB, experience.done_TB)
            self.kept = [*self.kept, one][-self.keep :]
        return experience

    def restart(self, mask_B: Tensor) -> None:
        """Go on with an empty memory in the copies of `mask_B` (bool [B]); what was kept is not what came before."""
        with self.lock:
            super().restart(mask_B)
            self.kept = []
            if self.lanes is not None:
                for copy in mask_B.nonzero().flatten().tolist():
                    self.lanes.drop(copy)

    def abandon(self) -> None:
        """Whatever is under way is not learned from, and no action waits for an outcome."""
        self.decided, self.records, self.over_B = None, [], self.nowhere
        if self.lanes is not None:
            self.lanes = Lanes(self.env.num_envs)

    def reset_units(self, units: Tensor) -> None:
        """Zero what the memory of every copy, and of what is kept, holds of the re-initialised `units` (int64)."""
        with self.lock:
            super().reset_units(units)
            for one in self.kept:
                self.policy.cell.reset_units(one.chunk.state, units)
            for row in [row for rows in self.lanes.rows for row in rows] if self.lanes is not None else self.records:
                self.policy.cell.reset_units(row["state"], units)

    def state_dict(self) -> dict[str, Any]:
        """All that acting goes on from, the steps of the chunk under way with it."""
        names = ("obs", "state_BS", "previous_action", "previous_reward", "is_init", "return_B", "over_B")
        plain = ("forgets", "decided", "records", "mask_BA", "version", "oldest")
        return {
            **{name: getattr(self, name) for name in (*names, *plain)},
            "task": self.env.task_B,
            "generator": self.generator.get_state(),
            "kept": [one.state_dict() for one in self.kept],
            "lanes": None if self.lanes is None else self.lanes.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if saved["obs"].shape != self.obs.shape:
            raise ValueError(f"it has {len(saved['obs'])} copies, and now there are {len(self.obs)}")
        self.env.set_tasks(saved["task"])
        self.generator.set_state(saved["generator"].cpu())
        self.kept = [Kept.of(one, self.env.device) for one in saved["kept"]]
        rest = {name: value for name, value in saved.items() if name not in ("task", "generator", "kept")}
        rest = map_tensors(rest, lambda x: x.to(self.env.device))
        lanes = rest.pop("lanes", None)
        self.lanes = None if lanes is None else Lanes.of(lanes)
        vars(self).update(rest)


def _where(mask_B: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a [B, ...] where the mask [B] is true, else b."""
    return torch.where(mask_B.view(-1, *[1] * (b.dim() - 1)), a, b)


def as_outside(config: Config, copies: int, device: str = "cpu") -> Config:
    """The config of a run with environments that somebody else steps, in one process; its tasks keep their names,
    spaces and scales, and none of them ends. Its environments are made once, to know their spaces, and not stepped.

    Raises:
        ConfigError: an environment cannot be made.
    """
    try:
        env = build_env(config, build_stream(config), 1, torch.device("cpu"), 0, Restarts())
        with closing(env):
            specs = [outside_of(env.envs[group]) for group in env.group_of]
            known = zip(env.scores, env.scored, strict=True)
            scores = [[float(low), float(high)] if there else [] for (low, high), there in known]
    except EnvError as error:
        raise ConfigError(str(error)) from error
    config = copy.deepcopy(config)
    for task, spec, score in zip(config.stream.tasks, specs, scores, strict=True):
        task.env, task.score, task.steps = spec, score, LIFE
    stream, rollout = config.stream, config.rollout
    stream.schedule, stream.steps_per_task, stream.cycles = {"kind": "sequential"}, LIFE, 1
    stream.added, stream.share = [], 1.0
    rollout.copies, rollout.random_initial_age = copies, False
    config.evaluation.episodes = 1
    config.runtime = RuntimeConfig(device=device, threads=config.runtime.threads)
    return config


def saved_agent(path: Path, assignments: Sequence[str] = ()) -> tuple[Config, dict[str, Any], bool]:
    """What is at `path`: its config with overrides, its state, and whether that is of an agent in another program (a
    file) and not of a run (a folder, its newest good checkpoint).

    Raises:
        CheckpointError: there is neither, or it cannot be read.
        ConfigError: an override that cannot be.
    """
    if not path.exists():
        raise CheckpointError(
            f"there is nothing at {path}; give a run folder such as runs/quickstart/0, or a saved agent"
        )
    alone = path.is_file()
    if alone:
        saved = checkpoint.read(path)
        if saved.get("format") != FORMAT:
            raise CheckpointError(f"{path} is no agent that `OnlineAgent.save` wrote")
    else:
        run = session.load_config(path)
        saved, _ = checkpoint.load(path / "checkpoints", Workers(0, run.runtime.workers))
        if "config" not in saved:
            raise CheckpointError(f"the checkpoint in {path} was saved by an older lifelong; go on with that one")
    return configs.check(configs.override(saved["config"], assignments)), saved, alone


def built(
    config: Config, old: Config, saved: dict[str, Any] | None = None, where: str = "", *, alone: bool = False
) -> Trainer:
    """The trainer of a config that `as_outside` made of `old`. Nothing is drawn from the randomness of the program that
    this runs in. What strategies ask a source for is the last that was lived.

    Args:
        saved: the state that it is to be in; None: the beginning.
        where: for sentences.
        alone: that is a state of an agent in another program, which goes on; one of a run begins new episodes.

    Raises:
        ConfigError: the config is impossible.
        CheckpointError: the state does not fit it.
    """

    def acting(config: Config, policy: Policy, engine: GradientEngine, env: TaskEnv) -> Acting:
        device, seed = env.device, subseed(config.seed, "actions")
        copies = build_env(config, build_stream(config), config.rollout.copies, device, 0, Restarts())
        generator = torch.Generator(device=device).manual_seed(seed)
        return OutsideRollout(copies, policy, generator, reset_memory_on=config.policy.reset_memory_on)

    with untouched():
        scratch = Path(tempfile.gettempdir())  # what strategies keep on a disk has no name, and is no part of a run
        trainer = build(config, scratch, acting=acting)
        rollout, segments = trainer.rollout, [Segment(0, LIFE, 0)]
        assert isinstance(rollout, OutsideRollout)
        rollout.keep, rollout.whole = chunks_kept(trainer.strategies, config.rollout.copies, 0), trainer.steps
        trainer.fresh = Lived(trainer.fresh.engine, lambda: rollout.kept)
        if saved is not None and not alone:
            stream = build_stream(old)
            stream.load_state_dict(saved["stream"])
            segments = [replace(s, task=s.task or 0) for s in stream.segments[: max(0, saved["segment"]) + 1]]
        trainer.stream = TaskStream(trainer.stream.tasks, Told(len(trainer.stream.tasks), segments))
        if saved is not None:
            try:
                state.load(trainer, saved if alone else _without_life(saved, trainer))
            except LifelongError:
                raise
            except (RuntimeError, KeyError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise CheckpointError(f"what is saved in {where} does not fit this config: {reason}") from error
    return trainer


def _without_life(saved: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """The state of a run without what belongs to the episodes that it was in."""
    now = {"stream": trainer.stream.state_dict(), "carry": trainer.learner.engine.state_dict(), "kept": []}
    now |= {"traces": trainer.learner.objective.own_state_dict()}
    own = {"rollout": trainer.rollout.state_dict(), "record": trainer.record.state_dict(), "owed": False}
    return {**saved, **now, **own}
