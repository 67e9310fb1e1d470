"""The public face: what `import lifelong` gives. Each name is imported when it is first used, so this costs nothing.

    import lifelong

    config = lifelong.load_config("quickstart", ["strategy=gpm", "stream.steps_per_task=100_000"])
    trainer, finished = lifelong.run(config, "runs/mine")

This folder is installed as `lifelong` itself; the other folders of the repository are installed below it
(`lifelong.agent`, `lifelong.envs`, `lifelong.replay`, `lifelong.kernels`, `lifelong.configs`).
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lifelong.agent import registry as registry
    from lifelong.agent.cells.base import BlockCell as BlockCell
    from lifelong.agent.cells.base import Cell as Cell
    from lifelong.agent.cells.base import DiagonalCell as DiagonalCell
    from lifelong.agent.config import load as load_config  # noqa: F401
    from lifelong.agent.errors import LifelongError as LifelongError
    from lifelong.agent.export import export as export
    from lifelong.agent.gradients.base import GradientEngine as GradientEngine
    from lifelong.agent.inference import load as load
    from lifelong.agent.objectives.base import Objective as Objective
    from lifelong.agent.online import OnlineAgent as OnlineAgent
    from lifelong.agent.run import resume as resume
    from lifelong.agent.run import start as run  # noqa: F401
    from lifelong.agent.strategies.base import Strategy as Strategy
    from lifelong.envs.base import BatchedEnv as BatchedEnv
    from lifelong.envs.base import Param as Param

__version__ = "0.1.0"

# OpenMP's threads spin while they wait for each other, some milliseconds by default, and beside busy processes they do
# so where the others would work. Some microseconds, then sleep, cost nothing on an idle machine. Torch reads this once.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

#: public name -> "module:attribute", or a module
_NAMES = {
    "load_config": "lifelong.agent.config:load",
    "run": "lifelong.agent.run:start",
    "resume": "lifelong.agent.run:resume",
    "OnlineAgent": "lifelong.agent.online:OnlineAgent",
    "load": "lifelong.agent.inference:load",
    "export": "lifelong.agent.export:export",
    "registry": "lifelong.agent.registry",
    "LifelongError": "lifelong.agent.errors:LifelongError",
    "BatchedEnv": "lifelong.envs.base:BatchedEnv",
    "Param": "lifelong.envs.base:Param",
    "Cell": "lifelong.agent.cells.base:Cell",
    "DiagonalCell": "lifelong.agent.cells.base:DiagonalCell",
    "BlockCell": "lifelong.agent.cells.base:BlockCell",
    "GradientEngine": "lifelong.agent.gradients.base:GradientEngine",
    "Objective": "lifelong.agent.objectives.base:Objective",
    "Strategy": "lifelong.agent.strategies.base:Strategy",
}

__all__ = ["__version__", *sorted(_NAMES)]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'lifelong' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, attribute = _NAMES[name].partition(":")
    found = importlib.import_module(module)
    value = globals()[name] = getattr(found, attribute) if attribute else found
    return value


def __dir__() -> list[str]:
    return __all__
