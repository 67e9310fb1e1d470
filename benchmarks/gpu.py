"""Checks and benchmarks on a GPU, in under 9 minutes: `make gpu`.

    python benchmarks/gpu.py [--json FILE]

Checks: every kernel backend against the reference, exactness of RTRL, the environment contract, captured chunks against
eager ones, a short training run. Measurements: the scan's share of the copy bandwidth, whole training steps per second
with rtrl and with bptt, captured and eager, environment steps per second (the bar is 1e9 for CartPole alone), chunked
against per-step RTRL; medians after a warm-up. Every part stands alone: one that fails becomes a FAIL row and the
others still run. The result goes to benchmarks/results/gpu-<date>.json.

Exit codes: 0 all checks passed, 1 one failed, 2 no GPU or a package is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # or `import kernels` would find benchmarks/kernels.py

try:
    import torch
    from torch import Tensor

    from benchmarks.gpu_parts.kernels import OPS, TOLERANCE, Inputs, check_op
    from benchmarks.gpu_parts.rows import Row, Sizes, Skip, relative_rms, seconds_of
    from benchmarks.kernels import Problem
    from lifelong.agent import config as configs
    from lifelong.agent import registry
    from lifelong.agent.gradients.rtrl import RTRL
    from lifelong.agent.runtime.build import build
    from lifelong.agent.runtime.capture import Captured
    from lifelong.agent.runtime.machine import machine, versions
    from lifelong.agent.runtime.trainer import Trainer
    from lifelong.agent.runtime.walk import difference, map_tensors
    from lifelong.envs.registry import ADAPTERS, ENVIRONMENTS
    from lifelong.envs.tasks import environment_class
    from lifelong.kernels import dispatch
    from lifelong.kernels.cartpole import available
    from lifelong.kernels.diag_scan import diag_scan
except ImportError as problem:
    if __name__ != "__main__":
        raise
    print(f"gpu.py needs a package that is missing: {problem}", file=sys.stderr)
    sys.exit(2)

# ---- checks: gradients, environments, training -----------------------------------------------------------------------


def check_exactness(kind: str, device: torch.device, sizes: Sizes, dtype: torch.dtype, backend: str, bar: float) -> Row:
    """Gradient of a history of several chunks by RTRL against backpropagation through all of it in float64."""
    chunks, T, B, N, D = sizes.exactness
    torch.manual_seed(0)
    exact = registry.build("cell", {"kind": kind, "size": N}, D).double()
    for parameter in exact.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    make = Inputs(torch.device("cpu"))
    x, is_init = make.normal(chunks * T, B, D).double(), make.flags(chunks * T, B)
    weight = make.normal(chunks * T, B, N).double() / (chunks * T * B) ** 0.5
    with dispatch.force("reference"):
        y, _ = exact.sequence(x, exact.initial_state(B), is_init)
        (y * weight).sum().backward()
    cell = registry.build("cell", {"kind": kind, "size": N}, D).to(device, dtype)
    cell.load_state_dict(exact.state_dict())
    engine = RTRL(cell, B)
    x, weight, is_init = x.to(device, dtype), weight.to(device, dtype), is_init.to(device)
    state = cell.initial_state(B)
    with dispatch.force(backend):
        for chunk in range(chunks):
            part = slice(chunk * T, (chunk + 1) * T)
            y, _ = cell.sequence(x[part], engine.attach(state), is_init[part])
            (y * weight[part]).sum().backward()
            states = []
            with torch.no_grad():
                for x_BD, reset_B in zip(x[part], is_init[part], strict=True):
                    states.append(state)
                    _, state = cell.step(x_BD, state * (~reset_B)[:, None])
            engine.advance(engine.trace(x[part], torch.stack(states), is_init[part]))
    expected = dict(exact.named_parameters())
    worst = 0.0
    for name in cell.recurrent_parameters():
        got, true = cell.get_parameter(name).grad, expected[name].grad
        assert got is not None and true is not None, f"{name} got no gradient"
        worst = max(worst, relative_rms(got, true))
    name = f"rtrl exact, {kind}, {str(dtype).removeprefix('torch.')}, {backend}"
    return Row(name, "PASS" if worst <= bar else "FAIL", worst, f"error, at most {bar:g}", f"{chunks} chunks of {T}")


def check_env(name: str, device: torch.device, sizes: Sizes) -> Row:
    """Shapes, dtypes and devices of a native environment, its dense last observation and a round trip of its state."""
    if name == "ImageRows" and importlib.util.find_spec("mlxtend") is None:
        raise Skip("mlxtend is not installed")
    B = sizes.env_copies
    env = environment_class(name)(B, device=device, seed=1, max_episode_steps=5)
    obs, _ = env.reset(seed=1)

    def act() -> Tensor:
        shape = env.single_action_space.shape or ()
        if hasattr(env.single_action_space, "n"):
            return torch.randint(int(env.single_action_space.n), (B,), device=device)
        return torch.rand(B, *shape, device=device) * 2 - 1

    for _ in range(12):
        action = act()
        saved = map_tensors(env.state_dict(), torch.clone)
        first = env.step(action)
        following, reward, terminated, truncated, info = first
        done = terminated | truncated
        for what, tensor, dtype, shape in (
            ("obs", following, obs.dtype, obs.shape),
            ("final_obs", info["final_obs"], obs.dtype, obs.shape),
            ("reward", reward, torch.float32, (B,)),
            ("terminated", terminated, torch.bool, (B,)),
            ("truncated", truncated, torch.bool, (B,)),
            ("_final_obs", info["_final_obs"], torch.bool, (B,)),
        ):
            assert tensor.device.type == device.type, f"{what} is on {tensor.device}"
            assert tensor.dtype == dtype, f"{what} is {tensor.dtype}"
            assert tensor.shape == shape, f"{what} has shape {tuple(tensor.shape)}"
        assert bool(torch.isfinite(following).all()), "obs is not finite"
        assert torch.equal(info["_final_obs"], done), "_final_obs is not terminated | truncated"
        assert torch.equal(following[~done], info["final_obs"][~done]), "final_obs differs where nothing ended"
        env.load_state_dict(saved)
        second = env.step(action)
        for a, b in zip(first[:4], second[:4], strict=True):
            assert torch.equal(a, b), "a step after load_state_dict is another one"
    return Row(f"env {name}", "PASS")


def check_cartpole(device: torch.device, sizes: Sizes) -> Row:
    """CartPole's step in one kernel against the same step in torch, through limits and resets."""
    B = sizes.env_copies
    options = {"device": device, "seed": 1, "max_episode_steps": [0, 7] * (B // 2)}
    compiled, plain = (environment_class("CartPole")(B, **options) for _ in range(2))
    if not available(compiled.age_B.float()):
        raise Skip("no kernel here")
    plain._constants_6B = None
    compiled.reset(seed=2)
    plain.reset(seed=2)
    worst, ends = 0.0, 0
    for _ in range(60):
        action = torch.randint(2, (B,), device=device)
        plain.load_state_dict(compiled.state_dict())  # one step at a time: rounding decides when a pole falls
        plain._constants_6B = None
        got, expected = compiled.step(action), plain.step(action)
        same = (got[2] == expected[2]) & (got[3] == expected[3])
        assert float(same.float().mean()) > 0.99, "episodes end at other steps"
        for a, b in ((got[0], expected[0]), (got[4]["final_obs"], expected[4]["final_obs"])):
            worst = max(worst, relative_rms(a[same], b[same]))
        for key in ("episode_return", "episode_length"):
            assert torch.equal(got[4][key], expected[4][key]), key
        ends += int(got[4]["_final_obs"].sum())
    assert ends > B, "too few episodes ended"
    name = "cartpole_step"
    return Row(name, "PASS" if worst <= 1e-6 else "FAIL", worst, "error, at most 1e-06", f"{ends} episodes")


def check_capture(name: str, device: torch.device, sizes: Sizes) -> Row:
    """A few chunks as a CUDA graph against the same chunks run op by op: everything that a checkpoint holds."""
    chunks, T, B, N = sizes.capture
    states = []
    for capture in ("auto", "off"):
        trainer = chunk_trainer(device, CAPTURED[name], B, T, N, capture)
        for _ in range(chunks):
            trainer.advance()
        states.append(dict(_leaves(trainer.state_dict())))
        if capture == "auto" and device.type == "cuda":
            assert is_captured(trainer), "it was not captured; the log says why"
    got, expected = states
    assert got.keys() == expected.keys(), "another structure"
    errors = {key: difference(got[key], value) for key, value in expected.items()}
    worst = max(errors, key=lambda key: errors[key])
    status = "PASS" if errors[worst] <= TOLERANCE else "FAIL"
    note = worst if errors[worst] else "bit for bit"
    return Row(f"captured is eager, {name}", status, errors[worst], f"difference, at most {TOLERANCE:g}", note)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dicts and sequences, by path."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (Mapping, list, tuple)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(item, f"{path}/{key}")


class Quiet:
    """Takes what the trainer logs and keeps the scalars."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Remember."""
        self.seen |= scalars

    def clock(self, step: int, scalars: dict[str, float]) -> None:
        """Ignore."""

    def update(self, *args: Any) -> None:
        """Ignore."""

    def rate(self, step: int) -> float:
        """No clock."""
        return 0.0

    def evaluation(self, evaluations: Any) -> None:
        """Ignore."""

    def sizes(self) -> dict[str, int]:
        """No file."""
        return {}


def check_training(device: torch.device, sizes: Sizes) -> Row:
    """A short run of tmaze with rtrl: it ends, the loss is finite, the parameters moved."""
    assignments = [
        f"runtime.device={device.type}",
        f"rollout.copies={sizes.train_copies}",
        f"stream.steps_per_task={sizes.train_steps}",
        f"log_every={max(sizes.train_steps // 4, 1)}",
        "evaluation={every: 100_000_000, episodes: 32, max_steps: 64}",
        "checkpoint.every=100_000_000",
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(configs.load("tmaze", assignments), Path(folder))
        before = torch.cat([p.detach().flatten().clone() for p in trainer.rollout.policy.parameters()])
        log: Any = Quiet()
        begun = time.perf_counter()
        finished = trainer.train(log, log)
        seconds = time.perf_counter() - begun
        after = torch.cat([p.detach().flatten() for p in trainer.rollout.policy.parameters()])
    assert finished, "the run did not reach the end of the stream"
    assert after.device.type == device.type, f"the policy is on {after.device}"
    assert bool(torch.isfinite(after).all()), "a parameter is not finite"
    assert not torch.equal(before, after), "no parameter moved"
    loss = log.seen["loss/total"]
    note = f"performance {log.seen['evaluation/tmaze']:.2f} after {trainer.step:,} steps in {seconds:.1f} s"
    return Row("train tmaze with rtrl", "PASS" if math.isfinite(loss) else "FAIL", loss, "loss, finite", note)


# ---- measurements ----------------------------------------------------------------------------------------------------


def measure_scan(device: torch.device, sizes: Sizes) -> list[Row]:
    """Bandwidth of diag_scan (3 arrays forward, 8 forward and backward) over that of a copy (2 arrays)."""
    B, T, N = sizes.scan
    a, b, e = (torch.rand(T, B, N, device=device) for _ in range(3))
    target, h0, is_init = torch.empty_like(a), torch.rand(B, N, device=device), torch.rand(T, B, device=device) < 0.02
    leaves = tuple(x.clone().requires_grad_() for x in (a, b, h0))
    copy = seconds_of(lambda: target.copy_(a), device, sizes.repeats)
    forward = seconds_of(lambda: diag_scan(a, b, h0, is_init), device, sizes.repeats)
    both = seconds_of(lambda: torch.autograd.grad(diag_scan(*leaves, is_init)[0], leaves, e), device, sizes.repeats)
    at = f"B={B} T={T} N={N}"
    return [
        Row("copy bandwidth", "value", 2 * a.nbytes / copy / 1e9, "GB/s", at),
        Row("diag_scan forward", "value", 1.5 * copy / forward, "of copy bandwidth", at),
        Row("diag_scan forward+backward", "value", 4 * copy / both, "of copy bandwidth", at),
    ]


POLE = {"stream": {"tasks": [{"env": {"kind": "CartPole"}}]}, "policy": {"encoder": {"kind": "mlp", "hidden": [64]}}}
ONE_PASS = {"kind": "ppo", "epochs": 1, "minibatches": 1}
#: what is compared with eager: name -> config
CAPTURED: dict[str, dict[str, Any]] = {
    "CartPole, ppo, bptt": {**POLE, "gradient": "bptt", "objective": ONE_PASS},
    "CartPole, ppo, rtrl": {**POLE, "gradient": "rtrl", "objective": ONE_PASS},
    "CartPole, ppo minibatches, rtrl": {**POLE, "gradient": "rtrl", "objective": "ppo"},
    "TMaze, actor_critic, rtrl": {
        "stream": {"tasks": [{"env": {"kind": "TMaze", "corridor": 3}}]},
        "policy": {"encoder": {"kind": "identity"}},
        "gradient": "rtrl",
    },
}


def chunk_trainer(device: torch.device, what: dict[str, Any], B: int, T: int, N: int, capture: str) -> Trainer:
    """A trainer of `what` with B copies, T steps and N units."""
    sizes = {
        "policy": {"cell": {"kind": "elstm", "size": N}},
        "rollout": {"copies": B, "steps": T},
        "runtime": {"device": device.type, "capture": capture},
    }
    return build(configs.check(configs.merge(what, sizes)), Path(tempfile.gettempdir()))


def cartpole(device: torch.device, gradient: str, B: int, T: int, N: int, capture: str = "auto") -> Trainer:
    """A trainer of PPO with one epoch on CartPole, which has made its first chunks."""
    trainer = chunk_trainer(device, CAPTURED[f"CartPole, ppo, {gradient}"], B, T, N, capture)
    for _ in range(4):  # one to warm up, two that are checked
        trainer.advance()
    return trainer


def is_captured(trainer: Trainer) -> bool:
    """Whether its chunks run as a CUDA graph now."""
    captured = trainer.chunk.captured
    return captured is not None and captured.graph is not None and captured.replays > 0


def how(trainer: Trainer) -> str:
    """For a note."""
    return "captured" if is_captured(trainer) else "eager"


def measure_engines(device: torch.device, sizes: Sizes) -> list[Row]:
    """Environment steps per second of whole training steps with rtrl and with bptt, captured and not, in turn."""
    B, T, N = sizes.step
    ways = [(gradient, capture) for capture in ("auto", "off") for gradient in ("rtrl", "bptt")]
    trainers = {way: cartpole(device, way[0], B, T, N, way[1]) for way in ways}
    times: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for _ in range(3):
        for way, trainer in trainers.items():
            repeats = max(sizes.repeats // 3, 1)
            times[way].append(seconds_of(trainer.advance, device, repeats, warmup=2))
    at = f"CartPole, PPO, B={B} T={T} N={N}"
    rows = []
    for capture, suffix in (("auto", ""), ("off", ", eager")):
        for gradient in ("rtrl", "bptt"):
            rate, note = B * T / median(times[gradient, capture]), f"{at}, {how(trainers[gradient, capture])}"
            rows.append(Row(f"whole step, {gradient}{suffix}", "value", rate, "env steps/s", note))
        pairs = zip(times["rtrl", capture], times["bptt", capture], strict=True)
        note = f"{at}, {how(trainers['rtrl', capture])}"
        rows.append(Row(f"rtrl throughput over bptt{suffix}", "value", median(b / r for r, b in pairs), "ratio", note))
    return rows


def measure_env(device: torch.device, sizes: Sizes) -> list[Row]:
    """CartPole alone, with fixed random actions: T steps as one CUDA graph."""
    T, rows = sizes.step[1], []
    for B in sizes.env_alone:
        env = environment_class("CartPole")(B, device=device)
        env.reset(seed=0)
        actions = torch.randint(2, (T, B), device=device)

        def run(env: Any = env, actions: Tensor = actions) -> None:
            for action in actions:
                env.step(action)

        captured = Captured(run, {"env": env}, device) if device.type == "cuda" else None
        seconds = seconds_of(captured or run, device, sizes.repeats, warmup=4)
        note = f"B={B} T={T}, {'captured' if captured and captured.graph else 'eager'}"
        rows.append(Row("CartPole alone", "value", B * T / seconds, "env steps/s", note))
    return rows


def measure_end_to_end(device: torch.device, sizes: Sizes) -> list[Row]:
    """Whole training with the size of the README, captured and not."""
    B, T, N = sizes.end_to_end
    rows = []
    for capture, suffix in (("auto", ""), ("off", ", eager")):
        trainer = cartpole(device, "rtrl", B, T, N, capture)
        seconds = seconds_of(trainer.advance, device, sizes.repeats)
        at = f"CartPole, PPO, B={B} T={T} N={N}, {how(trainer)}"
        rows.append(Row(f"end to end, rtrl{suffix}", "value", B * T / seconds, "env steps/s", at))
    return rows


def measure_per_step(device: torch.device, sizes: Sizes) -> list[Row]:
    """RTRL as a loop over single steps, as in the literature, over RTRL once a chunk."""
    B, T, N, D = sizes.per_step
    problem = Problem(B, T, N, D, device)
    repeats = max(sizes.repeats // 2, 1)
    chunked, loop, bptt = (
        seconds_of(run, device, repeats) for run in (problem.rtrl, problem.per_step_rtrl, problem.bptt)
    )
    at = f"one layer, B={B} T={T} N={N} D={D}"
    return [
        Row("per-step rtrl over chunked rtrl", "value", loop / chunked, "times slower", at),
        Row("chunked rtrl over bptt", "value", chunked / bptt, "times slower", at),
    ]


# ---- all of it -------------------------------------------------------------------------------------------------------


def parts(device: torch.device, backends: Sequence[str], sizes: Sizes) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every check and measurement: (name, function without arguments)."""
    for op in OPS:
        for backend in backends:
            yield f"{op} {backend}", lambda op=op, backend=backend: check_op(op, backend, device, sizes)
    for kind in ("elstm", "diagonal_gru", "diagonal_lstm"):
        for dtype, backend, bar in ((torch.float32, backends[0], 1e-4), (torch.float64, "torch", 1e-10)):
            yield (
                f"rtrl exact, {kind}, {str(dtype).removeprefix('torch.')}, {backend}",
                lambda kind=kind, dtype=dtype, backend=backend, bar=bar: check_exactness(
                    kind, device, sizes, dtype, backend, bar
                ),
            )
    for name in ENVIRONMENTS:
        if name not in ADAPTERS:
            yield f"env {name}", lambda name=name: check_env(name, device, sizes)
    yield "cartpole_step", lambda: check_cartpole(device, sizes)
    for name in CAPTURED:
        yield f"captured is eager, {name}", lambda name=name: check_capture(name, device, sizes)
    yield "train tmaze with rtrl", lambda: check_training(device, sizes)
    for name, measure in (
        ("diag_scan", measure_scan),
        ("rtrl and bptt", measure_engines),
        ("CartPole alone", measure_env),
        ("end to end", measure_end_to_end),
        ("per-step rtrl", measure_per_step),
    ):
        yield name, lambda measure=measure: measure(device, sizes)


def isolated(name: str, run: Callable[[], Any]) -> list[Row]:
    """The rows of one part; an exception becomes a FAIL row with its message."""
    try:
        result = run()
    except Skip as reason:
        return [Row(name, "SKIP", note=str(reason))]
    except Exception as error:  # whatever it is, the other parts must run
        return [Row(name, "FAIL", note=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")]
    return result if isinstance(result, list) else [result]


def run_all(device: torch.device, backends: Sequence[str], sizes: Sizes) -> list[Row]:
    """All parts in order; each row is printed as soon as it is there."""
    begun = time.perf_counter()
    rows: list[Row] = []
    for name, run in parts(device, backends, sizes):
        if time.perf_counter() - begun > sizes.seconds:
            found = [Row(name, "SKIP", note=f"not started after {sizes.seconds:.0f} s")]
        else:
            found = isolated(name, run)
        for row in found:
            value = "" if row.value is None else f"{row.value:.4g}"
            print(f"{row.status:5} {row.name:34} {value:>11} {row.unit:24} {row.note}".rstrip(), flush=True)
        rows += found
    failed = sum(row.status == "FAIL" for row in rows)
    passed = sum(row.status == "PASS" for row in rows)
    print(f"{passed} checks passed, {failed} failed, {time.perf_counter() - begun:.0f} s")
    return rows


def result_of(rows: list[Row], device: torch.device) -> dict[str, Any]:
    """What the JSON holds. Non-finite values become null."""
    listed = [asdict(row) for row in rows]
    for row in listed:
        if row["value"] is not None and not math.isfinite(row["value"]):
            row["value"] = None
    found = {**versions(), "cuda": torch.version.cuda}
    if importlib.util.find_spec("triton"):
        import triton

        found["triton"] = triton.__version__
    return {
        "benchmark": "gpu",
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": machine(device.type),
        "versions": found,
        "rows": listed,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything on the GPU and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/gpu-<date>.json")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        reason = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        print(f"no GPU: {reason}", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    backends = ("triton", "torch") if importlib.util.find_spec("triton") else ("torch",)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, kernels: {', '.join(backends)}")
    rows = run_all(device, backends, Sizes())
    path = options.json or ROOT / "benchmarks" / "results" / f"gpu-{date.today().isoformat()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result_of(rows, device), indent=2) + "\n")
    print(f"written: {path}")
    return int(any(row.status == "FAIL" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
