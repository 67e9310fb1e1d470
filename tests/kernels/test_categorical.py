"""Log-probabilities and entropies of categorical actions, against torch's own distribution."""

from __future__ import annotations

import pytest
import torch

from lifelong.kernels.categorical import categorical_log_prob
from tests.kernels.support import BACKENDS, FAST_BACKENDS, assert_close, gradients

SHAPES = [(1, 1), (5, 2), (3, 4, 7), (2, 3, 5, 40)]


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(shape, dtype=dtype, generator=generator)
    return logits.requires_grad_(), torch.randint(shape[-1], shape[:-1], generator=generator)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_equal_to_torchs_distribution(
    backend: str, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    logits, action = problem(shape, dtype)
    got = categorical_log_prob(logits, action, backend=backend)
    distribution = torch.distributions.Categorical(logits=logits)
    expected = (distribution.log_prob(action), distribution.entropy())
    for a, b in zip((*got, *gradients(got, (logits,))), (*expected, *gradients(expected, (logits,))), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", [0, 1])
def test_gradcheck_of_each_output(backend: str, which: int) -> None:
    logits, action = problem((3, 4))
    torch.autograd.gradcheck(lambda x: categorical_log_prob(x, action, backend=backend)[which], (logits,))


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_a_slice_of_a_read_out_is_read_in_place(backend: str) -> None:
    wide = torch.randn(6, 5, 4)
    action = torch.randint(3, (6, 5))
    for part in (wide[..., :3], wide[1:, :, 1:], wide[:, ::2, :3], wide.transpose(0, 1)[..., :3]):
        its = action[: part.shape[0], : part.shape[1]] if part.shape[:2] != (5, 6) else action.t()
        got, copied = (categorical_log_prob(x, its, backend=backend) for x in (part, part.contiguous()))
        for a, b in zip(got, copied, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("impossible", [-1e9, -torch.inf])
def test_masked_actions_have_no_share_and_no_gradient(backend: str, impossible: float) -> None:
    logits = torch.tensor([[0.3, impossible, -1.0], [impossible, 2.0, impossible]], requires_grad=True)
    action = torch.tensor([2, 1])
    log_prob, entropy = categorical_log_prob(logits, action, backend=backend)
    p = torch.softmax(torch.tensor([0.3, -1.0]), 0)
    torch.testing.assert_close(log_prob, torch.stack([p[1].log(), torch.tensor(0.0)]))
    torch.testing.assert_close(entropy, torch.stack([-(p * p.log()).sum(), torch.tensor(0.0)]))
    (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), logits)
    assert gradient.isfinite().all()
    assert not gradient[0, 1]
    assert not gradient[1].any()


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_large_logits_lose_nothing(backend: str) -> None:
    logits = torch.tensor([[1000.0, 1001.0, 999.5]], requires_grad=True)
    action = torch.tensor([0])
    got = categorical_log_prob(logits, action, backend=backend)
    near = (logits.detach() - 1000).requires_grad_()
    expected = categorical_log_prob(near, action, backend="reference")
    for a, b in zip((*got, *gradients(got, (logits,))), (*expected, *gradients(expected, (near,))), strict=True):
        assert_close(a, b, 1e-6)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("action", [-1, 3])
def test_an_action_that_is_none_is_refused(backend: str, action: int) -> None:
    with pytest.raises((IndexError, RuntimeError), match="out"):
        categorical_log_prob(torch.zeros(2, 3), torch.tensor([0, action]), backend=backend)


def test_wrong_actions_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="categorical_log_prob: action must be int64"):
        categorical_log_prob(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="categorical_log_prob: action must be int64"):
        categorical_log_prob(torch.zeros(2, 3), torch.zeros(2))
