"""Running normalisers against numpy over all that was seen, and as parts of a run."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import MultiDiscrete
from torch import Tensor

from lifelong.agent.modules.encoders import MLP
from lifelong.agent.modules.running import Normalized, Running
from lifelong.agent.parallel import ALONE, Workers
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.normalize_rewards import NormalizeRewards
from tests.agent.support import assert_identical, make_trainer, run

CARTPOLE = {"tasks": [{"name": "c", "env": {"kind": "CartPole"}}], "steps_per_task": 400}


def rows(count: int, seed: int = 0) -> Tensor:
    """Numbers far from zero, of which a difference of sums would lose the deviation."""
    return 1000.0 + torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor(
        [0.01, 1.0, 30.0]
    )


def test_mean_and_deviation_are_those_of_all_rows_that_count() -> None:
    seen, x = Running((3,)), rows(500)
    weight = (torch.rand(500, generator=torch.Generator().manual_seed(1)) < 0.7).float()
    for part in range(0, 500, 7):
        seen.add(x[part : part + 7], weight[part : part + 7], ALONE)
    kept = x[weight > 0].double().numpy()
    assert float(seen.count) == len(kept)
    np.testing.assert_allclose(seen.mean.numpy(), kept.mean(0), rtol=1e-6)
    np.testing.assert_allclose(seen.deviation()[1:].numpy(), kept.std(0, ddof=1)[1:], rtol=1e-3)
    assert Running((2,)).deviation().tolist() == [1.0, 1.0]


def test_numbers_that_do_not_differ_have_a_unit_of_one() -> None:
    """The first rewards of a batch are all alike; divided by next to nothing they would be all that is ever learned."""
    seen = Running()
    seen.add(torch.full((16,), 3.0), torch.ones(16), ALONE)
    assert float(seen.deviation()) == 1.0


class Pair(Workers):
    """One of two workers that are threads of this process."""

    def __init__(self, rank: int, barrier: threading.Barrier, table: dict[int, Tensor]) -> None:
        super().__init__(rank, 2)
        self.barrier, self.table = barrier, table

    def stack(self, tensor: Tensor) -> Tensor:
        self.table[self.rank] = tensor
        self.barrier.wait(30)
        both = torch.stack([self.table[0], self.table[1]])
        self.barrier.wait(30)
        return both


def test_two_workers_come_to_the_same_numbers_as_one() -> None:
    alone, parts, barrier = Running((3,)), [Running((3,)), Running((3,))], threading.Barrier(2)
    table: dict[int, Tensor] = {}
    for chunk in range(4):
        alone.add(rows(10, chunk), torch.ones(10), ALONE)

    def work(rank: int) -> None:
        for chunk in range(4):
            half = rows(10, chunk)[5 * rank : 5 * rank + 5]
            parts[rank].add(half, torch.ones(5), Pair(rank, barrier, table))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_identical(parts[0].state_dict(), parts[1].state_dict())
    for name, x in alone.state_dict().items():
        torch.testing.assert_close(parts[0].state_dict()[name], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", ["actor_critic", "ac_lambda"])
def test_a_run_reads_observations_in_units_of_what_it_has_seen_and_goes_on_bit_for_bit(
    tmp_path: Path, objective: str
) -> None:
    changes = {
        "stream": CARTPOLE,
        "policy": {"normalize_observations": True, "encoder": {"kind": "mlp", "hidden": [8]}},
        "objective": objective,
        "rollout": {"copies": 4, "steps": 1 if objective == "ac_lambda" else 5},
        "strategy": ["normalize_rewards"],
    }
    whole, part, rest = (make_trainer(tmp_path / folder, **changes) for folder in ("whole", "part", "part"))
    seen: list[Tensor] = []
    collect = whole.rollout.collect

    def collected(steps: int) -> Experience:
        experience = collect(steps)
        seen.append(experience.chunk.obs)
        return experience

    whole.rollout.collect = collected  # type: ignore[method-assign]
    run(whole)
    encoder = whole.rollout.policy.encoder
    assert isinstance(encoder, Normalized) and not encoder.compiled()
    every = torch.cat([x.flatten(0, 1) for x in seen]).double()
    np.testing.assert_allclose(encoder.seen.mean.numpy(), every.mean(0).numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(encoder.seen.deviation().numpy(), every.std(0).numpy(), rtol=1e-3, atol=1e-4)
    run(part, until=180)
    saved, _ = checkpoint.load(tmp_path / "part" / "checkpoints")
    rest.load_state_dict(saved)
    run(rest)
    assert_identical(rest.state_dict(), whole.state_dict())


def test_categories_have_no_unit() -> None:
    with pytest.raises(ValueError, match="set it to false"):
        Normalized(MLP(MultiDiscrete([3, 4])))


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return(tmp_path: Path) -> None:
    """As ScaleReward of stream-x: Welford's variance of G over all steps so far, this one included, one by one."""
    strategy = NormalizeRewards(gamma=0.9)
    trainer = make_trainer(tmp_path, stream=CARTPOLE, rollout={"copies": 1, "steps": 1}, policy={"encoder": "identity"})
    strategy.setup(trainer.context(), 0)
    G, mean, squares, ended = 0.0, 0.0, 0.0, 0
    for count in range(1, 61):
        chunk = trainer.rollout.collect(1).chunk
        told = float(chunk.reward + strategy.extra_reward(trainer.context(), chunk))
        reward, end = float(chunk.reward), bool(chunk.terminated | chunk.truncated)
        G = 0.9 * G + reward
        apart = G - mean
        mean += apart / count
        squares += apart * (G - mean)
        deviation = (squares / (count - 1) + 1e-8) ** 0.5 if count > 1 else 1.0
        assert told == pytest.approx(reward / deviation, rel=1e-3)
        G, ended = (0.0, ended + 1) if end else (G, ended)
    assert ended


def test_rewards_that_are_replayed_are_divided_when_they_come_back(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, strategy=[{"kind": "er", "capacity": 64, "start": 8}, "normalize_rewards"], objective="actor_critic"
    )
    run(trainer, until=160)
    er, normal = trainer.strategies
    raw = er.transform_batch(trainer.context(), trainer.rollout.collect(4).chunk)
    scaled = normal.transform_batch(trainer.context(), raw)
    assert raw.copies > 8 and isinstance(normal, NormalizeRewards)
    torch.testing.assert_close(scaled.reward[:, :8], raw.reward[:, :8])
    torch.testing.assert_close(scaled.reward[:, 8:], raw.reward[:, 8:] / normal.seen.deviation())
    assert float(normal.seen.deviation()) != 1.0
