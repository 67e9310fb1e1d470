"""Configs: YAML in, checked dataclasses out; includes and overrides on the way."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lifelong.agent import config as configs
from lifelong.agent import registry
from lifelong.agent.errors import ConfigError

MINIMAL = "stream:\n  tasks:\n    - env: TMaze\n"


@pytest.mark.parametrize("name", sorted(configs.bundled()))
def test_every_bundled_config_loads_and_survives_a_round_trip(name: str) -> None:
    config = configs.load(name)
    assert config.name == name
    assert configs.to_dict(configs.check(yaml.safe_load(configs.to_yaml(config)))) == configs.to_dict(config)


def test_includes_are_merged_in_order_and_the_file_itself_wins(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MINIMAL + "seed: 1\npolicy: {cell: {kind: elstm, size: 8, forget_bias: [0, 1]}}\n")
    (tmp_path / "b.yaml").write_text("seed: 2\nrollout: {copies: 5}\n")
    (tmp_path / "c.yaml").write_text("include: [a.yaml, b.yaml]\nrollout: {steps: 3}\npolicy: {cell: {size: 9}}\n")
    config = configs.load(str(tmp_path / "c.yaml"))
    assert (config.seed, config.rollout.copies, config.rollout.steps) == (2, 5, 3)
    assert config.policy.cell == {"kind": "elstm", "size": 9, "forget_bias": [0, 1]}


def test_a_part_of_another_kind_does_not_inherit_options(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MINIMAL + "policy: {cell: {kind: elstm, forget_bias: [0, 1]}}\n")
    (tmp_path / "b.yaml").write_text("include: a.yaml\npolicy: {cell: {kind: gru, size: 7}}\n")
    assert configs.load(str(tmp_path / "b.yaml")).policy.cell == {"kind": "gru", "size": 7}
    assert configs.load(str(tmp_path / "a.yaml"), ["policy.cell=lstm"]).policy.cell == {"kind": "lstm"}


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["strategy=ewc"], [{"kind": "ewc", "strength": 5}]),
        (["strategy=[ewc, clear]"], [{"kind": "ewc", "strength": 5}, {"kind": "clear"}]),
        (["strategy=ewc", "strategy.0.strength=7"], [{"kind": "ewc", "strength": 7}]),
        (["strategy={kind: gpm, threshold: 0.5}"], [{"kind": "gpm", "threshold": 0.5}]),
    ],
)
def test_a_strategy_is_swapped_in_one_word_and_takes_the_options_kept_for_it(
    tmp_path: Path, assignments: list[str], expected: list[dict[str, object]]
) -> None:
    (tmp_path / "a.yaml").write_text(MINIMAL + "strategy_options: {ewc: {strength: 5}}\n")
    assert configs.load(str(tmp_path / "a.yaml"), assignments).strategy == expected


@pytest.mark.parametrize("text", ["2e-3", "2.0e-3", "0.002"])
def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(MINIMAL + f"optimizer: {{kind: adam, lr: {text}}}\n")
    assert configs.load(str(tmp_path / "a.yaml")).optimizer["lr"] == 0.002
    assert configs.load(str(tmp_path / "a.yaml"), [f"max_grad_norm={text}"]).max_grad_norm == 0.002


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: !!python/object/apply:os.getpid []\n")
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        configs.load(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("kind", sorted(registry.REGISTRY))
def test_every_registered_part_can_be_loaded(kind: str) -> None:
    for name in registry.REGISTRY[kind]:
        assert isinstance(registry.load(kind, name), type)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "quikstart"], ["run", "quickstart", "strategy=gmp"]])
def test_help_and_mistyped_names_answer_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from lifelong.agent import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'gymnasium' not in sys.modules"
    )
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - begun < 30  # hangs are failures; seconds are not measured here


@pytest.mark.parametrize("before", ["ewc", ["ewc"], ["gpm", "ewc"], {"kind": "clear"}])
def test_a_part_as_a_mapping_takes_the_place_of_a_list_of_parts(before: object) -> None:
    raw = configs.override({"strategy": before}, ["strategy={kind: ewc, strength: 5}"])
    strategy = configs.check({"stream": {"tasks": [{"env": "TMaze"}]}, **raw}).strategy
    assert strategy == [{"kind": "ewc", "strength": 5}]
