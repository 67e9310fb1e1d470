"""What strategies share that give every task its own view of the parameters: what of them it sees, what it may move.

The parameters in the policy are those of the current task's view, while it trains and acts. Every write goes in place,
so that whoever caches weights or sends them elsewhere notices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.agent.errors import choice
from lifelong.agent.growth import grown
from lifelong.agent.policy import Policy
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.initial import Redrawing, reinitialise

#: whether every task has a critic of its own, or one learns on
Critic = Literal["own", "free"]
#: key of all tasks of a stream that trains several at once
SEVERAL = -1


class Isolation(Redrawing):
    """Base of those with a view of the parameters for every task; the views are switched where a segment begins.

    Some parameters exist once a task: always the actor's, whether the policy has a head per task or not, and the
    critic's if that is its own. They begin anew with every new task; others that a subclass names begin as those of the
    task before. With a switch go what the optimiser keeps of the parameters, the memory of every copy, and the carry:
    all three belong to the other view; and other strategies are told of what has changed (`Strategy.on_reset`). A task
    that comes back finds its view as it was left.

    Taken up in the middle of a run, it isolates from the next boundary on. A stream that trains several tasks at once
    has one view for them.

    Args:
        critic: `own`: one a task; `free`: one for all, which nothing is kept from.
    """

    needs_boundaries = True
    needs_task = True
    clock_option: ClassVar[str] = ""
    #: beginnings of names of parameters that exist once a task and begin anew with each
    ANEW: ClassVar[tuple[str, ...]] = ("actor.", "critic.")

    def __init__(self, *, critic: Critic = "own") -> None:
        choice("critic of an isolating strategy", critic, ("own", "free"))
        self.critic = critic
        #: task in view; None before the first boundary
        self.now: int | None = None
        #: tasks in the order they were first seen
        self.order: list[int] = []
        #: task -> what it alone has, as it was left
        self.own: dict[int, dict[str, Tensor]] = {}

    def has_own(self, policy: Policy) -> list[str]:
        """Parameters besides actor and critic that exist once a task; none by default."""
        return []

    def shared(self, task: int) -> dict[str, Tensor]:
        """The value of every parameter that does not exist once a task, as `task` sees it."""
        raise NotImplementedError

    def begin(self, ctx: Context, task: int) -> None:
        """A task is seen for the first time: make its view; what it alone has is in `own`."""

    def leave(self, ctx: Context, task: int) -> None:
        """The task in view is left: keep what it has trained."""

    def enter(self, task: int) -> None:
        """The view of `task` has been put into the policy."""

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        everything = dict(ctx.policy.named_parameters())
        #: those that a view is made of
        self.parameters = {n: p for n, p in everything.items() if self.critic == "own" or not n.startswith("critic.")}
        self.anew = [name for name in self.parameters if name.startswith(self.ANEW)]
        self.owned = [name for name in self.parameters if name in {*self.anew, *self.has_own(ctx.policy)}]

    def view(self, task: int) -> dict[str, Tensor]:
        """name -> value of every parameter as `task` sees it."""
        return {**self.shared(task), **self.own[task]}

    def current(self, names: Iterator[str] | list[str]) -> dict[str, Tensor]:
        """A copy of what is in the policy now."""
        return {name: self.parameters[name].detach().clone() for name in names}

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Put values into the policy."""
        for name, value in values.items():
            self.parameters[name].copy_(value)

    @torch.no_grad()
    def on_task_start(self, ctx: Context) -> Tensor | None:
        task = SEVERAL if ctx.task is None else ctx.task
        if task == self.now:
            return None
        if self.now is not None:
            self.own[self.now] = self.current(self.owned)
            self.leave(ctx, self.now)
        if task not in self.order:
            self.own[task] = self.current(self.owned)
            if self.order:
                fresh = ctx.policy.redrawn(self.generator)
                self.own[task] |= {name: fresh[name] for name in self.anew}
            self.order.append(task)
            self.begin(ctx, task)
        self.now = task
        view = self.view(task)
        reinitialise(ctx, view, {name: value != self.parameters[name] for name, value in view.items()})
        self.enter(task)
        for parameter in self.parameters.values():
            ctx.optimizer.state.pop(parameter, None)
        return torch.arange(ctx.policy.cell.units, device=ctx.device) if ctx.segment > 0 else None

    @contextmanager
    def evaluation_view(self, ctx: Context, task: int) -> Iterator[None]:
        """The view of a task that was left, while it is evaluated; any other task sees what is in the policy."""
        if task == self.now or task not in self.order:
            yield
            return
        before = self.current(list(self.parameters))
        self.write(self.view(task))
        try:
            yield
        finally:
            self.write(before)

    def report(self) -> dict[str, float]:
        return {"tasks": float(len(self.order))}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "now": self.now, "order": list(self.order), "own": self.own}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.now, self.order = saved["now"], list(saved["order"])
        # a new head of an old task is never read, and has any values
        self.own = {
            task: {name: grown(value, self.parameters[name]) for name, value in kept.items() if name in self.owned}
            for task, kept in saved["own"].items()
        }


class Masked(Isolation):
    """Base of those whose views are masks over one network: a task reads the entries in its mask, the others are zero
    to it, and what a task that was left has read is never changed.

    Gradients of what may not move are zeroed, so that clipping goes by what moves; then the realised step is, as
    momentum and weight decay would move it; and after that it is put back, should another strategy that stands before
    this one have written to it.

    Biases, element-wise recurrent weights and normalisation have too few entries to be shared out: every task has its
    own.

    Args:
        options: see `Isolation`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        #: task -> name -> which entries it reads
        self.masks: dict[int, dict[str, Tensor]] = {}

    def first_mask(self, ctx: Context, task: int) -> dict[str, Tensor]:
        """What a new task reads: name -> bool, for every shared parameter, and others that are masked, too. It may
        change what is in `store` where that is not `frozen`."""
        raise NotImplementedError

    def has_own(self, policy: Policy) -> list[str]:
        elementwise = {f"cell.{name}" for name in policy.cell.elementwise_parameters()}
        return [name for name, p in policy.named_parameters() if p.dim() < 2 or name in elementwise]

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        #: values of the shared parameters, those of all tasks in one
        self.store = self.current([name for name in self.parameters if name not in self.owned])
        #: entries that a task which was left reads
        self.frozen = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in self.store.items()}
        #: entries that the task in view may move; those of parameters that are not among them, all
        self.movable: dict[str, Tensor] = {}

    def shared(self, task: int) -> dict[str, Tensor]:
        return self.store

    def view(self, task: int) -> dict[str, Tensor]:
        values, masks = super().view(task), self.masks[task]
        return {name: value * masks[name] if name in masks else value for name, value in values.items()}

    def begin(self, ctx: Context, task: int) -> None:
        self.masks[task] = self.first_mask(ctx, task)

    def leave(self, ctx: Context, task: int) -> None:
        for name, kept in self.store.items():
            self.store[name] = torch.where(self.movable[name], self.parameters[name].detach(), kept)
            self.frozen[name] = self.frozen[name] | self.masks[task][name]

    def enter(self, task: int) -> None:
        masks = self.masks[task]
        self.movable = {n: mask & ~self.frozen[n] if n in self.frozen else mask for n, mask in masks.items()}
        #: what the others are
        self.held = {n: self.store[n] * (self.frozen[n] & masks[n]) for n in self.store}

    @torch.no_grad()
    def narrow(self, ctx: Context, name: str, mask: Tensor) -> None:
        """The task in view reads the entries in `mask` of a shared parameter from now on. Those that it does not read
        any more, and those that are new to it and may move, are zero, and so is what the optimiser keeps of them."""
        assert self.now is not None
        before, parameter = self.movable[name], self.parameters[name]
        self.masks[self.now][name] = mask
        self.movable[name] = after = mask & ~self.frozen[name]
        self.held[name] = self.held[name] * mask
        value = torch.where(after & before, parameter, self.held[name])
        reinitialise(ctx, {name: value}, {name: (before ^ after) | (value != parameter)})

    def transform_gradients(self, ctx: Context, gradients: Mapping[str, Tensor]) -> None:
        for name, movable in self.movable.items():
            if name in gradients:
                gradients[name].mul_(movable)

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        for name, movable in self.movable.items():
            deltas[name].mul_(movable)

    @torch.no_grad()
    def after_update(self, ctx: Context) -> None:
        for name, movable in self.movable.items():
            parameter, held = self.parameters[name], self.held.get(name)
            parameter.copy_(parameter * movable if held is None else torch.where(movable, parameter, held))

    def report(self) -> dict[str, float]:
        """Share of every layer's entries that are not frozen, and how many the task in view reads."""
        shares = {f"free/{name}": 1.0 - float(frozen.float().mean()) for name, frozen in self.frozen.items()}
        if self.now is not None:
            masks = self.masks[self.now]
            shares |= {f"reads/{name}": float(masks[name].float().mean()) for name in self.frozen}
        return {**super().report(), **shares}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "store": self.store, "frozen": self.frozen, "masks": self.masks}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        nothing = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in self.parameters.items()}
        self.store = {name: grown(value, self.parameters[name].detach()) for name, value in saved["store"].items()}
        self.frozen = {name: grown(value, nothing[name]) for name, value in saved["frozen"].items()}
        self.masks = {
            task: {name: grown(mask, nothing[name]) for name, mask in masks.items()}
            for task, masks in saved["masks"].items()
        }
        if self.now is not None:
            self.enter(self.now)
