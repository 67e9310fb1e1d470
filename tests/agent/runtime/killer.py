"""Runs the command line and kills itself with signal 9 inside a write.

    python -m tests.agent.runtime.killer CALL N run CONFIG ...

CALL is one of `CALLS`; its N-th call is done by half (a write, a torch.save) or not at all. With N = 0 nothing is
killed, and how often each is called is printed at the end.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from typing import Any

import torch

CALLS = ("write", "replace", "fsync", "truncate", "save")
counts = dict.fromkeys(CALLS, 0)


def arm(name: str, number: int) -> None:
    """Have the `number`-th call of `name` kill this process."""
    module: Any = torch if name == "save" else os
    real = getattr(module, name)

    def call(*arguments: Any, **options: Any) -> Any:
        counts[name] += 1
        if counts[name] == number:
            if name == "write":
                descriptor, data = arguments
                real(descriptor, bytes(data)[: len(data) // 2])
            elif name == "save":
                buffer = io.BytesIO()
                real(arguments[0], buffer)
                arguments[1].write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
                arguments[1].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(module, name, call)


if __name__ == "__main__":
    chosen, number = sys.argv[1], int(sys.argv[2])
    for name in CALLS if number == 0 else [chosen]:
        arm(name, number)
    from lifelong.agent.cli import main

    status = main(sys.argv[3:])
    print("calls", json.dumps(counts))
    sys.exit(status)
