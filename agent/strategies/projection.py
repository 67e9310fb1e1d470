"""What strategies share that project: a realised update that is projected, a budget, and what no projection covers.

The step *after* the optimiser is projected: Adam would rotate a projected gradient back into the protected space, and
decoupled weight decay is part of the step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.agent.errors import choice
from lifelong.agent.policy import Outputs
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.consolidation import Consolidating
from lifelong.agent.strategies.ewc import EWC
from lifelong.agent.strategies.taps import Taps
from lifelong.envs.options import Count, Range, Steps, Weight
from lifelong.kernels.project import project
from lifelong.replay.chunk import Chunk

#: what becomes of parameters that have no subspace: element-wise recurrent weights, a free log standard deviation
Elementwise = Literal["frozen", "free", "importance"]
#: whether the critic moves as it likes
Critic = Literal["free", "projected"]


class Projection(Consolidating):
    """Base of those that project every realised update, by what the layers saw on old tasks.

    Weight matrices of the encoder, the cell (input, recurrent and output gates) and a shared actor head are projected.
    What acting depends on besides has no subspace: element-wise recurrent weights, a free log standard deviation,
    normalisation in an encoder of the user's own. It is frozen after the first task, or held by importance, or free.
    Acting on old tasks does not use the critic, which is free or projected like a layer. With one head a task, only
    the current task's moves.

    A layer's room is the mean share of an update, over the directions of its input space, that is let through.

    Args:
        elementwise: what becomes of parameters without a subspace after the first task: `frozen`, `free`, or held by
            `importance`: a quadratic pull to where they were at the last boundary, with the diagonal Fisher of all
            old tasks (see `EWC`), normalised per tensor.
        pull: strength of that pull.
        critic: whether the critic is free, or projected like the actor.
        room: share of every layer's input space that is always left, so that later tasks have room.
        per_task: largest share of a layer's input space that one task may take.
        chunks: chunks of fresh experience that are looked at.
        every: consolidate every so many steps instead of at boundaries; 0: at boundaries.
    """

    data_parallel: ClassVar[str] = "reduce"
    #: sequences that the Fisher of parameters without a subspace is estimated from, at least
    IMPORTANCE_SEQUENCES: ClassVar[int] = 256

    def __init__(
        self,
        *,
        elementwise: Elementwise = "frozen",
        pull: Weight = 100.0,
        critic: Critic = "free",
        room: Annotated[float, Range(0.0, 0.99)] = 0.0,
        per_task: Annotated[float, Range(0.0, 1.0, above=True)] = 1.0,
        chunks: Count = 16,
        every: Steps = 0,
    ) -> None:
        super().__init__(every)
        if chunks < 1:
            raise ValueError(f"chunks is {chunks}; it must be at least 1")
        if not 0 <= room < 1:
            raise ValueError(f"room is {room}; it must lie in [0, 1)")
        if not 0 < per_task <= 1:
            raise ValueError(f"per_task is {per_task}; it must lie in (0, 1]")
        self.elementwise = choice("elementwise of a projection", elementwise, ("frozen", "free", "importance"))
        self.critic = choice("critic of a projection", critic, ("free", "projected"))
        self.room, self.per_task, self.chunks = room, per_task, chunks
        self.held = _Held(strength=pull, sequences=self.IMPORTANCE_SEQUENCES, normalize="tensor")
        #: tap -> what is protected, a tensor whose first dimension is that of the presynaptic vectors
        self.protected: dict[str, Tensor] = {}
        #: tap -> its room
        self.rooms: dict[str, float] = {}

    def protect(self, tap: str, moment_nn: Tensor, count: int) -> Tensor:
        """What is protected from now on; at least `least_room` must be left.

        Args:
            tap: of which matrix.
            moment_nn: sum of x x^T over the presynaptic vectors of the task, float64.
            count: how many these are.
        """
        raise NotImplementedError

    def project(self, tap: str, delta_mn: Tensor) -> Tensor:
        """The part of an update of a tap's weights, side by side with the bias, that is let through."""
        raise NotImplementedError

    def room_of(self, tap: str) -> float:
        """The room of a layer, as it is protected now."""
        raise NotImplementedError

    def least_room(self, tap: str) -> float:
        """The room that the task which is looked at now has to leave."""
        return max(self.room, self.rooms.get(tap, 1.0) - self.per_task)

    def most(self, tap: str, width: int) -> int:
        """How many directions of `width` may be protected once this task was looked at."""
        return math.floor(width * (1 - self.least_room(tap)) + 1e-6)

    def fresh_sequences(self, copies: int) -> int:
        return self.chunks * copies

    def setup(self, ctx: Context, seed: int) -> None:
        self.device, self.parameters = ctx.device, dict(ctx.policy.named_parameters())
        self.taps = Taps(ctx.policy, critic=self.critic == "projected")
        rest = self.taps.rest()
        self.frozen = rest if self.elementwise == "frozen" else []
        self.held.names = rest if self.elementwise == "importance" else []
        self.held.setup(ctx, seed)
        self.heads = ctx.policy.actor.tasks
        self.of_heads = [name for name in self.parameters if name.startswith("actor.")]
        self.needs_task_id = self.heads > 1

    @torch.no_grad()
    def consolidate(self, ctx: Context, source: Source) -> None:
        """Protect what the current policy's layers see on the current task."""
        moments: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        first: list[Experience] = []
        for experience in source(self.chunks):
            if self.held.names and len(first) * ctx.copies * ctx.workers.count < self.held.sequences:
                first.append(experience)
            for tap, vectors in self.taps.vectors(experience).items():
                moments[tap] = moments.get(tap, 0.0) + vectors.double().T @ vectors.double()
                counts[tap] = counts.get(tap, torch.zeros((), device=self.device)) + len(vectors)
        ctx.workers.sum_([*moments.values(), *counts.values()])
        for tap, moment in moments.items():
            self.protected[tap] = self.protect(tap, moment, int(counts[tap])).float()
            self.rooms[tap] = self.room_of(tap)
        self.hold(ctx, first)

    def hold(self, ctx: Context, experiences: Iterable[Experience]) -> None:
        """From now on, hold what has no subspace where it is, by its importance on the task."""
        if self.held.names:
            with torch.enable_grad():
                self.held.consolidate(ctx, lambda chunks: itertools.islice(experiences, chunks))

    def on_reset(self, ctx: Context, entries: Mapping[str, Tensor]) -> None:
        """What has no subspace loses its importance; the directions that a layer reads stay protected."""
        self.held.on_reset(ctx, entries)

    def extra_loss(self, ctx: Context, chunk: Chunk, outputs: Outputs, live: int) -> Tensor | None:
        return self.held.extra_loss(ctx, chunk, outputs, live)

    def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
        for tap in self.protected:
            self.taps.write(tap, self.project(tap, self.taps.joint(tap, deltas)), deltas)
        if self.protected:
            for name in self.frozen:
                deltas[name].zero_()
            if self.heads > 1 and ctx.task is not None:
                self._keep_other_heads(ctx.task, deltas)

    def _keep_other_heads(self, task: int, deltas: Mapping[str, Tensor]) -> None:
        for name in self.of_heads:
            rows = deltas[name].unflatten(0, (self.heads, -1))
            others = torch.arange(self.heads, device=rows.device) != task
            rows[others] = 0.0

    def report(self) -> dict[str, float]:
        """Of every layer the directions that are protected, of a soft projection in sum of their shares, and the room;
        and the pull on what has no subspace."""
        rooms = {f"room/{tap}": room for tap, room in self.rooms.items()}
        ranks = {f"rank/{tap}": len(self.protected[tap]) * (1 - room) for tap, room in self.rooms.items()}
        return {**ranks, **rooms, **self.held.report()}

    def state_dict(self) -> dict[str, Any]:
        own = {"protected": self.protected, "rooms": self.rooms, "held": self.held.state_dict()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        taps = self.taps.weights  # a single head is a tap, several are not
        self.protected = {tap: self.widened(tap, kept) for tap, kept in saved["protected"].items() if tap in taps}
        self.rooms = {tap: room for tap, room in saved["rooms"].items() if tap in taps}
        self.held.load_state_dict(saved["held"])

    def widened(self, tap: str, kept: Tensor) -> Tensor:
        """What was protected, for the inputs that the tap has now (see `Taps.widened`)."""
        return self.taps.widened(tap, kept.to(self.device), self.parameters)


class BasisProjection(Projection):
    """Base of those that protect an orthonormal basis M a layer and cut off what lies in it,
    delta <- delta - delta M M^T (Saha, Garg, Roy 2021, eq. 7)."""

    def project(self, tap: str, delta_mn: Tensor) -> Tensor:
        return project(delta_mn, self.protected[tap])

    def room_of(self, tap: str) -> float:
        width, rank = self.protected[tap].shape
        return 1 - rank / width

    def basis(self, tap: str, width: int) -> Tensor:
        """M, at first without a column."""
        return self.protected[tap] if tap in self.protected else torch.zeros(width, 0, device=self.device)


class _Held(EWC):
    """The pull on some parameters by their names."""

    names: list[str]

    def setup(self, ctx: Context, seed: int) -> None:
        super().setup(ctx, seed)
        self.parameters = {name: p for name, p in ctx.policy.named_parameters() if name in self.names}


class CovarianceProjection(Projection):
    """Base of those that keep the second moments C of the presynaptic vectors of old tasks, and let an update through
    along every eigenvector of C by a share that its eigenvalue says: delta <- delta V diag(share) V^T."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.projectors: dict[str, Tensor] = {}
        #: tap -> the room that the last task had to leave
        self.floors: dict[str, float] = {}

    def share(self, eigenvalues_n: Tensor, floor: float) -> Tensor:
        """How much of an update is let through along each eigenvector, in [0, 1] and in the mean at least `floor`;
        eigenvalues in rising order."""
        raise NotImplementedError

    def accumulated(self, old_nn: Tensor | None, moment_nn: Tensor, count: int) -> Tensor:
        """C with a task more; by default the sum of the tasks' mean second moments."""
        mean = moment_nn / count
        return mean if old_nn is None else old_nn.double() + mean

    def protect(self, tap: str, moment_nn: Tensor, count: int) -> Tensor:
        moments = self.accumulated(self.protected.get(tap), moment_nn, count).float()
        self.floors[tap] = self.least_room(tap)
        self.projectors[tap] = self.projector(moments, self.floors[tap])  # of what is saved: the same after a resume
        return moments

    def projector(self, moments_nn: Tensor, floor: float) -> Tensor:
        """V diag(share) V^T, float32."""
        eigenvalues, vectors = torch.linalg.eigh(moments_nn.double())
        return ((vectors * self.share(eigenvalues.clamp(min=0.0), floor)) @ vectors.T).float()

    def project(self, tap: str, delta_mn: Tensor) -> Tensor:
        return delta_mn @ self.projectors[tap]

    def room_of(self, tap: str) -> float:
        return float(self.projectors[tap].diagonal().mean())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "floors": self.floors}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.floors = {tap: saved["floors"][tap] for tap in self.protected}
        self.projectors = {tap: self.projector(kept, self.floors[tap]) for tap, kept in self.protected.items()}

    def widened(self, tap: str, kept: Tensor) -> Tensor:
        return super().widened(tap, super().widened(tap, kept).T.contiguous())


class SoftProjection(CovarianceProjection):
    """Base of those that cut nothing off: a direction with second moment lambda keeps alpha / (alpha + lambda). Where
    the budget asks for more room than that leaves, alpha is raised until it is there.

    Args:
        alpha: beside the eigenvalues of the second moments; small protects more.
        options: see `Projection`.
    """

    def __init__(self, *, alpha: Annotated[float, Range(0.0, 1e6, above=True)] = 1e-3, **options: Any) -> None:
        super().__init__(**options)
        if alpha <= 0:
            raise ValueError(f"alpha is {alpha}; it must be above 0")
        self.alpha = alpha

    def share(self, eigenvalues_n: Tensor, floor: float) -> Tensor:
        def shares(alpha: float) -> Tensor:
            return alpha / (alpha + eigenvalues_n)

        low, high = self.alpha, self.alpha
        while float(shares(high).mean()) < floor:
            low, high = high, 2 * high
        while high > low * (1 + 1e-9):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if float(shares(middle).mean()) < floor else (low, middle)
        return shares(high)
