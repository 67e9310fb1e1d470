"""Writes C statements that compute nodes of a graph for one element."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lifelong.kernels.compiler.graph import Node, walk
from lifelong.kernels.compiler.operations import OPERATIONS, literal

_INLINE = 60  # characters up to which an expression that is used once is written where it is used


def statements(outputs: Sequence[tuple[str, Node]], leaves: Mapping[int, str], indent: str = "        ") -> list[str]:
    """Lines that compute the nodes of `outputs` and put each where its text (`"du[n] = {}"`) says.

    `leaves` has the C names of the nodes, by index, that are there already: inputs, and what was computed elsewhere.
    All of them must have been read before the first line, as the outputs may overwrite what they come from.
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
            assert isinstance(node.value, float)
            text[node.index] = literal(node.value)
        else:
            assert node.op != "input", f"the input {node.value} has no name in C"
            code = expression(node, text)
            if node.logical:
                text[node.index] = f"({code})"
            elif (uses[node.index] > 1 or node.index in named or len(code) > _INLINE) and node.op != "neg":
                text[node.index] = f"t{len(lines)}"
                lines.append(f"{indent}const real t{len(lines)} = {code};")
            else:
                text[node.index] = code if _calls(node) else f"({code})"
    return lines + [f"{indent}{place.format(_bare(text[node.index]))};" for place, node in outputs]


def expression(node: Node, text: Mapping[int, str]) -> str:
    """The C expression of a node whose arguments are `text`."""
    args = [text[arg.index] for arg in node.args]
    if node.args and all(arg.op == "constant" for arg in node.args):
        args = [f"(real)({arg})" for arg in args]  # 1 / 0 is infinite, if it is no division of integers
    return OPERATIONS[node.op].c.format(*[_bare(arg) if _calls(node) else arg for arg in args])


def _calls(node: Node) -> bool:
    """Whether it is a function's call in C."""
    return OPERATIONS[node.op].c.endswith(")")


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
