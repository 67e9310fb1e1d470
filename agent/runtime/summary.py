"""Reading `summary.json`, which `agent.runtime.session` writes when a run comes to its end. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lifelong.agent.errors import CheckpointError
from lifelong.agent.files import NUMBER, check_shape, read_json

FILE = "summary.json"
#: what a line of `changes.jsonl` has at least, which are in the summary, too
CHANGE = {"step": int, "kind": str, "key": str, "old": object, "new": object}
#: what it has at least
SHAPE: dict[str, Any] = {
    "config": {"name": str, "strategy": [{"kind": str}]},
    "seed": int,
    "env_steps": int,
    "steps_per_second": NUMBER,
    "tasks": [{"name": str, "learned": NUMBER, "final": NUMBER}],
    "average_performance": NUMBER,
    "forgetting": NUMBER,
    "versions": {},
    "machine": {},
}
#: what later versions have besides
_LATER: dict[str, Any] = {
    "forgetting_max": NUMBER,
    "segments": [{"start": int, "end": int, "task": (int, type(None))}],
    "changes": [CHANGE],
}


def load_summary(folder: Path) -> dict[str, Any]:
    """The summary.json of a finished run.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / FILE
    content: dict[str, Any] = read_json(path, SHAPE)
    check_shape(content, path, {key: shape for key, shape in _LATER.items() if key in content})
    return content


def is_whole(folder: Path) -> bool:
    """Whether there is one that can be read."""
    try:
        load_summary(folder)
    except CheckpointError:
        return False
    return True
