"""What is built from this repository, and fresh environments for it: for test_package.py and `make check-install`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("agent", "envs", "replay", "kernels", "configs")
#: a run of a few seconds: the bundled quickstart, its three tasks cut short
TINY_RUN = ("run", "quickstart", "--quiet", "stream.steps_per_task=2048", "evaluation.episodes=2", "runtime.device=cpu")


class CommandError(Exception):
    """A command failed; the message is the command and the end of what it wrote."""


def command(*words: object, cwd: Path | None = None) -> str:
    """What a command writes to standard output; it sees no PYTHONPATH.

    Raises:
        CommandError: if it cannot be started or ends with another code than 0.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    line = [str(word) for word in words]
    try:
        answer = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    except OSError as problem:
        raise CommandError(f"{line[0]}: {problem}") from problem
    if answer.returncode:
        raise CommandError(f"{' '.join(line[:6])} ... failed:\n{(answer.stderr or answer.stdout)[-2000:]}")
    return answer.stdout


def tracked() -> set[str]:
    """Every file of the repository by its path from the root; what git ignores or does not know is left out.

    Raises:
        CommandError: outside a git checkout.
    """
    return {name for name in command("git", "ls-files", "-z", cwd=ROOT).split("\0") if name and (ROOT / name).exists()}


def copy_tracked(folder: Path) -> Path:
    """The tracked files as they are now, in a folder of their own: no leftover of an earlier build is among them."""
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(tree: Path, out: Path) -> tuple[Path, Path]:
    """The wheel and the sdist of a tree, by the setuptools that torch brings; needs no network."""
    out.mkdir(parents=True)
    for kind in ("sdist", "wheel"):
        command(sys.executable, "-c", f"import setuptools.build_meta as b; b.build_{kind}({str(out)!r})", cwd=tree)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


class Environment:
    """A fresh virtual environment.

    Attributes:
        site: its site-packages.
        scripts: its bin.
    """

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        command(python, "-m", "venv", folder)
        self.scripts = folder / "bin"
        (self.site,) = folder.glob("lib/python3*/site-packages")

    def python(self, *words: object) -> str:
        """What this environment's Python writes; it sees nothing but its own packages, and those that are lent."""
        return command(self.scripts / "python", "-I", *words, cwd=self.scripts)

    def pip(self, *words: object) -> str:
        return self.python("-m", "pip", "--disable-pip-version-check", *words)

    def content(self) -> set[str]:
        """What lies in site-packages and in bin, compiled files left out."""
        places = {"": self.site, "bin/": self.scripts}
        names = {f"{prefix}{path.name}" for prefix, place in places.items() for path in place.iterdir()}
        return names - {"__pycache__", "bin/__pycache__"}

    def lend(self, folders: list[str]) -> None:
        """Let it import what lies in other site-packages, after its own; pip does not see those."""
        (self.site / "zz_lent.pth").write_text("".join(f"{folder}\n" for folder in folders))


def own_packages() -> list[str]:
    """The site-packages that the Python which runs this imports from."""
    return [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
