"""An agent outside of its run: its config with environments that somebody else steps, and its parts from what a run, or
an agent in another program, has saved."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
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
from lifelong.agent.policy import Policy
from lifelong.agent.runtime import checkpoint, session, state
from lifelong.agent.runtime.build import build, build_env, build_stream, subseed
from lifelong.agent.runtime.detection import Kept, chunks_kept
from lifelong.agent.runtime.randomness import untouched
from lifelong.agent.runtime.rollout import Acting, Experience, Rollout
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
        keep, whole: how many of the last chunks of how many steps strategies look back on; shorter ones are left out.
        kept: these.
        forgets: the memory of every copy is to be reset before the next action.
    """

    def __init__(self, env: TaskEnv, policy: Policy, generator: torch.Generator, *, reset_memory_on: str) -> None:
        space = env.single_observation_space
        real = space.dtype is None or space.dtype.kind == "f"
        dtype = policy.critic.weight.dtype if real else getattr(torch, str(space.dtype))
        self.obs = torch.zeros(env.num_envs, *(space.shape or ()), dtype=dtype, device=env.device)
        self.decided: dict[str, Any] | None = None
        self.records: list[dict[str, Any]] = []
        self.kept: list[Kept] = []
        self.keep = self.whole = 0
        self.forgets = False
        super().__init__(env, policy, generator, reset_memory_on=reset_memory_on)
        self.return_B = torch.zeros_like(self.previous_reward)
        #: copies whose observation was the last one of an episode: what they do next counts for nothing
        self.over_B = self.nowhere

    def first_obs(self, seed: int | None = None, mask_B: Tensor | None = None) -> Tensor:
        """The observations that there are: nobody here can begin an episode."""
        return self.obs

    def decide(self) -> dict[str, Any]:
        """From the observation to the action (see `Rollout.decide`)."""
        if self.forgets:
            self._forget(torch.ones_like(self.is_init))
            self.forgets = False
        return super().decide()

    @torch.no_grad()
    def hear(
        self,
        obs: Tensor,
        reward_B: Tensor,
        terminated_B: Tensor,
        truncated_B: Tensor,
        final_obs: Tensor | None,
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
            acts_on: in that case copies act on their last observation, too, as they do in a batch.
        """
        assert self.decided is not None
        live_B = ~self.over_B
        terminated_B, truncated_B = terminated_B & live_B, truncated_B & live_B
        done_B = terminated_B | truncated_B
        reward_B = torch.where(live_B, reward_B, 0.0)
        return_B = self.return_B + reward_B
        over_B = done_B if final_obs is None and acts_on else self.nowhere
        none = torch.zeros(len(obs), 0, device=obs.device)
        shaped = done_B.view(-1, *[1] * (obs.dim() - 1))
        info = {
            "final_obs": obs if final_obs is None else torch.where(shaped, final_obs, obs),
            "_final_obs": done_B,
            "is_init": self.over_B | (done_B & ~over_B),
            "valid": live_B,
            "target": none,
            "target_mask": self.nowhere,
            "episode_return": return_B,
        }
        self.records.append(self.receive(self.decided, obs, reward_B, terminated_B, truncated_B, info))
        self.decided, self.over_B = None, over_B
        self.return_B = torch.where(done_B, 0.0, return_B)

    @torch.no_grad()
    def collect(self, steps: int) -> Experience:
        """The steps since the last chunk, as one."""
        experience = self.experience(self.together(self.records))
        self.records = []
        if self.keep and steps == self.whole:
            one = Kept(0, experience.chunk, experience.episode_return_TB, experience.done_TB)
            self.kept = [*self.kept, one][-self.keep :]
        return experience

    def restart(self, mask_B: Tensor) -> None:
        """Go on with an empty memory in the copies of `mask_B` (bool [B]); what was kept is not what came before."""
        super().restart(mask_B)
        self.kept = []

    def reset_units(self, units: Tensor) -> None:
        """Zero what the memory of every copy, and of what is kept, holds of the re-initialised `units` (int64)."""
        super().reset_units(units)
        for one in self.kept:
            self.policy.cell.reset_units(one.chunk.state, units)

    def state_dict(self) -> dict[str, Any]:
        """All that acting goes on from, the steps of the chunk under way with it."""
        names = ("obs", "state_BS", "previous_action", "previous_reward", "is_init", "return_B", "over_B")
        return {
            **{name: getattr(self, name) for name in names},
            "task": self.env.task_B,
            "generator": self.generator.get_state(),
            "forgets": self.forgets,
            "decided": self.decided,
            "records": self.records,
            "kept": [one.state_dict() for one in self.kept],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if saved["obs"].shape != self.obs.shape:
            raise ValueError(f"it has {len(saved['obs'])} copies, and now there are {len(self.obs)}")
        self.env.set_tasks(saved["task"])
        self.generator.set_state(saved["generator"].cpu())
        self.kept = [Kept.of(one, self.env.device) for one in saved["kept"]]
        rest = {name: value for name, value in saved.items() if name not in ("task", "generator", "kept")}
        vars(self).update(map_tensors(rest, lambda x: x.to(self.env.device)))


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
            scores = [[float(low), float(high)] for low, high in env.scores]
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
