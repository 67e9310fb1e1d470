"""Policies that search in a Forager: bounds to what an agent may find.

`nearest` knows where all things are, `oracle` knows what they give now, too; neither sees further than one step ahead.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lifelong.envs.forager.forager import HEIGHT, MOVES, WIDTH, Forager, ForagerState

FAR = 1e3


def search(env: Forager, state: ForagerState, policy: Literal["nearest", "oracle", "random"]) -> Tensor:
    """The actions of a policy, int64 [B].

    Args:
        env: the environment.
        state: its state.
        policy: `nearest` goes to the nearest thing, `oracle` to the nearest one that gives more than nothing and around
            those that take; `random` goes anywhere.
    """
    noise = torch.rand(env.num_envs, len(MOVES), generator=env.generator, device=env.device)
    if policy == "random":
        return noise.argmax(1)
    worth, there = env.worth(state), state.things > 0
    wanted = worth > 0 if policy == "oracle" else there
    target_y, target_x = env.cells // WIDTH, env.cells % WIDTH
    costs = []
    for dy, dx in MOVES:
        y, x = (state.y + dy) % HEIGHT, (state.x + dx) % WIDTH
        wall = env.worlds[0][state.layout, y * WIDTH + x]
        across = (target_y - y.unsqueeze(1)).abs()
        along = (target_x - x.unsqueeze(1)).abs()
        distance = torch.minimum(across, HEIGHT - across) + torch.minimum(along, WIDTH - along)
        cost = torch.where(wanted, distance.float(), FAR).amin(1) + FAR * wall
        if policy == "oracle":
            loss = torch.where((distance == 0) & there, worth, 0.0).sum(1).clamp(max=0.0)
            cost = cost - 10 * loss
        costs.append(cost)
    return (torch.stack(costs, 1) + 0.9 * noise).argmin(1)
