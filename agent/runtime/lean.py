"""What a process need not import: torch brings its compiler in for calls that never use it, a second of every start.

Nothing here is compiled by torch, so

- a policy on the device `meta`, which is only measured, is not initialised (there torch does it in Python, through
  that compiler's library);
- an optimiser is constructed without telling that compiler to stay away.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FILLING = frozenset(("normal_", "uniform_", "trunc_normal_", "zero_", "fill_", "constant_", "copy_"))


class Uninitialised(TorchFunctionMode):
    """Within it, what fills a tensor on the device `meta` does nothing."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else (kwargs or {}).get("tensor")
        fills = getattr(func, "__module__", None) == "torch.nn.init" or getattr(func, "__name__", "") in _FILLING
        if fills and isinstance(first, torch.Tensor) and first.device.type == "meta":
            return first
        return func(*args, **(kwargs or {}))


def without_compiler() -> None:
    """Let optimisers be constructed without torch's compiler, in a process that is ours and does not compile. Nothing
    happens where that is imported already, or where torch does it in another way."""
    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        function = getattr(getattr(torch.optim.Optimizer, name, None), "__wrapped__", None)
        if function is not None:
            function.__dynamo_disable = function
