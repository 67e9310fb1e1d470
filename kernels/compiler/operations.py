"""What the compiler knows of each element-wise operation: its code in C and Triton, in torch, its cost, its derivative.

C and Triton are templates: {0}, {1} ... are the arguments. The C names in capitals are those of `elementwise.h`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lifelong.kernels.compiler.graph import Graph, Node

#: (graph, node, gradient to it) -> gradients to its arguments, None where there is none
Derivative = Callable[[Graph, Node, Node], tuple["Node | None", ...]]


class Operation(NamedTuple):
    """One element-wise operation."""

    c: str
    triton: str
    torch: Callable[..., Any]
    cost: float  # about the cycles per element that it takes in vectorised float32
    derivative: Derivative | None  # None: a truth value, or no gradient goes through


def _no_gradient(graph: Graph, node: Node, grad: Node) -> tuple[Node | None, ...]:
    return (None,) * len(node.args)


def _add(graph: Graph, node: Node, grad: Node) -> tuple[Node | None, ...]:
    return grad, grad


def _sub(graph: Graph, node: Node, grad: Node) -> tuple[Node | None, ...]:
    return grad, graph.apply("neg", grad)


def _mul(graph: Graph, node: Node, grad: Node) -> tuple[Node | None, ...]:
    return graph.apply("mul", grad, node.args[1]), graph.apply("mul", grad, node.args[0])


def _div(graph: Graph, node: Node, grad: Node) -> tuple[Node | None, ...]:
    top = graph.apply("div", grad, node.args[1])
    return top, graph.apply("neg", graph.apply("mul", top, node))


def _neg(graph: Graph, node: Node, grad: Node) -> tuple[Node | None, ...]:
    return (graph.apply("neg", grad),)


def _through(derivative: Callable[[Graph, Node], Node]) -> Derivative:
    """Of an operation with one argument, from its derivative."""
    return lambda graph, node, grad: (graph.apply("mul", grad, derivative(graph, node)),)


def _one_minus(graph: Graph, node: Node) -> Node:
    return graph.apply("sub", graph.constant(1.0), node)


def _square(graph: Graph, node: Node) -> Node:
    return graph.apply("mul", node, node)


def _pow(graph: Graph, node: Node, grad: Node) -> tuple[Node | None, ...]:
    base, exponent = node.args
    zero = graph.constant(0.0)
    less = graph.apply("pow", base, graph.apply("sub", exponent, graph.constant(1.0)))
    to_base = graph.apply("mul", grad, graph.apply("mul", exponent, less))
    if exponent.op == "constant":
        return to_base, None
    flat = graph.apply("eq", exponent, zero)
    at_zero = graph.apply("and", graph.apply("eq", base, zero), graph.apply("ge", exponent, zero))
    to_exponent = graph.apply("mul", grad, graph.apply("mul", node, graph.apply("log", base)))
    return graph.apply("where", flat, zero, to_base), graph.apply("where", at_zero, zero, to_exponent)


def _where(graph: Graph, node: Node, grad: Node) -> tuple[Node | None, ...]:
    condition, zero = node.args[0], graph.constant(0.0)
    return None, graph.apply("where", condition, grad, zero), graph.apply("where", condition, zero, grad)


def _sign(graph: Graph, node: Node) -> Node:
    zero, x = graph.constant(0.0), node.args[0]
    negative = graph.apply("where", graph.apply("lt", x, zero), graph.constant(-1.0), zero)
    return graph.apply("where", graph.apply("gt", x, zero), graph.constant(1.0), negative)


def _extremum(greater: bool) -> Derivative:
    """Of maximum and minimum: the gradient goes to the one that is taken, half to each where they are equal."""

    def derivative(graph: Graph, node: Node, grad: Node) -> tuple[Node | None, ...]:
        a, b = node.args
        zero, half = graph.constant(0.0), graph.apply("mul", grad, graph.constant(0.5))
        equal, wins = graph.apply("eq", a, b), graph.apply("gt" if greater else "lt", a, b)
        to_a = graph.apply("where", equal, half, graph.apply("where", wins, grad, zero))
        to_b = graph.apply("where", equal, half, graph.apply("where", wins, zero, grad))
        return to_a, to_b

    return derivative


def _torch(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of tensors, which takes numbers too."""

    def apply(*args: Any) -> Any:
        sample = next((arg for arg in args if isinstance(arg, Tensor) and arg.dtype != torch.bool), None)
        if sample is None:
            sample = torch.zeros((), dtype=torch.float64)
        return function(*[arg if isinstance(arg, Tensor) else sample.new_full((), arg) for arg in args])

    return apply


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


OPERATIONS: dict[str, Operation] = {
    "add": Operation("{0} + {1}", "{0} + {1}", torch.add, 1, _add),
    "sub": Operation("{0} - {1}", "{0} - {1}", torch.sub, 1, _sub),
    "mul": Operation("{0} * {1}", "{0} * {1}", torch.mul, 1, _mul),
    "div": Operation("{0} / {1}", "{0} / {1}", torch.div, 3, _div),
    "neg": Operation("-{0}", "-{0}", torch.neg, 1, _neg),
    "exp": Operation("EXP({0})", "tl.exp({0})", torch.exp, 12, _through(lambda graph, node: node)),
    "expm1": Operation(
        "EXPM1({0})", "_expm1({0})", torch.expm1, 60, _through(lambda g, node: g.apply("exp", node.args[0]))
    ),
    "log": Operation(
        "LOG({0})", "tl.log({0})", torch.log, 15, lambda g, node, grad: (g.apply("div", grad, node.args[0]),)
    ),
    "log1p": Operation(
        "LOG1P({0})",
        "_log1p({0})",
        torch.log1p,
        20,
        lambda g, node, grad: (g.apply("div", grad, g.apply("add", g.constant(1.0), node.args[0])),),
    ),
    "sigmoid": Operation(
        "SIGMOID({0})",
        "tl.sigmoid({0})",
        torch.sigmoid,
        16,
        _through(lambda g, node: g.apply("mul", node, _one_minus(g, node))),
    ),
    "tanh": Operation(
        "TANH({0})", "_tanh({0})", torch.tanh, 22, _through(lambda g, node: _one_minus(g, _square(g, node)))
    ),
    # log(1 + exp(x)) at every x; torch's own, which is x itself from a threshold on, is made of it in `trace`
    "softplus": Operation(
        "SOFTPLUS({0})", "_softplus({0})", _softplus, 30, _through(lambda g, node: g.apply("sigmoid", node.args[0]))
    ),
    "sqrt": Operation(
        "SQRT({0})",
        "tl.sqrt({0})",
        torch.sqrt,
        6,
        lambda g, node, grad: (g.apply("div", g.apply("mul", grad, g.constant(0.5)), node),),
    ),
    "sin": Operation("SIN({0})", "tl.sin({0})", torch.sin, 20, _through(lambda g, node: g.apply("cos", node.args[0]))),
    "cos": Operation(
        "COS({0})",
        "tl.cos({0})",
        torch.cos,
        20,
        _through(lambda g, node: g.apply("neg", g.apply("sin", node.args[0]))),
    ),
    "pow": Operation("POW({0}, {1})", "_pow({0}, {1})", torch.pow, 80, _pow),
    "abs": Operation("ABS({0})", "tl.abs({0})", torch.abs, 1, _through(_sign)),
    "maximum": Operation("MAXIMUM({0}, {1})", "_maximum({0}, {1})", torch.maximum, 2, _extremum(True)),
    "minimum": Operation("MINIMUM({0}, {1})", "_minimum({0}, {1})", torch.minimum, 2, _extremum(False)),
    "where": Operation("{0} ? {1} : {2}", "tl.where({0}, {1}, {2})", torch.where, 1, _where),
    "detach": Operation("{0}", "{0}", torch.detach, 0, _no_gradient),
    "lt": Operation("{0} < {1}", "{0} < {1}", torch.lt, 1, None),
    "le": Operation("{0} <= {1}", "{0} <= {1}", torch.le, 1, None),
    "gt": Operation("{0} > {1}", "{0} > {1}", torch.gt, 1, None),
    "ge": Operation("{0} >= {1}", "{0} >= {1}", torch.ge, 1, None),
    "eq": Operation("{0} == {1}", "{0} == {1}", torch.eq, 1, None),
    "ne": Operation("{0} != {1}", "{0} != {1}", torch.ne, 1, None),
    "and": Operation("{0} & {1}", "{0} & {1}", torch.logical_and, 1, None),
    "or": Operation("{0} | {1}", "{0} | {1}", torch.logical_or, 1, None),
    "not": Operation("!{0}", "{0} == 0", torch.logical_not, 1, None),
    # rounding once only, and to whole numbers
    "fma": Operation("FMA({0}, {1}, {2})", "tl.fma({0}, {1}, {2})", lambda a, b, c: torch.addcmul(c, a, b), 1, None),
    "floor": Operation("FLOOR({0})", "tl.floor({0})", torch.floor, 1, None),
    "ceil": Operation("CEIL({0})", "tl.ceil({0})", torch.ceil, 1, None),
    "trunc": Operation("TRUNC({0})", "_trunc({0})", torch.trunc, 1, None),
    "round": Operation("ROUND({0})", "_round({0})", torch.round, 1, None),
    "fmod": Operation("FMOD({0}, {1})", "({0} % {1})", torch.fmod, 20, None),
    # of integers; a division by zero gives zero
    "idiv": Operation("floor_div({0}, {1})", "_floor_div({0}, {1})", torch.floor_divide, 20, None),
    "imod": Operation("floor_mod({0}, {1})", "_floor_mod({0}, {1})", torch.remainder, 20, None),
    "bitand": Operation("{0} & {1}", "{0} & {1}", torch.bitwise_and, 1, None),
    "bitor": Operation("{0} | {1}", "{0} | {1}", torch.bitwise_or, 1, None),
    "bitxor": Operation("{0} ^ {1}", "{0} ^ {1}", torch.bitwise_xor, 1, None),
    "bitnot": Operation("~{0}", "~{0}", torch.bitwise_not, 1, None),
    "shl": Operation("{0} << {1}", "{0} << {1}", torch.bitwise_left_shift, 1, None),
    "shr": Operation("{0} >> {1}", "{0} >> {1}", torch.bitwise_right_shift, 1, None),
    **{
        f"to_{kind}": Operation(f"({kind}){{0}}", f"{{0}}.to(tl.{name})", partial(Tensor.to, dtype=dtype), 1, None)
        for kind, name, dtype in (
            ("real", "float32", torch.float32),
            ("double", "float64", torch.float64),
            ("i64", "int64", torch.int64),
            ("int32_t", "int32", torch.int32),
            ("int16_t", "int16", torch.int16),
            ("int8_t", "int8", torch.int8),
            ("uint8_t", "uint8", torch.uint8),
        )
    },
}
#: every operation in torch, for `graph.evaluate`
IN_TORCH: dict[str, Callable[..., Any]] = {name: _torch(operation.torch) for name, operation in OPERATIONS.items()}


def cost(node: Node, single: bool) -> float:
    """About the cycles that computing the node from its arguments takes. Double functions come one by one from libm."""
    if node.op in ("input", "constant"):
        return 0.0
    cycles = OPERATIONS[node.op].cost
    return cycles if single else max(2 * cycles, 100.0 * (cycles >= 12))
