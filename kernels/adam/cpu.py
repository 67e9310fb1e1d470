"""Compiled (`cpu.c`)."""

from __future__ import annotations

from lifelong.kernels import build

CLIP = build.function("lifelong.kernels.adam", "clip", "id" + "p" * 3)
ADAM = build.function("lifelong.kernels.adam", "adam", "iii" + "d" * 5 + "p" * 7)
DESCEND = build.function("lifelong.kernels.adam", "descend", "iidd" + "p" * 4)
