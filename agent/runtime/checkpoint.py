"""Checkpoints: one folder each, written atomically, the last good one always kept.

    checkpoints/000000204800/state.pt        everything, loads with torch.load(weights_only=True)
    checkpoints/000000204800/manifest.json   step, size and SHA-256 of state.pt, versions

A folder is written under another name, flushed to the disk and renamed: a checkpoint is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from agent.errors import CheckpointError, DiskError


def save(folder: Path, step: int, state: dict[str, Any], versions: dict[str, str], keep: int) -> Path:
    """Write a checkpoint of `step` into `folder` and remove all but the newest `keep`.

    Raises:
        DiskError: the disk refused; older checkpoints are untouched.
    """
    target = folder / f"{step:012d}"
    partial = folder / f".partial-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".partial-*"):
            shutil.rmtree(stale, ignore_errors=True)
        partial.mkdir()
        path = partial / "state.pt"
        torch.save(state, path)
        manifest = {"step": step, "size": path.stat().st_size, "sha256": _digest(path), "versions": versions}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2))
        for file in (path, partial / "manifest.json"):
            _flush(file)
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
        _flush(folder)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        raise DiskError(f"cannot write a checkpoint to {folder}: {_reason(error)}; older ones are kept") from error
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def load(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The newest checkpoint that is whole: `(state, what was wrong with newer ones)`.

    Raises:
        CheckpointError: there is none.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(folder)):
        problem = _problem(path)
        if problem is None:
            try:
                return torch.load(path / "state.pt", map_location="cpu", weights_only=True), damaged
            except Exception as error:  # whatever the unpickler raises means the same
                problem = f"it does not load ({type(error).__name__})"
        damaged.append(f"checkpoint {path.name} is damaged: {problem}")
    if damaged:
        raise CheckpointError(f"no usable checkpoint in {folder}: {'; '.join(damaged)}")
    raise CheckpointError(f"no checkpoint in {folder}; start the run again without resume")


def _problem(path: Path) -> str | None:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        size = (path / "state.pt").stat().st_size
        if size != manifest["size"]:
            return f"state.pt has {size} bytes instead of {manifest['size']}"
        if _digest(path / "state.pt") != manifest["sha256"]:
            return "state.pt does not match its checksum"
    except (OSError, ValueError, KeyError) as error:
        return _reason(error)
    return None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
