"""Follows a function of batched tensors, operation by operation, and gives the graph of what it does to one copy.

The function gets stand-ins for its tensors that have a shape and a type and no numbers. What torch is asked to do with
them arrives as operations of ATen (`torch.utils._python_dispatch`), whatever Python called them, and `rules` says what
each is to one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lifelong.kernels.compiler.graph import Graph
from lifelong.kernels.compiler.trace import Branching, Untraceable
from lifelong.kernels.transitions.rules import answer
from lifelong.kernels.transitions.tracer import Draw, Slot, Tracer
from lifelong.kernels.transitions.values import Indices, Value


@dataclass
class Trace:
    """What a function does to one copy."""

    graph: Graph
    indices: Indices
    inputs: dict[str, Slot]
    draws: list[Draw]
    #: constants that are read by a computed index, by their names in C
    tables: dict[str, Tensor]
    outputs: dict[str, Value] = field(default_factory=dict)


def trace(
    function: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    samples: Mapping[str, Tensor],
    copies: int,
    generator: torch.Generator,
) -> Trace:
    """The trace of `function(tensors by name)`, which gives tensors by name.

    Args:
        function: sees the copies only along the first axis of its tensors.
        samples: tensors like those that it gets; those whose first axis is `copies` long have a row for every copy.
        copies: a number that is the length of no other axis.
        generator: all random numbers come from it; it is seeded anew.

    Raises:
        Untraceable: an operation that is not known, or copies that see each other; the message names it.
        Branching: Python that depends on numbers.
    """
    graph = Graph(exact=True)
    tracer = Tracer(graph, copies, generator, answer)
    stand_ins = {name: tracer.input(name, sample) for name, sample in samples.items()}
    try:
        with torch.no_grad(), tracer:
            results = function(dict(stand_ins))
            outputs = {name: tracer.value(tensor) for name, tensor in results.items()}
    except (Untraceable, Branching):
        raise
    except Exception as error:
        for cause in (error.__cause__, error.__context__):
            if isinstance(cause, Untraceable | Branching):
                raise cause from error
        raise Untraceable(f"raises {type(error).__name__} when it is traced: {error}".split("\n")[0]) from error
    found = Trace(graph, tracer.indices, tracer.inputs, tracer.draws, tracer.tables)
    for name, value in outputs.items():
        if not value.shape or value.shape[0] != copies:
            raise Untraceable(f"gives {name} of shape {value.shape}, which has no row a copy")
        found.outputs[name] = value
    return found
