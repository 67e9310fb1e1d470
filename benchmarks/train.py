"""End-to-end training speed: recurrent PPO on CartPole, 64 copies, state 128, one epoch, beside sb3-contrib.

    lifelong bench train [--json FILE]

Both train in this process, in turn (A B A B ...), with the same number of torch threads, the same number of copies,
steps per chunk, epochs and minibatches; the median of the pairwise ratios is reported. sb3-contrib is needed only here:
`pip install sb3-contrib`. Without it only the ratios of our own engines are measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from agent import config as configs
from agent.runtime.build import build
from benchmarks.measure import finish, medians, ratios, take_turns

COPIES, STEPS, STATE = 64, 32, 128
THREADS = 2
ROUNDS = 5
SHARED = {"shared_lstm": True, "enable_critic_lstm": False}
CHUNKS = 12  # chunks a round, after as many of warm-up


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


def paired(a: Callable[[int], None], b: Callable[[int], None], copies: int, chunks: tuple[int, int]) -> Any:
    """Median rates of both, in environment steps per second, and the median of the ratios a/b, measured in turn."""
    times = take_turns({"a": lambda: a(chunks[0]), "b": lambda: b(chunks[1])}, seconds=0, turns=ROUNDS)
    a_chunk = {name: [t / n for t in times[name]] for name, n in zip("ab", chunks, strict=True)}
    found = ratios(a_chunk["b"], a_chunk["a"])
    rates = {name: copies * STEPS / seconds for name, seconds in medians(a_chunk).items()}
    return {**rates, "ratio": statistics.median(found), "ratios": found}


def main(json_file: Path | None) -> dict[str, Any]:
    """Measure, print the table, and write the JSON."""
    torch.set_num_threads(THREADS)
    found: dict[str, Any] = {}
    detail: dict[str, Any] = {}
    size = {"steps": STEPS, "state": STATE, "epochs": 1, "minibatches": 1, "threads": THREADS}
    for env in ("CartPole", "TMaze"):
        for copies in (64, 1024):
            chunks = CHUNKS if copies == 64 else 3
            pair = paired(lifelong("rtrl", env, copies), lifelong("bptt", env, copies), copies, (chunks, chunks))
            name = f"rtrl_share_of_bptt_speed/{env}/{copies}"
            detail[name] = {**pair, **size, "copies": copies, "env": env}
            print(f"{name:<42} {pair['ratio']:6.2f}   rtrl {pair['a']:>9,.0f}/s   bptt {pair['b']:>9,.0f}/s")
    found["rtrl_share_of_bptt_speed"] = min(d["ratio"] for d in detail.values())
    if importlib.util.find_spec("sb3_contrib"):
        for gradient, shared, name in (
            ("bptt", False, "ppo_over_sb3"),
            ("rtrl", False, "ppo_rtrl_over_sb3"),
            ("bptt", True, "ppo_over_sb3_shared_lstm"),
        ):
            ours, theirs = lifelong(gradient, "CartPole", COPIES), stable_baselines(shared)
            pair = paired(ours, theirs, COPIES, (CHUNKS, 2))
            found[name] = pair["ratio"]
            detail[name] = {**pair, **size, "copies": COPIES, "env": "CartPole", "sb3_shared_lstm": shared}
            print(f"{name:<42} {pair['ratio']:6.2f}   ours {pair['a']:>9,.0f}/s   sb3 {pair['b']:>10,.0f}/s")
    else:
        print("sb3-contrib is not installed; `pip install sb3-contrib` to measure ppo_over_sb3")
    return finish("train", {"ratios": found, "detail": detail}, json_file)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--json", type=Path)
    main(arguments.parse_args().json)
