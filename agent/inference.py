"""A trained policy in another program: `lifelong.load`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelong.agent import registry
from lifelong.agent.config import Config
from lifelong.agent.errors import ConfigError, unknown_name
from lifelong.agent.exported import ExportedPolicy, is_exported
from lifelong.agent.optimizers.base import Averaging
from lifelong.agent.policy import Inputs, Outputs
from lifelong.agent.runtime.converter import Converter
from lifelong.agent.runtime.outside import as_outside, built, saved_agent
from lifelong.agent.runtime.remembering import Memory, Remembering
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import overrides


class LoadedPolicy(Remembering):
    """The policy of a run, as it is evaluated: `action, memory = policy(observation, memory)`.

    Nothing is learned, and nothing but the memory, which the caller keeps, and the draws change from call to call.

    Args:
        trainer: of the run.
        task: index of the task that it acts in.
        seed: of the draws.
        deterministic: take the most likely action (the mean).
    """

    def __init__(self, trainer: Trainer, task: int, seed: int, deterministic: bool) -> None:
        rollout = trainer.rollout
        self.deterministic, self._task = deterministic, task
        self._policy, self._device = rollout.policy.requires_grad_(False), rollout.env.device
        self._env = rollout.env
        self._converter = Converter(self._env, self._policy.critic.weight.dtype, self._device)  # type: ignore[arg-type]
        self._generator = torch.Generator(device=self._device).manual_seed(seed)
        self.resets, self.with_reward = trainer.config.policy.reset_memory_on, self._policy.with_reward
        self._scale = trainer.stream.tasks[task].reward_scale
        self.tasks = [one.name for one in trainer.stream.tasks]
        self._view = ExitStack()  # what evaluation sees, for good
        optimizer, ctx = trainer.learner.optimizer, trainer.context()
        if isinstance(optimizer, Averaging):
            self._view.enter_context(optimizer.evaluation_view())
        for strategy in overrides(trainer.strategies, "evaluation_view"):
            self._view.enter_context(strategy.evaluation_view(ctx, task))

    @torch.no_grad()
    def __call__(self, obs: Any, memory: Memory | None = None, reward: Any = None) -> tuple[Any, Memory]:
        """The action, and the memory for the next call.

        Args:
            obs: observation of one environment, or of several with a leading axis; numpy or torch, as the space of the
                task's environment has it.
            memory: what the last call returned, or `reset`; None: nothing is remembered.
            reward: of the last action, for a policy that reads it (`policy.previous_reward`); not looked at otherwise.

        Returns:
            The action as the environment's `step` takes it: an int, or a numpy array; several with a leading axis.

        Raises:
            EnvError: an observation, memory or reward that does not fit; one sentence.
        """
        lead = self._converter.lead(obs, self._task)
        read = self._converter.observations(obs, self._task, lead)
        memory = self._empty(lead) if memory is None else self._fits(memory, lead)
        fresh_B = torch.ones_like(memory.fresh_B) if self.resets == "step" else memory.fresh_B
        reward_B = self._reward(reward, fresh_B, lead).to(self._policy.critic.weight.dtype)
        task_B = torch.full((len(read),), self._task, device=self._device)
        action, _, following = self.decide(read, memory, reward_B * self._scale, task_B)
        return self._converter.actions(self._policy.distribution.clip(action), self._task, lead), following

    def decide(self, read: Tensor, memory: Memory, reward_B: Tensor, task_B: Tensor) -> tuple[Tensor, Outputs, Memory]:
        """The action of the policy's distribution, what the policy says, and the memory after it.

        Args:
            read: observations [B, ...] as the policy reads them.
            memory: of as many.
            reward_B: last rewards, scaled; zero where the memory is fresh.
            task_B: int64.
        """
        policy = self._policy
        fresh_B = torch.ones_like(memory.fresh_B) if self.resets == "step" else memory.fresh_B
        action_BF = memory.previous_action.masked_fill(fresh_B.unsqueeze(-1), 0.0)
        mask_BA = self._converter.mask(self._task, len(read))
        outputs, state_BS, *_ = policy.step(
            Inputs(read, action_BF, reward_B, task_B, mask_BA), memory.state_BS, fresh_B
        )
        distribution = policy.distribution
        if self.deterministic:
            action = distribution.mode(outputs.policy)
        else:
            action = distribution.act(outputs.policy, self._generator)
        shown = distribution.features(action) if policy.with_action else action_BF
        return action, outputs, Memory(state_BS, shown, torch.zeros_like(fresh_B), memory.lead)

    def seed(self, seed: int) -> None:
        """Draw from `seed` from now on."""
        self._generator.manual_seed(seed)

    def _empty(self, lead: tuple[int, ...]) -> Memory:
        count, like = lead[0] if lead else 1, self._policy.critic.weight
        features = self._policy.distribution.feature_size if self._policy.with_action else 0
        state_BS = self._policy.cell.initial_state(count, self._device)
        fresh_B = torch.ones(count, dtype=torch.bool, device=self._device)
        return Memory(state_BS, like.new_zeros(count, features), fresh_B, lead)


def _no_learning(config: Config) -> None:
    """Leave out what only learning asks of a config, and one copy may not have."""
    if "minibatches" in registry.options_of(registry.load("objective", config.objective["kind"])):
        config.objective["minibatches"] = 1
    if config.stream.boundaries == "detected":
        config.stream.boundaries = "given"


def load(
    run: Path | str, task: str | None = None, *, seed: int = 0, deterministic: bool = True, device: str = "cpu"
) -> LoadedPolicy | ExportedPolicy:
    """The policy of a run at its newest checkpoint, of an agent that `OnlineAgent.save` wrote, or of a file that
    `lifelong export` wrote, for inference.

    It sees what evaluation sees (averages, the weights of a task). The run's environments are made once, to know their
    spaces, and never stepped.

    Args:
        run: run folder, or file.
        task: name of the task that it is to act in; it may be left out where that makes no difference.
        seed: of the draws, if it is not `deterministic`.
        deterministic: take the most likely action (the mean); else draw as in training. A file that was exported has
            the most likely action only.
        device: cpu or cuda; of a file that was exported cpu.

    Returns:
        What gives the action: `action, memory = policy(observation, memory)`.

    Raises:
        CheckpointError: there is no run, or no usable checkpoint.
        ConfigError: an unknown task, or it makes a difference and is missing.

    Example:
        policy = lifelong.load("runs/quickstart/0", task="cartpole")
        action, memory = policy(observation, None)
        action, memory = policy(next_observation, memory)
    """
    path = Path(run)
    if is_exported(path):
        if not deterministic:
            raise ConfigError(f"{path} was exported, and has the most likely action only; load the run itself to draw")
        return ExportedPolicy(path, task)
    trainer, names = reopened(path, task, device)
    why = differences(trainer) if task is None else []
    if why:
        raise ConfigError(
            f"{path} was trained on {', '.join(names)}, and {why[0]}; name one: load(run, task={names[0]!r})"
        )
    return LoadedPolicy(trainer, 0 if task is None else names.index(task), seed, deterministic)


def reopened(path: Path, task: str | None, device: str = "cpu") -> tuple[Trainer, list[str]]:
    """The trainer of what is at `path`, for one environment that somebody else steps, and the names of its tasks.

    Raises:
        CheckpointError, ConfigError: see `load`.
    """
    old, saved, alone = saved_agent(path)
    names = [one.name for one in old.stream.tasks]
    if task is not None and task not in names:
        raise ConfigError(unknown_name("task", task, names))
    config = as_outside(old, len(saved["rollout"]["obs"]) if alone else 1, device)
    _no_learning(config)
    return built(config, old, saved, str(path), alone=alone), names


READS_TASK = "it reads which task it is on"
READS_REWARD = "it reads the last reward, whose scale is not that of every task"
#: differences that an input can make
INPUTS = (READS_TASK, READS_REWARD)


def differences(trainer: Trainer) -> list[str]:
    """What makes the policy another one in every task, as ends of a sentence."""
    config, tasks = trainer.config, trainer.config.stream.tasks
    if len(tasks) < 2:
        return []
    views = [
        spec["kind"]
        for strategy, spec in zip(trainer.strategies, config.strategy, strict=True)
        if overrides([strategy], "evaluation_view")
    ]
    why = [READS_TASK] if config.stream.task_id == "observed" else []
    scales = {one.reward_scale for one in tasks}
    why += [READS_REWARD] if trainer.rollout.policy.with_reward and len(scales) > 1 else []
    why += ["its tasks have spaces of their own"] if len({str(one.env) for one in tasks}) > 1 else []
    why += [f"strategy {views[0]} has weights for each"] if views else []
    return why
