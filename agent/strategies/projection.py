"""What strategies share that project: the inputs of every weight matrix, and a realised update that is projected.

The step *after* the optimiser is projected: Adam would rotate a projected gradient back into the protected space, and
decoupled weight decay is part of the step.
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

#: what becomes of element-wise recurrent weights, which have no subspace
Elementwise = Literal["frozen", "free"]


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


class Projection(Consolidating):
    """Base of those that project every realised update, by what the layers saw on old tasks.

    Weight matrices of the encoder, the cell (input, recurrent and output gates) and a shared actor head are projected.
    Element-wise recurrent weights and free log standard deviations have no subspace and are frozen after the first
    task (the former may be left free). The critic is free: acting on old tasks does not use it. With one head a task,
    only the current task's moves.

    Args:
        elementwise: whether element-wise recurrent weights are frozen after the first task, or free.
        chunks: chunks of fresh experience that are looked at.
        every: consolidate every so many steps instead of at boundaries; 0: at boundaries.
    """

    data_parallel: ClassVar[str] = "reduce"

    def __init__(self, *, elementwise: Elementwise = "frozen", chunks: Count = 16, every: Steps = 0) -> None:
        super().__init__(every)
        if chunks < 1:
            raise ValueError(f"chunks is {chunks}; it must be at least 1")
        choice("elementwise of a projection", elementwise, ("frozen", "free"))
        self.elementwise, self.chunks = elementwise, chunks
        #: tap -> what is protected, a tensor whose first dimension is that of the presynaptic vectors
        self.protected: dict[str, Tensor] = {}

    def protect(self, tap: str, moment_nn: Tensor, count: int) -> Tensor:
        """What is protected from now on.

        Args:
            tap: of which matrix.
            moment_nn: sum of x x^T over the presynaptic vectors of the task, float64.
            count: how many these are.
        """
        raise NotImplementedError

    def project(self, tap: str, delta_mn: Tensor) -> Tensor:
        """The part of an update of a tap's weights, side by side with the bias, that is let through."""
        raise NotImplementedError

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

    @torch.no_grad()
    def consolidate(self, ctx: Context, source: Source) -> None:
        """Protect what the current policy's layers see on the current task."""
        moments: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for experience in source(self.chunks):
            for tap, vectors in self.taps.vectors(experience).items():
                moments[tap] = moments.get(tap, 0.0) + vectors.double().T @ vectors.double()
                counts[tap] = counts.get(tap, torch.zeros((), device=self.device)) + len(vectors)
        ctx.workers.sum_([*moments.values(), *counts.values()])
        for tap, moment in moments.items():
            self.protected[tap] = self.protect(tap, moment, int(counts[tap])).float()

    def joint(self, tap: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """A tap's weights, or their updates, side by side with the bias [m, n]."""
        weights, bias = self.taps.weights[tap]
        parts = [tensors[name].flatten(1) for name in weights]
        return torch.cat([*parts, tensors[bias].unsqueeze(1)] if bias else parts, 1)

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        for tap in self.protected:
            weights, bias = self.taps.weights[tap]
            let_through = self.project(tap, self.joint(tap, deltas))
            for name in weights:
                part, let_through = let_through.tensor_split([deltas[name].flatten(1).shape[1]], 1)
                deltas[name].copy_(part.reshape(deltas[name].shape))
            if bias:
                deltas[bias].copy_(let_through.squeeze(1))
        if self.protected:
            for name in self.frozen:
                deltas[name].zero_()
            if self.heads > 1 and ctx.task is not None:
                self._keep_other_heads(ctx.task, deltas)

    def _keep_other_heads(self, task: int, deltas: Mapping[str, Tensor]) -> None:
        for name in self.of_heads:
            rows = deltas[name].unflatten(0, (self.heads, -1))
            others = torch.arange(self.heads, device=rows.device) != task
            rows[others] = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "protected": self.protected}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        taps = self.taps.weights  # a single head is a tap, several are not
        self.protected = {tap: self.widened(tap, kept) for tap, kept in saved["protected"].items() if tap in taps}

    def widened(self, tap: str, kept: Tensor) -> Tensor:
        """What was protected, with a row of zeros for every input that the first weight matrix of `tap` has got since
        then, behind the inputs that it had: old tasks never used them."""
        weights, bias = self.taps.weights[tap]
        widths = [self.parameters[name].flatten(1).shape[1] for name in weights]
        new = sum(widths) + (bias is not None) - len(kept)
        if not new:
            return kept.to(self.device)
        before, after = kept.to(self.device).tensor_split([widths[0] - new])
        return torch.cat([before, before.new_zeros(new, *before.shape[1:]), after])


class CovarianceProjection(Projection):
    """Base of those that keep the second moments C of the presynaptic vectors of old tasks, and let an update through
    along every eigenvector of C by a share that its eigenvalue says: delta <- delta V diag(share) V^T."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.projectors: dict[str, Tensor] = {}

    def share(self, eigenvalues_n: Tensor) -> Tensor:
        """How much of an update is let through along each eigenvector, in [0, 1]; eigenvalues in rising order."""
        raise NotImplementedError

    def accumulated(self, old_nn: Tensor | None, moment_nn: Tensor, count: int) -> Tensor:
        """C with a task more; by default the sum of the tasks' mean second moments."""
        mean = moment_nn / count
        return mean if old_nn is None else old_nn.double() + mean

    def protect(self, tap: str, moment_nn: Tensor, count: int) -> Tensor:
        moments = self.accumulated(self.protected.get(tap), moment_nn, count).float()
        self.projectors[tap] = self.projector(moments)  # of what is saved, so that it is the same after a resume
        return moments

    def projector(self, moments_nn: Tensor) -> Tensor:
        """V diag(share) V^T, float32."""
        eigenvalues, vectors = torch.linalg.eigh(moments_nn.double())
        return ((vectors * self.share(eigenvalues.clamp(min=0.0))) @ vectors.T).float()

    def project(self, tap: str, delta_mn: Tensor) -> Tensor:
        return delta_mn @ self.projectors[tap]

    def report(self) -> dict[str, float]:
        """Share of every layer's input space in which updates are let through."""
        return {f"room/{tap}": float(p.diagonal().sum()) / len(p) for tap, p in self.projectors.items()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.projectors = {tap: self.projector(moments) for tap, moments in self.protected.items()}

    def widened(self, tap: str, kept: Tensor) -> Tensor:
        return super().widened(tap, super().widened(tap, kept).T.contiguous())


class SoftProjection(CovarianceProjection):
    """Base of those that cut nothing off: a direction with second moment lambda keeps alpha / (alpha + lambda).

    Args:
        alpha: beside the eigenvalues of the second moments; small protects more.
        options: see `Projection`.
    """

    def __init__(self, *, alpha: Annotated[float, Range(0.0, 1e6, above=True)] = 1e-3, **options: Any) -> None:
        super().__init__(**options)
        if alpha <= 0:
            raise ValueError(f"alpha is {alpha}; it must be above 0")
        self.alpha = alpha

    def share(self, eigenvalues_n: Tensor) -> Tensor:
        return self.alpha / (self.alpha + eigenvalues_n)
