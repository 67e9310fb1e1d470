"""The tutorial does what it says: its files are written and its commands run as they stand there, with fewer steps."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lifelong.agent import adding, cli

ROOT = Path(__file__).parent.parent
TUTORIAL = (ROOT / "docs/tutorial.md").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the tutorial in an empty folder, with a stream of two chunks a task."""
    for block in re.findall(r"```(?:python|yaml)\n(.*?)```", TUTORIAL, re.DOTALL):
        (name,) = re.findall(r"\A# (\S+)", block)
        (tmp_path / name).write_text(block)
    config = (tmp_path / "my.yaml").read_text()
    assert "steps_per_task: 60_000" in config and "episodes: 64" in config
    (tmp_path / "my.yaml").write_text(
        config.replace("60_000", "512").replace("15_000", "256").replace("episodes: 64", "episodes: 4")
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for module in ("my_env", "my_strategy"):
        sys.modules.pop(module, None)


def commands() -> list[list[str]]:
    lines = "".join(re.findall(r"```bash\n(.*?)```", TUTORIAL, re.DOTALL)).splitlines()
    return [shlex.split(line)[1:] for line in lines]


def test_files_and_commands_run_in_their_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show, run, compare = commands()
    assert [words[0] for words in (show, run, compare)] == ["show", "run", "compare"]
    assert cli.main(show) == 0
    assert re.search(r"stream.tasks.long.env.wait +12 +default 4", capsys.readouterr().out)
    assert cli.main([*run, "--quiet"]) == 0
    assert [task["name"] for task in json.loads(Path("runs/my/0/summary.json").read_text())["tasks"]] == [
        "short",
        "long",
    ]
    (own,) = [word for word in compare if word.startswith("strategy=")]
    *_, strategy = own.partition("=")[2].split(",")
    assert cli.main(["run", "my.yaml", f"strategy={strategy}", "--out", "own", "--quiet"]) == 0
    assert '"strategy/slowanchor/norm"' in Path("own/metrics.jsonl").read_text()
    assert cli.main(["eval", "own", "--trust"]) == 0  # what it keeps comes back from the checkpoint


@pytest.mark.slow
def test_the_comparison_of_the_tutorial_writes_its_page(folder: Path) -> None:
    assert cli.main(commands()[-1]) == 0
    assert "my_strategy:SlowAnchor" in Path("compare/my/report.html").read_text()


def test_the_task_that_is_added_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(# task.yaml\n.*?)```", (ROOT / "docs/resuming.md").read_text(), re.DOTALL)
    (tmp_path / "task.yaml").write_text(block)
    (tmp_path / "config.yaml").write_text((ROOT / "configs/quickstart.yaml").read_text())
    config = adding.load(tmp_path, [], [str(tmp_path / "task.yaml")])
    assert config.stream.tasks[-1].name == yaml.safe_load(block)["name"] and len(config.stream.tasks) == 4


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    beside = Path(sys.executable).parent / "zensical"
    zensical = str(beside) if beside.exists() else shutil.which("zensical")
    if zensical is None:
        pytest.skip("zensical is not installed; make docs installs it")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / ".links").symlink_to(ROOT / ".links")
    built = subprocess.run([zensical, "build", "--strict"], cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    assert "OnlineAgent" in (tmp_path / "site/api/index.html").read_text()
