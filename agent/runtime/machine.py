"""What this run runs on, for the records."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

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
        import torch

        accelerator = torch.cuda.get_device_name(device)
    return {"system": platform.system(), "processor": name, "cores": os.cpu_count(), "accelerator": accelerator}
