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
from lifelong.envs.compiled import CompiledSteps
from lifelong.envs.spaces import ActionBorder
from lifelong.kernels import acting
from lifelong.kernels.categorical import categorical_call
from lifelong.kernels.dense import copy
from lifelong.kernels.loop import Call, Calls, Direct, Prepared


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


def read_out(policy: Policy) -> tuple[tuple[Tensor, Tensor], list[Direct]]:
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

    `begin` has to be called before they are made, and may be again and again.

    Attributes:
        pack: what reads the parameters.
        before: from the observation of the step to the action, which is the last of them.
        after: what the next step is shown of this one, once its reward and `is_init` are known.
        x_TBD, state_TBS: the cell's inputs, and its memory with a row more than there are steps.
        read_TBR: the read-out of all heads.
        policy_TBP, value_TB: what the heads say.
        kept: what the cell can use again (see `Cell.read_out_calls`).
        encoder: its calls.
        read_out: weight and bias of actor and critic side by side.
        task_B, mask_BA: what the heads go by.
    """

    def __init__(
        self,
        policy: Policy,
        obs_TB: Tensor,
        is_init_TB: Tensor,
        reward_TB: Tensor,
        acted: Actions,
        border: ActionBorder | None,
        generator: torch.Generator | None,
        *,
        masked: int,
        scaled: bool,
        beyond: bool = False,
    ) -> None:
        """Args:
        policy: whose parameters are read where they lie now.
        obs_TB, is_init_TB: with a row more than there are steps; the first is not read before the calls are made.
        reward_TB: rewards, which are multiplied in place if they are `scaled`.
        acted: where actions go.
        border: between the policy's actions and the environment's, if they differ.
        generator: None takes the most likely actions.
        masked: width of the action masks, 0 if there are none.
        scaled: whether rewards have a scale.
        beyond: let the calls of `before` read the last observation, too; what the heads say then lies in one piece.
        """
        T, B = len(obs_TB) - (not beyond), obs_TB.shape[1]
        self.policy, self.acted, self.generator, weight = policy, acted, generator, policy.critic.weight
        self.obs_TB, self.is_init_TB = obs_TB, is_init_TB
        encoder, size = policy.encoder, policy.cell.input_size
        plain = encoder.transparent and size == encoder.output_size
        x_TBD = obs_TB if plain else weight.new_empty(len(obs_TB), B, size)
        state = policy.cell.initial_state(B, weight.device)
        self.state_TBS = state.new_empty(T + 1, *state.shape)
        self.task_B, self.scale_B = torch.empty(B, dtype=torch.int64), torch.ones_like(reward_TB[0])
        self.mask_BA = torch.empty(B, masked, dtype=torch.bool)
        self.x_TBD = x_TBD[:T]
        self.read_out, pack = read_out(policy)
        cell = policy.cell.read_out_calls(self.x_TBD, self.state_TBS, is_init_TB, *self.read_out)
        calls, self.read_TBR, self.kept = cell
        features = self.x_TBD[..., : encoder.output_size]
        self.encoder = Calls([], []) if plain else encoder.act_calls(obs_TB[:T], features)
        self.pack = [*pack, *self.encoder.pack, *calls.pack]
        self.before = [*self.encoder.step, *calls.step]
        self.after: list[Call | Direct] = []
        self._show(x_TBD, is_init_TB, reward_TB, scaled)
        #: uniform or normal numbers that actions are drawn by
        self.noise: Tensor | None = None
        self._draw(border, apart=beyond)

    def begin(
        self, inputs: Inputs, state_BS: Tensor, is_init_B: Tensor, scale_B: Tensor | None = None, *, draw: bool = True
    ) -> None:
        """Put in place what the first step reads, and `draw` random numbers for all."""
        self.obs_TB[0], self.is_init_TB[0], self.state_TBS[0] = inputs.obs, is_init_B, state_BS
        if self.action_TBF is not None:
            self.action_TBF[0] = inputs.previous_action
        if self.reward_TB is not None:
            self.reward_TB[0] = inputs.previous_reward
        if self.shown_TBK is not None:
            self.shown_TBK.copy_(torch.nn.functional.one_hot(inputs.task, self.policy.tasks_shown))
        self.task_B.copy_(inputs.task)
        if self.mask_BA.shape[1]:
            self.mask_BA.copy_(inputs.action_mask)
        if scale_B is not None:
            self.scale_B.copy_(scale_B)
        if self.noise is None or not draw:
            return
        if isinstance(self.policy.distribution, Gaussian):
            for t in range(len(self.noise)):  # torch's normal numbers depend on how many are drawn at once
                self.draw(t)
        else:
            torch.rand(self.noise.shape, generator=self.generator, out=self.noise)

    def draw(self, t: int) -> None:
        """Random numbers for one step."""
        if self.noise is not None:
            draw = torch.randn if isinstance(self.policy.distribution, Gaussian) else torch.rand
            draw(self.noise[t].shape, generator=self.generator, out=self.noise[t])

    def shown(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Previous action [T + 1, B, F] and reward [T + 1, B] as the policy read and, in the last row, will read them;
        those of `inputs` if it does not read them."""
        rows = len(self.state_TBS)
        action = inputs.previous_action.expand(rows, -1, -1) if self.action_TBF is None else self.action_TBF
        return action, inputs.previous_reward.expand(rows, -1) if self.reward_TB is None else self.reward_TB

    def _show(self, x_TBD: Tensor, is_init_TB: Tensor, reward_TB: Tensor, scaled: bool) -> None:
        """What the cell reads beside the features: previous action, previous reward, task."""
        policy, following = self.policy, is_init_TB[1:]
        first, distribution = policy.encoder.output_size, policy.distribution
        self.action_TBF: Tensor | None = None
        self.reward_TB: Tensor | None = None
        if policy.with_action:
            width = distribution.feature_size
            columns = self.action_TBF = x_TBD[..., first : first + width]
            if isinstance(distribution, Gaussian):
                self.after.append(acting.masked(self.acted.clipped_TB, following, columns[1:]))
            else:
                counts = distribution.counts if isinstance(distribution, MultiCategorical) else [width]
                offsets = acting.previous_offsets(counts)
                self.after.append(acting.one_hot(self.acted.drawn_TB, offsets, following, columns[1:]))
            first += width
        shown = x_TBD[..., first : first + 1] if policy.with_reward else None
        if shown is not None:
            self.reward_TB = shown[..., 0]
            first += 1
        if scaled or shown is not None:
            to = None if shown is None else shown[1:]
            self.after.append(acting.scaled_reward(reward_TB, self.scale_B, following, to))
        self.shown_TBK = x_TBD[..., first:] if policy.tasks_shown else None

    def _draw(self, border: ActionBorder | None, *, apart: bool) -> None:
        """Heads and actions."""
        policy, read_TBR, acted = self.policy, self.read_TBR, self.acted
        (T, B, _), actor, distribution = read_TBR.shape, policy.actor, policy.distribution
        counts = actor.tasks, policy.values
        one_head = counts == (1, 1) and type(distribution) is Categorical
        if one_head and not apart and not self.mask_BA.shape[1]:
            self.policy_TBP, self.value_TB = read_TBR[..., :-1], read_TBR[..., -1]
        else:
            self.policy_TBP = read_TBR.new_empty(T, B, distribution.size)
            self.value_TB = read_TBR.new_empty(T, B)
            log_std = actor.log_std.detach() if isinstance(distribution, Gaussian) else None
            row = self.policy_TBP, self.value_TB
            self.before.append(acting.heads(read_TBR, self.task_B, self.mask_BA, log_std, counts, NEGATIVE, *row))
        if isinstance(distribution, Gaussian):
            bounds_6A = torch.stack([distribution.low, distribution.high] * 3)
            if border is not None and border.start is not None and border.scale is not None:
                bounds_6A[2:] = torch.stack([border.start, border.scale, border.low, border.high])
            self.noise = None if self.generator is None else read_TBR.new_empty(acted.drawn_TB.shape)
            tensors = acted.drawn_TB, acted.clipped_TB, acted.given_TB
            self.before.append(acting.gaussian(self.policy_TBP, self.noise, bounds_6A, *tensors))
            return
        logits, action = self.policy_TBP, acted.drawn_TB
        if isinstance(distribution, MultiCategorical):
            logits = logits.view(T, -1, distribution.counts[0])
            action = action.view(len(action), -1)
        if self.generator is None:
            self.before.append(acting.mode(logits, action))
        else:
            self.noise = torch.empty(action.shape)
            self.before.append(categorical_call(logits, self.noise, action))


class Program:
    """The calls of T steps of acting.

    Args:
        made: the environment's; None: it is stepped between those before and after.
        parts: the policy's.
        reward: of every step.
    """

    def __init__(self, made: CompiledSteps | None, parts: CompiledActing, reward: Tensor) -> None:
        self.made, self.parts, self.reward, dtype = made, parts, reward, parts.state_TBS.dtype
        self.pack = Prepared(parts.pack, dtype)
        whole = [] if made is None else [*made.calls, *parts.after]
        self.before, self.after = Prepared([*parts.before, *whole], dtype), Prepared(parts.after, dtype)

    def fits(self) -> bool:
        """Whether the environment still has what it was built for."""
        return self.made is None or self.made.fits()
