"""What there is to name: lists, differences, completion, examples."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest
import yaml

from lifelong.agent import cli, showing
from lifelong.agent import config as configs
from lifelong.agent.difference import between, from_defaults, words
from lifelong.agent.registry import REGISTRY


@pytest.mark.parametrize("kind", showing.kinds())
def test_every_part_has_a_sentence(kind: str) -> None:
    for name, target in showing.kinds()[kind].items():
        said = showing.sentence(target, name)
        assert len(said) > 8 and "\n" not in said, f"{kind} {name}: {said!r}"


def test_a_list_has_every_name_in_a_line_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "strategy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(REGISTRY["strategy"])
    assert max(map(len, lines)) <= 120 and "elastic weight consolidation" in "\n".join(lines)


def test_a_part_is_shown_with_what_it_needs_and_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "strategy", "packnet"]) == 0
    told = capsys.readouterr().out
    assert "needs: boundaries" in told and re.search(r"^  prune_after +\S", told, re.MULTILINE)
    assert cli.main(["list", "strategy", "packnett"]) == 2
    assert "did you mean 'packnet'" in capsys.readouterr().err


def test_the_difference_to_the_defaults_is_what_the_file_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "quickstart", "--diff", "max_grad_norm=1.0", "seed=4"]) == 0
    lines = dict(re.split(r" {2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["optimizer.lr"].split() == ["0.002", "default", "0.001"]
    assert "max_grad_norm" not in lines and "rollout.copies" not in lines  # they say what is the default
    given = yaml.safe_load(configs.bundled(configs.CONFIG_FOLDER)["quickstart"].read_text())
    assert lines["policy.cell.size"].split()[0] == str(given["policy"]["cell"]["size"])


def test_two_configs_differ_in_what_was_overridden() -> None:
    one, other = (configs.to_dict(configs.load("quickstart", [f"strategy={s}", *more])) for s, more in _VARIANTS)
    assert [key for key, _, _ in between(one, other)][:2] == ["optimizer.lr", "strategy"]
    assert words(between(one, other)) == (
        "optimizer.lr 0.1 instead of 0.002, strategy ewc instead of clear, strategy.ewc.strength 1"
    )
    assert not between(one, {**one, "seed": 9})
    assert not from_defaults(configs.to_dict(configs.Config()))


_VARIANTS = [("ewc", ["optimizer.lr=0.1"]), ("clear", [])]


@pytest.mark.parametrize("shell", showing.SHELLS)
def test_completion_knows_commands_options_and_names(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("compare", "--seeds", "quickstart", "strategy=ewc", "detector"):
        assert word in script


def test_bash_completes(capsys: pytest.CaptureFixture[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for typed, expected in [
        ("lifelong ru", ["run"]),
        ("lifelong compare --se", ["--seeds"]),
        ("lifelong run quick", ["quickstart"]),
        ("lifelong list det", ["detector"]),
    ]:
        typing = f"COMP_WORDS=({typed}); COMP_CWORD={len(typed.split()) - 1}; _lifelong; echo ${{COMPREPLY[@]}}"
        answer = subprocess.run([bash, "-c", f"{script}\n{typing}"], capture_output=True, text=True, check=True)
        assert answer.stdout.split() == expected


@pytest.mark.parametrize("command", showing.EXAMPLES)
def test_examples_of_the_help_are_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parser().parse_args([*([command] if command else []), "--help"])
    told = capsys.readouterr().out
    lines = [line.strip().split("   ")[0] for line in told[told.index("examples:") :].splitlines()[1:]]
    known = [line for line in lines if line.startswith("lifelong ")]
    assert known or command == "completion"
    for line in known:
        _, rest = cli.parser().parse_known_args(shlex.split(line)[1:])
        assert not [word for word in rest if word.startswith("-")], line
