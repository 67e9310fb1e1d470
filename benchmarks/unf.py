"""Make the rule of strategy `unf`, and see what it is worth.

    python benchmarks/unf.py [--episodes N] [--out agent/modules/unf.json] [--json FILE]

An episode is a stream of three short tasks of permuted MNIST with a fresh policy of random width and learning rate, and
permutations that no config has. During a window of updates the rule stands still. A step s of the window is worth

    - <mean of the gradients of the updates after it + OLD * sum of those of the tasks before, at the end, step s>

to first order: how much it lowers the loss of the task in training on data to come, and that of old tasks. After a
window the rule is moved up the derivative of this for some of the steps, divided by the lengths of gradients and steps.
Nothing is differentiated twice, so it costs little more than training (Andrychowicz et al. 2016, "Learning to learn by
gradient descent by gradient descent", section 2.1, drops the same term; Zhou et al. 2024 use evolution strategies).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor

from benchmarks.measure import finish
from lifelong.agent import config as configs
from lifelong.agent.modules.unf import Rule
from lifelong.agent.runtime.build import build
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.unf import PUSH, UNF

WINDOW = 10
LOOKED_AT = (2, 5, 9)  # steps of a window, from its end
TASKS, UPDATES, COPIES = 3, 120, 64
KEPT = 4  # chunks of every task that ended
FIRST_PERMUTATION = 1000
#: weight of the gradients of old tasks
OLD = 3.0
#: of the mean square of what the rule says
PRICE = 0.003


class Learning(UNF):
    """`unf` with a rule that learns; `rule` and `optimizer` are given to it when the run is built."""

    optimizer: torch.optim.Optimizer

    def __init__(self) -> None:
        super().__init__()
        self.window: list[tuple[Tensor, Tensor, Tensor]] = []
        self.lately: list[Experience] = []
        self.old: list[list[Experience]] = []
        self.worth: list[float] = []

    def gradient(self, gradients: Any) -> Tensor:
        """Gradients of all parameters (None: zeros) as one vector."""
        pairs = zip(gradients, self.parameters.values(), strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        delta_P = torch.cat([deltas[name].flatten() for name in self.parameters])
        x_PC = self.look(delta_P)
        self.window.append((x_PC, delta_P, self.gradient(p.grad for p in self.parameters.values())))
        self.write(self.changed(delta_P, x_PC), deltas)

    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        self.lately = [*self.lately, experience][-KEPT:]
        if len(self.window) == WINDOW:
            self.learn(ctx)

    def on_task_end(self, ctx: Context, source: Source) -> None:
        self.old.append(self.lately)
        self.lately, self.window = [], []

    def gradient_of_old(self, ctx: Context) -> Tensor:
        """Of the sum over the tasks before of their mean losses."""
        total_P = torch.zeros(len(self.where.tensor.place))
        for task in self.old:
            for experience in task:
                chunk = experience.chunk
                with torch.enable_grad():
                    loss, _ = ctx.objective.loss(ctx.policy.sequence(chunk, chunk.state), chunk, {})
                found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
                total_P += self.gradient(found) / len(task)
        return total_P

    def learn(self, ctx: Context) -> None:
        """Move the rule by what the steps of the window were worth."""
        old_P, window, self.window = self.gradient_of_old(ctx), self.window, []
        after_P, cost, price, size = torch.zeros_like(old_P), torch.zeros(()), torch.zeros(()), 0.0
        with torch.enable_grad():
            for index, (x_PC, delta_P, gradient_P) in enumerate(reversed(window)):
                if index in LOOKED_AT:
                    toward_P = after_P / index + OLD * old_P
                    longer, push = self.rule(x_PC, self.where)
                    step_P = delta_P * longer.exp() + PUSH * self.root(delta_P) * push
                    cost = cost + (toward_P * step_P).sum()
                    price = price + (longer.square() + push.square()).mean() / len(LOOKED_AT)
                    size += float(toward_P.norm() * delta_P.norm())
                after_P = after_P + gradient_P
            self.optimizer.zero_grad()
            (cost / max(size, 1e-12) + PRICE * price).backward()
        torch.nn.utils.clip_grad_norm_(self.rule.parameters(), 1.0)
        self.optimizer.step()
        self.worth.append(-float(cost.detach()) / max(size, 1e-12))


def stream(strategy: str, seed: int, tasks: int, width: int, lr: float, folder: Path) -> Trainer:
    """A short stream of permutations that no config has."""
    first = FIRST_PERMUTATION + 10 * seed
    envs = [f"{{kind: ImageRows, permutation: {first + i}, rows_per_step: 28}}" for i in range(tasks)]
    named = ",".join(f"{{name: p{i}, env: {env}}}" for i, env in enumerate(envs))
    words = [f"seed={seed}", f"strategy={strategy}", f"stream.tasks=[{named}]"]
    words += [f"stream.steps_per_task={UPDATES * COPIES}", f"rollout.copies={COPIES}", f"optimizer.lr={lr}"]
    words += [f"policy.encoder.hidden=[{width}]", f"policy.cell.size={width}"]
    words += ["runtime.device=cpu", "runtime.threads=1"]
    return build(configs.load("permuted_mnist_10", words), folder)


def make(episodes: int, out: Path) -> list[float]:
    """Train the rule; what steps were worth, once an episode."""
    torch.manual_seed(0)
    rule, draw = Rule(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(rule.parameters(), 1e-2)
    rule.save(out)
    worth = []
    for episode in range(episodes):
        width = int(torch.randint(16, 33, (), generator=draw))
        lr = float(10 ** (-3 + 0.7 * torch.rand((), generator=draw)))
        with tempfile.TemporaryDirectory() as folder:
            trainer = stream("'benchmarks.unf:Learning'", episode, TASKS, width, lr, Path(folder))
            learning: Any = trainer.strategies[0]
            learning.rule, learning.optimizer = rule, optimizer
            while trainer.step < TASKS * UPDATES * COPIES:
                trainer.advance()
            trainer.close()
        worth.append(mean(learning.worth))
        print(f"episode {episode}: steps are worth {worth[-1]:.4f}", flush=True)
        rule.save(out)
    return worth


def lived(strategy: str, seed: int, tasks: int, rule: Rule) -> tuple[float, float]:
    """Mean accuracy when each task was learned, and of all at the end, on a stream that the rule was not made on."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = stream(strategy, seed, tasks, 64, 2e-3, Path(folder))
        learned, env, changes = [], trainer.evaluator.env, trainer.strategies[0]
        if isinstance(changes, UNF):
            changes.rule = rule
        for task in range(tasks):
            while trainer.step < (task + 1) * UPDATES * COPIES:
                trainer.advance()
            returns = trainer.evaluator.evaluate(trainer.context(), trainer.strategies)
            scores = [float(env.performance(returns[i], i).mean()) for i in range(tasks)]
            learned.append(scores[task])
        trainer.close()
    return mean(learned), mean(scores)


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Make the rule and compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("unf.json"), metavar="FILE", help="where the rule goes")
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args(words)
    worth = make(given.episodes, given.out)
    rows = {}
    for strategy in ("finetune", "unf", "{kind: ewc, strength: 0.003}"):
        pairs = [lived(strategy, 500 + seed, 5, Rule.load(given.out)) for seed in range(3)]
        name = strategy.strip("{").split(",")[0].replace("kind: ", "")
        rows[name] = {"learned": [p[0] for p in pairs], "final": [p[1] for p in pairs]}
        print(name, rows[name], flush=True)
    return finish("unf", {"worth": worth, "rows": rows}, given.json)


if __name__ == "__main__":
    main()
