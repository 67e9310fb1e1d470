"""Cells of the package torchrecurrent (Martinuzzi, MIT licence) behind our contract: `kind: torchrecurrent:MGUCell`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.agent.cells.base import Cell
from lifelong.agent.errors import ConfigError, unknown_name
from lifelong.envs.options import Width


class TorchRecurrent(Cell):
    """A cell of torchrecurrent, with the initialisation that it has there; h, and c where there is one, are the state
    [h | c], and h is the output.

    What its matrices read is not known here, so strategies that project on it or reset units refuse it.

    Args:
        input_size: D.
        size: N, the number of units; also the output size.
    """

    #: the class in torchrecurrent
    wrapped: type[nn.Module]

    def __init__(self, input_size: int, *, size: Width = 128) -> None:
        inner = self.wrapped(input_size, size)
        with torch.no_grad():
            after = inner(torch.zeros(1, input_size))
        self.pair = isinstance(after, tuple)
        super().__init__(input_size, sum(part.shape[-1] for part in after) if self.pair else size, size)
        self.inner = inner

    def step(self, x_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        if not self.pair:
            h_BN = self.inner(x_BD, state_BS)
            return h_BN, h_BN
        h_BN, c_BN = self.inner(x_BD, state_BS.tensor_split((self.output_size,), -1))
        return h_BN, torch.cat([h_BN, c_BN], -1)

    def taps(self) -> dict[str, tuple[list[str], str | None]]:
        raise ValueError("what the matrices of a cell of torchrecurrent read is not known, so nothing can be projected")

    def unit_parameters(self) -> tuple[dict[str, int], dict[str, int]]:
        raise ValueError("what belongs to a unit of a cell of torchrecurrent is not known, so units cannot be reset")


@functools.cache
def adapted(name: str) -> type[TorchRecurrent]:
    """The cell for a class of torchrecurrent.

    Raises:
        ConfigError: the package is not installed, or has no such cell.
    """
    try:
        import torchrecurrent
    except ImportError as error:
        raise ConfigError(
            f"cell torchrecurrent:{name} is one of the package torchrecurrent, which is not installed; "
            "pip install 'lifelong[torchrecurrent]'"
        ) from error
    cells = [cell for cell in dir(torchrecurrent) if cell.endswith("Cell")]
    if name not in cells:
        raise ConfigError(unknown_name("cell of torchrecurrent", name, cells))
    attributes: dict[str, Any] = {"wrapped": getattr(torchrecurrent, name), "__doc__": TorchRecurrent.__doc__}
    return type(name, (TorchRecurrent,), attributes)
