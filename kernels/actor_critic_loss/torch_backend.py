"""The reference is all that torch needs: a dozen small operations, which a GPU captures in its graph."""

from __future__ import annotations

from lifelong.kernels.actor_critic_loss.reference import differentiable_loss

__all__ = ["differentiable_loss"]
