"""An agent in another program, which acts and learns while that program steps its environment: `lifelong.OnlineAgent`.

Nothing is done in a way of its own here. The steps that the program makes become chunks of T steps
(`agent.runtime.outside`), and the trainer of a run learns from each as it would from its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from lifelong.agent import config as configs
from lifelong.agent.config import Config
from lifelong.agent.errors import ConfigError, EnvError, NonFiniteError, unknown_name
from lifelong.agent.files import write
from lifelong.agent.runtime import lane
from lifelong.agent.runtime.converter import Converter, plain_array
from lifelong.agent.runtime.finite import NotFinite
from lifelong.agent.runtime.lane import Lane
from lifelong.agent.runtime.logging import NoLog, Progress
from lifelong.agent.runtime.machine import versions
from lifelong.agent.runtime.outside import FORMAT, OutsideRollout, Told, as_outside, built, saved_agent
from lifelong.agent.runtime.rescue import drop
from lifelong.agent.runtime.trainer import Trainer
from lifelong.envs.adapters.outside import KIND, describe

#: what needs no second look
_FLAGS, _NUMBERS = (bool, np.bool_), (float, int, np.floating, np.integer)


class OnlineAgent:
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
    ) -> None:
        if isinstance(config, Config):
            config = configs.to_dict(config)
        raw = dict(config) if isinstance(config, Mapping) else configs.read(str(config))
        raw = configs.override(raw, overrides)
        spec = {"kind": KIND, "observation": describe(observation_space), "action": describe(action_space)}
        told = {key: value for key, value in (raw.get("stream") or {}).items() if key in ("boundaries", "task_id")}
        raw |= {"stream": {**told, "tasks": [{"name": name, "env": spec} for name in tasks]}}
        raw |= {"rollout": {**(raw.get("rollout") or {}), "copies": _count(copies)}}
        raw["runtime"] = {key: value for key, value in (raw.get("runtime") or {}).items() if key == "threads"}
        raw |= {} if seed is None else {"seed": seed}
        old = configs.check(raw)
        self._setup(built(as_outside(old, _count(copies), device), old), copies)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        copies: int | None = None,
        overrides: Sequence[str] = (),
        device: str = "cpu",
    ) -> OnlineAgent:
        """The agent that `save` wrote, which goes on bit for bit; or one that goes on from a run: with its parameters,
        optimiser, strategies and what they keep, at the start of an episode.

        Args:
            path: file, or run folder.
            copies: as above, for a run; a saved agent has its own.
            overrides: `a.b=value`, over the config that was saved.
            device: cpu or cuda.

        Raises:
            CheckpointError: there is nothing there, or it does not fit.
            ConfigError: an override that cannot be.
        """
        old, saved, alone = saved_agent(Path(path), overrides)
        own = saved.get("agent", {})
        had = own["copies"] if alone else copies
        if copies is not None and copies != had:
            raise ConfigError(
                f"copies is {copies}, and the agent in {path} has {'one environment' if had is None else had}"
            )
        agent = cls.__new__(cls)
        agent._setup(built(as_outside(old, _count(had), device), old, saved, str(path), alone=alone), had)
        if alone:
            agent._frozen, agent._steps, agent._boundary = own["frozen"], own["steps"], own["boundary"]
            if own["lane"] and agent._lane is not None and agent._lane.ready():
                agent._lane.enter(agent._steps)
        return agent

    def _setup(self, trainer: Trainer, copies: int | None) -> None:
        rollout = trainer.rollout
        assert isinstance(rollout, OutsideRollout)
        self._trainer, self._rollout, self._copies = trainer, rollout, copies
        self._lead = () if copies is None else (copies,)
        dtype, device = rollout.policy.critic.weight.dtype, rollout.env.device
        self._converter = Converter(rollout.env, dtype, device)
        self._frozen = False
        self._steps = 0  # T of the chunk under way; 0: none is
        self._boundary: str | None = None  # that comes before the next action
        #: the fast way, where there is one
        self._lane = Lane(trainer) if copies is None and not lane.refusal(trainer) else None
        #: whether observations are read as they are
        self._plain = self._lane is not None and self._converter.plain()

    # ---- acting --------------------------------------------------------------------------------------------------

    def act(
        self,
        obs: Any,
        reward: Any = None,
        terminated: Any = False,
        truncated: Any = False,
        *,
        final_obs: Any = None,
    ) -> Any:
        """The next action, having learned from what came of the last one.

        Args:
            obs: numpy, torch, numbers or lists, as the observation space has it; with a leading axis for a batch.
            reward: of the last action; None before there is one.
            terminated, truncated: whether the last action ended an episode, as `env.step` says it.
            final_obs: the true last observation of episodes that ended, where `obs` is the first of the next ones
                (Gymnasium's same-step autoreset, `info["final_obs"]`). None: `obs` is the last.

        Returns:
            What `env.step` takes: an int or an array; with a leading axis for a batch. None if the episode of the one
            environment is over and `obs` its last: reset it, and call `act` with the first observation. In a batch such
            a copy gets an action that does not count, and its first observation with the next call (Gymnasium's
            next-step autoreset).

        Raises:
            EnvError: something that does not fit; one sentence, and nothing has changed.
            NonFiniteError: a loss or gradient is not finite and `on_nonfinite` is stop. Nothing was learned from the
                chunk; `act(obs)` alone goes on, with an empty memory.
        """
        if self._lane is not None and self._lane.running:
            return self._act(self._lane, obs, reward, terminated, truncated, final_obs)
        rollout, task = self._rollout, self._task()
        read = self._converter.observations(obs, task, self._lead)
        if rollout.decided is None:
            self._check_start(reward, terminated, truncated)
            rollout.obs = read
        else:
            reward_B, terminated_B, truncated_B = self._outcome(reward, terminated, truncated)
            done_B = (terminated_B | truncated_B) & ~rollout.over_B
            last = self._last(final_obs, obs, done_B, task)
            batch = self._copies is not None
            rollout.hear(read, reward_B, terminated_B, truncated_B, last, acts_on=batch)
            if len(rollout.records) == self._steps:
                self._finish(learns=not self._frozen)
            if not batch and last is None and bool(done_B):
                return None
        return self._next()

    def _next(self) -> Any:
        """The next action, all that came of the last one having been heard."""
        rollout, fast, task = self._rollout, self._lane, self._task()
        if self._boundary is not None:
            self._cross()
        if not self._steps:
            self._start()
            if fast is not None and not self._frozen and fast.ready():
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
            self._check_start(reward, terminated, truncated)
            if not (self._plain and live.put(fast.t, obs)):
                live.acted.made.obs[fast.t] = self._converter.observations(obs, task, self._lead)
            return self._converter.actions(fast.decide(), task, self._lead)
        flags = isinstance(terminated, _FLAGS) and isinstance(truncated, _FLAGS)
        if not (flags and isinstance(reward, _NUMBERS) and not isinstance(reward, bool) and abs(reward) < 1e38):
            reward, terminated, truncated = (x.item() for x in self._outcome(reward, terminated, truncated))
        done = terminated or truncated
        following = None
        if done and final_obs is not None:  # `obs` is the first of the next episode
            following, obs = self._converter.observations(obs, task, self._lead), final_obs
        if not (self._plain and live.put(fast.t + 1, obs)):
            live.acted.made.obs[fast.t + 1] = self._converter.observations(obs, task, self._lead)
        try:
            fast.hear(reward, terminated, truncated)
        except NotFinite as found:
            self._steps = 0
            with self._from_empty_memory():
                drop(self._trainer, found)
        if following is not None:
            if fast.running:
                live.acted.made.obs[fast.t] = following
            else:
                self._rollout.obs = following
        elif done:
            return None
        if not fast.running:
            return self._next()
        return self._converter.actions(fast.decide(), task, self._lead)

    @contextmanager
    def _from_empty_memory(self) -> Iterator[None]:
        """Let life go on from an empty memory after an error that is about numbers."""
        try:
            yield
        except NonFiniteError:
            everyone_B, rollout = torch.ones_like(self._rollout.is_init), self._rollout
            self._trainer.learner.reset(everyone_B)
            rollout.restart(everyone_B)
            rollout.over_B = rollout.nowhere
            raise

    def _start(self) -> None:
        """Begin a chunk: strategies hear of a boundary before the first action behind it."""
        trainer = self._trainer
        if self._frozen:  # the task that is observed is another one, and nothing else
            self._rollout.switch(trainer.stream.tasks_at(trainer.step, self._rollout.env.num_envs))
        else:
            trainer.follow_stream()
        self._steps = trainer.schedules.apply(trainer.step)

    def _finish(self, *, learns: bool) -> None:
        """A chunk is complete: learn from it, or live through it, which moves the carry along and nothing else."""
        trainer, self._steps = self._trainer, 0
        if learns:
            with self._from_empty_memory():
                trainer.advance()
            return
        experience = self._rollout.collect(len(self._rollout.records))
        chunk, engine = experience.chunk, trainer.learner.engine
        engine.advance(engine.trace(experience.x_TBD, experience.state_TBS, chunk.is_init))
        trainer.step += chunk.copies * chunk.steps
        trainer.record.add({}, experience)

    def _task(self) -> int:
        """Index of the task that the next action is for."""
        schedule = self._trainer.stream.schedule
        now = schedule.segments[-1].task or 0
        return now if self._boundary is None else self._index(self._boundary, now)

    def _index(self, name: str, now: int) -> int:
        names = [task.name for task in self._trainer.stream.tasks]
        return names.index(name) if name in names else now

    # ---- what is told --------------------------------------------------------------------------------------------

    def boundary(self, name: str) -> None:
        """A task ends with the action whose reward is due, and the task `name` begins: strategies are told, with the
        last experience to consolidate from, before the next action. The steps of a chunk that it cuts short are not
        learned from. The memory is reset if the task is another one of `tasks` (see `policy.reset_memory_on`).

        Raises:
            ConfigError: boundaries are hidden or detected; an unknown task where it is observed; the agent is frozen.
        """
        stream, names = self._trainer.config.stream, [task.name for task in self._trainer.stream.tasks]
        if self._frozen:
            raise ConfigError("the agent is frozen, and strategies learn at a boundary; call learn() before boundary()")
        if stream.boundaries == "detected" or (stream.boundaries, stream.task_id) == ("hidden", "hidden"):
            raise ConfigError(f"stream.boundaries is {stream.boundaries}, so nobody tells the agent; set it to given")
        if stream.task_id == "observed" and name not in names:
            raise ConfigError(unknown_name("task", name, names))
        self._leave()
        now = self._trainer.stream.schedule.segments[-1].task or 0
        envs = [stream.tasks[index].env for index in (now, self._index(name, now))]
        if envs[0] != envs[1] and self._rollout.decided is not None:
            raise ConfigError(
                f"task {name!r} has other spaces, and an action waits for its reward; end the episode first: "
                "act(obs, reward, truncated=True), then boundary()"
            )
        self._boundary = name

    def _cross(self) -> None:
        """The boundary comes here."""
        trainer, rollout = self._trainer, self._rollout
        schedule, task = trainer.stream.schedule, self._task()
        assert isinstance(schedule, Told)
        if rollout.records:
            self._finish(learns=False)
        self._boundary = None
        trainer.stream.load_state_dict(schedule.after(trainer.step, task))
        self._start()
        rollout.kept = []

    def reset_memory(self) -> None:
        """Forget what was seen so far, before the next action; the parameters stay."""
        self._leave()
        self._rollout.forgets = True

    def freeze(self) -> None:
        """Learn nothing from now on. The memory goes on, and the carry with it, so `learn` may follow at any time."""
        self._leave()
        self._frozen = True

    def learn(self) -> None:
        """Learn again, the chunk under way included."""
        self._frozen = False

    def _leave(self) -> None:
        if self._lane is not None:
            self._lane.leave()

    # ---- keeping -------------------------------------------------------------------------------------------------

    def save(self, path: Path | str) -> None:
        """Write all of it to the file `path`, which is replaced whole or not at all; at any time, in a chunk too.

        Raises:
            DiskError: it cannot be written; what was there before is there still.
        """
        own = {"copies": self._copies, "frozen": self._frozen, "steps": self._steps, "boundary": self._boundary}
        own["lane"] = self._lane is not None and self._lane.running
        if self._lane is not None:
            self._lane.sync()
        state = {**self._trainer.state_dict(), "format": FORMAT, "agent": own, "versions": versions()}
        write(Path(path), lambda file: torch.save(state, file))

    def report(self) -> dict[str, float]:
        """Means since the last report (`loss/...`, `gradient/...`, `return/...` of episodes that ended,
        `strategy/...`), as a run logs them, and `step`: environment steps so far, all copies together."""
        gathered = _Gathered()
        self._trainer.log(gathered, Progress(0, quiet=True))
        return {"step": float(self._trainer.step), **gathered.values}

    # ---- what is given -------------------------------------------------------------------------------------------

    def _check_start(self, reward: Any, terminated: Any, truncated: Any) -> None:
        """Refuse an outcome where no action waits for one."""
        given = {"reward": reward, "terminated": terminated, "truncated": truncated}
        for name, value in given.items():
            if value is not None and plain_array(value, f"the argument {name}").any():
                raise EnvError(
                    f"{name} is given, and no action waits for it: this is the first observation of an episode; call "
                    "act(obs) alone here"
                )

    def _outcome(self, reward: Any, terminated: Any, truncated: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Reward and flags of the last action, [B] each."""
        over_B, count = self._rollout.over_B, _count(self._copies)
        if reward is None:
            if not bool(over_B.all()):
                raise EnvError("the last action waits for its reward; call act(obs, reward, terminated, truncated)")
            reward = np.zeros(self._lead)
        arrays = []
        for name, value in (("reward", reward), ("terminated", terminated), ("truncated", truncated)):
            array = plain_array(value, f"the argument {name}")
            if name == "reward" and array.dtype.kind == "b":
                raise EnvError("reward is a bool; the order is act(obs, reward, terminated, truncated)")
            if name != "reward" and not np.isin(array, (0, 1)).all():
                raise EnvError(f"{name} is {value}; it must be a bool, whether the last action ended the episode so")
            if array.shape != self._lead and (name == "reward" or array.shape != ()):
                wanted = f"{self._lead}, one an environment" if self._lead else "one number"
                raise EnvError(f"{name} has shape {array.shape}; it must be {wanted}")
            arrays.append(torch.from_numpy(np.array(np.broadcast_to(array, self._lead))).reshape(count))
        device = self._rollout.env.device
        reward_B = arrays[0].to(device, self._rollout.return_B.dtype)
        if not bool(reward_B.isfinite().all()):
            raise EnvError(f"reward is {reward}, which is too large to be learned from")
        return reward_B, arrays[1].bool().to(device), arrays[2].bool().to(device)

    def _last(self, final_obs: Any, obs: Any, done_B: Tensor, task: int) -> Tensor | None:
        """The true last observations [B, ...], where they are given and an episode ended."""
        if final_obs is None or not bool(done_B.any()):
            return None
        if isinstance(final_obs, np.ndarray) and final_obs.dtype == object:  # Gymnasium's: None where none ended
            pairs = zip(final_obs, obs, done_B.tolist(), strict=True)
            final_obs = np.stack([plain_array(f if done else o, "final_obs") for f, o, done in pairs])
        return self._converter.observations(final_obs, task, self._lead)


class _Gathered(NoLog):
    """A log that only holds the scalars of a moment."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def scalars(self, step: int, scalars: dict[str, float]) -> None:
        self.values |= scalars


def _count(copies: int | None) -> int:
    return 1 if copies is None else copies
