"""A graph on the CPU with the semantics of a CUDA graph, for testing what is captured.

Every aten op is recorded with the memory of its tensors. A capture only records: what it wrote to is put back
afterwards, and what it made is filled with garbage, since on a GPU nothing has run. A replay runs the ops again, in
order, into the same memory. So addresses are baked in, Python is not run again, and what would wait for the GPU or copy
from the host is refused, as are draws from generators that were not registered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

aten = torch.ops.aten

#: what a CUDA capture does not allow: results whose value or size the host must know, copies of fresh host data
FORBIDDEN = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "lift_fresh",
    "unique_dim",
    "_unique2",
    "repeat_interleave",
    "bincount",
    "resize_",
    "set_",
}


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _garbage(tensor: Tensor) -> None:
    storage = tensor.untyped_storage()
    if storage.nbytes():
        torch.empty(0, dtype=torch.uint8).set_(storage).fill_(0x7F)  # type: ignore[call-overload]
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)


class AsOnCuda(TorchFunctionMode):
    """Checks that torch makes on a CPU and leaves out on a GPU are left out here."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.one_hot:
            index, classes = args
            return (index.unsqueeze(-1) == torch.arange(classes)).long()
        return function(*args, **(kwargs or {}))


class EmulatedGraph(TorchDispatchMode):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[Any, Any, Any, list[Tensor | None]]] = []
        self.generators: Sequence[torch.Generator] = ()
        self.made: dict[int, Tensor] = {}  # memory -> a tensor in it, made by the capture
        self.written: dict[int, tuple[Tensor, Tensor]] = {}  # memory -> (bytes, what they were)

    # ---- the interface -------------------------------------------------------------------------------------------

    def warm_up(self, function: Callable[[], Any]) -> Any:
        return function()

    def capture(self, function: Callable[[], Any], generators: Sequence[torch.Generator]) -> Any:
        self.generators = generators
        states = [generator.get_state() for generator in generators]
        try:
            with AsOnCuda(), self:
                return function()
        finally:
            with torch.no_grad():
                for tensor in self.made.values():
                    _garbage(tensor)
                for where, before in self.written.values():
                    where.copy_(before)
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

    @torch.no_grad()
    def replay(self) -> None:
        for op, args, kwargs, outputs in self.ops:
            results = tree_leaves(op(*args, **kwargs))
            for output, result in zip(outputs, results, strict=True):
                if output is not None:
                    output.copy_(result)

    # ---- recording -----------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = op.overloadpacket.__name__
        if name in FORBIDDEN:
            raise RuntimeError(f"{op} is not permitted when a stream is capturing")
        if name in ("index", "index_put", "index_put_") and any(i.dtype == torch.bool for i in _tensors(args[1])):
            raise RuntimeError(f"{op} with a mask is not permitted when a stream is capturing")
        registered = [generator._cdata for generator in self.generators]  # the same one may come in another object
        for leaf in tree_flatten((args, kwargs))[0]:
            if isinstance(leaf, torch.Generator) and leaf._cdata not in registered:
                raise RuntimeError(f"{op} draws from a generator that is not registered with the graph")
        for position, argument in enumerate(op._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[position] if position < len(args) else kwargs.get(argument.name)
                self._save(_tensors(value))
        known = {_memory(tensor) for tensor in _tensors((args, kwargs))}
        result = op(*args, **kwargs)
        outputs: list[Tensor | None] = []
        for leaf in tree_leaves(result):
            own = isinstance(leaf, Tensor) and (_memory(leaf) not in known or leaf.numel() == 0)
            outputs.append(leaf if own else None)
            if own:
                self.made.setdefault(_memory(leaf), leaf)
        if op._schema.is_mutable or any(output is not None for output in outputs):  # not a mere view
            # by address: whoever gives a tensor other memory later does not change the graph
            recorded = tree_map_only(Tensor, torch.Tensor.detach, (args, kwargs, outputs))
            self.ops.append((op, *recorded))
        return result

    def _save(self, tensors: list[Tensor]) -> None:
        """Remember the memory of tensors that were there before the capture and are about to be written to."""
        for tensor in tensors:
            memory = _memory(tensor)
            if memory not in self.made and memory not in self.written:
                where = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())  # type: ignore[call-overload]
                self.written[memory] = where, where.clone()
