"""`lifelong list`, `lifelong show`, `lifelong schema` and `lifelong completion`: what there is to name."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lifelong.agent import config as configs
from lifelong.agent.difference import from_defaults, text
from lifelong.agent.errors import ConfigError, unknown_name
from lifelong.agent.registry import REGISTRY

#: kinds that are files: where they lie
_FILES = {"config": configs.CONFIG_FOLDER, "sweep": configs.SWEEP_FOLDER}
SHELLS = ("bash", "zsh", "fish")


#: of the whole, and of every command
EXAMPLES = {
    "": """
lifelong run quickstart                        the main job; ends with a table
lifelong run quickstart strategy=finetune      the same stream without protection
lifelong resume runs/quickstart/0              go on after ctrl-C or a crash
lifelong report runs/quickstart                tables, plots and an HTML page
lifelong compare quickstart strategy=clear,ewc --seeds 3
tensorboard --logdir runs                      watch
""",
    "run": """
lifelong run quickstart
lifelong run my.yaml optimizer.lr=1e-3 'strategy=[gpm, explore]' --out runs/here
""",
    "resume": """
lifelong resume runs/quickstart/0
lifelong resume runs/quickstart/0 strategy=ewc optimizer.lr=1e-4
lifelong resume runs/quickstart/0 --add task.yaml
""",
    "eval": "\nlifelong eval runs/quickstart/0 evaluation.episodes=100\n",
    "export": "\nlifelong export runs/quickstart/0 --task maze --format onnx\n",
    "report": "\nlifelong report runs/quickstart\nlifelong report runs/a runs/b --out page\n",
    "compare": """
lifelong compare quickstart strategy=clear,ewc,finetune --seeds 5
lifelong compare quickstart strategy=clear,ewc optimizer.lr=1e-3,1e-2   all four
lifelong compare quickstart strategy=ewc --controls --alone
""",
    "analyse": "\nlifelong analyse runs/quickstart/0\nlifelong analyse runs/quickstart/0 --fixed-points 32\n",
    "sweep": "\nlifelong sweep strategies\n",
    "watch": "\nlifelong watch runs/quickstart/0 --task maze --video maze.gif\n",
    "show-env": "\nlifelong show-env RoomsKeyDoor rooms=4 --out rooms.gif\nlifelong show-env CartPole TMaze\n",
    "list": "\nlifelong list strategy\nlifelong list strategy ewc\n",
    "show": "\nlifelong show quickstart --diff\nlifelong show quickstart strategy=ewc\n",
    "completion": '\neval "$(lifelong completion bash)"\n',
}


def examples(command: str) -> str:
    """What stands below the help of a command."""
    return "examples:" + EXAMPLES[command].replace("\n", "\n  ").rstrip() + "\n"


def declare(commands: Any) -> Any:
    """Add the commands to those of the command line; returns the one that takes overrides."""
    listing = commands.add_parser("list", help="the parts that a config can name, each in a line")
    listing.add_argument("kind", metavar="KIND", nargs="?", help="config, sweep, " + ", ".join(REGISTRY))
    listing.add_argument("name", metavar="NAME", nargs="?", help="all that is said of one part, with its options")

    show = commands.add_parser("show", help="the resolved config: includes, defaults and overrides")
    show.add_argument("config", metavar="CONFIG", help="a bundled name (see `lifelong list config`) or a path")
    show.add_argument("--diff", action="store_true", help="what is not the default, beside the default")

    commands.add_parser("schema", help="the JSON schema of configs, for editors")
    completion = commands.add_parser("completion", help="a script that lets a shell complete commands and names")
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    return show


def kinds() -> dict[str, dict[str, str]]:
    """kind -> name -> where it is."""
    files = {kind: {n: str(path) for n, path in configs.bundled(folder).items()} for kind, folder in _FILES.items()}
    return {**files, **REGISTRY}


def command_list(options: argparse.Namespace) -> int:
    """Kinds with their names; of one kind every part with a sentence; of one part everything."""
    known = kinds()
    if options.kind is not None and options.kind not in known:
        raise ConfigError(unknown_name("kind", options.kind, known))
    if options.name is not None:
        print("\n".join(about(options.kind, options.name, known[options.kind])))
        return 0
    width = min(shutil.get_terminal_size().columns, 120) if sys.stdout.isatty() else 120
    if options.kind is None:
        for kind, names in known.items():
            print(kind)
            print(textwrap.fill(", ".join(names), width, initial_indent="  ", subsequent_indent="  "))
        print("\n`lifelong list KIND` says what each is, `lifelong list KIND NAME` everything about one.")
        return 0
    print(options.kind)
    room = max(18, *map(len, known[options.kind]))
    for name, target in known[options.kind].items():
        line = f"  {name:<{room}} {sentence(target, name)}"
        print(line if len(line) <= width else line[: width - 1] + "…")
    return 0


def sentence(target: str, name: str = "") -> str:
    """What a part or a config is, in its first sentence: of a part that has a file of its own, that of the file.

    Nothing is imported.
    """
    paragraph = " ".join(_told(target, name).strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.])(?<!et al\.)\s(?=[A-Z`])", paragraph, maxsplit=1)[0].rstrip(".:")


def _told(target: str, name: str = "") -> str:
    """The docstring of `module:Class`, or of the module `name`; or the comment that a config begins with."""
    if target.endswith(".yaml"):
        lines = Path(target).read_text().splitlines()
        comment = [line[1:].strip() for line in lines if line.startswith("#")]
        return "\n".join(line for line in comment if not line.startswith("lifelong "))
    module, _, cls = target.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    tree = ast.parse(Path(spec.origin).read_text())
    if name and module.endswith(f".{name}"):
        return ast.get_docstring(tree) or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == cls:
            return ast.get_docstring(node) or ""
    return ast.get_docstring(tree) or ""


def about(kind: str, name: str, names: Mapping[str, str]) -> Iterator[str]:
    """Everything about one part: its docstring, what it needs, its options with their defaults."""
    if name not in names:
        raise ConfigError(unknown_name(kind, name, names))
    yield f"{kind} {name}  ({names[name]})"
    yield ""
    told = [_told(names[name], name), _told(names[name])]
    yield "\n\n".join(dict.fromkeys(told))
    if kind in _FILES:
        return
    from lifelong.agent import registry, schema  # torch: options are in signatures

    if kind == "strategy":
        part = registry.load(kind, name)
        needs = [
            (part.needs_boundaries, "boundaries (stream.boundaries=given or detected)"),
            (part.needs_task_id, "the task id (stream.task_id=observed)"),
            (part.needs_off_policy, "an off-policy objective"),
        ]
        wanted = [what for needed, what in needs if needed]
        yield f"\nneeds: {'; '.join(wanted) or 'nothing'}"
    found = schema.options(kind, name)
    if found:
        yield "\noptions"
        width = max(map(len, found))
        for option, (default, _) in found.items():
            yield f"  {option:<{width}}  {'(must be given)' if isinstance(default, type) else text(default)}"


def command_show(options: argparse.Namespace) -> int:
    """The config, whole or what is not the default."""
    config = configs.choose(options.config, options.overrides)
    from lifelong.agent import schema  # torch: options of parts are in their signatures

    if not options.diff:
        print(configs.to_yaml(schema.with_defaults(config)), end="")
        return 0
    configs.find_own_modules(config)

    def defaults(kind: str, name: str) -> dict[str, Any]:
        return {option: default for option, (default, _) in schema.options(kind, name).items()}

    rows = [(key, text(value), usual) for key, value, usual in from_defaults(configs.to_dict(config), defaults)]
    width, room = max(len(key) for key, _, _ in rows), max(len(value) for _, value, _ in rows)
    for key, value, usual in rows:
        default = "" if usual in (None, "", []) else f"default {text(usual)}"
        print(f"{key:<{width}}  {value:<{min(room, 32)}}  {default}".rstrip())
    return 0


def command_schema(options: argparse.Namespace) -> int:
    """The JSON schema."""
    import json

    from lifelong.agent.schema import schema

    print(json.dumps(schema(), indent=2))
    return 0


# ---- completion ------------------------------------------------------------------------------------------------------

_BASH = """# lifelong: completion for bash; put this into ~/.bashrc:  eval "$(lifelong completion bash)"
_lifelong() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [ -n "$COMPREPLY" ] || COMPREPLY=($(compgen -f -- "$word"))
}}
complete -F _lifelong lifelong
"""
_ZSH = """# lifelong: completion for zsh; put this into ~/.zshrc:  eval "$(lifelong completion zsh)"
autoload -U +X compinit && compinit
autoload -U +X bashcompinit && bashcompinit
"""


def completion(shell: str, commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """The script for a shell: commands, their options, names of configs, kinds and strategies."""
    words = {name: list(_words(name, parser)) for name, parser in commands.items()}
    if shell == "fish":
        head = "# lifelong: completion for fish:  lifelong completion fish > ~/.config/fish/completions/lifelong.fish"
        lines = [head, f"complete -c lifelong -n __fish_use_subcommand -f -a '{' '.join(words)}'"]
        lines += [
            f"complete -c lifelong -n '__fish_seen_subcommand_from {name}' -a '{' '.join(found)}'"
            for name, found in words.items()
            if found
        ]
        return "\n".join(lines) + "\n"
    cases = "\n".join(f'      {name}) words="{" ".join(found)}" ;;' for name, found in words.items())
    script = _BASH.format(commands=" ".join(words), cases=cases)
    return script if shell == "bash" else _ZSH + script.partition("\n")[2]


def _words(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from (option for action in parser._actions for option in action.option_strings if option != "-h")
    takes = {action.metavar for action in parser._actions}
    if "CONFIG" in takes:
        yield from configs.bundled(_FILES["sweep" if name == "sweep" else "config"])
    if "a.b=value" in takes or "a.b=x,y" in takes:
        yield from (f"strategy={kind}" for kind in REGISTRY["strategy"])
    if name == "list":
        yield from kinds()
    if name == "completion":
        yield from SHELLS
