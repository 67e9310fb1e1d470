"""Plots are made wherever matplotlib can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_a_plot_where_no_home_can_be_written_says_nothing_on_the_terminal(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from lifelong.agent.report.plots import new_figure, save_figure
figure = new_figure(2, 2)
figure.add_subplot().plot([1, 2])
save_figure(figure, Path(sys.argv[1]))
"""
    nowhere = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), "/dev/null/nowhere")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **nowhere, "TMPDIR": str(tmp_path)}
    environment.pop("MPLCONFIGDIR", None)
    command = [sys.executable, "-c", code, tmp_path / "plot.png"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    assert (tmp_path / "plot.png").stat().st_size > 0
