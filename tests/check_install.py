"""`make check-install`: whether what is built from here can be installed on every supported Python.

    python -m tests.check_install [--offline]

1. Wheel and sdist are built from a copy of what git tracks; the sdist makes the same wheel.
2. Each is installed into a fresh environment of every supported Python that is on this machine, and used there.
   Packages that are here for that Python (torch!) are lent to it; where there are none, nothing is trained.
3. What `make run`, `make test` and a plain `pip install lifelong` require is resolved for Linux on x86-64 with every
   supported Python, by metadata alone.

Number 3, and building an sdist as pip does it, need a package index. `--offline` leaves them out.

Exit codes: 0 all of it is right, 1 something is wrong, 3 nothing is wrong, but no package index could be asked.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import yaml

from tests.builds import TINY_RUN, CommandError, Environment, build, command, copy_tracked, own_packages

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
HERE = ".".join(map(str, sys.version_info[:2]))
PINNED = ("-c", "constraints.txt")
REQUIREMENTS = {
    "make run": PINNED,
    "make test and lint": (*PINNED, "--extra", "test", "--extra", "lint"),
    "pip install lifelong": (),
}
OK, WRONG, NOT_ASKED = 0, 1, 3


def content(wheel: Path) -> dict[str, int]:
    """Name -> checksum of the files of a wheel; its own list of them is left out."""
    return {file.filename: file.CRC for file in zipfile.ZipFile(wheel).infolist() if file.filename[-6:] != "RECORD"}


def check_builds(wheel: Path, sdist: Path, place: Path) -> str:
    """An sdist makes the wheel that the repository makes."""
    with tarfile.open(sdist) as archive:
        archive.extractall(place)
    (tree,) = place.iterdir()
    again, _ = build(tree, place / "built")
    assert content(again) == content(wheel), set(content(again).items()) ^ set(content(wheel).items())
    return f"a wheel of {len(content(wheel))} files, and the sdist makes the same"


def interpreter(version: str) -> str | None:
    """A Python of this version that can make environments: the one that runs this, one on PATH, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    known = [f"python{version}", *map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/python")))]
    for python in [sys.executable] if version == HERE else known:
        try:
            command(python, "-c", "import venv, ensurepip")
        except CommandError:
            continue
        return python
    return None


def check_installed(python: str, file: Path, place: Path) -> str:
    """A wheel or sdist in a fresh environment: it adds one package and one command, and both work."""
    environment = Environment(place, python)
    before = environment.content()
    environment.pip("install", "-q", "--no-deps", file)
    (tag,) = {path.name for path in environment.site.glob("lifelong-*.dist-info")}
    added = environment.content() - before
    assert added == {"lifelong", tag, "bin/lifelong"}, added
    environment.python("-W", "error", "-m", "compileall", "-f", "-q", environment.site / "lifelong")
    site = "import site; print(site.getsitepackages())"
    environment.lend(own_packages() if python == sys.executable else ast.literal_eval(command(python, "-c", site)))
    try:
        environment.python("-c", "import torch, gymnasium, rich, tensorboard")
        trains = True
    except CommandError:  # this Python has no packages: what needs PyYAML alone, which any Python can read
        environment.lend([])
        shutil.copytree(Path(yaml.__file__).parent, environment.site / "yaml")
        trains = False
    version = environment.python("-c", "import lifelong; print(lifelong.__version__)").strip()
    assert f"lifelong-{version}.dist-info" == tag
    assert version in command(environment.scripts / "lifelong", "--version", cwd=place)
    assert "quickstart" in command(environment.scripts / "lifelong", "list", cwd=place)
    if not trains:
        return "imports, compiles, lists its parts; torch is not here for this Python, so nothing was trained"
    command(environment.scripts / "lifelong", *TINY_RUN, "--out", place / "run", cwd=place)
    assert (place / "run/summary.json").is_file()
    return "imports, compiles, lists its parts, trains"


def check_requirements(tree: Path, python: str) -> str:
    """All that is required has a build for this Python and goes together."""
    counts = []
    for name, words in REQUIREMENTS.items():
        line = ("pip", "compile", "-q", "pyproject.toml", *words, "--python-version", python, "--no-header")
        system = ("--python-platform", "x86_64-unknown-linux-gnu", "--only-binary", ":all:", "--no-annotate")
        counts.append(f"{name}: {len(command(sys.executable, '-m', 'uv', *line, *system, cwd=tree).splitlines())}")
    return f"packages of {', '.join(counts)}"


def why_no_index(place: Path) -> str | None:
    """Why no package index can be asked; None if one answers."""
    request = place / "request.txt"
    request.write_text("pyyaml\n")
    try:
        command(sys.executable, "-m", "uv", "pip", "compile", "-q", "--no-cache", "--no-deps", request)
    except CommandError as problem:
        return str(problem).strip().splitlines()[-1].strip()
    return None


def examine(tree: Path, wheel: Path, sdist: Path, place: Path, offline: bool) -> int:
    """Check all that can be checked, also after something that is wrong, and say it; an exit code."""
    code = OK

    def check(name: str, how: Callable[..., str], *arguments: object) -> None:
        nonlocal code
        try:
            print(f"{name}: {how(*arguments)}", flush=True)
        except (CommandError, AssertionError) as problem:
            code = WRONG
            print(f"{name}: WRONG: {problem or 'see ' + how.__name__}", flush=True)

    why = "--offline was given" if offline else why_no_index(place)
    check("build", check_builds, wheel, sdist, place / "unpacked")
    for version in PYTHONS:
        python = interpreter(version)
        for file in (wheel,) if why else (wheel, sdist):
            kind = "wheel" if file == wheel else "sdist"
            if python is None:
                print(f"Python {version}, {kind}: not tried, this Python is not on this machine")
            else:
                check(f"Python {version}, {kind}", check_installed, python, file, place / f"{version}-{kind}")
    if why is None:
        with ThreadPoolExecutor() as pool:  # each waits for the network most of the time
            names = [f"Python {version}, requirements" for version in PYTHONS]
            list(pool.map(check, names, repeat(check_requirements), repeat(tree), PYTHONS))
        return code
    print(f"not checked: requirements, and installing the sdist, for want of a package index ({why})")
    if offline or code:
        return code
    print("`make check-install OFFLINE=1` and `make lint OFFLINE=1` are content with the rest", file=sys.stderr)
    return NOT_ASKED


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--offline", action="store_true", help="leave out what needs a package index")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            tree = copy_tracked(Path(folder) / "tree")
            built = build(tree, Path(folder) / "built")
            sys.exit(examine(tree, *built, Path(folder), options.offline))
    except CommandError as problem:
        sys.exit(f"check-install: {problem}")
