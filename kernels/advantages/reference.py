"""GAE and V-trace as recursions over time; the oracle of the other backends."""

from __future__ import annotations

import torch


def next_values(
    value_TB: torch.Tensor,
    bootstrap_B: torch.Tensor,
    terminated_TB: torch.Tensor,
    truncated_TB: torch.Tensor,
    final_value_TB: torch.Tensor,
) -> torch.Tensor:
    """Value after each step: 0 if terminated, the final observation's if truncated, else that of the next step."""
    following_TB = torch.cat([value_TB[1:], bootstrap_B[None]])
    return torch.where(truncated_TB, final_value_TB, following_TB).masked_fill(terminated_TB, 0.0)


def gae(tensors: tuple[torch.Tensor, ...], gamma: float, lam: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantage_TB, return_TB) of (reward, value, bootstrap, terminated, truncated, final_value)."""
    reward_TB, value_TB, bootstrap_B, terminated_TB, truncated_TB, final_value_TB = tensors
    delta_TB = reward_TB - value_TB
    delta_TB = delta_TB + gamma * next_values(value_TB, bootstrap_B, terminated_TB, truncated_TB, final_value_TB)
    keep_TB = (~(terminated_TB | truncated_TB)).to(delta_TB.dtype)
    sum_B, advantages = torch.zeros_like(bootstrap_B), []
    for delta_B, keep_B in zip(delta_TB.flip(0), keep_TB.flip(0), strict=True):
        sum_B = delta_B + gamma * lam * keep_B * sum_B
        advantages.append(sum_B)
    advantage_TB = torch.stack(advantages[::-1])
    return advantage_TB, advantage_TB + value_TB


def vtrace(
    tensors: tuple[torch.Tensor, ...], gamma: float, lam: float, rho_bar: float, c_bar: float, mix: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(vs_TB, advantage_TB) of (log_ratio, reward, value, bootstrap, terminated, truncated, final_value)."""
    log_ratio_TB, reward_TB, value_TB, bootstrap_B, terminated_TB, truncated_TB, final_value_TB = tensors
    next_TB = next_values(value_TB, bootstrap_B, terminated_TB, truncated_TB, final_value_TB)
    ratio_TB = log_ratio_TB.exp()
    rho_TB, c_TB = ratio_TB.clamp(max=rho_bar), lam * ratio_TB.clamp(max=c_bar)
    base_TB = reward_TB + gamma * next_TB - value_TB
    keep_TB = (~(terminated_TB | truncated_TB)).to(base_TB.dtype)
    excess_B = torch.zeros_like(bootstrap_B)  # vs - V of the step after
    targets, advantages = [], []
    for t in range(len(base_TB) - 1, -1, -1):
        after_B = keep_TB[t] * excess_B
        advantages.append(rho_TB[t] * (base_TB[t] + gamma * mix * after_B))
        excess_B = rho_TB[t] * base_TB[t] + gamma * c_TB[t] * after_B
        targets.append(excess_B + value_TB[t])
    return torch.stack(targets[::-1]), torch.stack(advantages[::-1])
