"""Graphs of element-wise operations. Equal expressions are one node, so what is shared is computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

#: operations whose result is a truth value
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
LOGICAL = (*COMPARISONS, "and", "or", "not")
#: kinds of numbers: that which a program is written for, double, 64-bit integers, truth values; others are C's names
REAL, DOUBLE, INDEX, BOOL = "real", "double", "i64", "bool"
FLOATS = (REAL, DOUBLE)
_FOLDS: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
    "abs": abs,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "tanh": math.tanh,
    "sin": math.sin,
    "cos": math.cos,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: float(a**b),
}


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One value of a `Graph`. `op` is an operation of `operations`, `input` or `constant`."""

    index: int  # greater than those of its arguments
    op: str
    args: tuple[Node, ...]
    value: float | str | None  # a constant's number, an input's name, what is loaded or called
    kind: str = REAL

    @property
    def logical(self) -> bool:
        """Whether it is a truth value and no number."""
        return self.kind == BOOL


class Graph:
    """Makes nodes. Constants are folded; what multiplies by one or adds zero is left out.

    Args:
        exact: leave every operation on numbers as it is, so that results are those of torch bit for bit; only integers
            are folded.
    """

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact
        self._nodes: dict[tuple[str, tuple[int, ...], float | str | None, str], Node] = {}

    def input(self, name: str, kind: str = REAL) -> Node:
        """The input of that name."""
        return self._node("input", (), name, kind)

    def constant(self, value: float, kind: str = REAL) -> Node:
        """A number."""
        return self._node("constant", (), float(value) if kind in FLOATS else int(value), kind)

    def apply(self, op: str, *args: Node, kind: str | None = None, value: str | None = None) -> Node:
        """The node `op(*args)`, or a simpler one of the same value.

        Args:
            op: the operation.
            args: what it is applied to.
            kind: of number that it gives; that of its last argument if not said, a truth value if it is a comparison.
            value: what is loaded or called, for those.
        """
        simple = self._simplify_exactly(op, args) if self.exact else self._simplify(op, args)
        if simple is not None:
            return simple
        if op in ("add", "mul", "maximum", "minimum", "eq", "ne", "and", "or"):  # the order does not matter
            args = tuple(sorted(args, key=lambda node: node.index))
        if kind is None:
            kind = BOOL if op in LOGICAL else args[-1].kind
        return self._node(op, args, value, kind)

    def _node(self, op: str, args: tuple[Node, ...], value: float | str | None, kind: str) -> Node:
        # a constant's text tells 0.0 from -0.0, and one NaN is like another
        key = (op, tuple(node.index for node in args), repr(value) if op == "constant" else value, kind)
        if key not in self._nodes:
            self._nodes[key] = Node(len(self._nodes), op, args, value, kind)
        return self._nodes[key]

    def _simplify_exactly(self, op: str, args: tuple[Node, ...]) -> Node | None:
        if op == "where":
            if args[0].op == "constant":
                return args[1] if args[0].value else args[2]
            return args[1] if args[1] is args[2] else None
        if op in ("and", "or") and args[0].kind == BOOL:
            for this, other in (args, args[::-1]):
                if this.op == "constant":
                    return other if bool(this.value) == (op == "and") else this
        if op == "not" and args[0].op in ("not", "constant"):
            return args[0].args[0] if args[0].op == "not" else self.constant(not args[0].value, BOOL)
        if not args or any(arg.kind != INDEX for arg in args):
            return None
        numbers = [arg.value if arg.op == "constant" else None for arg in args]
        if op in ("add", "sub", "mul") and all(isinstance(number, int) for number in numbers):
            return self.constant(_FOLDS[op](*numbers), INDEX)
        if op in ("add", "sub") and numbers[1] == 0:
            return args[0]
        if op in ("add", "mul") and numbers[0] == (op == "mul"):
            return args[1]
        return args[0] if op == "mul" and numbers[1] == 1 else None

    def _simplify(self, op: str, args: tuple[Node, ...]) -> Node | None:
        numbers = [node.value if node.op == "constant" else None for node in args]
        if op in _FOLDS and all(isinstance(number, float) for number in numbers):
            try:
                return self.constant(_FOLDS[op](*numbers))
            except (ArithmeticError, ValueError, TypeError):
                return None  # the number is not a real one: let the machine say which
        if op == "add":
            for this, other, number in ((args[0], args[1], numbers[1]), (args[1], args[0], numbers[0])):
                if number == 0.0:
                    return this
                if other.op == "neg":
                    return self.apply("sub", this, other.args[0])
        elif op == "sub":
            if numbers[1] == 0.0:
                return args[0]
            if numbers[0] == 0.0:
                return self.apply("neg", args[1])
            if args[1].op == "neg":
                return self.apply("add", args[0], args[1].args[0])
        elif op == "mul":
            for this, number in ((args[0], numbers[1]), (args[1], numbers[0])):
                if number == 1.0:
                    return this
                if number == -1.0:
                    return self.apply("neg", this)
            if args[0].op == "neg" and args[1].op == "neg":
                return self.apply("mul", args[0].args[0], args[1].args[0])
            for this, other in (args, args[::-1]):
                if this.op == "neg":
                    return self.apply("neg", self.apply("mul", this.args[0], other))
        elif op == "div":
            if numbers[1] == 1.0:
                return args[0]
            if isinstance(numbers[1], float) and numbers[1] and math.frexp(numbers[1])[0] in (0.5, -0.5):
                return self.apply("mul", args[0], self.constant(1.0 / numbers[1]))  # a power of two: exact
        elif op in ("neg", "not") and args[0].op == op:
            return args[0].args[0]
        elif op == "where" and args[1] is args[2]:
            return args[1]
        elif op == "pow":
            return self._power(args[0], numbers[1])
        return None

    def _power(self, base: Node, exponent: float | str | None) -> Node | None:
        """Small powers as products and roots."""
        if exponent == 0.0:
            return self.constant(1.0)
        if exponent == 0.5:
            return self.apply("sqrt", base)
        if not isinstance(exponent, float) or not exponent.is_integer() or abs(exponent) > 8:
            return None
        if exponent < 0:
            return self.apply("div", self.constant(1.0), self.apply("pow", base, self.constant(-exponent)))
        half = self.apply("pow", base, self.constant(exponent // 2)) if exponent > 1 else self.constant(1.0)
        square = self.apply("mul", half, half)
        return self.apply("mul", square, base) if exponent % 2 else square


def walk(roots: Iterable[Node], stop: Callable[[Node], bool] = lambda node: False) -> list[Node]:
    """All that the roots are computed from, arguments first; nothing below a node where `stop` holds."""
    found: dict[int, Node] = {}
    pending = list(roots)
    while pending:
        node = pending.pop()
        if node.index not in found:
            found[node.index] = node
            if not stop(node):
                pending += node.args
    return [found[index] for index in sorted(found)]


def evaluate(roots: Sequence[Node], values: dict[str, object], table: dict[str, Callable[..., object]]) -> list[object]:
    """What the roots are where the inputs have `values`; `table` has a function for every operation."""
    known: dict[int, object] = {}
    for node in walk(roots):
        if node.op == "input":
            known[node.index] = values[str(node.value)]
        elif node.op == "constant":
            known[node.index] = node.value
        else:
            known[node.index] = table[node.op](*[known[arg.index] for arg in node.args])
    return [known[node.index] for node in roots]


def inputs_of(node: Node) -> frozenset[str]:
    """Names of the inputs that it depends on."""
    return frozenset(str(each.value) for each in walk([node]) if each.op == "input")
