"""Advantage estimators for chunks with episode ends inside: GAE and V-trace, each one reverse scan.

terminated_TB and truncated_TB are flags of the step: the episode ended *with* step t, and step t + 1 belongs to the
next episode. The value after step t is 0 if terminated (which wins if both are set), final_value[t] (the value of the
episode's last observation) if truncated, value[t+1] otherwise, and the bootstrap after the chunk's last step. The
recursion is cut at every episode end. Values of final_value where nothing was truncated are not used. Nothing here is
differentiable.
"""

from __future__ import annotations

import torch

from lifelong.kernels.dispatch import Op, check, check_mask

_GAE = Op("gae", "lifelong.kernels.advantages")
_VTRACE = Op("vtrace", "lifelong.kernels.advantages")


def _check(op: str, tensors: tuple[torch.Tensor, ...]) -> None:
    reward, value, bootstrap, terminated, truncated, final_value = tensors
    if reward.ndim != 2 or reward.shape[0] == 0:
        raise ValueError(f"{op}: reward must have shape (T >= 1, B), got {tuple(reward.shape)}")
    check(op, "value", value, reward.shape, reward)
    check(op, "bootstrap", bootstrap, reward.shape[1:], reward)
    check_mask(op, "terminated", terminated, reward.shape, reward)
    check_mask(op, "truncated", truncated, reward.shape, reward)
    check(op, "final_value", final_value, reward.shape, reward)


@torch.no_grad()
def gae(
    reward_TB: torch.Tensor,
    value_TB: torch.Tensor,
    bootstrap_B: torch.Tensor,
    terminated_TB: torch.Tensor,
    truncated_TB: torch.Tensor,
    final_value_TB: torch.Tensor,
    gamma: float,
    lam: float,
    *,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation: (advantage_TB, return_TB), return = advantage + value.

    A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V'_t - V_t with V' the value after the step (module
    docstring). Source: Schulman et al., "High-Dimensional Continuous Control Using GAE" (ICLR 2016), equation 16.
    """
    tensors = (reward_TB, value_TB, bootstrap_B, terminated_TB, truncated_TB, final_value_TB)
    _check("gae", tensors)
    return _GAE.module(backend, reward_TB).gae(tensors, gamma, lam)


@torch.no_grad()
def vtrace(
    log_ratio_TB: torch.Tensor,
    reward_TB: torch.Tensor,
    value_TB: torch.Tensor,
    bootstrap_B: torch.Tensor,
    terminated_TB: torch.Tensor,
    truncated_TB: torch.Tensor,
    final_value_TB: torch.Tensor,
    gamma: float,
    lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    *,
    advantage_lam: float | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """V-trace: (vs_TB, advantage_TB), the value targets and rho_t (r_t + gamma q_{t+1} - V_t).

    log_ratio_TB: log pi(a|x) - log mu(a|x) of learner and behaviour policy. rho = min(rho_bar, ratio), c = lam
    min(c_bar, ratio). q = advantage_lam vs + (1 - advantage_lam) V; at an episode end, and after the last step, it is
    the value after the step (module docstring). advantage_lam is lam by default: on data of the current policy the
    advantage is then that of `gae`. 1 is the letter of the IMPALA paper, where lam enters c alone. Source: Espeholt et
    al., "IMPALA" (ICML 2018), equation 1, remark 2 (lam) and section 4.2 (the policy gradient); the mixture q is that
    of rlax (`vtrace_td_error_and_advantage`).
    """
    tensors = (reward_TB, value_TB, bootstrap_B, terminated_TB, truncated_TB, final_value_TB)
    _check("vtrace", tensors)
    check("vtrace", "log_ratio", log_ratio_TB, reward_TB.shape, reward_TB)
    mix = lam if advantage_lam is None else advantage_lam
    return _VTRACE.module(backend, reward_TB).vtrace((log_ratio_TB, *tensors), gamma, lam, rho_bar, c_bar, mix)
