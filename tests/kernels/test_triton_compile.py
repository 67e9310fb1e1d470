"""Triton's compiler accepts every kernel for an H100, which the interpreter cannot tell and which needs no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_parts.kernels import OPS, op_results
from lifelong.kernels.cartpole import cartpole_step
from lifelong.kernels.dispatch import Op

triton = pytest.importorskip("triton")


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
    if op == "cartpole_step":
        B = 130
        steps, numbers = torch.zeros(B, dtype=torch.int64), torch.zeros(B)
        cartpole_step(torch.zeros(B, 4), steps, torch.zeros(B, 4), steps, numbers, steps, torch.ones(6, B))
    else:
        op_results(op, (3, 17, 65, 20), torch.device("cpu"), "triton")


@pytest.mark.parametrize("op", [*OPS, "cartpole_step"])
def test_it_compiles_for_an_h100(op: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from triton.runtime.jit import JITFunction

    compiled = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **kwargs: Any) -> None:
        compiled.append(run(self, *args, **{**kwargs, "warmup": True}).asm["cubin"])

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", NoDevice())
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(Op, "module", lambda self, backend, sample, units=0: self._load("triton"))
    run_op(op)
    assert compiled and all(compiled)
