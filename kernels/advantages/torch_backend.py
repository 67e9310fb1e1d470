"""GAE and V-trace in torch operations: everything but the two-operand recursion is done for all steps at once."""

from __future__ import annotations

import torch

from lifelong.kernels.advantages.reference import next_values


def _reverse_scan(decay_TB: torch.Tensor, x_TB: torch.Tensor) -> torch.Tensor:
    """y_t = x_t + decay_t y_{t+1}, in place."""
    for t in range(len(x_TB) - 2, -1, -1):
        x_TB[t].addcmul_(decay_TB[t], x_TB[t + 1])
    return x_TB


def gae(tensors: tuple[torch.Tensor, ...], gamma: float, lam: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantage_TB, return_TB) of (reward, value, bootstrap, terminated, truncated, final_value)."""
    reward_TB, value_TB, bootstrap_B, terminated_TB, truncated_TB, final_value_TB = tensors
    next_TB = next_values(value_TB, bootstrap_B, terminated_TB, truncated_TB, final_value_TB)
    delta_TB = torch.add(reward_TB, next_TB, alpha=gamma).sub_(value_TB)
    decay_TB = (~(terminated_TB | truncated_TB)).to(delta_TB.dtype).mul_(gamma * lam)
    advantage_TB = _reverse_scan(decay_TB, delta_TB)
    return advantage_TB, advantage_TB + value_TB


def vtrace(
    tensors: tuple[torch.Tensor, ...], gamma: float, lam: float, rho_bar: float, c_bar: float, mix: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(vs_TB, advantage_TB) of (log_ratio, reward, value, bootstrap, terminated, truncated, final_value)."""
    log_ratio_TB, reward_TB, value_TB, bootstrap_B, terminated_TB, truncated_TB, final_value_TB = tensors
    next_TB = next_values(value_TB, bootstrap_B, terminated_TB, truncated_TB, final_value_TB)
    ratio_TB = log_ratio_TB.exp()
    rho_TB = ratio_TB.clamp(max=rho_bar)
    base_TB = torch.add(reward_TB, next_TB, alpha=gamma).sub_(value_TB)
    keep_TB = (~(terminated_TB | truncated_TB)).to(base_TB.dtype).mul_(gamma)
    excess_TB = _reverse_scan(ratio_TB.clamp(max=c_bar).mul_(lam) * keep_TB, rho_TB * base_TB)
    after_TB = torch.cat([excess_TB[1:], torch.zeros_like(excess_TB[:1])]).mul_(keep_TB)
    return excess_TB + value_TB, rho_TB * base_TB.add_(after_TB, alpha=mix)
