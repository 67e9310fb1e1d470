"""The functions of torch that no C of ours computes to the last bit (sin, exp, ...), as addresses that C can call.

torch computes them with the vector mathematics library it was built with, whose functions its shared object exports;
where one of them gives what torch gives, bit for bit, it is called. Otherwise C calls back to torch itself, which is
right everywhere and costs some microseconds a call.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import torch

#: void f(n, x, y): y[i] = f(x[i])
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
#: names in Intel's library; they take a mode besides
_VECTOR = {"log": "vmsLn"} | {
    name: f"vms{name.capitalize()}" for name in ("sin", "cos", "tan", "exp", "sqrt", "tanh", "atan", "asin", "acos")
}
#: high accuracy, denormal numbers as they are, no error handler: how torch calls them
MODE = 0x2 | 0x140000 | 0x100
_TESTED = 4096  # numbers on which a library must agree with torch


@functools.cache
def address(name: str) -> tuple[int | None, int | None]:
    """`(of a function of the vector library, of one that asks torch)` for `torch.<name>` of float32; one is None."""
    library = _library_function(name)
    if library is not None and _agrees(name, library):
        return ctypes.cast(library, ctypes.c_void_p).value, None
    return None, ctypes.cast(_asking(name), ctypes.c_void_p).value


@functools.cache
def team() -> int | None:
    """Of the function `int(int)` that says how many threads the vector library may use in this thread, and what it was;
    None if there is none."""
    library = _torch()
    found = getattr(library, "MKL_Set_Num_Threads_Local", None) if library is not None else None
    return None if found is None else ctypes.cast(found, ctypes.c_void_p).value


@functools.cache
def _torch() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))
    except OSError:
        return None


def _library_function(name: str) -> Any:
    library = _torch()
    found = getattr(library, _VECTOR[name], None) if library is not None and name in _VECTOR else None
    if found is not None:
        found.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        found.restype = None
    return found


def _agrees(name: str, function: Any) -> bool:
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 10.0, 1e4):
        x = torch.randn(_TESTED, generator=generator) * scale
        got, wanted = torch.empty_like(x), getattr(torch, name)(x)
        function(len(x), x.data_ptr(), got.data_ptr(), MODE)
        if not torch.equal(got.view(torch.int32), wanted.view(torch.int32)):
            return False
    return True


@functools.cache
def _asking(name: str) -> Any:
    function = getattr(torch, name)

    def ask(n: int, x: int, y: int) -> None:
        given, result = (
            torch.frombuffer((ctypes.c_float * n).from_address(place), dtype=torch.float32) for place in (x, y)
        )
        with torch.no_grad():
            result.copy_(function(given))

    return _CALLBACK(ask)
