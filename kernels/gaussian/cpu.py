"""Compiled (`cpu.c`)."""

from __future__ import annotations

from lifelong.kernels import build

LOG_PROB = build.function("lifelong.kernels.gaussian", "gaussian_log_prob", "ii" + "p" * 4)
LOG_PROB_BACKWARD = build.function("lifelong.kernels.gaussian", "gaussian_log_prob_backward", "ii" + "p" * 6)
