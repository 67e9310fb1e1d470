"""PPO's part of a plan: all epochs over one chunk, minibatch by minibatch, as calls (see `planned.plan`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lifelong.agent.modules.heads import NEGATIVE
from lifelong.agent.objectives.ppo import PPO
from lifelong.agent.runtime.planned import backward
from lifelong.agent.runtime.planned.likelihood import Likelihood
from lifelong.kernels import acting, adam
from lifelong.kernels.advantages.cpu import gae_call
from lifelong.kernels.dense import Dense, clear, gather, standardize
from lifelong.kernels.loop import Call, Direct, Each, Segment, fixed
from lifelong.kernels.ppo_loss import Statistics
from lifelong.kernels.ppo_loss.cpu import loss_call

if TYPE_CHECKING:
    from lifelong.agent.runtime.learner import Learner
    from lifelong.agent.runtime.planned.plan import Rounds


class Epochs:
    """The updates of one chunk.

    Args:
        rows: one round, acted but not learned from.

    Attributes:
        pack: nothing beside what acting reads; every update packs for itself.
        segments: the advantages, then the updates; the numbers have to be finite after the one at `guard`, and an
            update whose numbers are not makes no step.
        numbers: loss and norm of the gradient of every update, [updates, 2].
    """

    #: what is logged of a chunk, means over its updates, as the learner names it
    METRICS: ClassVar[tuple[str, ...]] = ("loss/total", "gradient/norm", *(f"loss/{n}" for n in Statistics._fields))
    #: whether it learns from what is replayed, too
    replays: ClassVar[bool] = False
    many: ClassVar[bool] = False  # the updates of one chunk are many enough
    weighs: ClassVar[bool] = False
    guard: ClassVar[int] = 1

    def __init__(self, rows: Rounds) -> None:
        self.rows, self.T, self.B = rows, rows.steps, rows.B
        self.pack: list[Call | Direct] = []
        objective = rows.learner.objective
        assert isinstance(objective, PPO)
        updates, self.b = objective.epochs * objective.minibatches, self.B // objective.minibatches
        #: the copies of every minibatch, int64 [updates, b]
        self.orders = torch.arange(self.B).repeat(objective.epochs).view(updates, self.b)
        self.mask_TBA = torch.empty(self.T, *rows.acted.parts.mask_BA.shape, dtype=torch.bool)
        self.M = self.T * self.b
        self.numbers, self.statistics = rows.empty(updates, 2), rows.empty(updates, 7)
        self.advantage, self.target = rows.empty(self.T, self.B), rows.empty(self.T, self.B)
        self.hooks = rows.strategy_calls(Each(self.numbers[:, :1]), Each(self.numbers))
        self.segments = [Segment(self._advantages()), Segment(self._update(), updates)]

    @staticmethod
    def refusal(learner: Learner, copies: int) -> str | None:
        """What keeps the objective from a plan."""
        objective = learner.objective
        return "minibatches of different size" if copies % objective.minibatches else None

    @staticmethod
    def addresses(learner: Learner) -> list[int]:
        """Where what it keeps from chunk to chunk lies: it keeps nothing."""
        return []

    def scalars(self) -> Tensor:
        """What is logged of the chunk, [1, n]."""
        seen = torch.cat([self.numbers, self.statistics], 1)
        return seen.cumsum(0)[-1:] / len(seen)

    def begin(self) -> None:
        """Before the first update."""
        rows, past = self.rows, slice(0, self.T)
        orders, parts = rows.learner.orders(self.B), rows.acted.parts
        if orders is not None:
            self.orders.copy_(orders.view_as(self.orders))
        self.mask_TBA.copy_(parts.mask_BA)
        # the carry is moved by the parameters that acted
        init = rows.acted.made.is_init[past]
        self.trace = rows.learner.engine.trace(parts.x_TBD[past], parts.state_TBS[past], init)

    def finish(self) -> None:
        """After the last update."""
        self.rows.learner.engine.advance(self.trace)

    def _advantages(self) -> list[Call | Direct]:
        rows, made, parts, T, B = self.rows, self.rows.acted.made, self.rows.acted.parts, self.T, self.B
        objective = rows.learner.objective
        assert isinstance(objective, PPO)
        ended = made.terminated, made.truncated, rows.acted.final_value
        drawn = rows.acted.actions.drawn_TB
        inputs = made.reward, parts.value_TB, parts.value_TB[T], *ended
        calls: list[Call | Direct] = [
            Likelihood(rows.policy, T * B).forward(parts.policy_TBP, drawn, rows.log_prob, rows.empty(T * B)),
            gae_call(T, B, (objective.gamma, objective.lam), *inputs, self.advantage, self.target),
        ]
        calls += [standardize(self.advantage)] if objective.normalize_advantage else []
        return calls + self.hooks.get("before_loss", [])

    def _update(self) -> list[Call | Direct]:
        rows, parts, T, b, M = self.rows, self.rows.acted.parts, self.T, self.b, self.M
        policy, objective, learner, index = rows.policy, rows.learner.objective, rows.learner, Each(self.orders)
        assert isinstance(objective, PPO)
        D, actor = policy.cell.input_size, Likelihood(policy, M)
        A = actor.outputs
        # the minibatch
        some = backward.room(policy.cell, T, b)
        x, state, is_init = some.x_TBD, some.state_TBS, some.is_init_TB
        action = actor.actions(T, b)
        known, advantage, target = (rows.empty(T, b) for _ in range(3))
        calls: list[Call | Direct] = [
            gather(index, parts.x_TBD[:T], x),
            gather(index, parts.state_TBS[:1], state[0]),
            gather(index, rows.acted.made.is_init[:T], is_init),
            gather(index, rows.acted.actions.drawn_TB, action),
            gather(index, rows.log_prob, known),
            gather(index, self.advantage, advantage),
            gather(index, self.target, target),
        ]
        # forward
        below: list[Call | Direct] = []
        encoder = None
        pack = [*parts.pack[:4]]  # what makes the read-out of actor and critic
        if policy.encoder.output_size and not policy.encoder.transparent:
            seen = rows.acted.made.obs
            obs = seen.new_empty(T, b, *seen.shape[2:])
            calls.append(gather(index, seen[:T], obs))
            features = x.view(1, M, D)[..., : policy.encoder.output_size]
            encoder = policy.encoder.act_calls(obs.view(1, M, *seen.shape[2:]), features)
            pack += encoder.pack
            below = [fixed(call) for call in encoder.step]
        cell = backward.calls_of(policy.cell, some, again=True)
        read, said = Dense(*parts.read_out, rows=M), rows.empty(M, A + 1)
        forward = [fixed(call) for call in cell.forward()]
        outputs = cell.outputs.rows[0] if isinstance(cell.outputs, Each) else cell.outputs
        pack += [*cell.pack, *read.pack()]
        # loss
        log_prob, entropy, value = (rows.empty(M) for _ in range(3))
        slopes, params = [rows.empty(M) for _ in range(3)], rows.empty(M, actor.size)
        masked = torch.empty(T, b, self.mask_TBA.shape[-1], dtype=torch.bool)
        if self.mask_TBA.shape[-1]:
            calls.append(gather(index, self.mask_TBA, masked))
        task = torch.zeros(M, dtype=torch.int64)
        log_std = policy.actor.log_std.detach() if actor.gaussian else None
        to = params[None], value[None]
        heads = acting.heads(said[None], task, masked.view(M, -1), log_std, (1, 1), NEGATIVE, *to)
        ones, total = torch.ones(M, dtype=rows.dtype), rows.empty(1).fill_(M)
        d_read, dy = rows.empty(M, A + 1), rows.empty(M, policy.cell.output_size)
        entropy_weight = rows.entropy_weight if "before_loss" in self.hooks else objective.entropy_weight
        numbers = objective.clip, objective.value_weight, entropy_weight
        inputs = log_prob, entropy, value, known, advantage, target, ones, total
        outcome: tuple[Tensor | Each, ...] = (Each(self.numbers[:, :1]), Each(self.statistics), *slopes)
        loss: list[Call | Direct] = [
            fixed(heads),
            actor.forward(params, action, log_prob, entropy),
            loss_call(M, numbers, inputs, outcome),
            *actor.backward(params, action, entropy, slopes, d_read, rows.gradients.named),
            acting.place_rows(slopes[2][:, None], d_read[:, A:]),
        ]
        # backward
        dx = rows.empty(M, D) if encoder else None
        back = [*read.backward(outputs, d_read, d_read, d_read, *rows.gradients.read, dy, add=False)]
        back_cell = cell.backward(dy, rows.gradients.below("cell."), dx)
        back_cell += cell.boundary(learner.engine, rows.gradients.below("cell."), index)
        if encoder and encoder.backward and dx is not None:
            features_dx = dx[:, : policy.encoder.output_size]
            back_cell += [fixed(call) for call in encoder.backward(1, features_dx, rows.gradients.below("encoder."))]
        everything = [
            clear(rows.gradients.flat),
            *calls,
            *pack,
            *below,
            *forward,
            read.forward(outputs, said),
            *loss,
            *back,
        ]
        norm = adam.clip_call(rows.gradients.flat, learner.max_grad_norm, Each(self.numbers[:, 1:]))
        before, after = (
            [call for name in names for call in self.hooks.get(name, [])]
            for names in (("extra_loss", "transform_gradients"), ("transform_update", "after_update"))
        )
        back_cell = [_kept(call, index) for call in back_cell]
        return [*everything, *back_cell, *before, norm, rows.step(Each(self.numbers)), *after]


def _kept(call: Call | Direct, index: Each) -> Call | Direct:
    """The call on the first row of everything but the order of the copies."""

    def fix(argument: object) -> object:
        return argument.rows[0] if isinstance(argument, Each) and argument.rows is not index.rows else argument

    return call._replace(arguments=tuple(map(fix, call.arguments)))  # type: ignore[arg-type]
