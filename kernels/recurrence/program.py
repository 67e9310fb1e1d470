"""A traced recurrence and its derivatives, as graphs. Knows no language."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lifelong.kernels.compiler.derivatives import gradients
from lifelong.kernels.compiler.graph import Graph, Node, walk
from lifelong.kernels.compiler.trace import Untraceable, trace

PARTS = 8  # most parts of the state of a unit: the code of its Jacobian grows with the square


class Program:
    """What `kernels.recurrence` computes of one recurrence.

    Inputs are named u0 u1 ... (drives), v0 v1 ... (weights a unit, those of the carry first), p0 p1 ... (parts of the
    state before), d0 d1 ... (gradients to the parts after).
    """

    def __init__(
        self, graph: Graph, outputs: list[Node], gates: int, carried: int, extra: tuple[str, ...] = ()
    ) -> None:
        if not 1 <= len(outputs) <= PARTS:
            raise Untraceable(f"has a state of {len(outputs)} parts; the compiler takes 1 to {PARTS}")
        self.gates, self.carried, self.extra, self.parts = gates, carried, extra, len(outputs)
        self.vectors = carried + len(extra)
        #: (backend, dtype) -> what the backend made of it
        self.built: dict[tuple[str, torch.dtype], object] = {}
        self.u, self.v, self.p, self.d = (
            [graph.input(f"{letter}{i}") for i in range(count)]
            for letter, count in (("u", gates), ("v", self.vectors), ("p", self.parts), ("d", self.parts))
        )
        self.after = outputs
        #: gradients to the drives, the weights and the state before, given those to the parts after
        back = gradients(graph, outputs, self.d, [*self.u, *self.v, *self.p])
        self.du, self.dv = back[:gates], back[gates : gates + self.vectors]
        self.dp = back[gates + self.vectors :]
        #: derivatives of every part after by the state before, by the drives and by the weights of the carry
        inputs = [*self.p, *self.u, *self.v[:carried]]
        rows = [gradients(graph, [output], [graph.constant(1.0)], inputs) for output in outputs]
        self.J = [row[: self.parts] for row in rows]
        self.l = [row[self.parts : self.parts + gates] for row in rows]
        self.k = [row[self.parts + gates :] for row in rows]


_programs: dict[Any, Program] = {}


def traced(function: Callable[..., Any], module: nn.Module | None, gates: int, carried: int, parts: int) -> Program:
    """The program of `function([module,] drives, vectors, *parts)`.

    Raises:
        Untraceable, Branching: see `compiler.trace`.
    """
    arguments: list[str | tuple[str, ...]] = [
        tuple(f"u{i}" for i in range(gates)),
        tuple(f"v{i}" for i in range(carried)),
        *[f"p{i}" for i in range(parts)],
    ]
    graph, outputs, read = trace(function, arguments, module, lambda i: f"v{carried + i}")
    if len(outputs) != parts:
        raise Untraceable(f"gives {len(outputs)} parts of the state where {parts} are expected")
    key = (
        gates,
        carried,
        tuple(read),
        tuple((node.op, node.value, tuple(arg.index for arg in node.args)) for node in walk(outputs)),
        tuple(node.index for node in outputs),
    )
    if key not in _programs:
        _programs[key] = Program(graph, outputs, gates, carried, tuple(read))
    return _programs[key]
