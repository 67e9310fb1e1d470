"""Compiled (`cpu.c`)."""

from __future__ import annotations

from lifelong.kernels import build

_FOLDER = "lifelong.kernels.hooks"
SET = build.function(_FOLDER, "set_number", "dp")
RAMP = build.function(_FOLDER, "ramp", "iidd" + "p" * 3)
COUNT = build.function(_FOLDER, "count", "ip")
PENALTY = build.function(_FOLDER, "penalty", "id" + "p" * 7)
PATH_BEGIN = build.function(_FOLDER, "path_begin", "iid" + "p" * 7)
PATH_END = build.function(_FOLDER, "path_end", "ii" + "p" * 6)
BOUND = build.function(_FOLDER, "bound", "ii" + "p" * 4)
TRAC_BEGIN = build.function(_FOLDER, "trac_begin", "i" + "p" * 6)
TRAC_END = build.function(_FOLDER, "trac_end", "iiiddd" + "p" * 10)
