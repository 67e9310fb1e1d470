"""Grokking a + b modulo p: held-out pairs come right long after the trained ones, and progress measures see it coming.

    modular_addition.py --out FOLDER [--seed S] weight_decay=1 [modulus=23] [share=0.6] [steps=3_000_000] [size=64]

An eLSTM hears a, then b. The measures are those of Nanda et al. (2023), section 5, on the logits of all pairs: at a
frequency w they have a part along cos w(a + b) and sin w(a + b); key frequencies are the 5 strongest at the end.

- *held_out*: accuracy on the pairs that were not trained on, at the end.
- *delay*: steps until 95 % of them are right, over those until 99 % of the trained ones are; infinite if never.
- *restricted*: loss on held-out pairs of the logits' key frequencies alone, at the end.
- *excluded*: loss on trained pairs without the key frequencies, at the end.
- *gini*: Gini coefficient of the norms of what is read of a number, over frequencies, at the end.
- *ahead*: how much of its final value the Gini coefficient has when held-out accuracy first passes a half.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import recipe_row
from benchmarks.published.training import trained
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.trainer import Trainer
from lifelong.envs.prediction.modular_addition import order_of

KEY = 5


def config_of(weight_decay: float, modulus: int, share: float, steps: int, size: int) -> dict[str, Any]:
    """A run with so much weight decay."""
    return {
        "name": "modular_addition",
        "stream": {
            "steps_per_task": steps,
            "tasks": [{"name": "sums", "env": {"kind": "ModularAddition", "modulus": modulus, "share": share}}],
        },
        "policy": {"encoder": "identity", "cell": {"kind": "elstm", "size": size}},
        "gradient": "bptt",
        "objective": "supervised",
        "optimizer": {"kind": "adamw", "lr": 3e-3, "weight_decay": weight_decay},
        "rollout": {"copies": 256, "steps": 2},
        "evaluation": {"every": steps // 60, "episodes": 8, "max_steps": 2},
        "checkpoint": {"every": 10**9},
        "log_every": 10**9,
        "runtime": {"device": "cpu"},
    }


def logits_of(policy: Policy, p: int) -> Tensor:
    """What is said of a + b, for all pairs, [p, p, p]."""
    number = torch.eye(p)
    state = policy.cell.initial_state(p * p)
    _, state = policy.cell.step(number.repeat_interleave(p, 0), state)
    y, _ = policy.cell.step(number.repeat(p, 1), state)
    return nn.functional.linear(y, *policy.read_out())[:, :p].view(p, p, p)


def gini(values: np.ndarray) -> float:
    """0 if all are equal, near 1 if one has everything."""
    ordered = np.sort(values)
    n = len(ordered)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))


def read_frequencies(policy: Policy, p: int) -> np.ndarray:
    """Norms of the Fourier components, 1 to (p - 1) / 2, of the weights that read a number."""
    weight = policy.cell.get_parameter("weight_input").detach().numpy().reshape(-1, p)
    return np.linalg.norm(np.fft.rfft(weight, axis=1)[:, 1:], axis=0)


def directions(p: int) -> np.ndarray:
    """cos w(a + b) and sin w(a + b) of every frequency, orthonormal, [(p - 1) / 2, 2, p * p]."""
    total = np.add.outer(np.arange(p), np.arange(p)).ravel()
    waves = [[f(2 * math.pi * k * total / p) for f in (np.cos, np.sin)] for k in range(1, (p - 1) // 2 + 1)]
    return np.array(waves) * math.sqrt(2) / p


def loss(logits: np.ndarray, pairs: np.ndarray, truth: np.ndarray) -> float:
    """Mean cross-entropy on these pairs; logits [p * p, p]."""
    chosen = torch.from_numpy(logits[pairs])
    return float(nn.functional.cross_entropy(chosen, torch.from_numpy(truth[pairs])))


def measure(
    seed: int, weight_decay: float, modulus: int = 23, share: float = 0.6, steps: int = 3_000_000, size: int = 64
) -> dict[str, Any]:
    """Numbers of a row, and the accuracy on held-out pairs over environment steps."""
    p = modulus
    order = order_of(0, p).numpy()
    known, held_out = np.split(order, [round(share * p * p)])
    truth = np.add.outer(np.arange(p), np.arange(p)).ravel() % p
    at: list[int] = []
    right: list[tuple[float, float]] = []
    ginis: list[float] = []
    said = np.zeros((p * p, p))

    @torch.no_grad()
    def look(trainer: Trainer) -> None:
        nonlocal said
        policy = trainer.rollout.policy
        said = logits_of(policy, p).view(p * p, p).double().numpy()
        hit = said.argmax(1) == truth
        at.append(trainer.step)
        right.append((hit[known].mean(), hit[held_out].mean()))
        ginis.append(gini(read_frequencies(policy, p)))

    trained(config_of(weight_decay, p, share, steps, size), seed, look)
    trained_right, held_right = np.array(right).T
    waves = directions(p)
    parts = np.einsum("kin,nc->kic", waves, said)
    key = np.argsort(np.square(parts).sum((1, 2)))[-KEY:]
    only = np.einsum("kin,kic->nc", waves[key], parts[key])

    def first(values: np.ndarray, level: float) -> int | None:
        return int(np.argmax(values >= level)) if (values >= level).any() else None

    memorised, grokked, half = first(trained_right, 0.99), first(held_right, 0.95), first(held_right, 0.5)
    rise = ginis[-1] - ginis[0]
    return {
        "held_out": held_right[-1],
        "delay": at[grokked] / at[memorised] if grokked is not None and memorised is not None else math.inf,
        "restricted": loss(only, held_out, truth),
        "excluded": loss(said - only, known, truth),
        "gini": ginis[-1],
        "ahead": (ginis[half] - ginis[0]) / rise if half is not None else math.nan,
        "curve": [at, [round(float(x), 4) for x in held_right]],
    }


if __name__ == "__main__":
    recipe_row(measure, __doc__)
