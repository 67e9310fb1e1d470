"""Writes statements that compute nodes of a graph for one element, in C or for a block of elements in Triton."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lifelong.kernels.compiler.graph import DOUBLE, REAL, Node, walk
from lifelong.kernels.compiler.operations import OPERATIONS, Operation

_LONG = 200  # characters from which on a truth value that is used more than once gets a name
_INLINE = 60  # characters up to which an expression that is used once is written where it is used


class Language(NamedTuple):
    """How a language writes things."""

    template: Callable[[Operation], str]  # of an operation
    literal: Callable[[float], str]
    declaration: str  # of {0} as {1}, a number of the type {2}
    end: str  # of a statement
    cast: str  # that makes a number of the type {1} of a literal
    load: str  # entry {1} of the array {0}


def _c_literal(value: float) -> str:
    if math.isnan(value):
        return "(real)NAN"
    if math.isinf(value):
        return "(real)INFINITY" if value > 0 else "(-(real)INFINITY)"
    text = str(int(abs(value))) if value.is_integer() and abs(value) < 1e6 else f"(real){abs(value)!r}"
    return text if math.copysign(1.0, value) > 0 else f"(-{text})"


def _triton_literal(value: float) -> str:
    if math.isnan(value) or math.isinf(value):
        return f'float("{value!r}")'
    return repr(value) if math.copysign(1.0, value) > 0 else f"({value!r})"


C = Language(lambda operation: operation.c, _c_literal, "const {2} {0} = {1}", ";", "({1})({0})", "{}[{}]")
TRITON = Language(lambda operation: operation.triton, _triton_literal, "{} = {}", "", "{}", "tl.load({} + {})")


def statements(
    outputs: Sequence[tuple[str, Node]], leaves: Mapping[int, str], indent: str, language: Language, prefix: str = "t"
) -> list[str]:
    """Lines that compute the nodes of `outputs` and put each where its text (`"du[n] = {}"`) says.

    `leaves` has the names of the nodes, by index, that are there already: inputs, and what was computed elsewhere. All
    of them must have been read before the first line, as the outputs may overwrite what they come from. Names of what
    is computed begin with `prefix`.
    """
    roots = [node for _, node in outputs]
    order = walk(roots, stop=lambda node: node.index in leaves)
    uses = Counter(arg.index for node in order if node.index not in leaves for arg in node.args)
    uses.update(node.index for node in roots)
    # what a truth value or a choice is made of gets a name, so that gcc finds a select and no branch
    named = {arg.index for node in order if node.logical or node.op == "where" for arg in node.args if not arg.logical}
    text: dict[int, str] = {}
    lines: list[str] = []
    for node in order:
        if node.index in leaves:
            text[node.index] = leaves[node.index]
        elif node.op == "constant":
            text[node.index] = literal(node, language)
        else:
            assert node.op != "input", f"the input {node.value} has no name"
            code = _expression(node, text, language)
            if _has_name(node, code, uses[node.index], node.index in named):
                text[node.index] = f"{prefix}{len(lines)}"
                lines.append(
                    f"{indent}{language.declaration.format(text[node.index], code, type_of(node))}{language.end}"
                )
            else:
                text[node.index] = code if _calls(node, language) and not node.logical else f"({code})"
    return lines + [f"{indent}{place.format(_bare(text[node.index]))}{language.end}" for place, node in outputs]


def _has_name(node: Node, code: str, uses: int, named: bool) -> bool:
    """Whether the node gets a line of its own. What is loaded does: an output may be written over it."""
    if node.op == "load":
        return True
    if node.logical:
        return uses > 1 and len(code) >= _LONG
    return (uses > 1 or named or len(code) > _INLINE) and node.op != "neg"


def _expression(node: Node, text: Mapping[int, str], language: Language) -> str:
    args = [text[arg.index] for arg in node.args]
    if node.op == "load":
        return language.load.format(node.value, _bare(args[0]))
    if node.op == "where" or (node.args and all(arg.op == "constant" for arg in node.args)):
        # 1 / 0 is infinite, if it is no division of integers
        cast = [language.cast.format(args[i], type_of(arg)) for i, arg in enumerate(node.args)]
        args = [cast[i] if arg.op == "constant" else args[i] for i, arg in enumerate(node.args)]
    if node.op in ("add", "sub"):  # products need no brackets in sums
        args = [
            _bare(arg) if node.args[i].op in ("mul", "div") or (i == 0 and node.args[i].op in ("add", "sub")) else arg
            for i, arg in enumerate(args)
        ]
    if _calls(node, language):
        args = [_bare(arg) for arg in args]
    return language.template(OPERATIONS[node.op]).format(*args)


def type_of(node: Node) -> str:
    """The type of its number in C."""
    return "int" if node.logical else node.kind


def literal(node: Node, language: Language = C) -> str:
    """A constant as it is written."""
    assert isinstance(node.value, int | float)
    if node.kind == DOUBLE:
        return f"({node.value!r})" if math.isfinite(node.value) else _c_literal(node.value).replace("real", "double")
    if node.kind == REAL:
        return language.literal(node.value)
    return str(node.value) if node.value >= 0 else f"({node.value})"


def _calls(node: Node, language: Language) -> bool:
    """Whether it is a function's call in that language, or a load."""
    return node.op == "load" or language.template(OPERATIONS[node.op]).endswith(")")


def _bare(text: str) -> str:
    """Without brackets around the whole."""
    if not text.startswith("("):
        return text
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[1:-1] if position == len(text) - 1 else text
    return text
