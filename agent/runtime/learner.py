"""Learner: chunk -> objective -> gradients -> strategies -> optimiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from lifelong.agent.cells.base import Acted
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.modules.heads import Heads
from lifelong.agent.modules.learning_pass import LearningPass
from lifelong.agent.objectives.base import Metrics, Objective
from lifelong.agent.parallel import ALONE, Workers
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.finite import FiniteCheck
from lifelong.agent.runtime.planned.passes import Passes, own_gradients
from lifelong.agent.runtime.planned.step import clip_norm, make_step
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Strategy, overrides
from lifelong.replay.chunk import Chunk


class Learner:
    """Updates the policy from one chunk at a time.

    Args:
        policy: the parameters.
        engine: gradient engine; its carry belongs to the first state of the next chunk.
        objective: the loss.
        optimizer: any torch optimiser over the policy's parameters.
        strategies: hooks, in this order.
        max_grad_norm: clip of the global gradient norm; 0 switches it off.
        generator: draws the minibatches, on the host; equal on all workers.
        workers: those whose gradients are averaged, so that all make the same step.
        skip: chunks that are not finite are to be dropped.
        changed: the forward pass of the cell, where it is another one than in acting.
    """

    #: called between the parts of an update, by whoever spreads it
    pause: Callable[[], None] = staticmethod(lambda: None)
    #: a counter for the host, which no chunk depends on, and strategies, which are looked at by themselves (see
    #: `agent.runtime.capture`)
    TRANSIENT: ClassVar[tuple[str, ...]] = ("steps", "strategies")

    def __init__(
        self,
        policy: Policy,
        engine: GradientEngine,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        strategies: list[Strategy],
        max_grad_norm: float,
        generator: torch.Generator,
        workers: Workers = ALONE,
        skip: bool = False,
        changed: LearningPass | None = None,
    ) -> None:
        self.policy, self.engine, self.objective, self.optimizer = policy, engine, objective, optimizer
        self.generator, self.workers, self.changed = generator, workers, changed
        self.max_grad_norm, self.strategies = max_grad_norm or float("inf"), strategies
        self.reward_hooks = overrides(strategies, "extra_reward")
        self.batch_hooks = overrides(strategies, "transform_batch")
        self.loss_hooks = overrides(strategies, "extra_loss")
        self.gradient_hooks = overrides(strategies, "transform_gradients")
        self.update_hooks = overrides(strategies, "transform_update")
        self.after_hooks = overrides(strategies, "after_update")
        self.learn_hooks = overrides(strategies, "learns")
        #: whether a strategy takes part in the update
        hooks = (self.batch_hooks, self.loss_hooks, self.gradient_hooks, self.update_hooks, self.after_hooks)
        self.hooked = any((*hooks, self.learn_hooks, self.reward_hooks, changed))
        self.named = dict(policy.named_parameters())
        self.parameters = list(self.named.values())
        self.passes = Passes(policy, engine, changed, own_gradients(objective, strategies))
        self.finite = FiniteCheck(self.parameters[0].device, skip)
        self.heads = Heads(policy.task_heads())
        #: optimiser's steps so far
        self.steps = 0

    def learns(self, ctx: Context) -> bool:
        """Whether the next chunk is to be learned from."""
        return all(strategy.learns(ctx) for strategy in self.learn_hooks)

    def orders(self, copies: int) -> Tensor | None:
        """The order of the copies in every epoch, which is cut into minibatches, int64 [epochs, copies] on the device
        of the policy; None if there is one minibatch, which has them all in order."""
        if self.objective.minibatches == 1:
            return None
        rows = [torch.randperm(copies, generator=self.generator) for _ in range(self.objective.epochs)]
        return torch.stack(rows).to(self.parameters[0].device)

    def update(
        self, ctx: Context, experience: Experience, orders: Tensor | None = None
    ) -> tuple[Metrics, list[Tensor]]:
        """All epochs over one chunk, then move the carry to the chunk's end.

        Args:
            ctx: what the strategies' hooks may know.
            experience: the chunk.
            orders: what `orders` returned for these copies; drawn here by default.

        Returns:
            Scalars, each the mean over all minibatches, and the units that strategies re-initialised; nothing if the
            chunk is not to be learned from.
        """
        chunk, copies = experience.chunk, experience.copies
        learns = self.learns(ctx)
        once = self.objective.epochs == self.objective.minibatches == 1
        only_pass = learns and once and self.objective.passes(chunk.copies, extra=bool(self.loss_hooks)) == 1
        trace = self.engine.trace(experience.x_TBD, experience.state_TBS, chunk.is_init, copies, only_pass=only_pass)
        if not learns:
            self.engine.advance(trace)
            self.objective.reset()
            return {}, []
        self.objective.begin(self.engine, trace, extra=bool(self.loss_hooks))
        if self.changed:
            self.changed.draw()
        with torch.no_grad():
            for strategy in self.reward_hooks:
                extra = strategy.extra_reward(ctx, chunk)
                chunk = chunk if extra is None else replace(chunk, reward=chunk.reward + extra)
            prepared = self.objective.prepare(chunk)
        self.pause()
        reset_units: list[Tensor] = []
        sums: Metrics = {}
        acted, current = experience.acted, not experience.lags
        orders = self.orders(chunk.copies) if orders is None else orders
        for epoch in range(self.objective.epochs):
            for index in [None] if orders is None else orders[epoch].tensor_split(self.objective.minibatches):
                metrics = self._step(ctx, chunk, prepared, index, copies, acted, current)
                sums = {name: sums[name] + x for name, x in metrics.items()} if sums else metrics
                acted, current = None, False  # the parameters have changed
                for strategy in self.after_hooks:
                    units = strategy.after_update(ctx)
                    if units is not None:
                        reset_units.append(units)
                # fused optimisers do not count their writes, and whoever caches weights goes by that count
                torch.autograd.graph.increment_version(self.parameters)
        self.pause()
        self.engine.advance(trace)
        self.policy.see(chunk, self.workers)
        for units in reset_units:
            self.reset_units(units)
        updates = self.objective.epochs * self.objective.minibatches
        return sums if once else {name: total / updates for name, total in sums.items()}, reset_units

    def reset(self, mask_B: Tensor) -> None:
        """The copies of `mask_B` (bool [B]) start anew from outside: carry and traces forget them."""
        self.engine.reset(mask_B)
        self.objective.reset(mask_B)

    def reset_units(self, units: Tensor) -> None:
        """The `units` (int64) of the cell have been re-initialised: the carry forgets them, and traces end."""
        self.engine.reset_units(units)
        self.objective.reset()

    @torch.no_grad()
    def live_through(self, experience: Experience, copies_B: Tensor) -> None:
        """Move the carry of `copies_B` (bool [B]) over a chunk without learning from it."""
        index = copies_B.nonzero().squeeze(1)
        if len(index):
            x, state, is_init = experience.x_TBD, experience.state_TBS, experience.chunk.is_init
            x, state, is_init = (tensor.index_select(1, index) for tensor in (x, state, is_init))
            copies = index if experience.copies is None else experience.copies[index]
            self.engine.advance(self.engine.trace(x, state, is_init, copies))

    def _step(
        self,
        ctx: Context,
        chunk: Chunk,
        prepared: dict[str, Tensor],
        index: Tensor | None,
        copies: Tensor | None = None,
        acted: Acted | None = None,
        current: bool = False,
    ) -> Metrics:
        batch = chunk if index is None else chunk.select(index)
        prepared = prepared if index is None else {name: x.index_select(1, index) for name, x in prepared.items()}
        live = batch.copies
        rows = index if copies is None else copies if index is None else copies[index]
        if rows is not None:
            ctx = replace(ctx, rows=rows)
        for strategy in self.batch_hooks:
            batch = strategy.transform_batch(ctx, batch)
        self.objective.count(batch, live)
        state = self.engine.attach(batch.state[:live], rows)
        if batch.copies > live:  # replayed sequences start from their stored state and have no carry
            state = torch.cat([state, batch.state[live:]])
        known = (
            live if current and not self.objective.reads_after else 0
        )  # copies whose values in the chunk are those of the current critic
        with self.objective.watching():
            outputs = self.passes.sequence(batch, state, acted if batch is chunk else None, known)
        loss, metrics = self.objective.loss(outputs, batch, prepared)
        for strategy in self.loss_hooks:
            extra = strategy.extra_loss(ctx, batch, outputs, live)
            if extra is not None:
                loss = loss + extra
        for parameter in self.parameters:  # what `zero_grad` does, without its hooks
            parameter.grad = None
        self.pause()
        if loss.requires_grad:
            loss.backward()
        self.passes.backward()
        self.pause()
        self.objective.add_gradients(self.optimizer)
        self.workers.mean_([p.grad for p in self.parameters if p.grad is not None])
        for strategy in self.gradient_hooks:
            strategy.transform_gradients(ctx, {n: p.grad for n, p in self.named.items() if p.grad is not None})
        norm = clip_norm(self.parameters, self.max_grad_norm)
        self.finite.before_step(loss.detach(), norm)
        self._apply(ctx)
        self.objective.stepped()
        self.steps += 1
        scalars = {f"loss/{name}": value.detach() for name, value in metrics.items()}
        return {"loss/total": loss.detach(), **scalars, "gradient/norm": norm}

    @torch.no_grad()
    def _apply(self, ctx: Context) -> None:
        """The optimiser's step, as the strategies let it through."""
        if not self.update_hooks:
            with self.heads.idle_kept(self.optimizer):
                make_step(self.optimizer)
            return
        before = {name: parameter.clone() for name, parameter in self.named.items()}
        with self.heads.idle_kept(self.optimizer):
            make_step(self.optimizer)
        deltas = {name: parameter - before[name] for name, parameter in self.named.items()}
        for strategy in self.update_hooks:
            strategy.transform_update(ctx, deltas)
        self.heads.still({id(self.named[name]): delta for name, delta in deltas.items()})
        for name, parameter in self.named.items():
            parameter.copy_(before[name] + deltas[name])
