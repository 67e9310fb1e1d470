"""Chunk: T steps of B environment copies, the unit of training and of replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass
class Chunk:
    """Everything that was seen, done and predicted during T steps of B copies, time-major [T, B, ...].

    `is_init[t]` means that the memory was reset before step t consumed `obs[t]`. `final_value[t]` is the value of the
    true last observation where an episode was truncated at step t (zero elsewhere); `bootstrap_value` is the value of
    the observation after the last step. `weight` is 0 for steps that must not be learned from (burn-in, dead steps).
    """

    obs: Tensor  # [T, B, ...]
    previous_action: Tensor  # [T, B, F] features of the action before this step
    previous_reward: Tensor  # [T, B]
    task: Tensor  # [T, B] int64, task of the stream (seen by the agent only if it is observed)
    action_mask: Tensor  # [T, B, A] bool, or [T, B, 0] when nothing is masked
    is_init: Tensor  # [T, B] bool
    action: Tensor  # [T, B, ...]
    reward: Tensor  # [T, B]
    terminated: Tensor  # [T, B] bool
    truncated: Tensor  # [T, B] bool
    log_prob: Tensor  # [T, B] of the behaviour policy
    policy: Tensor  # [T, B, P] distribution parameters of the behaviour policy
    value: Tensor  # [T, B] of the behaviour policy
    final_value: Tensor  # [T, B]
    target: Tensor  # [T, B, ...] truth of prediction tasks ([T, B, 0] elsewhere)
    target_mask: Tensor  # [T, B] bool, where `target` counts
    weight: Tensor  # [T, B]
    bootstrap_value: Tensor  # [B]
    state: Tensor  # [B, S] memory before the first step, before any reset

    @property
    def steps(self) -> int:
        """T."""
        return self.obs.shape[0]

    @property
    def copies(self) -> int:
        """B."""
        return self.obs.shape[1]

    def map(self, function: Callable[[str, Tensor, int], Tensor]) -> Chunk:
        """A chunk of `function(name, tensor, dimension of the copies)` for every field."""
        changed = {}
        for f in fields(self):
            tensor = getattr(self, f.name)
            changed[f.name] = function(f.name, tensor, 0 if f.name in ("bootstrap_value", "state") else 1)
        return replace(self, **changed)

    def masking(self, actions: int) -> Chunk:
        """The chunk with a mask over `actions` actions; one that masks nothing allows them all."""
        if self.action_mask.shape[-1] == actions:
            return self
        return replace(self, action_mask=self.action_mask.new_ones(*self.action_mask.shape[:2], actions))

    def select(self, index: Tensor) -> Chunk:
        """The copies `index` (int64)."""
        return self.map(lambda name, tensor, dim: tensor.index_select(dim, index))


def concatenate(chunks: list[Chunk]) -> Chunk:
    """Chunks of the same length side by side, as one chunk with all their copies."""
    actions = max(chunk.action_mask.shape[-1] for chunk in chunks)
    chunks = [chunk.masking(actions) for chunk in chunks]
    return chunks[0].map(lambda name, tensor, dim: torch.cat([getattr(c, name) for c in chunks], dim))
