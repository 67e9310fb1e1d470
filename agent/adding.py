"""The config of a run that is resumed: its own, new tasks behind its tasks, and overrides. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifelong.agent import config as configs
from lifelong.agent import reading
from lifelong.agent.config import Config
from lifelong.agent.errors import ConfigError


def load(folder: Path, assignments: Sequence[str] = (), add: Sequence[str] = ()) -> Config:
    """The config of the run in `folder`, with the tasks of the files `add` behind its own, and with overrides.

    Raises:
        ConfigError: a file without tasks, or an override that cannot be.
    """
    raw = reading.read(str((folder / "config.yaml").resolve()))
    if add:
        configs.check(raw)  # it may be damaged
    for name in add:
        tasks, stream = tasks_in(name), raw["stream"]
        added = [*stream.get("added", []), len(tasks)]
        raw = {**raw, "stream": {**stream, "tasks": [*stream["tasks"], *tasks], "added": added}}
        path = reading.find(name).resolve()
        if configs.CONFIG_FOLDER not in path.parents:
            reading.find_modules_beside(raw, path.parent)
    return configs.check(reading.override(raw, assignments))


def tasks_in(name: str) -> list[dict[str, Any]]:
    """The tasks of a file for `lifelong resume --add`: one task, a list of them, or a config with `stream.tasks`.

    Raises:
        ConfigError: the file cannot be read or holds no task.
    """
    path = reading.find(name)
    raw = reading.read_file(path)
    if isinstance(raw, dict) and "env" not in raw:
        stream = reading.read(name).get("stream")
        stream = stream if isinstance(stream, dict) else {}
        steps = {"steps": stream["steps_per_task"]} if "steps_per_task" in stream else {}
        raw = stream.get("tasks")
        raw = [{**steps, **task} if isinstance(task, dict) else task for task in raw] if isinstance(raw, list) else []
    tasks = raw if isinstance(raw, list) else [raw]
    if not tasks or not all(isinstance(task, dict) and "env" in task for task in tasks):
        raise ConfigError(
            f"{path.name} holds no task; write `name: ...` and `env: ...`, a list of such, or stream.tasks"
        )
    return tasks
