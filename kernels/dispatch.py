"""Which backend runs an op, and a record of the choice.

`auto` means: on CPU tensors `cpu` if it can be built, else `torch`; on CUDA tensors `triton` if it can be imported and
the op is not too wide for it, else `torch`. The environment variable LIFELONG_KERNELS, read when this module is
imported, replaces `auto` for every op that has the named backend; `force` does the same for a while.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from lifelong.kernels import build

BACKENDS = ("reference", "torch", "cpu", "triton")
_MODULES = {"reference": "reference", "torch": "torch_backend", "cpu": "cpu", "triton": "triton_backend"}
_COMPILED_DTYPES = (torch.float32, torch.float64)
#: Units up to which a dense cell runs all its steps in one Triton program a block of copies: beyond, a program reads so
#: large a recurrent weight at every step that one product per step over all copies is faster.
DENSE_UNITS = 256
_ops: list[Op] = []
_log = logging.getLogger("lifelong.kernels")
_chosen: dict[str, str] = {}
_forced = os.environ.get("LIFELONG_KERNELS", "auto")  # asking the environment at every call would cost microseconds


def chosen() -> dict[str, str]:
    """{op: backend used last} of every op that has run in this process."""
    return dict(_chosen)


def backends(device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """{op: the backend that `auto` means for tensors of that kind} of every op imported so far."""
    found = {}
    for op in _ops:
        forced = _forced if _forced in op.backends and op._can_run(_forced, device.type, dtype, True) else "auto"
        found[op.name] = op._choose(forced, device.type, dtype, True)
    return found


@contextmanager
def force(backend: str) -> Iterator[None]:
    """Every op that has `backend` runs on it where `auto` is asked for."""
    global _forced
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before


class Op:
    """The backends of one op.

    `folder` is the package that holds them (`kernels.elstm`), whose C functions are compiled from its
    `cpu.c`; `cpu_dtypes` and `triton_dtypes` say what the compiled backends take; `torch` and `reference` take any.
    `triton_units` is the most units that `triton` takes, None for any number. `generated`: the C is written at run
    time, so `cpu` can run where there is a compiler.
    """

    def __init__(
        self,
        name: str,
        folder: str,
        backends: tuple[str, ...] = BACKENDS,
        cpu_dtypes: tuple[torch.dtype, ...] = _COMPILED_DTYPES,
        triton_dtypes: tuple[torch.dtype, ...] = (torch.float32,),
        triton_units: int | None = None,
        generated: bool = False,
    ) -> None:
        self.name, self.folder, self.backends, self.generated = name, folder, backends, generated
        self.dtypes = {"cpu": cpu_dtypes, "triton": triton_dtypes}
        self.triton_units = triton_units
        _ops.append(self)
        self._cache: dict[tuple[str, str, torch.dtype, bool], tuple[str, Any]] = {}

    def module(self, backend: str, sample: torch.Tensor, units: int = 0) -> Any:
        """The backend's module for tensors like `sample` (and `units` units, for an op with a limit of them).

        Raises ValueError if an explicit `backend` cannot run there.
        """
        if backend == "auto":
            if _forced != "auto" and _forced not in BACKENDS:
                raise ValueError(f"LIFELONG_KERNELS={_forced!r} is no backend; valid: {', '.join(BACKENDS)}")
            backend = _forced if _forced in self.backends else "auto"
        fits = self.triton_units is None or units <= self.triton_units
        key = (backend, sample.device.type, sample.dtype, fits)
        hit = self._cache.get(key)
        if hit is None:
            name = self._choose(*key)
            hit = self._cache[key] = (name, self._load(name))
        if _chosen.get(self.name) != hit[0]:
            if self.name not in _chosen:
                _log.info("%s runs on the %s backend (%s, %s)", self.name, hit[0], key[1], key[2])
            _chosen[self.name] = hit[0]
        return hit[1]

    def compiled(self, sample: torch.Tensor) -> bool:
        """Whether `auto` means a compiled backend for tensors like `sample`; for ops that are done by torch elsewhere
        where there is none."""
        if _forced in ("reference", "torch"):
            return False
        backend = "triton" if sample.device.type == "cuda" else "cpu"
        return backend in self.backends and self._can_run(backend, sample.device.type, sample.dtype, True)

    def _load(self, backend: str) -> ModuleType:
        return importlib.import_module(f"{self.folder}.{_MODULES[backend]}")

    def _choose(self, backend: str, device: str, dtype: torch.dtype, fits: bool) -> str:
        usable = [name for name in self.backends if self._can_run(name, device, dtype, fits)]
        if backend == "auto":
            order = ("triton", "torch") if device == "cuda" else ("cpu", "torch")
            return next((name for name in order if name in usable), "reference")
        if backend not in usable:
            width = "" if fits else f" with more than {self.triton_units} units"
            raise ValueError(
                f"{self.name} cannot run on backend {backend!r} for {dtype} tensors on {device}{width}; "
                f"these can: {', '.join(usable)}"
            )
        return backend

    def _can_run(self, backend: str, device: str, dtype: torch.dtype, fits: bool) -> bool:
        if backend == "cpu":
            if device != "cpu" or dtype not in self.dtypes["cpu"]:
                return False
            return build.can_compile() if self.generated else build.available(self.folder, dtype)
        if backend == "triton":
            interpreted = os.environ.get("TRITON_INTERPRET") == "1"
            on_device = device == "cuda" or (device == "cpu" and interpreted)
            known = dtype in self.dtypes["triton"] and importlib.util.find_spec("triton") is not None
            return on_device and known and fits
        return True


def prepare(device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Compile what the ops imported so far need on `device`, all at once instead of one by one at their first use.

    Costs a second or two once per machine, and a few milliseconds afterwards.
    """
    if device.type != "cpu" or _forced not in ("auto", "cpu"):
        return
    folders = {op.folder for op in _ops if "cpu" in op.backends and dtype in op.dtypes["cpu"] and not op.generated}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda folder: build.available(folder, dtype), sorted(folders)))


def check(op: str, name: str, tensor: torch.Tensor, shape: tuple[int, ...], like: torch.Tensor) -> None:
    """ValueError (one sentence) unless `tensor` has this shape and the dtype and device of `like`."""
    if tensor.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(f"{op}: {name} must be {like.dtype} on {like.device}, got {tensor.dtype} on {tensor.device}")


def check_mask(op: str, name: str, tensor: torch.Tensor, shape: tuple[int, ...], like: torch.Tensor) -> None:
    """ValueError (one sentence) unless `tensor` is a bool tensor of this shape on the device of `like`."""
    if tensor.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != torch.bool or tensor.device != like.device:
        raise ValueError(f"{op}: {name} must be bool on {like.device}, got {tensor.dtype} on {tensor.device}")
