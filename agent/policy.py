"""The recurrent policy: encoder -> cell -> actor and critic heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import gymnasium
import torch
from torch import Tensor, nn

from lifelong.agent import registry
from lifelong.agent.cells.base import Acted, Cell
from lifelong.agent.config import PolicyConfig
from lifelong.agent.modules.composed import ComposedHead
from lifelong.agent.modules.encoders import Encoder
from lifelong.agent.modules.heads import ActorHead, Distribution, distribution_of
from lifelong.agent.modules.running import Normalized
from lifelong.agent.modules.values import EpsilonGreedy, Predictions
from lifelong.agent.parallel import Workers
from lifelong.replay.chunk import Chunk


@dataclass
class Inputs:
    """What the policy reads, with any leading dimensions ([B] when acting, [T, B] when learning)."""

    obs: Tensor  # [..., *obs shape]
    previous_action: Tensor  # [..., F]
    previous_reward: Tensor  # [...]
    task: Tensor  # [...] int64
    action_mask: Tensor  # [..., A] bool, or [..., 0]


@dataclass
class Outputs:
    """What the policy says: distribution parameters [..., P] and values [...].

    On a chunk, `after` gives its values of what came after the steps (see `Policy.after`); None: those in the chunk are
    of these parameters. `features` [T, B, H] is what the heads read there, `heard` [T, B, D] what the cell read, `read`
    what the heads say before it is parameters and values, and `memory` [B, S] what the last step left. The objective
    leaves in `error` [T, B] how wrong these outputs were at each step.
    """

    policy: Tensor
    value: Tensor
    after: Callable[..., tuple[Tensor, Tensor]] | None = None
    features: Tensor | None = None
    error: Tensor | None = None
    heard: Tensor | None = None
    read: Tensor | None = None
    memory: Tensor | None = None


class Step(NamedTuple):
    """One step of the policy."""

    outputs: Outputs
    state_BS: Tensor  # after the step
    x_BD: Tensor  # the cell's input
    kept: tuple[Tensor, ...]  # what the cell can use again when it learns (see `Cell.read_out`)


class Policy(nn.Module):
    """Encoder, recurrent cell, actor head and critic head.

    The cell reads [features of the observation, previous action, previous reward, task id], the last three only if the
    config asks for them or the stream shows them.

    Args:
        config: encoder, cell and inputs.
        observation_space: of one copy, one that encoders read.
        action_space: of one copy.
        tasks: number of tasks of the stream.
        task_observed: give the cell the task id as one-hot.
        distribution: of the actions, if the objective has one of its own; else that of the action space.
        composed: the actor composes the policies of earlier tasks (see `ComposedHead`).
    """

    #: a cache of values computed from parameters (see `agent.runtime.capture`)
    TRANSIENT: ClassVar[tuple[str, ...]] = ("_read", "_read_versions")

    def __init__(
        self,
        config: PolicyConfig,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        tasks: int = 1,
        task_observed: bool = False,
        distribution: Distribution | None = None,
        composed: bool = False,
    ) -> None:
        super().__init__()
        self._made_of = config, observation_space, action_space, tasks, task_observed, distribution, composed
        #: of one copy: what is read, what is done
        self.spaces = observation_space, action_space
        #: of the stream
        self.tasks = tasks
        self.distribution: Distribution = distribution or distribution_of(action_space, config.squash)
        self.encoder: Encoder = registry.build("encoder", config.encoder, observation_space)
        if config.normalize_observations:
            self.encoder = Normalized(self.encoder)
        predicted, actions = self.encoder.predicted, getattr(self.distribution, "actions", 0)
        if predicted not in (0, actions):
            raise ValueError(
                f"encoder {config.encoder['kind']} predicts {predicted} values, and the action space is "
                f"{action_space}; use a task whose actions are the next values of what is observed"
            )
        self.with_action = config.previous_action
        #: before every step the memory is reset, and with it the previous action and reward
        self.memoryless = config.reset_memory_on == "step"
        self.with_reward = config.previous_reward
        self.tasks_shown = tasks if task_observed else 0
        input_size = self.encoder.output_size + self.tasks_shown + int(self.with_reward)
        input_size += self.distribution.feature_size if self.with_action else 0
        self.cell: Cell = registry.build("cell", config.cell, input_size)
        self.composed = composed
        width, heads = self.cell.output_size, tasks if config.heads == "per_task" else 1
        self.actor = (
            ComposedHead(width, self.distribution, tasks) if composed else ActorHead(width, self.distribution, heads)
        )
        #: of the critic, one for all tasks or one a task
        self.values = tasks if config.critics == "per_task" else 1
        self.critic = nn.Linear(width, self.values)
        nn.init.orthogonal_(self.critic.weight, 1.0)
        nn.init.zeros_(self.critic.bias)
        # a plain tuple: looking four parameters up through three modules costs more than a read-out of 64 copies
        self._read_parts = (self.actor.linear.weight, self.critic.weight, self.actor.linear.bias, self.critic.bias)
        self._read: tuple[Tensor, Tensor]
        self._read_versions: list[tuple[int, int]] = []

    def redrawn(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Parameters as they would be in a new policy, drawn by `generator` (on the host): name -> tensor."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            new = Policy(*self._made_of).to(self.critic.weight)
        return {name: parameter.detach() for name, parameter in new.named_parameters()}

    def see(self, chunk: Chunk, workers: Workers) -> None:
        """Called when a chunk has been learned from, for what moves with observations. A collective operation."""
        if isinstance(self.encoder, Normalized):
            self.encoder.seen.add(chunk.obs, chunk.weight, workers)

    def encode(self, inputs: Inputs) -> Tensor:
        """The cell's input x [..., D]."""
        lead, obs = inputs.previous_reward.shape, inputs.obs
        if len(lead) == 1:
            features = self.encoder(obs)
        else:
            features = self.encoder(obs.reshape(-1, *obs.shape[len(lead) :])).view(*lead, -1)
        parts = [features, *(part.to(features.dtype) for part in self.beside(inputs))]
        return torch.cat(parts, -1) if len(parts) > 1 else features

    def beside(self, inputs: Inputs) -> list[Tensor]:
        """What the cell reads beside the features, [..., n] each."""
        parts = [inputs.previous_action] if self.with_action else []
        if self.with_reward:
            parts.append(inputs.previous_reward.unsqueeze(-1))
        if self.tasks_shown:
            parts.append(nn.functional.one_hot(inputs.task, self.tasks_shown))
        return parts

    def task_heads(self) -> list[tuple[nn.Parameter, int]]:
        """The parameters of actor and critic, each with the number of tasks whose rows it has one after the other."""
        actor, critic = self.actor.parameters(), self.critic.parameters()
        return [*((p, self.actor.tasks) for p in actor), *((p, self.values) for p in critic)]

    def read_out(self) -> tuple[Tensor, Tensor]:
        """Weight [P + V, H] and bias of actor and critic side by side; the same tensors until a parameter changes."""
        parts = self._read_parts
        if torch.is_grad_enabled():
            return torch.cat(parts[:2]), torch.cat(parts[2:])
        versions = [(part.data_ptr(), part._version) for part in parts]
        if versions != self._read_versions:
            self._read, self._read_versions = (torch.cat(parts[:2]), torch.cat(parts[2:])), versions
        return self._read

    def outputs(self, read: Tensor, inputs: Inputs) -> Outputs:
        """What the read-out [..., P + values] says; P has a block a head."""
        policy, value = read.split([read.shape[-1] - self.values, self.values], -1)
        if self.values > 1:
            value = value.gather(-1, inputs.task.unsqueeze(-1))
        policy = self.actor.parameters_of(policy, inputs.task)
        offset = self.encoder.offset(inputs.obs)
        if offset is not None:
            policy = torch.cat([policy[..., : offset.shape[-1]] + offset, policy[..., offset.shape[-1] :]], -1)
        if isinstance(self.distribution, Predictions):
            return Outputs(policy, policy[..., 0])
        if isinstance(self.distribution, EpsilonGreedy):
            return Outputs(*self.distribution.combined(policy, value.squeeze(-1), inputs.action_mask))
        if inputs.action_mask.shape[-1]:
            policy = self.distribution.mask(policy, inputs.action_mask)
        return Outputs(policy, value.squeeze(-1))

    def heads(self, y: Tensor, inputs: Inputs) -> Outputs:
        """Actor and critic on the cell's output y [..., H], in one product."""
        return self.outputs(nn.functional.linear(y, *self.read_out()), inputs)

    def step(self, inputs: Inputs, state_BS: Tensor, is_init_B: Tensor) -> Step:
        """One step of every copy; the state is reset where `is_init_B`."""
        x_BD = self.encode(inputs)
        read_BP, state_BS, kept = self.cell.read_out(x_BD, state_BS, is_init_B, *self.read_out())
        return Step(self.outputs(read_BP, inputs), state_BS, x_BD, kept)

    def sequence(
        self,
        chunk: Chunk,
        state_BS: Tensor,
        acted: Acted | None = None,
        *,
        current: int = 0,
        through: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> Outputs:
        """The outputs [T, B, ...] of a whole chunk under the current parameters, starting from `state_BS`.

        Args:
            chunk: what was seen.
            state_BS: memory before the first step.
            acted: what acting computed, if the parameters are still those that acted (see `Cell.sequence`).
            current: the first so many copies were acted by the current parameters, and so are the values in the chunk.
            through: stands in for the cell's `sequence` (see `GradientEngine.sequence`).
        """
        inputs = inputs_of(chunk)
        x_TBD = self.encode(inputs)
        y_TBH, last_BS = (through or self.cell.sequence)(x_TBD, state_BS, chunk.is_init, acted)
        read = nn.functional.linear(y_TBH, *self.read_out())
        outputs = self.outputs(read, inputs)
        outputs.features, outputs.heard, outputs.read, outputs.memory = y_TBH, x_TBD, read, last_BS
        if current < chunk.copies:

            def memory(copies: Tensor) -> Tensor:
                return self.cell.states(x_TBD[:, copies], state_BS[copies], chunk.is_init[:, copies])

            outputs.after = partial(self.after, chunk, last_BS.detach(), memory, current)
        return outputs

    @torch.no_grad()
    def after(
        self,
        chunk: Chunk,
        last_BS: Tensor,
        memory: Callable[[Tensor], Tensor],
        current: int = 0,
        read: Callable[[Outputs], Tensor] | None = None,
        *,
        dense: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The current critic's values of what came after the steps of a chunk, for bootstrapping.

        Args:
            chunk: the data.
            last_BS: memory after the last step.
            memory: gives the memory after every step, [T, n, S], of n copies (int64).
            current: the values that the chunk has of the first so many copies are those of the current critic.
            read: what is asked for in place of the value, [n, ...] of outputs [n, ...]; `current` must be 0.
            dense: never wait for the device to know which steps were truncated; by default so on all but CPUs.

        Returns:
            The value of the observation after the last step [B], and that of the true last observation of episodes that
            were truncated [T, B], zero elsewhere; each is read with the memory of its episode.
        """
        rest = slice(current, None)
        is_init_B = chunk.next_is_init[rest]
        inputs = self.following(chunk, chunk.next_obs[rest], (-1, rest))
        if self.with_action:
            inputs.previous_action = inputs.previous_action.masked_fill(is_init_B.unsqueeze(-1), 0.0)
        if self.with_reward:
            inputs.previous_reward = inputs.previous_reward.masked_fill(is_init_B, 0.0)
        said = self.step(inputs, last_BS[rest], is_init_B).outputs
        value_B = said.value if read is None else read(said)
        bootstrap_B = torch.cat([chunk.bootstrap_value[:current], value_B]) if current else value_B
        T, B = chunk.reward.shape
        step_KB, final_TB, device = chunk.final_step, chunk.final_value, last_BS.device
        if read is not None:
            final_TB = value_B.new_zeros(T, *value_B.shape)
        if not chunk.slots:
            return bootstrap_B, final_TB
        copies = torch.arange(current, B, device=device)
        if dense if dense is not None else device.type != "cpu":
            slot, index = torch.arange(chunk.slots * len(copies), device=device), copies.repeat(chunk.slots) - current
            slot = slot // len(copies)
        else:
            copies = copies[(step_KB[:, rest] < T).any(0)]
            slot, index = (step_KB[:, copies] < T).nonzero(as_tuple=True)
        if not len(slot):
            return bootstrap_B, final_TB
        copy = copies[index]
        step = step_KB[slot, copy]
        row = step.clamp(max=T - 1)  # what is read for an empty slot goes to a row that nobody sees
        inputs = self.following(chunk, chunk.final_obs[slot, copy], (row, copy))
        if self.memoryless:
            inputs.previous_action = torch.zeros_like(inputs.previous_action)
            inputs.previous_reward = torch.zeros_like(inputs.previous_reward)
        reset = torch.full((len(slot),), self.memoryless, device=device)
        said = self.step(inputs, memory(copies)[row, index], reset).outputs
        final_TB = torch.cat([final_TB, final_TB.new_zeros(1, *final_TB.shape[1:])])
        final_TB[step, copy] = said.value if read is None else read(said)
        return bootstrap_B, final_TB[:-1]

    def following(self, chunk: Chunk, obs: Tensor, at: tuple[Any, Any]) -> Inputs:
        """The inputs after the steps `at` (time, copy) of a chunk, in the same episode."""
        action = chunk.previous_action[at]  # not read, or
        if self.with_action:
            action = self.distribution.features(chunk.action[at])
        return Inputs(obs, action, chunk.reward[at], chunk.task[at], chunk.action_mask[at])


def inputs_of(chunk: Chunk) -> Inputs:
    """The policy's inputs in a chunk."""
    return Inputs(chunk.obs, chunk.previous_action, chunk.previous_reward, chunk.task, chunk.action_mask)
