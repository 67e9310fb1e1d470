"""Where the numbers of a log go besides the files of the run folder and TensorBoard: CSV, Weights & Biases, MLflow.

Each gets what `metrics.jsonl` gets, the same numbers at the same steps, and the config; a run that goes on, too.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lifelong.agent.difference import flat
from lifelong.agent.errors import ConfigError
from lifelong.agent.files import write_json
from lifelong.agent.runtime.appended import CSV, Appended

#: {tracker: id of this run there}, in the run folder
IDS = "trackers.json"


class Tracker:
    """One destination.

    Args:
        folder: run folder.
        config: the resolved config, as plain data.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Numbers at a step; those that are not finite are left out."""
        raise NotImplementedError

    def sync(self) -> None:
        """Have everything where it stays, as far as this process can."""

    def close(self) -> None:
        """Nothing comes any more."""


class Table(Tracker):
    """`metrics.csv`: a line for every number, `step,name,value`; cut back on resume like every file of the log."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.file = Appended(folder / CSV)
        if not self.file.size:
            self.file.write(b"step,name,value\n")

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        def quoted(name: str) -> str:
            return '"' + name.replace('"', '""') + '"' if set(name) & set(',"') else name

        lines = [f"{step},{quoted(name)},{value!r}\n" for name, value in scalars.items()]
        self.file.write("".join(lines).encode())

    def sync(self) -> None:
        self.file.sync()

    def close(self) -> None:
        self.file.close()


class WandB(Tracker):
    """Weights & Biases. Nothing is sent unless `WANDB_MODE` is `online`; `wandb sync` sends it later."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        wandb = _module("wandb", "wandb")
        known = _known(folder, "wandb")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "lifelong"),
            name=f"{config['name']}-{config['seed']}",
            id=known,
            resume="allow",
            dir=str(folder),
            config=flat(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )
        _remember(folder, "wandb", self.run.id)

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log(dict(scalars), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow(Tracker):
    """MLflow, at `MLFLOW_TRACKING_URI`; without it in the folder `mlruns` of the run folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        tracking = _module("mlflow.tracking", "mlflow")
        self.metric = _module("mlflow.entities", "mlflow").Metric
        place = os.environ.get("MLFLOW_TRACKING_URI", (folder / "mlruns").absolute().as_uri())
        self.client = tracking.MlflowClient(tracking_uri=place)
        self.run_id = _known(folder, "mlflow") or self._begun(config)
        self.seen: dict[str, int] = {}
        self.resumed = _known(folder, "mlflow") is not None
        _remember(folder, "mlflow", self.run_id)

    def _begun(self, config: Mapping[str, Any]) -> str:
        found = self.client.get_experiment_by_name("lifelong")
        experiment = found.experiment_id if found else self.client.create_experiment("lifelong")
        run = self.client.create_run(experiment, run_name=f"{config['name']}-{config['seed']}")
        for key, value in flat(config).items():
            self.client.log_param(run.info.run_id, _named(key), value)
        return str(run.info.run_id)

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        new = [self.metric(_named(name), value, now, step) for name, value in scalars.items() if self._new(name, step)]
        if new:
            self.client.log_batch(self.run_id, metrics=new)

    def _new(self, name: str, step: int) -> bool:
        """Whether the point is not there yet: a run that was killed comes by the same steps, with the same numbers."""
        if not self.resumed:
            return True
        if name not in self.seen:
            points = self.client.get_metric_history(self.run_id, _named(name))
            self.seen[name] = max((point.step for point in points), default=-1)
        return step > self.seen[name]

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


TRACKERS: dict[str, type[Tracker]] = {"csv": Table, "wandb": WandB, "mlflow": MLflow}


def opened(folder: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Those that the config names.

    Raises:
        ConfigError: a package is missing; the sentence says which.
        DiskError: the folder cannot be written.
    """
    return [TRACKERS[name](folder, config) for name in config["trackers"]]


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"trackers has {package}, which needs a package that is missing; pip install 'lifelong[{package}]'"
        ) from error


def _named(name: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _ids(folder: Path) -> dict[str, str]:
    path = folder / IDS
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _known(folder: Path, tracker: str) -> str | None:
    return _ids(folder).get(tracker)


def _remember(folder: Path, tracker: str, run: str) -> None:
    write_json(folder / IDS, {**_ids(folder), tracker: run})
