"""What a run imports, and that an optimiser constructed without torch's compiler is the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from lifelong.agent.runtime.lean import Uninitialised
from lifelong.agent.runtime.planned.step import make_step

RUN = """
import sys
from lifelong.agent.cli import main
short = ["stream.steps_per_task=1024", "evaluation.episodes=1"]
assert main(["run", "quickstart", *short, "--quiet", "--out", sys.argv[1]]) == 0
print([name for name in ("torch._dynamo", "sympy", "torch._inductor") if name in sys.modules])
"""


def test_a_run_does_not_import_a_compiler_that_it_does_not_use(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path / "run")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]", out


def test_parameters_that_are_only_measured_are_not_initialised() -> None:
    with torch.device("meta"), Uninitialised():
        layer = nn.Linear(3, 4)
        nn.init.orthogonal_(layer.weight)
    assert layer.weight.is_meta and layer.weight.shape == (4, 3)
    with Uninitialised():
        assert nn.Linear(3, 4).weight.std() > 0.01


def test_the_first_step_of_adam_is_that_of_torch() -> None:
    ours, theirs = (nn.Linear(7, 5) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        pair = [kind(module.parameters(), 0.01) for module in (ours, theirs)]
        for _ in range(3):
            grads = [torch.randn_like(p) for p in ours.parameters()]
            for module in (ours, theirs):
                for parameter, grad in zip(module.parameters(), grads, strict=True):
                    parameter.grad = grad.clone()
            make_step(pair[0])
            pair[1].step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
        states = [each.state_dict()["state"] for each in pair]
        for index, state in states[1].items():
            assert state.keys() == states[0][index].keys()
            for name, value in state.items():
                assert value.dtype == states[0][index][name].dtype
                torch.testing.assert_close(states[0][index][name], value, rtol=1e-5, atol=1e-7)
