"""End-to-end training speed: recurrent PPO on CartPole, 64 copies, state 128, one epoch, beside sb3-contrib.

    lifelong bench train [--json FILE]

Both train in this process, in turn (A B A B ...), with the same number of torch threads, the same number of copies,
steps per chunk, epochs and minibatches; the median of the pairwise ratios is reported. sb3-contrib is needed only here:
`pip install sb3-contrib`. Without it only the ratios of our own engines are measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from agent import config as configs
from agent.runtime.build import build
from agent.runtime.machine import machine, versions

COPIES, STEPS, STATE = 64, 32, 128
THREADS = 2
ROUNDS = 5
SHARED = {"shared_lstm": True, "enable_critic_lstm": False}
CHUNKS = 12  # chunks a round, after as many of warm-up in the first round


def lifelong(gradient: str, env: str, copies: int, cell: str = "elstm") -> Callable[[int], None]:
    """A function that trains for a number of chunks with our trainer's own parts."""
    task = {"kind": env} if env == "CartPole" else {"kind": env, "corridor": 16}
    config = configs.check(
        {
            "stream": {"tasks": [{"env": task}]},
            "policy": {"encoder": "identity", "cell": {"kind": cell, "size": STATE}},
            "gradient": gradient,
            "objective": {"kind": "ppo", "epochs": 1, "minibatches": 1},
            "rollout": {"copies": copies, "steps": STEPS},
            "runtime": {"device": "cpu", "threads": THREADS},
        }
    )
    trainer = build(config, Path(tempfile.mkdtemp()))

    def train(chunks: int) -> None:
        for _ in range(chunks):
            trainer.follow_stream()
            experience = trainer.rollout.collect(STEPS)
            metrics, _ = trainer.learner.update(trainer.context(), experience)
            trainer.step += copies * STEPS
            trainer.record.add(metrics, experience)

    return train


def stable_baselines(shared: bool) -> Callable[[int], None]:
    """The same with sb3-contrib's RecurrentPPO: 64 environments in one process, one epoch, one minibatch.

    Its defaults are an LSTM for the actor, another for the critic, and two layers of 64 behind each. With `shared` it
    has what our policy has: one recurrent layer that reads the observation, and linear heads.
    """
    import gymnasium
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = DummyVecEnv([lambda: gymnasium.make("CartPole-v1") for _ in range(COPIES)])
    model = RecurrentPPO(
        "MlpLstmPolicy",
        env,
        n_steps=STEPS,
        batch_size=COPIES * STEPS,
        n_epochs=1,
        policy_kwargs={"lstm_hidden_size": STATE, **({"net_arch": [], **SHARED} if shared else {})},
        device="cpu",
        seed=0,
    )
    torch.set_num_threads(THREADS)

    def train(chunks: int) -> None:
        model.learn(chunks * COPIES * STEPS, reset_num_timesteps=False)

    return train


def rate(train: Callable[[int], None], chunks: int, copies: int) -> float:
    """Environment steps per second over `chunks` chunks."""
    begun = time.perf_counter()
    train(chunks)
    return chunks * copies * STEPS / (time.perf_counter() - begun)


def paired(a: Callable[[int], None], b: Callable[[int], None], copies: tuple[int, int], chunks: tuple[int, int]) -> Any:
    """Median rates of both and the median of the ratios a/b, measured in turn."""
    a(2)
    b(1)
    rates = [(rate(a, chunks[0], copies[0]), rate(b, chunks[1], copies[1])) for _ in range(ROUNDS)]
    return {
        "a": statistics.median(x for x, _ in rates),
        "b": statistics.median(y for _, y in rates),
        "ratio": statistics.median(x / y for x, y in rates),
        "ratios": sorted(x / y for x, y in rates),
    }


def main(json_file: Path | None) -> dict[str, Any]:
    """Measure, print the table, and write the JSON."""
    torch.set_num_threads(THREADS)
    ratios: dict[str, Any] = {}
    detail: dict[str, Any] = {}
    size = {"steps": STEPS, "state": STATE, "epochs": 1, "minibatches": 1, "threads": THREADS}
    for env in ("CartPole", "TMaze"):
        for copies in (64, 1024):
            chunks = CHUNKS if copies == 64 else 3
            pair = paired(
                lifelong("rtrl", env, copies), lifelong("bptt", env, copies), (copies, copies), (chunks, chunks)
            )
            name = f"rtrl_share_of_bptt_speed/{env}/{copies}"
            detail[name] = {**pair, **size, "copies": copies, "env": env}
            print(f"{name:<42} {pair['ratio']:6.2f}   rtrl {pair['a']:>9,.0f}/s   bptt {pair['b']:>9,.0f}/s")
    ratios["rtrl_share_of_bptt_speed"] = min(d["ratio"] for d in detail.values())
    if importlib.util.find_spec("sb3_contrib"):
        for gradient, shared, name in (
            ("bptt", False, "ppo_over_sb3"),
            ("rtrl", False, "ppo_rtrl_over_sb3"),
            ("bptt", True, "ppo_over_sb3_shared_lstm"),
        ):
            ours, theirs = lifelong(gradient, "CartPole", COPIES), stable_baselines(shared)
            pair = paired(ours, theirs, (COPIES, COPIES), (CHUNKS, 2))
            ratios[name] = pair["ratio"]
            detail[name] = {**pair, **size, "copies": COPIES, "env": "CartPole", "sb3_shared_lstm": shared}
            print(f"{name:<42} {pair['ratio']:6.2f}   ours {pair['a']:>9,.0f}/s   sb3 {pair['b']:>10,.0f}/s")
    else:
        print("sb3-contrib is not installed; `pip install sb3-contrib` to measure ppo_over_sb3")
    result = {
        "benchmark": "train",
        "date": date.today().isoformat(),
        "ratios": ratios,
        "detail": detail,
        "machine": machine("cpu"),
        "versions": versions(),
    }
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--json", type=Path)
    main(arguments.parse_args().json)
