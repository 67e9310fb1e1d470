"""`lifelong score`: what a policy that knows nothing gets in an environment, and what a good one does.

The two returns are the `score` of a task: they map its returns to performance, 0 useless and 1 solved, so that tasks of
one stream can be compared and averaged. Without them a run shows returns.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lifelong.agent import reading
from lifelong.agent.errors import ConfigError
from lifelong.envs.registry import ENVIRONMENTS

if TYPE_CHECKING:
    from torch import Tensor

    from lifelong.envs.base import BatchedEnv

    #: observations [B, ...] of an environment as it gives them -> its actions
    Policy = Callable[[Tensor], Any]


class Measured(NamedTuple):
    """Returns of whole episodes."""

    mean: float
    error: float  # one standard error of the mean
    episodes: int
    length: float  # mean, steps
    unfinished: int  # episodes that had not ended when the time was over; their returns count as they were

    def line(self, name: str) -> str:
        """One line of text."""
        cut = f", {self.unfinished} of them cut off" if self.unfinished else ""
        return (
            f"{name}: mean return {self.mean:.4g} ± {self.error:.2g} (standard error), {self.episodes} episodes of "
            f"{self.length:,.0f} steps{cut}"
        )


def declare(commands: Any) -> Any:
    """Add the command to those of the command line."""
    made = commands.add_parser("score", help="measure the score of an environment: a random policy and a reference")
    made.add_argument(
        "env",
        metavar="ENV",
        help="a name of `lifelong list env`, module:Class, an id of Gymnasium, or envpool:ID; options as overrides, "
        "such as kwargs.max_episode_steps=200",
    )
    made.add_argument(
        "--reference",
        metavar="R",
        help="what counts as solved: a return, a run folder (its best evaluation of this environment), or "
        "module:function, from observations [B, ...] to actions; default: the threshold of Gymnasium, if there is one",
    )
    made.add_argument("--episodes", type=int, default=100, metavar="N", help="of each policy; default 100")
    made.add_argument("--max-steps", type=int, default=10_000, metavar="N", help="of an episode; default 10,000")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    return made


def command(options: argparse.Namespace) -> int:
    """Measure, and print the line to paste."""
    for name in ("episodes", "max_steps"):
        if vars(options)[name] < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {vars(options)[name]}; it must be at least 1")
    spec = spec_of(options.env, options.overrides)
    sys.path.append(os.getcwd())  # whoever names code of their own has it here

    low = measure(spec, options.episodes, options.max_steps, options.seed)
    print(low.line("random"))
    high = reference(spec, options)
    if high is None:
        print(
            f"score: [{rounded(low.mean)}, ?]    # what a good policy gets: --reference RETURN, RUN or module:function"
        )
        return 0
    if rounded(low.mean) == rounded(high):
        raise ConfigError(f"the reference gets {high:.4g}, as the random policy does, so nothing could be measured")
    print(f"score: [{rounded(low.mean)}, {rounded(high)}]")
    return 0


def spec_of(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The `env` of a task that `name` stands for, with options.

    Args:
        name: an environment of the registry, `module:Class`, an id of Gymnasium, `module:Name-v0`, or `envpool:ID`.
        overrides: `a.b=value`.
    """
    if name.startswith("envpool:"):
        spec: dict[str, Any] = {"kind": "envpool", "id": name.partition(":")[2]}
    elif name in ENVIRONMENTS or (":" in name and "-v" not in name):
        spec = {"kind": name}
    else:
        spec = {"kind": "gymnasium", "id": name}
    return reading.override(spec, overrides)


def measure(
    spec: dict[str, Any], episodes: int, max_steps: int, seed: int = 0, policy: Policy | None = None
) -> Measured:
    """Returns of `episodes` episodes, one a copy, of a policy (None: of random actions).

    Raises:
        EnvError: the environment cannot be made, or raises.
    """
    import torch

    env = made(spec, episodes, seed)
    try:
        obs, _ = env.reset(seed=seed)
        env.action_space.seed(seed)
        generator = torch.Generator().manual_seed(seed)
        total, length = torch.zeros(episodes), torch.zeros(episodes)
        running = torch.ones(episodes, dtype=torch.bool)
        for _ in range(max_steps):
            action = _random(env, generator) if policy is None else policy(obs)
            obs, _, _, _, info = env.step(action)
            total = torch.where(running, info["episode_return"].cpu(), total)
            length = torch.where(running, info["episode_length"].cpu().float(), length)
            running &= ~info["_final_obs"].cpu()
            if not running.any():
                break
    finally:
        env.close()
    error = float(total.std()) / episodes**0.5 if episodes > 1 else 0.0
    return Measured(float(total.mean()), error, episodes, float(length.mean()), int(running.sum()))


def made(spec: dict[str, Any], copies: int, seed: int) -> BatchedEnv:
    """The environment of a task's `env`."""
    from lifelong.envs.border import Restarts
    from lifelong.envs.tasks import Task

    return Task.from_spec("score", spec, 1).build(copies, Restarts(), seed=seed)


def _random(env: BatchedEnv, generator: Any) -> Any:
    """Random actions; of those that there are, where the environment says it."""
    import torch

    mask, space = env.action_mask_BA, env.single_action_space
    if mask is None or not hasattr(space, "n"):
        return torch.as_tensor(env.action_space.sample())
    return mask.float().cpu().multinomial(1, generator=generator)[:, 0] + int(space.start)  # type: ignore[attr-defined]


def reference(spec: dict[str, Any], options: argparse.Namespace) -> float | None:
    """The return that counts as solved; it is printed where it came from. None: nobody knows."""
    asked: str | None = options.reference
    if asked is None:
        return _threshold(spec)
    try:
        return float(asked)
    except ValueError:
        pass
    if Path(asked).is_dir():
        return _of_run(Path(asked), spec)
    if ":" not in asked:
        raise ConfigError(f"--reference is {asked!r}; it must be a return, a run folder or module:function")
    module, _, attribute = asked.partition(":")
    try:
        policy = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--reference {asked} cannot be imported: {error}") from error
    found = measure(spec, options.episodes, options.max_steps, options.seed, policy)
    print(found.line("reference"))
    return found.mean


def _threshold(spec: dict[str, Any]) -> float | None:
    """What Gymnasium registered as the return of a solved environment."""
    import gymnasium

    if spec["kind"] == "gymnasium":
        threshold = gymnasium.spec(spec["id"]).reward_threshold
        if threshold is not None:
            print(f"reference: {threshold:g}, the reward_threshold that Gymnasium has of {spec['id']}")
            return float(threshold)
    elif spec["kind"] != "envpool":
        from lifelong.envs.tasks import environment_class

        low, high = environment_class(spec["kind"]).SCORE
        print(f"reference: {high:g}, from the environment's own score, [{low:g}, {high:g}]")
        return float(high)
    return None


def _of_run(folder: Path, spec: dict[str, Any]) -> float:
    """The best mean return that a run has had in the environment."""
    import numpy as np

    from lifelong.agent import config as configs
    from lifelong.agent.runtime.metrics import Evaluations
    from lifelong.agent.trust import check_run

    check_run(folder)
    tasks = configs.load(str((folder / "config.yaml").resolve())).stream.tasks

    def same(env: dict[str, Any]) -> bool:
        return all(env.get(key) == spec.get(key) for key in ("kind", "id"))

    found = [index for index, task in enumerate(tasks) if same(task.env)]
    if not found:
        names = ", ".join(str(task.env.get("id", task.env["kind"])) for task in tasks)
        raise ConfigError(f"--reference {folder} is a run in other environments: {names}")
    returns = Evaluations.of(folder).tensor()[:, found]
    best = float(np.nanmax(np.nanmean(returns, axis=-1)))
    print(f"reference: {best:.4g}, the best evaluation of {folder}")
    return best


def rounded(value: float) -> float:
    """Three digits are more than such a measurement knows."""
    return float(f"{value:.3g}")
