"""Compiles the `cpu` backends: plain C with raw pointers, one small shared object per op, on first use.

The object goes into a per-user cache ($XDG_CACHE_HOME or ~/.cache, then lifelong/kernels) under a key of source,
compiler version, flags and CPU model, by atomic rename, so concurrent workers and several machines on one home are
safe. ctypes releases the GIL during a call. Without a compiler, or when the cache cannot be written, `available` is
False after one log line and the dispatcher takes the torch backend.

A `cpu.c` is a template: it is compiled twice into one object, with `real` = float and `FN(name)` = name_f32, and with
`real` = double and `FN(name)` = name_f64.
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

FLAGS = ("-std=gnu99", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_TEMPLATES = (("float", "f32", 1), ("double", "f64", 0))
_log = logging.getLogger("lifelong.kernels")
_warned = False


class BuildError(RuntimeError):
    """The C code of an op could not be compiled or loaded."""


def available(folder: str) -> bool:
    """Whether the C code of the package `folder` is built (building it now if need be); logs the first failure."""
    global _warned
    try:
        library(folder)
    except BuildError as error:
        if not _warned:
            _warned = True
            _log.warning("compiled CPU kernels are off, the torch backend is used instead: %s", error)
        return False
    return True


def library(folder: str) -> ctypes.CDLL:
    """The loaded shared object of the package `folder`. Raises BuildError."""
    result = _library(folder)
    if isinstance(result, BuildError):
        raise result
    return result


def function(folder: str, name: str, signature: str) -> dict[torch.dtype, Callable[..., Any]]:
    """The C function `name` of a package, by dtype.

    `signature` has a letter per argument: i int64, p pointer (an int, or None for NULL), d double. The C function
    returns nothing.
    """
    kinds = {"i": ctypes.c_int64, "p": ctypes.c_void_p, "d": ctypes.c_double}
    functions = {}
    for dtype, suffix in ((torch.float32, "f32"), (torch.float64, "f64")):
        entry = getattr(library(folder), f"{name}_{suffix}")
        entry.argtypes = [kinds[letter] for letter in signature]
        entry.restype = None
        functions[dtype] = entry
    return functions


@functools.cache
def _library(folder: str) -> ctypes.CDLL | BuildError:
    try:
        compiler, version = _compiler()
        source = _source(folder)
        key = hashlib.sha256("\n".join([source, version, *FLAGS, _cpu_model()]).encode()).hexdigest()[:32]
        path = _cache_folder() / f"{folder.rpartition('.')[2]}-{key}.so"
        if not path.exists():
            _compile(compiler, source, path)
        return ctypes.CDLL(str(path))
    except BuildError as error:
        return error
    except OSError as error:
        return BuildError(f"{type(error).__name__}: {error}")


def _source(folder: str) -> str:
    spec = importlib.util.find_spec(folder)
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(f"no package {folder}")
    body = (Path(spec.submodule_search_locations[0]) / "cpu.c").read_text()
    parts = [(Path(__file__).parent / "common.h").read_text()]
    for real, suffix, single in _TEMPLATES:
        parts.append(f"#define real {real}\n#define FN(name) name##_{suffix}\n#define SINGLE {single}\n")
        parts.append((Path(__file__).parent / "template.h").read_text())
        parts.append(body)
        parts.append("#undef real\n#undef FN\n#undef SINGLE\n")
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
