"""Evaluation of every task with environments, memory and randomness of its own: training does not notice."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch

from lifelong.agent.optimizers.base import Averaging
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.planned.kept import Kept
from lifelong.agent.runtime.randomness import aside
from lifelong.agent.runtime.rollout import Rollout
from lifelong.agent.strategies.base import Context, Strategy, overrides
from lifelong.envs.tasks import TaskEnv

#: steps that are made at once: 1, 2, 4, 8, 16
WINDOWS = 5


class Evaluator:
    """Runs `episodes` episodes of each task, side by side.

    Every evaluation uses the same seeds, so that two points differ by the policy and not by the luck of the draw.

    Args:
        env: one copy an episode, built with `evaluation=True`; its generators are its own.
        deterministic: take the most likely action.
        max_steps: give up on episodes that are longer; they count with the return they have.
    """

    def __init__(
        self,
        env: TaskEnv,
        policy: Policy,
        *,
        seed: int,
        reset_memory_on: str,
        deterministic: bool,
        max_steps: int,
    ) -> None:
        self.env, self.policy, self.seed = env, policy, seed
        self.max_steps = max_steps
        generator = torch.Generator(device=env.device)
        self.rollout = Rollout(env, policy, generator, reset_memory_on=reset_memory_on, deterministic=deterministic)
        self.rollout.programs = Kept(WINDOWS * len(env.envs))

    @torch.no_grad()
    def evaluate(self, ctx: Context, strategies: list[Strategy]) -> np.ndarray:
        """Returns of all tasks, float64 [tasks, episodes]; the workers take the tasks in turn."""
        views = overrides(strategies, "evaluation_view")
        averaging = ctx.optimizer if isinstance(ctx.optimizer, Averaging) else None
        rows: dict[int, np.ndarray] = {}
        for task in filter(ctx.workers.owns, range(len(self.env.tasks))):
            with ExitStack() as stack:
                if averaging:
                    stack.enter_context(averaging.evaluation_view())
                for strategy in views:
                    stack.enter_context(strategy.evaluation_view(ctx, task))
                with aside(self.seed + task):
                    rows[task] = self._episodes(task)
        for others in ctx.workers.gather(rows):
            rows |= others
        if averaging:
            scores = [float(self.env.performance(rows[task], task).mean()) for task in sorted(rows)]
            averaging.look(max(ctx.segment, 0), sum(scores) / len(scores))
        return np.stack([rows[task] for task in range(len(self.env.tasks))])

    def _episodes(self, task: int) -> np.ndarray:
        B, device = self.env.num_envs, self.env.device
        self.env.set_tasks(torch.full((B,), task))
        self.rollout.generator.manual_seed(self.seed + task)
        self.rollout.start(seed=self.seed + task)
        total_B = torch.zeros(B, device=device)
        running_B = torch.ones(B, dtype=torch.bool, device=device)
        step = 0
        while step < self.max_steps:
            # the longer it has taken the further it looks ahead: asking whether all is over costs more than a step
            window = min(1 << max(0, (step // 4).bit_length() - 1), 1 << WINDOWS - 1, self.max_steps - step)
            seen = self.rollout.steps(window).seen
            for returns_B, done_B in zip(seen["episode_return"], seen["done"], strict=True):
                total_B = torch.where(running_B, returns_B, total_B)
                running_B = running_B & ~done_B
            step += window
            if not bool(running_B.any()):
                break
        return total_B.double().cpu().numpy()
