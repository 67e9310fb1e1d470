"""What a person who contributes meets: hosted CI, pre-commit, issue templates, targets that explain themselves."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.check_install import PYTHONS

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()


def targets() -> set[str]:
    return set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())  # type: ignore[index]


def test_hosted_ci_runs_lint_and_tests_on_every_supported_python() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == [*PYTHONS]
    asked = [step["run"].split() for job in jobs.values() for step in job["steps"] if "run" in step]
    assert {"lint", "test", "docs"} == {word for words in asked for word in words[1:] if "=" not in word} <= targets()


def test_pre_commit_looks_at_the_folders_that_lint_looks_at() -> None:
    (folders,) = set(re.findall(r"ruff (?:check|format --check) (.*)", MAKEFILE))
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repo["hooks"]:
        for folder in folders.split():
            assert re.match(hook["files"], folder if folder.endswith(".py") else f"{folder}/x.py"), (hook["id"], folder)
        assert not re.match(hook["files"], "docs/examples/x.py") and not re.match(hook["files"], "README.md")


def test_issue_templates_ask_for_what_the_command_line_gives() -> None:
    paths = (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")
    forms: list[dict[str, Any]] = [yaml.safe_load(path.read_text()) for path in paths if path.stem != "config"]
    assert len(forms) == 3
    for form in forms:
        assert form["name"] and form["description"]
        ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert len(set(ids)) == len(ids) and any(field.get("validations") for field in form["body"])


def test_every_target_explains_itself() -> None:
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    explained = dict(re.findall(r"^make ([\w-]+) +(\S.*)$", told, re.MULTILINE))
    assert set(explained) == targets()
