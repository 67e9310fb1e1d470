"""What is kept between starts is loaded only if it is certain that this user made it and that it is whole."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import pwd
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lifelong.kernels import cache

NAME = "op-f32-key.so"


def compiled(folder: Path, source: str) -> Path:
    """A shared object of this C source."""
    unit, built = folder / "unit.c", folder / "unit.so"
    unit.write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", built, unit], check=True)
    return built


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("ours"), "int answer(void) { return 42; }")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An object that creates the file $PLANTED_RAN as soon as it is loaded."""
    source = """
    #include <stdio.h>
    #include <stdlib.h>
    __attribute__((constructor)) static void run(void) { fclose(fopen(getenv("PLANTED_RAN"), "w")); }
    """
    return compiled(tmp_path_factory.mktemp("planted"), source)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    """The cache's folder, of a process that has just started."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PLANTED_RAN", str(tmp_path / "ran"))
    caplog.set_level(logging.WARNING, "lifelong.kernels")
    restart(monkeypatch)
    return tmp_path / "cache" / "lifelong" / "kernels"


def restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a process remembers of its cache."""
    cache._folder.cache_clear()
    monkeypatch.setattr(cache, "_unsaid", threading.Lock())


def works(library: ctypes.CDLL | None) -> bool:
    return library is not None and library.answer() == 42


def with_digest(folder: Path, built: Path, name: str = NAME) -> None:
    """Put an object into the folder with the digest that it needs, as somebody would who knows how."""
    content = built.read_bytes()
    (folder / name).write_bytes(content)
    (folder / f"{name}.sha256").write_bytes(cache._digest(name, content))


def test_what_is_kept_is_loaded_again_and_the_users_alone(folder: Path, ours: Path) -> None:
    assert cache.load(NAME) is None
    assert works(cache.keep(NAME, ours)) and works(cache.load(NAME))
    assert [folder.stat().st_mode & 0o777, folder.parent.stat().st_mode & 0o777] == [0o700, 0o700]
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        NAME: 0o600,
        f"{NAME}.sha256": 0o600,
    }
    answer = subprocess.run(["sha256sum", "--check", f"{NAME}.sha256"], cwd=folder, capture_output=True, text=True)
    assert answer.stdout == f"{NAME}: OK\n"


def test_a_planted_object_is_not_run(folder: Path, ours: Path, planted: Path, tmp_path: Path) -> None:
    cache.keep(NAME, ours)
    (folder / NAME).write_bytes(planted.read_bytes())  # beside the digest of ours
    (folder / "alone.so").write_bytes(planted.read_bytes())
    with_digest(folder, planted, "other.so")
    (folder / "other.so").rename(folder / "moved.so")
    (folder / "other.so.sha256").rename(folder / "moved.so.sha256")
    assert [cache.load(name) for name in (NAME, "alone.so", "moved.so")] == [None] * 3
    assert not (tmp_path / "ran").exists()
    assert works(cache.keep(NAME, ours)) and works(cache.load(NAME))
    with_digest(folder, planted, "trusted.so")  # the constructor would have told
    cache.load("trusted.so")
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("left", [0, 1, 4096, -1])
def test_a_truncated_object_is_built_again(folder: Path, ours: Path, left: int) -> None:
    cache.keep(NAME, ours)
    os.truncate(folder / NAME, left if left >= 0 else ours.stat().st_size - 1)
    assert cache.load(NAME) is None
    assert works(cache.keep(NAME, ours)) and works(cache.load(NAME))


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"x" * 100])
def test_a_damaged_digest_is_written_again(folder: Path, ours: Path, content: bytes) -> None:
    cache.keep(NAME, ours)
    (folder / f"{NAME}.sha256").write_bytes(content)
    assert cache.load(NAME) is None
    assert works(cache.keep(NAME, ours)) and works(cache.load(NAME))


@pytest.mark.parametrize("suffix", ["", ".sha256"])
@pytest.mark.parametrize("how", ["others write", "group writes", "link", "fifo", "folder"])
def test_files_that_others_can_write_links_and_other_things_are_not_loaded(
    folder: Path, ours: Path, planted: Path, tmp_path: Path, suffix: str, how: str
) -> None:
    cache.keep("made.so", ours)
    with_digest(folder, planted)
    file = folder / f"{NAME}{suffix}"
    if how.endswith("write") or how.endswith("writes"):
        file.chmod(0o602 if how == "others write" else 0o620)
    else:
        file.rename(tmp_path / "elsewhere")
        {
            "link": lambda: file.symlink_to(tmp_path / "elsewhere"),
            "fifo": lambda: os.mkfifo(file),
            "folder": lambda: file.mkdir(),
        }[how]()
    assert cache.load(NAME) is None
    assert not (tmp_path / "ran").exists()


def foreign(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make everything look as if another user owned it."""
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)


def linked(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


def linked_above(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    linked(monkeypatch, folder.parent)


def a_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


HOSTILE: dict[str, Callable[[pytest.MonkeyPatch, Path], Any]] = {
    "belongs to another user": foreign,
    "kernels can be written by others": lambda _, folder: folder.chmod(0o777),
    "kernels can be written by others; ": lambda _, folder: folder.chmod(0o770),
    "lifelong can be written by others": lambda _, folder: folder.parent.chmod(0o777),
    "kernels: Not a directory": a_file,
    "kernels: Too many levels|kernels: Not a directory": linked,
    "lifelong: Too many levels|lifelong: Not a directory": linked_above,
}


@pytest.mark.parametrize("reason", HOSTILE)
def test_a_folder_that_is_not_the_users_alone_is_not_used(
    folder: Path,
    ours: Path,
    planted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reason: str,
) -> None:
    cache.keep("made.so", ours)
    with_digest(folder, planted)
    HOSTILE[reason](monkeypatch, folder)
    restart(monkeypatch)
    assert cache.load(NAME) is None
    assert works(cache.keep(NAME, ours)) and works(cache.keep("more.so", ours)), (
        "it is compiled and loaded all the same"
    )
    assert not (tmp_path / "ran").exists()
    assert len(caplog.messages) == 1 and "\n" not in caplog.messages[0]
    assert any(each in caplog.messages[0] for each in reason.split("|"))


def test_a_folder_that_others_can_only_read_is_closed_and_used(
    folder: Path, ours: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.keep(NAME, ours)
    for each in (folder, folder.parent):
        each.chmod(0o755)
    restart(monkeypatch)
    assert works(cache.load(NAME)) and not caplog.messages
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("why", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_cannot_be_written_is_loaded_without_being_kept(
    folder: Path, ours: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: int
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(why, os.strerror(why))

    monkeypatch.setattr(os, "fsync", refuse)
    assert works(cache.keep(NAME, ours)) and works(cache.keep("more.so", ours))
    assert not list(folder.iterdir()), "nothing half written is left"
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith(f"cannot write to {folder}: {os.strerror(why)}")


def test_what_was_kept_is_loaded_from_a_folder_that_is_read_only_now(
    folder: Path, ours: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.keep(NAME, ours)
    monkeypatch.setattr(os, "fchmod", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
    restart(monkeypatch)
    assert works(cache.load(NAME)) and not caplog.messages


def test_what_is_kept_but_cannot_be_loaded_is_neither_used_nor_left(folder: Path, ours: Path, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.so"
    rubbish.write_text("no shared object")
    with pytest.raises(OSError, match=r"file too short|invalid ELF header"):
        cache.keep(NAME, rubbish)
    assert not list(folder.iterdir())
    with_digest(folder, rubbish)
    assert cache.load(NAME) is None


def test_objects_are_told_apart_although_they_are_loaded_through_descriptors(
    folder: Path, ours: Path, tmp_path: Path
) -> None:
    other = compiled(tmp_path, "int answer(void) { return 7; }")
    first, second = cache.keep(NAME, ours), cache.keep("other.so", other)
    again = [cache.load(NAME), cache.load("other.so")]
    assert [each.answer() for each in (first, second, *again) if each] == [42, 7, 42, 7]


def test_two_that_keep_the_same_object_at_once_both_have_it(folder: Path, ours: Path) -> None:
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(works(cache.keep(NAME, ours)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8 and works(cache.load(NAME))
    assert sorted(path.name for path in folder.iterdir()) == [NAME, f"{NAME}.sha256"]


HOME = pwd.getpwuid(os.getuid()).pw_dir


@pytest.mark.parametrize(
    ("xdg", "home", "expected"),
    [
        ("/xdg", "/home/me", "/xdg"),
        ("", "/home/me", "/home/me/.cache"),
        (None, "/home/me", "/home/me/.cache"),
        ("here", "/home/me", "/home/me/.cache"),
        ("../here", "", f"{HOME}/.cache"),
        (".", ".", f"{HOME}/.cache"),
        (None, None, f"{HOME}/.cache"),
    ],
)
def test_only_absolute_paths_are_followed(
    monkeypatch: pytest.MonkeyPatch, xdg: str | None, home: str | None, expected: str
) -> None:
    for variable, value in (("XDG_CACHE_HOME", xdg), ("HOME", home)):
        monkeypatch.delenv(variable, raising=False)
        if value is not None:
            monkeypatch.setenv(variable, value)
    assert cache.path() == Path(expected, "lifelong", "kernels")
