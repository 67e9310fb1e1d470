"""Steps whose gradients go back through a policy, as calls in a plan (see `planned.plan`): those that were acted, or
others that were passed forward again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.planned.cell_calls import CellCalls
from lifelong.agent.runtime.planned.likelihood import Likelihood
from lifelong.agent.runtime.planned.step import FlatGradients
from lifelong.kernels import acting
from lifelong.kernels.dense import Dense
from lifelong.kernels.loop import Call, Calls, Direct, Each


class Block(NamedTuple):
    """T steps of some copies, M in all, in each of K rounds.

    Attributes:
        policy: whose.
        rounds: K.
        likelihood: of what was done.
        read: the read-out of actor and critic.
        cell: the cell's calls.
        encoder: the encoder's.
    """

    policy: Policy
    rounds: int
    likelihood: Likelihood
    read: Dense
    cell: CellCalls
    encoder: Calls

    def back(
        self,
        said: tuple[Each | Tensor, Each | Tensor, Tensor],
        slopes: Sequence[Tensor],
        gradients: FlatGradients,
        engine: GradientEngine | None = None,
        held: Sequence[Call | Direct] = (),
    ) -> list[Call | Direct]:
        """From the slopes of log-probability, entropy and value [M] to the gradients of all parameters.

        Args:
            said: parameters of the distribution, action, and entropy.
            slopes: read.
            gradients: added to.
            engine: adds the carry's part, and moves it.
            held: what adds to `likelihood.slopes` and to the slopes of the value.
        """
        policy, actor, M = self.policy, self.likelihood, self.likelihood.M
        empty = gradients.flat.new_empty
        encoder, d_read, dy = self.encoder.backward, empty(M, actor.outputs + 1), empty(M, policy.cell.output_size)
        dx = empty(M, policy.cell.input_size) if encoder else None
        calls: list[Call | Direct] = [
            *actor.backward(*said, slopes, d_read, gradients.named, held),
            acting.place_rows(slopes[2][:, None], d_read[:, actor.outputs :]),
            *self.cell.before,
            *self.read.backward(self.cell.outputs, d_read, d_read, d_read, *gradients.read, dy, add=False),
            *self.cell.backward(dy, gradients.below("cell."), dx),
        ]
        if engine is not None:
            calls += self.cell.carry(engine, gradients.below("cell."))
        if encoder and dx is not None:
            features = dx[:, : policy.encoder.output_size]
            calls += encoder(self.rounds, features, gradients.below("encoder."))
        return calls
