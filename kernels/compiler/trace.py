"""Follows a Python function with torch.fx and gives the graph of its element-wise operations.

`FUNCTIONS` has what torch calls them; what is no operation of the graph is made of some (a ReLU is a `where`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from lifelong.kernels.compiler.graph import Graph, Node


class Untraceable(Exception):
    """The function does something that is no element-wise operation the compiler knows; the message says what."""


class Branching(ValueError):
    """The function's Python control flow depends on the data, so no one graph is what it does."""


def trace(
    function: Callable[..., Any],
    arguments: Sequence[str | tuple[str, ...]],
    module: nn.Module | None = None,
    attribute: Callable[[int], str] = "attribute{}".format,
) -> tuple[Graph, list[Node], list[str]]:
    """The graph of `function(*arguments)`.

    Args:
        function: takes tensors of one shape, or tuples of them, gives such a tensor or a tuple of them.
        arguments: names of its inputs, each a string or a tuple of strings where it takes a tuple.
        module: whose method it is; the function is called with a stand-in for it, whose parameters and buffers become
            inputs, too.
        attribute: the name of the input that the i-th parameter or buffer becomes.

    Returns:
        `(graph, outputs, names of the parameters and buffers that it reads)`.

    Raises:
        Untraceable: it does something else than element-wise operations.
        Branching: it branches on the data.
    """
    tracer = _Tracer(attribute)
    proxies = [
        tuple(map(tracer.placeholder, name)) if isinstance(name, tuple) else tracer.placeholder(name)
        for name in arguments
    ]
    if module is not None:
        proxies.insert(0, _stand_in(module, tracer))
    try:
        result = function(*proxies)
    except fx.proxy.TraceError as error:
        raise _branching(error) from error
    outputs = result if isinstance(result, tuple) else (result,)
    graph = Graph()
    known: dict[fx.Node, Node] = {}
    for node in tracer.graph.nodes:
        known[node] = _translate(graph, node, known)
    found = []
    for output in outputs:
        if not isinstance(output, fx.Proxy | int | float):
            raise Untraceable(f"returns {type(output).__name__} where a tensor is expected")
        value = known[output.node] if isinstance(output, fx.Proxy) else graph.constant(float(output))
        found.append(_number(graph, value))
    return graph, found, tracer.read


def _branching(error: Exception) -> Branching:
    frames = []
    trace_back = error.__traceback__
    while trace_back is not None:
        code = trace_back.tb_frame.f_code
        if "torch/fx" not in code.co_filename and __file__ != code.co_filename:
            frames.append(f"{code.co_filename}, line {trace_back.tb_lineno}")
        trace_back = trace_back.tb_next
    where = f" ({frames[-1]})" if frames else ""
    return Branching(f"its Python control flow depends on the data{where}; choose element by element with torch.where")


class _Tracer(fx.Tracer):
    """Records a call, with no module of its own."""

    def __init__(self, attribute: Callable[[int], str]) -> None:
        super().__init__()
        self._name_of = attribute
        self.graph = fx.Graph(tracer_cls=type(self))
        self.root = nn.Module()
        self.tensor_attrs = {}
        self.read: list[str] = []
        self._proxies: dict[str, fx.Proxy] = {}

    def placeholder(self, name: str) -> fx.Proxy:
        proxy: fx.Proxy = self.create_proxy("placeholder", name, (), {})
        proxy.node.meta["name"] = name
        return proxy

    def attribute(self, name: str) -> fx.Proxy:
        """The parameter or buffer of that name, as an input."""
        if name not in self._proxies:
            self._proxies[name] = self.placeholder(self._name_of(len(self.read)))
            self.read.append(name)
        return self._proxies[name]

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor):
            if a.numel() != 1 or a.requires_grad:
                raise Untraceable("reads a tensor that is neither an argument nor a parameter or buffer of the cell")
            return a.item()
        return super().create_arg(a)


def _stand_in(module: nn.Module, tracer: _Tracer) -> Any:
    """Like `module` in everything, but for its parameters and buffers, which are proxies."""

    def attribute(self: nn.Module, name: str) -> Any:
        value = getattr(module, name)
        return tracer.attribute(name) if isinstance(value, Tensor) else value

    kind: Any = type(type(module).__name__, (type(module),), {"__getattr__": attribute, "__doc__": module.__doc__})
    made = kind.__new__(kind)
    object.__setattr__(made, "__dict__", module.__dict__)
    return made


def _translate(graph: Graph, node: fx.Node, known: dict[fx.Node, Node]) -> Node:
    if node.op == "placeholder":
        return graph.input(node.meta["name"])
    if node.target is getattr and node.args[1] in ("dtype", "device"):
        return graph.constant(0.0)  # only `to` can use it, which ignores it
    if node.op not in ("call_function", "call_method"):
        raise Untraceable(f"uses {node.target}")
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", repr(node.target))
    known_to_torch = node.op == "call_method" or any(
        getattr(space, name, None) is node.target for space in (torch, nn.functional, torch._C._nn, operator)
    )
    if name not in FUNCTIONS or not known_to_torch:
        raise Untraceable(f"uses {_path(node)}")

    def argument(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return known[value]
        return graph.constant(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else value

    args = [argument(value) for value in node.args]
    kwargs = {key: argument(value) for key, value in node.kwargs.items()}
    try:
        return FUNCTIONS[name](graph, *args, **kwargs)
    except (TypeError, AttributeError) as error:
        raise Untraceable(f"uses {_path(node)} in a way that the compiler does not know") from error


def _path(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return f"Tensor.{node.target}"
    name = getattr(node.target, "__name__", repr(node.target))
    return f"torch.{name}" if getattr(torch, name, None) is node.target else str(name)


def _number(graph: Graph, node: Node) -> Node:
    """A truth value as 0 or 1."""
    if not isinstance(node, Node):
        raise TypeError("no tensor")
    return graph.apply("where", node, graph.constant(1.0), graph.constant(0.0)) if node.logical else node


def _truth(graph: Graph, node: Node) -> Node:
    return node if node.logical else graph.apply("ne", node, graph.constant(0.0))


def _plain(op: str) -> Callable[..., Node]:
    def one(graph: Graph, input: Node) -> Node:
        return graph.apply(op, _number(graph, input))

    def two(graph: Graph, input: Node, other: Node) -> Node:
        return graph.apply(op, _number(graph, input), _number(graph, other))

    binary = op in ("add", "sub", "mul", "maximum", "minimum", "lt", "le", "gt", "ge", "eq", "ne")
    return two if binary else one


def _scaled(op: str) -> Callable[..., Node]:
    def function(graph: Graph, input: Node, other: Node, *, alpha: Node | None = None) -> Node:
        scaled = _number(graph, other)
        if alpha is not None:
            scaled = graph.apply("mul", scaled, alpha)
        return graph.apply(op, _number(graph, input), scaled)

    return function


def _logical(op: str) -> Callable[..., Node]:
    return lambda graph, *args: graph.apply(op, *[_truth(graph, arg) for arg in args])


def _bitwise(op: str) -> Callable[..., Node]:
    """& and | of truth values; of integers there are none here."""

    def function(graph: Graph, *args: Node) -> Node:
        if not all(arg.logical for arg in args):
            raise TypeError("no truth values")
        return graph.apply(op, *args)

    return function


def _div(graph: Graph, input: Node, other: Node) -> Node:
    return graph.apply("div", _number(graph, input), _number(graph, other))


def _rsub(graph: Graph, input: Node, other: Node, *, alpha: Node | None = None) -> Node:
    return _scaled("sub")(graph, other, input, alpha=alpha)


def _pow(graph: Graph, input: Node, exponent: Node) -> Node:
    return graph.apply("pow", input, exponent)


def _identity(graph: Graph, input: Node, *_: Any, **__: Any) -> Node:
    return _number(graph, input)


def _where(graph: Graph, condition: Node, input: Node, other: Node) -> Node:
    return graph.apply("where", _truth(graph, condition), _number(graph, input), _number(graph, other))


def _relu(graph: Graph, input: Node, inplace: bool = False) -> Node:
    zero = graph.constant(0.0)
    return graph.apply("where", graph.apply("le", input, zero), zero, input)


def _leaky_relu(graph: Graph, input: Node, negative_slope: Node | None = None, inplace: bool = False) -> Node:
    slope = graph.constant(0.01) if negative_slope is None else negative_slope
    positive = graph.apply("gt", input, graph.constant(0.0))
    return graph.apply("where", positive, input, graph.apply("mul", slope, input))


def _elu(graph: Graph, input: Node, alpha: Node | None = None, inplace: bool = False) -> Node:
    below = graph.apply("expm1", graph.apply("minimum", input, graph.constant(0.0)))
    below = below if alpha is None else graph.apply("mul", alpha, below)
    return graph.apply("where", graph.apply("gt", input, graph.constant(0.0)), input, below)


def _clamp(graph: Graph, input: Node, min: Node | None = None, max: Node | None = None) -> Node:
    result = input
    if max is not None:
        result = graph.apply("where", graph.apply("gt", input, max), max, result)
    if min is not None:
        result = graph.apply("where", graph.apply("lt", input, min), min, result)
    return result


def _hardtanh(graph: Graph, input: Node, min_val: Node | None = None, max_val: Node | None = None) -> Node:
    low = graph.constant(-1.0) if min_val is None else min_val
    high = graph.constant(1.0) if max_val is None else max_val
    inside = graph.apply("and", graph.apply("gt", input, low), graph.apply("lt", input, high))
    edge = graph.apply("where", graph.apply("le", input, low), low, high)
    return graph.apply("where", inside, input, edge)


def _softplus(graph: Graph, input: Node, beta: Node | None = None, threshold: Node | None = None) -> Node:
    limit = graph.constant(20.0) if threshold is None else threshold
    scaled = input if beta is None else graph.apply("mul", beta, input)
    soft = graph.apply("softplus", scaled)
    soft = soft if beta is None else graph.apply("div", soft, beta)
    return graph.apply("where", graph.apply("gt", scaled, limit), input, soft)


def _logsigmoid(graph: Graph, input: Node) -> Node:
    return graph.apply("neg", graph.apply("softplus", graph.apply("neg", input)))


def _silu(graph: Graph, input: Node, inplace: bool = False) -> Node:
    return graph.apply("mul", input, graph.apply("sigmoid", input))


def _softsign(graph: Graph, input: Node) -> Node:
    return graph.apply("div", input, graph.apply("add", graph.constant(1.0), graph.apply("abs", input)))


def _square(graph: Graph, input: Node) -> Node:
    return graph.apply("mul", input, input)


def _reciprocal(graph: Graph, input: Node) -> Node:
    return graph.apply("div", graph.constant(1.0), input)


def _rsqrt(graph: Graph, input: Node) -> Node:
    return graph.apply("div", graph.constant(1.0), graph.apply("sqrt", input))


def _sign(graph: Graph, input: Node) -> Node:
    zero, fixed = graph.constant(0.0), graph.apply("detach", input)
    below = graph.apply("where", graph.apply("lt", fixed, zero), graph.constant(-1.0), zero)
    return graph.apply("where", graph.apply("gt", fixed, zero), graph.constant(1.0), below)


def _lerp(graph: Graph, input: Node, end: Node, weight: Node) -> Node:
    return graph.apply("add", input, graph.apply("mul", weight, graph.apply("sub", end, input)))


def _addcmul(graph: Graph, input: Node, tensor1: Node, tensor2: Node, *, value: Node | None = None) -> Node:
    product = graph.apply("mul", tensor1, tensor2)
    return graph.apply("add", input, product if value is None else graph.apply("mul", value, product))


def _addcdiv(graph: Graph, input: Node, tensor1: Node, tensor2: Node, *, value: Node | None = None) -> Node:
    quotient = graph.apply("div", tensor1, tensor2)
    return graph.apply("add", input, quotient if value is None else graph.apply("mul", value, quotient))


def _masked_fill(graph: Graph, input: Node, mask: Node, value: Node) -> Node:
    return graph.apply("where", _truth(graph, mask), value, input)


def _filled(value: float) -> Callable[..., Node]:
    return lambda graph, input: graph.constant(value)


def _full_like(graph: Graph, input: Node, fill_value: Node) -> Node:
    return fill_value


def _type_as(graph: Graph, input: Node, other: Node) -> Node:
    return _number(graph, input)


#: name in torch, as a function, a method or an operator -> makes its node
FUNCTIONS: dict[str, Callable[..., Node]] = {
    **{name: _plain(name) for name in ("mul", "neg", "exp", "expm1", "log", "log1p", "sigmoid", "tanh", "sqrt")},
    **{name: _plain(name) for name in ("sin", "cos", "abs", "maximum", "minimum", "detach", "lt", "le", "gt", "ge")},
    **{name: _plain(name) for name in ("eq", "ne")},
    "add": _scaled("add"),
    "sub": _scaled("sub"),
    "rsub": _rsub,
    "subtract": _scaled("sub"),
    "multiply": _plain("mul"),
    "negative": _plain("neg"),
    "absolute": _plain("abs"),
    "div": _div,
    "divide": _div,
    "truediv": _div,
    "true_divide": _div,
    "pow": _pow,
    "and_": _bitwise("and"),
    "or_": _bitwise("or"),
    "invert": _bitwise("not"),
    "logical_and": _logical("and"),
    "logical_or": _logical("or"),
    "logical_not": _logical("not"),
    "clone": _identity,
    "contiguous": _identity,
    "float": _identity,
    "double": _identity,
    "to": _identity,
    "type_as": _type_as,
    "where": _where,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "clamp": _clamp,
    "clip": _clamp,
    "hardtanh": _hardtanh,
    "softplus": _softplus,
    "logsigmoid": _logsigmoid,
    "log_sigmoid": _logsigmoid,
    "silu": _silu,
    "softsign": _softsign,
    "square": _square,
    "reciprocal": _reciprocal,
    "rsqrt": _rsqrt,
    "sign": _sign,
    "lerp": _lerp,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "masked_fill": _masked_fill,
    "zeros_like": _filled(0.0),
    "ones_like": _filled(1.0),
    "full_like": _full_like,
}
