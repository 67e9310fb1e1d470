"""A policy as a file that other programs execute: `lifelong export RUN --format onnx|torchscript`.

One step of the policy is written in torch's own operations (`OneStep`), followed by `torch.export`, and becomes ONNX or
TorchScript. What is written is executed beside our policy before it is kept. `agent.exported` says what is in the file.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lifelong.agent.errors import ConfigError, ExportError, choice, optional
from lifelong.agent.exported import EXTRA, KEY, Onnx, Runs, TorchScript
from lifelong.agent.files import make_folder, write
from lifelong.agent.inference import INPUTS, LoadedPolicy, differences, reopened
from lifelong.agent.modules.encoders import OneHotLinear
from lifelong.agent.policy import Inputs
from lifelong.agent.runtime.machine import versions
from lifelong.agent.runtime.remembering import RULES, Memory
from lifelong.agent.runtime.trainer import Trainer
from lifelong.envs.adapters.outside import OutsideEnv, describe
from lifelong.envs.tasks import TaskEnv

#: format -> suffix of its file
FORMATS = {"onnx": ".onnx", "torchscript": ".pt"}
#: what a file may differ from our policy by, relative to numbers above 1
TOLERANCE = 1e-5
#: of the check: steps, copies, share of steps that begin with an empty memory
STEPS, COPIES, RESETS = 200, 3, 0.05


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how far it was from our policy over `steps` steps."""

    path: Path
    largest_difference: float
    steps: int


def export(
    run: Path | str,
    path: Path | str | None = None,
    *,
    format: Literal["onnx", "torchscript"] = "onnx",
    task: str | None = None,
) -> Exported:
    """Write the policy of a run, as `lifelong.load` has it, to a file that other programs execute.

    Args:
        run: run folder, or a file that `OnlineAgent.save` wrote.
        path: of the file; by default `policy.onnx` or `policy.pt` in the run folder, or beside the agent's file.
        format: onnx (needs the extra `export`) or torchscript.
        task: name of the task that it is to act in. It may be left out where that makes no difference, and where the
            policy only reads which task it is on: that is an input then.

    Returns:
        Where it is, and how far it was from our policy step by step.

    Raises:
        CheckpointError: there is no run, or no usable checkpoint.
        ConfigError: an unknown format or task; a task that is needed; a policy that cannot be exported, and why; a
            package that is missing.
        ExportError: what was written differs from our policy, and is not kept.
        DiskError: the file cannot be written.

    Example:
        made = lifelong.export("runs/quickstart/0", task="maze", format="onnx")
    """
    choice("format", format, FORMATS)
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            optional(package, "an export to onnx", "export", ConfigError)
    source = Path(run)
    trainer, names = reopened(source, task)
    why = differences(trainer) if task is None else []
    if [reason for reason in why if reason not in INPUTS]:
        raise ConfigError(f"{source} was trained on {', '.join(names)}, and {why[-1]}; name one: --task {names[0]}")
    index = None if why else names.index(task) if task is not None else 0
    policy = LoadedPolicy(trainer, index or 0, 0, True)
    step = OneStep(policy, trainer, index)
    target = Path(path) if path is not None else _default(source, format)
    program = _followed(step, source, trainer)
    content, run_it = _onnx(program, step, source) if format == "onnx" else _torchscript(program, step)
    difference = check(policy, step, run_it)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the exported policy differs from ours by {difference:.1e} within {STEPS} steps, more than {TOLERANCE:g}, "
            "so nothing was written"
        )
    said = json.dumps({**step.metadata(), "agreement": {"steps": STEPS, "largest_difference": difference}})
    make_folder(target.parent)
    write(target, content(said))
    return Exported(target, difference, STEPS)


def _default(source: Path, format: str) -> Path:
    return (source / "policy" if source.is_dir() else source.with_name(f"{source.stem}-policy")).with_suffix(
        FORMATS[format]
    )


class OneStep(nn.Module):
    """One step of a policy, from what a program has to what it needs, in torch's own operations.

    Args:
        loaded: the policy, as evaluation sees it.
        trainer: whose it is.
        task: index of the task that it acts in; None: that is an input.
    """

    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, loaded: LoadedPolicy, trainer: Trainer, task: int | None) -> None:
        super().__init__()
        env = trainer.rollout.env
        assert isinstance(env, TaskEnv)
        policy = loaded._policy
        self.policy, self.task = _plain(copy.deepcopy(policy)), task
        self._env, self._group, self._trainer = env, env.group_of[task or 0], trainer
        self._mask_A = loaded._converter.mask(task or 0, 1)[0]
        self.resets = loaded.resets
        weight, bias = policy.read_out()
        self.register_buffer("weight", weight.clone())
        self.register_buffer("bias", bias.clone())
        self.register_buffer("scale", torch.tensor([one.reward_scale for one in env.tasks]))
        self.tasks = [one.name for one in env.tasks]
        remembers = self.resets != "step"
        there = {
            "obs": True,
            "state": remembers,
            "previous_action": remembers and policy.with_action,
            "fresh": remembers,
            "reward": remembers and policy.with_reward,
            "task": task is None,
        }
        self.names = [name for name, is_there in there.items() if is_there]
        self.outputs = ["action", "policy", "value"]
        self.outputs += [f"next_{name}" for name in ("state", "previous_action") if name in self.names]

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """What `outputs` names, from what `names` names."""
        inputs = dict(zip(self.names, given, strict=True))
        policy, obs = self.policy, inputs["obs"]
        count, like = obs.shape[0], self.weight
        read = self._env.read(self._group, obs)
        read = read.to(like.dtype) if read.is_floating_point() else read
        task_B = inputs["task"] if self.task is None else torch.full((count,), self.task)
        features = policy.distribution.feature_size if policy.with_action else 0
        state_BS, action_BF = like.new_zeros(count, policy.cell.state_size), like.new_zeros(count, features)
        reward_B = like.new_zeros(count)
        if "fresh" in inputs:
            fresh_B = inputs["fresh"]
            state_BS = inputs["state"].masked_fill(fresh_B.unsqueeze(-1), 0.0)
            if "previous_action" in inputs:
                action_BF = inputs["previous_action"].masked_fill(fresh_B.unsqueeze(-1), 0.0)
            if "reward" in inputs:
                reward_B = (inputs["reward"].to(like.dtype) * self.scale[task_B]).masked_fill(fresh_B, 0.0)
        mask_BA = self._mask_A.expand(count, -1)
        known = Inputs(read, action_BF, reward_B, task_B, mask_BA)
        y_BH, state_BS = policy.cell.step(policy.encode(known), state_BS)
        said = policy.outputs(nn.functional.linear(y_BH, self.weight, self.bias), known)
        drawn = policy.distribution.mode(said.policy)
        space = self._env.envs[self._group].single_action_space
        action = self._env.given(self._group, policy.distribution.clip(drawn))
        made = {
            "action": action.to(getattr(torch, str(space.dtype))).reshape(count, *(space.shape or ())),
            "policy": said.policy,
            "value": said.value,
            "next_state": state_BS,
        }
        if policy.with_action:
            made["next_previous_action"] = policy.distribution.features(drawn).to(like.dtype)
        return tuple(made[name] for name in self.outputs)

    def example(self, count: int, generator: np.random.Generator) -> dict[str, Tensor]:
        """Inputs of so many environments: observations of the space, a memory that is empty."""
        space, like = self._env.envs[self._group].single_observation_space, self.weight
        obs = np.stack([_sample(space, generator) for _ in range(count)])
        features = self.policy.distribution.feature_size
        made = {
            "obs": torch.from_numpy(obs),
            "state": like.new_zeros(count, self.policy.cell.state_size),
            "previous_action": like.new_zeros(count, features),
            "fresh": torch.ones(count, dtype=torch.bool),
            "reward": torch.zeros(count),
            "task": torch.from_numpy(generator.integers(len(self.tasks), size=count)),
        }
        return {name: made[name] for name in self.names}

    def metadata(self) -> dict[str, Any]:
        """What the file says of itself."""
        env, config = self._env.envs[self._group], self._trainer.config
        assert isinstance(env, OutsideEnv)
        example = self.example(1, np.random.default_rng(0))
        inputs = {
            name: {"shape": ["B", *tensor.shape[1:]], "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in example.items()
        }
        return {
            "format": 1,
            "observation": describe(env.given),
            "flatten": env.encoder is not None,
            "action": describe(env.single_action_space),
            "inputs": inputs,
            "outputs": self.outputs,
            "distribution": type(self.policy.distribution).__name__,
            "resets": self.resets,
            "reset_rule": RULES[self.resets],
            "tasks": self.tasks,
            "task": None if self.task is None else self.tasks[self.task],
            "name": config.name,
            "steps": self._trainer.step,
            "versions": versions(),
        }


class _OneHotLinear(nn.Module):
    """`OneHotLinear` as a product with zeros and ones."""

    first: Tensor

    def __init__(self, layer: OneHotLinear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("first", layer.first)

    def forward(self, ids: Tensor) -> Tensor:
        hot_MKV = nn.functional.one_hot(self.first + ids.long(), self.weight.shape[1]).to(self.weight.dtype)
        return nn.functional.linear(hot_MKV.sum(1), self.weight, self.bias)


def _plain(policy: Any) -> Any:
    """The policy without layers that are made for speed."""
    for module in list(policy.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, OneHotLinear):
                setattr(module, name, _OneHotLinear(child))
    return policy.eval()


def _sample(space: Any, generator: np.random.Generator) -> np.ndarray:
    """An observation as policies read it: of bounds that are far apart only the middle."""
    shape, dtype = space.shape or (), space.dtype
    if hasattr(space, "nvec"):
        return generator.integers(space.nvec).astype(dtype)
    if dtype.kind in "iu":
        return generator.integers(space.low, space.high, endpoint=True).astype(dtype)
    drawn = generator.normal(size=shape)
    return np.clip(drawn, np.nan_to_num(space.low), np.nan_to_num(space.high)).astype(dtype)


# ---- the two formats -------------------------------------------------------------------------------------------------


def _followed(step: OneStep, source: Path, trainer: Trainer) -> torch.export.ExportedProgram:
    """The program of a step, for any number of environments."""
    example = tuple(step.example(2, np.random.default_rng(0)).values())
    batch = torch.export.Dim("B", min=1)
    shapes = tuple({0: batch} for _ in example)

    def follow(module: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
        with quiet(), torch.no_grad():
            return torch.export.export(module, inputs, dynamic_shapes={"given": shapes})

    try:
        return follow(step, example)
    except Exception as error:
        raise ConfigError(
            f"the policy of {source} cannot be exported: {_culprit(step, trainer, example)} cannot be followed by "
            f"torch.export ({_short(error)})"
        ) from error


def _culprit(step: OneStep, trainer: Trainer, example: tuple[Tensor, ...]) -> str:
    """What of a policy cannot be followed, for a sentence."""
    policy, spec = step.policy, trainer.config.policy
    x_BD, state_BS = torch.zeros(2, policy.cell.input_size), policy.cell.initial_state(2)
    read = step._env.read(step._group, example[0])
    parts = {
        f"encoder {spec.encoder['kind']}": (policy.encoder, (read,)),
        f"cell {spec.cell['kind']}": (_CellStep(policy.cell), (x_BD, state_BS)),
    }
    for name, (module, inputs) in parts.items():
        try:
            with quiet(), torch.no_grad():
                torch.export.export(module, inputs)
        except Exception:
            return name
    return "it"


class _CellStep(nn.Module):
    """A cell whose forward is one step."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell: Any = cell

    def forward(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        stepped: tuple[Tensor, Tensor] = self.cell.step(x_BD, state_BS)
        return stepped


def _onnx(program: torch.export.ExportedProgram, step: OneStep, source: Path) -> tuple[Any, Runs]:
    """What gives the content of an ONNX file with its metadata, and what executes it."""
    import onnx

    try:
        with quiet():
            made: Any = torch.onnx.export(
                program, dynamo=True, input_names=step.names, output_names=step.outputs, verbose=False
            )
        model = made.model_proto
    except Exception as error:
        raise ConfigError(
            f"the policy of {source} cannot be exported to onnx: {_short(error)}; try --format torchscript"
        ) from error

    def content(metadata: str) -> bytes:
        onnx.helper.set_model_props(model, {KEY: metadata})
        return bytes(model.SerializeToString())

    return content, Onnx(content("{}"))


def _torchscript(program: torch.export.ExportedProgram, step: OneStep) -> tuple[Any, Runs]:
    """What gives the content of a TorchScript archive with its metadata, and what executes it."""
    example = tuple(step.example(2, np.random.default_rng(0)).values())
    with quiet(), torch.no_grad():
        module: Any = torch.jit.trace(_sized(program.module()), example, check_trace=False)

    def content(metadata: str) -> bytes:
        buffer = io.BytesIO()
        torch.jit.save(module, buffer, _extra_files={EXTRA: metadata})
        return buffer.getvalue()

    return content, TorchScript(io.BytesIO(content(json.dumps(step.metadata()))))


def _sized(graph: Any) -> Any:
    """The graph with sizes that tracing sees; it would take those of the example for constants, because operators by
    their schema, which `torch.export` writes, are given plain numbers."""

    def counts(value: Any) -> bool:
        return isinstance(value, torch.fx.Node) and isinstance(value.meta.get("val"), torch.SymInt)

    for node in graph.graph.nodes:
        flat = [each for value in node.args for each in (value if isinstance(value, (list, tuple)) else [value])]
        if node.target is torch.ops.aten.sym_size.int:
            node.target = _size
        elif isinstance(node.target, torch._ops.OpOverload) and any(map(counts, flat)):
            name = node.target.overloadpacket.__name__
            method = flat and not counts(flat[0]) and hasattr(torch.Tensor, name)
            node.target = getattr(torch.Tensor if method else torch, name)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key in ("dtype", "device")}
    graph.recompile()
    return graph


def _size(x: Tensor, dim: int) -> int:
    return x.shape[dim]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters say of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _short(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


# ---- the check -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def check(policy: LoadedPolicy, step: OneStep, run: Runs, steps: int = STEPS) -> float:
    """The largest difference between our policy and a file over `steps` steps of a few copies, memories emptied at
    random: of all that goes out, relative to numbers above 1. Each goes on from its own memory.

    Actions that are chosen and not computed are compared through what they are chosen by: where two are equally good,
    up to `TOLERANCE`, both go on from ours.
    """
    generator = np.random.default_rng(0)
    memory, theirs, worst = policy._empty((COPIES,)), step.example(COPIES, generator), 0.0
    for t in range(steps):
        given = step.example(COPIES, generator)
        fresh_B = torch.from_numpy(generator.random(COPIES) < RESETS) if t else torch.ones(COPIES, dtype=torch.bool)
        reward_B = torch.from_numpy(generator.normal(size=COPIES)).float()
        task_B = given.get("task", torch.full((COPIES,), step.task or 0))
        memory = Memory(memory.state_BS, memory.previous_action, fresh_B, memory.lead)
        lived = fresh_B | (policy.resets == "step")
        read = step._env.read(step._group, given["obs"])
        scaled_B = (reward_B * step.scale[task_B]).masked_fill(lived, 0.0)
        drawn, said, memory = policy.decide(read, memory, scaled_B, task_B)
        action = policy._converter.actions(policy._policy.distribution.clip(drawn), step.task or 0, (COPIES,))
        fed = {**theirs, "obs": given["obs"], "fresh": fresh_B, "reward": reward_B, "task": task_B}
        out = run({name: fed[name].numpy() for name in step.names})
        ours = {"policy": said.policy, "value": said.value, "next_state": memory.state_BS}
        compared = {name: tensor.numpy() for name, tensor in ours.items() if name in out}
        if action.dtype.kind == "f":  # the others are looked at below
            compared["action"] = action
        worst = max([worst, *(_difference(array, out[name]) for name, array in compared.items())])
        same_B = (
            (out["action"] == action).reshape(COPIES, -1).all(1) if action.dtype.kind != "f" else np.ones(COPIES, bool)
        )
        if not same_B.all():
            worst = max(worst, _by_choice(policy, said.policy, torch.from_numpy(out["policy"]), same_B))
        if "next_state" in out:
            theirs["state"] = torch.from_numpy(out["next_state"])
        if "next_previous_action" in out:
            own = torch.from_numpy(out["next_previous_action"])
            worst = max(worst, _difference(memory.previous_action[same_B], own[same_B])) if same_B.any() else worst
            theirs["previous_action"] = memory.previous_action if not same_B.all() else own
    return worst


def _by_choice(policy: LoadedPolicy, ours: Tensor, theirs: Tensor, same_B: np.ndarray) -> float:
    """How far apart the choices of the copies that differ are: infinitely, unless what they are made from is equal and
    each is as good for the other, up to `TOLERANCE`."""
    gap = 0.0
    mode = policy._policy.distribution.mode
    for b in np.flatnonzero(~same_B):
        a, c = mode(ours[b : b + 1]), mode(theirs[b : b + 1])
        log_prob = policy._policy.distribution.log_prob
        gap = max(gap, float((log_prob(ours[b : b + 1], a) - log_prob(ours[b : b + 1], c)).abs().max()))
    return 0.0 if gap <= TOLERANCE else float("inf")


def _difference(ours: Any, theirs: Any) -> float:
    """The largest difference, relative to numbers above 1; infinite where one of them is not finite and they differ."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (ours, theirs))
    if a.shape != b.shape:
        return float("inf")
    if not a.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        gap = np.abs(a - b) / np.maximum(1.0, np.abs(a))
    gap = np.where(a == b, 0.0, np.nan_to_num(gap, nan=np.inf))
    return float(gap.max())
