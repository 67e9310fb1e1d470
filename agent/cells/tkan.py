"""TKAN: an LSTM whose output gate reads recurrent Kolmogorov-Arnold layers (Genet & Inzirillo 2024, "TKAN: Temporal
Kolmogorov-Arnold Networks", arXiv 2405.07344, section 2; KAN: Liu et al. 2024, arXiv 2404.19756)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Cell
from lifelong.envs.options import Range, Width


class KAN(nn.Module):
    """A recurrent Kolmogorov-Arnold layer: u = M features(P x + Q s), of J numbers each.

    Args:
        input_size: D.
        width: J.
        grid: intervals of the grid on [-1, 1].
    """

    ORDER: ClassVar[int] = 3

    def __init__(self, input_size: int, width: int, grid: int) -> None:
        super().__init__()
        self.read = nn.Linear(input_size, width, bias=False)  # P
        self.again = nn.Linear(width, width, bias=False)  # Q
        self.spline = nn.Linear((1 + grid + self.ORDER) * width, width, bias=False)  # M
        nn.init.normal_(self.spline.weight, std=0.1)
        for weight in (self.read.weight, self.again.weight, self.spline.weight.data[:, :width]):
            nn.init.xavier_uniform_(weight)
        self.knots: Tensor
        knots = (torch.arange(grid + 2 * self.ORDER + 1) - self.ORDER) * 2.0 / grid - 1
        self.register_buffer("knots", knots, persistent=False)

    def features(self, x: Tensor, s: Tensor) -> Tensor:
        """Of z = P x + Q s: silu(z), then every cubic B-spline of tanh(z) (Cox-de Boor), [..., (1 + K) J]."""
        z = self.read(x) + self.again(s)
        inside, t = torch.tanh(z).unsqueeze(-2), self.knots[:, None]
        basis = ((inside >= t[:-1]) & (inside < t[1:])).to(z)
        for k in range(1, self.ORDER + 1):
            rising = (inside - t[: -k - 1]) / (t[k:-1] - t[: -k - 1]) * basis[..., :-1, :]
            falling = (t[k + 1 :] - inside) / (t[k + 1 :] - t[1:-k]) * basis[..., 1:, :]
            basis = rising + falling
        return torch.cat([nn.functional.silu(z), basis.flatten(-2)], -1)


class TKAN(Cell):
    """i, f, g = sigmoid(W x + U h + b), c' = f c + i g, o = sigmoid(V [u_1, ..] + b_o), h' = o tanh(c'), where layer l
    says u_l = KAN_l(P_l x + Q_l s_l) and remembers s_l' = w_l u_l + v_l s_l. State [h | c | s_1, ..].

    A KAN layer sums functions of each of its inputs z: silu(z), and cubic B-splines of tanh(z) on a grid. As in the
    paper the candidate g is a sigmoid, too.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
        layers: KAN layers.
        width: J, the numbers that a layer reads, says and remembers.
        grid: intervals of the grid; there are three more splines.
    """

    def __init__(
        self,
        input_size: int,
        *,
        size: Width = 128,
        layers: Annotated[int, Range(1, 1000)] = 2,
        width: Width = 8,
        grid: Annotated[int, Range(1, 100)] = 5,
    ) -> None:
        super().__init__(input_size, 2 * size + layers * width, size)
        self.unit_state = 2 * size
        self.input = nn.Linear(input_size, 3 * size)
        self.hidden = nn.Linear(size, 3 * size, bias=False)
        self.out = nn.Linear(layers * width, size)
        self.kan = nn.ModuleList(KAN(input_size, width, grid) for _ in range(layers))
        self.memory = nn.Parameter(torch.full((2, layers * width), 0.5))  # w, v
        for weight in (self.input.weight, self.out.weight):
            nn.init.xavier_uniform_(weight)
        with torch.no_grad():
            for gate in self.hidden.weight.chunk(3):
                nn.init.orthogonal_(gate)
            self.input.bias[size : 2 * size] = 1.0

    def parts(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h, c and what the layers remember."""
        h, c, s = state.tensor_split((self.units, 2 * self.units), -1)
        return h, c, s

    def splines(self, x: Tensor, s: Tensor) -> list[Tensor]:
        """The features of every layer."""
        return [kan.features(x, part) for kan, part in zip(self.kan, s.chunk(len(self.kan), -1), strict=True)]  # type: ignore[operator]

    def say(self, features: list[Tensor]) -> Tensor:
        """What the layers say, [..., L J]."""
        return torch.cat([kan.spline(each) for kan, each in zip(self.kan, features, strict=True)], -1)  # type: ignore[operator]

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        h_BN, c_BN, s = self.parts(state_BS)
        i, f, g = torch.sigmoid(self.input(x_BD) + self.hidden(h_BN)).chunk(3, -1)
        c_BN, u = f * c_BN + i * g, self.say(self.splines(x_BD, s))
        h_BN = torch.sigmoid(self.out(u)) * torch.tanh(c_BN)
        return h_BN, torch.cat([h_BN, c_BN, self.memory[0] * u + self.memory[1] * s], -1)

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        taps: dict[str, tuple[list[str], str | None]] = {
            "joint": (["input.weight", "hidden.weight"], "input.bias"),
            "out": (["out.weight"], "out.bias"),
        }
        for k in range(len(self.kan)):
            taps[f"read_{k}"] = [f"kan.{k}.read.weight", f"kan.{k}.again.weight"], None
            taps[f"spline_{k}"] = [f"kan.{k}.spline.weight"], None
        return taps

    def presynaptic(self, x_MD: Tensor, state_MS: Tensor) -> dict[str, Tensor]:
        h_MN, _, s = self.parts(state_MS)
        features = self.splines(x_MD, s)
        seen = {"joint": torch.cat([x_MD, h_MN], -1), "out": self.say(features)}
        for k, part in enumerate(s.chunk(len(self.kan), -1)):
            seen |= {f"read_{k}": torch.cat([x_MD, part], -1), f"spline_{k}": features[k]}
        return seen

    def elementwise_parameters(self) -> list[str]:
        return ["memory"]

    def shared_parameters(self) -> list[str]:
        return ["memory", *(name for name, _ in self.named_parameters() if name.startswith("kan."))]

    def unit_parameters(self) -> tuple[dict[str, int], dict[str, int]]:
        own = ("input.weight", "input.bias", "hidden.weight", "out.weight", "out.bias")
        return dict.fromkeys(own, 0), {"hidden.weight": 1}
