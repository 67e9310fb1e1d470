"""An agent in another program, which acts and learns while that program steps its environment: `lifelong.OnlineAgent`.

Nothing is done in a way of its own here. The steps that the program makes become chunks of T steps
(`agent.runtime.outside`), and the trainer of a run learns from each as it would from its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from lifelong.agent import config as configs
from lifelong.agent import registry
from lifelong.agent.apart import Apart
from lifelong.agent.config import Config
from lifelong.agent.errors import ConfigError, choice, unknown_name
from lifelong.agent.files import make_folder, write
from lifelong.agent.runtime.appended import present
from lifelong.agent.runtime.converter import Converter
from lifelong.agent.runtime.finite import NotFinite
from lifelong.agent.runtime.given import Given, check_start, of_info, task_of
from lifelong.agent.runtime.learning import MODES, Gathered, Learn, Learning
from lifelong.agent.runtime.logging import RunLog
from lifelong.agent.runtime.machine import versions
from lifelong.agent.runtime.outside import FORMAT, OutsideRollout, Told, as_outside, built, saved_agent
from lifelong.agent.runtime.planned import lane
from lifelong.agent.runtime.planned.lane import Lane
from lifelong.agent.runtime.progress import Progress
from lifelong.agent.runtime.rescue import drop
from lifelong.agent.runtime.trainer import Trainer
from lifelong.envs.adapters.outside import KIND, describe

#: what needs no second look
_FLAGS, _NUMBERS = (bool, np.bool_), (float, int, np.floating, np.integer)


class OnlineAgent(Apart):
    """Acts in, and learns from, an environment that the caller steps:

        agent = lifelong.OnlineAgent(env.observation_space, env.action_space)
        action = agent.act(obs)
        obs, reward, terminated, truncated, _ = env.step(action)
        action = agent.act(obs, reward, terminated, truncated)

    It learns when a chunk of `rollout.steps` T steps is complete (T = 1: in every call), before it chooses the next
    action: exactly as a run of the same config learns from the same observations, actions and rewards.

    Args:
        observation_space, action_space: of one environment.
        config: a bundled name, a path, a mapping, or what `load_config` returns; its tasks, its evaluation and, but for
            the threads, its `runtime` are not used.
        seed: of everything that is drawn; None: that of the config.
        copies: None for one environment; B for a batch of them, in which everything has a leading axis.
        tasks: names of what `boundary` switches between, where `stream.task_id` is observed.
        overrides: `a.b=value`, over the config.
        device: cpu or cuda.
        learn: `now`: a chunk is learned from in the call that completes it; `spread`: in parts, one a call; `thread`:
            beside the calls, while older parameters act.
        learn_every: T, in place of `rollout.steps`.

    Raises:
        ConfigError: an impossible config; a strategy or objective that needs what a program cannot give.
        EnvError: spaces that an agent cannot read or act in.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        config: str | Path | Mapping[str, Any] | Config = "online",
        *,
        seed: int | None = None,
        copies: int | None = None,
        tasks: Sequence[str] = ("online",),
        overrides: Sequence[str] = (),
        device: str = "cpu",
        learn: Learn = "now",
        learn_every: int | None = None,
    ) -> None:
        if isinstance(config, Config):
            config = configs.to_dict(config)
        raw = dict(config) if isinstance(config, Mapping) else configs.read(str(config))
        raw = configs.override(raw, [*overrides, *_every(learn_every)])
        spec = {"kind": KIND, "observation": describe(observation_space), "action": describe(action_space)}
        told = {key: value for key, value in (raw.get("stream") or {}).items() if key in ("boundaries", "task_id")}
        raw |= {"stream": {**told, "tasks": [{"name": name, "env": spec} for name in tasks]}}
        raw |= {"rollout": {**(raw.get("rollout") or {}), "copies": _count(copies)}}
        raw["runtime"] = {key: value for key, value in (raw.get("runtime") or {}).items() if key == "threads"}
        raw |= {} if seed is None else {"seed": seed}
        old = configs.check(raw)
        if registry.load("objective", old.objective["kind"]).needs_target:  # an action is a prediction
            for task in old.stream.tasks:
                task.env = {**task.env, "prediction": True}
        self._setup(built(as_outside(old, _count(copies), device), old), copies, learn)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        copies: int | None = None,
        overrides: Sequence[str] = (),
        device: str = "cpu",
        learn: Learn | None = None,
        learn_every: int | None = None,
    ) -> OnlineAgent:
        """The agent that `save` wrote, which goes on bit for bit; or one that goes on from a run: with its parameters,
        optimiser, strategies and what they keep, at the start of an episode.

        Args:
            path: file, or run folder.
            copies: as above, for a run; a saved agent has its own.
            overrides: `a.b=value`, over the config that was saved.
            device: cpu or cuda.
            learn, learn_every: as above; None: as it was saved, or `now` and that of the run.

        Raises:
            CheckpointError: there is nothing there, or it does not fit.
            ConfigError: an override that cannot be.
        """
        old, saved, alone = saved_agent(Path(path), [*overrides, *_every(learn_every)])
        own = saved.get("agent", {})
        had = own["copies"] if alone else copies
        if copies is not None and copies != had:
            raise ConfigError(
                f"copies is {copies}, and the agent in {path} has {'one environment' if had is None else had}"
            )
        agent = cls.__new__(cls)
        trainer = built(as_outside(old, _count(had), device), old, saved, str(path), alone=alone)
        agent._setup(trainer, had, learn or own.get("learn", "now"))
        if alone:
            agent._frozen, agent._steps, agent._boundary = own["frozen"], own["steps"], own["boundary"]
            agent._given.masked, agent._log_sizes = own.get("masked"), own.get("log")
            if own.get("lane") and agent._lane is not None and agent._lane.ready(frozen=agent._frozen):
                agent._lane.enter(agent._steps)
        return agent

    def _setup(self, trainer: Trainer, copies: int | None, learn: str) -> None:
        rollout = trainer.rollout
        assert isinstance(rollout, OutsideRollout)
        self._trainer, self._rollout, self._copies = trainer, rollout, copies
        self._lead = () if copies is None else (copies,)
        dtype, device = rollout.policy.critic.weight.dtype, rollout.env.device
        self._converter = Converter(rollout.env, dtype, device)
        self._names = [task.name for task in trainer.stream.tasks]
        stream = trainer.config.stream
        #: whether somebody may say which task it is
        self._hears = len(self._names) > 1 and (stream.task_id == "observed" or stream.boundaries == "given")
        self._given = Given(self._converter, trainer.learner.objective, trainer.config.objective["kind"])
        rollout.deterministic = trainer.learner.objective.needs_target  # a prediction is what is thought likeliest
        self._frozen = False
        self._steps = 0  # T of the chunk under way; 0: none is
        self._boundary: str | None = None  # that comes before the next action
        self._log: RunLog | None = None
        self._log_sizes: dict[str, Any] | None = None  # of the log when it was saved
        self._learning = Learning(trainer, rollout, choice("learn", learn, MODES))
        #: the fast way, where there is one
        fast = learn == "now" and not lane.refusal(trainer)
        self._lane = Lane(trainer, batch=copies is not None) if fast else None
        #: whether observations are read as they are
        self._plain = self._lane is not None and self._converter.plain()

    # ---- acting --------------------------------------------------------------------------------------------------

    def act(
        self,
        obs: Any,
        reward: Any = None,
        terminated: Any = False,
        truncated: Any = False,
        info: Any = None,
        *,
        final_obs: Any = None,
        target: Any = None,
        ids: Any = None,
    ) -> Any:
        """The next action, having learned from what came of the last one.

        Args:
            obs: numpy, torch, numbers or lists, as the observation space has it; with a leading axis for a batch.
            reward: of the last action; None before there is one. Where targets are learned from it may be left out.
            terminated, truncated: whether the last action ended an episode, as `env.step` says it.
            info: what `env.step` or `env.reset` returned beside `obs`: `action_mask` or `action_masks`, which actions
                there are now; `task` or `task_id`, name or index, if there are several; `target`; `final_obs`. The
                rest is not looked at.
            final_obs: the true last observation of episodes that ended, where `obs` is the first of the next ones
                (Gymnasium's same-step autoreset, `info["final_obs"]`). None: `obs` is the last.
            target: what the last action, a prediction, should have been; None: nothing is known.
            ids: int [n], which copies of a batch this call is about, the leading axis of everything; None: all.

        Returns:
            What `env.step` takes: an int or an array; with a leading axis for a batch. None if the episode of the one
            environment is over and `obs` its last: reset it, and call `act` with the first observation. In a batch such
            a copy gets an action that does not count, and its first observation with the next call (Gymnasium's
            next-step autoreset).

        Raises:
            EnvError: something that does not fit; one sentence, and nothing has changed.
            ConfigError: `ids` with an objective or a strategy that needs all copies at once.
            NonFiniteError: a loss or gradient is not finite and `on_nonfinite` is stop. Nothing was learned from the
                chunk; `act(obs)` alone goes on, with an empty memory.
        """
        fast = self._lane
        if fast is not None and fast.running:
            if info is None and target is None and ids is None:
                return self._act(fast, obs, reward, terminated, truncated, final_obs)
            found, task = of_info(info), self._task()
            self._hear_task(found)
            self._given.mask(found, obs, self._lead, task)
            if fast.running and target is None and ids is None:
                final_obs = found.get("final_obs") if final_obs is None else final_obs
                return self._act(fast, obs, reward, terminated, truncated, final_obs)
            self._leave()
        given = {"reward": reward, "terminated": terminated, "truncated": truncated, "target": target}
        if ids is not None or self._rollout.lanes is not None:
            stepped = self._some(obs, given, info, final_obs, ids, late=False)
            return None if stepped is None else stepped[0]
        self._learning.go_on()
        rollout, lead, found = self._rollout, self._lead, of_info(info)
        self._hear_task(found)
        task = self._task()
        read = self._converter.observations(obs, task, lead)
        mask = self._given.mask(found, obs, lead, task)
        if rollout.decided is None:
            check_start(reward, terminated, truncated)
            rollout.obs = read
        else:
            heard = self._given.outcome(given, found, obs, lead, task, final_obs, bool(rollout.over_B.all()))
            over = heard.last is None and bool(((heard.terminated | heard.truncated) & ~rollout.over_B).any())
            batch = self._copies is not None
            rollout.hear(read, *heard, acts_on=batch)
            if len(rollout.records) == self._steps:
                self._finish()
            if not batch and over:
                return None
        rollout.mask_BA = mask
        return self._next()

    def _next(self) -> Any:
        """The next action, all that came of the last one having been heard."""
        rollout, fast, task = self._rollout, self._lane, self._task()
        if self._boundary is not None:
            self._cross()
        if not self._steps:
            self._start()
            if fast is not None and rollout.mask_BA is None and fast.ready(frozen=self._frozen):
                fast.enter(self._steps)
                return self._converter.actions(fast.decide(), task, self._lead)
        with torch.no_grad():
            decided = rollout.decided = rollout.decide()
            clipped = rollout.policy.distribution.clip(decided["action"])
        return self._converter.actions(clipped, task, self._lead)

    def _act(self, fast: Lane, obs: Any, reward: Any, terminated: Any, truncated: Any, final_obs: Any) -> Any:
        """`act` in the lane."""
        live, task = fast.rows, self._task()
        if not fast.waiting:
            check_start(reward, terminated, truncated)
            if not (self._plain and live.put(fast.t, obs)):
                live.acted.made.obs[fast.t] = self._converter.observations(obs, task, self._lead)
            return self._converter.actions(fast.decide(), task, self._lead)
        one, last = self._copies is None, None
        plain = one and final_obs is None and isinstance(terminated, _FLAGS) and isinstance(truncated, _FLAGS)
        if not (plain and isinstance(reward, _NUMBERS) and not isinstance(reward, bool) and abs(reward) < 1e38):
            given = {"reward": reward, "terminated": terminated, "truncated": truncated, "target": None}
            needless = live.over is not None and bool(live.over.all())
            heard = self._given.outcome(given, {}, obs, self._lead, task, final_obs, needless)
            last = heard.last
            reward, terminated, truncated = (x.item() if one else x.numpy() for x in heard[:3])
        if not (self._plain and live.put(fast.t + 1, obs)):
            live.acted.made.obs[fast.t + 1] = self._converter.observations(obs, task, self._lead)
        try:
            fast.hear(reward, terminated, truncated, last, frozen=self._frozen)
        except NotFinite as found:
            self._steps = 0
            with self._learning.cleared():
                drop(self._trainer, found)
        if self._log is not None and not fast.t:
            self._write()
        if one and last is None and (terminated or truncated):
            return None
        if not fast.running:
            return self._next()
        return self._converter.actions(fast.decide(), task, self._lead)

    # ---- chunks --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Begin a chunk: strategies hear of a boundary before the first action behind it."""
        trainer = self._trainer
        if self._learning.busy:  # it has done so before it began
            self._steps = trainer.chunk.steps
            return
        if self._frozen:  # the task that is observed is another one, and nothing else
            self._rollout.switch(trainer.stream.tasks_at(trainer.step, self._rollout.env.num_envs))
        else:
            trainer.follow_stream()
        self._steps = trainer.schedules.apply(trainer.step)

    def _finish(self) -> None:
        """A chunk is complete: learn from it, or live through it, which moves the carry along and nothing else."""
        lanes, steps, self._steps = self._rollout.lanes, self._steps, 0
        if not self._frozen:
            self._learning.learn()
        elif lanes is None:
            self._live_through(None)
        else:
            self._live_through(lanes.ready(steps), steps)
        if self._log is not None and not self._learning.busy:
            self._write()

    def _write(self) -> None:
        """A line of the log, if it is due."""
        if self._log is not None and self._trainer.step - self._trainer.logged >= self._trainer.config.log_every:
            self._trainer.log(self._log, self._clock)

    def _live_through(self, copies: list[int] | None, steps: int = 0) -> None:
        rollout, trainer = self._rollout, self._trainer
        experience = rollout.collect(len(rollout.records)) if copies is None else rollout.collect(steps, copies)
        chunk, engine = experience.chunk, trainer.learner.engine
        engine.advance(engine.trace(experience.x_TBD, experience.state_TBS, chunk.is_init, experience.copies))
        trainer.step += chunk.copies * chunk.steps
        trainer.record.add({}, experience)

    def _task(self) -> int:
        """Index of the task that the next action is for."""
        schedule = self._trainer.stream.schedule
        now = schedule.segments[-1].task or 0
        return now if self._boundary is None else self._index(self._boundary, now)

    def _index(self, name: str, now: int) -> int:
        return self._names.index(name) if name in self._names else now

    # ---- what is told --------------------------------------------------------------------------------------------

    def boundary(self, name: str) -> None:
        """A task ends with the action whose reward is due, and the task `name` begins: strategies are told, with the
        last experience to consolidate from, before the next action. The steps of a chunk that it cuts short are not
        learned from. The memory is reset if the task is another one of `tasks` (see `policy.reset_memory_on`).

        Raises:
            ConfigError: boundaries are hidden or detected; an unknown task where it is observed; the agent is frozen.
        """
        stream, names = self._trainer.config.stream, self._names
        if self._frozen:
            raise ConfigError("the agent is frozen, and strategies learn at a boundary; call learn() before boundary()")
        if stream.boundaries == "detected" or (stream.boundaries, stream.task_id) == ("hidden", "hidden"):
            raise ConfigError(f"stream.boundaries is {stream.boundaries}, so nobody tells the agent; set it to given")
        if stream.task_id == "observed" and name not in names:
            raise ConfigError(unknown_name("task", name, names))
        self._goes_over(name)

    def _goes_over(self, name: str) -> None:
        """The boundary comes before the next action."""
        self._leave()
        tasks, now = self._trainer.config.stream.tasks, self._trainer.stream.schedule.segments[-1].task or 0
        envs = [tasks[index].env for index in (now, self._index(name, now))]
        if envs[0] != envs[1] and any(map(self._rollout.waits, range(_count(self._copies)))):
            raise ConfigError(
                f"task {name!r} has other spaces, and an action waits for its reward; end the episode first: "
                "act(obs, reward, truncated=True), then boundary()"
            )
        self._boundary = name

    def _hear_task(self, info: Mapping[str, Any]) -> None:
        """A boundary, if `info` names another task than the one that it is on."""
        name = task_of(info, self._names) if self._hears else None
        if name is not None and self._names.index(name) != self._task():
            self._goes_over(name)

    def _cross(self) -> None:
        """The boundary comes here."""
        trainer, rollout = self._trainer, self._rollout
        schedule, task = trainer.stream.schedule, self._task()
        assert isinstance(schedule, Told)
        self._learning.finish()
        if rollout.lanes is not None:
            for copy in range(rollout.env.num_envs):
                if steps := rollout.lanes.heard(copy):
                    self._live_through([copy], steps)
        elif rollout.records:
            self._live_through(None)
        self._boundary, self._steps = None, 0
        trainer.stream.load_state_dict(schedule.after(trainer.step, task))
        self._start()
        rollout.kept = []

    def reset_memory(self) -> None:
        """Forget what was seen so far, before the next action; the parameters stay."""
        self._leave()
        self._rollout.forgets = True

    def freeze(self) -> None:
        """Learn nothing from now on. The memory goes on, and the carry with it, so `learn` may follow at any time."""
        self._learning.finish()
        self._frozen = True

    def learn(self) -> None:
        """Learn again, the chunk under way included."""
        self._frozen = False
        if self._lane is not None and self._lane.running and not self._lane.ready():
            self._leave()

    def _leave(self) -> None:
        if self._lane is not None:
            self._lane.leave()

    # ---- keeping -------------------------------------------------------------------------------------------------

    def save(self, path: Path | str) -> None:
        """Write all of it to the file `path`, which is replaced whole or not at all; at any time, in a chunk too. An
        update that is under way (`learn` spread or thread) is finished first.

        Raises:
            DiskError: it cannot be written; what was there before is there still.
        """
        self._learning.finish()
        own: dict[str, Any] = {
            "copies": self._copies,
            "frozen": self._frozen,
            "steps": self._steps,
            "boundary": self._boundary,
        }
        own["lane"] = self._lane is not None and self._lane.running
        if self._lane is not None:
            self._lane.sync()
        own |= {"masked": self._given.masked, "learn": self._learning.mode, "log": self._log_sizes}
        if self._log is not None:
            own["log"] = {"folder": str(self._log.folder.absolute()), "sizes": self._log.sizes()}
            own["log"]["logged"] = self._trainer.logged
        state = {**self._trainer.state_dict(), "format": FORMAT, "agent": own, "versions": versions()}
        write(Path(path), lambda file: torch.save(state, file))

    def report(self) -> dict[str, float]:
        """Means since the last report (`loss/...`, `gradient/...`, `return/...` of episodes that ended,
        `strategy/...`), as a run logs them, and `step`: environment steps so far, all copies together. With `log_to` it
        is a line of the log, too, and the means are since the last line."""
        self._learning.wait()
        gathered = Gathered(self._log)
        self._trainer.log(gathered, self._clock if self._log is not None else Progress(0, quiet=True))
        return {"step": float(self._trainer.step), **gathered.values}

    def log_to(self, folder: Path | str) -> None:
        """Write a line every `log_every` steps from now on: `metrics.jsonl`, `timing.jsonl` and TensorBoard's events
        with the tags of a run. An agent that was saved while it wrote there goes on with the lines of then.

        Raises:
            ConfigError: there are the files of somebody else's life.
            DiskError: the folder cannot be written.
        """
        place = Path(folder)
        known = self._log_sizes if (self._log_sizes or {}).get("folder") == str(place.absolute()) else None
        if known is None and place.is_dir() and any(present(place)):
            raise ConfigError(f"{place} has a log already, which is not of this agent; give another folder")
        make_folder(place)
        self._log = RunLog(place, known["sizes"] if known else {})
        self._clock = Progress(0, self._trainer.step, quiet=True)
        self._trainer.logged = known["logged"] if known else self._trainer.step


def _every(learn_every: int | None) -> list[str]:
    return [] if learn_every is None else [f"rollout.steps={learn_every}"]


def _count(copies: int | None) -> int:
    return 1 if copies is None else copies
