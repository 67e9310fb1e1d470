"""Chunk: T steps of B environment copies, the unit of training and of replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

#: fields with a row a copy, and none a step
_ONE_A_COPY = ("next_obs", "next_is_init", "bootstrap_value", "state")
#: fields with a row for every truncated step of a copy
SLOTS = ("final_step", "final_obs")


@dataclass
class Chunk:
    """Everything that was seen, done and predicted during T steps of B copies, time-major [T, B, ...].

    `is_init[t]` means that the memory was reset before step t consumed `obs[t]`. `final_value[t]` is the value of the
    true last observation where an episode was truncated at step t (zero elsewhere); `bootstrap_value` is the value of
    the observation after the last step: both of the critic that acted. What another critic needs to say its own are
    `next_*`, the observation after the last step and whether the memory is reset before it, and `final_*`, K slots a
    copy for its truncated steps (see `Policy.after`). K is as large as it must be, mostly 0 or 1. `weight` is 0 for
    steps that must not be learned from (burn-in, dead steps).
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
    final_step: Tensor  # [K, B] int64, step at which an episode was truncated; T: the slot is empty
    final_obs: Tensor  # [K, B, ...] true last observation of that episode
    next_obs: Tensor  # [B, ...] after the last step
    next_is_init: Tensor  # [B] bool
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

    @property
    def slots(self) -> int:
        """K."""
        return self.final_step.shape[0]

    def with_slots(self, slots: int) -> Chunk:
        """This chunk with so many slots for truncated steps, those that are added empty."""
        more = slots - self.slots
        if not more:
            return self
        padded = {}
        for name in SLOTS:
            tensor = getattr(self, name)
            empty = tensor.new_full((more, *tensor.shape[1:]), self.steps if name == "final_step" else 0)
            padded[name] = torch.cat([tensor, empty])
        return replace(self, **padded)

    def map(self, function: Callable[[str, Tensor, int], Tensor]) -> Chunk:
        """A chunk of `function(name, tensor, dimension of the copies)` for every field."""
        return Chunk(**{name: function(name, tensor, copies_dim(name)) for name, tensor in vars(self).items()})

    def masking(self, actions: int) -> Chunk:
        """The chunk with a mask over `actions` actions; one that masks nothing allows them all."""
        if self.action_mask.shape[-1] == actions:
            return self
        return replace(self, action_mask=self.action_mask.new_ones(*self.action_mask.shape[:2], actions))

    def select(self, index: Tensor) -> Chunk:
        """The copies `index` (int64)."""
        return self.map(lambda name, tensor, dim: tensor.index_select(dim, index))


def copies_dim(name: str) -> int:
    """The dimension of the copies in a field of a chunk."""
    return 0 if name in _ONE_A_COPY else 1


def resumed(chunk: Chunk, first: int, state: Tensor) -> Chunk:
    """The steps from `first` (1 to T - 1) on, starting from the memory `state` [B, S]; those before stand behind them
    with weight 0, so there are still T.

    To whoever looks ahead the last step that counts is truncated, unless its episode ended there, so it is followed by
    the observation after the chunk and not by what stands behind it.
    """
    last, steps = chunk.steps - first - 1, chunk.steps
    moved = chunk.map(lambda name, x, dim: x if dim == 0 or name in SLOTS else x.roll(-first, 0))
    goes_on = ~(chunk.terminated[-1] | chunk.truncated[-1])
    moved.truncated[last] |= goes_on
    moved.final_value[last] = torch.where(goes_on, chunk.bootstrap_value, moved.final_value[last])
    moved.is_init[last + 1] = True
    moved.weight[last + 1 :] = 0.0
    final_step = torch.where(chunk.final_step < steps, (chunk.final_step - first) % steps, chunk.final_step)
    slot = torch.where(goes_on, last, steps).to(final_step.dtype).unsqueeze(0)
    return replace(
        moved,
        final_step=torch.cat([final_step, slot]),
        final_obs=torch.cat([chunk.final_obs, chunk.next_obs.unsqueeze(0)]),
        state=state,
    )


def concatenate(chunks: list[Chunk]) -> Chunk:
    """Chunks of the same length side by side, as one chunk with all their copies."""
    actions = max(chunk.action_mask.shape[-1] for chunk in chunks)
    chunks = [chunk.masking(actions) for chunk in chunks]
    slots = max(chunk.slots for chunk in chunks)
    chunks = [chunk.with_slots(slots) for chunk in chunks]
    return chunks[0].map(lambda name, tensor, dim: torch.cat([getattr(c, name) for c in chunks], dim))
