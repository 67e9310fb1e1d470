"""Whose code a command is about to import: that of a config is the user's choice, that of a run folder is not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lifelong.agent import config as configs
from lifelong.agent.errors import CheckpointError, ConfigError


def trusted(config: configs.Config, where: Path, options: argparse.Namespace) -> None:
    """Ask before code that a run folder names is imported: unlike a config, the user did not choose what is in it.

    Raises:
        ConfigError: the answer is no, or nobody can be asked.
    """
    foreign = configs.foreign_parts(config)
    if not foreign or options.trust:
        return
    question = f"{where} names code that is not part of lifelong: {', '.join(foreign)}"
    if sys.stdin is not None and sys.stdin.isatty():
        print(f"{question}. It would be imported and run. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
    raise ConfigError(f"{question}; add --trust if you trust it")


def check_run(folder: Path) -> None:
    """Refuse a folder that is no run.

    Raises:
        CheckpointError: it has no config.
    """
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{folder} is no run: it has no config.yaml; runs are folders such as runs/quickstart/0")
