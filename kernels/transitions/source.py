"""Writes the C of a traced step: a function that makes one step of B copies, a block of them at a time.

The copies of a block go through *stages*, a loop over them each. Between two stages the functions that only torch
computes to the last bit (sin, cos, ...) are called for the whole block. What is long (a history, a picture) is written
in loops over its entries, after the stages; all other results at the end, so that a state may be written over the one
it comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from lifelong.kernels.compiler.emit import C, literal, statements, type_of
from lifelong.kernels.compiler.graph import BOOL, INDEX, Graph, Node, walk
from lifelong.kernels.compiler.trace import Untraceable
from lifelong.kernels.transitions.functions import MODE
from lifelong.kernels.transitions.trace import Trace
from lifelong.kernels.transitions.tracer import Slot
from lifelong.kernels.transitions.values import COPY, KINDS, STORED, Index, Split, name_of

#: entries up to which a result is written out instead of in a loop; copies of a block; most statements of all
WRITTEN_OUT, BLOCK, LONGEST = 16, 128, 20_000
_HEADER = Path(__file__).parent.parent / "compiler" / "elementwise.h"
_SIDE = "    "


class Writer:
    """The C of one trace.

    Args:
        trace: what a step does.
        inputs: what the function may read, in the order of its arguments; then
        outputs: what it writes.

    Raises:
        Untraceable: it does too much for a copy.
    """

    def __init__(self, trace: Trace, inputs: Sequence[Slot], outputs: Sequence[Slot]) -> None:
        self.trace, self.graph, self.outputs = trace, trace.graph, outputs
        self.copy = trace.indices.batch.node
        self.short = [slot for slot in outputs if slot.size <= WRITTEN_OUT]
        self.long = [slot for slot in outputs if slot.size > WRITTEN_OUT]
        #: (statement, node) of every entry that is written out
        self.written: list[tuple[str, Node]] = []
        for slot in self.short:
            value = trace.outputs[slot.name]
            for entry in range(slot.size):
                self.written.append((self._place(slot, str(entry)), value.at(self._at(slot, entry))))
        self.loops = [self._loops(slot) for slot in self.long]
        roots = [node for _, node in self.written]
        self.inner = [node for loops in self.loops for loop in loops for node in loop.invariant()]
        self.nodes = walk([*roots, *self.inner])
        if len(self.nodes) > LONGEST:
            raise Untraceable(f"does {len(self.nodes)} operations a copy; up to {LONGEST} are compiled")
        self._stages()
        self.calls = [node for node in self.nodes if node.op == "call"]
        self.functions = sorted({str(node.value) for node in self.calls})
        everything = walk([*roots, *[loop.node for loops in self.loops for loop in loops]])
        read = {node.value for node in everything if node.op == "load"}
        self.inputs = [slot for slot in inputs if name_of(slot.name) in read]

    # ---- what is where -------------------------------------------------------------------------------------------

    def _at(self, slot: Slot, entry: int) -> tuple[Index, ...]:
        """The index of an entry of a copy."""
        indices, place = self.trace.indices, []
        for size in reversed(slot.shape):
            place.append(indices.number(entry % size))
            entry //= size
        return (indices.batch, *reversed(place))

    def _place(self, slot: Slot, entry: str) -> str:
        name = name_of(slot.name)
        at = COPY if slot.size == 1 else f"{slot.size} * {COPY} + {entry}"
        return f"to_{name}[{at}] = {{}}"

    def _unread(self, slot: Slot) -> list[str]:
        """Where a result goes that nobody reads."""
        name, kind = name_of(slot.name), STORED[slot.dtype]
        return [
            f"{_SIDE}{kind} no_{name}[BLOCK * {slot.size}];",
            f"{_SIDE}if (!to_{name}) to_{name} = no_{name} - first * {slot.size};",
        ]

    def _stages(self) -> None:
        """The stage in which each node is made: as late as it can be, so that little has to be kept."""
        level: dict[int, int] = {}
        for node in self.nodes:
            level[node.index] = max([level[arg.index] for arg in node.args], default=0) + (node.op == "call")
        self.last = max(level.values(), default=0)
        # what is written out comes after the loops, if there are any: all that it reads has been read before
        self.end = self.last + bool(self.long)
        self.stage = {node.index: self.last for node in [*self.inner, *[node for _, node in self.written]]}
        for node in reversed(self.nodes):
            if node.op == "call":
                self.stage[node.index] = level[node.index]
            needed = self.stage[node.index] - (node.op == "call")
            for arg in node.args:
                self.stage[arg.index] = min(self.stage.get(arg.index, self.last), needed)

    def _trivial(self, node: Node) -> bool:
        """Whether it is read or known where it is needed."""
        place = node.args[0] if node.op == "load" else node
        return all(
            each.op in ("input", "constant") or (each.kind == INDEX and each.op in ("add", "mul"))
            for each in walk([place])
        )

    # ---- text ----------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """The C, a template like a `cpu.c`."""
        kept = self._kept()
        arrays = {node.index: node for node in [*kept, *self.calls, *[call.args[0] for call in self.calls]]}
        body = [f"{_SIDE}{_stored(node)} k{index}[BLOCK];" for index, node in sorted(arrays.items())]
        body += [line for slot in self.short for line in self._unread(slot)]
        for stage in range(self.end + 1):
            if stage == self.end and self.long:
                body += self._long_text(arrays)
            made = [node for _, node in sorted(arrays.items()) if node.op != "call" and self.stage[node.index] == stage]
            outputs = [(f"k{node.index}[w] = {{}}", node) for node in made]
            outputs += self.written if stage == self.end else []
            known = {index for index, node in arrays.items() if self.stage[index] < stage + (node.op == "call")}
            body += self._stage(outputs, {index: f"k{index}[w]" for index in known} | {self.copy.index: COPY})
            for node in self.calls:
                if self.stage[node.index] == stage + 1:
                    place = self.functions.index(str(node.value))
                    body.append(f"{_SIDE}FN(call)({place}, n, k{node.args[0].index}, k{node.index});")
        return "\n".join([_HEADER.read_text(), self._head(), *body, "}", self._entry()])

    def _kept(self) -> list[Node]:
        """What later stages and the loops need of earlier ones."""
        needed = {node.index: node for node in self.inner if not self._trivial(node)}
        for node in self.nodes:
            for arg in node.args:
                if self.stage[arg.index] < self.stage[node.index] - (node.op == "call") and not self._trivial(arg):
                    needed[arg.index] = arg
        for _, node in self.written:
            if self.stage[node.index] < self.end and not (self._trivial(node) and node.op != "load"):
                needed[node.index] = node
        return [node for _, node in sorted(needed.items()) if node.op != "call"]

    def _stage(self, outputs: Sequence[tuple[str, Node]], leaves: dict[int, str]) -> list[str]:
        if not outputs:
            return []
        lines = statements(outputs, leaves, _SIDE * 2, C, prefix="t")
        loop = ["#pragma omp simd", f"{_SIDE}for (i64 w = 0; w < n; w++) {{", f"{_SIDE * 2}const i64 b = first + w;"]
        return [*loop, *lines, f"{_SIDE}}}"]

    # ---- long results --------------------------------------------------------------------------------------------

    def _loops(self, slot: Slot) -> list[_Loop]:
        """The loops that write a long result: cut where a `cat` goes over from one tensor to the next."""
        value, names = self.trace.outputs[slot.name], [f"i{axis}" for axis in range(len(slot.shape))]
        pending, found = [[(0, size) for size in slot.shape]], []
        while pending:
            ranges = pending.pop()
            indices = [self.trace.indices.loop(name, *each) for name, each in zip(names, ranges, strict=True)]
            try:
                node = value.at((self.trace.indices.batch, *indices))
            except Split as split:
                axis = names.index(split.name)
                (low, high), at = ranges[axis], split.at
                assert low < at < high
                pending += [[*ranges[:axis], part, *ranges[axis + 1 :]] for part in ((at, high), (low, at))]
                continue
            found.append(_Loop(slot, ranges, [index.node for index in indices], node))
        return found

    def _long_text(self, arrays: Iterable[int]) -> list[str]:
        leaves = {index: f"k{index}[w]" for index in arrays} | {self.copy.index: COPY}
        lines = [f"{_SIDE}for (i64 w = 0; w < n; w++) {{", f"{_SIDE * 2}const i64 b = first + w;"]
        copies = []
        for slot, loops in zip(self.long, self.loops, strict=True):
            name, size, kind = name_of(slot.name), slot.size, STORED[slot.dtype]
            target = f"to_{name}"
            if slot.name.startswith("state."):
                target = f"new_{name}"
                lines.append(f"{_SIDE * 2}{kind} *{target} = ({kind} *)(scratch + {self.offsets()[slot.name]});")
                copies.append(
                    f"{_SIDE * 2}if (to_{name}) memcpy(to_{name} + {size} * b, {target}, {size} * sizeof({kind}));"
                )
            else:
                target = f"(to_{name} + {size} * b)"
            lines.append(f"{_SIDE * 2}if (to_{name}) {{")
            for loop in loops:
                lines += loop.text(target, leaves)
            lines.append(f"{_SIDE * 2}}}")
        return [*lines, *copies, f"{_SIDE}}}"]

    def offsets(self) -> dict[str, int]:
        """Where in the scratch of a copy its long states lie, in bytes, and under "" how much there is."""
        found, total = {}, 0
        for slot in self.long:
            if slot.name.startswith("state."):
                found[slot.name] = total
                total += -(-slot.size * slot.dtype.itemsize // 64) * 64
        return {**found, "": total}

    # ---- around --------------------------------------------------------------------------------------------------

    def _parameters(self) -> list[str]:
        inputs = [f"const {STORED[slot.dtype]} *{name_of(slot.name)}" for slot in self.inputs]
        return [*inputs, *[f"{STORED[slot.dtype]} *to_{name_of(slot.name)}" for slot in self.outputs]]

    def _head(self) -> str:
        calls = ""
        if self.functions:
            calls = _CALLS.replace("COUNT", str(len(self.functions))).replace("MODE", str(MODE))
        tables = [_table(name, tensor) for name, tensor in self.trace.tables.items()]
        calls += "\n".join(tables)
        head = f"SHARED FN(block)(i64 first, i64 n, char *scratch, {', '.join(self._parameters())}) {{"
        return f"{calls}\n#define BLOCK {BLOCK}\n{head}"

    def _entry(self) -> str:
        arguments = ", ".join(f"p[{i}]" for i in range(len(self.inputs) + len(self.outputs)))
        return _ENTRY.replace("ARGUMENTS", arguments).replace("SCRATCH", str(max(1, self.offsets()[""])))


class _Loop:
    """A part of a long result: the entries whose index lies in `ranges`."""

    def __init__(self, slot: Slot, ranges: list[tuple[int, int]], counters: list[Node], node: Node) -> None:
        self.slot, self.ranges, self.counters, self.node = slot, ranges, counters, node
        running = {counter.index for counter in counters if counter.op == "input"}
        self.depends: dict[int, bool] = {}
        for each in walk([node]):
            self.depends[each.index] = each.index in running or any(self.depends[arg.index] for arg in each.args)
        for each in walk([node]):
            if each.op == "call" and self.depends[each.index]:
                raise Untraceable(
                    f"uses torch.{each.value} of {slot.size} numbers a copy; up to {WRITTEN_OUT} are known"
                )

    def invariant(self) -> list[Node]:
        """What does not change in it, but for what is known anyhow."""
        stop = walk([self.node], stop=lambda node: not self.depends[node.index])
        return [node for node in stop if not self.depends[node.index] and node.op not in ("constant", "input")]

    def text(self, target: str, leaves: dict[int, str]) -> list[str]:
        """Nested loops."""
        lines, side, place = [], _SIDE * 3, ""
        for axis, ((low, high), counter) in enumerate(zip(self.ranges, self.counters, strict=True)):
            name = str(low)
            if counter.op == "input":
                name = str(counter.value)
                leaves = leaves | {counter.index: name}
                lines.append(f"{side}for (i64 {name} = {low}; {name} < {high}; {name}++)")
                side += _SIDE
            place = name if axis == 0 else f"({place}) * {self.slot.shape[axis]} + {name}"
        lines.append(f"{side}{{")
        lines += statements([(f"{target}[{place}] = {{}}", self.node)], leaves, side + _SIDE, C)
        return [*lines, f"{side}}}"]


def _table(name: str, tensor: Tensor) -> str:
    """A constant that is read by a computed index."""
    kind = KINDS[tensor.dtype]
    graph = Graph(exact=True)
    numbers = ", ".join(literal(graph.constant(number, kind)) for number in tensor.flatten().tolist())
    return f"static const {STORED[tensor.dtype]} {name}[{max(1, tensor.numel())}] = {{{numbers or 0}}};"


def _stored(node: Node) -> str:
    return "uint8_t" if node.kind == BOOL else type_of(node)


_CALLS = """
/* Functions that torch computes in its own way: of the vector library it was built with, or torch itself. */
typedef void (*FN(vector_function))(i64, const real *, real *, i64);
typedef void (*FN(asking_function))(i64, const real *, real *);
static FN(vector_function) FN(vector)[COUNT];
static FN(asking_function) FN(asking)[COUNT];
void FN(transition_bind)(i64 place, void *vector, void *asking) {
    FN(vector)[place] = (FN(vector_function))vector;
    FN(asking)[place] = (FN(asking_function))asking;
}
/* The library shares even short vectors among threads, which takes longer than they do; this says how many it may. */
static int (*FN(team))(int);
void FN(transition_team)(void *team) { FN(team) = (int (*)(int))team; }
static void FN(call)(i64 place, i64 n, const real *x, real *y) {
    if (FN(vector)[place]) {
        const int had = FN(team) ? FN(team)(1) : 0;
        FN(vector)[place](n, x, y, MODE);
        if (FN(team)) FN(team)(had);
    } else FN(asking)[place](n, x, y);
}
"""
_ENTRY = """
/* s: copies, threads. p: inputs, then outputs, of which any may be NULL. */
void FN(transition)(const i64 *s, void *const *p) {
    const i64 B = s[0], blocks = (B + BLOCK - 1) / BLOCK, threads = s[1] < blocks ? s[1] : blocks;
#pragma omp parallel for schedule(static) num_threads((int)threads) if (threads > 1)
    for (i64 block = 0; block < blocks; block++) {
        const i64 first = block * BLOCK, n = MIN(BLOCK, B - first);
        char small[4096], *scratch = SCRATCH > sizeof small ? malloc(SCRATCH) : small;
        FN(block)(first, n, scratch, ARGUMENTS);
        if (scratch != small) free(scratch);
    }
}
"""
