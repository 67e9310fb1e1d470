"""GTF: generalised teacher forcing (Hess, Monfared, Brenner & Durstewitz 2023, "Generalized Teacher Forcing for
Learning Chaotic Dynamics", arXiv 2306.04406, section 3.2).

A model that goes on from its own predictions is a map z' = F(z), and gradients through T steps of a chaotic one grow
like exp(lambda T). GTF steps from what lies between the prediction and what was observed,

    x~_t = (1 - a) x^_t + a x_t,    x^_{t+1} = F(x~_t),    dx^_T/dx^_0 = prod (1 - a) dF/dx~_t

so that products of Jacobians of norm s stay bounded for a >= 1 - 1/s, and errors still flow over many steps. a = 1 is
training on one step, a = 0 the free model. The paper forces the whole state, which here is that of a `plrnn` with
`observed: true` and as many units as numbers are observed. What a cell remembers besides is not forced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Acted, Cell
from lifelong.agent.errors import ConfigError
from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.modules.heads import Gaussian, TanhGaussian
from lifelong.envs.options import Share

if TYPE_CHECKING:
    from lifelong.agent.policy import Policy

EVERY, FALL, STATES = 5, 0.999, 64  # passes between two looks at Jacobians; of alpha in a pass; states looked at


class GTF(BPTT):
    """Truncated BPTT through inputs that are drawn from the model's own predictions to the observed ones; nothing is
    carried. The first input of a chunk, and of an episode, is the observed one; so is every one when it acts.

    Args:
        cell: the cell; the policy's action must be the prediction of the next observation.
        copies: B.
        alpha: a, the share of what was observed.
        adaptive: a = 1 - 1/s is estimated again and again, s being the geometric mean of the norms of Jacobians of the
            free model at states of the chunk; it falls by 0.1 % in a pass at most. `alpha` is then what it begins with.
    """

    #: a cell that is made of cells is one to it
    whole: ClassVar[bool] = True
    inside = "through inputs drawn towards the observed ones"

    def __init__(self, cell: Cell, copies: int, *, alpha: Share = 0.1, adaptive: bool = False) -> None:
        super().__init__(cell, copies)
        self.adaptive = adaptive
        like = next(cell.parameters())
        self.alpha_B = torch.full((copies,), float(alpha), dtype=like.dtype, device=like.device)
        self.passes_B = torch.zeros(copies, dtype=torch.int64, device=like.device)
        self.readout: nn.Linear

    def setup(self, policy: Policy) -> None:
        head, cell = policy.actor, policy.cell
        predicts = isinstance(policy.distribution, Gaussian) and not isinstance(policy.distribution, TanhGaussian)
        if (
            not predicts
            or head.tasks > 1
            or policy.composed
            or head.outputs != cell.input_size
            or not policy.encoder.transparent
        ):
            raise ConfigError(
                "gradient gtf needs one head that predicts the next observation, which the cell reads as it is: policy."
                "encoder identity, nothing beside the observation, and an action of its size; the cell reads "
                f"{cell.input_size} numbers, the head predicts {head.outputs}"
            )
        self.readout = head.linear

    def sequence(
        self, x_TBD: Tensor, state_BS: Tensor, is_init_TB: Tensor, acted: Acted | None = None
    ) -> tuple[Tensor, Tensor]:
        share_TB1 = torch.where(is_init_TB, 1.0, self.alpha_B[0]).unsqueeze(-1)
        heard_BD, states = x_TBD[0], [state_BS]
        outputs: list[Tensor] = []
        for t, (x_BD, share_B1, is_init_B) in enumerate(zip(x_TBD, share_TB1, is_init_TB, strict=True)):
            if t:
                heard_BD = torch.lerp(self.readout(outputs[-1]), x_BD, share_B1)
            y_BH, state_BS = self.cell.masked_step(heard_BD, state_BS, is_init_B)
            outputs.append(y_BH)
            states.append(state_BS)
        if self.adaptive:
            self._adapt(x_TBD, torch.stack(states[:-1]))
        return torch.stack(outputs), state_BS

    def _adapt(self, x_TBD: Tensor, state_TBS: Tensor) -> None:
        """A new alpha, from the Jacobians at some of the states."""
        if int(self.passes_B[0]) % EVERY == 0:
            every = max(1, x_TBD.shape[0] * x_TBD.shape[1] // STATES)
            J_MSS = self.growth(x_TBD.flatten(0, 1)[::every], state_TBS.flatten(0, 1)[::every])
            size = torch.linalg.matrix_norm(J_MSS, 2).clamp(min=1e-12).log().mean().exp()
            self.alpha_B.copy_(torch.maximum((1 - 1 / size).clamp(min=0.0), self.alpha_B * FALL**EVERY))
        self.passes_B += 1

    @torch.enable_grad()
    def growth(self, x_MD: Tensor, state_MS: Tensor) -> Tensor:
        """Derivative of what the free model predicts by what it hears, at M inputs and states, [M, D, D]."""
        x_MD = x_MD.detach().requires_grad_()
        said_MD = self.readout(self.cell.step(x_MD, state_MS.detach())[0])
        rows = [torch.autograd.grad(said.sum(), x_MD, retain_graph=True)[0] for said in said_MD.unbind(1)]
        return torch.stack(rows, 1)

    def report(self) -> dict[str, Tensor]:
        return {**super().report(), "forcing": self.alpha_B[0]}

    def state_dict(self) -> dict[str, Tensor]:
        return {"alpha": self.alpha_B, "passes": self.passes_B} if self.adaptive else {}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        if self.adaptive:
            self.alpha_B.copy_(saved["alpha"])
            self.passes_B.copy_(saved["passes"])
