"""Fixtures of the kernel tests."""

from tests.kernels.support import poisoned_memory

__all__ = ["poisoned_memory"]
