"""UORO: unbiased online recurrent optimization (Tallec & Ollivier, ICLR 2018, arXiv 1702.05043)."""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.agent.cells.local import Local
from lifelong.agent.gradients.noise import Noisy
from lifelong.agent.gradients.sensitivity import Carry, outer_sum


class UORO(Noisy):
    """The carry is one outer product a copy, a (outer) w, whose mean is the sensitivity S (algorithm 1):

        a <- p0 A a + p1 v    w <- w / p0 + v^T I / p1    p0 = sqrt(|w| / |A a|)    p1 = sqrt(|v^T I| / |v|)

    with random signs v. A step of the paper is a chunk here, A being the product of its Jacobians and I what the chunk
    itself adds to S: v^T I and A a are one sweep back and one forth, and noise is drawn once in T steps; T = 1 is the
    paper. Unbiased, with a variance that grows with the size of the state. Costs little more than `bptt`, in time and
    memory.
    """

    approximation = "UORO: without bias, a random outer product in place of the sensitivity"

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        weights = {f"w{k}": ((tap.rows, sum(tap.widths)), "R.") for k, tap in enumerate(self.taps)}
        return {"a": ((self.cell.state_size,), "S"), **weights, "count": ((), "")}

    def moved(self, carry: Carry, local: Local, index: Tensor | None) -> Carry:
        names = [f"w{k}" for k in range(len(self.taps))]
        steps = range(len(local.keep_TB1))
        a_BS, v_BS = carry["a"], self.signs(carry, index, self.cell.state_size)
        for t in steps:
            a_BS = local.forward(t, a_BS)
        back_BS, drives = v_BS, []
        for t in reversed(steps):
            back_BS, of_taps = local.backward(t, back_BS)
            drives.append(of_taps)
        by_tap = [torch.stack(of_tap[::-1]) for of_tap in zip(*drives, strict=True)]
        new = [outer_sum(drive_TBR, z_TBM) for drive_TBR, z_TBM in zip(by_tap, local.read_TBM, strict=True)]
        p0_B, p1_B = _ratio([carry[name] for name in names], a_BS), _ratio(new, v_BS)
        # where nothing of the old product is left, w must not stay behind as noise
        p0_inverse_B = torch.where(p0_B > 0, 1 / p0_B, 0.0)
        moved = {"a": p0_B[:, None] * a_BS + p1_B[:, None] * v_BS, "count": carry["count"]}
        for name, added in zip(names, new, strict=True):
            moved[name] = carry[name] * p0_inverse_B[:, None, None] + added / p1_B[:, None, None]
        return moved

    def product(self, grad_BS: Tensor, carry: Carry) -> list[Tensor]:
        along_B = (grad_BS * carry["a"]).sum(1)
        return [torch.einsum("b,brm->rm", along_B, carry[f"w{k}"]) for k in range(len(self.taps))]


def _ratio(weights: list[Tensor], a_BS: Tensor) -> Tensor:
    """sqrt(|w| / |a|) of every copy; 0 where either is zero."""
    w_B = torch.stack([w.flatten(1).square().sum(1) for w in weights]).sum(0).sqrt()
    a_B = a_BS.norm(dim=1)
    return torch.where((a_B > 0) & (w_B > 0), (w_B / a_B).sqrt(), 0.0)
