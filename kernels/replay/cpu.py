"""Compiled (`cpu.c`)."""

from __future__ import annotations

from lifelong.kernels import build

_FOLDER = "lifelong.kernels.replay"
TAKE = build.function(_FOLDER, "take", "i" * 7 + "p" * 3)
PUT = build.function(_FOLDER, "put", "i" * 7 + "p" * 3)
PUT_SLOTS = build.function(_FOLDER, "put_slots", "i" * 5 + "p" * 6)
FOLLOWING = build.function(_FOLDER, "following", "i" * 10 + "p" * 11)
PLACE_FINAL = build.function(_FOLDER, "place_final", "iii" + "p" * 3)
ONE_HOT = build.function(_FOLDER, "columns_one_hot", "i" * 5 + "pp")
SUBTRACT = build.function(_FOLDER, "subtract", "i" + "p" * 3)
WEIGH = build.function(_FOLDER, "weigh", "iii" + "p" * 6)
TOTAL = build.function(_FOLDER, "total", "ipp")
MORE_ENTROPY = build.function(_FOLDER, "more_entropy", "idd" + "p" * 5)
MATCH = build.function(_FOLDER, "match", "i" * 6 + "dd" + "p" * 12)
