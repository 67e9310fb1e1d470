"""Reverse-mode differentiation of graphs."""

from __future__ import annotations

from collections.abc import Sequence

from lifelong.kernels.compiler.graph import Graph, Node, walk
from lifelong.kernels.compiler.operations import OPERATIONS


def gradients(
    graph: Graph, outputs: Sequence[Node], seeds: Sequence[Node | None], inputs: Sequence[Node]
) -> list[Node | None]:
    """The gradients of sum(seed * output) to the inputs; None where an input has no influence."""
    into: dict[int, Node] = {}

    def give(node: Node, grad: Node | None) -> None:
        if grad is not None:
            into[node.index] = graph.apply("add", into[node.index], grad) if node.index in into else grad

    for output, seed in zip(outputs, seeds, strict=True):
        give(output, seed)
    for node in reversed(walk(outputs)):
        derivative = OPERATIONS[node.op].derivative if node.args else None
        if derivative is not None and node.index in into:
            for arg, grad in zip(node.args, derivative(graph, node, into[node.index]), strict=True):
                give(arg, grad)
    return [into.get(node.index) for node in inputs]
