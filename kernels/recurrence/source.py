"""Writes the C of recurrences: functions of a row of units, and around them the loops of `sequence.c` and `carry.c`."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lifelong.kernels.compiler.emit import C, statements
from lifelong.kernels.compiler.graph import Node, walk
from lifelong.kernels.compiler.operations import cost
from lifelong.kernels.compiler.plan import available, hoisted
from lifelong.kernels.recurrence.program import Program

ROWS, NARROW, UNITS = 4, 16, 64  # copies per block, widest input of the fused advance, units of one of its tiles
LOOPS = ("sequence.c", "carry.c")
_FOLDER = Path(__file__).parent
_EXPENSIVE = 12.0  # what a value must cost before it is asked whether to store it


class Layout:
    """What of a program is computed before the loop (`hoisted`), read again (`stored`) and stored for that (`kept`, if
    anything may be)."""

    def __init__(self, program: Program, single: bool, keep: bool = True) -> None:
        self.program = program
        local = [node for rows in (program.J, program.l, program.k) for row in rows for node in row if node]
        back = [node for node in (*program.du, *program.dv, *program.dp) if node]
        self.hoisted = hoisted([*program.after, *local, *back], lambda name: name.startswith("v"), single)
        expensive = [node for node in walk(program.after) if keep and cost(node, single) >= _EXPENSIVE]
        self.stored, self.kept = available(back, program.after, expensive, self.hoisted, single)


def source(layouts: Mapping[str, Layout], loops: Sequence[str] = LOOPS) -> str:
    """The C of programs, the names of whose functions begin with their keys; `loops` are the files around the rows."""
    parts = [(_FOLDER.parent / "compiler" / "elementwise.h").read_text()]
    for name, layout in layouts.items():
        program = layout.program
        numbers = {"PARTS": program.parts, "GATES": program.gates, "VECTORS": program.vectors}
        numbers |= {"CARRIED": program.carried, "HOISTED": len(layout.hoisted), "KEPT": len(layout.kept)}
        numbers |= {"ROWS": ROWS, "NARROW": NARROW, "UNITS": UNITS}
        text = "\n".join([*rows(layout), *map(_text, loops)]).replace("RECURRENCE_", f"{name}_")
        parts.append(re.sub(rf"\b({'|'.join(numbers)})\b", lambda found, n=numbers: str(n[found[0]]), text))  # type: ignore[misc]
    return "\n".join(parts)


@functools.cache
def _text(file: str) -> str:
    return (_FOLDER / file).read_text()


def rows(layout: Layout) -> list[str]:
    """The functions of a row of units: what is hoisted, forward, backward, local derivatives, and J s + l."""
    program = layout.program
    products = [_products("mix", program.parts, 1), _products("outer", program.parts, program.gates)]
    return [_hoist(layout), _forward(layout), _backward(layout), _local(layout), *products]


class _Row:
    """The text of one function, a loop over n."""

    def __init__(
        self, name: str, parameters: str, layout: Layout, *, tile: str = "stride", hoisted: bool = True
    ) -> None:
        self.head = f"SHARED RECURRENCE_{name}(i64 width, {parameters}) {{"
        self.pointers: list[str] = []
        self.reads: dict[int, str] = {}
        self.leaves: dict[int, str] = {}
        self.outputs: list[tuple[str, Node]] = []
        self.zeros: list[str] = []
        program = layout.program
        weights = (("w", layout.hoisted),) if hoisted else ()
        for letter, nodes, stride in (
            ("u", program.u, tile),
            ("v", program.v, "stride"),
            *(((*w, "stride")) for w in weights),
        ):
            for i, node in enumerate(nodes):
                self.read(node, f"{letter}{i}", _at(letter, i, stride))

    def read(self, node: Node, name: str, place: str) -> None:
        """The node has the value that lies at `place`, which is read if something needs it."""
        self.leaves[node.index], self.reads[node.index] = name, f"        const real {name} = {place};"

    def pointer(self, name: str, place: str, kind: str = "const real") -> None:
        self.pointers.append(f"    {kind} *restrict {name} = {place};")

    def write(self, place: str, node: Node | None) -> None:
        """Put the node at `place`; zero if there is none."""
        if node is None:
            self.zeros.append(f"        {place.format('0')};")
        else:
            self.outputs.append((place, node))

    def text(self) -> str:
        lines = statements(self.outputs, self.leaves, "        ", C)
        order = walk([node for _, node in self.outputs], stop=lambda node: node.index in self.leaves)
        reads = [self.reads[node.index] for node in order if node.index in self.reads]
        used = "\n".join([*reads, *lines, *self.zeros])
        pointers = [line for line in self.pointers if re.search(rf"\b{line.split()[-3]}\b", used.replace("*", ""))]
        loop = ["#pragma omp simd", "    for (i64 n = 0; n < width; n++) {", *reads, *lines, *self.zeros, "    }"]
        return "\n".join([self.head, *pointers, *(loop if lines or self.zeros else []), "}"])


def _at(array: str, row: int, stride: str) -> str:
    if row == 0:
        return f"{array}[n]"
    return f"{array}[{stride} + n]" if row == 1 else f"{array}[{row} * {stride} + n]"


def _hoist(layout: Layout) -> str:
    row = _Row("hoist", "const real *restrict v, real *restrict w", layout, hoisted=False)
    row.head = row.head.replace("{", "{\n    i64 stride = width;", 1)
    for i, node in enumerate(layout.hoisted):
        row.write(f"{_at('w', i, 'stride')} = {{}}", node)
    return row.text()


def _forward(layout: Layout) -> str:
    row = _Row(
        "forward_row",
        "i64 stride, const real *restrict u, const real *restrict v, const real *restrict w,\n"
        "    const real *const *before, real *const *after, real *restrict kept",
        layout,
    )
    for i, node in enumerate(layout.program.p):
        row.pointer(f"p{i}_", f"before[{i}]")
        row.read(node, f"p{i}", f"p{i}_[n]")
    for i, node in enumerate(layout.program.after):
        row.pointer(f"a{i}", f"after[{i}]", "real")
        row.write(f"a{i}[n] = {{}}", node)
    for i, node in enumerate(layout.kept):
        row.write(f"{_at('kept', i, 'stride')} = {{}}", node)
    return row.text()


def _backward(layout: Layout) -> str:
    program = layout.program
    row = _Row(
        "backward_row",
        "i64 stride, real keep, const real *restrict u, const real *restrict v,\n"
        "    const real *restrict w, const real *const *before, const real *const *after, const real *restrict kept,\n"
        "    const real *const *e, real *restrict running, real *restrict du, real *restrict dv",
        layout,
    )
    for i, node in enumerate(program.p):
        row.pointer(f"p{i}_", f"before[{i}]")
        row.read(node, f"p{i}", f"p{i}_[n]")
    for node in layout.stored:
        i = program.after.index(node)
        row.pointer(f"a{i}_", f"after[{i}]")
        row.read(node, f"a{i}", f"a{i}_[n]")
    for i, node in enumerate(layout.kept):
        row.read(node, f"k{i}", _at("kept", i, "stride"))
    for i, node in enumerate(program.d):
        row.pointer(f"e{i}", f"e[{i}]")
        row.read(node, f"d{i}", f"{_at('running', i, 'stride')} + e{i}[n]")
    for i, grad in enumerate(program.du):
        row.write(f"{_at('du', i, 'stride')} = {{}}", grad)
    for i, grad in enumerate(program.dv):
        if grad is not None:
            row.write(f"{_at('dv', i, 'stride')} += {{}}", grad)
    for i, grad in enumerate(program.dp):
        row.write(f"{_at('running', i, 'stride')} = {'keep * ({})' if grad else '{}'}", grad)
    return row.text()


def _local(layout: Layout) -> str:
    program = layout.program
    row = _Row(
        "local_row",
        "i64 tile, i64 stride, real keep, const real *restrict u, const real *restrict v,\n"
        "    const real *restrict w, const real *const *before, real *restrict J, real *restrict l, real *restrict k",
        layout,
        tile="tile",
    )
    for i, node in enumerate(program.p):
        row.pointer(f"p{i}_", f"before[{i}]")
        row.read(node, f"p{i}", f"p{i}_[n]")
    for name, table, factor in (("J", program.J, "keep * ({})"), ("l", program.l, "{}"), ("k", program.k, "{}")):
        flat: Sequence[Node | None] = [node for line in table for node in line]
        for i, each in enumerate(flat):
            row.write(f"{_at(name, i, 'tile')} = {factor if each else '{}'}", each)
    return row.text()


def _products(name: str, parts: int, gates: int) -> str:
    """s[i,g,d] <- sum_j J[i,j] s[j,g,d] + x[d] l[i,g] for all d: row (i, g, d) of s lies i * rows + g * NARROW + d
    strides from its start, row (i, g) of l i * each + g."""
    lines = [
        f"SHARED RECURRENCE_{name}(i64 width, i64 stride, i64 D, const real *restrict x, i64 rows, i64 each,\n"
        "    const real *restrict J, const real *restrict l, real *restrict s) {",
        "    for (i64 d = 0; d < D; d++, s += stride) {",
        "        const real scale = x[d];",
    ]
    both = [(i, g) for i in range(parts) for g in range(gates)]
    for i, g in both:
        lines.append(f"        real *restrict s{i}{g} = s + ({i} * rows + {g} * NARROW) * stride;")
        lines.append(f"        const real *restrict l{i}{g} = l + ({i} * each + {g}) * stride;")
    lines += ["#pragma omp simd", "        for (i64 n = 0; n < width; n++) {"]
    for i in range(parts):
        lines += [f"            const real j{i}{j} = {_at('J', i * parts + j, 'stride')};" for j in range(parts)]
    lines += [f"            const real s{i}{g}_ = s{i}{g}[n];" for i, g in both]
    for i, g in both:
        sums = " + ".join(f"j{i}{j} * s{j}{g}_" for j in range(parts))
        lines.append(f"            s{i}{g}[n] = {sums} + scale * l{i}{g}[n];")
    return "\n".join([*lines, "        }", "    }", "}"])
