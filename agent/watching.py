"""`lifelong show-env` and `lifelong watch`: an environment, and an agent in its tasks, as pictures and films."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lifelong.agent import config as configs
from lifelong.agent.errors import ConfigError, unknown_name
from lifelong.agent.trust import check_run, trusted
from lifelong.envs.registry import ENVIRONMENTS

if TYPE_CHECKING:
    import numpy as np

#: random steps before a picture, and of a film
STEPS = {".png": 12, ".gif": 100, ".mp4": 100}


def declare(commands: Any) -> tuple[Any, Any]:
    """Add both commands to those of the command line."""
    show = commands.add_parser("show-env", help="a picture or a film of environments, random actions")
    show.add_argument("env", metavar="NAME", help="see `lifelong list env`; or an id of Gymnasium, or module:Class")
    show.add_argument("words", metavar="NAME, option=value", nargs="*", help="more of them; options, values in YAML")
    show.add_argument("--out", type=Path, metavar="FILE", help=".png, .gif or .mp4; default NAME.png")
    show.add_argument("--steps", type=int, metavar="N", help="steps before the picture, or of the film")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    watch = commands.add_parser("watch", help="a film of a trained agent in one of its tasks")
    watch.add_argument("folder", metavar="RUN", type=Path, help="run folder, such as runs/quickstart/0")
    watch.add_argument("--task", metavar="NAME", help="default: the first")
    watch.add_argument("--video", type=Path, metavar="FILE", help=".gif, .mp4 or .png; default RUN/watch-TASK.gif")
    watch.add_argument("--episodes", type=int, default=1, metavar="N", help="default 1")
    watch.add_argument("--max-steps", type=int, default=300, metavar="N", help="default 300, of all episodes together")
    watch.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    watch.add_argument("--trust", action="store_true", help="import code that a run folder names")
    return show, watch


def show_env(options: argparse.Namespace) -> int:
    """Random actions in environments, side by side."""
    names = [options.env, *(word for word in options.words if "=" not in word)]
    out: Path = options.out or Path(f"{options.env.rpartition('/')[2].replace(':', '-')}.png")
    _suffix("--out", out)
    steps = STEPS[out.suffix] if options.steps is None else options.steps
    if steps < 0:
        raise ConfigError(f"--steps is {steps}; it must be at least 0")
    given = {}
    for word in options.words:
        option, equals, value = word.partition("=")
        if equals:
            given[option] = yaml.safe_load(value)
    kinds = [_kind(name) for name in names]
    from lifelong.envs.render import save, sheet

    films = [_random(name, {**kind, **given}, steps, options.seed) for name, kind in zip(names, kinds, strict=True)]
    save(out, [sheet([each[0] for each in row], [each[1] for each in row]) for row in zip(*films, strict=True)])
    print(out)
    return 0


def _random(name: str, spec: dict[str, Any], steps: int, seed: int) -> list[tuple[np.ndarray, str]]:
    """Pictures of an environment and what is said of them, before the first and after every random step."""
    import torch

    from lifelong.envs.border import Restarts
    from lifelong.envs.tasks import Task

    env = Task.from_spec(name, _with_pictures(spec), 0).build(1, Restarts(), seed=seed)
    try:
        env.reset(seed=seed)
        env.action_space.seed(seed)
        frames = [(env.render(env.state, 0), name)]
        for step in range(1, steps + 1):
            reward = env.step(torch.as_tensor(env.action_space.sample()))[1]
            frames.append((env.render(env.state, 0), f"{name}   step {step}   reward {float(reward[0]) + 0.0:.3g}"))
        return frames
    finally:
        env.close()


def watch(options: argparse.Namespace) -> int:
    """A trained agent in one of its tasks."""
    folder: Path = options.folder
    check_run(folder)
    config = configs.load(str((folder / "config.yaml").resolve()))
    trusted(config, folder, options)
    configs.find_own_modules(config)
    names = [task.name or str(task.env["kind"]) for task in config.stream.tasks]
    name = options.task or names[0]
    if name not in names:
        raise ConfigError(unknown_name("task", name, names))
    for option in ("episodes", "max_steps"):
        if vars(options)[option] < 1:
            raise ConfigError(f"--{option.replace('_', '-')} is {vars(options)[option]}; it must be at least 1")
    video: Path = options.video or folder / f"watch-{name}.gif"
    _suffix("--video", video)
    from lifelong.agent.inference import load
    from lifelong.envs.border import Restarts
    from lifelong.envs.render import save, sheet
    from lifelong.envs.tasks import Task

    policy = load(folder, name, seed=options.seed)
    spec = _with_pictures(dict(config.stream.tasks[names.index(name)].env))
    env = Task.from_spec(name, spec, 0).build(1, Restarts(), seed=options.seed, evaluation=True)
    frames, returns = [], []
    try:
        obs, _ = env.reset(seed=options.seed)
        memory, reward, total = None, None, 0.0
        for step in range(options.max_steps):
            frames.append(sheet([env.render(env.state, 0)], [f"{name}   step {step}   return {total:.3g}"]))
            action, memory = policy(obs, memory, reward)
            obs, reward, terminated, truncated, info = env.step(action)
            total = float(info["episode_return"][0])
            if bool(terminated[0] | truncated[0]):
                returns.append(total)
                memory, total = policy.reset(memory, (terminated | truncated).numpy()), 0.0
                if len(returns) == options.episodes:
                    break
    finally:
        env.close()
    save(video, frames)
    ended = ", ".join(f"{each:.3g}" for each in returns) or f"none ended; so far {total:.3g}"
    print(f"{video}\nreturns: {ended}")
    return 0


def _suffix(option: str, path: Path) -> None:
    if path.suffix not in STEPS:
        raise ConfigError(f"{option} is {str(path)!r}; it must end in {', '.join(STEPS)}")


def _kind(name: str) -> dict[str, Any]:
    """What a config would call an environment."""
    if name in ENVIRONMENTS or ":" in name:
        return {"kind": name}
    import gymnasium

    if name in gymnasium.registry:
        return {"kind": "gymnasium", "id": name}
    raise ConfigError(unknown_name("environment", name, [*ENVIRONMENTS, *gymnasium.registry]))


def _with_pictures(spec: dict[str, Any]) -> dict[str, Any]:
    """The same environment; one of Gymnasium's is asked for its pictures, if it has any."""
    if spec["kind"] != "gymnasium" or "id" not in spec:
        return spec
    import gymnasium

    try:
        entry: Any = gymnasium.spec(spec["id"]).entry_point
        creator: Any = gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
        modes = creator.metadata.get("render_modes", [])
    except Exception:  # whatever the environment's module does: it is made all the same, and says so itself
        return spec
    if "rgb_array" not in modes:
        return spec
    return {**spec, "kwargs": {"render_mode": "rgb_array", **spec.get("kwargs", {})}}
