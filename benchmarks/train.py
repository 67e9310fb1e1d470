"""End-to-end training speed: recurrent PPO on CartPole, 64 copies, state 128, one epoch, beside sb3-contrib.

    lifelong bench train [--json FILE]

They train in turn (A B A B ...), each in one process, with the same number of torch threads, the same number of copies,
steps per chunk, epochs and minibatches; the median of the pairwise ratios is reported. sb3-contrib is needed only here:
`pip install sb3-contrib`. Without it only the ratios of our own engines are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.measure import finish, medians, ratios, take_turns
from lifelong.agent import config as configs
from lifelong.agent.runtime.build import build

COPIES, STATE = 64, 128
STEPS = 32  # of a chunk, in the comparison of our own engines
SB3_STEPS = 128  # of a chunk beside sb3-contrib: the default of its n_steps
THREADS = 2
ROUNDS = 5
SHARED = {"shared_lstm": True, "enable_critic_lstm": False}
CHUNKS = 12  # chunks a round, after as many of warm-up
ALIKE = 30  # chunks that take us about as long as one takes sb3-contrib: a short turn after a long one would start cold
SECONDS = 2.5  # at least, of a comparison with it


def lifelong(gradient: str, env: str, copies: int, steps: int, cell: str = "elstm") -> Callable[[int], None]:
    """A function that trains for a number of chunks with our trainer."""
    task = {"kind": env} if env == "CartPole" else {"kind": env, "corridor": 16}
    config = configs.check(
        {
            "stream": {"tasks": [{"env": task}]},
            "policy": {"encoder": "identity", "cell": {"kind": cell, "size": STATE}},
            "gradient": gradient,
            "objective": {"kind": "ppo", "epochs": 1, "minibatches": 1},
            "rollout": {"copies": copies, "steps": steps},
            "runtime": {"device": "cpu", "threads": THREADS},
        }
    )
    trainer = build(config, Path(tempfile.mkdtemp()))

    def train(chunks: int) -> None:
        for _ in range(chunks):
            trainer.advance()

    return train


def in_process(make: Callable[..., Callable[[int], None]], *arguments: Any) -> Callable[[int], None]:
    """What `make(*arguments)` returns, but in a process of its own, as it runs for its users: allocator settings,
    threads and what else is alive hold for a whole process."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, make, arguments), daemon=True)
    process.start()

    def train(chunks: int) -> None:
        here.send(chunks)
        here.recv()

    return train


def _serve(connection: Connection, make: Callable[..., Callable[[int], None]], arguments: tuple[Any, ...]) -> None:
    """Train for as many chunks as are asked for, again and again."""
    train = make(*arguments)
    torch.set_num_threads(THREADS)
    with contextlib.suppress(EOFError):  # the other end is gone: the benchmark is over
        while True:
            chunks = connection.recv()
            train(chunks)
            connection.send(chunks)


def stable_baselines(shared: bool, steps: int) -> Callable[[int], None]:
    """The same with sb3-contrib's RecurrentPPO: 64 environments in one process, one epoch, one minibatch.

    Its defaults are an LSTM for the actor, another for the critic, and two layers of 64 behind each. With `shared` it
    has what our policy has: one recurrent layer that reads the observation, and linear heads.
    """
    import gymnasium
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = DummyVecEnv([lambda: gymnasium.make("CartPole-v1") for _ in range(COPIES)])
    torch.set_num_threads(THREADS)
    model = RecurrentPPO(
        "MlpLstmPolicy",
        env,
        n_steps=steps,
        batch_size=COPIES * steps,
        n_epochs=1,
        policy_kwargs={"lstm_hidden_size": STATE, **({"net_arch": [], **SHARED} if shared else {})},
        device="cpu",
        seed=0,
    )

    def train(chunks: int) -> None:
        model.learn(chunks * COPIES * steps, reset_num_timesteps=False)

    return train


def paired(
    a: Callable[[int], None], b: Callable[[int], None], batch: int, chunks: tuple[int, int], seconds: float = 0.0
) -> Any:
    """Median rates of both, in environment steps per second, and the median of the ratios a/b, measured in turn.

    `batch` is the number of environment steps of a chunk, `chunks` how many each trains in a turn.
    """
    times = take_turns({"a": lambda: a(chunks[0]), "b": lambda: b(chunks[1])}, seconds=seconds, turns=ROUNDS)
    a_chunk = {name: [t / n for t in times[name]] for name, n in zip("ab", chunks, strict=True)}
    found = ratios(a_chunk["b"], a_chunk["a"])
    rates = {name: batch / seconds for name, seconds in medians(a_chunk).items()}
    return {**rates, "ratio": statistics.median(found), "ratios": found}


def main(json_file: Path | None) -> dict[str, Any]:
    """Measure, print the table, and write the JSON."""
    torch.set_num_threads(THREADS)
    found: dict[str, dict[str, float]] = {}
    detail: dict[str, Any] = {}
    size = {"state": STATE, "epochs": 1, "minibatches": 1, "threads": THREADS}

    def note(name: str, pair: dict[str, Any], labels: tuple[str, str], env: str, copies: int, steps: int) -> None:
        at = f"{env} B={copies} T={steps} N={STATE}"
        found.setdefault(name, {})[at] = pair["ratio"]
        detail[f"{name} {at}"] = {**pair, **size, "env": env, "copies": copies, "steps": steps}
        print(
            f"{name:<30} {at:<28} {pair['ratio']:6.2f}   {labels[0]} {pair['a']:>9,.0f}/s   "
            f"{labels[1]} {pair['b']:>9,.0f}/s",
            flush=True,
        )

    for env in ("CartPole", "TMaze"):
        for copies in (64, 1024):
            chunks = CHUNKS if copies == 64 else 3
            ours, other = lifelong("rtrl", env, copies, STEPS), lifelong("bptt", env, copies, STEPS)
            pair = paired(ours, other, copies * STEPS, (chunks, chunks))
            note("rtrl_share_of_bptt_speed", pair, ("rtrl", "bptt"), env, copies, STEPS)
    if importlib.util.find_spec("sb3_contrib"):
        for name, gradient, shared, steps, cell in (
            ("ppo_over_sb3", "bptt", False, SB3_STEPS, "elstm"),
            ("ppo_over_sb3", "bptt", False, STEPS, "elstm"),
            ("ppo_rtrl_over_sb3", "rtrl", False, SB3_STEPS, "elstm"),
            ("ppo_over_sb3_shared_lstm", "bptt", True, SB3_STEPS, "elstm"),
            ("ppo_lstm_over_sb3_shared_lstm", "bptt", True, SB3_STEPS, "lstm"),
        ):
            ours = in_process(lifelong, gradient, "CartPole", COPIES, steps, cell)
            theirs = in_process(stable_baselines, shared, steps)
            pair = paired(ours, theirs, COPIES * steps, (ALIKE, 1), SECONDS)
            note(name, pair, ("ours", "sb3"), "CartPole", COPIES, steps)
    else:
        print("sb3-contrib is not installed; `pip install sb3-contrib` to measure ppo_over_sb3")
    return finish("train", {"ratios": found, "detail": detail}, json_file)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--json", type=Path)
    main(arguments.parse_args().json)
