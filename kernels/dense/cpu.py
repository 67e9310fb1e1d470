"""Compiled (`cpu.c`)."""

from __future__ import annotations

from lifelong.kernels import build

_FOLDER = "lifelong.kernels.dense"
FORWARD = build.function(_FOLDER, "forward_call", "pp")
ONE = build.function(_FOLDER, "one_call", "pp")
COLUMNS = build.function(_FOLDER, "columns_call", "pp")
SLOPE = build.function(_FOLDER, "slope_call", "pp")
WEIGHTS = build.function(_FOLDER, "weights_call", "pp")
COLUMNS_WEIGHTS = build.function(_FOLDER, "columns_weights_call", "pp")
INPUTS = build.function(_FOLDER, "inputs_call", "pp")
TRANSPOSE = build.function(_FOLDER, "transpose", "iipp")
ADD_GROUPS = build.function(_FOLDER, "add_groups", "iipp")
ADD_TRANSPOSED_GROUPS = build.function(_FOLDER, "add_transposed_groups", "iiiipp")
MULTIPLY = build.function(_FOLDER, "multiply", "ippp")
COPY_BYTES = build.function(_FOLDER, "copy_bytes", "ipp")
CLEAR = build.function(_FOLDER, "clear", "ip")
PACK = build.function(_FOLDER, "dense_pack", "iiipp")
ADD = build.function(_FOLDER, "dense_add", "iiiiiippp")
GATHER = build.function(_FOLDER, "gather", "iiiiippp")
STANDARDIZE = build.function(_FOLDER, "standardize", "ip")
