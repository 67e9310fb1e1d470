"""Training for recipes' scripts that look into the agent while it learns: beside them, so that they can import it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lifelong.agent import config as configs
from lifelong.agent.runtime.build import build
from lifelong.agent.runtime.logging import NoLog
from lifelong.agent.runtime.metrics import Evaluations
from lifelong.agent.runtime.progress import Progress
from lifelong.agent.runtime.trainer import Trainer


def trained(config: Mapping[str, Any], seed: int, look: Callable[[Trainer], None]) -> Evaluations:
    """Train to the end of the stream, in a folder that goes away.

    Args:
        config: a run config as YAML has it.
        seed: of the run.
        look: called with the trainer after every evaluation.

    Returns:
        All evaluations.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(configs.check({**config, "seed": seed}), Path(folder))
        trainer.on_evaluation = lambda step, evaluations: look(trainer)
        try:
            trainer.train(NoLog(), Progress(trainer.stream.total_steps, 0, quiet=True))
        finally:
            trainer.close()
        return trainer.evaluations
