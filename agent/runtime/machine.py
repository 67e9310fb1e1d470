"""What this run runs on, for the records."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("lifelong", "torch", "numpy", "gymnasium", "tensorboard")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
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
        import torch

        accelerator = torch.cuda.get_device_name(device)
    return {"system": platform.system(), "processor": name, "cores": os.cpu_count(), "accelerator": accelerator}
