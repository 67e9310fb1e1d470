"""Compiled (`cpu.c`)."""

from __future__ import annotations

from lifelong.kernels import build

SLOPES = build.function("lifelong.kernels.traces", "streaming_slopes", "ddd" + "p" * 13)
TRACE = build.function("lifelong.kernels.traces", "trace", "iiddd" + "p" * 5)
