"""Writes the Triton of recurrences: a program owns one copy and a block of units, and walks the steps with the state in
registers. What depends on weights alone is computed before its loop."""

from __future__ import annotations

from collections.abc import Sequence

from lifelong.kernels.compiler.emit import TRITON, statements
from lifelong.kernels.compiler.graph import Node, walk
from lifelong.kernels.recurrence.source import Layout

_BEGIN = """    n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N"""


class _Kernel:
    """The text of one kernel: what it loads before its loop, and what it computes in a step."""

    def __init__(self, layout: Layout, roots: Sequence[Node | None], leaves: dict[int, str]) -> None:
        self.layout, self.program = layout, layout.program
        self.roots = [node for node in roots if node is not None]
        self.leaves = leaves | {node.index: f"w{i}" for i, node in enumerate(layout.hoisted)}
        self.leaves |= {node.index: f"u{i}" for i, node in enumerate(self.program.u)}
        self.leaves |= {node.index: f"v{i}" for i, node in enumerate(self.program.v)}
        self.needed = {node.index for node in walk(self.roots, stop=lambda node: node.index in self.leaves)}

    def weights(self) -> list[str]:
        """The weights, and what depends on them alone."""
        hoisted = [(i, node) for i, node in enumerate(self.layout.hoisted) if node.index in self.needed]
        inside = {node.index for node in walk([node for _, node in hoisted])}
        lines = [
            f"    v{i} = {_load('v_ptr', f'{i} * N + n')}"
            for i, node in enumerate(self.program.v)
            if node.index in self.needed or node.index in inside
        ]
        leaves = {node.index: f"v{i}" for i, node in enumerate(self.program.v)}
        outputs = [(f"w{i} = {{}}", node) for i, node in hoisted]
        return lines + statements(outputs, leaves, "    ", TRITON, prefix="s")

    def drives(self, indent: str) -> list[str]:
        return [
            f"{indent}u{i} = {_load('u_ptr', f'(row * {self.program.gates} + {i}) * N + n')}"
            for i, node in enumerate(self.program.u)
            if node.index in self.needed
        ]

    def compute(self, outputs: Sequence[tuple[str, Node | None]], indent: str) -> list[str]:
        """The outputs; what is no block of numbers yet is made one."""
        some = [(place, node) for place, node in outputs if node is not None]
        lines = statements(some, self.leaves, indent, TRITON) if some else []
        zero = "tl.zeros([BLOCK], tl.float32)"
        for at, (_, node) in enumerate(some, len(lines) - len(some)):
            if not any(each.op == "input" for each in walk([node])):
                lines[at] = f"{lines[at]} + {zero}"
        return lines + [f"{indent}{place.format(zero)}" for place, node in outputs if node is None]


def _load(pointer: str, offset: str) -> str:
    return f"tl.load({pointer} + {offset}, mask, 0.0)"


def _reset(parts: int, indent: str) -> list[str]:
    return [f"{indent}reset = tl.load(init_ptr + row) != 0"] + [
        f"{indent}p{i} = tl.where(reset, 0.0, p{i})" for i in range(parts)
    ]


def source(layout: Layout) -> str:
    """The kernels `forward`, `backward` and `local` of a program."""
    return "\n\n\n".join([_forward(layout), _backward(layout), _local(layout)]) + "\n"


def _forward(layout: Layout) -> str:
    program, P = layout.program, layout.program.parts
    kernel = _Kernel(layout, program.after, {node.index: f"p{i}" for i, node in enumerate(program.p)})
    lines = [
        "@triton.jit",
        "def forward(u_ptr, v_ptr, first_ptr, init_ptr, after_ptr, T, B, N, BLOCK: tl.constexpr):",
        "    b = tl.program_id(0).to(tl.int64)",
        _BEGIN,
        *kernel.weights(),
        *[f"    p{i} = {_load('first_ptr', f'(b * {P} + {i}) * N + n')}" for i in range(P)],
        "    for t in range(T):",
        "        row = t * B + b",
        *_reset(P, "        "),
        *kernel.drives("        "),
        *kernel.compute([(f"a{i} = {{}}", node) for i, node in enumerate(program.after)], "        "),
    ]
    for i in range(P):
        lines += [f"        p{i} = a{i}", f"        tl.store(after_ptr + ({i} * T * B + row) * N + n, p{i}, mask)"]
    return "\n".join(lines)


def _backward(layout: Layout) -> str:
    program, P, K = layout.program, layout.program.parts, layout.program.vectors
    leaves = {node.index: f"p{i}" for i, node in enumerate(program.p)}
    leaves |= {node.index: f"d{i}" for i, node in enumerate(program.d)}
    stored = [(program.after.index(node), node) for node in layout.stored]
    leaves |= {node.index: f"a{i}" for i, node in stored}
    kernel = _Kernel(layout, [*program.du, *program.dv, *program.dp], leaves)
    edges = ", ".join(f"e{i}_ptr" for i in range(P))
    flags = ", ".join(f"HAS_E{i}: tl.constexpr" for i in range(P))
    lines = [
        "@triton.jit",
        f"def backward(u_ptr, v_ptr, first_ptr, init_ptr, after_ptr, {edges}, last_ptr, du_ptr, dv_ptr, dfirst_ptr,",
        f"             T, B, N, {flags}, HAS_LAST: tl.constexpr, BLOCK: tl.constexpr):",
        "    b = tl.program_id(0).to(tl.int64)",
        _BEGIN,
        *kernel.weights(),
        *[f"    r{i} = tl.zeros([BLOCK], tl.float32)" for i in range(P)],
        "    if HAS_LAST:",
        *[f"        r{i} += {_load('last_ptr', f'(b * {P} + {i}) * N + n')}" for i in range(P)],
        *[f"    dv{i} = tl.zeros([BLOCK], tl.float32)" for i in range(K)],
        "    for i in range(T):",
        "        row = (T - 1 - i) * B + b",
        "        if i == T - 1:",
        *[f"            p{i} = {_load('first_ptr', f'(b * {P} + {i}) * N + n')}" for i in range(P)],
        "        else:",
        *[f"            p{i} = {_load('after_ptr', f'({i} * T * B + row - B) * N + n')}" for i in range(P)],
        *_reset(P, "        "),
        *kernel.drives("        "),
        *[f"        a{i} = {_load('after_ptr', f'({i} * T * B + row) * N + n')}" for i, _ in stored],
    ]
    for i in range(P):
        lines += [f"        d{i} = r{i}", f"        if HAS_E{i}:"]
        lines += [f"            d{i} += {_load(f'e{i}_ptr', 'row * N + n')}"]
    outputs: list[tuple[str, Node | None]] = [(f"g{i} = {{}}", node) for i, node in enumerate(program.du)]
    outputs += [(f"dv{i} += {{}}", node) for i, node in enumerate(program.dv) if node is not None]
    outputs += [(f"r{i} = {{}}", node) for i, node in enumerate(program.dp)]
    lines += kernel.compute(outputs, "        ")
    for i in range(program.gates):
        lines.append(f"        tl.store(du_ptr + (row * {program.gates} + {i}) * N + n, g{i}, mask)")
    lines += [f"        r{i} = tl.where(reset, 0.0, r{i})" for i in range(P)]
    lines += [f"    tl.store(dv_ptr + (b * {K} + {i}) * N + n, dv{i}, mask)" for i in range(K)]
    lines += [f"    tl.store(dfirst_ptr + (b * {P} + {i}) * N + n, r{i}, mask)" for i in range(P)]
    return "\n".join(lines)


def _local(layout: Layout) -> str:
    program, P = layout.program, layout.program.parts
    leaves = {node.index: f"p{i}" for i, node in enumerate(program.p)}
    tables = {name: [node for line in getattr(program, name) for node in line] for name in ("J", "l", "k")}
    kernel = _Kernel(layout, [node for table in tables.values() for node in table], leaves)
    outputs = [(f"{name}{i} = {{}}", node) for name, table in tables.items() for i, node in enumerate(table)]
    lines = [
        "@triton.jit",
        "def local(u_ptr, v_ptr, state_ptr, init_ptr, J_ptr, l_ptr, k_ptr, N, BLOCK: tl.constexpr):",
        "    row = tl.program_id(0).to(tl.int64)",
        _BEGIN,
        *kernel.weights(),
        *[f"    p{i} = {_load('state_ptr', f'(row * {P} + {i}) * N + n')}" for i in range(P)],
        *_reset(P, "    "),
        *kernel.drives("    "),
        *kernel.compute(outputs, "    "),
        *[f"    J{i} = tl.where(reset, 0.0, J{i})" for i in range(P * P)],
    ]
    for name, table in tables.items():
        size = len(table)
        lines += [f"    tl.store({name}_ptr + (row * {size} + {i}) * N + n, {name}{i}, mask)" for i in range(size)]
    return "\n".join(lines)
