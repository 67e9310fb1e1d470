"""Checkpoints: one folder each, written atomically, the last good one always kept.

    checkpoints/000000204800/state.pt        what all workers share; loads with torch.load(weights_only=True)
    checkpoints/000000204800/shard-0.pt      what belongs to worker 0: environments, carry, replay, randomness
    checkpoints/000000204800/manifest.json   step, number of workers, size and SHA-256 of every file, versions

A folder is written under another name, flushed to the disk and renamed: a checkpoint is there whole or not at all. A
run in one process is a run of one worker, so it and `workers: 1` can go on from each other's checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_crc32_options, set_crc32_options

from lifelong.agent.errors import CheckpointError, DiskError
from lifelong.agent.files import read_json, sync
from lifelong.agent.parallel import ALONE, Workers

MANIFEST = "manifest.json"


def save(
    folder: Path,
    step: int,
    shared: dict[str, Any],
    own: dict[str, Any],
    about: Mapping[str, Any],
    keep: int,
    workers: Workers = ALONE,
) -> Path:
    """Write a checkpoint of `step` into `folder` and remove all but the newest `keep`. All workers call it together.

    One of this step that is there and whole stays: it is of the same moment, and taking it away first could lose both.

    Args:
        shared: what is equal on all workers; that of rank 0 is written.
        own: what belongs to this worker.
        about: what the manifest says beside that; that of rank 0 is written. What depends on the clock belongs here.

    Raises:
        DiskError: the disk refused one of the workers; older checkpoints are untouched. All of them raise.
    """
    target = folder / f"{step:012d}"
    unfinished = folder / f".partial-{workers.lead(os.getpid())}"
    first = workers.rank == 0
    if workers.lead(int(first and target.exists() and _problem(target) is None)):
        return target
    files: dict[str, Any] = {}

    def prepare() -> dict[str, Any]:
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob(".partial-*"):
                shutil.rmtree(stale, ignore_errors=True)
            unfinished.mkdir()
        return {}

    def write() -> dict[str, Any]:
        mine = {"state.pt": shared} if first else {}
        return _write(unfinished, mine | {_shard(workers.rank): own})

    def publish() -> dict[str, Any]:
        if first:
            manifest = {"step": step, "workers": workers.count, "files": files, **about}
            (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            for path in (unfinished / MANIFEST, unfinished):
                sync(path)
            if target.exists():  # damaged
                shutil.rmtree(target)
            os.replace(unfinished, target)
            sync(folder)
        return {}

    for stage in (prepare, write, publish):
        outcomes = workers.gather(_attempt(stage))
        refused = [reason for _, reason in outcomes if reason]
        if refused:
            if first:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise DiskError(f"cannot write a checkpoint to {folder}: {refused[0]}; older ones are kept")
        for written, _ in outcomes:
            files |= written
    if first:
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return target


def _attempt(stage: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """What `stage` returns, or why it could not: the other workers must hear of it instead of waiting."""
    try:
        return stage(), ""
    except (OSError, RuntimeError) as error:
        return {}, _reason(error)


def _shard(rank: int) -> str:
    return f"shard-{rank}.pt"


def _write(folder: Path, states: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Files of these names, which are on the disk then: {name: size and digest}."""
    paths = [folder / name for name in states]
    checked = get_crc32_options()
    set_crc32_options(False)  # the manifest has a better one
    try:
        for path, state in zip(paths, states.values(), strict=True):
            with open(path, "wb") as file:  # given a path, torch would not say why it cannot be written
                torch.save(state, file)
    finally:
        set_crc32_options(checked)
    for path in paths:
        sync(path)
    return {path.name: {"size": path.stat().st_size, "sha256": _digest(path)} for path in paths}


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def load(folder: Path, workers: Workers = ALONE) -> tuple[dict[str, Any], list[str]]:
    """The newest checkpoint that is whole: `(state of this worker, what was wrong with newer ones)`.

    The state has its `manifest` with it. Rank 0 looks which one that is; all workers call it together.

    Raises:
        CheckpointError: there is none, or it was saved by another number of workers.
    """
    damaged: list[str] = []
    path = _newest(folder, damaged) if workers.rank == 0 else None
    step = workers.lead(int(path.name) if path else -1)
    if step < 0:
        if damaged:
            raise CheckpointError(f"no usable checkpoint in {folder}: {'; '.join(damaged)}")
        raise CheckpointError(f"no checkpoint in {folder}; start the run again without resume")
    path = folder / f"{step:012d}"
    manifest = _manifest(path)
    saved_by = manifest["workers"]
    if saved_by != workers.count:
        raise CheckpointError(
            f"the checkpoint in {folder} is of {saved_by} {'worker' if saved_by == 1 else 'workers'}, this run has "
            f"{workers.count}; resume it with runtime.workers={saved_by}"
        )
    return {**read(path / "state.pt"), **read(path / _shard(workers.rank)), "manifest": manifest}, damaged


def each(folder: Path) -> Iterator[dict[str, Any]]:
    """The state of worker 0 in every checkpoint that is whole, oldest first."""
    for path in checkpoints(folder):
        if _problem(path) is None:
            yield {**read(path / "state.pt"), **read(path / _shard(0))}


def _newest(folder: Path, damaged: list[str]) -> Path | None:
    """The newest whole checkpoint; what is wrong with newer ones is appended to `damaged`."""
    for path in reversed(checkpoints(folder)):
        problem = _problem(path)
        if problem is None:
            return path
        damaged.append(f"checkpoint {path.name} is damaged: {problem}")
    return None


def _manifest(path: Path) -> dict[str, Any]:
    shape = {"step": int, "workers": int, "files": {str: {"size": int, "sha256": str}}}
    content: dict[str, Any] = read_json(path / MANIFEST, shape)
    return content


def read(path: Path) -> dict[str, Any]:
    """A file of tensors and plain data; no code in it is run.

    Raises:
        CheckpointError: it does not load.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler raises means the same
        raise CheckpointError(f"{path} does not load: {_reason(error)}") from error
    return state


def _problem(path: Path) -> str | None:
    try:
        for name, entry in _manifest(path)["files"].items():
            size = (path / name).stat().st_size
            if size != entry["size"]:
                return f"{name} has {size} bytes instead of {entry['size']}"
            if _digest(path / name) != entry["sha256"]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError) as error:
        return _reason(error)
    return None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:  # torch reports a full disk as an error of its own while it handles that of the disk
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
