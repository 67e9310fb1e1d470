"""A policy that was exported says what ours says, in programs that know nothing of us."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from torch import Tensor

import lifelong
from lifelong.agent import cli
from lifelong.agent import export as exporting
from lifelong.agent.cells.base import Cell
from lifelong.agent.errors import CheckpointError, ConfigError, EnvError, ExportError
from lifelong.agent.export import export
from lifelong.agent.exported import ExportedPolicy
from lifelong.agent.inference import LoadedPolicy
from lifelong.agent.online import OnlineAgent
from tests.agent.support import THREE_TASKS

SPACES = Box(-10, 10, (3,), np.float32), Discrete(3)
#: what the policy has beside its cell
EVERYTHING = {
    "policy": {
        "encoder": {"kind": "mlp", "hidden": [8], "norm": "layer"},
        "cell": {"kind": "elstm", "size": 6},
        "previous_action": True,
        "previous_reward": True,
        "heads": "per_task",
        "normalize_observations": True,
    },
    "gradient": "rtrl",
    "stream": {"task_id": "observed", "boundaries": "given"},
}


def of(cell: str, **policy: Any) -> dict[str, Any]:
    return {"policy": {"encoder": "identity", "cell": {"kind": cell, "size": 6}, **policy}, "gradient": "bptt"}


POLICIES = {"elstm": of("elstm"), "gru": of("gru"), "diagonal_lstm": of("diagonal_lstm"), "everything": EVERYTHING}


def saved(path: Path, config: dict[str, Any], spaces: Any = SPACES, tasks: Any = ("one", "two")) -> Path:
    """The file of an agent that has learned a little, so that no parameter is as it began."""
    agent = OnlineAgent(*spaces, {"optimizer": {"kind": "adam", "lr": 0.01}, **config}, seed=1, tasks=tasks)
    spaces[0].seed(0)
    obs = spaces[0].sample()
    action = agent.act(obs)
    for _ in range(24):
        wanted = np.max(obs) > 4 if isinstance(obs, np.ndarray) else False
        obs, reward = spaces[0].sample(), float((np.sum(action) > 1) == wanted)
        action = agent.act(obs, reward)
    agent.save(path)
    return path


def needs(format: str) -> None:
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)


#: of ONNX one; the others are in `make test-all`
CASES = [
    pytest.param(name, format, marks=[pytest.mark.slow] if format == "onnx" and name != "everything" else [])
    for name in POLICIES
    for format in ("onnx", "torchscript")
]


@pytest.mark.parametrize(("name", "format"), CASES)
def test_a_file_acts_as_the_policy_does_for_200_steps_with_resets(name: str, format: Any, tmp_path: Path) -> None:
    needs(format)
    agent = saved(tmp_path / "agent.pt", POLICIES[name])
    made = export(agent, format=format)
    assert made.path == tmp_path / f"agent-policy.{'onnx' if format == 'onnx' else 'pt'}"
    assert made.steps == 200 and made.largest_difference <= 1e-5
    task = "two" if name == "everything" else None
    ours, theirs = lifelong.load(agent, task), lifelong.load(made.path, task)
    assert isinstance(ours, LoadedPolicy) and isinstance(theirs, ExportedPolicy)
    assert theirs.metadata["agreement"] == {"steps": 200, "largest_difference": made.largest_difference}
    generator, memories, seen = np.random.default_rng(7), [None, None], set()
    for _ in range(200):
        obs, reward = 5 * generator.normal(size=(2, 3)).astype(np.float32), generator.normal(size=2)
        actions = []
        for k, policy in enumerate((ours, theirs)):
            action, memories[k] = policy(obs, memories[k], reward)  # type: ignore[assignment]
            actions.append(action)
        np.testing.assert_array_equal(*actions)
        assert actions[1].dtype == actions[0].dtype
        seen |= set(actions[0])
        np.testing.assert_allclose(*(m.state_BS for m in memories), atol=1e-5)  # type: ignore[union-attr]
        ended = generator.random(2) < 0.1
        memories = [p.reset(m, ended) for p, m in zip((ours, theirs), memories, strict=True)]  # type: ignore[assignment]
    assert len(seen) > 1
    one, _ = theirs(np.zeros(3))
    assert isinstance(one, int)


def test_onnx_is_all_that_is_needed_to_act(tmp_path: Path) -> None:
    """By the metadata of the file alone, with onnxruntime alone, an episode is what it is with us."""
    needs("onnx")
    import onnxruntime

    agent = saved(tmp_path / "agent.pt", EVERYTHING)
    path = export(agent, tmp_path / "sub/policy.onnx").path
    session = onnxruntime.InferenceSession(path)
    said = json.loads(session.get_modelmeta().custom_metadata_map["lifelong"])
    assert said["resets"] == "episode" and said["reset_rule"] == "the memory is emptied when an episode ends"
    assert said["tasks"] == ["one", "two"] and said["task"] is None
    assert said["action"] == {"space": "Discrete", "n": 3, "start": 0}
    assert {i.name: i.shape[1:] for i in session.get_inputs()} == {
        name: each["shape"][1:] for name, each in said["inputs"].items()
    }
    assert list(said["inputs"]) == ["obs", "state", "previous_action", "fresh", "reward", "task"]
    given = {name: np.zeros([1, *each["shape"][1:]], each["dtype"]) for name, each in said["inputs"].items()}
    given["task"][:] = 1
    ours, memory = lifelong.load(agent, "two"), None
    generator = np.random.default_rng(3)
    for t in range(30):
        given["obs"] = generator.normal(size=(1, 3)).astype(np.float32)
        given["reward"], given["fresh"] = np.full(1, t / 10, np.float32), np.array([t % 10 == 0])
        out = dict(zip(said["outputs"], session.run(None, given), strict=True))
        action, memory = ours(given["obs"][0], None if t % 10 == 0 else memory, t / 10)
        assert out["action"].item() == action == out["policy"].argmax()
        given |= {name: out[f"next_{name}"] for name in ("state", "previous_action")}


def test_torchscript_needs_torch_alone(tmp_path: Path) -> None:
    agent = saved(tmp_path / "agent.pt", of("elstm"))
    path = export(agent, format="torchscript").path
    extra = {"lifelong.json": ""}
    module = torch.jit.load(path, _extra_files=extra)
    said = json.loads(extra["lifelong.json"])
    obs = np.ones((5, 3), np.float32)
    state = torch.zeros(5, said["inputs"]["state"]["shape"][1])
    action, *_ = module(torch.from_numpy(obs), state, torch.ones(5, dtype=torch.bool))
    np.testing.assert_array_equal(action, lifelong.load(agent)(obs)[0])


MIXED = Dict({"a": Box(-1, 1, (2,)), "b": Discrete(3), "c": Box(0, 255, (2,), np.uint8)})


@pytest.mark.parametrize(
    ("spaces", "config"),
    [
        ((MIXED, Box(np.array([-2.0, 0.0]), np.array([6.0, 1.0]))), {}),
        ((SPACES[0], Discrete(3, start=5)), {"objective": {"kind": "q_learning", "n_step": 1}}),
        ((Discrete(4), MultiBinary(2)), {"policy": {"reset_memory_on": "step", "encoder": {"kind": "mlp"}}}),
        ((Box(0, 255, (4, 4, 1), np.uint8), SPACES[1]), {"policy": {"reset_memory_on": "never"}}),
        ((Box(-1, 1, (2,)), Box(-1, 1, (1,))), {"policy": {"squash": "tanh", "previous_action": True}}),
    ],
    ids=["dict", "start", "memoryless", "bytes", "squashed"],
)
def test_spaces_are_those_of_the_program(spaces: Any, config: dict[str, Any], tmp_path: Path) -> None:
    agent = saved(tmp_path / "agent.pt", config, spaces, ("one",))
    ours, theirs = lifelong.load(agent), lifelong.load(export(agent, format="torchscript").path)
    memories: list[Any] = [None, None]
    for t in range(20):
        obs = spaces[0].sample()
        actions = []
        for k, policy in enumerate((ours, theirs)):
            action, memories[k] = policy(obs, policy.reset(memories[k], t % 6 == 0))
            assert spaces[1].contains(action)
            actions.append(action)
        np.testing.assert_allclose(*actions, atol=1e-5)
    assert ours.resets == theirs.resets


def test_the_command_writes_a_policy_beside_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tasks of different spaces, padded: the file has those of the one that it was exported for."""
    (tmp_path / "three.yaml").write_text(THREE_TASKS)
    small = ["stream.steps_per_task=64", "stream.task_id=observed", "runtime.device=cpu", "evaluation.episodes=2"]
    lifelong.run(lifelong.load_config(str(tmp_path / "three.yaml"), small), tmp_path / "run", quiet=True)
    words = ["export", str(tmp_path / "run"), "--format", "torchscript"]
    assert cli.main(words) == 2
    assert "trained on maze, cartpole, repeat, and its tasks have spaces of their own" in capsys.readouterr().err
    assert cli.main([*words, "--task", "cartpole"]) == 0
    said = capsys.readouterr().out
    assert f"policy: {tmp_path / 'run/policy.pt'}" in said and "over 200 steps with resets: " in said
    ours, theirs = lifelong.load(tmp_path / "run", "cartpole"), lifelong.load(tmp_path / "run/policy.pt")
    obs = np.random.default_rng(0).normal(size=(50, 4))
    np.testing.assert_array_equal(ours(obs)[0], theirs(obs)[0])
    with pytest.raises(ConfigError, match="exported for task 'cartpole'; export the run for task 'maze'"):
        lifelong.load(tmp_path / "run/policy.pt", "maze")


class Branching(Cell):
    """A cell whose Python depends on the data."""

    def __init__(self, input_size: int) -> None:
        super().__init__(input_size, 4, 4)
        self.read = torch.nn.Linear(input_size, 4)

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        y = self.read(x_BD)
        state_BS = state_BS + y if float(y.sum()) > 0 else state_BS - y
        return state_BS, state_BS

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        return {"input": (["read.weight"], "read.bias")}


def test_what_cannot_be_exported_says_why_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = {"policy": {"encoder": "identity", "cell": "tests.agent.test_export:Branching"}, "gradient": "bptt"}
    agent = saved(tmp_path / "agent.pt", cell)
    with pytest.raises(
        ConfigError, match=r"cell tests.agent.test_export:Branching cannot be followed by torch\.export"
    ):
        export(agent, format="torchscript")
    with pytest.raises(ConfigError, match=r"unknown format 'onx'.*onnx"):
        export(agent, format="onx")  # type: ignore[arg-type]
    monkeypatch.setattr(importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(ConfigError, match=r"an export to onnx needs onnx, .* pip install 'lifelong\[export\]'"):
        export(agent)
    monkeypatch.undo()
    agent = saved(tmp_path / "agent.pt", of("elstm"))
    step = exporting.OneStep.forward
    wrong = lambda *given: (*step(*given)[:-1], step(*given)[-1] + 1e-3)  # noqa: E731  # of the memory
    monkeypatch.setattr(exporting.OneStep, "forward", wrong)
    with pytest.raises(ExportError, match=r"differs from ours by .* within 200 steps, more than 1e-05, so nothing was"):
        export(agent, format="torchscript")
    assert [path.name for path in tmp_path.iterdir()] == ["agent.pt"]


def test_a_file_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    agent = saved(tmp_path / "agent.pt", EVERYTHING)
    path = export(agent, format="torchscript").path
    with pytest.raises(ConfigError, match="reads which task it is on; name one"):
        lifelong.load(path)
    with pytest.raises(ConfigError, match="has the most likely action only"):
        lifelong.load(path, "one", deterministic=False)
    with pytest.raises(ConfigError, match=r"unknown task 'onne'.*one"):
        lifelong.load(path, "onne")
    policy = lifelong.load(path, "one")
    memory = policy(np.zeros(3))[1]
    for arguments, sentence in [
        ((np.zeros(4),), r"shape \(4,\); it must be \(3,\)"),
        ((np.zeros((2, 3)), memory), "memory is of one environment, and the observation of a batch of 2"),
        ((np.zeros(3), memory), "reads the last reward"),
    ]:
        with pytest.raises(EnvError, match=sentence):
            policy(*arguments)
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt does not load"):
        lifelong.load(tmp_path / "other.pt")
    needs("onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"damaged\.onnx does not load"):
        lifelong.load(tmp_path / "damaged.onnx")
