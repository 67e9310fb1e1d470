"""Sharp: which units a task uses, connections before and after a phase, and what frozen units say stays bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.sharp import USED, Sharp, smallest_set
from lifelong.agent.strategies.units import layers_of
from tests.agent.support import make_trainer, run


@pytest.mark.parametrize(
    ("share", "chosen"), [(0.0, []), (0.4, [3]), (0.5, [3, 0]), (0.75, [3, 0]), (0.95, [3, 0, 1]), (1.0, [3, 0, 1])]
)
def test_the_smallest_set_reaches_its_share(share: float, chosen: list[int]) -> None:
    found = smallest_set(torch.tensor([3.0, 2.0, 0.0, 5.0]), share + 1e-6 if share == 0.5 else share)
    assert sorted(found.nonzero().flatten().tolist()) == sorted(chosen)


def trained(tmp_path: Path, until: int | None, **options: object) -> tuple[Sharp, Trainer]:
    spec = {"kind": "sharp", "period": 2, "density": 0.5, "active": 0.4, "phases": 2, **options}
    policy = {"encoder": {"kind": "mlp", "hidden": [7]}, "cell": {"kind": "gru", "size": 8}}
    optimizer = {"kind": "adam", "lr": 0.03}
    trainer = make_trainer(tmp_path, policy=policy, gradient="bptt", strategy=[spec], optimizer=optimizer)
    run(trainer, until=until)
    sharp = trainer.strategies[0]
    assert isinstance(sharp, Sharp)
    return sharp, trainer


def test_no_plastic_unit_reaches_another_and_as_many_connections_have_grown(tmp_path: Path) -> None:
    sharp, _ = trained(tmp_path, 128)
    assert any((age == USED).any() and (age != USED).any() for age in sharp.age.values()) and sharp.moved
    for name, alive in sharp.alive.items():
        parameter = sharp.parameters[name]
        assert torch.equal(parameter, parameter * alive)
        total = round(0.5 * parameter.numel())
        if name not in sharp.columns:
            assert int(alive.sum()) == total
            continue
        (rows, row_part), (columns, column_part) = sharp.rows[name], sharp.columns[name]
        for i, j in [(i, j) for i in range(rows.size) for j in range(columns.size)]:
            block = parameter[row_part.of(torch.tensor([i]))][:, column_part.of(torch.tensor([j]))]
            if sharp.age[columns.name][j] == 0 and sharp.age[rows.name][i] != 0:
                assert not block.any()
        room = ~alive & sharp.marked(name, sharp.rows[name], {n: age == 0 for n, age in sharp.age.items()})
        assert int(alive.sum()) == total or not room.any()  # fewer only where there was no room


def test_frozen_units_say_the_same_bit_for_bit(tmp_path: Path) -> None:
    sharp, trainer = trained(tmp_path, 192)
    policy = trainer.rollout.policy
    run(trainer, until=trainer.stream.segments[0].end + 64)
    frozen = {name: (age > USED).nonzero().flatten() for name, age in sharp.age.items()}
    assert len(frozen["cell"])
    x = torch.randn(6, 3, policy.encoder.space.shape[0], generator=torch.Generator().manual_seed(0))
    is_init = torch.zeros(6, 3, dtype=torch.bool)

    @torch.no_grad()
    def say() -> tuple[torch.Tensor, torch.Tensor]:
        feature = policy.encoder(x.flatten(0, 1)).unflatten(0, (6, 3))
        rest = torch.ones(6, 3, policy.cell.input_size - feature.shape[-1])  # which task it is
        y, _ = policy.cell.sequence(torch.cat([feature, rest], -1), torch.zeros(3, 8), is_init)
        return feature[..., frozen["encoder.layers.0"]], y[..., frozen["cell"]]

    before = say()
    weights = {n: p.detach().clone() for n, p in policy.named_parameters()}
    run(trainer, until=trainer.step + 128)
    assert all(torch.equal(a, b) for a, b in zip(before, say(), strict=True))
    assert any(not torch.equal(weights[n], p) for n, p in policy.named_parameters())
    (part,) = [p for p in layers_of(policy)[-1].outgoing if p.parameter.startswith("actor")]
    columns = part.of(frozen["cell"])
    assert torch.equal(weights[part.parameter][:, columns], policy.get_parameter(part.parameter)[:, columns])
