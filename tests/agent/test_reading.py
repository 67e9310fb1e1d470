"""Reading configs that somebody wrote to hurt, or by mistake: one short sentence, at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lifelong.agent import config as configs
from lifelong.agent.errors import ConfigError
from lifelong.agent.reading import LARGEST_CONFIG, MOST_FILES, parse_yaml, put, read

HOSTILE = {
    "repeated key": ("a: 1\na: 2\n", ["line 2", "'a'", "twice"]),
    "repeated key deep inside": ("a: {b: [{c: 1, c: 2}]}\n", ["'c'", "twice"]),
    "alias": ("a: &x [1]\nb: *x\n", ["aliases"]),
    "bomb of aliases": ("a: &a [1]\n" + "".join(f"k{i}: &b{i} [*a, *a, *a]\n" for i in range(30)), ["aliases"]),
    "merge key": ("<<: {seed: 1}\n", ["merge"]),
    "number as key": ("1: 2\n", ["key 1"]),
    "null as key": ("~: 2\n", ["None"]),
    "list as key": ("[a]: 2\n", ["['a']"]),
    "mapping as key": ("? {a: b}\n: 2\n", ["{'a': 'b'}"]),
    "tag of Python": ("a: !!python/object/apply:os.system [id]\n", ["tag"]),
    "own tag": ("a: !b c\n", ["tag"]),
    "no bool": ("a: !!bool x\n", ["'x'", "bool"]),
    "no timestamp": ("a: !!timestamp x\n", ["'x'", "timestamp"]),
    "no date": ("a: 2001-13-45\n", ["2001-13-45"]),
    "empty int": ('a: !!int ""\n', ["int"]),
    "empty float": ('a: !!float ""\n', ["float"]),
    "5000 digits": (f"a: {'9' * 5000}\n", ["999", "int"]),
    "5000 hexadecimal digits": (f"a: 0x{'f' * 5000}\n", ["0xfff", "int"]),
    "deep list": ("a: " + "[" * 100_000, ["nested"]),
    "deep mapping": ("a: " + "{a: " * 5_000, ["nested"]),
    "deep blocks": ("- " * 5_000 + "a\n", ["nested"]),
    "escape sequence": ("a: '\x1b[31m'\n", ["character"]),
    "NUL": ("a: 1\x00\n", ["character"]),
    "two documents": ("a: 1\n---\na: 2\n", ["document"]),
    "tab": ("\ta: 1\n", ["line 1"]),
    "YAML of the future": ("%YAML 9.9\n---\na: 1\n", ["YAML"]),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_refused_in_one_short_sentence_at_once(case: str) -> None:
    text, words = HOSTILE[case]
    began = time.perf_counter()
    with pytest.raises(ConfigError) as refused:
        parse_yaml(text, "x.yaml")
    assert time.perf_counter() - began < 5.0
    assert_short(refused.value, ["x.yaml", *words])


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-3", 0.002), ("1e4", 10_000), ("-2E+3", -2000), ("1.5e3", 1500.0), ("10.0", 10.0), (".inf", float("inf"))],
)
def test_a_whole_number_with_an_exponent_and_no_point_is_an_integer(text: str, value: float) -> None:
    read_value = parse_yaml(text, "x")
    assert read_value == value and type(read_value) is type(value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("seed: 1\n".encode("utf-16"), ["UTF-8"]),
        (b"name: \xe9\n", ["UTF-8", "byte 6"]),
        (b"[1, 2]\n", ["mapping", "list"]),
        (b"a word\n", ["mapping", "str"]),
        (b"include: 3\n", ["include", "3"]),
        (b"include: [[a]]\n", ["include"]),
        (b"include: nothing.yaml\n", ["nothing.yaml"]),
        (b"include: [" + b"x" * 5000 + b"]\n", ["xxx"]),
        (b"# " + b"x" * LARGEST_CONFIG, ["bytes"]),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        read(str(tmp_path / "x.yaml"))
    assert_short(refused.value, words)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes("seed: 1\n".encode("utf-8-sig"))
    assert read(str(tmp_path / "x.yaml"))["seed"] == 1


@pytest.mark.parametrize("name", [".", "x" * 5000, "x" * 300 + ".yaml", "a\0b", "a\nb", "", "/dev/zero", "x\x1b[31m"])
def test_a_name_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(name, tmp_path)
    assert_short(refused.value, [])


def test_includes_that_multiply_are_refused_at_once(tmp_path: Path) -> None:
    for depth in range(30):
        (tmp_path / f"{depth}.yaml").write_text(f"include: [{depth + 1}.yaml, {depth + 1}.yaml]\n")
    (tmp_path / "30.yaml").write_text("seed: 1\n")
    began = time.perf_counter()
    with pytest.raises(ConfigError) as refused:
        read(str(tmp_path / "0.yaml"))  # 2^30 files if each is read
    assert time.perf_counter() - began < 5.0
    assert_short(refused.value, [str(MOST_FILES)])


def test_files_that_are_small_alone_but_large_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("# " + "x" * (LARGEST_CONFIG // 3) + "\nseed: 1\n")
    (tmp_path / "x.yaml").write_text("include: [part.yaml, part.yaml]\n")
    assert read(str(tmp_path / "x.yaml"))["seed"] == 1
    (tmp_path / "x.yaml").write_text("include: [part.yaml, part.yaml, part.yaml]\n")
    with pytest.raises(ConfigError, match="bytes"):
        read(str(tmp_path / "x.yaml"))


def test_a_config_may_be_included_twice_but_not_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 1\n")
    (tmp_path / "a.yaml").write_text("include: base.yaml\n")
    (tmp_path / "b.yaml").write_text("include: [a.yaml, base.yaml]\n")
    assert read(str(tmp_path / "b.yaml"))["seed"] == 1
    (tmp_path / "base.yaml").write_text("include: b.yaml\n")
    with pytest.raises(ConfigError, match=r"circle: b.yaml -> a.yaml -> base.yaml -> b.yaml"):
        read(str(tmp_path / "b.yaml"))


@pytest.mark.parametrize(
    "key", [".".join("a" * 3000), "tasks.²", "tasks.-1", "tasks." + "9" * 5000, "tasks.7", "tasks.٣"]
)
def test_a_dotted_key_that_leads_nowhere_is_refused(key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        put({"tasks": [{"name": "a"}]}, key, 1)
    assert_short(refused.value, ["override"])


def test_folders_of_modules_belong_to_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "base.yaml").write_text("modules: [code, /absolute]\n")
    (tmp_path / "x.yaml").write_text("include: inner/base.yaml\n")
    assert read(str(tmp_path / "x.yaml"))["modules"] == [str(tmp_path / "inner" / "code"), "/absolute"]


@pytest.mark.parametrize("name", sorted(configs.bundled()))
def test_bundled_configs_look_for_no_modules(name: str) -> None:
    assert configs.load(name).modules == []


def assert_short(error: ConfigError, words: list[str]) -> None:
    text = str(error)
    assert len(text) <= 300 - len("lifelong: ") and text.isprintable(), text
    assert all(word in text for word in words), text
