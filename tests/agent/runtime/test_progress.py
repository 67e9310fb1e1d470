"""Progress fits the terminal, and says the same where there is none."""

from __future__ import annotations

import io
import math
import os
import re
import sys

import pytest

from lifelong.agent.runtime.progress import Progress, duration, fit, sparkline


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In place of standard error, which pytest sets again after every fixture."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return made


def screen(written: str) -> list[str]:
    """What a terminal shows in the end: the few control sequences that are used, carried out."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\d*[A-Z]|[\r\n]|[^\x1b\r\n]+", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[K":
            lines[row] = lines[row][:column]
        elif part == "\x1b[J":
            lines = [*lines[:row], lines[row][:column]]
        elif part == "\x1b[1A":
            row -= 1
        else:
            assert not part.startswith("\x1b"), part
            lines[row] = lines[row][:column] + part + lines[row][column + len(part) :]
            column += len(part)
    return lines


def test_two_lines_fit_80_columns_and_go_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    progress = Progress(123_456_789)
    for step in range(30):
        values = {f"a task with a long name {i}": step / 30 for i in range(20)}
        progress.update(step * 4_000_000, "another task with a name as long as this", values, force=True)
    shown = screen(terminal.getvalue())
    assert len(shown) == 2 and all(0 < len(line) < 80 for line in shown)
    assert "116,000,000/123,456,789" in shown[0] and "/s" in shown[0] and "left" in shown[0] and "training" in shown[0]
    assert "a task" in shown[1] and "0.97" in shown[1] and re.search(r"\+\d+$", shown[1])
    progress.close()
    assert screen(terminal.getvalue()) == [""]


def test_every_task_has_its_history_as_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    progress = Progress(100)
    for value in (0.0, 0.5, 1.0, 1.0, -0.3):
        progress.update(10, "maze", {"maze": value, "pole": 0.1}, force=True)
        progress.update(11, "maze", {"maze": value, "pole": 0.1}, force=True)  # not evaluated since
    assert screen(terminal.getvalue())[1] == "maze ▁▅█▁ -0.30  pole ▂▂▂▂ 0.10"


@pytest.mark.parametrize("how", ["no terminal", "dumb"])
def test_elsewhere_there_are_plain_lines(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Terminal() if how == "dumb" else io.StringIO()
    monkeypatch.setattr(sys, "stderr", plain)
    monkeypatch.setenv("TERM", "dumb" if how == "dumb" else "xterm")
    progress = Progress(100)
    progress.update(50, "maze", {"maze": 0.5}, force=True)
    progress.close()
    assert re.fullmatch(r" 50%  50/100  [\d,]+/s  0:00 left  training maze  \|  maze 0.50\n", plain.getvalue())


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    progress = Progress(100, quiet=True)
    progress.update(50, "maze", {"maze": 0.5}, force=True)
    progress.close()
    assert terminal.getvalue() == ""


def test_what_has_no_room_is_left_out_from_the_end() -> None:
    assert fit(["aa", "bb", "c" * 40], 8) == "aa  bb"
    assert fit(["aa", "c" * 40], 24) == "aa  " + "c" * 19 + "…"


def test_times_and_bars() -> None:
    assert [duration(s) for s in (0, 64.9, 3723, 1e12)] == ["0:00", "1:04", "1:02:03", "?"]
    assert sparkline([-1, 0, 0.5, 1, 2, math.nan]) == "▁▁▅██ "


def test_the_option_plain_makes_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    from lifelong.agent import cli

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setitem(cli.COMMANDS, "run", lambda options: 0)
    assert cli.main(["run", "quickstart"]) == 0 and os.environ["TERM"] == "xterm"
    assert cli.main(["run", "quickstart", "--plain"]) == 0 and os.environ["TERM"] == "dumb"
