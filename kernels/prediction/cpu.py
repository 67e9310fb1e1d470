"""Compiled (`cpu.c`)."""

from __future__ import annotations

from lifelong.kernels import build

PREDICTION = build.function("lifelong.kernels.prediction", "prediction", "iii" + "p" * 8)
