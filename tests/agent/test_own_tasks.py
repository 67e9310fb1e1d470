"""Tasks that a function of the user's own makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from lifelong.agent import config as configs
from lifelong.agent.errors import ConfigError
from lifelong.agent.schema import schema

MODULE = """
def corridors(longest=3, name="maze"):
    for length in range(1, longest + 1):
        yield {"name": f"{name}{length}", "env": {"kind": "TMaze", "corridor": length}}

def endless():
    while True:
        yield {"env": "TMaze"}

def broken():
    return [1 / 0]

def nothing():
    return None

def strange():
    return [{"env": "TMaze", "hardness": 3}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_tasks", raising=False)
    (tmp_path / "my_tasks.py").write_text(MODULE)
    (tmp_path / "stream.yaml").write_text("stream: {tasks: {kind: my_tasks:corridors, longest: 4}}\n")
    return tmp_path


def test_what_the_function_yields_is_the_list_of_tasks(folder: Path) -> None:
    config = configs.choose(str(folder / "stream.yaml"), ["stream.tasks.name=hall"])
    assert [task.name for task in config.stream.tasks] == ["hall1", "hall2", "hall3", "hall4"]
    assert [task.env["corridor"] for task in config.stream.tasks] == [1, 2, 3, 4]
    (folder / "plain.yaml").write_text("stream: {tasks: my_tasks:corridors}\n")
    assert len(configs.choose(str(folder / "plain.yaml")).stream.tasks) == 3


def test_the_resolved_config_has_the_tasks_and_does_not_ask_again(folder: Path) -> None:
    config = configs.choose(str(folder / "stream.yaml"))
    (folder / "resolved.yaml").write_text(configs.to_yaml(config))
    (folder / "my_tasks.py").unlink()
    assert configs.load(str(folder / "resolved.yaml")) == config


def test_a_run_folder_does_not_run_such_a_function(folder: Path) -> None:
    (folder / "my_tasks.py").write_text("raise SystemExit('it was imported')\n")
    with pytest.raises(ConfigError, match=r"stream\.tasks is"):
        configs.load(str(folder / "stream.yaml"))


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        ("corridors", "must be a list of tasks, or module:function that gives one"),
        ("my_tasks:coridors", "nearest is corridors|did you mean|corridors"),
        ("my_modul:corridors", "there is no module 'my_modul'"),
        ("my_tasks:broken", r"my_tasks\.py:\d+: ZeroDivisionError"),
        ("my_tasks:nothing", "must return or yield mappings, one a task"),
        ("my_tasks:endless", "more than 10,000 tasks; let it end"),
        ("my_tasks:strange", r"hardness"),
        ("{kind: my_tasks:corridors, longst: 3}", "longst"),
    ],
)
def test_a_mistake_is_one_sentence(folder: Path, tasks: str, sentence: str) -> None:
    (folder / "wrong.yaml").write_text(
        f"stream: {{tasks: '{tasks}'}}\n" if "{" not in tasks else f"stream: {{tasks: {tasks}}}\n"
    )
    with pytest.raises(ConfigError, match=sentence) as caught:
        configs.choose(str(folder / "wrong.yaml"))
    assert "\n" not in str(caught.value)


def test_the_command_line_takes_it(folder: Path) -> None:
    words = [sys.executable, "-m", "lifelong.agent.cli", "show", "stream.yaml"]
    done = subprocess.run(words, cwd=folder, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "name: maze4" in done.stdout


@pytest.mark.parametrize("tasks", ["my:tasks", {"kind": "my:tasks", "longest": 3}, [{"env": "TMaze"}]])
def test_editors_accept_it(tasks: object) -> None:
    jsonschema.validate({"stream": {"tasks": tasks}}, schema())


def test_editors_refuse_a_word() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"stream": {"tasks": "tasks"}}, schema())
