"""Files are replaced whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lifelong.agent import files
from lifelong.agent.errors import CheckpointError, DiskError, LedgerError


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    assert path.read_text() == '{\n  "a": 2\n}\n' and os.listdir(tmp_path) == ["a.json"]


def test_content_is_on_the_disk_before_it_gets_its_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = tmp_path / "a", []
    replace = os.replace

    def fsync(descriptor: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    def rename(old: Path, new: Path) -> None:
        calls.append(Path(old).read_text())
        replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    files.write(path, "text")
    assert calls == [f"{path}.partial", "text", str(tmp_path)]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_old_file_and_no_other(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    files.write(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskError, match=f"cannot write {path}: No space left on device; what was there before is kept"):
        files.write(path, lambda file: [file.write(b"new")][:0] and None)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_what_a_kill_left_behind_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "config.yaml.partial").touch()
    (tmp_path / "config.yaml").touch()
    files.remove_partial(tmp_path)
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_nothing_of_a_run_or_a_sweep_is_written_in_place() -> None:
    """Whole files go through `files.write`; `write_text` elsewhere is for copies that nobody goes on from."""
    agent = Path(files.__file__).parent
    found = {
        str(path.relative_to(agent))
        for path in agent.rglob("*.py")
        if "write_text(" in path.read_text() or "os.replace(" in path.read_text()
    }
    assert found == {"files.py", "runtime/checkpoint.py", "distributed/submit.py"}


#: what is in the file, the shape it must be of, and what is wrong (None: nothing)
SHAPES: list[tuple[str, Any, str | None]] = [
    ('{"a": 1, "b": null}', {"a": int}, None),
    ('{"a": NaN}', {"a": files.NUMBER}, None),
    ('{"a": null}', {"a": object}, None),
    ('[{"a": [1, 2]}, {"a": []}]', [{"a": [int]}], None),
    ('{"x": {"size": 1}, "y": {"size": 2}}', {str: {"size": int}}, None),
    ("{}", {"a": object}, "a is missing"),
    ("[]", {"a": int}, "the whole is missing"),
    ("{}", [int], "the whole is missing"),
    ('{"a": {"b": [{"c": 1}, {"c": "1"}]}}', {"a": {"b": [{"c": int}]}}, "a.b.1.c is missing or not what it was"),
    ('{"x": {"size": 1}, "y": {}}', {str: {"size": int}}, "y.size is missing"),
    ("{", {}, "Expecting property name"),
    ("", {}, "Expecting value"),
    ("[" * 100_000, [], "recursion"),
    ("1" * 10_000, int, "digits"),
    ("\xff", {}, "Expecting value"),
]


@pytest.mark.parametrize(("text", "shape", "wrong"), SHAPES)
def test_json_is_of_the_shape_that_was_written_or_one_sentence_says_what_is_not(
    text: str, shape: Any, wrong: str | None, tmp_path: Path
) -> None:
    (path := tmp_path / "a.json").write_text(text)
    if wrong is None:
        files.read_json(path, shape)
        return
    with pytest.raises(CheckpointError) as caught:
        files.read_json(path, shape)
    assert str(path) in str(caught.value) and "is damaged: " in str(caught.value) and wrong in str(caught.value)


def test_json_that_is_not_there_or_is_no_text_is_one_sentence_of_the_class_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file"):
        files.read_json(tmp_path / "a.json", {}, LedgerError)
    with pytest.raises(CheckpointError, match="Is a directory"):
        files.read_json(tmp_path, {})
    (tmp_path / "b.json").write_bytes(b'{"a": "\xa0"}')
    with pytest.raises(CheckpointError, match=r"b\.json is damaged"):
        files.read_json(tmp_path / "b.json", {})
