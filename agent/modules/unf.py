"""A small network over the parameters of another one that does not care how its units are ordered.

Zhou, Finn & Harrison 2024, "Universal Neural Functionals" (NeurIPS; arXiv 2402.05232): a layer that is linear and
commutes with every permutation of the hidden units of any network, recurrent ones too. Shapes: P entries of all
parameters, U units, L tensors, C channels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lifelong.agent.files import write

#: what is looked at of every entry (see `agent.strategies.unf`)
CHANNELS = 8
HIDDEN = 16
#: the rule that is shipped, made by benchmarks/unf.py
SHIPPED = Path(__file__).parent / "unf.json"


class Groups(NamedTuple):
    """Which of N groups every entry is in, int64 [P]; N: none. And 1 / size of every group, 0 for none, [N + 1]."""

    place: Tensor
    share: Tensor

    @staticmethod
    def of(index_P: Tensor, count: int) -> Groups:
        """Of so many groups."""
        size = torch.bincount(index_P, minlength=count + 1).float()
        share = 1 / size.clamp(min=1.0)
        share[count] = 0.0
        return Groups(index_P, share)

    def mean(self, x_PC: Tensor) -> Tensor:
        """Means [N + 1, C] of the entries of each group; zeros where there are none, and for those in none."""
        total = x_PC.new_zeros(len(self.share), x_PC.shape[1]).index_add(0, self.place, x_PC)
        return total * self.share.unsqueeze(1)

    def spread(self, said_NC: Tensor) -> Tensor:
        """What is said of groups [N + 1, C], to their entries [P, C]."""
        return said_NC.index_select(0, self.place)


class Structure(NamedTuple):
    """The units that make entries and that they read, and the tensors that they are in."""

    writer: Groups
    reader: Groups
    tensor: Groups


class EquivariantLayer(nn.Module):
    """Every entry from itself, from what is read and made by the unit that makes it and by the unit that it reads, from
    its tensor and from all: of the terms of the paper's basis those that pass through a unit or a whole tensor.

    Args:
        channels_in: C of what comes in.
        channels_out: C of what goes out.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.own = nn.Linear(channels_in, channels_out)
        self.of_writer = nn.Linear(2 * channels_in, channels_out, bias=False)
        self.of_reader = nn.Linear(2 * channels_in, channels_out, bias=False)
        self.of_tensor = nn.Linear(2 * channels_in, channels_out, bias=False)

    def forward(self, x_PC: Tensor, where: Structure) -> Tensor:
        """[P, C] -> [P, C']."""
        unit_UC = torch.cat([where.writer.mean(x_PC), where.reader.mean(x_PC)], 1)
        tensor_LC = where.tensor.mean(x_PC)
        tensor_LC = torch.cat([tensor_LC, x_PC.mean(0).expand_as(tensor_LC)], 1)
        said: Tensor = self.own(x_PC) + where.writer.spread(self.of_writer(unit_UC))
        said = said + where.reader.spread(self.of_reader(unit_UC)) + where.tensor.spread(self.of_tensor(tensor_LC))
        return said


class Rule(nn.Module):
    """Two layers: [P, CHANNELS] -> how much longer each entry's step becomes (a logarithm), and a push of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = EquivariantLayer(CHANNELS, HIDDEN), EquivariantLayer(HIDDEN, 2)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)  # steps stay as they are

    def forward(self, x_PC: Tensor, where: Structure) -> tuple[Tensor, Tensor]:
        """(log gain [P], push [P]), both within -3 and 3."""
        said = self.last(self.first(x_PC, where).relu(), where)
        longer, push = (3 * torch.tanh(said / 3)).unbind(1)
        return longer, push

    def save(self, path: Path) -> None:
        """Write the weights as JSON."""
        rounded = {name: (1e5 * x).round().div(1e5).double().tolist() for name, x in self.state_dict().items()}
        text = json.dumps({name: _short(x) for name, x in rounded.items()}, separators=(",", ":"))
        write(path, text.replace('],"', '],\n"') + "\n")

    @staticmethod
    def load(path: Path) -> Rule:
        """The rule that `save` wrote.

        Raises:
            ValueError: the file is none.
        """
        try:
            saved = json.loads(path.read_text())
            rule = Rule()
            rule.load_state_dict({name: torch.tensor(value) for name, value in saved.items()})
        except (OSError, ValueError, RuntimeError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} holds no rule that benchmarks/unf.py has written") from error
        return rule.requires_grad_(False)


def _short(value: Any) -> Any:
    """Numbers with five decimals."""
    return [_short(x) for x in value] if isinstance(value, list) else round(value, 5)
