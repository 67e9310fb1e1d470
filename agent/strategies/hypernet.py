"""Hypernetworks (von Oswald, Henning, Sacramento, Grewe 2020, "Continual learning with hypernetworks")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from lifelong.agent.errors import choice
from lifelong.agent.growth import grown
from lifelong.agent.modules.generators import Form, Generator
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.initial import initial_bounds
from lifelong.agent.strategies.isolation import Isolation
from lifelong.envs.options import Range, Weight, Width, Widths

Part = Literal["encoder", "cell", "actor"]
PARTS: tuple[Part, ...] = ("encoder", "cell", "actor")
#: what a tensor may move at once where its initialisation says nothing
SCALE = 0.1


class Hypernet(Isolation):
    """The parameters of the policy are made by a generator h from an embedding e of the task, and what is learned is
    the generator:

        theta = theta_0 + s h(e)    dL/dTheta = (dtheta/dTheta)^T dL/dtheta
        L_reg = beta * mean over old tasks j of ||theta(e_j) - theta(e_j) of when this task began||^2

    (eq. 2 without the lookahead of a step). dL/dtheta is the whole gradient of the chunk, the carry's share and all
    clipping in it: the carry is that of theta, and theta = theta_0 + s h(e) all the while. The optimiser of the config
    does not move what is made; the generator has an Adam of its own, which begins anew with every task.

    theta_0 are the parameters that the policy was built with and s the bounds they were drawn from, so that the policy
    begins as any other (in the paper h makes theta alone, from an initialisation for that). Embeddings of other tasks
    do not move. Parts that are not made, and the critic if it is its own, exist once a task.

    Args:
        parts: what is made: some of encoder, cell, actor.
        beta: of the regulariser.
        lr: of the generator's Adam.
        form: see `Generator`.
        chunk: parameters made at once.
        hidden: widths of the generator.
        embedding: numbers that stand for a task.
        chunk_embedding: numbers that stand for a chunk.
        options: see `Isolation`.
    """

    def __init__(
        self,
        *,
        parts: Sequence[Part] = PARTS,
        beta: Weight = 1.0,
        lr: Annotated[float, Range(0.0, 1e3)] = 1e-3,
        form: Form = "chunked",
        chunk: Width = 1000,
        hidden: Widths = (50, 50),
        embedding: Width = 32,
        chunk_embedding: Width = 32,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for part in parts:
            choice("part made by a hypernet", part, PARTS)
        choice("form of a hypernet", form, ("chunked", "recurrent"))
        if not parts or not hidden or beta < 0 or lr < 0:
            raise ValueError("parts and hidden must not be empty, beta and lr must not be negative")
        self.parts, self.beta, self.lr = list(parts), beta, lr
        self.embedding = embedding
        self.shape: dict[str, Any] = {
            "form": form,
            "chunk": chunk,
            "hidden": list(hidden),
            "chunk_embedding": chunk_embedding,
        }
        #: task -> e
        self.tasks: dict[int, nn.Parameter] = {}
        self.regulariser = torch.zeros(())

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        prefixes = tuple(f"{part}." for part in self.parts)
        self.made = [name for name in self.parameters if name.startswith(prefixes)]
        if not self.made:
            raise ValueError(f"the policy has no parameters in {' and '.join(self.parts)}")
        self.anew = [name for name in self.anew if name not in self.made]
        self.owned = [name for name in self.parameters if name not in self.made]
        bounds = initial_bounds(ctx.policy, seed)
        #: name -> where its entries are in the P numbers; what a new task brings stands behind all that was there
        self.place: dict[str, Tensor] = {}
        size = 0
        for name in self.made:
            parameter = self.parameters[name]
            count = parameter.numel()
            self.place[name] = torch.arange(size, size + count, device=ctx.device).view(parameter.shape)
            size += count
        values = [self.parameters[name].detach().flatten() for name in self.made]
        self.base = torch.cat(values)
        self.scale = torch.cat([torch.full_like(x, bounds[n] or SCALE) for n, x in zip(self.made, values, strict=True)])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.net = Generator(size, embedding=self.embedding, **self.shape).to(self.base)
        #: what old tasks had when the one in view began, [J, P]
        self.targets = self.base.new_zeros(0, size)

    # ---- from embeddings to parameters ---------------------------------------------------------------------------

    def generate(self, tasks: list[int]) -> Tensor:
        """theta of some tasks, [J, P]."""
        return self.base + self.scale * self.net(torch.stack([self.tasks[task] for task in tasks]))

    def named(self, theta_P: Tensor) -> dict[str, Tensor]:
        """The P numbers as parameters of the policy."""
        return {name: theta_P[place] for name, place in self.place.items()}

    @torch.no_grad()
    def shared(self, task: int) -> dict[str, Tensor]:
        return self.named(self.generate([task])[0])

    def others(self) -> list[int]:
        """The tasks that are held while the one in view trains."""
        return [task for task in self.order if task != self.now]

    def distance(self) -> Tensor:
        """The regulariser without beta; zero as long as nothing has moved."""
        now = self.generate(self.others())[:, : self.targets.shape[1]]
        return (now - self.targets).square().sum(1).mean()

    # ---- tasks ---------------------------------------------------------------------------------------------------

    def begin(self, ctx: Context, task: int) -> None:
        e = torch.randn(self.embedding, generator=self.generator)
        self.tasks[task] = nn.Parameter(e.to(self.base))

    @torch.no_grad()
    def enter(self, task: int) -> None:
        others = self.others()
        self.targets = self.generate(others) if others else self.base.new_zeros(0, len(self.base))
        self.regulariser = torch.zeros((), device=self.base.device)
        self.optimizer = self.adam(task)

    def adam(self, task: int) -> torch.optim.Optimizer:
        """The optimiser while `task` trains."""
        return torch.optim.Adam([*self.net.parameters(), self.tasks[task]], self.lr, capturable=self.base.is_cuda)

    # ---- learning ------------------------------------------------------------------------------------------------

    def backward(self) -> None:
        """Hand the gradients of what was made on to what it was made from, and add the regulariser's."""
        assert self.now is not None
        theta_P = self.generate([self.now])[0]
        gradient_P = torch.zeros_like(theta_P)
        for name, place in self.place.items():
            gradient = self.parameters[name].grad
            if gradient is not None:
                gradient_P[place] = gradient
        loss = (theta_P * gradient_P).sum()
        if len(self.targets):
            distance = self.distance()
            self.regulariser = distance.detach()
            loss = loss + self.beta * distance
        self.optimizer.zero_grad()
        loss.backward()

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        """The step of what is made is that of its generator."""
        if self.now is None:
            return
        with torch.enable_grad():
            self.backward()
        self.optimizer.step()
        before = {name: self.parameters[name] - deltas[name] for name in self.made}
        for name, value in self.shared(self.now).items():
            deltas[name].copy_(value - before[name])

    def after_update(self, ctx: Context) -> None:
        if self.now is not None:  # to the last bit, and whatever else was written to them
            self.write(self.shared(self.now))

    def report(self) -> dict[str, float]:
        """The regulariser without beta, and numbers learned per number made."""
        learned = sum(p.numel() for p in self.net.parameters()) + self.embedding * len(self.tasks)
        size = {"size": learned / len(self.base)}
        return {**super().report(), "regulariser": float(self.regulariser), **size}

    # ---- the checkpoint ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        made = {"place": self.place, "base": self.base, "scale": self.scale, "targets": self.targets}
        learned = {"net": self.net.state_dict(), "tasks": {task: e.detach() for task, e in self.tasks.items()}}
        optimizer = None if self.now is None else self.optimizer.state_dict()
        return {**super().state_dict(), **made, **learned, "adam": optimizer, "regulariser": self.regulariser}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        size = len(saved["base"])
        for name, place in self.place.items():
            old = saved["place"][name]
            place.fill_(-1)
            place[tuple(slice(0, n) for n in old.shape)] = old.to(place)
            new = place < 0
            count = int(new.sum())
            place[new] = torch.arange(size, size + count, device=place.device)
            value = self.parameters[name].detach()
            size += count
            if old.numel():
                self.base[place], self.scale[place] = value, float(saved["scale"][old.flatten()[0]])
        count = len(saved["base"])
        self.base[:count], self.scale[:count] = saved["base"].to(self.base), saved["scale"].to(self.scale)
        here = self.net.state_dict()
        self.net.load_state_dict({name: grown(value, here[name]) for name, value in saved["net"].items()})
        self.tasks = {task: nn.Parameter(e.to(self.base)) for task, e in saved["tasks"].items()}
        self.targets, self.regulariser = saved["targets"].to(self.base), saved["regulariser"].to(self.base.device)
        if self.now is not None:
            self.optimizer = self.adam(self.now)
            parameters, held = self.optimizer.param_groups[0]["params"], saved["adam"]["state"]
            held = {
                index: {n: grown(x, torch.zeros_like(parameters[index])) if x.dim() else x for n, x in kept.items()}
                for index, kept in held.items()
            }
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": held})
