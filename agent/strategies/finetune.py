"""Fine-tuning: no protection at all, the baseline that shows what is forgotten."""

from __future__ import annotations

from typing import ClassVar

from lifelong.agent.strategies.base import Strategy


class Finetune(Strategy):
    """Trains on and on with the same parameters and optimiser."""

    data_parallel: ClassVar[str] = "equal"
