"""`lifelong sweep`: trials of a run config on Ray Tune; where a protocol asks for it, the choice frozen and evaluated.

Everything that a sweep needs to go on is in its folder: the run folders with their checkpoints, and the ledger. Ray
Tune schedules and searches; its own state is not read again. Ray is imported only inside functions.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from lifelong.agent import config as configs
from lifelong.agent import run
from lifelong.agent.distributed.cluster import connect, ray_module
from lifelong.agent.errors import ClusterError, ConfigError, optional
from lifelong.agent.files import make_folder
from lifelong.agent.files import write as write_file
from lifelong.agent.reading import read_file
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.build import build, build_stream
from lifelong.agent.runtime.metrics import Evaluations
from lifelong.agent.runtime.progress import Progress
from lifelong.agent.runtime.session import stop_signals
from lifelong.agent.sweep.ledger import Ledger, Standing, best, trained_tasks, verify
from lifelong.agent.sweep.plan import EVALUATION, TUNING, Plan, Range, Trial, data_of, digest
from lifelong.agent.sweep.report import Results, write

STEPS, METRIC = "env_steps", "metric"  # what a trial reports to Tune


def sweep(plan: Plan, folder: Path, *, quiet: bool = False) -> Results | None:
    """Run the sweep in `folder`, or what is missing of it.

    Returns:
        The results; None if a signal stopped it (everything that is finished is kept).

    Raises:
        ConfigError: a package that is not installed, a run that cannot be built, or a folder that holds another sweep.
        ClusterError: Ray cannot be reached or has no room for a trial, or runs failed.
        LedgerError, DiskError: the ledger does not hold, or cannot be written.
    """
    ray_module()
    optional("ray.tune", "a sweep", "ray", ConfigError)
    if plan.sweep.search.kind == "optuna":
        optional("optuna", "search.kind=optuna", "optuna", ConfigError)
    examine(plan)
    _claim(plan, folder)
    with closing(Ledger(folder)) as ledger:
        if ledger.entries:
            verify(folder)  # before hours are spent on it
        else:
            ledger.begin(plan.to_dict(), plan.sweep.protocol.kind, plan.mode)
        try:
            if not complete(plan, ledger):
                # in this order: Ray's start installs a handler of SIGTERM that would abort
                with connect(plan.sweep.resources.address) as ray, stop_signals() as stop:
                    preflight(ray, plan)
                    _run_phases(Session(plan, ledger, stop, quiet))
        except KeyboardInterrupt:
            return None
        return write(plan, ledger)


def examine(plan: Plan) -> None:
    """Build every run that is known now, and refuse phases that share data: hours later would be too late.

    Raises:
        ConfigError: one sentence about the first mistake.
    """
    for group in plan.groups:
        trials = [plan.trial(TUNING, group, c, plan.sweep.seeds[0]) for c in plan.candidates(group)]
        trials = trials or [plan.trial(TUNING, group, plan.sample(group, 0), plan.sweep.seeds[0])]
        if plan.two_phases:
            trials.append(plan.trial(EVALUATION, group, plan.sample(group, 0), plan.sweep.protocol.seeds[0]))
        for trial in trials:
            try:
                build(trial.config, Path()).close()
            except ConfigError as error:
                raise ConfigError(f"run {trial.name} of the sweep: {error}") from error
        length, grace = build_stream(trials[0].config).total_steps, plan.sweep.search.grace_steps
        if plan.sweep.search.kind == "asha" and grace >= length:
            raise ConfigError(
                f"search.grace_steps is {grace}, but a trial has only {length} steps; asha could never stop one"
            )
        if plan.sweep.protocol.kind == "two_phase":
            common = set().union(*(data_of(t.config) for t in trials[:-1])) & data_of(trials[-1].config)
            if common:
                raise ConfigError(
                    f"protocol.evaluate_on leaves the task {min(common)} in the stream, which the tuning sees too; "
                    "change its environment or a parameter of it"
                )


def _claim(plan: Plan, folder: Path) -> None:
    """Write sweep.yaml, or check that the sweep in the folder is this one."""
    path, text = folder / "sweep.yaml", yaml.safe_dump(plan.to_dict(), sort_keys=False, width=110)
    if path.is_file():
        if digest(read_file(path)) != digest(plan.to_dict()):
            raise ConfigError(f"{folder} holds a sweep with another config (see its sweep.yaml); use another --out")
        return
    make_folder(folder)
    write_file(path, text)


@dataclass
class Session:
    """What the steps of a running sweep share.

    Args:
        stop: whether a signal asked to stop.
    """

    plan: Plan
    ledger: Ledger
    stop: Callable[[], bool]
    quiet: bool


# ---- the two phases --------------------------------------------------------------------------------------------------


def missing(ledger: Ledger, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that have not come to an end; failed ones are tried again."""
    return [t for t in trials if ledger.status(t.phase, t.name) not in ("finished", "stopped")]


def complete(plan: Plan, ledger: Ledger) -> bool:
    """Whether there is nothing left to run."""
    if plan.two_phases:
        return bool(ledger.find("freeze")) and not missing(ledger, frozen_trials(plan, ledger))
    if plan.sweep.search.kind == "optuna":
        return all(_proposals_left(plan, ledger, group) == 0 for group in plan.groups)
    return not missing(ledger, [trial for group in plan.groups for trial in plan.trials(group)])


def _proposals_left(plan: Plan, ledger: Ledger, group: str) -> int:
    """How many candidates Optuna still has to propose for a group; without a space there is one."""
    runs = [e["run"] for e in ledger.find("start", TUNING) if e["group"] == group]
    finished = sum(ledger.status(TUNING, run) == "finished" for run in runs)
    wanted = plan.sweep.search.trials if plan.spaces[group] else 1
    return max(0, wanted - finished // len(plan.sweep.seeds))


def _run_phases(session: Session) -> None:
    plan, ledger = session.plan, session.ledger
    if not ledger.find("freeze"):
        tune(session)
        ranking = ledger.rank(TUNING, plan.measure, plan.mode)
        for group in plan.groups:
            if best(ranking, group) is None:
                raise ClusterError(f"no run of group {group} finished: {_reasons(ledger, TUNING)}")
        if plan.two_phases:
            freeze(plan, ledger, ranking)
    if plan.two_phases:
        trials = missing(ledger, frozen_trials(plan, ledger))
        if trials:
            fit(session, EVALUATION, trials)
        if missing(ledger, frozen_trials(plan, ledger)):
            reasons = _reasons(ledger, EVALUATION)
            raise ClusterError(f"runs of phase two failed ({reasons}); the same command tries them again")


def preflight(ray: Any, plan: Plan) -> None:
    """Refuse a trial that will never find room, instead of waiting for it.

    Raises:
        ClusterError: no node has what a trial asks for.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for key, kind, asked in (
        ("cpus", "CPU", plan.sweep.resources.cpus),
        ("gpus", "GPU", plan.sweep.resources.gpus),
    ):
        most = max((node.get(kind, 0.0) for node in nodes), default=0.0)
        if asked > most:
            raise ClusterError(f"resources.{key} is {asked:g}, but no node of the cluster has more than {most:g}")


def tune(session: Session) -> None:
    """Phase one. Searches that learn from results, or stop bad trials, do so within a group."""
    plan, ledger = session.plan, session.ledger
    kind = plan.sweep.search.kind
    if kind in ("grid", "random"):
        trials = missing(ledger, [trial for group in plan.groups for trial in plan.trials(group)])
        if trials:
            fit(session, TUNING, trials)
        return
    for group in plan.groups:
        if kind == "optuna" and plan.spaces[group]:
            fit_optuna(session, group)
        elif missing(ledger, plan.trials(group)):  # all of them: the scheduler has to know what the others reached
            fit(session, TUNING, plan.trials(group))


def freeze(plan: Plan, ledger: Ledger, ranking: Sequence[Standing]) -> None:
    """Choose the best candidate of every group for good, and say what will be run with it."""
    groups = {}
    for group in plan.groups:
        choice = best(ranking, group)
        assert choice is not None
        trials = [plan.trial(EVALUATION, group, choice.parameters, seed) for seed in plan.sweep.protocol.seeds]
        groups[group] = {
            "parameters": choice.parameters,
            "mean": choice.mean,
            "seeds": sorted(choice.values),
            "runs": {trial.name: digest(configs.to_dict(trial.config)) for trial in trials},
        }
    ledger.freeze({"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "groups": groups})


def frozen_trials(plan: Plan, ledger: Ledger) -> list[Trial]:
    """The runs of phase two."""
    return [
        plan.trial(EVALUATION, group, choice["parameters"], seed)
        for group, choice in ledger.frozen().items()
        for seed in plan.sweep.protocol.seeds
    ]


def _reasons(ledger: Ledger, phase: int) -> str:
    """Why runs of a phase failed, each reason once."""
    reasons = {e["reason"]: e["run"] for e in ledger.find("end", phase) if e["status"] == "failed"}
    return "; ".join(f"{name}: {reason}" for reason, name in reasons.items()) or "they were all stopped early"


# ---- Ray Tune --------------------------------------------------------------------------------------------------------


def trial_of(plan: Plan, phase: int, settings: dict[str, Any]) -> Trial:
    """The trial that Tune's settings stand for."""
    job = settings["trial"]
    if "seed" in job:
        return plan.trial(phase, job["group"], job["parameters"], job["seed"])
    seed = plan.sweep.seeds[settings["__trial_index__"]]  # proposed by Optuna; Tune's Repeater counts the seeds
    return plan.trial(phase, job["group"], plan.readable(job["group"], job["parameters"]), seed)


def train_trial(
    settings: dict[str, Any], plan: Plan, phase: int, sweep: Path, ended: set[str], path: list[str]
) -> None:
    """What Tune runs: the trial in its run folder, from its checkpoint if it has one.

    Evaluations that are on the disk already are reported first, so that a scheduler or searcher that starts anew knows
    them. In phase two no metric is reported: it is read through the ledger.
    """
    from ray import tune as ray_tune

    sys.path += [entry for entry in path if entry not in sys.path]  # modules beside the config, as on the command line
    trial = trial_of(plan, phase, settings)
    folder, stream = trial.folder(sweep), build_stream(trial.config)
    tasks = trained_tasks([segment.task for segment in stream.segments], len(stream.tasks))
    reported = 0

    def report(step: int, evaluations: Evaluations) -> None:
        nonlocal reported
        if reported < step:
            reported = step
            seen = {METRIC: plan.measure(evaluations.only(tasks))} if phase == TUNING else {}
            ray_tune.report({STEPS: step, **seen})

    def report_before_the_end(step: int, evaluations: Evaluations) -> None:
        if step < stream.total_steps:  # a scheduler may stop a trial at any report; first the last files are written
            report(step, evaluations)

    resumable = bool(checkpoint.checkpoints(folder / "checkpoints"))
    if resumable or trial.name in ended:
        replay(folder, report_before_the_end)
    if trial.name not in ended and not (folder / "summary.json").is_file():
        if (folder / "config.yaml").is_file():
            run.resume(folder, inexact=True, quiet=True, on_evaluation=report_before_the_end)
        else:
            run.start(trial.config, folder, quiet=True, on_evaluation=report_before_the_end)
    if (folder / "summary.json").is_file():
        replay(folder, report)


def replay(folder: Path, report: run.Listener) -> None:
    """Report the evaluations of a run folder one after the other."""
    saved = Evaluations.of(folder)
    seen = Evaluations(saved.tasks, saved.scores, saved.training_end, saved.scored)
    for step, returns in zip(saved.steps, saved.returns, strict=True):
        seen.add(step, returns)
        report(step, seen)


class Recorder:
    """What the driver does at every event of a trial: the ledger, and the progress line.

    Args:
        steps: environment steps of all trials together.
        count: number of trials.
    """

    def __init__(self, session: Session, phase: int, steps: int, count: int) -> None:
        self.plan, self.ledger, self.stop = session.plan, session.ledger, session.stop
        self.phase, self.count = phase, count
        self.progress = Progress(steps, 0, session.quiet)
        self.steps: dict[str, int] = {}
        self.ended: set[str] = set()
        self.values: dict[str, dict[str, float]] = {}
        self.seen = {entry["run"]: entry["step"] for entry in self.ledger.find("read", phase)}

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks, for a state that is never read again; an open file does not go there."""
        return {}

    def over(self, trial: Trial) -> bool:
        """Whether the trial ended in an earlier session and only repeats its reports."""
        return self.ledger.status(trial.phase, trial.name) in ("finished", "stopped")

    def start(self, trial: Trial) -> None:
        """A trial starts, or starts again."""
        if not self.over(trial):
            self.ledger.start(trial)

    def result(self, trial: Trial, step: int, value: float | None) -> None:
        """A trial reports."""
        self.steps[trial.name] = step
        if value is not None:
            if step > self.seen.get(trial.name, 0) and not self.over(trial):
                self.ledger.saw(trial, step, value)
            self.values.setdefault(trial.group, {})[trial.name] = value
        self.show()

    def end(self, trial: Trial, failure: str = "") -> None:
        """A trial came to its end, was stopped by the scheduler, or failed for good."""
        finished = (trial.folder(self.ledger.folder) / "summary.json").is_file()
        if not self.over(trial):
            self.ledger.end(trial, "failed" if failure else "finished" if finished else "stopped", failure)
            if failure:
                print(f"run {trial.name} failed: {failure}", file=sys.stderr)
        self.ended.add(trial.name)
        if not finished:  # its other steps will not be trained
            length = build_stream(trial.config).total_steps
            self.progress.total -= length - self.steps.get(trial.name, 0)
        self.show(force=True)

    def show(self, force: bool = False) -> None:
        """The progress line, with the metric of the best run of every group so far."""
        better = max if self.plan.mode == "max" else min
        best_runs = {group: better(values.values()) for group, values in self.values.items()}
        where = f"phase {self.phase}: {len(self.ended)} of {self.count} runs done"
        self.progress.update(sum(self.steps.values()), where, best_runs, force)


def fit(session: Session, phase: int, trials: Sequence[Trial]) -> None:
    """Run trials on Tune; with asha, stop those that fall behind."""
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler

    lengths = [build_stream(trial.config).total_steps for trial in trials]
    scheduler, search = None, session.plan.sweep.search
    if search.kind == "asha" and phase == TUNING:
        scheduler = ASHAScheduler(
            time_attr=STEPS,
            metric=METRIC,
            mode=session.plan.mode,
            max_t=max(lengths),
            grace_period=search.grace_steps,
            reduction_factor=search.reduction_factor,
            stop_last_trials=False,
        )
    jobs = [{"group": t.group, "parameters": t.parameters, "seed": t.seed} for t in trials]
    _tune(
        Recorder(session, phase, sum(lengths), len(trials)),
        {"trial": ray_tune.grid_search(jobs)},
        scheduler=scheduler,
    )


def fit_optuna(session: Session, group: str) -> None:
    """Let Optuna's TPE propose the candidates of a group; a candidate counts with its mean over the seeds.

    A sweep that goes on tells Optuna what the finished candidates reached, and has it begin with the unfinished ones.
    """
    from ray.tune.search import Repeater
    from ray.tune.search.optuna import OptunaSearch

    def flat(parameters: dict[str, Any]) -> dict[str, Any]:
        return {f"trial/parameters/{key}": value for key, value in parameters.items()}

    plan, ledger = session.plan, session.ledger
    seeds, known = plan.sweep.seeds, [s for s in ledger.rank(TUNING, plan.measure, plan.mode) if s.group == group]
    done = [s for s in known if not s.unfinished and len(s.values) == len(seeds)]
    count = (plan.sweep.search.trials - len(done)) * len(seeds)
    if count <= 0:
        return
    domains = {key: _domain(values) for key, values in plan.spaces[group].items()}
    searcher = OptunaSearch(
        OptunaSearch.convert_search_space({"trial": {"parameters": domains}}),
        metric=METRIC,
        mode=plan.mode,
        seed=plan.sweep.search.seed,
        points_to_evaluate=[flat(s.parameters) for s in known if s not in done],
    )
    for candidate in done:
        searcher.add_evaluated_point(flat(candidate.parameters), candidate.mean)
    length = build_stream(plan.trial(TUNING, group, plan.sample(group, 0), seeds[0]).config).total_steps
    _tune(
        Recorder(session, TUNING, count * length, count),
        {"trial": {"group": group}},
        search_alg=Repeater(searcher, repeat=len(seeds)),
        num_samples=count,
    )


def _domain(values: list[Any] | Range) -> Any:
    """A key of the space in Tune's terms."""
    from ray import tune as ray_tune

    if isinstance(values, list):
        return ray_tune.choice(values)
    if values.integer:
        draw = ray_tune.lograndint if values.log else ray_tune.randint
        return draw(int(values.low), int(values.high) + 1)  # Tune leaves the upper end out
    return (ray_tune.loguniform if values.log else ray_tune.uniform)(values.low, values.high)


def _tune(recorder: Recorder, space: dict[str, Any], **search: Any) -> None:
    """One run of Ray Tune."""
    # Tune's own output, log files and signal handler stay away, and a trial's working directory is that of the command
    quiet = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
    os.environ.update(quiet, RAY_CHDIR_TO_TRIAL_DIR="0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the recorder says why a run failed, in one line
    from ray import tune as ray_tune

    plan, ledger, phase = recorder.plan, recorder.ledger, recorder.phase
    resources = plan.sweep.resources
    folder = ledger.folder.resolve()
    ended = {e["run"] for e in ledger.find("end", phase) if ledger.status(phase, e["run"]) in ("finished", "stopped")}
    trainable = ray_tune.with_parameters(
        train_trial, plan=plan, phase=phase, sweep=folder, ended=ended, path=[os.getcwd(), *sys.path]
    )
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(trainable, {"cpu": resources.cpus, "gpu": resources.gpus}),
        param_space=space,
        tune_config=ray_tune.TuneConfig(
            reuse_actors=True, max_concurrent_trials=resources.concurrent or None, **search
        ),
        run_config=ray_tune.RunConfig(
            name=f"phase-{phase}",
            storage_path=str(folder / "tune"),
            callbacks=[_callback(recorder)],
            failure_config=ray_tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        recorder.progress.close()


def _callback(recorder: Recorder) -> Any:
    """The recorder as a callback of Tune."""
    from ray import tune as ray_tune

    class Callback(ray_tune.Callback):
        def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
            if recorder.stop():  # raised here and not in the signal handler, which may run in the middle of Ray
                raise KeyboardInterrupt

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            recorder.start(trial_of(recorder.plan, recorder.phase, trial.config))

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            recorder.result(trial_of(recorder.plan, recorder.phase, trial.config), result[STEPS], result.get(METRIC))

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            recorder.end(trial_of(recorder.plan, recorder.phase, trial.config))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            lines = str(trial.get_error() or "it died").strip().splitlines()
            recorder.end(trial_of(recorder.plan, recorder.phase, trial.config), lines[-1])

    return Callback()
