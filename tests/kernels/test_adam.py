"""Clipping and Adam in compiled calls are torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lifelong.agent.runtime.planned.step import clip_norm, make_step

KINDS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.Adam, {"lr": 1e-2}),
    (torch.optim.Adam, {"lr": 1e-2, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
]


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5), (1,), (70, 70), (), (4097,)]
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_steps_and_state_are_torchs(kind: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    pair = [(ours, kind(ours, **options)), (theirs, kind(theirs, foreach=False, **options))]
    generator = torch.Generator().manual_seed(1)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-12}
    for update in range(12):
        grads = [torch.randn(p.shape, generator=generator, dtype=dtype) for p in ours]
        skipped = update % 3  # a parameter without a gradient keeps its state
        for params, _ in pair:
            for k, (parameter, grad) in enumerate(zip(params, grads, strict=True)):
                parameter.grad = None if update and k == skipped else grad.clone()
        version = ours[3]._version
        norm = clip_norm(ours, 20.0)
        expected = nn.utils.clip_grad_norm_(theirs, 20.0)
        torch.testing.assert_close(norm, expected, **tolerance)
        make_step(pair[0][1])
        pair[1][1].step()
        assert ours[3]._version > version
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, **tolerance)
            for name, value in pair[0][1].state[p].items():
                torch.testing.assert_close(value, pair[1][1].state[q][name], **tolerance)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_is_told(bad: float) -> None:
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([1.0, bad, 2.0])
    assert not clip_norm([parameter], 1.0).isfinite()


def test_what_asks_for_more_than_adam_is_torchs() -> None:
    for options in ({"amsgrad": True}, {"maximize": True}):
        ours, theirs = parameters(torch.float32), parameters(torch.float32)
        pair = [torch.optim.Adam(params, **options) for params in (ours, theirs)]
        for _ in range(3):
            for params in (ours, theirs):
                for parameter in params:
                    parameter.grad = parameter.detach().clone()
            make_step(pair[0])
            pair[1].step()
        for p, q in zip(ours, theirs, strict=True):
            assert torch.equal(p, q)
