"""What is computed where: outside the loop over steps, again where it is needed, or once and stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lifelong.kernels.compiler.graph import Node, inputs_of, walk
from lifelong.kernels.compiler.operations import cost

#: cycles per element that it takes to read a value that is there anyhow, and to write one and read it again later
LOAD, STORE = 0.5, 40.0
#: what a value must cost to be computed once before the loop over the steps instead of at each of them
WORTH_HOISTING = 3.0


def hoisted(roots: Sequence[Node], uniform: Callable[[str], bool], single: bool) -> list[Node]:
    """The largest parts of `roots` that depend on nothing but inputs that are `uniform` over the steps."""

    def is_uniform(node: Node) -> bool:
        return bool(node.args) and not node.logical and all(map(uniform, inputs_of(node)))

    def worth(node: Node) -> bool:
        return is_uniform(node) and sum(cost(each, single) for each in walk([node])) >= WORTH_HOISTING

    known = {node.index: worth(node) for node in walk(roots)}
    reached = walk(roots, stop=lambda node: known[node.index])
    return [node for node in reached if known[node.index]]


def available(
    roots: Sequence[Node], stored: Sequence[Node], candidates: Sequence[Node], outside: Sequence[Node], single: bool
) -> tuple[list[Node], list[Node]]:
    """What to read instead of computing it again for `roots`: `(of `stored`, of `candidates`)`.

    `stored` are values that the forward pass writes anyhow (the states), so that reading one costs only the reading;
    keeping one of the `candidates` costs storing it, too. `outside` is computed before the loop.
    """
    known = {node.index for node in outside}

    def total(more: int | None = None) -> float:
        reached = walk(roots, stop=lambda node: node.index in known or node.index == more)
        return sum(cost(node, single) for node in reached if node.index not in known and node.index != more)

    chosen: tuple[list[Node], list[Node]] = ([], [])
    for nodes, price, to in ((stored, LOAD, chosen[0]), (candidates, STORE, chosen[1])):
        for node in sorted(nodes, key=lambda node: -node.index):
            if node.args and node.index not in known and total() - total(node.index) > price:
                known.add(node.index)
                to.append(node)
    return chosen
