"""Compiled (`cpu.c`)."""

from __future__ import annotations

from lifelong.kernels import build

_FOLDER = "lifelong.kernels.dense"
FORWARD = build.function(_FOLDER, "forward_call", "pp")
COLUMNS = build.function(_FOLDER, "columns_call", "pp")
SLOPE = build.function(_FOLDER, "slope_call", "pp")
WEIGHTS = build.function(_FOLDER, "weights_call", "pp")
COLUMNS_WEIGHTS = build.function(_FOLDER, "columns_weights_call", "pp")
INPUTS = build.function(_FOLDER, "inputs_call", "pp")
PACK = build.function(_FOLDER, "pack_call", "pp")
PACK_NOW = build.function(_FOLDER, "dense_pack", "iiipp")
