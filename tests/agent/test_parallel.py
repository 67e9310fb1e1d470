"""Several workers learn what one would: same gradients, parameters and evaluations; state in shards or reduced."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent import config as configs
from lifelong.agent import registry
from lifelong.agent.errors import CheckpointError, ConfigError, DiskError
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.objectives.base import standardized
from lifelong.agent.parallel import ALONE, GATHERED, TorchWorkers, Workers
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.build import build
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.ewc import EWC
from lifelong.agent.strategies.gpm import GPM
from tests.agent.group import in_group
from tests.agent.support import (
    Silent,
    act_through,
    assert_identical,
    make_config,
    make_context,
    make_policy,
    random_chunk,
)

T, B, UPDATES = 5, 8, 3


def test_alone_every_operation_returns_what_it_got() -> None:
    x = torch.tensor([1.0, 2.0])
    for operation in (ALONE.mean_, ALONE.sum_, ALONE.max_):
        operation([x])
    assert x.tolist() == [1.0, 2.0]
    assert ALONE.gather("me") == ["me"] and ALONE.lead(7) == 7
    assert ALONE.sum_ahead(x)().tolist() == [1.0, 2.0] and ALONE.stack(x).tolist() == [[1.0, 2.0]]
    assert list(range(8))[ALONE.share(8)] == list(range(8)) and ALONE.owns(3)


def test_shares_cover_everything_once() -> None:
    for total in (0, 1, 7, 64):
        for count in (1, 2, 3, 5):
            parts = [list(range(total))[Workers(rank, count).share(total)] for rank in range(count)]
            assert [i for part in parts for i in part] == list(range(total))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def operations(workers: TorchWorkers, folder: Path) -> dict[str, Any]:
    r = workers.rank
    a, b = torch.tensor([1.0, 10.0]) * (r + 1), torch.tensor([[3, 5 * r]])
    mean, total, largest = a.clone(), b.clone(), -b.clone()
    workers.mean_([mean])
    workers.sum_([total, total.double()])
    workers.max_([largest])
    return {
        "mean": mean.tolist(),
        "sum": total.tolist(),
        "max": largest.tolist(),
        "sum_ahead": workers.sum_ahead(a)().tolist(),
        "stack": workers.stack(a).tolist(),
        "gather": workers.gather({"rank": r}),
        "lead": workers.lead(10 + r),
        "speed": sorted(workers.speed(100)),
    }


def test_workers_average_add_and_tell_each_other(group: dict[str, list[Any]]) -> None:
    first, second = group["operations"]
    assert first == second
    assert first["mean"] == [1.5, 15.0] and first["sum"] == [[6, 5]] and first["max"] == [[-3, 0]]
    assert first["sum_ahead"] == [3.0, 30.0] and first["stack"] == [[1.0, 10.0], [2.0, 20.0]]
    assert first["gather"] == [{"rank": 0}, {"rank": 1}] and first["lead"] == 10
    assert "speed/worker_1/waiting" in first["speed"]


def reductions(workers: TorchWorkers, folder: Path) -> list[Tensor]:
    """Sums, means and largest elements of tensors that are exchanged in one step, and of tensors that are not."""
    results = []
    for size in (3, GATHERED):
        x = torch.sin(torch.arange(size) * (workers.rank + 1.0))
        for operation in (workers.sum_, workers.mean_, workers.max_):
            y = x.clone()
            operation([y[:2], y[2:]])
            results.append(y[:1000])
    return results


def test_short_and_long_tensors_are_reduced_alike(group: dict[str, list[Any]]) -> None:
    first, second = group["reductions"]
    short, long = first[:3], first[3:]
    for a, b in zip(first, second, strict=True):
        assert_identical({"x": a}, {"x": b})
    for a, b in zip(short, long, strict=True):
        assert_identical({"x": a}, {"x": b[:3]})
    x, y = (torch.sin(torch.arange(3) * k) for k in (1.0, 2.0))
    torch.testing.assert_close(short, [x + y, (x + y) / 2, torch.maximum(x, y)])


class Twin(Workers):
    """One of two workers with the same data; remembers what it asked the other."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        self.asked: list[Tensor] = []

    def sum_ahead(self, tensor: Tensor) -> Any:
        self.asked.append(tensor)
        return lambda: 2 * tensor


def test_one_message_counts_the_live_and_the_replayed_steps_of_a_minibatch() -> None:
    policy = make_policy(size=6, seed=1)
    chunk = random_chunk(policy, T, B, seed=0)
    chunk.weight[0, :3] = chunk.weight[:2, -1] = 0.0
    objective, twin = ActorCritic(policy.distribution), Twin()
    objective.workers = twin
    x = torch.randn(T, B, generator=torch.Generator().manual_seed(0))
    live = B - 2
    objective.count(chunk, live)
    announced = objective.mean(chunk)(x), objective.mean(chunk, live)(x[:, live:])
    assert len(twin.asked) == 1 and twin.asked[0].tolist() == [T * live - 3, T * 2 - 2]
    other = dataclasses.replace(chunk, weight=chunk.weight.clone())
    asked = objective.mean(other)(x), objective.mean(other, live)(x[:, live:])
    assert len(twin.asked) == 3  # a chunk that was not announced
    weight = chunk.weight
    expected = (x * weight).sum() / weight.sum(), (x * weight)[:, live:].sum() / weight[:, live:].sum()
    torch.testing.assert_close(announced, expected)
    assert torch.equal(torch.stack(announced), torch.stack(asked))


def test_workers_on_which_every_step_counts_need_not_tell_each_other_how_many_do() -> None:
    policy = make_policy(size=6, seed=1)
    chunk = random_chunk(policy, T, B, seed=0)
    chunk.weight = torch.ones(T, B)
    chunk.weight[:2, -2:] = 0.0  # burn-in of what is replayed
    x = torch.randn(T, B, generator=torch.Generator().manual_seed(0))
    means = []
    for even in (False, True):
        objective, twin = ActorCritic(policy.distribution), Twin()
        objective.workers, objective.even = twin, even
        objective.count(chunk, B - 2)
        means.append(torch.stack([objective.mean(chunk)(x), objective.mean(chunk, B - 2)(x[:, B - 2 :])]))
        assert len(twin.asked) == (0 if even else 1)
    assert torch.equal(*means)


def test_only_runs_in_which_every_step_counts_are_even(tmp_path: Path) -> None:
    task = {"kind": "gymnasium", "id": "CartPole-v1"}
    for options, even in (({}, True), ({"autoreset": "next_step"}, False)):
        config = configs.check(
            {
                "stream": {"tasks": [{"name": "cartpole", "env": {**task, **options}}]},
                "objective": "actor_critic",
                "rollout": {"copies": 2, "steps": 4},
                "runtime": {"device": "cpu"},
            }
        )
        assert build(config, tmp_path).learner.objective.even == even


def standardize(workers: Workers, folder: Path = Path()) -> Tensor:
    """Numbers far from 0, most of which do not count on the second worker."""
    x = 1e3 + torch.randn(T, B, generator=torch.Generator().manual_seed(3))
    weight = torch.ones(T, B)
    weight[1:, B // 2 :] = 0.0
    part = workers.share(B)
    return standardized(x[:, part], weight[:, part], workers)


def test_two_workers_standardize_as_one_does_with_all_steps(group: dict[str, list[Any]]) -> None:
    halves, whole = torch.cat(group["standardize"], 1), standardize(ALONE)
    torch.testing.assert_close(halves, whole, rtol=0, atol=3e-4)  # x itself is rounded by 6e-5
    counted = torch.cat([whole[:, : B // 2].flatten(), whole[0, B // 2 :]])
    assert abs(float(counted.mean())) < 1e-3 and abs(float(counted.std(correction=0)) - 1) < 1e-3


# ---- the learner: two halves are one whole ---------------------------------------------------------------------------


class Halves(Learner):
    """The one worker whose minibatches are those of two workers: each takes the same copies of its half."""

    def orders(self, copies: int) -> Tensor:
        half = copies // 2
        assert half % self.objective.minibatches == 0
        rows = []
        for _ in range(self.objective.epochs):
            order = torch.randperm(half, generator=self.generator)
            parts = order.chunk(self.objective.minibatches)
            rows.append(torch.cat([torch.cat([part, part + half]) for part in parts]))
        return torch.stack(rows)


CASES = {
    f"{name}-{engine}": (spec, engine)
    for name, spec in {
        "actor_critic": {"kind": "actor_critic"},
        "ppo": {"kind": "ppo", "epochs": 3, "minibatches": 1},
        "ppo-minibatches": {"kind": "ppo", "epochs": 2, "minibatches": 2},
        "ac_lambda": {"kind": "ac_lambda"},
    }.items()
    for engine in ("bptt", "rtrl", "exact", "eprop")
}


def part_of(experience: Experience, copies: slice) -> Experience:
    """Some copies of an experience."""
    index = torch.arange(experience.chunk.copies)[copies]
    x_TBD, state_TBS = experience.x_TBD[:, copies], experience.state_TBS[:, copies]
    episode_return_TB, done_TB = experience.episode_return_TB[:, copies], experience.done_TB[:, copies]
    return Experience(experience.chunk.select(index), x_TBD, state_TBS, episode_return_TB, done_TB)


def learn(workers: Workers, case: str, learner_class: type[Learner] = Learner) -> dict[str, Tensor]:
    """Parameters and the last loss after a few fixed chunks, of which this worker gets its share of the copies."""
    spec, gradient = CASES[case]
    policy = make_policy("elstm" if gradient in ("bptt", "rtrl") else "gru", size=6, seed=1)
    copies = len(range(B)[workers.share(B)])
    engine = registry.build("gradient", {"kind": gradient}, policy.cell, copies)
    objective = registry.build("objective", spec, policy.distribution)
    objective.setup(policy)
    objective.workers = workers
    steps = 1 if objective.streaming else T
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    learner = learner_class(policy, engine, objective, optimizer, [], 0.5, torch.Generator().manual_seed(4), workers)
    ctx = make_context(policy, objective, copies, T, workers=workers)
    state = torch.zeros(B, policy.cell.state_size)
    for update in range(UPDATES):
        chunk = random_chunk(policy, steps, B, seed=update)
        chunk.weight[: update + 2, 1:3] = 0.0  # steps that do not count, all in the first half
        experience, state = act_through(policy, dataclasses.replace(chunk, state=state))
        metrics, _ = learner.update(ctx, part_of(experience, workers.share(B)))
    loss = metrics["loss/total"].clone()
    workers.mean_([loss])
    return {**{n: p.detach().clone() for n, p in policy.named_parameters()}, "loss": loss}


def learn_all(workers: TorchWorkers, folder: Path) -> dict[str, dict[str, Tensor]]:
    return {case: learn(workers, case) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_two_workers_with_half_the_copies_make_the_steps_of_one_with_all(
    case: str, group: dict[str, list[Any]]
) -> None:
    start = make_policy("elstm" if CASES[case][1] in ("bptt", "rtrl") else "gru", size=6, seed=1).state_dict()
    whole = learn(ALONE, case, Halves if case.startswith("ppo-minibatches") else Learner)
    halves = group["learn"][0][case]
    assert any((whole[n] - p).abs().max() > 1e-3 for n, p in start.items())
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_bit_equal_on_both_workers(case: str, group: dict[str, list[Any]]) -> None:
    assert_identical(group["learn"][0][case], group["learn"][1][case])


# ---- strategies: reduced state is that of all data -------------------------------------------------------------------


def consolidated(workers: Workers, folder: Path = Path()) -> dict[str, Any]:
    """EWC's Fisher (of single sequences, so that no draw is shared) and GPM's bases from this worker's copies."""
    policy = make_policy(size=6, seed=2)
    objective = registry.build("objective", {"kind": "actor_critic"}, policy.distribution)
    copies = len(range(B)[workers.share(B)])
    ctx = make_context(policy, objective, copies, T, workers=workers, step=64)
    whole, _ = act_through(policy, random_chunk(policy, T, B, seed=9))

    def source(chunks: int) -> Any:
        for _ in range(chunks):
            yield part_of(whole, workers.share(B))

    ewc, gpm = EWC(sequences=B, normalize="none"), GPM(threshold=0.9, chunks=1)
    for strategy in (ewc, gpm):
        strategy.setup(ctx, 5)
        strategy.consolidate(ctx, source)
    return {"fisher": ewc.importance, "basis": gpm.protected}


def test_fisher_and_bases_are_those_of_all_workers_data(group: dict[str, list[Any]]) -> None:
    first, second = group["consolidated"]
    assert_identical(first, second)
    whole = consolidated(ALONE)
    for tap, basis in whole["basis"].items():  # the same subspace, whatever vectors span it
        torch.testing.assert_close(first["basis"][tap] @ first["basis"][tap].T, basis @ basis.T, atol=1e-4, rtol=0)
    halves = [consolidated(Half(rank))["fisher"] for rank in (0, 1)]
    for name, fisher in first["fisher"].items():
        torch.testing.assert_close(fisher, (halves[0][name] + halves[1][name]) / 2)  # a mean over all steps
        assert not torch.equal(halves[0][name], halves[1][name]) or not fisher.any()


class Half(Workers):
    """One of two workers that does not talk to the other."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank, 2)


# ---- the trainer -----------------------------------------------------------------------------------------------------

STRATEGIES: dict[str, dict[str, Any]] = {
    "finetune": {},
    "agem": {"capacity": 25, "start": 8},
    "clear": {"capacity": 25, "start": 8},
    "der_pp": {"capacity": 25, "start": 8, "burn_in": 1},
    "ewc": {"sequences": 7},
    "functional": {"sequences": 7, "capacity": 25, "batch": 4},
    "gpm": {"chunks": 2},
    "lwf": {},
    "si": {},
    "ewc-clock": {"kind": "ewc", "sequences": 5, "every": 64},
    "ewc-detected": {"kind": "ewc", "sequences": 7},
    "refresh": {"rate": 1e-2},
    "ideal_continual_learner": {"sequences": 7, "batch": 4},
    "nmc": {},
}
#: what else is in the config
BESIDE: dict[str, dict[str, Any]] = {
    "ewc-detected": {
        "stream": {"boundaries": "detected"},
        "detector": {"kind": "distribution_shift", "window": 1, "alpha": 0.5, "size": 0.0, "gap": 2},
    }
}


def config_with(name: str, **changes: Any) -> Any:
    spec = {"kind": name, **STRATEGIES[name]}
    changes = {**BESIDE.get(name, {}), **changes}
    return make_config(strategy=[spec], runtime={"device": "cpu", "backend": "ray", "workers": 2}, **changes)


def train(workers: TorchWorkers, folder: Path, name: str, cut: int | None = None) -> dict[str, Any]:
    """Train to the end, or cut the run in two at step `cut` with a checkpoint between the parts."""
    config = config_with(name)
    log: Any = Silent()
    trainer = build(config, folder, workers)
    if cut is not None:
        assert not trainer.train(log, log, lambda: trainer.step >= cut)
        evaluations = trainer.evaluations
        trainer = build(config, folder, workers)
        trainer.evaluations = evaluations  # of the log, which is silent here
        torch.manual_seed(99 + workers.rank)
        trainer.load_state_dict(checkpoint.load(folder / "checkpoints", workers)[0])
    assert trainer.train(log, log)
    return {
        "shared": trainer.shared_state(),
        "own": trainer.own_state(),
        "seen": log.seen,
        "task": trainer.rollout.env.task_B,
    }


def train_all(workers: TorchWorkers, folder: Path) -> dict[Any, Any]:
    results = {}
    for name in STRATEGIES:
        for cut in (None, 224):
            place = folder / name / str(cut)
            place.mkdir(parents=True, exist_ok=True)
            results[name, cut] = train(workers, place, name, cut)
    return results


def equal_part(state: dict[str, Any]) -> dict[str, Any]:
    """Shared state without EWC's generator, of which only rank 0's is used and saved."""
    strategies = {kind: {k: v for k, v in s.items() if k != "generator"} for kind, s in state["strategies"].items()}
    return {**state, "strategies": strategies}


@pytest.mark.parametrize("name", STRATEGIES)
def test_shared_state_is_equal_on_all_workers_after_training_and_shards_differ(
    name: str, group: dict[str, list[Any]]
) -> None:
    first, second = (results[name, None] for results in group["train"])
    assert first["shared"]["step"] == 384
    assert_identical(equal_part(first["shared"]), equal_part(second["shared"]))
    assert first["seen"].keys() == second["seen"].keys()
    assert not torch.equal(
        first["own"]["rollout"]["env"]["envs"][0]["generator"], second["own"]["rollout"]["env"]["envs"][0]["generator"]
    )
    if name == "ewc-detected":
        assert first["shared"]["detection"]["alarms"]
    if name in ("agem", "clear", "der_pp"):
        sizes = [r["own"]["strategy_shards"][name]["replay"]["size"] for r in (first, second)]
        assert sizes == [12, 12] and first["seen"][f"strategy/{name}/replay_size"] == 24


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_group_resumed_from_its_checkpoint_is_the_uninterrupted_group_bit_for_bit(
    name: str, group: dict[str, list[Any]]
) -> None:
    for rank, results in enumerate(group["train"]):
        whole, cut = results[name, None], results[name, 224]
        assert_identical(*(r["shared"] if rank == 0 else equal_part(r["shared"]) for r in (whole, cut)))
        assert_identical(whole["own"], cut["own"])


def evaluate(workers: Workers, folder: Path) -> Any:
    trainer = build(config_with("finetune"), folder, workers)
    return trainer.evaluator.evaluate(trainer.context(), trainer.strategies)


def test_an_evaluation_gives_the_same_numbers_on_any_number_of_workers(
    group: dict[str, list[Any]], tmp_path: Path
) -> None:
    alone = evaluate(ALONE, tmp_path)
    assert alone.shape == (2, 4)
    for returns in group["evaluate"]:
        assert (returns == alone).all()


def test_a_worker_follows_its_part_of_the_stream(tmp_path: Path) -> None:
    config = config_with("finetune", stream={"schedule": "interleaved"})
    parts = []
    for rank in (0, 1):
        trainer = build(config, tmp_path, Workers(rank, 2))
        trainer.follow_stream()
        parts.append(trainer.rollout.env.task_B)
    config.runtime.backend, config.runtime.workers = "inline", 1
    alone = build(config, tmp_path)
    alone.follow_stream()
    assert torch.equal(torch.cat(parts), alone.rollout.env.task_B) and set(alone.rollout.env.task_B.tolist()) == {0, 1}


# ---- checkpoints in shards -------------------------------------------------------------------------------------------


def save_or_refuse(workers: TorchWorkers, folder: Path, full: int | None) -> str:
    own: dict[str, Any] = {"rank": workers.rank}
    if workers.rank == full:
        own["state"] = Unwritable()
    try:
        checkpoint.save(folder, 8 if full is None else 16, {"step": 8}, own, {}, 2, workers)
    except DiskError as error:
        return str(error)
    return str(checkpoint.load(folder, workers)[0]["rank"])


class Unwritable:
    def __reduce__(self) -> Any:
        raise OSError(28, "No space left on device")


def save_twice(workers: TorchWorkers, folder: Path) -> list[str]:
    return [save_or_refuse(workers, folder, None), save_or_refuse(workers, folder, 1)]


WORKS = {
    "operations": operations,
    "reductions": reductions,
    "standardize": standardize,
    "learn": learn_all,
    "consolidated": consolidated,
    "train": train_all,
    "evaluate": evaluate,
    "save": save_twice,
}


@pytest.fixture(scope="module")
def group_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("group")


@pytest.fixture(scope="module")
def group(group_folder: Path) -> dict[str, list[Any]]:
    return in_group(2, group_folder, WORKS)


def test_a_full_disk_of_one_worker_is_an_error_of_all_and_the_last_checkpoint_stays(
    group: dict[str, list[Any]], group_folder: Path
) -> None:
    for rank, (written, refused) in enumerate(group["save"]):
        assert written == str(rank)
        assert "No space left on device" in refused and "older ones are kept" in refused
    assert [path.name for path in (group_folder / "save").iterdir()] == ["000000000008"]


def test_a_checkpoint_of_another_number_of_workers_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 8, {}, {}, {}, 2)
    with pytest.raises(CheckpointError, match=r"1 worker, this run has 2; resume it with runtime\.workers=1"):
        checkpoint.load(tmp_path, Workers(0, 2))


@pytest.mark.parametrize("file", ["state.pt", "shard-1.pt"])
def test_a_damaged_file_of_any_worker_damages_the_checkpoint(
    file: str, group: dict[str, list[Any]], group_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(group_folder / "save", folder)
    path = folder / "000000000008" / file
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file} does not match its checksum"):
        checkpoint.load(folder, Workers(0, 2))


# ---- what cannot be is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runtime": {"workers": 2}}, ["runtime.workers is 2", "ray"]),
        ({"runtime": {"workers": 3, "backend": "ray"}}, ["rollout.copies is 8", "3 workers", "runtime.workers=2"]),
        (
            {"runtime": {"workers": 4, "backend": "ray"}, "objective": {"kind": "ppo", "minibatches": 4}},
            ["objective.minibatches is 4", "2 copies of a worker"],
        ),
        (
            {"runtime": {"workers": 2, "backend": "ray"}, "strategy": ["tests.agent.test_parallel:Undeclared"]},
            ["Undeclared", "runtime.workers to 1"],
        ),
    ],
)
def test_impossible_groups_are_refused_before_anything_starts(
    changes: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    config = make_config(**changes)
    with pytest.raises(ConfigError) as caught:
        build(config, tmp_path, Workers(0, config.runtime.workers))
    assert all(word in str(caught.value) for word in words), caught.value


class Undeclared(EWC):
    """A user's strategy that says nothing about workers."""

    data_parallel = "none"
