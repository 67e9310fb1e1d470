"""How many threads `runtime.threads: auto` means here and now."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lifelong.agent.config import RuntimeConfig
from lifelong.agent.errors import ConfigError
from lifelong.agent.runtime import machine
from tests.agent.support import make_config


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The load of a machine with 8 cores, which a test may change."""
    found = [0.0]
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(os, "getloadavg", lambda: (found[0], 9.0, 9.0))
    return found


@pytest.mark.parametrize(("busy", "wanted"), [(0.0, 8), (0.3, 8), (2.6, 5), (7.1, 1), (30.0, 1)])
def test_auto_leaves_out_the_cores_that_others_keep_busy(load: list[float], busy: float, wanted: int) -> None:
    load[0] = busy
    assert machine.threads(RuntimeConfig(threads=0)) == wanted
    assert machine.threads(RuntimeConfig(threads=0, backend="ray")) == 1
    assert machine.threads(RuntimeConfig(threads=3)) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a system without affinities")
def test_a_process_that_is_kept_to_one_core_has_one() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= machine.cores() <= len(allowed)


def test_other_words_are_told_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.threads is 'all'; it must be an integer"):
        make_config(runtime={"threads": "all"})


@pytest.mark.parametrize(
    ("own", "wanted"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_spin_shortly_unless_somebody_says_how(own: dict[str, str], wanted: str) -> None:
    names = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
    rest = {name: value for name, value in os.environ.items() if name not in names}
    code = "import lifelong, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], env={**rest, **own}, capture_output=True, text=True, check=True)
    assert said.stdout.split() == [wanted, "False"]  # OpenMP reads it when torch is loaded
