"""Docstrings have one form, and name arguments that are there; those of what `import lifelong` gives are whole."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lifelong

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("agent", "envs", "replay", "kernels") for path in (ROOT / folder).rglob("*.py"))
#: the headings that a docstring may have, in their order
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example", "Source")
HEADING = re.compile(r"^([A-Z][a-z]+):$", re.MULTILINE)
PUBLIC = [name for name in lifelong.__all__ if callable(getattr(lifelong, name))]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def told(doc: str) -> list[str]:
    """What the section `Args` of a docstring names."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", doc + "\n", re.MULTILINE)
    names = re.findall(r"^ {4}(?! )([*\w, ]+):", section[1], re.MULTILINE) if section else []
    return [name.strip("* ") for line in names for name in line.split(",")]


def parameters(node: Function) -> list[str]:
    spec = node.args
    names = [a.arg for a in [*spec.posonlyargs, *spec.args, *([spec.vararg] if spec.vararg else []), *spec.kwonlyargs]]
    names += [spec.kwarg.arg] if spec.kwarg else []
    return [name for name in names if name != "self"]


def documented(tree: ast.AST) -> Iterator[tuple[str, str, list[str] | None]]:
    """Name, docstring, and what may be named under `Args` (None: anything), of all that has a docstring."""
    for node in ast.walk(tree):
        if isinstance(node, Function) and (doc := ast.get_docstring(node)):
            yield node.name, doc, parameters(node)
        elif isinstance(node, ast.ClassDef) and (doc := ast.get_docstring(node)):
            body = {child.name: child for child in node.body if isinstance(child, Function)}
            fields = [a.target.id for a in node.body if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name)]
            inherits = node.bases and not node.decorator_list  # its parameters may be those of its base
            own = parameters(body["__init__"]) if "__init__" in body else fields
            yield node.name, doc, None if inherits and "__init__" not in body else own


@pytest.mark.parametrize("folder", ["agent", "envs", "replay", "kernels"])
def test_sections_have_their_order_and_name_parameters_that_are_there(folder: str) -> None:
    wrong, seen = [], 0
    for path in FILES:
        if path.relative_to(ROOT).parts[0] != folder:
            continue
        for name, doc, known in documented(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}: {name}"
            places = [SECTIONS.index(found) for found in HEADING.findall(doc) if found in SECTIONS]
            seen += bool(places)
            if places != sorted(set(places)):
                wrong.append(f"{where}: its sections stand in another order than {', '.join(SECTIONS)}")
            if known is not None and (stale := [arg for arg in told(doc) if arg not in known]):
                wrong.append(f"{where}: no parameter {', '.join(stale)}")
    assert not wrong, "\n".join(wrong)
    assert seen > 3


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented_whole(name: str) -> None:
    part: Any = getattr(lifelong, name)
    doc = inspect.getdoc(part) or ""
    assert doc
    if inspect.isclass(part):
        own = [
            (key, member)
            for base in part.__mro__
            if base.__module__.startswith("lifelong")
            for key, member in vars(base).items()
        ]
        bare = [
            key
            for key, member in own
            if not key.startswith("_")
            and (callable(member) or isinstance(member, property | classmethod | staticmethod))
            and not inspect.isclass(member)
            and not inspect.getdoc(getattr(part, key))
        ]
        assert not bare, f"{name} has no docstring of {', '.join(bare)}"
        return
    signature = inspect.signature(part)
    assert told(doc) == list(signature.parameters)
    assert "Raises:" in doc and "Example:" in doc
    assert signature.return_annotation in (None, "None") or "Returns:" in doc
