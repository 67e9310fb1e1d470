"""The forward pass of a policy over a minibatch and its backward pass, as two compiled calls, on a CPU.

Autograd pays some hundred microseconds a chunk for encoder, cell and read-out, whatever they compute. Here they are
lists of calls of our own kernels on tensors that stay from chunk to chunk, and autograd begins where the objective and
the strategies do, at the read-out:

    forward     weights, encoder, cell, read-out of actor and critic      `Passes.sequence`
    (torch)     distribution, loss, what strategies add to it             `loss.backward()`
    backward    read-out, cell, encoder                                   `Passes.backward`

Every distribution, engine, objective and strategy of ours has the gradient that it would have without, to rounding: an
engine's carry is a node of autograd on the first state, as ever, and terms that reach parameters on other ways are
added.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Acted
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.modules.learning_pass import LearningPass
from lifelong.agent.objectives.base import Objective
from lifelong.agent.policy import Inputs, Outputs, Policy, inputs_of
from lifelong.agent.runtime.planned import backward
from lifelong.agent.runtime.planned.acting import read_out
from lifelong.agent.runtime.planned.kept import Kept
from lifelong.agent.runtime.planned.rows import ActedInRows, ActedRows
from lifelong.agent.runtime.planned.step import FlatGradients
from lifelong.agent.strategies.base import Strategy, overrides
from lifelong.kernels import acting
from lifelong.kernels.dense import Dense, clear
from lifelong.kernels.loop import Call, Calls, Direct, Each, Prepared, fixed
from lifelong.replay.chunk import Chunk


def own_gradients(objective: Objective, strategies: Sequence[Strategy]) -> str:
    """Who may take gradients of its own from the outputs to the parameters, which end at the read-out here: objectives
    that say so, and parts of the user's own, of which nobody knows. Empty if nobody does."""
    if objective.streaming:
        return f"the objective {type(objective).__name__}"
    parts = [objective, *overrides(list(strategies), "extra_loss")]
    foreign = [type(part).__name__ for part in parts if not type(part).__module__.startswith("lifelong.")]
    return f"{foreign[0]}, which is not ours" if foreign else ""


def refusal(policy: Policy, engine: GradientEngine, changed: LearningPass | None, own: str) -> str | None:
    """What keeps a policy from such passes, in a few words; None if nothing does."""
    weight = policy.critic.weight
    checks = {
        own: bool(own),
        "policy.weight_drop or rollout.initial_state": changed is not None,
        f"the engine {type(engine).__name__}": type(engine).sequence is not GradientEngine.sequence,
        "the device": weight.device.type != "cpu" or not acting.available(weight),
        "parameters that lie apart": not all(p.is_contiguous() for p in policy.parameters()),
    }
    return next((name for name, applies in checks.items() if applies), None) or backward.cell_refusal(policy.cell)


class Passes:
    """The passes of a learner's policy.

    Args:
        policy: whose.
        engine: through whose cell is learned.
        changed: the forward pass of the cell, where it is another one than in acting.
        own: who takes gradients of its own (see `own_gradients`).
    """

    #: what was built (see `agent.runtime.capture`)
    TRANSIENT: ClassVar[tuple[str, ...]] = ("_kept", "_made")

    def __init__(self, policy: Policy, engine: GradientEngine, changed: LearningPass | None, own: str = "") -> None:
        self.policy, self.through = policy, changed or engine
        #: why they are torch's, for the log; empty if they are compiled
        self.why = refusal(policy, engine, changed, own) or ""
        self.parameters = list(policy.parameters())
        self._kept: Kept[CompiledPass] = Kept()
        self._made: CompiledPass | None = None

    def sequence(self, batch: Chunk, state_BS: Tensor, acted: Acted | None, current: int) -> Outputs:
        """What `Policy.sequence` returns; the backward pass goes as far as the read-out until `backward` is called."""
        self._made = None
        if self.why:
            return self.policy.sequence(batch, state_BS, acted, current=current, through=self.through.sequence)
        rows = acted.rows if isinstance(acted, ActedInRows) else None
        # a load may have put parameters elsewhere
        addresses = [parameter.data_ptr() for parameter in self.parameters]
        key = *batch.reward.shape, batch.obs.dtype, rows and id(rows), *addresses
        self._made = self._kept.get_or_build(key, lambda: CompiledPass(self.policy, batch, rows))
        assert self._made is not None
        return self._made.sequence(batch, state_BS, current)

    def backward(self) -> None:
        """After `loss.backward()`: the rest of the gradient."""
        if self._made is not None:
            self._made.backward()


class CompiledPass:
    """Both passes over minibatches of one shape.

    Args:
        policy: `refusal` found nothing.
        batch: a minibatch of this shape.
        rows: where acting left its forward pass, if that is the one.
    """

    def __init__(self, policy: Policy, batch: Chunk, rows: ActedRows | None = None) -> None:
        self.policy, self.rows, cell = policy, rows, policy.cell
        (T, B), D, F = batch.reward.shape, cell.input_size, policy.encoder.output_size
        M, weight = T * B, policy.critic.weight
        self.encoded = policy.encoder.compiled()
        below, pack = Calls([], []), list[Call | Direct]()
        if rows is None:
            seen = backward.room(cell, T, B)
            read_weights, reads = read_out(policy)
            pack += reads
            if self.encoded:
                kind = torch.int64 if policy.encoder.counts else weight.dtype  # bytes are stored where they will do
                self.obs_TB = torch.empty(batch.obs.shape, dtype=kind)
                obs = self.obs_TB.view(1, M, *batch.obs.shape[2:])
                below = policy.encoder.act_calls(obs, seen.x_TBD.view(1, M, D)[..., :F])
            self.read_TBR = weight.new_empty(T, B, len(read_weights[0]))
        else:
            parts = rows.parts
            init, read_weights, below = rows.made.is_init[:T], parts.read_out, parts.encoder
            seen = backward.CellRows(1, parts.x_TBD[:T], parts.state_TBS, init, parts.kept)
            self.read_TBR = parts.read_TBR[:T]
        self.x_TBD, self.state_TBS, self.is_init_TB = seen.x_TBD, seen.state_TBS[: T + 1], seen.is_init_TB
        self.cell = backward.calls_of(cell, seen, again=rows is None)
        read, y = Dense(*read_weights, rows=M), self.cell.outputs
        y = y.rows[0] if isinstance(y, Each) else y
        self.y_TBH, said, self.d_read = y.view(T, B, -1), self.read_TBR.flatten(0, 1), weight.new_empty(M, read.units)
        forward: list[Call | Direct] = [*pack, *self.cell.pack, *read.pack(forward=rows is None)]
        if rows is None:
            forward += [*below.pack, *below.step, *self.cell.forward(), read.forward(y, said)]
        else:
            forward += self.cell.before
        self._forward = Prepared([*map(fixed, forward)], weight.dtype)
        # the gradients of the read-out, and then those of the cell's output from elsewhere, come between these
        self.gradients, self.dy, self.dx = (
            FlatGradients(self._learned()),
            weight.new_empty(y.shape),
            weight.new_empty(M, D),
        )
        first = read.backward(y, said, self.d_read, self.d_read, *self.gradients.read, self.dy, add=False)
        self._first = Prepared([clear(self.gradients.flat), *first], weight.dtype)
        needs_x = not self.encoded or below.backward is not None
        second = self.cell.backward(self.dy, self.gradients.below("cell."), self.dx if needs_x else None)
        if below.backward is not None:
            second += below.backward(1, self.dx[:, :F], self.gradients.below("encoder."))
        self._second = Prepared([*map(fixed, second)], weight.dtype)

    def _learned(self) -> dict[str, nn.Parameter]:
        """The parameters whose gradients are computed here."""
        parts = (
            ("encoder.", "cell.", "actor.linear.", "critic.") if self.encoded else ("cell.", "actor.linear.", "critic.")
        )
        return {name: p for name, p in self.policy.named_parameters() if name.startswith(parts)}

    def sequence(self, batch: Chunk, state_BS: Tensor, current: int) -> Outputs:
        """See `Passes.sequence`."""
        policy, inputs = self.policy, inputs_of(batch)
        self.state = state_BS
        if self.rows is None:
            self._read(inputs)
            self.is_init_TB.copy_(batch.is_init)
            self.state_TBS[0].copy_(state_BS.detach())
        self._forward.run()
        self.read_leaf, self.y_leaf = self.read_TBR.detach().requires_grad_(), self.y_TBH.detach().requires_grad_()
        outputs = policy.outputs(self.read_leaf, inputs)
        outputs.features = self.y_leaf
        if current < batch.copies:

            def memory(copies: Tensor) -> Tensor:
                return self.state_TBS[1:, copies]

            outputs.after = partial(policy.after, batch, self.state_TBS[-1], memory, current)
        return outputs

    def _read(self, inputs: Inputs) -> None:
        """Put in place what the encoder and the cell read."""
        if not self.encoded:
            self.x = self.policy.encode(inputs)
            self.x_TBD.copy_(self.x.detach())
            return
        self.obs_TB.copy_(inputs.obs)
        first = self.policy.encoder.output_size
        for part in self.policy.beside(inputs):
            self.x_TBD[..., first : first + part.shape[-1]].copy_(part)
            first += part.shape[-1]

    @torch.no_grad()
    def backward(self) -> None:
        """From the gradients at the read-out to those of the parameters."""
        slopes = self.read_leaf.grad
        if slopes is None:
            self.d_read.zero_()
        else:
            self.d_read.copy_(slopes.flatten(0, 1))
        self._first.run()
        if self.y_leaf.grad is not None:
            self.dy += self.y_leaf.grad.flatten(0, 1)
        self._second.run()
        self.gradients.assign()
        if self.state.requires_grad:  # the engine's carry
            _go_on(self.state, self.cell.first_slopes)
        if not self.encoded and self.x.requires_grad:
            _go_on(self.x, self.dx.view_as(self.x))


def _go_on(tensor: Tensor, slopes: Tensor) -> None:
    """`tensor.backward(slopes)`, for which torch would import a library of symbols, a third of a second."""
    with torch.enable_grad():
        loss = (tensor * slopes).sum()
    loss.backward()
