"""GAE and V-trace against a literal sum per definition, with episode ends everywhere."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lifelong.kernels.advantages import gae, vtrace
from tests.kernels.support import BACKENDS, assert_close

T, B = 5, 27
GAMMA, LAM = 0.9, 0.8


def chunk(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[torch.Tensor]:
    """(log_ratio, reward, value, bootstrap, terminated, truncated, final_value); copy i has its own pattern of ends."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    ends = torch.tensor(list(itertools.product(range(3), repeat=3))).T  # none, terminated, truncated at 3 steps
    terminated, truncated = torch.zeros(T, B, dtype=torch.bool), torch.zeros(T, B, dtype=torch.bool)
    for row, t in enumerate((0, 2, T - 1)):
        terminated[t], truncated[t] = ends[row] == 1, ends[row] == 2
    terminated[3, ::4] = truncated[3, ::4] = True  # both: terminated wins
    truncated[1, 1::5] = True
    final_value = torch.where(truncated, normal(T, B), torch.nan)  # unused entries must not matter
    return [normal(T, B), normal(T, B), normal(T, B), normal(B), terminated, truncated, final_value]


def after(tensors: list[torch.Tensor], t: int, b: int) -> float:
    _, _, value, bootstrap, terminated, truncated, final_value = tensors
    if terminated[t, b]:
        return 0.0
    if truncated[t, b]:
        return float(final_value[t, b])
    return float(value[t + 1, b]) if t + 1 < T else float(bootstrap[b])


def episode_steps(tensors: list[torch.Tensor], t: int, b: int) -> list[int]:
    """Steps from t to the end of its episode or of the chunk."""
    over = tensors[4] | tensors[5]
    last = next((s for s in range(t, T) if over[s, b]), T - 1)
    return list(range(t, last + 1))


def slow_gae(tensors: list[torch.Tensor]) -> torch.Tensor:
    _, reward, value = tensors[:3]
    result = torch.zeros(T, B, dtype=torch.float64)
    for t, b in itertools.product(range(T), range(B)):
        for s in episode_steps(tensors, t, b):
            delta = float(reward[s, b]) + GAMMA * after(tensors, s, b) - float(value[s, b])
            result[t, b] += (GAMMA * LAM) ** (s - t) * delta
    return result


def slow_vtrace(
    tensors: list[torch.Tensor], rho_bar: float, c_bar: float, mix: float = LAM
) -> tuple[torch.Tensor, torch.Tensor]:
    log_ratio, reward, value = tensors[:3]
    target, advantage = torch.zeros(T, B, dtype=torch.float64), torch.zeros(T, B, dtype=torch.float64)
    for t, b in itertools.product(range(T), range(B)):
        target[t, b] = value[t, b]
        for s in episode_steps(tensors, t, b):
            trace = math.prod(LAM * min(c_bar, math.exp(log_ratio[i, b])) for i in range(t, s))
            rho = min(rho_bar, math.exp(log_ratio[s, b]))
            delta = rho * (float(reward[s, b]) + GAMMA * after(tensors, s, b) - float(value[s, b]))
            target[t, b] += GAMMA ** (s - t) * trace * delta
    for t, b in itertools.product(range(T), range(B)):
        inside = len(episode_steps(tensors, t, b)) > 1
        following = after(tensors, t, b)
        if inside:
            following = mix * float(target[t + 1, b]) + (1 - mix) * following
        rho = min(rho_bar, math.exp(log_ratio[t, b]))
        advantage[t, b] = rho * (float(reward[t, b]) + GAMMA * following - float(value[t, b]))
    return target, advantage


@pytest.mark.parametrize("backend", BACKENDS)
def test_gae_equals_the_literal_sum(backend: str) -> None:
    tensors = chunk()
    advantage, returns = gae(*tensors[1:], GAMMA, LAM, backend=backend)
    expected = slow_gae(tensors)
    assert_close(advantage, expected, 1e-13)
    assert_close(returns, expected + tensors[2], 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rho_bar", "c_bar"), [(1.0, 1.0), (2.0, 0.7)])
def test_vtrace_equals_the_literal_sum(backend: str, rho_bar: float, c_bar: float) -> None:
    tensors = chunk()
    target, advantage = vtrace(*tensors, GAMMA, LAM, rho_bar, c_bar, backend=backend)
    expected_target, expected_advantage = slow_vtrace(tensors, rho_bar, c_bar)
    assert_close(target, expected_target, 1e-13)
    assert_close(advantage, expected_advantage, 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_the_advantage_mixes_the_next_target_and_the_next_value_as_asked(backend: str, mix: float) -> None:
    """1 is the letter of the IMPALA paper: rho (r + gamma v - V), whatever lambda is."""
    tensors = chunk()
    got = vtrace(*tensors, GAMMA, LAM, 2.0, 0.7, advantage_lam=mix, backend=backend)
    for result, expected in zip(got, slow_vtrace(tensors, 2.0, 0.7, mix), strict=True):
        assert_close(result, expected, 1e-13)


def rlax_vtrace(tensors: list[torch.Tensor], rho_bar: float, pg_rho_bar: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`rlax.vtrace_td_error_and_advantage`, written again from its published formulas: discounts are zero at ends, the
    errors are accumulated backwards, and q mixes target and value of the next step."""
    log_ratio, reward, v_tm1, bootstrap, terminated, truncated, _ = tensors
    ratio, v_t = log_ratio.exp(), torch.cat([v_tm1[1:], bootstrap[None]])
    discount = GAMMA * (~(terminated | truncated)).to(reward.dtype)
    c, rho = LAM * ratio.clamp(max=1.0), ratio.clamp(max=rho_bar)
    errors, acc = torch.zeros_like(reward), torch.zeros_like(bootstrap)
    for i in reversed(range(T)):
        acc = rho[i] * (reward[i] + discount[i] * v_t[i] - v_tm1[i]) + discount[i] * c[i] * acc
        errors[i] = acc
    targets = errors + v_tm1
    q = torch.cat([LAM * targets[1:] + (1 - LAM) * v_tm1[1:], v_t[-1:]])
    return targets, ratio.clamp(max=pg_rho_bar) * (reward + discount * q - v_tm1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_targets_and_advantages_are_those_of_rlax(backend: str) -> None:
    tensors = chunk()
    tensors[6] = torch.zeros_like(tensors[6])  # rlax knows one kind of end: a discount of zero
    got = vtrace(*tensors, GAMMA, LAM, 1.5, 1.0, backend=backend)
    for result, expected in zip(got, rlax_vtrace(tensors, 1.5, 1.5), strict=True):
        assert_close(result, expected, 1e-13)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_fp32_equals_the_reference(backend: str) -> None:
    tensors = chunk(torch.float32)
    for got, expected in zip(
        vtrace(*tensors, GAMMA, backend=backend), vtrace(*tensors, GAMMA, backend="reference"), strict=True
    ):
        assert_close(got, expected, 1e-5)
    for got, expected in zip(
        gae(*tensors[1:], GAMMA, LAM, backend=backend), gae(*tensors[1:], GAMMA, LAM, backend="reference"), strict=True
    ):
        assert_close(got, expected, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_on_policy_vtrace_is_gae(backend: str) -> None:
    tensors = chunk()
    tensors[0] = torch.zeros_like(tensors[0])
    for lam in (1.0, 0.95, 0.5, 0.0):
        target, advantage = vtrace(*tensors, GAMMA, lam, backend=backend)
        expected, returns = gae(*tensors[1:], GAMMA, lam, backend=backend)
        assert_close(target, returns, 1e-13)
        assert_close(advantage, expected, 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_ratios_are_clipped(backend: str) -> None:
    tensors = chunk()
    tensors[0] = torch.where(tensors[0] > 0, 500.0, -500.0).to(torch.float32)
    for i in (1, 2, 3, 6):
        tensors[i] = tensors[i].float()
    for result in vtrace(*tensors, GAMMA, backend=backend):
        assert result.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_are_independent_and_wide_batches_agree(backend: str) -> None:
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(300, generator=generator) % B
    tensors = chunk()
    wide = [tensor[..., order] for tensor in tensors]
    for got, narrow in zip(
        vtrace(*wide, GAMMA, backend=backend), vtrace(*tensors, GAMMA, backend=backend), strict=True
    ):
        assert_close(got, narrow[:, order], 1e-14)


def test_wrong_shape_is_one_sentence() -> None:
    tensors = chunk()
    with pytest.raises(ValueError, match="gae: bootstrap must have shape"):
        gae(*tensors[1:3], tensors[3][:-1], *tensors[4:], GAMMA, LAM)
