"""C-CHAIN: what it measures is the churn of one update, on data that is not learned from, and it reduces it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent.policy import Outputs
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.c_chain import CChain
from lifelong.replay.chunk import Chunk
from tests.agent.support import make_trainer, run

PPO = {"kind": "ppo", "epochs": 2, "minibatches": 2}


def trainer_of(folder: Path, **options: Any) -> tuple[Trainer, CChain]:
    changes = {"objective": PPO, "optimizer": {"kind": "adam", "lr": 0.02}, "policy": {"previous_action": True}}
    trainer = make_trainer(folder, strategy=[{"kind": "c_chain", "batch": 3, **options}], **changes)
    strategy = trainer.strategies[0]
    assert isinstance(strategy, CChain)
    return trainer, strategy


def test_the_churn_is_that_of_the_last_update_on_sequences_of_the_chunk_before(tmp_path: Path) -> None:
    trainer, strategy = trainer_of(tmp_path, policy_weight=3.0, value_weight=0.5)
    policy, inner = trainer.rollout.policy, strategy.extra_loss
    old, seen, data = copy.deepcopy(policy), [], []

    def listen(ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        got = inner(ctx, chunk, outputs, live)
        if strategy.reference is not None and got is not None:
            ref = strategy.reference
            assert ref.copies == 3 and not any(
                torch.equal(ref.value[:, 0], chunk.value[:, i]) for i in range(chunk.copies)
            )
            then, now = old.sequence(ref, ref.state), policy.sequence(ref, ref.state)
            p, q = then.policy.softmax(-1), now.policy.log_softmax(-1)
            kl = (p * (p.log() - q)).sum(-1).mean()
            expected = 3.0 * kl + 0.5 * (now.value - then.value).square().mean()
            torch.testing.assert_close(got.detach(), expected.detach(), rtol=1e-3, atol=1e-7)
            seen.append(float(got.detach()))
        old.load_state_dict(policy.state_dict())
        data.append(strategy.reference)
        return got

    strategy.extra_loss = listen  # type: ignore[method-assign]
    run(trainer)
    assert len(seen) == 4 * 11 and max(seen) > 0  # in the first chunk there is none before it
    assert len({id(ref) for ref in data}) == 12


@pytest.mark.parametrize("what", ["policy", "value"])
def test_it_reduces_the_churn(what: str, tmp_path: Path) -> None:
    churn = []
    for weight in (0.0, 300.0):
        other = "value" if what == "policy" else "policy"
        trainer, strategy = trainer_of(tmp_path / str(weight), **{f"{what}_weight": weight, f"{other}_weight": 0.0})
        seen: list[float] = []
        gradients = strategy.transform_gradients

        def listen(ctx: Context, g: Any, s: CChain = strategy, seen: Any = seen, inner: Any = gradients) -> None:
            seen.append(s.report().get(f"{what}_churn", 0.0))
            inner(ctx, g)

        strategy.transform_gradients = listen  # type: ignore[method-assign]
        run(trainer)
        churn.append(sum(seen) / len(seen))
    assert 0 < churn[1] < 0.6 * churn[0]
