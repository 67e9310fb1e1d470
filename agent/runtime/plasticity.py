"""Plasticity metrics of the cell's output on the last chunk."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lifelong.agent.policy import Policy, inputs_of
from lifelong.replay.chunk import Chunk

#: a unit is dormant if its score is at most this (Sokar et al. 2023, section 3)
DORMANT = 0.025
#: steps of a chunk that are looked at, about
ROWS = 1024


def stride(steps: int, copies: int) -> int:
    """The distance of rows of a flattened chunk [T * B], of which about `ROWS` are looked at; it shares no factor with
    B, or else some copies, maybe all those of a task, would never be seen."""
    found = max(1, steps * copies // ROWS)
    while math.gcd(found, copies) > 1:
        found += 1
    return found


def dormant_units(y_MN: Tensor) -> float:
    """Share of units k with mean|y_k| / mean_j mean|y_j| <= 0.025, means over M rows (Sokar et al. 2023, ICML,
    definition 1)."""
    score = y_MN.abs().mean(0)
    return float((score <= DORMANT * score.mean()).double().mean())


def effective_rank(y_MN: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007)."""
    singular = torch.linalg.svdvals(y_MN.double())
    p = singular / singular.sum().clamp(min=1e-12)
    return float(torch.exp(-(p * torch.log(p.clamp(min=1e-12))).sum()))


@torch.no_grad()
def plasticity(policy: Policy, chunk: Chunk) -> dict[str, float]:
    """Scalars under `plasticity/`:

    - `dormant_units`: share of units that hardly say anything (see `dormant_units`) over the T x B steps of the chunk;
    - `effective_rank`: of the outputs (see `effective_rank`);
    - `weight_norm`: root mean square of all parameters.
    """
    y, _ = policy.cell.sequence(policy.encode(inputs_of(chunk)), chunk.state, chunk.is_init)
    y_MH = y.flatten(0, 1)
    weights = torch.cat([parameter.flatten() for parameter in policy.parameters()])
    return {
        "plasticity/dormant_units": dormant_units(y_MH),
        "plasticity/effective_rank": effective_rank(y_MH[:: stride(chunk.steps, chunk.copies)]),
        "plasticity/weight_norm": float(weights.square().mean().sqrt()),
    }
