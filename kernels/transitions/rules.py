"""What the operations of torch are to one copy: name in ATen -> how its result is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lifelong.kernels.compiler.trace import Untraceable
from lifelong.kernels.transitions.elements import CALLED, ELEMENTWISE, called, full, like
from lifelong.kernels.transitions.reductions import REDUCTIONS
from lifelong.kernels.transitions.shapes import SHAPES, part
from lifelong.kernels.transitions.tracer import Traced, Tracer
from lifelong.kernels.transitions.values import Value

#: operations that see the memory of their argument
_AXES = ("select", "slice", "unsqueeze", "squeeze", "expand", "permute", "transpose", "t", "unbind")
VIEWS = frozenset((*_AXES, "view", "reshape", "alias", "detach", "_unsafe_view", "_reshape_alias"))
RULES = {**ELEMENTWISE, **SHAPES, **REDUCTIONS}
_FILLS = ("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "geometric_")
_DRAWS = ("rand", "randn", "randint")


def answer(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of `func(*args, **kwargs)`.

    Raises:
        Untraceable: it is not known.
    """
    name = func._schema.name.removeprefix("aten::")
    if name in _FILLS and not isinstance(args[1] if len(args) > 1 else None, Tensor):
        target = args[0]
        if not isinstance(target, Traced) or not target.own:
            raise Untraceable(f"uses Tensor.{name} on a tensor that others see")
        target.write(tracer.draw(func, target.shape, target.dtype, args[1:], kwargs).value, name)
        return target
    if name in _DRAWS and not any(isinstance(arg, Tensor) for arg in args):
        size = next(arg for arg in args if isinstance(arg, list | tuple | torch.Size))
        dtype = kwargs.get("dtype") or (torch.int64 if name == "randint" else torch.get_default_dtype())
        return tracer.draw(func, torch.Size(size), dtype, [arg for arg in args if arg is not size], kwargs)
    if name in ("lift_fresh", "lift_fresh_copy") and not isinstance(args[0], Traced):
        tracer.made[id(args[0])] = args[0]
        return Traced(tracer.constant(args[0]))
    if name.endswith("_") and not name.startswith("_"):
        return _in_place(tracer, func, args, kwargs)
    shapes = _shapes(func, args, kwargs)
    made = _rule(tracer, name, args, kwargs, shapes)
    base = args[0] if name in VIEWS and isinstance(args[0], Traced) else None
    if isinstance(made, list):
        return [Traced(value, base is None, base) for value in made]
    place = None if base is None else part(tracer, name, base, made.shape, *args[1:])
    return Traced(made, base is None, base, place)


def _in_place(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.removeprefix("aten::")
    target = args[0]
    if not isinstance(target, Traced):
        raise Untraceable(f"uses Tensor.{name} on a tensor that is no attribute of its own")
    if name == "copy_" or (name == "fill_" and isinstance(args[1], Tensor)):
        new: Value = like(tracer, args[1], target)
    elif name in ("fill_", "zero_"):
        new = full(tracer, target.shape, target.dtype, args[1] if name == "fill_" else 0)
    else:
        overload = getattr(getattr(torch.ops.aten, name[:-1]), func._overloadname)
        found = _rule(tracer, name[:-1], args, kwargs, _shapes(overload, args, kwargs))
        assert isinstance(found, Value)
        new = like(tracer, Traced(found), target)
    target.write(new, name)
    return target


def _shapes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A result like torch's: the operation done with zeros, or ones where it divides.

    Tensors without numbers would do, but what torch says of them it says in Python, after importing its compiler.
    """
    number = func._schema.name.removeprefix("aten::") in ("div", "floor_divide", "remainder", "fmod")

    def sample(arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return torch.full(arg.shape, int(number), dtype=arg.dtype)
        return type(arg)([sample(each) for each in arg]) if isinstance(arg, list | tuple) else arg

    return func(*sample(args), **{key: sample(each) for key, each in kwargs.items()})


def _rule(tracer: Tracer, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Value | list[Value]:
    rule = RULES.get(name)
    if rule is not None:
        try:
            made: Value | list[Value] = rule(tracer, out, *args, **kwargs)
        except (TypeError, AttributeError) as error:
            raise Untraceable(f"uses torch.{name} in a way that the compiler does not know") from error
        return made
    if name in CALLED:
        return called(tracer, name, out, args)
    raise Untraceable(f"uses torch.{name}")
