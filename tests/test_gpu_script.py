"""benchmarks/gpu.py works part by part; here on the CPU with tiny sizes, and `cpu` and `torch` in place of Triton."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import kernels
from benchmarks.gpu_parts.rows import TINY

CPU = torch.device("cpu")
PARTS: dict[str, Any] = dict(gpu.parts(CPU, ("torch",), TINY))


@pytest.mark.parametrize("name", PARTS)
def test_a_part_runs_and_passes(name: str) -> None:
    for row in gpu.isolated(name, PARTS[name]):
        if name == "cartpole_step":  # there is a kernel for GPUs alone
            assert row.status == "SKIP", row
            continue
        assert row.status in ("PASS", "value"), row
        if row.status == "value":
            assert row.value is not None and math.isfinite(row.value) and row.value > 0


def test_a_wrong_kernel_fails_and_the_other_parts_still_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = kernels.gae

    def wrong(*args: Any, backend: str, **options: Any) -> Any:
        advantage, target = right(*args, backend=backend, **options)
        return (advantage * 1.01 if backend == "torch" else advantage), target

    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(kernels, "gae", wrong)
    monkeypatch.setattr(kernels, "vtrace", broken)
    monkeypatch.setattr(gpu, "parts", lambda *_: ((name, PARTS[name]) for name in ("gae torch", "vtrace torch", *last)))
    last = ["project torch"]
    rows = gpu.run_all(CPU, ("torch",), TINY)
    assert [row.status for row in rows] == ["FAIL", "FAIL", "PASS"]
    assert "RuntimeError: out of memory" in rows[1].note
    assert "1 checks passed, 2 failed" in capsys.readouterr().out


def test_a_cell_that_forgets_its_carry_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.RTRL, "advance", lambda self, trace: None)
    row = gpu.check_exactness("elstm", CPU, TINY, torch.float64, "torch", 1e-10)
    assert row.status == "FAIL"


def test_parts_after_the_time_limit_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = gpu.Sizes(seconds=-1.0)
    assert {row.status for row in gpu.run_all(CPU, ("torch",), sizes)} == {"SKIP"}


def test_the_result_is_json_with_device_and_versions() -> None:
    rows = [gpu.Row("a", "FAIL", math.inf), gpu.Row("b", "value", 2.0, "GB/s")]
    result = json.loads(json.dumps(gpu.result_of(rows, CPU), allow_nan=False))
    assert result["device"] == "cpu" and "torch" in result["versions"]
    assert [row["value"] for row in result["rows"]] == [None, 2.0]


def test_without_a_gpu_it_says_so() -> None:
    script = Path(gpu.__file__)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    answer = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr.startswith("no GPU: ") and answer.stderr.count("\n") == 1
