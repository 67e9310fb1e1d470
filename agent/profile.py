"""`lifelong profile`: where a step's microseconds go, with the matrix products' own beside them.

The config is trained for some chunks in a folder that goes away. A run that has a plan is taken apart into its calls,
each of which is made again and again by itself; any other is watched while it runs, and what a part takes is without
what others take inside it. Times are seconds of the processor, on one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from lifelong.agent import config as configs
from lifelong.agent.errors import ConfigError

if TYPE_CHECKING:
    from lifelong.agent.runtime.planned.plan import Plan, Rounds
    from lifelong.agent.runtime.trainer import Trainer
    from lifelong.kernels.loop import Call, Direct

#: times that a call is made for its median
TRIES = 15
#: hooks of strategies that take part in a chunk
HOOKS = (
    *("extra_reward", "transform_batch", "extra_loss", "transform_gradients", "transform_update", "after_update"),
    *("after_chunk", "on_clock"),
)


def declare(commands: Any) -> Any:
    """Add the command to those of the command line."""
    made = commands.add_parser("profile", help="where the time of a training step goes")
    made.add_argument("config", metavar="CONFIG", help="a bundled name (see `lifelong list config`) or a path")
    made.add_argument("--chunks", type=int, default=40, metavar="N", help="chunks that are measured; default 40")
    return made


def command(options: argparse.Namespace) -> int:
    """Print the table."""
    if options.chunks < 1:
        raise ConfigError(f"--chunks is {options.chunks}; it must be at least 1")
    fixed = ["runtime.device=cpu", "runtime.threads=1", "runtime.backend=inline"]
    config = configs.choose(options.config, [*options.overrides, *fixed])
    import torch

    from lifelong.agent.runtime.build import build

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(config, Path(folder))
        try:
            print("\n".join(lines(trainer, options.chunks)))
        finally:
            trainer.close()
    return 0


def lines(trainer: Trainer, chunks: int) -> Iterator[str]:
    """The table, line by line."""
    for _ in range(3):  # kernels are loaded, and the optimiser has its state
        trainer.advance()
    begun, steps = time.process_time(), -trainer.step
    for _ in range(chunks):
        trainer.advance()
    steps += trainer.step
    whole = (time.process_time() - begun) / steps * 1e6
    yield f"{trainer.planned.report()}: {whole:.2f} us a step, {1e6 / whole:,.0f} steps/s on one thread"
    plan = trainer.planned.plan
    parts = _calls(plan) if plan is not None and plan.kept else _watched(trainer, chunks)
    rest = whole - sum(parts.values())
    rows = [*sorted(parts.items(), key=lambda row: -row[1]), ("between these", rest)]
    width = max(14, *(len(name) for name, _ in rows))
    yield f"{'':{width}}  us a step  share"
    for name, each in rows:
        yield f"{name:{width}}  {each:9.3f}  {each / whole:5.0%}"
    floor, rate = _floor(trainer)
    said = f"(matrices at {rate:.0f} GFLOP/s, as measured here)"
    yield f"{'products alone':{width}}  {floor:9.3f}  {floor / whole:5.0%}  {said}"


# ---- a plan ----------------------------------------------------------------------------------------------------------


def _calls(plan: Plan) -> dict[str, float]:
    """Microseconds a step of every kind of call of the rounds that were made last."""
    rounds: Rounds = next(reversed(plan.kept.values()))
    parts, made, T, B = rounds.acted.parts, rounds.acted.made, rounds.steps, rounds.B
    found: dict[str, float] = defaultdict(float)
    groups: list[tuple[str, Sequence[Call | Direct], int]] = [
        ("act: ", parts.before, T),
        ("act: ", made.calls, T),
        ("act: ", parts.after, T),
    ]
    first, _, _, _, *update = rounds.segments
    groups += [("learn: ", segment.calls, segment.steps) for segment in update]
    for phase, calls, times in groups:
        for call in calls:
            found[phase + _name(call)] += _seconds(rounds, [call], times) * 1e6 / (T * B)
    found["read the parameters"] = _seconds(rounds, first.calls, 1) * 1e6 / (T * B * rounds.rounds)
    return dict(found)


def _name(call: Call | Direct) -> str:
    """The C function's name, without its type."""
    from lifelong.kernels.loop import Call

    name: str = call.functions.name if isinstance(call, Call) else call.entry.__name__
    for ending in ("_f32", "_f64", "_call"):
        name = name.removesuffix(ending)
    return name


def _seconds(rounds: Rounds, calls: Sequence[Call | Direct], times: int) -> float:
    """Of making the calls so many times; what they compute is of no use any more."""
    from lifelong.kernels.loop import Prepared

    prepared, taken = Prepared(calls, rounds.dtype), []
    for _ in range(TRIES):
        begun = time.process_time()
        prepared.run(times)
        taken.append(time.process_time() - begun)
    return median(taken)


# ---- anything else ---------------------------------------------------------------------------------------------------


class Watch:
    """Seconds of named parts, each without those inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part, while it runs."""
        begun = time.process_time()
        self._inside.append(0.0)
        try:
            yield
        finally:
            taken = time.process_time() - begun
            self.seconds[name] += taken - self._inside.pop()
            self._inside[-1] += taken

    def on(self, owner: Any, method: str, name: str) -> None:
        """Watch a method of an object."""
        function: Callable[..., Any] = getattr(owner, method)

        def watched(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*arguments, **options)

        setattr(owner, method, watched)


def _watched(trainer: Trainer, chunks: int) -> dict[str, float]:
    """Microseconds a step of the parts of chunks that are made one by one."""
    from lifelong.agent.strategies.base import overrides

    watch, learner, runner = Watch(), trainer.learner, trainer.chunk
    watch.on(runner, "_collect", "act")
    compiled = "" if learner.passes.why else ", compiled"
    watch.on(learner.passes, "sequence", f"forward pass{compiled}")
    watch.on(learner.passes, "backward", f"backward pass{compiled}" if compiled else "backward pass (nothing)")
    watch.on(learner.objective, "loss", "loss")
    watch.on(learner.objective, "prepare", "advantages")
    watch.on(learner, "_apply", "optimiser")
    for method in ("trace", "advance", "boundary"):
        watch.on(learner.engine, method, "carry")
    for strategy in trainer.strategies:
        for hook in HOOKS:
            if overrides([strategy], hook):
                watch.on(strategy, hook, f"{type(strategy).__name__}: {hook}")
    watch.on(trainer.record, "add", "log")
    steps = -trainer.step
    for _ in range(chunks):
        trainer.advance()
    steps += trainer.step
    return {name: seconds / steps * 1e6 for name, seconds in watch.seconds.items()}


# ---- the floor -------------------------------------------------------------------------------------------------------


def _floor(trainer: Trainer) -> tuple[float, float]:
    """Microseconds a step that the policy's matrix products take, forward for acting and twice that backward, for every
    minibatch, and the rate in GFLOP/s at which large ones are made here."""
    import torch

    a, b = torch.randn(512, 512), torch.randn(512, 512)
    taken = []
    for _ in range(TRIES):
        begun = time.process_time()
        a @ b
        taken.append(time.process_time() - begun)
    rate = 2 * 512**3 / median(taken[3:])
    weights = sum(p.numel() for p in trainer.learner.parameters if p.dim() == 2)
    passes = 1 + (2 + (trainer.learner.objective.epochs > 1)) * trainer.learner.objective.epochs
    return 2 * weights * passes / rate * 1e6, rate / 1e9
