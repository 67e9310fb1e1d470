"""Choosing a backend, forcing one, and doing without a compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lifelong.kernels import dispatch
from lifelong.kernels.diag_scan import diag_scan
from lifelong.kernels.gru_sequence import gru_sequence

ROOT = Path(__file__).parents[2]
PROGRAM = """
import logging, sys, time
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
import torch
from lifelong.kernels import dispatch
from lifelong.kernels.diag_scan import diag_scan
from lifelong.kernels.rtrl import rtrl_advance, rtrl_advance_vector
T, B, N = 3, 2, 5
a, b, s = torch.rand(T, B, N), torch.randn(T, B, N), torch.zeros(B, 1, N)
start = time.perf_counter()
for _ in range(2):
    diag_scan(a, b)
    rtrl_advance_vector(s, a, b[:, :, None])
    rtrl_advance(torch.zeros(B, 1, N, 4), a, b, torch.randn(T, B, 4))
print("seconds", time.perf_counter() - start)
print("chosen", dispatch.chosen())
"""


def run(cache: Path, **environment: str) -> tuple[str, dict[str, str]]:
    """Output of PROGRAM in a process of its own, and the chosen backends it reports."""
    env = {key: value for key, value in os.environ.items() if key not in ("CC", "LIFELONG_KERNELS")}
    env |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), **environment}
    answer = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    chosen = next(line for line in answer.stdout.splitlines() if line.startswith("chosen"))
    return answer.stdout, eval(chosen.removeprefix("chosen"))


def test_first_use_compiles_and_second_use_is_cached(tmp_path: Path) -> None:
    first, chosen = run(tmp_path)
    assert set(chosen.values()) == {"cpu"}
    assert first.count("INFO") == len(chosen) == 3
    built = sorted((tmp_path / "lifelong" / "kernels").iterdir())
    assert [path.suffix for path in built] == [".so", ".sha256", ".so", ".sha256"]
    stamps = [path.stat().st_mtime_ns for path in built]
    run(tmp_path)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "lifelong" / "kernels").iterdir())] == stamps


def test_damaged_objects_are_compiled_again_by_the_next_start(tmp_path: Path) -> None:
    run(tmp_path)
    first, second = sorted((tmp_path / "lifelong" / "kernels").glob("*.so"))
    sound = [first.read_bytes(), second.read_bytes()]
    first.write_bytes(b"")
    os.truncate(second, len(sound[1]) // 2)  # would be SIGBUS when it is loaded
    _, chosen = run(tmp_path)
    assert set(chosen.values()) == {"cpu"}
    assert [first.read_bytes(), second.read_bytes()] == sound


COMPILERS = {
    "broken": "echo broken >&2; exit 1",
    "crashes": "kill -SEGV $$",
    "builds nothing": "exit 0",
    "builds rubbish": 'while [ "$1" != -o ]; do shift; done; echo rubbish > "$2"',
}


@pytest.mark.parametrize(
    "why", ["no compiler", "broken", *(pytest.param(w, marks=pytest.mark.slow) for w in COMPILERS if w != "broken")]
)
def test_without_a_compiler_the_torch_backend_runs_after_one_log_line(tmp_path: Path, why: str) -> None:
    (tmp_path / "bin").mkdir()
    if why in COMPILERS:
        compiler = tmp_path / "bin" / "cc"
        compiler.write_text(f"#!/bin/sh\n[ $1 = --version ] && exit 0\n{COMPILERS[why]}\n")
        compiler.chmod(0o755)
    output, chosen = run(tmp_path, PATH=str(tmp_path / "bin"))
    assert set(chosen.values()) == {"torch"}
    assert output.count("WARNING compiled CPU kernels are off") == 1
    assert output.count("WARNING") == 1
    assert not (tmp_path / "lifelong" / "kernels").exists() or not list((tmp_path / "lifelong" / "kernels").iterdir())


def test_what_is_imported_can_be_compiled_ahead_of_its_first_use(tmp_path: Path) -> None:
    program = """
import torch
from lifelong.kernels import build, cache, dispatch, elstm, advantages
dispatch.prepare(torch.device("cuda"))
assert not build._library.cache_info().currsize
dispatch.prepare(torch.device("cpu"))
print(sorted(path.name.split("-")[0] for path in cache.path().iterdir()))
"""
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    answer = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    built = eval(answer.stdout)
    assert {"advantages", "elstm", "rtrl"} <= set(built) and "gru_sequence" not in built


def test_a_compiler_that_hangs_is_waited_for_once_and_nothing_of_it_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lifelong.kernels import build

    left = tmp_path / "pid"
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {left}; wait\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "COMPILE_PATIENCE", 0.5)
    begun = time.monotonic()
    for name in ("one.so", "two.so"):
        with pytest.raises(build.BuildError, match=f"{compiler} took longer than 0.5 s"):
            build._compile(str(compiler), "", name)
    assert time.monotonic() - begun < 0.9
    stat = Path("/proc", left.read_text().strip(), "stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() - begun < 5
        time.sleep(0.01)


def problem() -> tuple[torch.Tensor, ...]:
    return torch.rand(2, 3, 5), torch.randn(2, 3, 5), torch.zeros(3, 5), torch.zeros(2, 3, dtype=torch.bool)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_a_forced_backend_replaces_auto(backend: str) -> None:
    with dispatch.force(backend):
        diag_scan(*problem())
        assert dispatch.chosen()["diag_scan"] == backend
        diag_scan(*problem(), backend="torch")  # an explicit backend wins
        assert dispatch.chosen()["diag_scan"] == "torch"
    diag_scan(*problem())
    assert dispatch.chosen()["diag_scan"] == "cpu"


def test_the_environment_variable_forces_a_backend(tmp_path: Path) -> None:
    _, chosen = run(tmp_path, LIFELONG_KERNELS="reference")
    assert set(chosen.values()) == {"reference"}


def test_an_explicit_backend_that_cannot_run_names_those_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"diag_scan cannot run on backend 'triton' .* these can: .*torch"):
        diag_scan(*problem(), backend="triton")
    with pytest.raises(ValueError, match="backend 'fast'"):
        diag_scan(*problem(), backend="fast")


def test_an_unknown_name_in_the_environment_is_an_error() -> None:
    message = "LIFELONG_KERNELS='fast' is no backend; valid: reference, torch, cpu, triton"
    with dispatch.force("fast"), pytest.raises(ValueError, match=message):
        diag_scan(*problem())


def test_other_dtypes_run_on_torch() -> None:
    a, b, h0, is_init = problem()
    diag_scan(a.bfloat16(), b.bfloat16(), h0.bfloat16(), is_init)
    assert dispatch.chosen()["diag_scan"] == "torch"


def test_every_op_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lifelong.kernels import build

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for source in sorted((ROOT / "kernels").glob("*/cpu.c")):
        for dtype in (torch.float32, torch.float64):
            start = time.perf_counter()
            name = f"{source.parent.name}-{dtype}.so"
            assert build._compile(build._compiler()[0], build._source(source.read_text(), dtype), name)
            print(source.parent.name, dtype, time.perf_counter() - start)


def test_a_dense_cell_too_wide_for_one_triton_program_runs_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    op = dispatch.Op("gru_sequence", "lifelong.kernels.gru_sequence", triton_units=dispatch.DENSE_UNITS)
    assert op._choose("auto", "cuda", torch.float32, fits=True) == "triton"
    assert op._choose("auto", "cuda", torch.float32, fits=False) == "torch"
    wide = dispatch.DENSE_UNITS + 1
    weights = torch.zeros(3 * wide, wide), torch.zeros(wide), torch.zeros(1, wide)
    with pytest.raises(
        ValueError, match=r"gru_sequence cannot run on backend 'triton' .* more than 256 units; .*torch"
    ):
        gru_sequence(torch.zeros(1, 1, 3 * wide), *weights, torch.zeros(1, 1, dtype=torch.bool), backend="triton")


def test_vectors_are_as_wide_as_the_machine_has_them() -> None:
    """A wider one is taken apart by the compiler, which made products thirty times slower without AVX-512."""
    sources = [path for path in (ROOT / "kernels").rglob("*.[ch]") if "vector_size" in path.read_text()]
    assert len(sources) >= 4
    for path in sources:
        widths = re.findall(r"vector_size\(([^)]*)\)", path.read_text())
        assert all("VECTOR_BYTES" in width for width in widths), path
