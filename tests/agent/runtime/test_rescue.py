"""Numbers that are not finite, and code that raises: the run says so in a sentence and loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.agent import config as configs
from lifelong.agent import run
from lifelong.agent.cli import main
from lifelong.agent.errors import ConfigError, NonFiniteError, PartError
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.build import build
from lifelong.agent.runtime.finite import DATA, FiniteCheck, NotFinite
from lifelong.agent.runtime.logging import NoLog
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.envs.base import BatchedEnv
from tests.agent.runtime.test_kill import assert_same_run
from tests.agent.support import make_trainer
from tests.agent.support import run as train

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Count:
    n: Tensor


class Faulty(BatchedEnv):
    """Counts steps; at call `at` it does `fault`, once."""

    MAX_EPISODE_STEPS = 7
    SCORE = (0.0, 7.0)
    COMPILES = False  # it counts its calls
    at: ClassVar[int] = -1
    fault: ClassVar[Any] = None
    calls: ClassVar[int] = 0

    def spaces(self) -> Any:
        return Box(-1.0, 1.0, (2,)), Discrete(2)

    def draw_state(self) -> Count:
        return Count(self.uniform(0.0, 1.0, self.num_envs))

    def observe(self, state: Count) -> Tensor:
        return torch.stack([state.n, -state.n], 1)

    def advance(self, state: Count, action: Tensor) -> Any:
        Faulty.calls += 1
        reward, n = action.float(), (state.n * 3.7 + 0.1) % 1.0
        if Faulty.calls == Faulty.at:
            if callable(Faulty.fault):
                Faulty.fault()
            kind, value = Faulty.fault
            (reward if kind == "reward" else n)[1] = value
        return Count(n), reward, torch.zeros(self.num_envs, dtype=torch.bool), {}


class Raises(Strategy):
    """Raises in `after_update` at one step, after the parameters have moved."""

    at: ClassVar[int] = -1

    def after_update(self, ctx: Context) -> None:
        if ctx.step == Raises.at:
            raise KeyError("nothing of that name")


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    Faulty.calls, Faulty.at, Faulty.fault, Raises.at = 0, -1, None, -1
    yield


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "name": "faulty",
        "stream": {"steps_per_task": 2048, "tasks": [{"name": "t", "env": {"kind": f"{__name__}:Faulty"}}]},
        "rollout": {"copies": 4, "steps": 8},
        "policy": {"cell": {"kind": "elstm", "size": 6}},
        "gradient": {"kind": "rtrl"},
        "evaluation": {"every": 10**6, "episodes": 2},
        "checkpoint": {"every": 512},
        "log_every": 256,
        **changes,
    }


def start(folder: Path, **changes: Any) -> Trainer:
    return run.start(configs.check(settings(**changes)), folder, quiet=True)[0]


def chunk_call(chunk: int) -> int:
    """The call of `advance` in the middle of a chunk: 7 or 14 calls belong to the first evaluation."""
    probe = build(configs.check(settings()), Path("unused"))
    before = Faulty.calls
    probe.evaluator.evaluate(probe.context(), [])
    calls = Faulty.calls - before
    Faulty.calls = 0
    return calls + 8 * chunk + 5


@pytest.mark.parametrize(("kind", "value"), [("reward", NAN), ("reward", -INF), ("state", NAN), ("state", INF)])
def test_a_number_that_is_not_finite_stops_the_run_and_is_named(tmp_path: Path, kind: str, value: float) -> None:
    Faulty.at, Faulty.fault = chunk_call(40), (kind, value)
    with pytest.raises(NonFiniteError) as caught:
        start(tmp_path / "run")
    step = 40 * 32 + 4 * (4 if kind == "reward" else 5)
    what = "reward" if kind == "reward" else "observation"
    assert f"the {what} of task 't' in copy 1 is not finite at step {step:,}" in str(caught.value)
    assert "checkpoint is kept" in str(caught.value) and len(str(caught.value)) <= 300
    saved, damaged = checkpoint.load(tmp_path / "run/checkpoints")
    assert saved["step"] == 1024 and not damaged
    assert all(x.isfinite().all() for x in saved["policy"].values())


def test_a_chunk_that_is_not_finite_is_dropped_and_counted(tmp_path: Path) -> None:
    Faulty.at, Faulty.fault = chunk_call(40), ("state", NAN)
    trainer = start(tmp_path / "run", on_nonfinite="skip")
    assert trainer.step == 2048 and trainer.record.skipped == 1
    assert all(p.isfinite().all() for p in trainer.learner.parameters)
    assert all(x.isfinite().all() for x in trainer.learner.engine.state_dict().values())
    text = (tmp_path / "run/metrics.jsonl").read_text()
    assert "nonfinite/skipped_chunks" in text.splitlines()[-2] and "NaN" not in text


def test_nothing_is_learned_from_a_dropped_chunk_and_other_copies_go_on(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **settings(on_nonfinite="skip"))
    for _ in range(3):
        trainer.advance()
    parameters = [p.detach().clone() for p in trainer.learner.parameters]
    twin = make_trainer(tmp_path, **settings(on_nonfinite="skip"))
    twin.load_state_dict(trainer.state_dict())
    Faulty.calls, Faulty.at, Faulty.fault = 0, 3, ("reward", NAN)
    trainer.advance()
    assert all(torch.equal(a, b) for a, b in zip(parameters, trainer.learner.parameters, strict=True))
    twin.follow_stream()  # the same chunk without a fault: lived through, not learned from
    experience = twin.rollout.collect(8)
    twin.learner.live_through(experience, torch.ones(4, dtype=torch.bool))
    others = torch.tensor([0, 2, 3])
    for name, carry in trainer.learner.engine.state_dict().items():
        assert torch.equal(carry[others], twin.learner.engine.state_dict()[name][others])
        assert not carry[1].any() and carry[others].any()
    assert torch.equal(trainer.rollout.state_BS[others], twin.rollout.state_BS[others])
    assert not trainer.rollout.state_BS[1].any() and trainer.rollout.is_init[1]


@pytest.mark.parametrize("skip", [False, True])
def test_a_loss_that_is_not_finite_moves_no_parameter(tmp_path: Path, skip: bool) -> None:
    class Explodes(Strategy):
        def extra_loss(self, ctx: Context, *_: Any) -> Tensor:
            return next(ctx.policy.parameters()).sum() * (INF if ctx.step == 64 else 0.0)

    trainer = make_trainer(tmp_path, **settings(on_nonfinite="skip" if skip else "stop"))
    trainer.learner.loss_hooks = [Explodes()]
    for _ in range(2):
        trainer.advance()
    before = [p.detach().clone() for p in trainer.learner.parameters]
    if skip:
        trainer.advance()
        assert trainer.record.skipped == 1 and trainer.rollout.is_init.all()
        assert not any(x.any() for x in trainer.learner.engine.state_dict().values())
    else:
        with pytest.raises(NonFiniteError, match="loss is not finite in the chunk that begins at step 64"):
            trainer.advance()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.learner.parameters, strict=True))


def test_a_gpu_leaves_a_mark_that_is_read_before_anything_is_saved(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **settings())
    trainer.learner.finite.at_once = False  # as on a GPU
    Faulty.at, Faulty.fault = 8 + 3, ("reward", NAN)
    for _ in range(4):
        trainer.advance()
    with pytest.raises(NonFiniteError, match=r"reward of task 't' in copy 1 is not finite at step 40"):
        trainer.save(NoLog())
    assert not list(tmp_path.rglob("checkpoints/*"))


@pytest.mark.parametrize("row", range(len(DATA)))
def test_every_kind_of_data_is_looked_at(tmp_path: Path, row: int) -> None:
    trainer = make_trainer(tmp_path, **settings())
    experience = trainer.rollout.collect(8)
    chunk = experience.chunk
    chunk.target = torch.zeros(8, 4, 3)
    FiniteCheck(torch.device("cpu")).before_learning(experience)
    tensor = [chunk.obs, chunk.reward, chunk.target, chunk.policy, chunk.value][row]
    tensor[(6, 2, *[0] * (tensor.dim() - 2))] = NAN
    for look in ("before_learning", "mark"):
        check = FiniteCheck(torch.device("cpu"))
        check.at_once = look == "before_learning"
        with pytest.raises(NotFinite) as caught:
            if check.at_once:
                check.before_learning(experience)
            else:
                check.mark(96, experience, {"loss/total": torch.zeros(()), "gradient/norm": torch.zeros(())})
                check.look()
        assert (caught.value.what, caught.value.step, caught.value.copy) == (DATA[row], 6, 2)
        assert caught.value.start == (None if check.at_once else 96)


def test_large_numbers_are_finite(tmp_path: Path) -> None:
    experience = make_trainer(tmp_path, **settings()).rollout.collect(8)
    experience.chunk.reward.fill_(3e38)  # their sum is infinite
    FiniteCheck(torch.device("cpu")).before_learning(experience)


def test_skip_is_refused_where_the_copies_are_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"on_nonfinite is skip, which runtime\.backend ray"):
        make_trainer(tmp_path, **settings(on_nonfinite="skip", runtime={"backend": "ray"}))


# ---- code that raises ------------------------------------------------------------------------------------------------


def fail(error: BaseException) -> Any:
    def raise_it() -> None:
        raise error

    return raise_it


@pytest.mark.parametrize(
    "error",
    [ConnectionError("the simulator is gone"), OSError(28, "No space left"), KeyError("x"), SystemExit(0), TypeError()],
    ids=lambda error: type(error).__name__,
)
def test_after_an_error_in_an_environment_the_run_goes_on_bit_for_bit(tmp_path: Path, error: BaseException) -> None:
    start(tmp_path / "whole")
    Faulty.calls = 0
    Faulty.at, Faulty.fault = chunk_call(40), fail(error)
    with pytest.raises(PartError) as caught:
        start(tmp_path / "broken")
    assert f"test_rescue.py:{fail.__code__.co_firstlineno + 2}: {type(error).__name__}" in str(caught.value)
    assert str(caught.value).endswith("what was learned until step 1,280 is saved") and len(str(caught.value)) <= 300
    Faulty.at = -1
    run.resume(tmp_path / "broken", quiet=True)
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


def test_after_an_error_while_learning_the_parameters_are_those_of_the_last_chunk(tmp_path: Path) -> None:
    strategy = [{"kind": f"{__name__}:Raises"}]
    (tmp_path / "calm").mkdir()
    calm = build(configs.check(settings(strategy=strategy)), tmp_path / "calm")
    train(calm, until=320)
    Raises.at = 320
    with pytest.raises(PartError, match=r"KeyError: 'nothing of that name'; what was learned until step 320 is saved"):
        start(tmp_path / "run", strategy=strategy)
    saved, _ = checkpoint.load(tmp_path / "run/checkpoints")
    for name, value in calm.rollout.policy.state_dict().items():
        assert torch.equal(saved["policy"][name], value)
    Raises.at = -1
    trainer, finished = run.resume(tmp_path / "run", quiet=True)
    assert finished and trainer.step == 2048


def test_an_error_before_anything_was_learned_saves_nothing(tmp_path: Path) -> None:
    Faulty.at, Faulty.fault = 1, fail(RuntimeError("no"))
    with pytest.raises(PartError, match="nothing had been learned yet"):
        start(tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_the_command_line_says_one_sentence_and_shows_more_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings()))
    for words, tracebacks in (([], 0), (["--traceback"], 1)):
        Faulty.calls = 0
        Faulty.at, Faulty.fault = chunk_call(4), fail(ValueError("three\nlines\nof text"))
        out = tmp_path / f"run{tracebacks}"
        assert main(["run", str(tmp_path / "c.yaml"), "--out", str(out), "--quiet", *words]) == 1
        told = capsys.readouterr().err
        assert "ValueError: three lines of text; what was learned until step 128 is saved" in told.splitlines()[-1]
        assert ("Traceback" in told) == bool(tracebacks)
