"""Training in whole beside a JAX program that is jitted in whole: the same cell, loss, optimiser and environment.

    lifelong bench peers [--json FILE] [--seconds S]

eLSTM with exact RTRL or truncated BPTT, GRU and LSTM with truncated BPTT, advantage actor-critic with lambda-returns,
clipped gradients, Adam, CartPole. The JAX program (`programs/recurrent_jax.py`) is our own in the form its field writes
them: environment, update, loop in one `lax.scan`, RTRL's sensitivities moved at every step; `alive`, a jitted step in a
loop over Gymnasium's CartPole, beside `OnlineAgent.act` in the same loop. Both take turns, each in a process of its own
with one thread; the median of the ratios of the processor's time is reported. JAX is needed only here: `pip install
jax`, in this Python or in one that --jax names.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import gymnasium
import torch

from benchmarks.measure import finish, ratios
from lifelong.agent import config as configs
from lifelong.agent.online import OnlineAgent
from lifelong.agent.runtime.build import build


class Case(NamedTuple):
    """What is trained; `encoder` is its units, 0 for none."""

    copies: int
    steps: int
    encoder: int
    units: int
    engine: str
    cell: str = "elstm"
    #: in a loop of somebody else's
    alive: bool = False
    objective: str = "actor_critic"


CASES: dict[str, Case] = {
    "one copy, an update a step": Case(1, 1, 0, 128, "rtrl"),
    "the same behind an encoder": Case(1, 1, 128, 128, "rtrl"),
    "the same in a Gymnasium loop": Case(1, 1, 0, 128, "rtrl", alive=True),
    "quickstart's sizes": Case(64, 16, 64, 64, "rtrl"),
    "quickstart's sizes, bptt": Case(64, 16, 64, 64, "bptt"),
    "64 x 32": Case(64, 32, 0, 128, "rtrl"),
    "64 x 32 behind an encoder": Case(64, 32, 128, 128, "rtrl"),
    "1024 x 32": Case(1024, 32, 0, 128, "rtrl"),
    "gru, 64 x 32": Case(64, 32, 0, 128, "bptt", "gru"),
    "lstm, 64 x 32": Case(64, 32, 0, 128, "bptt", "lstm"),
    "ppo, 64 x 32": Case(64, 32, 0, 128, "rtrl", objective="ppo"),
    "ppo, 64 x 32 behind an encoder": Case(64, 32, 128, 128, "rtrl", objective="ppo"),
    "ppo, one copy, 64 steps": Case(1, 64, 0, 128, "rtrl", objective="ppo"),
}
#: two of ours beside each other: the second is the measure
OWN: dict[str, tuple[Case, Case]] = {
    "streaming, one copy": (Case(1, 1, 0, 128, "rtrl", objective="ac_lambda"), Case(1, 1, 0, 128, "rtrl")),
}
#: of ours, by name
OBJECTIVES: dict[str, dict[str, Any]] = {
    "actor_critic": {"objective": {"kind": "actor_critic", "lam": 0.95}},
    "ppo": {"objective": {"kind": "ppo", "lam": 0.95, "epochs": 4, "minibatches": 4}},
    "ac_lambda": {"objective": {"kind": "ac_lambda"}, "optimizer": {"kind": "obgd"}, "max_grad_norm": 0.0},
}
STEPS = 60_000  # of all copies together, a turn of a case with many copies; a tenth of it for one copy


def ours(case: Case) -> Any:
    """A function that trains for so many steps."""
    copies, steps, encoder, units, engine, cell, alive, objective = case
    raw = {
        "stream": {"tasks": [{"env": {"kind": "CartPole"}}], "steps_per_task": 10**12},
        "policy": {
            "encoder": {"kind": "mlp", "hidden": [encoder]} if encoder else "identity",
            "cell": {"kind": cell, "size": units},
        },
        "gradient": engine,
        "optimizer": {"kind": "adam", "lr": 1e-3},
        "max_grad_norm": 1.0,
        "rollout": {"copies": copies, "steps": steps},
        "evaluation": {"every": 10**12},
        "checkpoint": {"every": 10**12},
        "log_every": 10**12,
        "runtime": {"device": "cpu", "threads": 1},
        **OBJECTIVES[objective],
    }
    if objective == "ppo" and copies == 1:
        raw["objective"] = {**OBJECTIVES["ppo"]["objective"], "minibatches": 1}
    if alive:
        return _alive(raw)
    trainer = build(configs.check(raw), Path(tempfile.mkdtemp()))

    def train(count: int) -> int:
        begun = trainer.step
        while trainer.step < begun + count:
            trainer.advance()
        return trainer.step - begun

    return train


def _alive(raw: dict[str, Any]) -> Any:
    """The same in Gymnasium's CartPole."""
    env = gymnasium.make("CartPole-v1")
    agent = OnlineAgent(env.observation_space, env.action_space, {k: v for k, v in raw.items() if k != "stream"})
    now = {"action": agent.act(env.reset(seed=0)[0])}

    def train(count: int) -> int:
        for _ in range(count):
            obs, reward, terminated, truncated, _ = env.step(now["action"])
            action = agent.act(obs, reward, terminated, truncated)
            now["action"] = agent.act(env.reset()[0]) if terminated or truncated else action
        return count

    return train


def serve(train: Any) -> None:
    """Train as often as a line asks for it; say how long it took, in seconds of the processor a step."""
    for line in sys.stdin:
        begun = time.process_time()
        made = train(int(line))
        print((time.process_time() - begun) / made, flush=True)


class Peer:
    """A process that trains when it is asked."""

    def __init__(self, command: list[str]) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def __call__(self, steps: int) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(steps, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("the program that is compared with has ended; is JAX installed in its Python? (--jax)")
        return float(answer)


def compare(jax: str, seconds: float) -> dict[str, Any]:
    """Case -> steps/s of both, and the median ratio ours / JAX."""
    found: dict[str, Any] = {}
    program = str(Path(__file__).parent / "programs" / "recurrent_jax.py")
    for name, case in [*CASES.items(), *OWN.items()]:
        first, second = (case, None) if isinstance(case, Case) else case
        own = [sys.executable, __file__, "--serve"]
        other = [jax, program, json.dumps(first)] if second is None else [*own, json.dumps(second)]
        peers = {"ours": Peer([*own, json.dumps(first)]), "jax" if second is None else "beside": Peer(other)}
        count = STEPS if first.copies > 1 else STEPS // 10
        for peer in peers.values():
            peer(count)  # compiles
        times: dict[str, list[float]] = {key: [] for key in peers}
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop or len(times["ours"]) < 5:
            for key, peer in peers.items():
                times[key].append(peer(count))
        for peer in peers.values():
            peer.process.kill()
        mine, theirs = times.values()
        ratio = median(ratios(theirs, mine))
        found[name] = {"case": case, **{key: 1 / median(each) for key, each in times.items()}, "ratio": ratio}
        print(f"{name:30} {1 / median(mine):12,.0f} {1 / median(theirs):12,.0f} {ratio:6.2f}", flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--jax", default=sys.executable, help="a Python that has JAX")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.serve:
        serve(ours(Case(*json.loads(options.serve))))
    else:
        finish("peers", {"cases": compare(options.jax, options.seconds)}, options.json)
