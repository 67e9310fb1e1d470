"""Rewards over the running deviation of the discounted return (Engstrom et al. 2020, ICLR; at every step Elsayed, Vasan
& Mahmood 2024, arXiv 2410.14606, algorithm 5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.agent.modules.running import Running
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.envs.options import Share
from lifelong.replay.chunk import Chunk


class NormalizeRewards(Strategy):
    """r_t / sd(G), with G_t = gamma G_{t-1} + r_t of every copy's episode so far and sd its deviation over all steps of
    all copies, this chunk included; for the loss alone. The mean is not taken off, so that nothing that pays becomes a
    cost. Every objective is then used to returns of the same size, whatever the unit of a reward is.

    A replay keeps the rewards of the environment; they are divided when they come back, by what the deviation is then,
    if this stands behind the strategy that replays.

    Args:
        gamma: discount; that of the objective is the one to take.
    """

    data_parallel: ClassVar[str] = "shard"

    def __init__(self, *, gamma: Share = 0.99) -> None:
        self.gamma = gamma
        self.seen = Running()
        self.return_B: Tensor | None = None

    def setup(self, ctx: Context, seed: int) -> None:
        self.seen.to(ctx.device)

    def extra_reward(self, ctx: Context, chunk: Chunk) -> Tensor:
        return_B = self.return_B
        if return_B is None or len(return_B) != chunk.copies:
            return_B = torch.zeros_like(chunk.reward[0])
        rows = []
        for reward_B, end_B in zip(chunk.reward, chunk.terminated | chunk.truncated, strict=True):
            rows.append(self.gamma * return_B + reward_B)
            return_B = rows[-1].masked_fill(end_B, 0.0)
        self.return_B = return_B
        self.seen.add(torch.stack(rows), chunk.weight, ctx.workers)
        return chunk.reward * (1.0 / self.seen.deviation().to(chunk.reward.dtype) - 1.0)

    def transform_batch(self, ctx: Context, chunk: Chunk) -> Chunk:
        live = ctx.copies if ctx.rows is None else len(ctx.rows)
        if chunk.copies <= live:
            return chunk
        factor = torch.ones(chunk.copies, device=chunk.reward.device, dtype=chunk.reward.dtype)
        factor[live:] = 1.0 / self.seen.deviation().to(factor)
        return replace(chunk, reward=chunk.reward * factor)

    def report(self) -> dict[str, float]:
        """`deviation`: of the discounted return."""
        return {"deviation": float(self.seen.deviation())}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": dict(self.seen.state_dict()), "return": self.return_B}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen.load_state_dict(state["seen"])
        self.return_B = None if state["return"] is None else state["return"].to(self.seen.mean.device)
