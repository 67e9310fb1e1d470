"""Stand-ins for the tensors of a step, and who answers what torch is asked to do with them."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lifelong.kernels.compiler.graph import DOUBLE, REAL, Graph, Node
from lifelong.kernels.compiler.trace import Branching, Untraceable
from lifelong.kernels.transitions.values import KINDS, Index, Indices, Value, name_of

#: by which the generator is known
_SEED = 8_204_563_197_431


@dataclass(frozen=True)
class Slot:
    """A tensor that a compiled step reads or writes; `copies` of it first, or none: then all copies read the same."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]  # of one copy
    copies: bool = True

    @property
    def size(self) -> int:
        """Numbers of one copy."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Draw:
    """Random numbers that a step asks for: what draws them, and for one copy how many."""

    function: Any
    args: tuple[Any, ...]  # after the tensor that is filled, or the size
    kwargs: dict[str, Any]
    slot: Slot

    @property
    def fills(self) -> bool:
        """Whether it fills a tensor (`uniform_`) instead of making one (`randint`)."""
        return bool(self.function._schema.name.endswith("_"))


class Traced(Tensor):
    """A stand-in: shape and type of a tensor and what its entries are.

    Args:
        value: the entries.
        own: it was made in the step, so that it may be written to.
        base: what it is a view of.
        place: where in it an entry of its base lies, None if it does not; for views that may be written to.
    """

    value: Value
    own: bool
    base: Traced | None
    place: Callable[[tuple[Index, ...]], tuple[Index, ...] | None] | None
    views: list[Traced]
    stale: bool  # what it is a view of was written to

    @staticmethod
    def __new__(
        cls: type[Traced],
        value: Value,
        own: bool = True,
        base: Traced | None = None,
        place: Callable[[tuple[Index, ...]], tuple[Index, ...] | None] | None = None,
    ) -> Traced:
        made: Any = Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype, device=torch.device("cpu"))
        made.value, made.own, made.base, made.place, made.views, made.stale = value, own, base, place, [], False
        if base is not None:
            base.views.append(made)
        return made  # type: ignore[no-any-return]

    def write(self, new: Value, name: str, through: Traced | None = None) -> None:
        """Give it other entries, and what it is a view of, too.

        Args:
            new: the entries.
            name: of the operation, for the sentence.
            through: the view that the writing came through.

        Raises:
            Untraceable: it is seen by others, or no slice.
        """
        if self.base is not None and self.place is not None:
            old, place = self.base.value, self.place

            def read(index: tuple[Index, ...]) -> Node:
                at = place(index)
                return old.at(index) if at is None else new.at(at)

            self.base.write(Value(old.shape, old.dtype, read), name, self)
        elif self.base is not None or not self.own:
            raise Untraceable(f"uses Tensor.{name}, which writes to a tensor that others see")
        self.value = new
        for view in self.views:
            view.stale = view.stale or view is not through

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Traced({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise Untraceable(f"uses torch.{_plain(func)} outside the step")


class Tracer(TorchDispatchMode):
    """Answers what torch is asked to do.

    Args:
        graph: gets the nodes.
        copies: a number that is the length of no axis but that of the copies.
        generator: all random numbers come from it; it is seeded anew.
        answer: gives the result of an operation, from this, the operation and its arguments.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Saying so would import the compiler of torch, which takes seconds."""
        return False

    def __init__(self, graph: Graph, copies: int, generator: torch.Generator, answer: Callable[..., Any]) -> None:
        super().__init__()
        self.graph, self.copies, self._answer = graph, copies, answer
        self._names = itertools.count()
        generator.manual_seed(_SEED)
        self.indices = Indices(graph, copies)
        self.inputs: dict[str, Slot] = {}
        self.draws: list[Draw] = []
        #: constants that are read by a computed index, by their names in C
        self.tables: dict[str, Tensor] = {}
        #: tensors that were made during the trace, which are constants
        self.made: dict[int, Tensor] = {}

    def input(self, name: str, sample: Tensor) -> Traced:
        """A stand-in for a tensor like `sample`."""
        if sample.dtype not in KINDS:
            raise Untraceable(f"reads {name} of type {sample.dtype}")
        copies = sample.dim() > 0 and sample.shape[0] == self.copies
        slot = Slot(name, sample.dtype, tuple(sample.shape[copies:]), copies)
        self.inputs[name] = slot
        return Traced(Value(sample.shape, sample.dtype, self._loads(slot)), own=False)

    def _loads(self, slot: Slot) -> Callable[[tuple[Index, ...]], Any]:
        """Reads of the tensor of a slot."""

        def read(index: tuple[Index, ...]) -> Any:
            if slot.copies and not index[0].copy:
                raise Untraceable(f"reads {slot.name} of another copy")
            if not slot.copies and any(each.copy for each in index):
                raise Untraceable(f"reads {slot.name} by the number of the copy")
            shape = (self.copies, *slot.shape) if slot.copies else slot.shape
            place = self.indices.flat(index, shape)
            return self.graph.apply("load", place, kind=KINDS[slot.dtype], value=name_of(slot.name))

        return read

    def value(self, tensor: Any) -> Value:
        """What a tensor is."""
        if isinstance(tensor, Traced):
            seen: Traced | None = tensor
            while seen is not None:
                if seen.stale:
                    raise Untraceable("reads a view of a tensor that was written to meanwhile")
                seen = seen.base
            return tensor.value
        if not isinstance(tensor, Tensor):
            raise Untraceable(f"gives {type(tensor).__name__} where a tensor is expected")
        if tensor.dim() == 0 or id(tensor) in self.made:
            return self.constant(tensor)
        raise Untraceable(f"reads a tensor of shape {tuple(tensor.shape)} that is no attribute of its own")

    def constant(self, tensor: Tensor) -> Value:
        """A tensor of numbers that are known."""
        graph, kind = self.graph, KINDS.get(tensor.dtype)
        if kind is None:
            raise Untraceable(f"computes with {tensor.dtype}")
        numbers, name = tensor.tolist(), f"table_{next(self._names)}_"

        def read(index: tuple[Index, ...]) -> Node:
            if all(each.fixed for each in index):
                entry: Any = numbers
                for each in index:
                    entry = entry[each.low]
                return graph.constant(entry, kind)
            if any(each.copy for each in index):
                raise Untraceable("reads a tensor made in the step by the number of the copy")
            self.tables[name] = tensor
            return graph.apply("load", self.indices.flat(index, tensor.shape), kind=kind, value=name)

        return Value(tensor.shape, tensor.dtype, read)

    def draw(self, func: Any, shape: torch.Size, dtype: torch.dtype, args: Any, kwargs: dict[str, Any]) -> Traced:
        """Random numbers."""
        given = kwargs.get("generator")  # the same one may come as another object
        if given is None or given.initial_seed() != _SEED:
            raise Untraceable("draws from another generator than self.generator")
        if shape[:1] != (self.copies,) and shape.numel():
            raise Untraceable(f"draws numbers of shape {tuple(shape)}, which has no row a copy")
        keep = {key: value for key, value in kwargs.items() if key == "dtype"}
        slot = Slot(f"random.{len(self.draws)}", dtype, tuple(shape[1:]))
        unit = func._schema.name == "aten::uniform_" and dtype == torch.float32
        if shape.numel():
            self.draws.append(Draw(func, () if unit else tuple(args), keep, slot))
        read = self._loads(slot)
        return Traced(Value(shape, dtype, self._between(read, *args) if unit and args else read))

    def _between(self, read: Callable[[tuple[Index, ...]], Node], low: float, high: float = 1.0) -> Any:
        """Uniform numbers in [low, high) from those in [0, 1), as torch makes them."""
        graph = self.graph
        start, end = (torch.tensor(each, dtype=torch.float32) for each in (low, high))

        def between(index: tuple[Index, ...]) -> Node:
            unit = graph.apply("to_double", read(index), kind=DOUBLE)
            wide = graph.apply("mul", unit, graph.constant((end - start).item(), DOUBLE))
            return graph.apply("to_real", graph.apply("add", wide, graph.constant(start.item(), DOUBLE)), kind=REAL)

        return between if (low, high) != (0.0, 1.0) else read

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::item"):
            raise Branching(f"its Python control flow depends on the data{_where()}; choose with torch.where")
        return self._answer(self, func, args, kwargs)


def _plain(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def _where() -> str:
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and frame.filename != __file__:
            return f" ({frame.filename}, line {frame.lineno})"
    return ""
