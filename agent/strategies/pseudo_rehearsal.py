"""Pseudo-rehearsal: the old policy's answers to made-up observations are rehearsed, and nothing is stored.

Robins 1995, *Catastrophic forgetting, rehearsal and pseudorehearsal* (Connection Science 7, section 5).
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import gymnasium
import torch
from torch import Tensor

from lifelong.agent.growth import grown
from lifelong.agent.policy import Inputs, Outputs, Policy
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.consolidation import Consolidating
from lifelong.envs.options import Count, Steps, Weight
from lifelong.replay.chunk import Chunk

#: up to so many elements of an observation their covariance is kept, above that their variances
FULL = 256


class PseudoRehearsal(Consolidating):
    """Adds strength * (KL(p_old || p) + value_weight (V - V_old)^2), a mean over the steps of dreamt sequences.

    The old policy is a frozen copy of that of the last boundary. A dreamt sequence has T steps from an empty memory and
    belongs to one of the tasks that ended, each as often:

        x_0 ~ N(mu, Sigma)    x_t = mu + rho (x_{t-1} - mu) + sqrt(1 - rho^2) N(0, Sigma)

    with mean, covariance and autocorrelation of the observations (and rewards, if they are read) while that task was
    trained. Robins draws inputs from one uniform distribution; a recurrent policy needs sequences, and inputs that are
    nothing like the old ones protect little. Actions that are read are random. What a policy does on observations that
    no Gaussian makes up is not protected, and its memory no further than T steps. New dreams are drawn for every
    minibatch.

    Args:
        strength: of the distance.
        value_weight: of the squared distance of the values.
        batch: dreamt sequences for one minibatch, by all workers together.
        every: freeze a new copy every so many steps instead of at boundaries; 0: at boundaries.
    """

    one_length: ClassVar[bool] = True
    data_parallel: ClassVar[str] = "shard"

    def __init__(
        self, *, strength: Weight = 1.0, value_weight: Weight = 0.5, batch: Count = 64, every: Steps = 0
    ) -> None:
        super().__init__(every)
        self.strength, self.value_weight, self.batch = strength, value_weight, batch
        self.old: Policy | None = None
        self.tasks: list[dict[str, Any]] = []  # of every one that ended: mean, factor, rho, and what was seen last
        self.metrics: dict[str, Tensor] = {}

    def setup(self, ctx: Context, seed: int) -> None:
        self.policy, self.steps, self.device = ctx.policy, ctx.steps, ctx.device
        self.share = max(1, self.batch // ctx.workers.count)
        self.generator = torch.Generator().manual_seed(seed)
        self.space = ctx.policy.spaces[0]
        self.sums = self._nothing()
        self.seen: dict[str, Tensor] = {}  # of the last chunk

    def _nothing(self) -> dict[str, Tensor]:
        """Sums over the steps since the last boundary."""
        size = int(torch.Size(self.space.shape or ()).numel()) + int(self.policy.with_reward)
        second = (size, size) if size <= FULL else (size,)
        shapes = {"count": (), "sum": (size,), "second": second, "pairs": (), "product": ()}
        return {name: torch.zeros(shape, dtype=torch.float64, device=self.device) for name, shape in shapes.items()}

    @torch.no_grad()
    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        chunk = experience.chunk
        x_TBN = chunk.obs.flatten(2).double()
        if self.policy.with_reward:
            x_TBN = torch.cat([x_TBN, chunk.previous_reward.unsqueeze(-1).double()], -1)
        counts_TB = chunk.weight > 0
        x_MN, sums = x_TBN * counts_TB.unsqueeze(-1), self.sums
        rows_MN = x_MN.flatten(0, 1)
        sums["count"] += counts_TB.sum()
        sums["sum"] += rows_MN.sum(0)
        sums["second"] += rows_MN.T @ rows_MN if sums["second"].dim() == 2 else rows_MN.square().sum(0)
        pairs_TB = counts_TB[1:] & counts_TB[:-1] & ~chunk.is_init[1:]
        sums["pairs"] += pairs_TB.sum()
        sums["product"] += ((x_MN[1:] * x_MN[:-1]).sum(-1) * pairs_TB).sum()
        self.seen = {
            "task": chunk.task[-1, :1].cpu(),
            "mask": chunk.action_mask[-1, :1],
            "like": chunk.obs.flatten()[:1].clone(),  # for the type of observations
        }

    def consolidate(self, ctx: Context, source: Source) -> None:
        sums = self.sums
        if not float(sums["count"]):
            return
        self.old = copy.deepcopy(self.policy).requires_grad_(False)
        mean, full = sums["sum"] / sums["count"], sums["second"].dim() == 2
        spread = sums["second"] / sums["count"] - (torch.outer(mean, mean) if full else mean.square())
        variance = float(spread.trace() if full else spread.sum())
        together = float(sums["product"] / sums["pairs"].clamp(min=1.0) - mean.square().sum())
        rho = min(max(together / variance, 0.0), 0.999) if variance > 0 else 0.0
        self.tasks.append({"mean": mean.float(), "factor": _root(spread).float(), "rho": rho, **self.seen})
        self.sums = self._nothing()

    def dream(self, count: int) -> Inputs:
        """The inputs [T, N] of `count` sequences of the tasks that ended."""
        T, device = self.steps, self.device
        which = torch.randint(len(self.tasks), (count,), generator=self.generator)
        mean, factor = (torch.stack([task[name] for task in self.tasks])[which] for name in ("mean", "factor"))
        rho = torch.tensor([task["rho"] for task in self.tasks], device=device)[which].unsqueeze(-1)
        noise = torch.randn(T, *mean.shape, generator=self.generator).to(device)
        noise = torch.einsum("nij,tnj->tni", factor, noise) if factor.dim() == 3 else factor * noise
        steps = [noise[0]]
        for now in noise[1:]:
            steps.append(rho * steps[-1] + (1.0 - rho.square()).sqrt() * now)
        x_TNX = torch.stack(steps) + mean
        reward = x_TNX[..., -1] if self.policy.with_reward else x_TNX.new_zeros(T, count)
        obs = self._observation(x_TNX[..., : x_TNX.shape[-1] - int(self.policy.with_reward)])
        task = torch.cat([task["task"] for task in self.tasks])[which].to(device).expand(T, -1)
        mask = torch.cat([task["mask"] for task in self.tasks])[which].expand(T, -1, -1)
        action = x_TNX.new_zeros(T, count, 0)
        if self.policy.with_action:
            distribution = self.policy.distribution
            drawn = distribution.sample(torch.zeros(T, count, distribution.size), self.generator).to(device)
            action = distribution.features(drawn)
            action[0] = 0.0
        return Inputs(obs, action, reward, task, mask)

    def _observation(self, x_TNX: Tensor) -> Tensor:
        """Numbers as observations of the space: within its bounds, whole where they are."""
        x = x_TNX.unflatten(-1, self.space.shape) if self.space.shape else x_TNX.squeeze(-1)
        space = self.space
        if isinstance(space, gymnasium.spaces.Box):
            low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (space.low, space.high))
            x = x.clamp(low, high)
        elif isinstance(space, gymnasium.spaces.MultiDiscrete):
            x = x.clamp(torch.zeros_like(x[0, 0]), torch.as_tensor(space.nvec - 1, dtype=x.dtype, device=x.device))
        kind = self.tasks[0]["like"].dtype
        return x if kind.is_floating_point else x.round().to(kind)

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        if self.old is None:
            return None
        inputs = self.dream(self.share)
        is_init = torch.zeros(self.steps, self.share, dtype=torch.bool, device=self.device)
        is_init[0] = True
        said = []
        for policy in (self.old, ctx.policy):
            start = policy.cell.initial_state(self.share, self.device)
            y_TNH, _ = policy.cell.sequence(policy.encode(inputs), start, is_init)
            said.append(policy.heads(y_TNH, inputs))
        old, new = said
        kl = ctx.policy.distribution.kl(old.policy, new.policy).mean()
        value = (new.value - old.value).square().mean()
        self.metrics = {"kl": kl.detach(), "value": value.detach()}
        return self.strength * (kl + self.value_weight * value)

    def report(self) -> dict[str, float]:
        return {"tasks": float(len(self.tasks)), **{name: float(x) for name, x in self.metrics.items()}}

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "old": None if self.old is None else dict(self.old.state_dict()),
            "tasks": self.tasks,
            "sums": self.sums,
            "generator": self.generator.get_state(),
            "metrics": self.metrics,
            "seen": self.seen,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.old = None
        if saved["old"] is not None:
            self.old = copy.deepcopy(self.policy).requires_grad_(False)
            now = self.old.state_dict()
            self.old.load_state_dict({name: grown(x, now[name]) for name, x in saved["old"].items()})
        self.tasks = [{k: _on(x, self.device, k) for k, x in task.items()} for task in saved["tasks"]]
        self.sums = {name: x.to(self.device, copy=True) for name, x in saved["sums"].items()}
        self.generator.set_state(saved["generator"])
        self.metrics = saved["metrics"]
        self.seen = saved["seen"]


def _root(spread: Tensor) -> Tensor:
    """A with A A^T the covariance [N, N], or the deviations [N] of variances [N]."""
    if spread.dim() == 1:
        return spread.clamp(min=0.0).sqrt()
    values, vectors = torch.linalg.eigh(spread)
    return vectors * values.clamp(min=0.0).sqrt()


def _on(x: Any, device: torch.device, name: str) -> Any:
    return x.to(device) if isinstance(x, Tensor) and name != "task" else x
