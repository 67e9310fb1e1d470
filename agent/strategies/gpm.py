"""GPM: gradient projection memory, applied to the realised update (Saha, Garg, Roy, ICLR 2021, arXiv 2103.09762).

After a task the leading directions of every layer's presynaptic vectors are stored in a basis M. From then on a weight
matrix W only moves in the complement: dW <- dW - dW M M^T, so what W says to any stored input stays the same. The step
*after* the optimiser is projected: Adam would rotate a projected gradient back into the protected space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lifelong.agent.errors import choice
from lifelong.agent.modules.encoders import OneHotLinear
from lifelong.agent.policy import Policy, inputs_of
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.consolidation import Consolidating
from lifelong.envs.options import Count, Range, Steps
from lifelong.kernels.project import project


def append_basis(basis_nk: Tensor, covariance_nn: Tensor, threshold: float) -> Tensor:
    """Extend an orthonormal basis until it holds `threshold` of the energy of the data (Saha et al. 2021, eqs. 8-9).

    Args:
        basis_nk: orthonormal columns so far (k may be 0).
        covariance_nn: uncentred second moment of the presynaptic vectors, sum x x^T.
        threshold: share of the energy trace(covariance) that the basis must hold.

    Returns:
        The basis with the fewest leading directions of the residual appended, at most n columns.
    """
    covariance = covariance_nn.double()
    basis = basis_nk.double()
    total = covariance.trace()
    residual = covariance - basis @ (basis.T @ covariance)
    residual = residual - (residual @ basis) @ basis.T
    energy, directions = torch.linalg.eigh(0.5 * (residual + residual.T))
    energy, directions = energy.flip(0).clamp(min=0.0), directions.flip(1)
    held = total - energy.sum() + torch.cat([energy.new_zeros(1), energy.cumsum(0)])
    room = covariance.shape[0] - basis.shape[1]
    count = min(int((held < threshold * total).sum()), room)
    new = directions[:, :count]
    new = new - basis @ (basis.T @ new)
    both, _ = torch.linalg.qr(torch.cat([basis, new], 1))
    return both.to(basis_nk.dtype)


class Taps:
    """The presynaptic vectors of a policy's weight matrices: encoder layers, cell (recurrent input included), actor.

    A vector is extended by a constant 1 where the matrix has a bias, so that weight and bias are protected together.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        # tap -> (weight names, concatenated along the input dimension; bias name)
        self.weights: dict[str, tuple[list[str], str | None]] = {}
        self.layers: dict[str, nn.Module] = {}
        for name, module in policy.encoder.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                bias = f"encoder.{name}.bias" if module.bias is not None else None
                self.weights[f"encoder.{name}"] = ([f"encoder.{name}.weight"], bias)
                self.layers[f"encoder.{name}"] = module
        for tap, (weights, bias) in policy.cell.taps().items():
            self.weights[f"cell.{tap}"] = ([f"cell.{w}" for w in weights], f"cell.{bias}" if bias else None)
        if policy.actor.tasks == 1:
            self.weights["actor"] = (["actor.linear.weight"], "actor.linear.bias")

    @torch.no_grad()
    def vectors(self, experience: Experience) -> dict[str, Tensor]:
        """tap -> presynaptic vectors [M, n] of every step in the experience that counts."""
        chunk, policy = experience.chunk, self.policy
        counts = chunk.weight.flatten() > 0
        found: dict[str, Tensor] = {}

        def remember(tap: str) -> Any:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                (x,) = args
                if isinstance(module, nn.Conv2d):  # every patch is a presynaptic vector
                    x = nn.functional.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]
                    x = x.transpose(1, 2).flatten(0, 1)
                found[tap] = module.one_hot(x) if isinstance(module, OneHotLinear) else x

            return hook

        handles = [module.register_forward_hook(remember(tap)) for tap, module in self.layers.items()]
        try:
            x_TBD = policy.encode(inputs_of(chunk))
        finally:
            for handle in handles:
                handle.remove()
        for tap, module in self.layers.items():
            if isinstance(module, nn.Linear):
                found[tap] = found[tap][counts]
        state = experience.state_TBS * (~chunk.is_init).unsqueeze(-1)
        x_MD, state_MS = x_TBD.flatten(0, 1)[counts], state.flatten(0, 1)[counts]
        for tap, vectors in policy.cell.presynaptic(x_MD, state_MS).items():
            found[f"cell.{tap}"] = vectors
        y_MH, _ = policy.cell.step(x_MD, state_MS)
        if "actor" in self.weights:
            found["actor"] = y_MH
        return {tap: self._extended(tap, vectors) for tap, vectors in found.items()}

    def _extended(self, tap: str, vectors: Tensor) -> Tensor:
        if self.weights[tap][1] is None:
            return vectors
        return torch.cat([vectors, torch.ones_like(vectors[:, :1])], 1)


class GPM(Consolidating):
    """Projects every realised update onto the complement of the old tasks' presynaptic subspaces.

    Weight matrices of the encoder, the cell (input, recurrent and output gates) and a shared actor head are projected.
    Element-wise recurrent weights and free log standard deviations have no subspace and are frozen after the first
    task (the former may be left free). The critic is free: acting on old tasks does not use it. With one head a task,
    only the current task's moves.

    Args:
        threshold: share of the energy of the presynaptic vectors that is protected.
        elementwise: whether element-wise recurrent weights are frozen after the first task, or free.
        chunks: chunks of fresh experience the subspace is estimated from.
        every: consolidate every so many steps instead of at boundaries; 0: at boundaries.
    """

    data_parallel: ClassVar[str] = "reduce"

    def __init__(
        self,
        *,
        threshold: Annotated[float, Range(0.0, 1.0, above=True)] = 0.99,
        elementwise: Literal["frozen", "free"] = "frozen",
        chunks: Count = 16,
        every: Steps = 0,
    ) -> None:
        super().__init__(every)
        if not 0 < threshold <= 1 or chunks < 1:
            raise ValueError("threshold must lie in (0, 1] and chunks must be at least 1")
        choice("elementwise of strategy gpm", elementwise, ("frozen", "free"))
        self.threshold, self.chunks, self.elementwise = threshold, chunks, elementwise
        self.basis: dict[str, Tensor] = {}

    def fresh_sequences(self, copies: int) -> int:
        return self.chunks * copies

    def setup(self, ctx: Context, seed: int) -> None:
        self.device, self.parameters = ctx.device, dict(ctx.policy.named_parameters())
        self.taps = Taps(ctx.policy)
        frozen = ctx.policy.cell.elementwise_parameters() if self.elementwise == "frozen" else []
        self.frozen = [f"cell.{name}" for name in frozen]
        self.heads = ctx.policy.actor.tasks
        self.of_heads = [name for name, _ in ctx.policy.named_parameters() if name.startswith("actor.")]
        if self.heads == 1 and "actor.log_std" in self.of_heads:
            self.frozen.append("actor.log_std")
        self.needs_task_id = self.heads > 1

    def consolidate(self, ctx: Context, source: Source) -> None:
        """Grow every basis by what the current policy's layers see on the current task."""
        covariance: dict[str, Tensor] = {}
        for experience in source(self.chunks):
            for tap, vectors in self.taps.vectors(experience).items():
                second_moment = vectors.double().T @ vectors.double()
                covariance[tap] = covariance.get(tap, 0.0) + second_moment
        ctx.workers.sum_(list(covariance.values()))
        for tap, moment in covariance.items():
            empty = torch.zeros(moment.shape[0], 0, device=self.device)
            self.basis[tap] = append_basis(self.basis.get(tap, empty), moment, self.threshold)

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        for tap, basis_nk in self.basis.items():
            weights, bias = self.taps.weights[tap]
            parts = [deltas[name].flatten(1) for name in weights]
            parts += [deltas[bias].unsqueeze(1)] if bias else []
            joint_mn = project(torch.cat(parts, 1), basis_nk)
            split = joint_mn.split([part.shape[1] for part in parts], 1)
            for name, part in zip(weights, split, strict=False):
                deltas[name].copy_(part.reshape(deltas[name].shape))
            if bias:
                deltas[bias].copy_(split[-1].squeeze(1))
        if self.basis:
            for name in self.frozen:
                deltas[name].zero_()
            if self.heads > 1 and ctx.task is not None:
                self._keep_other_heads(ctx.task, deltas)

    def _keep_other_heads(self, task: int, deltas: Mapping[str, Tensor]) -> None:
        for name in self.of_heads:
            rows = deltas[name].unflatten(0, (self.heads, -1))
            others = torch.arange(self.heads, device=rows.device) != task
            rows[others] = 0.0

    def report(self) -> dict[str, float]:
        return {f"rank/{tap}": basis.shape[1] / basis.shape[0] for tap, basis in self.basis.items()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "basis": self.basis}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        taps = self.taps.weights  # a single head is a tap, several are not
        self.basis = {tap: self._widened(tap, basis) for tap, basis in saved["basis"].items() if tap in taps}

    def _widened(self, tap: str, basis_nk: Tensor) -> Tensor:
        """A saved basis with a row of zeros for every input that the first weight matrix of `tap` has got since then,
        behind the inputs that it had: old tasks never used them."""
        weights, bias = self.taps.weights[tap]
        widths = [self.parameters[name].flatten(1).shape[1] for name in weights]
        new = sum(widths) + (bias is not None) - len(basis_nk)
        if not new:
            return basis_nk.to(self.device)
        before, after = basis_nk.to(self.device).tensor_split([widths[0] - new])
        return torch.cat([before, before.new_zeros(new, before.shape[1]), after])
