"""A trained policy in another program: `lifelong.load`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong.agent import registry
from lifelong.agent.config import Config
from lifelong.agent.errors import ConfigError, EnvError, unknown_name
from lifelong.agent.optimizers.base import Averaging
from lifelong.agent.policy import Inputs
from lifelong.agent.runtime.converter import Converter, plain_array
from lifelong.agent.runtime.outside import as_outside, built, saved_agent
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import overrides


@dataclass(frozen=True)
class Memory:
    """What a policy remembers between two calls; None in its place is an empty one."""

    state_BS: Tensor  # of the cell
    previous_action: Tensor  # [B, F], zeros where an episode begins
    fresh_B: Tensor  # bool: reset before the next observation
    lead: tuple[int, ...]  # () for one environment, (B,) for a batch


class LoadedPolicy:
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
        self._resets = trainer.config.policy.reset_memory_on
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
        policy, lead = self._policy, self._converter.lead(obs, self._task)
        read = self._converter.observations(obs, self._task, lead)
        if memory is None:
            memory = self._empty(lead)
        elif memory.lead != lead:
            raise EnvError(
                f"the memory is of {_said(memory.lead)}, and the observation of {_said(lead)}; give memory=None"
            )
        fresh_B = torch.ones_like(memory.fresh_B) if self._resets == "step" else memory.fresh_B
        action_BF = memory.previous_action.masked_fill(fresh_B.unsqueeze(-1), 0.0)
        task_B = torch.full((len(read),), self._task, device=self._device)
        mask_BA = self._converter.mask(self._task, len(read))
        inputs = Inputs(read, action_BF, self._reward(reward, fresh_B, lead), task_B, mask_BA)
        outputs, state_BS, *_ = policy.step(inputs, memory.state_BS, fresh_B)
        distribution = policy.distribution
        if self.deterministic:
            action = distribution.mode(outputs.policy)
        else:
            action = distribution.act(outputs.policy, self._generator)
        shown = distribution.features(action) if policy.with_action else action_BF
        following = Memory(state_BS, shown, torch.zeros_like(fresh_B), lead)
        return self._converter.actions(distribution.clip(action), self._task, lead), following

    def reset(self, memory: Memory | None, ended: Any = True) -> Memory | None:
        """The memory after the end of episodes, by the rule that the policy was trained with: it is emptied if
        `policy.reset_memory_on` was episode, and goes on if that was task or never. None empties it in any case.

        Args:
            ended: bool, or bool [B] for a batch: where an episode has ended.
        """
        if memory is None or self._resets in ("task", "never"):
            return memory
        ended_B = torch.as_tensor(np.array(plain_array(ended, "ended"), dtype=bool), device=self._device)
        if ended_B.shape not in (torch.Size([]), torch.Size(memory.lead)):
            raise EnvError(f"ended has shape {tuple(ended_B.shape)}, and the memory is of {_said(memory.lead)}")
        return replace(memory, fresh_B=memory.fresh_B | ended_B)

    def seed(self, seed: int) -> None:
        """Draw from `seed` from now on."""
        self._generator.manual_seed(seed)

    def _empty(self, lead: tuple[int, ...]) -> Memory:
        count, like = lead[0] if lead else 1, self._policy.critic.weight
        features = self._policy.distribution.feature_size if self._policy.with_action else 0
        state_BS = self._policy.cell.initial_state(count, self._device)
        fresh_B = torch.ones(count, dtype=torch.bool, device=self._device)
        return Memory(state_BS, like.new_zeros(count, features), fresh_B, lead)

    def _reward(self, reward: Any, fresh_B: Tensor, lead: tuple[int, ...]) -> Tensor:
        """The last reward as the policy reads it, [B]."""
        nothing = self._policy.critic.weight.new_zeros(len(fresh_B))
        if not self._policy.with_reward or bool(fresh_B.all()):
            return nothing
        if reward is None:
            raise EnvError(
                "this policy reads the last reward (policy.previous_reward); give it: policy(obs, memory, reward)"
            )
        array = plain_array(reward, "the reward")
        if array.shape != lead:
            raise EnvError(f"the reward has shape {array.shape}; it must be {lead}, one number an environment")
        given_B = torch.from_numpy(np.array(array, dtype=np.float64)).reshape(-1).to(nothing)
        return (given_B * self._scale).masked_fill(fresh_B, 0.0)


def _said(lead: tuple[int, ...]) -> str:
    return f"a batch of {lead[0]}" if lead else "one environment"


def _no_learning(config: Config) -> None:
    """Leave out what only learning asks of a config, and one copy may not have."""
    if "minibatches" in registry.options_of(registry.load("objective", config.objective["kind"])):
        config.objective["minibatches"] = 1
    if config.stream.boundaries == "detected":
        config.stream.boundaries = "given"


def load(
    run: Path | str, task: str | None = None, *, seed: int = 0, deterministic: bool = True, device: str = "cpu"
) -> LoadedPolicy:
    """The policy of a run at its newest checkpoint, or of an agent that `OnlineAgent.save` wrote, for inference:

        policy = lifelong.load("runs/quickstart/0", task="cartpole")
        memory = None
        action, memory = policy(observation, memory)

    It sees what evaluation sees (averages, the weights of a task). The run's environments are made once, to know their
    spaces, and never stepped.

    Args:
        run: run folder, or file.
        task: name of the task that it is to act in; it may be left out where that makes no difference.
        seed: of the draws, if it is not `deterministic`.
        deterministic: take the most likely action (the mean); else draw as in training.
        device: cpu or cuda.

    Raises:
        CheckpointError: there is no run, or no usable checkpoint.
        ConfigError: an unknown task, or it makes a difference and is missing.
    """
    path = Path(run)
    old, saved, alone = saved_agent(path)
    names = [one.name for one in old.stream.tasks]
    if task is not None and task not in names:
        raise ConfigError(unknown_name("task", task, names))
    config = as_outside(old, len(saved["rollout"]["obs"]) if alone else 1, device)
    _no_learning(config)
    trainer = built(config, old, saved, str(path), alone=alone)
    if task is None and len(names) > 1:
        views = [
            spec["kind"]
            for strategy, spec in zip(trainer.strategies, config.strategy, strict=True)
            if overrides([strategy], "evaluation_view")
        ]
        why = ["it reads which task it is on"] if config.stream.task_id == "observed" else []
        why += ["its tasks have spaces of their own"] if len({str(one.env) for one in config.stream.tasks}) > 1 else []
        why += [f"strategy {views[0]} has weights for each"] if views else []
        if why:
            raise ConfigError(
                f"{path} was trained on {', '.join(names)}, and {why[0]}; name one: load(run, task={names[0]!r})"
            )
    return LoadedPolicy(trainer, 0 if task is None else names.index(task), seed, deterministic)
