"""Compiles the `cpu` backends: plain C with raw pointers, one small shared object per op and dtype, on first use.

The object is kept for the next start (`cache`) under a key of source, compiler version, flags and CPU model, so
concurrent workers and several machines on one home are safe; where it cannot be kept, it is compiled at every start.
ctypes releases the GIL during a call. Without a compiler, or with one that fails or hangs, `available` is False after
one log line and the dispatcher takes the torch backend.

A `cpu.c` is a template: `real` is float and `FN(name)` name_f32, or `real` is double and `FN(name)` name_f64. Only what
runs is compiled, and training runs in float.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lifelong.kernels import cache

# -O3 would compile half as long again; loops that must be unrolled ask for it in their file
FLAGS = (
    "-std=gnu99",
    "-O2",
    "-ftree-vectorize",
    "-march=native",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    # some tunings take products and sums apart where these follow each other: one row would not be as among many
    "--param=avoid-fma-max-bits=0",
    "-shared",
    "-fPIC",
)
_FLOAT, _DOUBLE = ("float", "f32", 1), ("double", "f64", 0)  # complex numbers are pairs of them
_TEMPLATES = {torch.float32: _FLOAT, torch.float64: _DOUBLE, torch.complex64: _FLOAT, torch.complex128: _DOUBLE}
#: seconds that a compiler may take to say its version, and to compile an op (it takes about one)
VERSION_PATIENCE, COMPILE_PATIENCE = 10.0, 120.0
_log = logging.getLogger("lifelong.kernels")
_unsaid = threading.Lock()  # is taken by the one log line of a process
_hung: list[str] = []  # the compiler, once it took too long: the next op would wait as long


class BuildError(RuntimeError):
    """The C code of an op could not be compiled or loaded."""


def available(folder: str, dtype: torch.dtype) -> bool:
    """Whether the C code of the package `folder` is built (building it now if need be); logs the first failure."""
    try:
        library(folder, dtype)
    except BuildError as error:
        if _unsaid.acquire(blocking=False):
            _log.warning("compiled CPU kernels are off, the torch backend is used instead: %s", error)
        return False
    return True


def library(folder: str, dtype: torch.dtype) -> ctypes.CDLL:
    """The loaded shared object of the package `folder`. Raises BuildError."""
    result = _library(folder, dtype)
    if isinstance(result, BuildError):
        raise result
    return result


class Functions(dict[torch.dtype, Callable[..., Any]]):
    """What `function` gives: the C function of each dtype, loaded, and compiled if need be, when it is asked for."""

    def __init__(self, folder: str, name: str, signature: str) -> None:
        super().__init__()
        self.folder, self.name, self.signature = folder, name, signature
        self._addresses: dict[torch.dtype, int] = {}

    def address(self, dtype: torch.dtype) -> int:
        """Where the function of a dtype lies."""
        if dtype not in self._addresses:
            self._addresses[dtype] = address(self[dtype])
        return self._addresses[dtype]

    def __missing__(self, dtype: torch.dtype) -> Callable[..., Any]:
        self[dtype] = entry = entry_point(library(self.folder, dtype), self.name, self.signature, dtype)
        return entry


def address(entry: Callable[..., Any]) -> int:
    """Where a loaded C function lies."""
    return ctypes.cast(entry, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


def entry_point(library: ctypes.CDLL, name: str, signature: str, dtype: torch.dtype) -> Callable[..., Any]:
    """The C function FN(`name`) of a loaded object; `signature` as for `function`."""
    kinds = {"i": ctypes.c_int64, "p": ctypes.c_void_p, "d": ctypes.c_double}
    entry = getattr(library, f"{name}_{_TEMPLATES[dtype][1]}")
    entry.argtypes, entry.restype = [kinds[letter] for letter in signature], None
    return entry  # type: ignore[no-any-return]


def function(folder: str, name: str, signature: str) -> Functions:
    """The C function `name` of a package, by dtype.

    `signature` has a letter per argument: i int64, p pointer (an int, or None for NULL), d double. The C function
    returns nothing.
    """
    return Functions(folder, name, signature)


@functools.cache
def _library(folder: str, dtype: torch.dtype) -> ctypes.CDLL | BuildError:
    try:
        spec = importlib.util.find_spec(folder)
        if spec is None or not spec.submodule_search_locations:
            raise BuildError(f"no package {folder}")
        text = (Path(spec.submodule_search_locations[0]) / "cpu.c").read_text()
        return generated(folder.rpartition(".")[2], text, dtype)
    except BuildError as error:
        return error
    except OSError as error:
        return BuildError(f"{type(error).__name__}: {error}")


def generated(
    name: str,
    text: str,
    dtype: torch.dtype,
    check: Callable[[ctypes.CDLL], None] = lambda built: None,
    flags: tuple[str, ...] = FLAGS,
) -> ctypes.CDLL:
    """The loaded shared object of the C in `text`, a template like a `cpu.c`; `name` is what its file begins with.

    `check` sees the object when it was compiled just now, and what it raises keeps the object from being kept: one from
    the cache has passed. Raises BuildError if it cannot be compiled, OSError if it cannot be loaded.
    """
    compiler, version = _compiler()
    source = _source(text, dtype)
    key = hashlib.sha256("\n".join([source, version, *flags, _cpu_model()]).encode()).hexdigest()[:32]
    file = f"{name}-{_TEMPLATES[dtype][1]}-{key}.so"
    return cache.load(file) or _compile(compiler, source, file, check, flags)


def can_compile() -> bool:
    """Whether there is a C compiler that answers."""
    try:
        _compiler()
    except (BuildError, OSError):
        return False
    return True


def _source(text: str, dtype: torch.dtype) -> str:
    here = Path(__file__).parent
    real, suffix, single = _TEMPLATES[dtype]
    parts = (
        (here / "common.h").read_text(),
        f"#define real {real}\n#define FN(name) name##_{suffix}\n#define SINGLE {single}\n",
        (here / "template.h").read_text(),
        (here / "matrix.h").read_text(),
        text,
    )
    return "\n".join(parts)


def compiler() -> str:
    """The first line of what the C compiler says of itself."""
    return _compiler()[1].partition("\n")[0]


@functools.cache
def _compiler() -> tuple[str, str]:
    for name in (os.environ.get("CC"), "cc", "gcc"):
        path = shutil.which(name) if name else None
        if path:
            answer = _run([path, "--version"], VERSION_PATIENCE)
            if answer is not None and answer.returncode == 0:
                return path, answer.stdout
    raise BuildError("no C compiler found ($CC, cc, gcc)")


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() + platform.machine()
    wanted = ("model name", "cpu family", "model\t", "stepping", "flags", "Features", "CPU part")
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(wanted))


def _compile(
    compiler: str,
    source: str,
    name: str,
    check: Callable[[ctypes.CDLL], None] = lambda built: None,
    flags: tuple[str, ...] = FLAGS,
) -> ctypes.CDLL:
    if compiler in _hung:
        raise BuildError(f"{compiler} took longer than {COMPILE_PATIENCE:g} s")
    with tempfile.TemporaryDirectory(prefix="lifelong-kernels-") as scratch:  # the user's alone
        unit, built = Path(scratch) / "unit.c", Path(scratch) / "unit.so"
        unit.write_text(source)
        answer = _run([compiler, *flags, "-o", str(built), str(unit), "-lm"], COMPILE_PATIENCE)
        if answer is None:
            _hung.append(compiler)
            raise BuildError(f"{compiler} took longer than {COMPILE_PATIENCE:g} s")
        if answer.returncode != 0:
            reason = (answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"])[-1]
            raise BuildError(f"{compiler} failed: {reason}")
        check(ctypes.CDLL(str(built)))
        return cache.keep(name, built)


def _run(command: list[str], patience: float) -> subprocess.CompletedProcess[str] | None:
    """The command's result; None if it took longer, and then nothing that it started is left.

    Raises:
        OSError: it cannot be started.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=patience)
        except BaseException as error:  # a session of its own does not get the terminal's ctrl-C either
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
