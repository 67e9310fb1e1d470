"""The README is true: its examples run, its commands and config keys are understood, its files are there."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from pathlib import Path
from typing import Any, get_type_hints

import gymnasium
import pytest

import lifelong
from lifelong.agent import cli, compare
from lifelong.agent import config as configs
from lifelong.agent.registry import REGISTRY
from lifelong.agent.sweep import plan as sweep_plan

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

TINY = """
stream:
  steps_per_task: 256
  tasks: [{name: one, env: %(env)s}]
policy: {encoder: identity, cell: %(cell)s}
gradient: rtrl
strategy: %(strategy)s
rollout: {copies: 8, steps: 8}
evaluation: {every: 1000, episodes: 4, max_steps: 32}
runtime: {device: cpu}
"""
KNOWN = {"env": "{kind: TMaze, corridor: 3}", "cell": "{kind: elstm, size: 4}", "strategy": "finetune"}
EXAMPLES = {
    "my_env.py": {"env": '{kind: "my_env:Bandit", chance: 0.8}'},
    "my_cell.py": {"cell": '{kind: "my_cell:MGU", size: 4}'},
    "my_strategy.py": {"strategy": '{kind: "my_strategy:L2Init", strength: 1e-4}'},
}


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def block_named(name: str) -> str:
    """The block whose first line is the comment `# name`."""
    (found,) = [b for b in blocks(README, r"\w+") if re.match(rf"# {re.escape(name)}\b", b)]
    return found


def commands(text: str) -> list[str]:
    """Every command line of `lifelong` in the bash blocks, without comments."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    return [line for line in lines if re.match(r"lifelong ", line)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_part_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = block_named(name)
    assert len(source.splitlines()) < 30
    (tmp_path / name).write_text(source)
    (tmp_path / "tiny.yaml").write_text(TINY % {**KNOWN, **EXAMPLES[name]})
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert cli.main(["run", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
        assert cli.main(["eval", str(tmp_path / "run"), "--trust"]) == 0  # its state survives a checkpoint
    finally:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_example_config_is_complete(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(block_named("my.yaml"))
    small = ["stream.steps_per_task=512", "evaluation.episodes=2", "rollout.copies=8", "runtime.device=cpu"]
    assert cli.main(["run", str(tmp_path / "my.yaml"), "--out", str(tmp_path / "run"), "--quiet", *small]) == 0


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (source,) = [b for b in blocks(README, "python") if not b.startswith("# my_")]
    assert "100_000" in source
    exec(compile(source.replace("100_000", "1_024"), "README.md", "exec"), {})
    assert (tmp_path / "runs/mine/summary.json").is_file()
    loop: dict[str, Any] = {"lifelong": lifelong, "gymnasium": gymnasium}
    exec(compile(block_named("my_loop.py"), "README.md", "exec"), loop)
    assert loop["env"].observation_space.contains(loop["obs"]) and loop["memory"] is not None
    source = block_named("my_agent.py")
    assert "10_000" in source and len(source.splitlines()) <= 12 + 1
    exec(compile(source.replace("10_000", "60"), "README.md", "exec"), loop)
    assert loop["agent"].report()["step"] == 56 and (tmp_path / "agent.pt").is_file()


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_python_examples_of_the_docs_run(page: Path) -> None:
    for source in blocks(page.read_text(), "python"):
        exec(compile(source, page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_is_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.yaml").write_text(block_named("my.yaml"))
    monkeypatch.chdir(tmp_path)
    for line in commands(page.read_text()):
        words = shlex.split(line, comments=True)
        words = words[words.index("lifelong") + 1 :]
        options, rest = cli.parser().parse_known_args(words)
        assert not [word for word in rest if word.startswith("-")], line
        if options.command in ("run", "show"):
            configs.load(options.config, options.overrides + rest)
        elif options.command in ("resume", "eval"):
            configs.load("quickstart", options.overrides + rest)
        elif options.command == "bench":
            assert (ROOT / "benchmarks" / f"{options.name}.py").is_file(), line
        elif options.command == "list" and options.kind:
            assert options.kind in {"config", "sweep", *REGISTRY}, line
        elif options.command == "compare":
            rows = compare.rows(options.overrides + rest, options.row)
            assert compare.plan(options.config, rows, range(1), tmp_path), line
        elif options.command == "sweep":
            sweep_plan.load(options.config, options.overrides + rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_config_key_exists(page: Path) -> None:
    top = {f.name for f in dataclasses.fields(configs.Config)}
    for key in set(re.findall(r"`((?:\w+\.)+\w+)(?:[=:][^`]*)?`", page.read_text())):
        steps = key.split(".")
        if steps[0] not in top or steps[-1] in ("py", "md", "yaml", "npz", "jsonl"):
            continue
        cls = configs.Config
        for step in steps:
            assert step in {f.name for f in dataclasses.fields(cls)}, f"{page.name}: {key} is no config key"
            hint = get_type_hints(cls)[step]
            if not dataclasses.is_dataclass(hint):
                break  # options of parts and lists are free
            cls = hint


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    text = page.read_text()
    folders = "agent|envs|replay|kernels|configs|tests|benchmarks|docs"
    named = set(re.findall(rf"`((?:{folders})/[\w./-]+)`", text))
    named |= set(re.findall(r"python (benchmarks/\w+\.py)", text))
    for path in named:
        assert (ROOT / path).exists(), f"{page.name} names {path}, which is not there"
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
