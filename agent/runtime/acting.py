"""A policy's part of T steps of acting as compiled calls: inputs, encoder, cell, heads and the draw, for many copies.

Step by step from Python these cost some 150 us whatever they compute. The calls of `kernels.loop` do the same in one,
with the environment's step between them where that is compiled too (`Rollout`). Sums may be in another order than
torch's, so results equal those of `Policy.step` to rounding; the random numbers are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong.agent.modules.heads import NEGATIVE, Categorical, Gaussian, MultiCategorical
from lifelong.agent.policy import Inputs, Policy
from lifelong.envs.spaces import ActionBorder
from lifelong.kernels import acting
from lifelong.kernels.categorical import categorical_call
from lifelong.kernels.dense import copy
from lifelong.kernels.loop import Call, Calls, Direct


def compiled(policy: Policy) -> bool:
    """Whether there are compiled calls for this policy."""
    distribution = policy.distribution
    drawn = type(distribution) in (Categorical, Gaussian)
    if isinstance(distribution, MultiCategorical):
        drawn = distribution.alike is not None
    weight = policy.critic.weight  # rewards are float32, and all calls are of one type
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and not policy.memoryless
    plain = plain and not policy.composed
    parts = policy.encoder.compiled() and policy.cell.compiled()
    return drawn and plain and parts and acting.available(policy.critic.weight)


def _read_out(policy: Policy) -> tuple[tuple[Tensor, Tensor], list[Direct]]:
    """Room for weight and bias of actor and critic side by side, and the calls that fill it."""
    actor, critic = policy.actor.linear, policy.critic
    (P, H), V = actor.weight.shape, len(critic.weight)
    weight, bias = actor.weight.new_empty(P + V, H), actor.weight.new_empty(P + V)
    parts = [(actor.weight, weight[:P]), (critic.weight, weight[P:]), (actor.bias, bias[:P]), (critic.bias, bias[P:])]
    return (weight.detach(), bias.detach()), [copy(part.detach().contiguous(), to.detach()) for part, to in parts]


@dataclass
class Actions:
    """Where T steps of actions go; all are the same tensor where they do not differ."""

    drawn_TB: Tensor  # as the policy knows them
    clipped_TB: Tensor  # as they are shown to it at the next step
    given_TB: Tensor  # as the environment takes them


def actions(policy: Policy, steps: int, copies: int, *, rescaled: bool) -> Actions:
    """Empty rows for T steps of B copies; `rescaled` if the environment's own actions are others."""
    distribution = policy.distribution
    drawn = torch.empty(steps, copies, *distribution.action_shape, dtype=distribution.action_dtype)
    clipped = torch.empty_like(drawn) if isinstance(distribution, Gaussian) else drawn
    return Actions(drawn, clipped, torch.empty_like(drawn) if rescaled else clipped)


class CompiledActing:
    """The calls before and after the environment's at every step, and what they leave, in tensors of its own.

    Attributes:
        pack: what reads the parameters.
        before: from the observation of the step to the action, which is the last of them.
        after: what the next step is shown of this one, once its reward and `is_init` are known.
        x_TBD, state_TBS: the cell's inputs, and its memory with a row more than there are steps.
        policy_TBP, value_TB: what the heads say.
        kept: what the cell can use again (see `Cell.read_out_calls`).
        encoder: its calls.
        read_out: weight and bias of actor and critic side by side.
    """

    def __init__(
        self,
        policy: Policy,
        inputs: Inputs,
        obs_TB: Tensor,
        state_BS: Tensor,
        is_init_TB: Tensor,
        reward_TB: Tensor,
        scale_B: Tensor | None,
        acted: Actions,
        border: ActionBorder | None,
        generator: torch.Generator | None,
        *,
        beyond: bool = False,
    ) -> None:
        """Args:
        policy: whose parameters are read where they lie now.
        inputs: of the first step.
        obs_TB, is_init_TB: with a row more than there are steps; the first is not read before the calls are made.
        state_BS: the memory before the first step.
        reward_TB: rewards, which are multiplied by `scale_B` [B] in place.
        acted: where actions go.
        border: between the policy's actions and the environment's, if they differ.
        generator: None takes the most likely actions.
        beyond: let the calls of `before` read the last observation, too; what the heads say then lies in one piece.
        """
        T, B = len(obs_TB) - (not beyond), len(state_BS)
        encoder = policy.encoder
        size = policy.cell.input_size
        plain = encoder.transparent and size == encoder.output_size
        x_TBD = obs_TB if plain else obs_TB.new_empty(len(obs_TB), B, size, dtype=policy.critic.weight.dtype)
        self.state_TBS = state_BS.new_empty(T + 1, *state_BS.shape)
        self.state_TBS[0] = state_BS
        self.x_TBD = x_TBD[:T]
        self.read_out, pack = _read_out(policy)
        cell = policy.cell.read_out_calls(self.x_TBD, self.state_TBS, is_init_TB, *self.read_out)
        calls, read_TBR, self.kept = cell
        features = self.x_TBD[..., : encoder.output_size]
        self.encoder = Calls([], []) if plain else encoder.act_calls(obs_TB[:T], features)
        self.pack = [*pack, *self.encoder.pack, *calls.pack]
        self.before = [*self.encoder.step, *calls.step]
        self.after: list[Call | Direct] = []
        self._show(policy, inputs, x_TBD, is_init_TB, reward_TB, scale_B, acted)
        self._draw(policy, inputs, read_TBR, acted, border, generator, apart=beyond)

    def shown(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Previous action [T + 1, B, F] and reward [T + 1, B] as the policy read and, in the last row, will read them;
        those of `inputs` if it does not read them."""
        rows = len(self.state_TBS)
        action = inputs.previous_action.expand(rows, -1, -1) if self.action_TBF is None else self.action_TBF
        return action, inputs.previous_reward.expand(rows, -1) if self.reward_TB is None else self.reward_TB

    def _show(
        self,
        policy: Policy,
        inputs: Inputs,
        x_TBD: Tensor,
        is_init_TB: Tensor,
        reward_TB: Tensor,
        scale_B: Tensor | None,
        acted: Actions,
    ) -> None:
        """What the cell reads beside the features: previous action, previous reward, task."""
        first, distribution = policy.encoder.output_size, policy.distribution
        following = is_init_TB[1:]
        self.action_TBF: Tensor | None = None
        self.reward_TB: Tensor | None = None
        if policy.with_action:
            width = distribution.feature_size
            columns = self.action_TBF = x_TBD[..., first : first + width]
            columns[0] = inputs.previous_action
            if isinstance(distribution, Gaussian):
                self.after.append(acting.masked(acted.clipped_TB, following, columns[1:]))
            else:
                counts = distribution.counts if isinstance(distribution, MultiCategorical) else [width]
                offsets = acting.previous_offsets(counts)
                self.after.append(acting.one_hot(acted.drawn_TB, offsets, following, columns[1:]))
            first += width
        shown = x_TBD[..., first : first + 1] if policy.with_reward else None
        if shown is not None:
            self.reward_TB = shown[..., 0]
            shown[0, :, 0] = inputs.previous_reward
            first += 1
        if scale_B is not None or shown is not None:
            scale_B = torch.ones_like(reward_TB[0]) if scale_B is None else scale_B
            self.after.append(acting.scaled_reward(reward_TB, scale_B, following, None if shown is None else shown[1:]))
        if policy.tasks_shown:
            x_TBD[..., first:] = torch.nn.functional.one_hot(inputs.task, policy.tasks_shown)

    def _draw(
        self,
        policy: Policy,
        inputs: Inputs,
        read_TBR: Tensor,
        acted: Actions,
        border: ActionBorder | None,
        generator: torch.Generator | None,
        apart: bool,
    ) -> None:
        """Heads and actions."""
        (T, B, _), actor, distribution = read_TBR.shape, policy.actor, policy.distribution
        counts = actor.tasks, policy.values
        one_head = counts == (1, 1) and type(distribution) is Categorical
        if one_head and not apart and not inputs.action_mask.shape[-1]:
            self.policy_TBP, self.value_TB = read_TBR[..., :-1], read_TBR[..., -1]
        else:
            self.policy_TBP = read_TBR.new_empty(T, B, distribution.size)
            self.value_TB = read_TBR.new_empty(T, B)
            log_std = actor.log_std.detach() if isinstance(distribution, Gaussian) else None
            mask = inputs.action_mask.contiguous()
            row = self.policy_TBP, self.value_TB
            self.before.append(acting.heads(read_TBR, inputs.task, mask, log_std, counts, NEGATIVE, *row))
        if isinstance(distribution, Gaussian):
            bounds_6A = torch.stack([distribution.low, distribution.high] * 3)
            if border is not None and border.start is not None and border.scale is not None:
                bounds_6A[2:] = torch.stack([border.start, border.scale, border.low, border.high])
            noise = None
            if generator is not None:  # drawn step by step: torch's normal numbers depend on how many are drawn at once
                shape = acted.drawn_TB.shape[1:]
                noise = torch.stack([torch.randn(shape, generator=generator) for _ in range(T)])
            tensors = acted.drawn_TB, acted.clipped_TB, acted.given_TB
            self.before.append(acting.gaussian(self.policy_TBP, noise, bounds_6A, *tensors))
            return
        logits, action = self.policy_TBP, acted.drawn_TB
        if isinstance(distribution, MultiCategorical):
            logits, action = logits.view(T, -1, distribution.counts[0]), action.view(T, -1)
        if generator is None:
            self.before.append(acting.mode(logits, action))
        else:
            uniform = torch.rand(action.shape, generator=generator)
            self.before.append(categorical_call(logits, uniform, action))
