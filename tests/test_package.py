"""What is installed: one package, whole, beside others of any name; and a checkout that needs no installation."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import lifelong
from tests import check_install
from tests.builds import FLOORS, ROOT, CommandError, Environment, build, copy_tracked, own_packages, tracked

if not (ROOT / ".git").exists():
    pytest.skip("what is packaged is compared with what git tracks, and this is no checkout", allow_module_level=True)
TRACKED = tracked()
WHEEL = f"lifelong-{lifelong.__version__}"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tracked(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def built(tree: Path) -> tuple[Path, Path]:
    return build(tree, tree.parent / f"{tree.name}-built")


def test_the_wheel_has_every_file_of_the_five_folders_and_nothing_else(built: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(built[0]).namelist())
    inside = {name for name in names if name.startswith("lifelong/")}
    sources = {name.removeprefix("agent/api/") for name in TRACKED if name.startswith(tuple(f"{f}/" for f in FLOORS))}
    assert inside == {f"lifelong/{name}" for name in sources}
    assert {Path(name).suffix for name in inside} >= {".py", ".yaml", ".c", ".h", ".j2", ".typed"}
    (other,) = {name.split("/")[0] for name in names - inside}
    assert other == f"{WHEEL}.dist-info"


def test_an_installed_package_says_where_the_benchmarks_are(built: tuple[Path, Path], tmp_path: Path) -> None:
    zipfile.ZipFile(built[0]).extractall(tmp_path)
    words = [sys.executable, "-m", "lifelong", "bench", "kernels"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    answer = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 2 and "clone the repository" in answer.stderr and answer.stderr.count("\n") == 1


def test_the_wheel_adds_one_command(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        points = configparser.ConfigParser()
        points.read_string(wheel.read(f"{WHEEL}.dist-info/entry_points.txt").decode())
    assert {name: dict(points[name]) for name in points.sections()} == {
        "console_scripts": {"lifelong": "lifelong.agent.cli:entry"}
    }


def test_the_sdist_has_every_file_of_the_repository(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        held = {file.name.partition("/")[2] for file in archive.getmembers() if file.isfile()}
    made = {name for name in held if name in ("PKG-INFO", "setup.cfg") or name.startswith("lifelong.egg-info/")}
    assert held - made == TRACKED - {".gitignore"}
    assert {"CHANGELOG.md", "docs/index.md", "benchmarks/gpu.py", "tests/test_package.py", "LICENSE"} <= held


def test_one_version_is_said_everywhere() -> None:
    assert f"\nversion: {lifelong.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1].startswith(f"{lifelong.__version__} (")


def test_what_git_does_not_track_is_not_built(tree: Path) -> None:
    here = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    made = {name for name in here if name.startswith(("build/", "lifelong.egg-info/"))}
    assert here - made == TRACKED


def test_make_gpu_needs_no_installation_and_keeps_the_search_path(tree: Path, tmp_path: Path) -> None:
    """A package that only PYTHONPATH finds is seen; the end is one sentence, since there is no GPU."""
    (tmp_path / "sitecustomize.py").write_text("import sys; print('carried', file=sys.stderr)")
    outer = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    environment = {**outer, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    words = ["make", "-s", "-C", str(tree), "gpu", f"PYTHON={sys.executable}"]
    answer = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    carried, sentence, made = answer.stderr.splitlines()
    assert answer.returncode == 2 and carried == "carried", answer.stderr
    assert sentence.startswith("no GPU: ") and made.startswith("make: ***"), answer.stderr


#: `kernels` of Hugging Face gives a layer its own forward, since there is no faster one for it
THEIRS = """
import kernels, torch
@kernels.use_kernel_forward_from_hub("Silu")
class Silu(torch.nn.Module):
    def forward(self, x): return torch.nn.functional.silu(x)
x = torch.randn(8)
layer = kernels.kernelize(torch.nn.Sequential(Silu()), mode=kernels.Mode.INFERENCE, device="cpu")
assert torch.equal(layer(x), torch.nn.functional.silu(x))
"""
#: 1, 1.5, 1.75 by our scan
OURS = """
import torch
from lifelong.kernels.diag_scan import diag_scan
y, last = diag_scan(torch.full((3, 2, 4), 0.5), torch.ones(3, 2, 4))
assert torch.equal(last, torch.full((2, 4), 1.75)) and torch.equal(y[1], torch.full((2, 4), 1.5))
"""


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize(("index", "offline", "code"), [(True, False, 0), (False, False, 3), (True, True, 0)])
def test_check_install_is_green_only_if_it_has_looked(
    index: bool,
    offline: bool,
    code: int,
    wrong: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def installed(python: str, file: Path, place: Path) -> str:
        assert not wrong, "it adds agent too"
        return "works"

    monkeypatch.setattr(check_install, "check_builds", lambda *files: "the same")
    monkeypatch.setattr(check_install, "interpreter", lambda version: None if version == "3.10" else "python3")
    monkeypatch.setattr(check_install, "check_installed", installed)
    monkeypatch.setattr(check_install, "check_requirements", lambda tree, version: "resolved")
    monkeypatch.setattr(check_install, "why_no_index", lambda place: None if index else "no route to host")
    found = check_install.examine(tmp_path, tmp_path / "a.whl", tmp_path / "a.tar.gz", tmp_path, offline)
    assert found == (1 if wrong else code)
    lines = capsys.readouterr().out.splitlines()
    asked = index and not offline
    assert sum("requirements: resolved" in line for line in lines) == (4 if asked else 0)
    assert sum(line.startswith("not checked: requirements") for line in lines) == (0 if asked else 1)
    assert sum("not tried, this Python is not on this machine" in line for line in lines) == (2 if asked else 1)
    ends = [line.partition(": ")[2] for line in lines if line.startswith(("Python 3.11, wheel", "Python 3.13, wheel"))]
    assert ends == (["WRONG: it adds agent too"] * 2 if wrong else ["works"] * 2)


@pytest.mark.slow
def test_hugging_faces_kernels_lives_beside_it(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Each is used beside the other, and taking one away leaves the other as it was."""
    place = Environment(tmp_path / "environment")
    try:
        place.pip("install", "-q", "kernels")
    except CommandError as problem:
        pytest.skip(f"kernels cannot be fetched from a package index: {str(problem).splitlines()[-1]}")
    before = place.content()
    place.pip("install", "-q", "--no-deps", "--no-index", built[0])
    assert place.content() - before == {"lifelong", f"{WHEEL}.dist-info", "bin/lifelong"}
    place.lend(own_packages())
    place.python("-c", THEIRS + OURS)

    def files(package: str) -> dict[str, bytes]:
        paths = [path for path in (place.site / package).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        return {path.relative_to(place.site).as_posix(): path.read_bytes() for path in paths}

    theirs, ours = files("kernels"), files("lifelong")
    assert len(theirs) > 10 and len(ours) > 100
    place.pip("uninstall", "-q", "-y", "kernels")
    assert not files("kernels") and files("lifelong") == ours
    place.python("-c", OURS)
    place.pip("install", "-q", "--no-deps", "kernels")
    place.pip("uninstall", "-q", "-y", "lifelong")
    assert not files("lifelong") and files("kernels") == theirs
    assert "bin/lifelong" not in place.content()
    place.python("-c", THEIRS)
