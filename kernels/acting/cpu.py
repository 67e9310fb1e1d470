"""Compiled (`cpu.c`)."""

from __future__ import annotations

from lifelong.kernels import build

_FOLDER = "lifelong.kernels.acting"
PLACE = build.function(_FOLDER, "place_call", "pp")
ONE_HOT = build.function(_FOLDER, "one_hot_call", "pp")
MASKED = build.function(_FOLDER, "masked_call", "pp")
REWARD = build.function(_FOLDER, "reward_call", "pp")
HEADS = build.function(_FOLDER, "heads_call", "pp")
MODE = build.function(_FOLDER, "mode_call", "pp")
GAUSSIAN = build.function(_FOLDER, "gaussian_call", "pp")
PREPARE = build.function(_FOLDER, "prepare_call", "pp")
RECURRENCE = build.function(_FOLDER, "recurrence_call", "pp")
