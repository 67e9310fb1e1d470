"""Tasks that a function of the user's own makes: `stream.tasks: module:function` in the place of a list."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from lifelong.agent.errors import ConfigError
from lifelong.envs.border import blame
from lifelong.envs.errors import LifelongError
from lifelong.envs.options import brief
from lifelong.envs.registry import import_part

#: of one stream; evaluation looks at every one of them
MOST_TASKS = 10_000


def with_own_tasks(raw: dict[str, Any]) -> dict[str, Any]:
    """`raw` with the list of tasks in the place of the function that makes them; a list stays as it is.

    The function is called with the options beside its `kind` and returns or yields mappings as they stand under
    `stream.tasks`. What it gave is the config, so a run and its resumption do not ask it again.

    Raises:
        ConfigError: no such function, one that raises, gives no tasks or more than 10,000.
    """
    stream: Any = raw.get("stream")
    chosen = stream.get("tasks") if isinstance(stream, Mapping) else None
    if isinstance(chosen, str):
        chosen = {"kind": chosen}
    if not isinstance(chosen, Mapping) or "kind" not in chosen:
        return raw
    name = chosen["kind"]
    if not isinstance(name, str) or ":" not in name:
        raise ConfigError(
            f"stream.tasks is {brief(name)}; it must be a list of tasks, or module:function that gives one"
        )
    folders = [os.getcwd(), *(each for each in raw.get("modules") or () if isinstance(each, str))]
    sys.path += [folder for folder in folders if folder not in sys.path]
    try:
        given = import_part("stream.tasks", name, {})(**{key: chosen[key] for key in chosen if key != "kind"})
        if not isinstance(given, Iterable) or isinstance(given, (str, Mapping)):
            raise ConfigError(
                f"stream.tasks {name!r} gave {brief(given)}; it must return or yield mappings, one a task"
            )
        tasks = list(itertools.islice(given, MOST_TASKS + 1))
    except LifelongError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:
        raise ConfigError(f"stream.tasks {name!r} raised: {blame(error)}") from error
    if len(tasks) > MOST_TASKS:
        raise ConfigError(f"stream.tasks {name!r} gave more than {MOST_TASKS:,} tasks; let it end")
    return {**raw, "stream": {**stream, "tasks": [dict(t) if isinstance(t, Mapping) else t for t in tasks]}}
