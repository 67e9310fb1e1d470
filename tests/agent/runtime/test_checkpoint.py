"""A checkpoint is on the disk before it has its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.serialization import get_crc32_options

from lifelong.agent.errors import DiskError
from lifelong.agent.runtime import checkpoint


def test_all_of_it_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    replace = os.replace

    def rename(old: Path, new: Path) -> None:
        calls.append("renamed")
        replace(old, new)

    monkeypatch.setattr(
        os, "fsync", lambda descriptor: calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
    )
    monkeypatch.setattr(os, "replace", rename)
    made = checkpoint.save(tmp_path, 8, {"a": torch.ones(3)}, {"b": 2}, {}, 1)
    before, after = calls[: calls.index("renamed")], calls[calls.index("renamed") + 1 :]
    partial = f".partial-{os.getpid()}"
    assert sorted(before) == sorted(["state.pt", "shard-0.pt", "manifest.json", partial]) and after == [tmp_path.name]
    assert {path.name for path in made.iterdir()} == {"state.pt", "shard-0.pt", "manifest.json"}


def test_a_file_that_changed_is_seen_without_checksums_of_torch(tmp_path: Path) -> None:
    before = get_crc32_options()
    for step in (8, 16):
        made = checkpoint.save(tmp_path, step, {"a": torch.arange(1000.0)}, {}, {}, 2)
    assert get_crc32_options() == before
    content = bytearray((made / "state.pt").read_bytes())
    place = content.index(torch.arange(1000.0).numpy().tobytes())
    content[place + 40] ^= 1
    (made / "state.pt").write_bytes(content)
    state, damaged = checkpoint.load(tmp_path)
    assert damaged == ["checkpoint 000000000016 is damaged: state.pt does not match its checksum"]
    assert torch.equal(state["a"], torch.arange(1000.0)) and state["manifest"]["step"] == 8


def test_a_disk_that_refuses_leaves_the_older_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 8, {"a": 1}, {}, {}, 1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="No space left on device; older ones are kept"):
        checkpoint.save(tmp_path, 16, {"a": 2}, {}, {}, 1)
    assert os.listdir(tmp_path) == ["000000000008"]
