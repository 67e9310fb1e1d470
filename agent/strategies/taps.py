"""What the weight matrices of a policy read: their presynaptic vectors, on which projections act."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.agent.modules.encoders import OneHotLinear
from lifelong.agent.policy import Policy, inputs_of
from lifelong.agent.runtime.rollout import Experience


class Taps:
    """The presynaptic vectors of a policy's weight matrices: encoder layers, cell (recurrent input included), actor.

    A vector is extended by a constant 1 where the matrix has a bias, so that weight and bias are protected together.

    Args:
        policy: whose.
        critic: whether the critic is a tap, too; acting does not use it.
    """

    def __init__(self, policy: Policy, *, critic: bool = False) -> None:
        self.policy = policy
        # tap -> (weight names, concatenated along the input dimension; bias name)
        self.weights: dict[str, tuple[list[str], str | None]] = {}
        self.layers: dict[str, nn.Module] = {}
        for name, module in policy.encoder.named_modules():
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and _is_plain(module)):
                bias = f"encoder.{name}.bias" if module.bias is not None else None
                self.weights[f"encoder.{name}"] = ([f"encoder.{name}.weight"], bias)
                self.layers[f"encoder.{name}"] = module
        for tap, (weights, bias) in policy.cell.taps().items():
            self.weights[f"cell.{tap}"] = ([f"cell.{w}" for w in weights], f"cell.{bias}" if bias else None)
        #: taps that read the cell's output
        self.readers = ["actor"] if policy.actor.tasks == 1 else []
        self.readers += ["critic"] if critic and policy.values == 1 else []
        if "actor" in self.readers:
            self.weights["actor"] = (["actor.linear.weight"], "actor.linear.bias")
        if "critic" in self.readers:
            self.weights["critic"] = (["critic.weight"], "critic.bias")

    def of_observation(self) -> list[str]:
        """The taps that read the observation itself: the first layer of the encoder, without one those of the cell that
        read its input."""
        if self.layers:
            return [next(iter(self.layers))]
        reads = {f"cell.{name}" for name in self.policy.cell.input_weights()}
        return [tap for tap, (weights, _) in self.weights.items() if reads & {*weights}]

    def rest(self) -> list[str]:
        """Parameters that acting depends on and no tap has: element-wise recurrent weights, a free log standard
        deviation, normalisation in an encoder. Heads of which every task has its own are not among them."""
        tapped = {name for weights, bias in self.weights.values() for name in (*weights, bias)}
        apart = ("critic.",) if self.policy.actor.tasks == 1 else ("critic.", "actor.")
        names = [name for name, _ in self.policy.named_parameters()]
        return [name for name in names if name not in tapped and not name.startswith(apart)]

    def joint(self, tap: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """A tap's weights, their gradients or their updates (name -> tensor), side by side with the bias [m, n]."""
        weights, bias = self.weights[tap]
        parts = [tensors[name].flatten(1) for name in weights]
        return torch.cat([*parts, tensors[bias].unsqueeze(1)] if bias else parts, 1)

    def write(self, tap: str, joint_mn: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Write what `joint` gave back into the tensors, in place."""
        weights, bias = self.weights[tap]
        for name in weights:
            part, joint_mn = joint_mn.tensor_split([tensors[name].flatten(1).shape[1]], 1)
            tensors[name].copy_(part.reshape(tensors[name].shape))
        if bias:
            tensors[bias].copy_(joint_mn.squeeze(1))

    def widened(self, tap: str, kept: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """`kept`, whose first dimension is that of a tap's vectors, with a row of zeros for every input that the first
        weight matrix of `tap` has got since then, behind the inputs that it had: old tasks never used them."""
        weights, bias = self.weights[tap]
        widths = [parameters[name].flatten(1).shape[1] for name in weights]
        new = sum(widths) + (bias is not None) - len(kept)
        if not new:
            return kept
        before, after = kept.tensor_split([widths[0] - new])
        return torch.cat([before, before.new_zeros(new, *before.shape[1:]), after])

    @torch.no_grad()
    def vectors(self, experience: Experience) -> dict[str, Tensor]:
        """tap -> presynaptic vectors [M, n] of every step in the experience that counts."""
        chunk, policy = experience.chunk, self.policy
        counts = chunk.weight.flatten() > 0
        read: dict[str, list[Tensor]] = {tap: [] for tap in self.layers}

        def remember(tap: str) -> Any:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                (x,) = args
                x = x[counts if len(x) == len(counts) else counts.repeat_interleave(len(x) // len(counts))]
                if isinstance(module, nn.Conv2d):  # every patch is a presynaptic vector
                    x = nn.functional.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]
                    x = x.transpose(1, 2)
                x = module.one_hot(x) if isinstance(module, OneHotLinear) else x
                read[tap].append(x.flatten(0, -2))

            return hook

        handles = [module.register_forward_hook(remember(tap)) for tap, module in self.layers.items()]
        try:
            x_TBD = policy.encode(inputs_of(chunk))
        finally:
            for handle in handles:
                handle.remove()
        found = {tap: torch.cat(parts) for tap, parts in read.items() if parts}
        state = experience.state_TBS * (~chunk.is_init).unsqueeze(-1)
        x_MD, state_MS = x_TBD.flatten(0, 1)[counts], state.flatten(0, 1)[counts]
        for tap, vectors in policy.cell.presynaptic(x_MD, state_MS).items():
            found[f"cell.{tap}"] = vectors
        if self.readers:
            y_MH, _ = policy.cell.step(x_MD, state_MS)
            found |= dict.fromkeys(self.readers, y_MH)
        return {tap: self._extended(tap, vectors) for tap, vectors in found.items()}

    def _extended(self, tap: str, vectors: Tensor) -> Tensor:
        if self.weights[tap][1] is None:
            return vectors
        return torch.cat([vectors, torch.ones_like(vectors[:, :1])], 1)


def _is_plain(convolution: nn.Conv2d) -> bool:
    """Whether its patches are those of `unfold`: one group, zeros around the image."""
    zeros = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return convolution.groups == 1 and zeros
