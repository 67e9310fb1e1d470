"""RTRL carry with PxP blocks in Triton, written for each P (`triton_source`); more than `PARTS` are left to torch.

As in `kernels.rtrl`, it builds the chunk's outer products in registers from the last step to the first, so the suffix
products need no second pass, then reads S once and writes it once.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton

from lifelong.kernels.rtrl import triton_backend
from lifelong.kernels.rtrl_block import torch_backend
from lifelong.kernels.rtrl_block.triton_source import source
from lifelong.kernels.triton_tools import from_source

PARTS = 8  # as many tiles of sums are registers of a program
_VECTORS = 288  # P^2 times the units of a program, at most: more spills registers in the compiled code for an H100


@functools.cache
def _kernels(parts: int) -> dict[str, Any]:
    return from_source(f"rtrl_block_{parts}", source(parts))


def advance(S_BPGND: torch.Tensor, J_TBPPN: torch.Tensor, l_TBPGN: torch.Tensor, x_TBD: torch.Tensor) -> None:
    """S <- A S + sum_t (P_t l_t) (outer) x_t."""
    B, P, G, N, D = S_BPGND.shape
    if P > PARTS:
        return torch_backend.advance(S_BPGND, J_TBPPN, l_TBPGN, x_TBD)
    J, l, x, S = J_TBPPN.contiguous(), l_TBPGN.contiguous(), x_TBD.contiguous(), S_BPGND.contiguous()  # noqa: E741
    rows = min(32, 1 << (_VECTORS // P**2).bit_length() - 1)
    block_n, block_d = min(triton.next_power_of_2(N), rows), min(triton.next_power_of_2(D), 32)
    grid = (B, G, triton.cdiv(N, block_n) * triton.cdiv(D, block_d))
    _kernels(P)["advance"][grid](S, J, l, x, len(x), B, G, N, D, BLOCK_N=block_n, BLOCK_D=block_d, num_warps=4)
    if S is not S_BPGND:
        S_BPGND.copy_(S)


def advance_vector(S_BPKN: torch.Tensor, J_TBPPN: torch.Tensor, l_TBPKN: torch.Tensor) -> None:
    """S_t = J_t S_{t-1} + l_t."""
    B, P, K, N = S_BPKN.shape
    if P > PARTS:
        return torch_backend.advance_vector(S_BPKN, J_TBPPN, l_TBPKN)
    J, l, S = J_TBPPN.contiguous(), l_TBPKN.contiguous(), S_BPKN.contiguous()  # noqa: E741
    block = min(triton.next_power_of_2(N), 128)
    grid = (B, K, triton.cdiv(N, block))
    _kernels(P)["advance_vector"][grid](S, J, l, len(J), B, K, N, BLOCK=block, num_warps=max(1, block // 64))
    if S is not S_BPKN:
        S_BPKN.copy_(S)


def boundary(S_BPGND: torch.Tensor, boundary_BPN: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """grad_GND: that of `kernels.rtrl` with a row for each copy and part of the state."""
    P = S_BPGND.shape[1]
    rows = None if index is None else (P * index[:, None] + torch.arange(P, device=index.device)).flatten()
    return triton_backend.boundary(S_BPGND.flatten(0, 1), boundary_BPN.flatten(0, 1), rows)
