"""Compiles the `cpu` backends: plain C with raw pointers, one small shared object per op and dtype, on first use.

The object goes into a per-user cache ($XDG_CACHE_HOME or ~/.cache, then lifelong/kernels) under a key of source,
compiler version, flags and CPU model, by atomic rename, so concurrent workers and several machines on one home are
safe. ctypes releases the GIL during a call. Without a compiler, or when the cache cannot be written, `available` is
False after one log line and the dispatcher takes the torch backend.

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
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# -O3 would compile half as long again; loops that must be unrolled ask for it in their file
FLAGS = (
    "-std=gnu99",
    "-O2",
    "-ftree-vectorize",
    "-march=native",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)
_FLOAT, _DOUBLE = ("float", "f32", 1), ("double", "f64", 0)  # complex numbers are pairs of them
_TEMPLATES = {torch.float32: _FLOAT, torch.float64: _DOUBLE, torch.complex64: _FLOAT, torch.complex128: _DOUBLE}
_log = logging.getLogger("lifelong.kernels")
_warned = False


class BuildError(RuntimeError):
    """The C code of an op could not be compiled or loaded."""


def available(folder: str, dtype: torch.dtype) -> bool:
    """Whether the C code of the package `folder` is built (building it now if need be); logs the first failure."""
    global _warned
    try:
        library(folder, dtype)
    except BuildError as error:
        if not _warned:
            _warned = True
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
        kinds = {"i": ctypes.c_int64, "p": ctypes.c_void_p, "d": ctypes.c_double}
        self.folder, self.name, self.kinds = folder, name, [kinds[letter] for letter in signature]

    def __missing__(self, dtype: torch.dtype) -> Callable[..., Any]:
        entry = getattr(library(self.folder, dtype), f"{self.name}_{_TEMPLATES[dtype][1]}")
        entry.argtypes, entry.restype = self.kinds, None
        self[dtype] = entry
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
        compiler, version = _compiler()
        source = _source(folder, dtype)
        key = hashlib.sha256("\n".join([source, version, *FLAGS, _cpu_model()]).encode()).hexdigest()[:32]
        path = _cache_folder() / f"{folder.rpartition('.')[2]}-{_TEMPLATES[dtype][1]}-{key}.so"
        if not path.exists():
            _compile(compiler, source, path)
        return ctypes.CDLL(str(path))
    except BuildError as error:
        return error
    except OSError as error:
        return BuildError(f"{type(error).__name__}: {error}")


def _source(folder: str, dtype: torch.dtype) -> str:
    spec = importlib.util.find_spec(folder)
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(f"no package {folder}")
    here = Path(__file__).parent
    real, suffix, single = _TEMPLATES[dtype]
    parts = (
        (here / "common.h").read_text(),
        f"#define real {real}\n#define FN(name) name##_{suffix}\n#define SINGLE {single}\n",
        (here / "template.h").read_text(),
        (Path(spec.submodule_search_locations[0]) / "cpu.c").read_text(),
    )
    return "\n".join(parts)


@functools.cache
def _compiler() -> tuple[str, str]:
    for name in (os.environ.get("CC"), "cc", "gcc"):
        path = shutil.which(name) if name else None
        if path:
            answer = subprocess.run([path, "--version"], capture_output=True, text=True)
            if answer.returncode == 0:
                return path, answer.stdout
    raise BuildError("no C compiler found ($CC, cc, gcc)")


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() + platform.machine()
    wanted = ("model name", "cpu family", "model\t", "stepping", "flags", "Features", "CPU part")
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(wanted))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "lifelong" / "kernels"


def _compile(compiler: str, source: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        unit, built = Path(scratch) / "unit.c", Path(scratch) / "unit.so"
        unit.write_text(source)
        answer = subprocess.run([compiler, *FLAGS, "-o", str(built), str(unit), "-lm"], capture_output=True, text=True)
        if answer.returncode != 0:
            raise BuildError(f"{compiler} failed: {(answer.stderr.strip().splitlines() or ['no message'])[-1]}")
        os.replace(built, path)
