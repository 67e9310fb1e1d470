"""A policy in a file that other programs read, ONNX or TorchScript: what is in it, and how we act with it.

The file has one step. Every array has a leading axis B, the number of environments:

    obs              as the space has it; of a Dict, Tuple or Discrete space as `gymnasium.spaces.flatten` makes it,
                     bytes in it divided by the largest
    state, fresh     the memory, zeros at first, and bool: where it is emptied before this step
    previous_action  what went out with the last action, zeros at first
    reward           of the last action, as the environment gave it
    task             int64, which task of `tasks` it is

    action           as the environment's `step` takes it
    policy           what the distribution of actions is made of: logits; mean and log standard deviation; values
    value            of the critic
    next_state, next_previous_action     for the next call

Of the inputs those are there that the policy reads, and the memory unless it has none. The metadata, JSON under the
key `lifelong`, says which, with both spaces, the rule by which an episode's end empties the memory, and how far the
file was from our policy.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from lifelong.agent.errors import CheckpointError, ConfigError, optional, unknown_name
from lifelong.agent.files import parse_json
from lifelong.agent.runtime.converter import lead_of, plain_arrays
from lifelong.agent.runtime.remembering import Memory, Remembering
from lifelong.envs.adapters.external import SpaceEncoder
from lifelong.envs.adapters.outside import undescribe

#: of the metadata
KEY = "lifelong"
#: its name in a TorchScript archive
EXTRA = f"{KEY}.json"
#: what the metadata must have
SHAPE = {
    "observation": dict,
    "flatten": bool,
    "action": dict,
    "inputs": {str: {"shape": [(int, str)], "dtype": str}},
    "outputs": [str],
    "resets": str,
    "tasks": [str],
    "task": (str, type(None)),
    "agreement": {"steps": int, "largest_difference": (int, float)},
}


class Runs(Protocol):
    """Executes a file: arrays by the name of their input -> arrays by the name of their output."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One step."""


class Onnx:
    """Executes ONNX with onnxruntime, on the CPU in one thread.

    Raises:
        ConfigError: onnxruntime is not installed.
        CheckpointError: the file does not load.
    """

    def __init__(self, content: Path | bytes) -> None:
        runtime = optional("onnxruntime", "an ONNX file", "export", ConfigError)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        source = str(content) if isinstance(content, Path) else content
        try:
            self._session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise CheckpointError(f"{_named(content)} does not load: {_first_line(error)}") from error
        self.metadata: str = self._session.get_modelmeta().custom_metadata_map.get(KEY, "")
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


class TorchScript:
    """Executes TorchScript.

    Raises:
        CheckpointError: the file does not load.
    """

    def __init__(self, content: Any) -> None:
        extra = {EXTRA: ""}
        try:
            self._module = torch.jit.load(content, map_location="cpu", _extra_files=extra)
        except Exception as error:
            raise CheckpointError(f"{_named(content)} does not load: {_first_line(error)}") from error
        text: Any = extra[EXTRA]
        self.metadata: str = text.decode() if isinstance(text, bytes) else text
        said = json.loads(self.metadata or "{}")
        self._inputs, self._outputs = list(said.get("inputs", {})), said.get("outputs", [])

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        made = self._module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._inputs))
        return {name: tensor.numpy() for name, tensor in zip(self._outputs, made, strict=True)}


def is_exported(path: Path) -> bool:
    """Whether a file is one that `lifelong export` wrote, as far as a look tells."""
    if not path.is_file():
        return False
    if path.suffix == ".onnx":
        return True
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(f"extra/{EXTRA}") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


class ExportedPolicy(Remembering):
    """A file that `lifelong export` wrote: `action, memory = policy(observation, memory)`, as `lifelong.load` has it.

    Args:
        path: of the file.
        task: name of the task that it acts in, where the file takes it as an input.

    Attributes:
        metadata: what the file says of itself (see the module).
        tasks: that the policy was trained on.

    Raises:
        CheckpointError: the file is damaged, or is not one of ours.
        ConfigError: onnxruntime is missing; an unknown task, or one that is missing or another than the file's.
    """

    def __init__(self, path: Path, task: str | None = None) -> None:
        self._run: Onnx | TorchScript = Onnx(path) if path.suffix == ".onnx" else TorchScript(str(path))
        if not self._run.metadata:
            raise CheckpointError(f"{path} was not written by `lifelong export`: it does not say what it reads")
        self.metadata = parse_json(self._run.metadata.encode(), path, SHAPE)
        said = self.metadata
        self.tasks: list[str] = said["tasks"]
        self.resets, self.with_reward = said["resets"], "reward" in said["inputs"]
        self._space, self._action = undescribe(said["observation"]), undescribe(said["action"])
        self._encoder = SpaceEncoder(self._space) if said["flatten"] else None
        if task is not None and task not in self.tasks:
            raise ConfigError(unknown_name("task", task, self.tasks))
        if said["task"] is not None and task not in (None, said["task"]):
            raise ConfigError(f"{path} was exported for task {said['task']!r}; export the run for task {task!r}")
        if "task" in said["inputs"] and task is None:
            raise ConfigError(f"{path} reads which task it is on; name one: load(file, task={self.tasks[0]!r})")
        self._task = self.tasks.index(task) if task is not None else 0

    def __call__(self, obs: Any, memory: Memory | None = None, reward: Any = None) -> tuple[Any, Memory]:
        """The most likely action, and the memory for the next call (see `LoadedPolicy`).

        Raises:
            EnvError: an observation, memory or reward that does not fit; one sentence.
        """
        lead, said = lead_of(self._space, obs), self.metadata["inputs"]
        count = lead[0] if lead else 1
        arrays = plain_arrays(self._space, obs, lead)
        read = self._encoder.batch(arrays, count) if self._encoder else torch.from_numpy(arrays)
        memory = self._empty(count, lead) if memory is None else self._fits(memory, lead)
        reward_B = self._reward(reward, memory.fresh_B, lead)
        given = {
            "obs": read,
            "state": memory.state_BS,
            "previous_action": memory.previous_action,
            "fresh": memory.fresh_B,
            "reward": reward_B,
            "task": torch.full((count,), self._task),
        }
        out = self._run({name: given[name].numpy() for name in said})
        following = Memory(
            _tensor(out.get("next_state"), memory.state_BS),
            _tensor(out.get("next_previous_action"), memory.previous_action),
            torch.zeros_like(memory.fresh_B),
            lead,
        )
        action = out["action"]
        return (action if lead else int(action[0]) if isinstance(self._action, Discrete) else action[0]), following

    def _empty(self, count: int, lead: tuple[int, ...]) -> Memory:
        def zeros(name: str) -> Tensor:
            described = self.metadata["inputs"].get(name, {"shape": ["B", 0], "dtype": "float32"})
            return torch.zeros(count, *described["shape"][1:], dtype=getattr(torch, described["dtype"]))

        return Memory(zeros("state"), zeros("previous_action"), torch.ones(count, dtype=torch.bool), lead)


def _tensor(array: np.ndarray | None, default: Tensor) -> Tensor:
    return default if array is None else torch.from_numpy(array)


def _named(content: Any) -> str:
    return str(content) if isinstance(content, (Path, str)) else "what was exported"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
