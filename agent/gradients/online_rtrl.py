"""Exact RTRL of an agent that learns while it acts, watched: how stale the carry is, and a correction of that.

The carry S was made step by step, each with the parameters of its time. Under today's, on the memory as it was lived,
it would be S' with S'_t = J_t(theta) S'_{t-1} + I_t(theta). The difference is of the order of the learning rate (Farr,
Reddi, D'Eramo & Peters 2026, arXiv 2605.24709, with the correction of appendix C.2).
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from lifelong.agent.cells.base import CellChunk, ElementwiseCell
from lifelong.agent.gradients.rtrl import RTRL, Trace
from lifelong.envs.options import Range


class OnlineRTRL(RTRL):
    """`rtrl` with a meter of the carry's staleness, of the units' time constants, and a correction.

    The meter goes through every window of steps again, under the parameters that it ended with, from the carry that it
    began with: |S' - S| / |S'|, the mean over the copies. What is older than the window is taken as it is.

    The correction moves the carry with the parameters, S += omega * Delta theta, entry by entry, with the diagonal
    second sensitivity

        omega_t = J_t omega_{t-1} + (dJ_t/dtheta) S_{t-1} + dI_t/dtheta

    on the memory as it was lived. If one parameter of a unit moves, the error that is left is of second order in the
    step; if all do, what they owe to each other is left, too. It costs as much memory as the carry, and its time in
    torch, step by step.

    Args:
        cell: the recurrent cell.
        copies: B.
        window: steps of a window of the meter; 0: nothing is watched.
        taylor: correct the carry.
    """

    def __init__(
        self,
        cell: ElementwiseCell,
        copies: int,
        *,
        window: Annotated[int, Range(0, 100_000)] = 100,
        taylor: bool = False,
    ) -> None:
        super().__init__(cell, copies)
        self.window, self.taylor = window, taylor
        #: the steps of the window so far [B, W', ...], and the carry before it
        self.lived: list[tuple[Tensor, Tensor, Tensor]] = []
        self.start: tuple[Tensor, Tensor] | None = None
        self.staleness = self.max_jacobian.new_zeros(())
        self.time_constants_N = cell.bias.new_zeros(cell.places).detach()
        #: omega, as the carry, and the parameters that the carry is for
        self.second: tuple[Tensor, Tensor] | None = None
        self.carried_for: list[Tensor] | None = None

    # ---- the life of a chunk -------------------------------------------------------------------------------------

    @torch.no_grad()
    def trace(
        self,
        x_TBD: Tensor,
        state_TBS: Tensor,
        is_init_TB: Tensor,
        index: Tensor | None = None,
        *,
        only_pass: bool = False,
    ) -> Trace:
        now = [parameter.detach() for parameter in self.cell.spread()]
        if self.taylor:
            self._correct(now)
            self.carried_for = [x.clone() for x in now]
        if self.window:
            if sum(x.shape[1] for x, _, _ in self.lived) >= self.window:
                self._measure(now)
            if self.start is None:
                self.start = self.weight_BGND.clone(), self.small_BMN.clone()
        return super().trace(x_TBD, state_TBS, is_init_TB, index, only_pass=only_pass and not self.taylor)

    @torch.no_grad()
    def _move(self, trace: Trace, boundary_BS: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if self.taylor:
            self._advance_second(trace)
        moved = super()._move(trace, boundary_BS)
        if self.window:
            chunk = trace.chunk
            if trace.index is None:
                self.lived.append((chunk.x_TBD.transpose(0, 1), chunk.state_TBS.transpose(0, 1), chunk.is_init_TB.T))
            else:  # some copies live on without the others
                self._forget_window()
        return moved

    def reset(self, mask_B: Tensor) -> None:
        super().reset(mask_B)
        self._forget_window()
        for omega in self.second or ():
            omega.masked_fill_(mask_B.view(-1, *([1] * (omega.dim() - 1))), 0.0)

    def reset_units(self, units: Tensor, index: Tensor | None = None) -> None:
        super().reset_units(units, index)
        self._forget_window()
        self.carried_for = None  # new parameters are no step
        copies = torch.arange(self.copies, device=units.device) if index is None else index
        for omega in self.second or ():
            omega.unflatten(2, (-1, self.cell.units))[copies.unsqueeze(-1), :, :, units] = 0.0

    # ---- the meter -----------------------------------------------------------------------------------------------

    def _forget_window(self) -> None:
        self.lived, self.start = [], None

    def _measure(self, now: list[Tensor]) -> None:
        """Go through the window again."""
        assert self.start is not None
        x, state, is_init = (
            torch.cat(parts, 1).transpose(0, 1).contiguous() for parts in zip(*self.lived, strict=True)
        )
        weight, small = self.start
        chunk = CellChunk(x, state, is_init, *now)
        self.cell.advance_carry(weight, small, chunk, None)
        pairs = [(weight, self.weight_BGND), (small, self.small_BMN)]
        apart_B = sum((new - old).float().square().flatten(1).sum(1) for new, old in pairs)
        whole_B = sum(new.float().square().flatten(1).sum(1) for new, _ in pairs)
        assert isinstance(apart_B, Tensor) and isinstance(whole_B, Tensor)
        share_B = (apart_B / whole_B.clamp(min=1e-30)).sqrt()
        self.staleness = torch.where(whole_B > 0, share_B, 0.0).mean().to(self.staleness.dtype)
        self.time_constants_N = time_constants(self.cell, chunk).to(self.time_constants_N.dtype)
        self._forget_window()

    def report(self) -> dict[str, Tensor]:
        """Beside that of `rtrl`: `carry_staleness`, and median and largest of the units' time constants in steps."""
        found = super().report()
        if self.window:
            found["carry_staleness"] = self.staleness
            found["time_constant_median"] = self.time_constants_N.median()
            found["time_constant_longest"] = self.time_constants_N.max()
        return found

    def histograms(self) -> dict[str, Tensor]:
        """`time_constants`: of all units, in steps, at the last window."""
        return {"time_constants": self.time_constants_N} if self.window else {}

    # ---- the correction ------------------------------------------------------------------------------------------

    def _correct(self, now: list[Tensor]) -> None:
        """Move the carry with the parameters."""
        if self.second is None:
            self.second = (
                torch.zeros_like(self.small_BMN.new_empty(self.weight_BGND.shape)),
                torch.zeros_like(self.small_BMN),
            )
        if self.carried_for is None:
            return
        parts, gates = (self.cell.PARTS, -1), len(self.cell.GATES)
        weight, bias, vectors = (x - old for x, old in zip(now, self.carried_for, strict=True))
        by_weight = self.second[0].unflatten(1, parts) * weight.unflatten(0, (gates, -1))
        by_small = self.second[1].unflatten(1, parts) * torch.cat([bias.unflatten(0, (gates, -1)), vectors])
        self.weight_BGND.add_(by_weight.flatten(1, 2))
        self.small_BMN.add_(by_small.flatten(1, 2))

    def _advance_second(self, trace: Trace) -> None:
        """omega over a chunk, from the carry before it."""
        assert self.second is not None
        cell, chunk, index = self.cell, trace.chunk, trace.index
        parts, gates = (cell.PARTS, -1), len(cell.GATES)
        rows = slice(None) if index is None else index
        omega_w, omega_s = (x[rows].unflatten(1, parts) for x in self.second)
        S_w, S_s = (x[rows].to(omega_s.dtype).unflatten(1, parts) for x in (self.weight_BGND, self.small_BMN))
        for t in range(len(chunk.x_TBD)):
            one = CellChunk(
                chunk.x_TBD[t : t + 1], chunk.state_TBS[t : t + 1], chunk.is_init_TB[t : t + 1],
                chunk.weight_input, chunk.bias, chunk.weight_recurrent,
            )  # fmt: skip
            J, I, of_J, of_I = second_derivatives(cell, one)  # noqa: E741
            x_BD = chunk.x_TBD[t][:, None, None, None]
            drift_w = torch.einsum("bpqgn,bqgnd->bpgnd", of_J[:, :, :, :gates], S_w) * x_BD
            drift_w = drift_w + of_I[:, :, :gates].unsqueeze(-1) * x_BD.square()
            drift_s = torch.einsum("bpqmn,bqmn->bpmn", of_J, S_s) + of_I
            omega_w = torch.einsum("bpqn,bqgnd->bpgnd", J, omega_w) + drift_w
            omega_s = torch.einsum("bpqn,bqmn->bpmn", J, omega_s) + drift_s
            S_w = torch.einsum("bpqn,bqgnd->bpgnd", J, S_w) + I[:, :, :gates].unsqueeze(-1) * x_BD
            S_s = torch.einsum("bpqn,bqmn->bpmn", J, S_s) + I
        self.second[0][rows], self.second[1][rows] = omega_w.flatten(1, 2), omega_s.flatten(1, 2)

    # ---- what is saved -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        saved = super().state_dict()
        every = torch.ones(self.copies, device=self.small_BMN.device)
        saved |= {"staleness": every * self.staleness, "time_constants": every[:, None] * self.time_constants_N}
        if self.lived:
            saved |= zip(
                ("x", "state", "is_init"), (torch.cat(rows, 1) for rows in zip(*self.lived, strict=True)), strict=True
            )
        if self.start is not None:
            saved |= {"start_weight": self.start[0], "start_small": self.start[1]}
        if self.second is not None:
            saved |= {"second_weight": self.second[0], "second_small": self.second[1]}
        if self.carried_for is not None:
            for k, x in enumerate(self.carried_for):
                saved[f"carried_for.{k}"] = x.expand(self.copies, *x.shape)
        return saved

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        super().load_state_dict(saved)
        self._forget_window()
        to = self.small_BMN.device
        if "staleness" in saved:
            self.staleness = saved["staleness"][0].to(self.staleness)
            self.time_constants_N = saved["time_constants"][0].to(self.time_constants_N)
        if "x" in saved:
            self.lived = [(saved["x"].to(to), saved["state"].to(to), saved["is_init"].to(to))]
        if "start_weight" in saved:
            self.start = saved["start_weight"].to(to).clone(), saved["start_small"].to(to).clone()
        if "second_weight" in saved:
            self.second = saved["second_weight"].to(to).clone(), saved["second_small"].to(to).clone()
        if "carried_for.0" in saved:
            self.carried_for = [saved[f"carried_for.{k}"][0].to(to).clone() for k in range(3)]


def time_constants(cell: ElementwiseCell, chunk: CellChunk) -> Tensor:
    """-1 / log of what a unit keeps of its state in a step [P]: the spectral radius of its Jacobian, a geometric mean
    over the steps of a chunk and all copies; steps after a reset do not count."""
    J, _, _ = ElementwiseCell.local_derivatives(
        cell, chunk.drive(), chunk.weight_recurrent, chunk.state_TBS, chunk.is_init_TB
    )
    blocks = J.float().permute(0, 1, 4, 2, 3)  # [T, B, P, parts, parts]
    radius = blocks[..., 0, 0].abs() if cell.PARTS == 1 else torch.linalg.eigvals(blocks).abs().amax(-1)
    counts = (~chunk.is_init_TB).float().unsqueeze(-1)
    kept = (radius.clamp(1e-6, 1 - 1e-6).log() * counts).sum((0, 1)) / counts.sum().clamp(min=1.0)
    return -1.0 / kept.clamp(max=-1e-6)


def second_derivatives(cell: ElementwiseCell, chunk: CellChunk) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one step, unit by unit, p and q being parts of the state, m a drive or a weight vector, M = G + K of them:
    J = ds_p/ds_q [B, p, q, P], I = ds_p/dm [B, p, M, P], dJ/dm [B, p, q, M, P], dI_m/dm [B, p, M, P]."""
    keep_B1 = (~chunk.is_init_TB[0]).to(chunk.x_TBD.dtype).unsqueeze(-1)
    parts = [s.clone().requires_grad_() for s in (chunk.state_TBS[0] * keep_B1).split(cell.places, -1)]
    drives = [u.clone().requires_grad_() for u in chunk.drive()[0].split(cell.places, -1)]
    vectors = [v.expand_as(parts[0]).clone().requires_grad_() for v in chunk.weight_recurrent.unbind(0)]
    moving = [*drives, *vectors]

    def derived(y: Tensor, by: list[Tensor]) -> list[Tensor]:
        if not y.requires_grad:
            return [torch.zeros_like(x) for x in by]
        return list(torch.autograd.grad(y.sum(), by, create_graph=True, materialize_grads=True, allow_unused=True))

    with torch.enable_grad():
        after = cell.recurrence(tuple(drives), tuple(vectors), *parts)
        rows = []
        for s in after if isinstance(after, tuple) else (after,):
            first = derived(s, [*parts, *moving])
            by_part, by_moving = first[: len(parts)], first[len(parts) :]
            of_J_rows = [torch.stack(derived(j, moving), 1) for j in by_part]
            of_I_rows = [derived(i, [m])[0] for i, m in zip(by_moving, moving, strict=True)]
            rows.append([torch.stack(x, 1) for x in (by_part, by_moving, of_J_rows, of_I_rows)])
    J, I, of_J, of_I = (torch.stack(list(each), 1).detach() for each in zip(*rows, strict=True))  # noqa: E741
    keep = keep_B1.view(-1, 1, 1, 1)
    return J * keep, I, of_J * keep.unsqueeze(-1), of_I
