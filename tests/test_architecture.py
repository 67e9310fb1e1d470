"""The shape of the project: imports go down only, in no circle; the loop is short; every part is there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from lifelong.agent.registry import REGISTRY, load

ROOT = Path(__file__).parent.parent
#: floor -> the floors it may import from, itself included
MAY_IMPORT = {
    "agent": {"agent", "envs", "replay", "kernels", "configs"},
    "envs": {"envs", "kernels"},
    "replay": {"replay", "kernels"},
    "kernels": {"kernels"},
    "configs": set(),
}
FILES = sorted(path for floor in MAY_IMPORT for path in (ROOT / floor).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["lifelong", *(parts[:-1] if parts[-1] == "__init__" else parts)])


MODULES = {module_name(path): path for path in FILES}


def imported(tree: ast.AST, name: str) -> Iterator[str]:
    """Names of the modules that an AST imports, relative imports resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".")[: len(name.split(".")) - node.level + (MODULES[name].name == "__init__.py")]
                base = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:  # `from package import module` imports the module
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base


def without_types(path: Path) -> ast.Module:
    """The file without what is imported for type checkers only; what functions import counts."""

    class Strip(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.dump(node.test) else self.generic_visit(node)

    stripped: ast.Module = Strip().visit(ast.parse(path.read_text()))
    return stripped


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_imports_go_down_only(floor: str) -> None:
    wrong = []
    for name, path in MODULES.items():
        if name.split(".")[1] == floor:
            for target in imported(ast.parse(path.read_text()), name):
                top, *below = target.split(".")
                old_name = top in {*MAY_IMPORT, "tests", "benchmarks"}
                if old_name or (top == "lifelong" and below and below[0] not in MAY_IMPORT[floor]):
                    wrong.append(f"{name} imports {target}")
    assert not wrong, wrong
    assert any(name.split(".")[1] == floor for name in MODULES)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        name: {target for target in imported(without_types(path), name) if target in MODULES and target != name}
        for name, path in MODULES.items()
    }
    assert sum(map(len, graph.values())) > 50  # the walk sees imports
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_runtime_knows_nothing_of_ray() -> None:
    inside = {name: path for name, path in MODULES.items() if name.startswith("lifelong.agent.runtime.")}
    assert len(inside) > 10
    for name, path in inside.items():
        targets = set(imported(ast.parse(path.read_text()), name))
        assert not {t for t in targets if t.split(".")[0] == "ray" or "agent.distributed" in t}, name


def test_no_file_is_longer_than_500_lines() -> None:
    files = [*FILES, *(ROOT / "benchmarks").rglob("*.py"), ROOT / "setup.py"]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert len(lengths) > 100
    assert not {name: length for name, length in lengths.items() if length > 500}


def test_the_training_loop_fits_on_one_screen() -> None:
    path = ROOT / "agent/runtime/trainer.py"
    text = path.read_text()
    assert len(text.splitlines()) < 300
    methods = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    }
    assert methods["train"] < 60
    sentence = "stream -> env -> policy -> chunk -> objective -> gradients -> strategies -> optimiser -> log"
    assert sentence in text.splitlines()[0]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in REGISTRY.items() for name in names])
def test_every_registered_part_is_there_and_says_what_it_is(kind: str, name: str) -> None:
    if name == "envpool":
        pytest.importorskip("envpool")
    part = load(kind, name)
    assert isinstance(part, type) and part.__doc__


@pytest.mark.parametrize("kind", ["cell", "gradient", "strategy", "detector"])
def test_a_part_lies_in_the_file_of_its_name(kind: str) -> None:
    folder = {
        "cell": "lifelong.agent.cells",
        "gradient": "lifelong.agent.gradients",
        "strategy": "lifelong.agent.strategies",
        "detector": "lifelong.agent.detectors",
    }[kind]
    for name, target in REGISTRY[kind].items():
        assert target.partition(":")[0] == f"{folder}.{name}"
        assert (ROOT / folder.removeprefix("lifelong.").replace(".", "/") / f"{name}.py").is_file()
