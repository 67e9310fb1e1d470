"""Triton's compiler accepts every kernel for an H100, which the interpreter cannot tell and which needs no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_parts.kernels import OPS, op_results
from lifelong.kernels.cartpole import cartpole_step
from lifelong.kernels.dispatch import Op
from lifelong.kernels.recurrence.program import traced
from lifelong.kernels.rtrl_block import rtrl_block_advance, rtrl_block_advance_vector
from tests.kernels.test_recurrence import FUNCTIONS, Random

triton = pytest.importorskip("triton")
from lifelong.kernels.recurrence.triton_backend import OnDevice  # noqa: E402


class NoDevice:
    """As much of a Triton driver as compiling needs: an H100 (capability 9.0, warps of 32) that is not there."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def run_op(op: str) -> None:
    """The op on its Triton backend, with sizes that fill no tile."""
    if op == "every operation of the compiler":
        T, B, N = 3, 2, 65
        lines = [(i, (2 * i + 1, i, i + 3)) for i in range(len(FUNCTIONS))]
        made = OnDevice(traced(Random(2, 2, 3, lines), None, 2, 2, 3))
        inputs = torch.zeros(T, B, 2 * N), torch.zeros(2, N), torch.zeros(B, 3 * N), torch.zeros(T, B, dtype=torch.bool)
        after, _ = made.forward(*inputs)
        made.backward(*inputs, after, None, [None, after[0], after[1]], inputs[2])
        made.local(*inputs[:2], torch.zeros(T, B, 3 * N), inputs[3])
    elif op == "cartpole_step":
        B = 130
        steps, numbers = torch.zeros(B, dtype=torch.int64), torch.zeros(B)
        cartpole_step(torch.zeros(B, 4), steps, torch.zeros(B, 4), steps, numbers, steps, torch.ones(6, B))
    elif op == "blocks of eight parts":
        T, B, P, G, N, D = 3, 2, 8, 2, 33, 40
        J = torch.zeros(T, B, P, P, N)
        rtrl_block_advance(torch.zeros(B, P, G, N, D), J, torch.zeros(T, B, P, G, N), torch.zeros(T, B, D))
        rtrl_block_advance_vector(torch.zeros(B, P, G, N), J, torch.zeros(T, B, P, G, N))
    else:
        op_results(op, (3, 17, 65, 20), torch.device("cpu"), "triton")


@pytest.mark.parametrize("op", [*OPS, "cartpole_step", "blocks of eight parts", "every operation of the compiler"])
def test_it_compiles_for_an_h100(op: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from triton.runtime.jit import JITFunction

    compiled = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **kwargs: Any) -> None:
        compiled.append(run(self, *args, **{**kwargs, "warmup": True}).asm["cubin"])

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", NoDevice())
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(
        Op, "module", lambda self, *_, **__: self._load("triton" if "triton" in self.backends else "torch")
    )
    run_op(op)
    assert compiled and all(compiled)
