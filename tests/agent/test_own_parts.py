"""Parts of the user's own: where they are looked for, whom an error blames, whose code is run without a question."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lifelong.agent import config as configs
from lifelong.agent import registry
from lifelong.agent.cli import main
from lifelong.agent.errors import ConfigError

SMALL = [
    "rollout={copies: 2, steps: 4}",
    "policy.cell={kind: elstm, size: 4}",
    "stream.steps_per_task=16",
    "evaluation={every: 1000000, episodes: 1, max_steps: 4}",
]

OWN = """
from lifelong.agent.strategies.base import Strategy

class Fine(Strategy):
    def __init__(self, *, amount: int = 3, anything=None, more={}):
        pass

class Raises(Strategy):
    def __init__(self):
        {}["missing"]

class Leaves(Strategy):
    def __init__(self):
        raise SystemExit("bye")

class Late(Strategy):
    def setup(self, ctx, seed):
        raise RuntimeError("too late")

class Other:
    def __init__(self):
        open("constructed", "w")

function = len
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder of its own, with the path and the modules of Python as they were afterwards."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def write(folder: Path, strategy: str, **modules: str) -> Path:
    """A config that names `strategy`, with modules of the user's own beside it."""
    folder.mkdir(exist_ok=True)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    path = folder / "x.yaml"
    path.write_text(f"stream: {{tasks: [{{env: TMaze}}]}}\nstrategy: {{kind: {strategy}}}\n")
    return path


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("own_parts:Raises", ["own_parts.py:10", "KeyError", "missing"]),
        ("own_parts:Leaves", ["own_parts.py:14", "SystemExit", "bye"]),
        ("own_parts:Late", ["own_parts.py:18", "RuntimeError", "too late"]),
        ("own_parts:Other", ["class Other", "Strategy"]),
        ("own_parts:function", ["builtin_function_or_method", "Strategy"]),
        ("own_parts:Fin", ["'Fin'", "did you mean 'Fine'"]),
        ("'own_parts:'", ["''", "Fine"]),
        ("own_syntax:A", ["own_syntax.py:2", "SyntaxError"]),
        ("own_exit:A", ["own_exit.py:2", "SystemExit"]),
        ("own_import:A", ["own_import.py:1", "No module named 'own'"]),
        ("own_getattr:A", ["own_getattr.py:2", "RuntimeError", "hm"]),
        ("own_endless:A", ["own_endless.py:1", "RecursionError"]),
        ("own_missing:A", ["'own_missing'", "looked in", "beside", "installed packages"]),
        ("':A'", ["Empty module name"]),
    ],
)
def test_what_is_wrong_with_a_part_is_one_sentence_with_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], strategy: str, words: list[str]
) -> None:
    path = write(
        tmp_path / "beside",
        strategy,
        own_parts=OWN,
        own_syntax="x = 1\ndef f(:\n",
        own_exit="import sys\nsys.exit(3)\n",
        own_import="import own\n",  # a beginning of its own name
        own_getattr="def __getattr__(name):\n    raise RuntimeError('hm')\n",
        own_endless="def f(): f()\nf()\n",
    )
    assert main(["run", str(path), *SMALL, "--quiet"]) == 2
    told = capsys.readouterr().err.strip()
    assert all(word in told for word in words), told
    assert len(told) <= 300 and "\n" not in told and "Traceback" not in told
    assert not Path("runs").exists() and not Path("constructed").exists()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("strategy", "timeit:Timer"),
        ("optimizer", "tarfile:TarFile"),
        ("schedule", "smtplib:SMTP"),
        *((kind, "subprocess:Popen") for kind in registry.BASES),
        ("cell", "lifelong.agent.modules.encoders:MLP"),
    ],
)
def test_nothing_is_constructed_that_is_no_part_of_its_kind(kind: str, name: str) -> None:
    with pytest.raises(ConfigError, match="no subclass of"):
        registry.load(kind, name)


@pytest.fixture
def foreign_run(tmp_path: Path) -> Path:
    """A run whose strategy stood beside its config."""
    path = write(tmp_path / "beside", "own_parts:Fine, amount: 1e3, anything: [1], more: 2", own_parts=OWN)
    assert main(["run", str(path), *SMALL, "--quiet", "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize("command", ["resume", "eval"])
def test_a_run_folder_runs_code_of_its_own_only_when_it_is_trusted(
    foreign_run: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    sys.path[:] = [folder for folder in sys.path if "beside" not in folder]
    del sys.modules["own_parts"]
    capsys.readouterr()
    assert main([command, str(foreign_run)]) == 2
    told = capsys.readouterr().err
    assert "own_parts:Fine" in told and "--trust" in told and "own_parts" not in sys.modules
    assert main([command, str(foreign_run), "--trust"]) == 0  # found from another folder, too
    assert "own_parts" in sys.modules


def test_a_run_folder_without_foreign_parts_cannot_stand_in_for_a_missing_package(tmp_path: Path) -> None:
    """An optional package that is not installed would be imported from a folder that `modules` names."""
    evil = tmp_path / "evil"
    config = configs.check({"stream": {"tasks": [{"env": "TMaze"}]}, "modules": [str(evil)]})
    configs.find_own_modules(config)
    assert str(evil) not in sys.path and str(Path.cwd()) not in sys.path
    config.strategy = [{"kind": "own_parts:Fine"}]
    configs.find_own_modules(config)
    assert str(evil) in sys.path


def test_no_question_is_asked_for_a_run_of_registered_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "beside", "finetune", own_parts=OWN)
    assert main(["run", str(path), *SMALL, "--quiet", "--out", str(tmp_path / "run")]) == 0
    shutil.rmtree(tmp_path / "beside")
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert "--trust" not in capsys.readouterr().err


def test_wrappers_of_the_users_own_are_foreign_parts() -> None:
    wrappers = [{"kind": "TimeLimit", "max_episode_steps": 9}, {"kind": "one:A"}, "two:B", "frame_stack"]
    env = {"kind": "gymnasium", "id": "CartPole-v1", "wrappers": wrappers}
    config = configs.check({"stream": {"tasks": [{"env": env}]}})
    assert configs.foreign_parts(config) == ["one:A", "two:B"]
