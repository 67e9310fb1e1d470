"""What this run runs on, for the records."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lifelong.agent.config import Config, RuntimeConfig
from lifelong.envs.registry import ADAPTERS
from lifelong.kernels import build, dispatch

#: packages that every run computes with
COMPUTING = ("lifelong", "torch", "numpy")
PACKAGES = ("lifelong", "torch", "numpy", "gymnasium", "tensorboard")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run depends on."""
    return {"python": platform.python_version(), **{package: version_of(package) for package in PACKAGES}}


def version_of(package: str) -> str:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def threads(runtime: RuntimeConfig, before: int = 0) -> int:
    """How many threads a process of a run computes with.

    Args:
        runtime: a number, or 0 (`auto`): the cores that this process may use, without those that others keep busy (the
            load of the last minute), one at least. Processes of Ray get one each.
        before: of a run that goes on, which goes on with as many, for its bits depend on them; 0: it begins.
    """
    if runtime.threads or runtime.backend == "ray":
        return runtime.threads or 1
    return before or max(1, round(cores() - os.getloadavg()[0]))


def cores() -> int:
    """Those that this process may use."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return found if quota == "max" else max(1, min(found, int(quota) // int(period)))
    except (OSError, ValueError):  # there are no such limits
        return found


def identity(config: Config, device: torch.device) -> dict[str, Any]:
    """What a run of `config` computes with in this process: {name: value}, of kernels {op: backend}.

    Kinds of processors are told apart by the vector instructions that torch uses, GPUs by name.
    """
    found: dict[str, Any] = {name: versions()[name] for name in COMPUTING}
    found["python"] = versions()["python"].rpartition(".")[0]
    used = {task.env["kind"] for task in config.stream.tasks}
    found |= {adapter: version_of(adapter) for adapter in ADAPTERS if adapter in used}
    on_gpu = device.type == "cuda"
    found["device"] = torch.cuda.get_device_name(device) if on_gpu else f"cpu {torch.backends.cpu.get_cpu_capability()}"
    found["threads"] = torch.get_num_threads()
    found["kernels"] = dispatch.backends(device)
    if "cpu" in found["kernels"].values():
        found["compiler"] = build.compiler()
    return found


def machine(device: str) -> dict[str, object]:
    """Processor, cores and accelerator."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    accelerator = None
    if device != "cpu":
        accelerator = torch.cuda.get_device_name(device)
    return {"system": platform.system(), "processor": name, "cores": os.cpu_count(), "accelerator": accelerator}
