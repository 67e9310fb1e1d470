"""Ray Train on a cluster of our own, which starts and ends with the driver.

Ray Train starts actors that serve clusters that live on: one asks the autoscaler for nodes, one removes the placement
groups of a controller that died, one watches for nodes that will be taken away, and one deals out Ray Data sets. An own
cluster is this machine alone and ends with the driver, so here they are left out. On two cores each costs a second of
the start, because every one is a process that imports Ray Train.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch import config as ray_config

from lifelong.agent.distributed import loopback

#: what serves Ray Data, clusters that outlive the run, and Ray's dashboard
CALLBACKS = {
    "DatasetsCallback",
    "PlacementGroupCleanerCallback",
    "ControllerMetricsCallback",
    "WorkerMetricsCallback",
}
WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


class OwnClusterTrainer(TorchTrainer):
    """`TorchTrainer` for a cluster that nobody else uses and that cannot grow.

    The overridden methods are not part of Ray's documented interface. A version of Ray that does not call them starts
    the actors after all; nothing else changes.
    """

    def _create_default_callbacks(self) -> list[Any]:
        defaults = super()._create_default_callbacks()  # type: ignore[misc]  # mypy sees the class of Train V1
        return [each for each in defaults if type(each).__name__ not in CALLBACKS]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if "scaling_policy" in parts:
            parts["scaling_policy"] = _without_autoscaler(parts["scaling_policy"])
        before = os.environ.get(WATCHER)
        os.environ[WATCHER] = "0"
        try:
            return super()._initialize_and_run_controller(**parts)  # type: ignore[misc]
        finally:
            os.environ.pop(WATCHER) if before is None else os.environ.update({WATCHER: before})


def _without_autoscaler(policy: Any) -> Any:
    """The policy, asking no autoscaler for the workers' resources."""

    class Policy(type(policy)):  # type: ignore[misc]
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    return Policy(policy.scaling_config)


@dataclass
class OwnTorchConfig(TorchConfig):
    """`TorchConfig` for workers on one machine: they meet in a file of the user's.

    Torch's store, where they meet otherwise, listens on every address of the machine and asks nobody who they are.
    """

    @property
    def backend_cls(self) -> type[ray_config._TorchBackend]:
        return _FileBackend


class _FileBackend(ray_config._TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        worker_group.execute(ray_config._set_torch_distributed_env_vars)
        settings = {
            "backend": "nccl" if gpus else "gloo",
            "world_size": len(worker_group),
            "init_method": f"file://{loopback.private_file()}",
            "timeout_s": backend_config.timeout_s,
        }
        setup = ray_config._setup_torch_process_group
        ray.get(
            [
                worker_group.execute_single_async(rank, setup, world_rank=rank, **settings)
                for rank in range(len(worker_group))
            ]
        )
