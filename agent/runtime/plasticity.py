"""Plasticity metrics of the cell's output on the last chunk."""

from __future__ import annotations

import math

import torch

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


@torch.no_grad()
def plasticity(policy: Policy, chunk: Chunk) -> dict[str, float]:
    """Scalars under `plasticity/`:

    - `dormant_units`: share of units k with mean|y_k| / mean_j mean|y_j| <= 0.025, means over the T x B steps of the
      chunk (Sokar et al. 2023, ICML, definition 1);
    - `effective_rank`: exp of the entropy of the normalised singular values of the outputs (Roy & Vetterli 2007);
    - `weight_norm`: root mean square of all parameters.
    """
    y, _ = policy.cell.sequence(policy.encode(inputs_of(chunk)), chunk.state, chunk.is_init)
    y_MH = y.flatten(0, 1)
    score = y_MH.abs().mean(0)
    dormant = (score <= DORMANT * score.mean()).double().mean()
    singular = torch.linalg.svdvals(y_MH[:: stride(chunk.steps, chunk.copies)].double())
    p = singular / singular.sum().clamp(min=1e-12)
    rank = torch.exp(-(p * torch.log(p.clamp(min=1e-12))).sum())
    weights = torch.cat([parameter.flatten() for parameter in policy.parameters()])
    return {
        "plasticity/dormant_units": float(dormant),
        "plasticity/effective_rank": float(rank),
        "plasticity/weight_norm": float(weights.square().mean().sqrt()),
    }
