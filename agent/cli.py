"""The command `lifelong`. Torch is imported only by commands that train, so help and mistakes answer at once.

Exit codes: 0 done, 2 wrong usage or config, 3 stopped by a signal with a checkpoint saved, 1 anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lifelong
from lifelong.agent import adding, analyse, compare, profile, reproduce, scoring, showing, watching
from lifelong.agent import config as configs
from lifelong.agent.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DiskError,
    EnvError,
    ExportError,
    LedgerError,
    NonFiniteError,
    PartError,
    unknown_name,
)
from lifelong.agent.trust import check_run, trusted

STOPPED = 3


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake with one sentence."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> None:  # type: ignore[override]
        raise ConfigError(f"{message}; see {self.prog} --help")


def parser() -> Parser:
    """All commands and their arguments."""
    top = Parser(
        prog="lifelong",
        description="Agents that never stop learning.",
        epilog=showing.examples(""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"lifelong {lifelong.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    run = commands.add_parser("run", help="train a config from the beginning")
    run.add_argument("config", metavar="CONFIG", help="a bundled name (see `lifelong list config`) or a path")
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder; default runs/<name>/<seed>")
    run.add_argument("--resume", action="store_true", help="go on with the run in the folder if there is one")
    run.add_argument("--submit", metavar="ADDRESS", help="hand the run to the Jobs API of a Ray cluster and follow it")
    run.add_argument("--code", type=Path, metavar="DIR", help="with --submit: your own modules, sent along")

    resume = commands.add_parser("resume", help="go on with a run, bit for bit, or with changes")
    evaluate = commands.add_parser("eval", help="evaluate the newest checkpoint of a run on all tasks")
    for command in (resume, evaluate):
        command.add_argument("folder", metavar="RUN", type=Path, help="run folder, such as runs/quickstart/0")

    resume.add_argument(
        "--add",
        action="append",
        default=[],
        metavar="TASK.yaml",
        help="tasks to train after all others; may be repeated",
    )

    export = commands.add_parser("export", help="write the policy of a run as a file that other programs execute")
    export.add_argument("run", metavar="RUN", type=Path, help="run folder, or a file that OnlineAgent.save wrote")
    export.add_argument("--format", choices=("onnx", "torchscript"), default="onnx", help="default onnx")
    export.add_argument("--task", metavar="NAME", help="that it is to act in, where that makes a difference")
    export.add_argument("--out", type=Path, metavar="FILE", help="default RUN/policy.onnx or RUN/policy.pt")

    report = commands.add_parser("report", help="tables, plots and an HTML page of one or more runs")
    report.add_argument("folders", metavar="RUN", type=Path, nargs="+", help="run folders, or folders of runs")
    report.add_argument("--out", type=Path, metavar="DIR", help="where the page goes; default: the first folder")

    compared = compare.declare(commands)

    sweep = commands.add_parser("sweep", help="tune a run config with Ray Tune; the same command goes on")
    sweep.add_argument("config", metavar="CONFIG", help="a bundled name (see `lifelong list sweep`) or a path")
    sweep.add_argument("--out", type=Path, metavar="DIR", help="folder of the sweep; default sweeps/<name>")

    verify = commands.add_parser("verify", help="check that the ledger of a sweep holds")
    verify.add_argument("folder", metavar="SWEEP", type=Path, help="folder of a sweep, such as sweeps/strategies")

    again, measured, scored = (part.declare(commands) for part in (reproduce, profile, scoring))
    shown, watched = watching.declare(commands)
    inside = analyse.declare(commands)

    bench = commands.add_parser("bench", help="run a benchmark of benchmarks/")
    bench.add_argument("name", metavar="NAME")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the result there")

    show = showing.declare(commands)

    for command in (run, resume, evaluate, export):
        command.add_argument("--trust", action="store_true", help="import code that a run folder names")
    for command in (run, resume):
        command.add_argument(
            "--allow-inexact",
            action="store_true",
            help="go on with other kernels, versions or another device than the run was trained with",
        )
    for command in (run, resume, evaluate, show, sweep, measured, scored):
        command.add_argument("overrides", metavar="a.b=value", nargs="*", help="overrides, values in YAML")
    for command in (run, resume, sweep, compared, again):
        command.add_argument("--quiet", action="store_true", help="no progress")
        command.add_argument("--plain", action="store_true", help="progress as plain lines, on a terminal too")
    for command in (
        run,
        resume,
        evaluate,
        export,
        report,
        sweep,
        compared,
        again,
        measured,
        scored,
        shown,
        watched,
        inside,
    ):
        command.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands.add_parser("doctor", help="check device, compilers and packages, with a fix for each problem")
    for name in showing.EXAMPLES:
        if name:
            commands.choices[name].epilog = showing.examples(name)
            commands.choices[name].formatter_class = argparse.RawDescriptionHelpFormatter
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        os.getcwd()
    except FileNotFoundError:
        print("lifelong: the working folder does not exist any more; change to another one", file=sys.stderr)
        return 2
    with ExitStack() as closing:  # it ends Ray, which takes seconds, after a mistake has been told
        return _main(arguments, closing)


def _main(arguments: Sequence[str] | None, closing: ExitStack) -> int:
    try:
        options, rest = parser().parse_known_args(arguments)
        takes_overrides = hasattr(options, "overrides")
        unknown = [word for word in rest if word.startswith("-") or not takes_overrides]
        if unknown:
            raise ConfigError(
                f"unrecognized arguments: {' '.join(unknown)}; see lifelong {options.command or ''} --help"
            )
        if rest:  # overrides that stand behind an option
            options.overrides += rest
        if options.command is None:
            parser().print_help()
            return 2
        if getattr(options, "plain", False):
            os.environ["TERM"] = "dumb"
        options.closing = closing
        code = int(COMMANDS[options.command](options))
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk is told here
        return code
    except (ConfigError, CheckpointError, EnvError) as error:
        _tell(error, arguments)
        return 2
    except (DiskError, ClusterError, ExportError, LedgerError, NonFiniteError, PartError) as error:
        _tell(error, arguments)
        return 1
    except KeyboardInterrupt:
        print("lifelong: interrupted; the last checkpoint is kept", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `lifelong list | head`
        _silence()
        return 0
    except OSError as error:
        what = error.filename or ("standard output" if _refuses_output() else "")
        _tell(DiskError(f"{error.strerror or error}{what and ': '}{what}"), arguments)
        _silence()
        return 1


def _refuses_output() -> bool:
    """Whether standard output cannot be written: an error there does not say so, and an empty line does no harm."""
    try:
        if sys.stdout is not None:
            print(flush=True)
    except (OSError, ValueError):
        return True
    return False


def _silence() -> None:
    """Nothing more is written to standard output, not by Python at its end either."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(error: Exception, arguments: Sequence[str] | None) -> None:
    if "--traceback" in (sys.argv[1:] if arguments is None else arguments):
        traceback.print_exception(error)
    print(f"lifelong: {error}", file=sys.stderr)


def _run(options: argparse.Namespace) -> int:
    config = configs.choose(options.config, options.overrides)
    if options.submit:
        return _submit(options, config)
    folder: Path = options.out or Path("runs") / config.name / str(config.seed)
    if options.resume and (folder / "config.yaml").is_file():
        return _go_on(folder, options)
    from lifelong.agent.distributed import cluster

    configs.find_own_modules(config)  # before Ray starts, which hands the path to its processes
    connection = options.closing.enter_context(cluster.begun(config))  # while torch is imported
    from lifelong.agent import run

    return _finish(*run.start(config, options.out, quiet=options.quiet, connection=connection))


def _submit(options: argparse.Namespace, config: configs.Config) -> int:
    if options.out is None:
        raise ConfigError("--submit needs --out DIR, on storage that every node of the cluster has")
    if options.code is not None and not options.code.is_dir():
        raise ConfigError(f"--code is {str(options.code)!r}, which is no folder")
    from lifelong.agent.distributed.submit import submit

    flags = [flag for flag in ("--resume", "--allow-inexact", "--quiet") if vars(options)[flag[2:].replace("-", "_")]]
    return submit(config, options.submit, options.out, flags, options.code)


def _resume(options: argparse.Namespace) -> int:
    check_run(options.folder)
    return _go_on(options.folder, options)


def _go_on(folder: Path, options: argparse.Namespace) -> int:
    from lifelong.agent.distributed import cluster

    add = getattr(options, "add", [])
    config = adding.load(folder, options.overrides, add)
    trusted(adding.load(folder), folder, options)  # what is named here is the user's choice
    configs.find_own_modules(config)  # before Ray starts, which hands the path to its processes
    connection = options.closing.enter_context(cluster.begun(config))
    from lifelong.agent import run

    inexact = options.allow_inexact
    resumed = run.resume(
        folder, options.overrides, add=add, inexact=inexact, quiet=options.quiet, connection=connection
    )
    return _finish(*resumed)


def _finish(trainer: object, finished: bool) -> int:
    from lifelong.agent.report import tables
    from lifelong.agent.runtime import session
    from lifelong.agent.runtime.summary import load_summary
    from lifelong.agent.runtime.trainer import Trainer

    assert isinstance(trainer, Trainer)
    folder = trainer.record.folder
    if not finished:
        print(
            f"stopped at step {trainer.step:,}; checkpoint saved; go on with: {_command('lifelong')} resume {folder}",
            file=sys.stderr,
        )
        return STOPPED
    print(session.gradient_report(trainer))
    print(trainer.planned.report())
    tables.console().print(tables.table(load_summary(folder)))
    print(f"watch:  {_command('tensorboard')} --logdir {folder}")
    print(f"report: {_command('lifelong')} report {folder}")
    return 0


def _command(name: str) -> str:
    """How the user can start `name` from here: by its name, or by the path beside this Python."""
    beside = Path(sys.executable).parent / name
    if shutil.which(name) or not beside.exists():
        return name
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)


def _eval(options: argparse.Namespace) -> int:
    check_run(options.folder)
    from lifelong.agent import run
    from lifelong.agent.report import tables
    from lifelong.agent.runtime import session

    trusted(configs.load(str((options.folder / "config.yaml").resolve())), options.folder, options)
    trainer = run.evaluate(options.folder, options.overrides)
    tables.console().print(tables.table(session.summary(trainer, 0.0)))
    return 0


def _export(options: argparse.Namespace) -> int:
    source: Path = options.run
    if source.is_dir():
        check_run(source)
        trusted(configs.load(str((source / "config.yaml").resolve())), source, options)
    from lifelong.agent.export import export

    made = export(source, options.out, format=options.format, task=options.task)
    print(f"policy: {made.path}")
    print(f"largest difference from ours over {made.steps} steps with resets: {made.largest_difference:.1e}")
    return 0


def _report(options: argparse.Namespace) -> int:
    for folder in options.folders:
        if not folder.is_dir():
            raise ConfigError(f"no folder {str(folder)!r}")
    from lifelong.agent.report import page, tables

    path = page.write_report(options.folders, options.out or options.folders[0], tables.console())
    print(f"page: {path}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    for name in ("seeds", "parallel"):
        given = vars(options)[name]
        if given is not None and given < 1:
            raise ConfigError(f"--{name} is {given}; it must be at least 1")
    chosen = compare.rows(options.overrides, options.row, options.controls)
    out: Path = options.out or Path("compare") / Path(options.config).stem
    runs = compare.plan(options.config, chosen, range(options.seeds), out.absolute())
    single = compare.alone(options.config, options.overrides) if options.alone else []
    references = compare.plan(options.config, single, range(options.seeds), out.absolute() / "alone")
    from lifelong.agent.files import write, write_json
    from lifelong.agent.report import comparison, tables
    from lifelong.agent.runtime.session import stop_signals

    def tell(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr)

    with stop_signals() as stop:
        if not compare.train(options.config, [*runs, *references], options.parallel or os.cpu_count() or 1, tell, stop):
            print("stopped; what was trained is saved; the same command goes on", file=sys.stderr)
            return STOPPED
    rows = comparison.Comparison(options.config, runs, references)
    tables.console().print(rows.table())
    if options.csv:
        write(options.csv, rows.csv())
    if options.json:
        write_json(options.json, rows.json())
    if options.markdown:
        write(options.markdown, rows.markdown())
    if options.latex:
        write(options.latex, rows.latex())
    print(f"page: {rows.write(out)}\nas comparison.csv, .json, .md and .tex beside it; runs: {out}")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from lifelong.agent.sweep.plan import load

    plan = load(options.config, options.overrides)
    folder: Path = options.out or Path("sweeps") / plan.sweep.name
    from lifelong.agent.report.tables import console
    from lifelong.agent.sweep.report import evaluation_cells, tuning_cells
    from lifelong.agent.sweep.trials import sweep

    results = sweep(plan, folder, quiet=options.quiet)
    if results is None:
        words = ["sweep", options.config, *options.overrides, "--out", str(folder)]
        print(
            f"stopped; what is finished is kept; go on with: {_command('lifelong')} {shlex.join(words)}",
            file=sys.stderr,
        )
        return STOPPED
    out = console()
    out.print(tuning_cells(results.tuning).rich())
    if results.evaluation:
        out.print()
        out.print(evaluation_cells(results).rich())
    print("\n".join(results.verdict))
    print(f"watch:  {_command('tensorboard')} --logdir {folder}")
    print(f"report: {folder / 'report.html'}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from lifelong.agent.sweep.ledger import verify
    from lifelong.agent.sweep.report import verdict

    print("\n".join(verdict(options.folder, verify(options.folder))))
    return 0


def _bench(options: argparse.Namespace) -> int:
    import runpy

    folder = Path(__file__).resolve().parent.parent / "benchmarks"
    known = sorted(path.stem for path in folder.glob("*.py") if path.stem != "measure")  # a library
    if not known:
        raise ConfigError(
            "benchmarks come with the source tree, and this is an installed package; clone the repository"
        )
    if options.name not in known:
        raise ConfigError(unknown_name("benchmark", options.name, known))
    script = str(folder / f"{options.name}.py")
    sys.argv = [script] + (["--json", str(options.json)] if options.json else [])
    runpy.run_path(script, run_name="__main__")
    return 0


def _completion(options: argparse.Namespace) -> int:
    (commands,) = (action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    print(showing.completion(options.shell, commands), end="")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from lifelong.agent.runtime.doctor import examine

    return examine()


COMMANDS = {
    "run": _run,
    "resume": _resume,
    "eval": _eval,
    "export": _export,
    "report": _report,
    "compare": _compare,
    "sweep": _sweep,
    "verify": _verify,
    "reproduce": reproduce.command,
    "bench": _bench,
    "profile": profile.command,
    "analyse": analyse.command,
    "show-env": watching.show_env,
    "watch": watching.watch,
    "score": scoring.command,
    "list": showing.command_list,
    "show": showing.command_show,
    "schema": showing.command_schema,
    "completion": _completion,
    "doctor": _doctor,
}


def entry() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # tables have signs that an ASCII locale has not
    sys.exit(main())


if __name__ == "__main__":
    entry()
