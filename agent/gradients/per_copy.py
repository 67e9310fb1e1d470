"""The gradient of every copy by itself, at one step, from one backward pass over all of them.

What a copy's score owes to a linear layer is an outer product of what the layer heard and what comes back to it, and
what it owes to the recurrent parameters is its own row of the sensitivity after the step, times what comes back to the
memory. So with S_1 = dstate_1/dtheta, which the carry is once it has been moved over the step,

    df_b/dW_layer = delta_b (outer) x_b        df_b/dtheta = df_b/dstate_1[b] S_1[b]

and a backward pass for each copy is not needed. Where a policy has a part of which this is not known, there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import ElementwiseCell
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.gradients.immediate import Immediate
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.modules.encoders import Encoder, OneHotLinear
from lifelong.agent.modules.heads import Gaussian
from lifelong.agent.policy import Outputs, Policy
from lifelong.replay.chunk import Chunk


class PerCopy:
    """Takes the gradients of rows of scores, copy by copy, without a loop over the copies.

    Args:
        policy: `refusal` has nothing against it.
        engine: exact RTRL; or BPTT, which at one step has the derivatives of that step alone.
    """

    def __init__(self, policy: Policy, engine: GradientEngine) -> None:
        assert isinstance(policy.cell, ElementwiseCell)
        self.policy, self.engine, self.cell = policy, engine, policy.cell
        self.heard: list[tuple[nn.Module, Tensor, Tensor]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around the forward pass: what the layers of the encoder hear and say is noted."""
        self.heard = []
        hooks = [layer.register_forward_hook(self._hear) for layer in _layers(self.policy.encoder)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hear(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            self.heard.append((layer, inputs[0].detach(), output))

    def __call__(self, score_BK: Tensor, outputs: Outputs, chunk: Chunk, trace: Any) -> Tensor:
        """The gradient of every score by all parameters, [B, K, P]; moves the carry over the step.

        Args:
            score_BK: functions of the outputs of one step.
            outputs: of the policy.
            chunk: the step.
            trace: of the engine.
        """
        heard, self.heard = self.heard, []
        y_TBH, read_TBP, x_TBD, memory_BS = outputs.features, outputs.read, outputs.heard, outputs.memory
        assert y_TBH is not None and read_TBP is not None and x_TBD is not None and memory_BS is not None
        self.engine.advance(trace)
        x_BD, state_BS = x_TBD[0].detach(), memory_BS.detach()
        free = [outputs.policy] if isinstance(self.policy.distribution, Gaussian) else []
        through = [y_TBH, read_TBP, *free, *(y for _, _, y in heard)]
        of_state, of_drive_BH = self._of_output(x_BD, state_BS)
        sensitivity = self._sensitivity(x_TBD.detach(), chunk)
        rows = []
        for score_B in score_BK.unbind(1):
            grads = torch.autograd.grad(score_B.sum(), through, retain_graph=True, allow_unused=True)
            found = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, through, strict=True)]
            by: dict[int, Tensor] = {}
            self._heads(by, found[1][0], y_TBH.detach()[0], found[2][0] if free else None)
            self._recurrent(by, of_state(found[0][0]), *sensitivity)
            if of_drive_BH is not None:
                self._output(by, of_drive_BH * found[0][0], x_BD, state_BS)
            for (layer, x, _), g in zip(heard, found[2 + len(free) :], strict=True):
                self._layer(by, layer, x, g)
            rows.append(torch.cat([by[id(p)].reshape(len(x_BD), -1) for p in self.policy.parameters()], 1))
        return torch.stack(rows, 1)

    def _heads(self, by: dict[int, Tensor], read_BP: Tensor, y_BH: Tensor, policy_BP: Tensor | None) -> None:
        actor, critic = self.policy.actor.linear, self.policy.critic
        parts = read_BP.split([len(actor.weight), len(critic.weight)], 1)
        for layer, g_BP in zip((actor, critic), parts, strict=True):
            by[id(layer.weight)] = g_BP.unsqueeze(2) * y_BH.unsqueeze(1)
            by[id(layer.bias)] = g_BP
        if policy_BP is not None:
            by[id(self.policy.actor.log_std)] = policy_BP.chunk(2, 1)[1]

    def _of_output(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
        """What comes back to the memory, as a function of what comes back to the cell's output, and the slope of that
        output in its linear layer [B, H], if it has one."""
        state, bias = state_BS.detach().requires_grad_(), getattr(self.cell, "output_bias", None)
        with torch.enable_grad():
            y_BH, slope_BH = self.cell.output(x_BD, state), None
            if bias is not None:  # unit by unit, so twice backward is forward
                ones = torch.ones_like(y_BH).requires_grad_()
                (once_H,) = torch.autograd.grad(y_BH, bias, ones, create_graph=True)
                (slope_BH,) = torch.autograd.grad(once_H.sum(), ones, retain_graph=True)
        return lambda g_BH: torch.autograd.grad(y_BH, state, g_BH, retain_graph=True)[0], slope_BH

    def _sensitivity(self, x_TBD: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """dstate_1/dtheta: by the input weights [B, parts, G, N, D], and by biases and vectors [B, parts, G + K, N]."""
        parts = (self.cell.PARTS, -1)
        if isinstance(self.engine, RTRL):
            weight = self.engine.weight_BGND.to(x_TBD.dtype).unflatten(1, parts)
            return weight, self.engine.small_BMN.unflatten(1, parts)
        _, _, vectors_KN = self.cell.spread()
        u_TBGN = self.cell.drive(x_TBD).detach()
        _, drives, vectors = ElementwiseCell.local_derivatives(
            self.cell, u_TBGN, vectors_KN.detach(), chunk.state.unsqueeze(0), chunk.is_init
        )
        return drives[0].unsqueeze(-1) * x_TBD[0][:, None, None, None], torch.cat([drives[0], vectors[0]], 2)

    def _recurrent(self, by: dict[int, Tensor], g_BS: Tensor, weight: Tensor, small: Tensor) -> None:
        cell, gates = self.cell, len(self.cell.GATES)
        g_BPN = g_BS.unflatten(1, (cell.PARTS, -1))
        by[id(cell.weight_input)] = (g_BPN[:, :, None, :, None] * weight).sum(1)
        small_BMN = (g_BPN[:, :, None] * small).sum(1)
        by[id(cell.bias)] = small_BMN[:, :gates]
        if cell.VECTORS:
            by[id(cell.weight_recurrent)] = small_BMN[:, gates:]

    def _output(self, by: dict[int, Tensor], g_BH: Tensor, x_BD: Tensor, state_BS: Tensor) -> None:
        heard = {"output_input": x_BD, "output_state": state_BS.detach()}
        for name, parameter in self.cell.named_parameters():
            if name in heard:
                by[id(parameter)] = g_BH.unsqueeze(2) * heard[name].unsqueeze(1)
            elif name == "output_bias":
                by[id(parameter)] = g_BH

    def _layer(self, by: dict[int, Tensor], layer: nn.Module, x: Tensor, g: Tensor) -> None:
        if isinstance(layer, nn.LayerNorm):
            normal = nn.functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
            found: list[tuple[Tensor, Tensor]] = [(layer.weight, g * normal), (layer.bias, g)]
        else:
            assert isinstance(layer, nn.Linear)
            x = layer.one_hot(x) if isinstance(layer, OneHotLinear) else x
            found = [(layer.weight, g.unsqueeze(2) * x.unsqueeze(1)), (layer.bias, g)]
        for parameter, slope in found:
            by[id(parameter)] = by[id(parameter)] + slope if id(parameter) in by else slope


def _layers(encoder: Encoder) -> list[nn.Module]:
    """The modules of an encoder that have parameters of their own."""
    return [m for m in encoder.modules() if next(m.parameters(recurse=False), None) is not None]


def refusal(policy: Policy, engine: GradientEngine) -> str | None:
    """What keeps gradients from being taken for all copies at once, in a few words; None if nothing does."""
    cell, layers = policy.cell, _layers(policy.encoder)
    known = {id(p) for p in (*policy.actor.parameters(), *policy.critic.parameters())}
    known |= {id(p) for m in layers if type(m) in (nn.Linear, OneHotLinear, nn.LayerNorm) for p in m.parameters()}
    if isinstance(cell, ElementwiseCell) and type(cell).fold is ElementwiseCell.fold:
        names = {*cell.recurrent_parameters(), "output_input", "output_state", "output_bias"}
        known |= {id(p) for name, p in cell.named_parameters() if name in names}
    checks = {
        "the gradient engine": not isinstance(engine, (RTRL, BPTT, Immediate)),
        "the encoder": policy.encoder.predicted > 0,
        "heads per task": isinstance(policy.distribution, Gaussian) and policy.actor.tasks > 1,
        "a part of the policy": any(id(p) not in known for p in policy.parameters()),
    }
    return next((name for name, applies in checks.items() if applies), None)
