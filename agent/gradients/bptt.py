"""Truncated BPTT: exact inside the chunk, nothing through the state it starts from (Williams & Peng 1990)."""

from __future__ import annotations

from lifelong.agent.gradients.base import GradientEngine


class BPTT(GradientEngine):
    """Backpropagation through the chunk's T steps. Works with every cell and carries nothing."""
