"""`make check-install`: what the wheel and the sdist hold, and whether the pins resolve on every supported Python.

Nothing is installed into the environment that runs it. Needs the package index for building and for the pins.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
EXTRAS = ("test", "lint")
FLOORS = ("agent", "envs", "replay", "kernels", "configs")
KINDS = {".py", ".yaml", ".c", ".h", ".j2", ".typed"}


def run(*words: object) -> str:
    """Run a command; its output, or the end of this script with its errors."""
    answer = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd=ROOT, check=False)
    if answer.returncode:
        sys.exit(f"check-install: {' '.join(map(str, words[:6]))} ... failed:\n{answer.stderr[-2000:]}")
    return answer.stdout


def expected() -> set[str]:
    """Every file of the package as it lies in site-packages."""
    found = set()
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*"):
            if path.suffix in KINDS and "__pycache__" not in path.parts:
                name = path.relative_to(ROOT).as_posix()
                face = name.removeprefix("agent/api/")
                found.add(f"lifelong/{face if face != name else name}")
    return found


def check_builds(folder: Path) -> None:
    """Wheel and sdist hold what they should, and a wheel made from the sdist is the same."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder / "a", ROOT)
    run(sys.executable, "-c", f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})")
    (wheel,), (sdist,) = (folder / "a").glob("*.whl"), folder.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top.split("-")[0] for top in tops} == {"lifelong"} and len(tops) == 2, tops
    inside = {name for name in names if name.startswith("lifelong/")}
    assert inside == expected(), sorted(inside ^ expected())[:20]
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("docs/index.md", "benchmarks/gpu.py", "tests/test_readme.py", "CHANGELOG.md", "LICENSE"):
        assert name in held, f"{name} is not in the sdist"
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder / "b", sdist)
    (again,) = (folder / "b").glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == names
    print(f"wheel: {len(names)} files, all below lifelong and its dist-info; the sdist makes the same wheel")


def check_pins() -> None:
    """constraints.txt resolves with the extras on every supported Python, by metadata alone."""
    for python in PYTHONS:
        extras = [word for extra in EXTRAS for word in ("--extra", extra)]
        words = ["pip", "compile", "-q", "pyproject.toml", "-c", "constraints.txt", "--python-version", python, *extras]
        lines = run(sys.executable, "-m", "uv", *words, "--python-platform", "linux", "--no-header").splitlines()
        pinned = [line for line in lines if "==" in line and not line.startswith(" ")]
        print(f"Python {python}: {len(pinned)} packages resolve")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        check_builds(Path(place))
    check_pins()
