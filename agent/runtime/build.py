"""From a checked config to a trainer. Every impossible combination is refused here, before anything starts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from lifelong.agent import registry
from lifelong.agent.config import Config, find_own_modules
from lifelong.agent.detectors.base import Detector
from lifelong.agent.errors import ConfigError, EnvError, LifelongError
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.gradients.parts import engine_for
from lifelong.agent.modules.learning_pass import LearningPass
from lifelong.agent.objectives.base import Objective
from lifelong.agent.optimizers.base import Averaging, build_optimizer, check_optimizer
from lifelong.agent.parallel import ALONE, Workers
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.capture import CudaGraph
from lifelong.agent.runtime.checks import (
    check_gradient,
    check_masks,
    check_resets,
    check_restarts,
    check_runners,
    check_scores,
    check_skip,
    check_strategies,
    check_streaming,
    check_workers,
)
from lifelong.agent.runtime.detection import Detection
from lifelong.agent.runtime.evaluation import Evaluator
from lifelong.agent.runtime.lean import Uninitialised
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.runtime.machine import identity, threads, versions
from lifelong.agent.runtime.memory import check_memory, check_places, is_memory, needs_of
from lifelong.agent.runtime.metrics import Evaluations
from lifelong.agent.runtime.randomness import seed_globals
from lifelong.agent.runtime.record import Record
from lifelong.agent.runtime.rollout import Acting, Rollout
from lifelong.agent.runtime.source import Fresh
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Strategy
from lifelong.envs.border import Restarts, blame
from lifelong.envs.stream import Phases, Schedule, TaskStream
from lifelong.envs.tasks import Task, TaskEnv, environment_class
from lifelong.kernels.allocator import keep_freed_memory
from lifelong.kernels.dispatch import prepare

#: Makes who acts, from the config, the policy and engine of the learner, and one copy of the environment.
MakeActing = Callable[[Config, Policy, GradientEngine, TaskEnv], Acting]


def subseed(seed: int, *names: object) -> int:
    """A seed of its own for every part, from the run's seed and the part's name."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def choose_device(name: str) -> torch.device:
    """The device of the run.

    Raises:
        ConfigError: cuda was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device is cuda, but torch sees no GPU; use cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def build_stream(config: Config) -> TaskStream:
    """The stream of the config.

    Raises:
        ConfigError: a task or schedule that cannot be.
    """
    spec = config.stream
    find_own_modules(config)
    try:
        tasks = [
            Task.from_spec(
                task.name,
                task.env,
                task.steps or spec.steps_per_task,
                (task.score[0], task.score[1]) if task.score else None,
                task.reward_scale,
            )
            for task in spec.tasks
        ]
        rest = [task.steps for task in tasks]
        schedules: list[Schedule] = []
        for phase, count in enumerate([len(tasks) - sum(spec.added), *spec.added]):
            steps, rest = rest[:count], rest[count:]
            seed = subseed(config.seed, "schedule", *([phase] if phase else []))
            schedules.append(registry.build("schedule", spec.schedule, steps, 1 if phase else spec.cycles, seed))
        if spec.added and spec.share < 1:
            raise ConfigError(f"stream.share is {spec.share:g}, and tasks were added after all others; set it to 1")
        stream = TaskStream(tasks, Phases(schedules) if spec.added else schedules[0], spec.share)
    except EnvError as error:
        raise ConfigError(str(error)) from error
    copies, frames = config.rollout.copies, config.rollout.copies * config.rollout.steps
    for option in ("every", "length"):
        each: int = getattr(schedules[0], option, frames)
        if each < frames:
            raise ConfigError(
                f"stream.schedule.{option} is {each:,}, below the {frames:,} steps of a chunk (rollout.copies x "
                "rollout.steps), so that tasks that are drawn would not be trained"
            )
    never = stream.never_trained(copies, frames)
    if never:
        task = stream.tasks[never[0]]
        raise ConfigError(
            f"task {task.name!r} would never be trained: it has {task.steps:,} steps under schedule "
            f"{spec.schedule['kind']}, {copies} copies are shared by {len(tasks)} tasks, and a chunk has {frames:,} "
            "steps (rollout.copies x rollout.steps)"
        )
    return stream


def build_learning_pass(config: Config, policy: Policy, objective: Objective) -> LearningPass | None:
    """The learner's forward pass of the cell, if it is to be another one than in acting.

    Raises:
        ConfigError: a gradient, an objective or a cell that it does not go with.
    """
    rate, initial, kind = config.policy.weight_drop, config.rollout.initial_state, config.gradient["kind"]
    if not rate and initial == "zero":
        return None
    asked = f"policy.weight_drop is {rate:g}" if rate else f"rollout.initial_state is {initial}"
    if kind != "bptt":
        raise ConfigError(
            f"{asked}, so that a chunk is learned otherwise than it was acted, and gradient {kind} carries what was "
            "acted; use gradient bptt"
        )
    if not objective.off_policy:
        raise ConfigError(
            f"{asked}: the policy that learns is another than the one that acts, which objective "
            f"{config.objective['kind']} does not correct for; use objective actor_critic, q_learning or supervised"
        )
    generator = torch.Generator(device=next(policy.parameters()).device)
    generator.manual_seed(subseed(config.seed, "learning pass"))
    noise = config.rollout.initial_noise
    try:
        return LearningPass(policy.cell, generator, rate=rate, initial=initial, noise=noise)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(f"{asked}, and in cell {config.policy.cell['kind']} {error}") from error


def can_capture(config: Config, rollout: Acting, workers: Workers) -> bool:
    """Whether a chunk is to be a CUDA graph: on a GPU, with one worker that steps native environments itself,
    and an optimiser that counts its steps there."""
    on_gpu = rollout.env.device.type == "cuda"
    one_length = not config.rollout.short_first.steps
    counts_there = not issubclass(registry.load("optimizer", config.optimizer["kind"]), Averaging)
    return (
        config.runtime.capture == "auto"
        and on_gpu
        and one_length
        and counts_there
        and workers.count == 1
        and rollout.capturable
    )


def build_detection(
    config: Config, strategies: list[Strategy], copies: int, device: torch.device, workers: Workers
) -> Detection | None:
    """What finds boundaries, if they are to be found."""
    if config.stream.boundaries != "detected":
        return None
    detector: Detector = registry.build("detector", config.detector)
    try:
        detector.setup(subseed(config.seed, "detector"), copies * workers.count, device, workers)
    except ValueError as error:
        raise ConfigError(f"detector {config.detector['kind']}: {error}") from error
    return Detection(detector, strategies, copies)


def build_env(
    config: Config,
    stream: TaskStream,
    num_envs: int,
    device: torch.device,
    seed: int,
    restarts: Restarts,
    *,
    evaluation: bool = False,
    ages: bool = False,
) -> TaskEnv:
    """`num_envs` copies of the stream's environments."""
    return TaskEnv(
        stream.tasks,
        num_envs,
        device=device,
        seed=seed,
        evaluation=evaluation,
        random_initial_age=ages,
        spaces=config.stream.spaces,
        restarts=restarts,
    )


def composing(config: Config) -> str:
    """The strategy that wants an actor which composes policies, by its name; empty if there is none."""
    kinds = (spec["kind"] for spec in config.strategy)
    return next((kind for kind in kinds if registry.load("strategy", kind).composes), "")


def build_policy(config: Config, env: TaskEnv) -> Policy:
    """The policy for the spaces and tasks of `env`.

    Raises:
        ConfigError: an encoder, cell or head that does not fit.
    """
    observed = config.stream.task_id == "observed"
    for key in ("heads", "critics"):
        if getattr(config.policy, key) == "per_task" and not observed:
            raise ConfigError(f"policy.{key} is per_task, but stream.task_id is hidden; set it to observed")
    composed = composing(config)
    if composed and config.policy.heads == "per_task":
        raise ConfigError(f"policy.heads is per_task, but strategy {composed} composes heads; set it to shared")
    spec = config.objective
    objective, options = registry.load("objective", spec["kind"]), {k: v for k, v in spec.items() if k != "kind"}
    registry.check_options("objective", spec["kind"], objective, options, {})
    spaces = env.single_observation_space, env.single_action_space
    try:
        distribution = objective.acts_by(spaces[1], config.policy.squash, options)
        return Policy(config.policy, *spaces, len(env.tasks), observed, distribution, bool(composed))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def foresee(
    config: Config,
    stream: TaskStream,
    strategies: list[Strategy],
    copies: int,
    device: torch.device,
    folder: Path = Path(),
) -> bool:
    """Refuse a run that the device cannot hold, before anything large is made: from one copy of its environments, and a
    policy whose parameters take no memory. False if there are parts of somebody else's, of which nothing is known yet.

    Raises:
        ConfigError: names what needs most.
    """
    parts = [config.policy.encoder, config.policy.cell, *(task.env for task in config.stream.tasks)]
    if any(map(registry.is_foreign, parts)) or not all(environment_class(t.kind).exact_state for t in stream.tasks):
        return False
    env = build_env(config, stream, 1, device, 0, Restarts(0))
    env.reset()
    with torch.random.fork_rng(devices=[]), torch.device("meta"), Uninitialised():
        policy = build_policy(config, env)
    check_memory(config, needs_of(config, env, policy, strategies, copies), device)
    check_places(config, policy, strategies, device, folder)
    return True


def build_rollout(config: Config, copies: int, seed: int) -> Rollout:
    """A rollout and a policy of its own for another process, on the CPU, with all its randomness from `seed`."""
    device = torch.device("cpu")
    ages = config.rollout.random_initial_age
    env = build_env(config, build_stream(config), copies, device, subseed(seed, "training"), Restarts(), ages=ages)
    generator = torch.Generator().manual_seed(subseed(seed, "actions"))
    return Rollout(env, build_policy(config, env), generator, reset_memory_on=config.policy.reset_memory_on)


def build(
    config: Config, folder: Path, workers: Workers = ALONE, acting: MakeActing | None = None, before: int = 0
) -> Trainer:
    """Build what `workers.rank` of the run that writes into `folder` needs; nothing is written yet.

    Args:
        config: checked config.
        folder: run folder.
        workers: this worker among all.
        acting: makes who acts in the environments; by default that is a `Rollout` in this process.
        before: threads that the run was trained with so far, for `runtime.threads: auto`; 0: it begins.

    Raises:
        ConfigError: one sentence about the first thing that cannot be.
    """
    check_workers(config, workers)
    check_skip(config)
    device = choose_device(config.runtime.device)
    torch.set_num_threads(threads(config.runtime, before))
    keep_freed_memory()
    torch.manual_seed(subseed(config.seed, "parameters"))
    seed_globals(subseed(config.seed, "globals", workers.rank))
    stream = build_stream(config)
    check_gradient(
        config, registry.load("gradient", config.gradient["kind"]), registry.load("cell", config.policy.cell["kind"])
    )
    try:
        with ExitStack() as opened:
            trainer = _build(config, folder, device, stream, workers, acting, opened)
            trainer.opened = opened.pop_all()
    except EnvError as error:
        raise ConfigError(str(error)) from error
    except LifelongError:
        raise
    except (Exception, SystemExit) as error:  # of parts that see each other for the first time
        what = "this run does not fit this machine: " if is_memory(error) else "this run cannot be built: "
        raise ConfigError(f"{what}{blame(error)}") from error
    prepare(device)
    trainer.record.identity = identity(config, device)
    return trainer


def _build(
    config: Config,
    folder: Path,
    device: torch.device,
    stream: TaskStream,
    workers: Workers,
    acting: MakeActing | None,
    opened: ExitStack,
) -> Trainer:
    """See `build`; environments that stay are closed with `opened`."""
    copies = config.rollout.copies // workers.count
    restarts = Restarts(config.runtime.env_restarts)

    def own_seed(*names: object) -> int:
        """Randomness that every worker has its own of; that of rank 0 is that of a run in one process."""
        return subseed(config.seed, *names, *((f"worker {workers.rank}",) if workers.rank else ()))

    def environment(name: str, num_envs: int, *, evaluation: bool = False, ages: bool = False, key: int = 0) -> TaskEnv:
        seed = subseed(config.seed, name, key) if evaluation else own_seed(name, key)
        return build_env(config, stream, num_envs, device, seed, restarts, evaluation=evaluation, ages=ages)

    for name, options in config.strategy_options.items():
        if name in registry.REGISTRY["strategy"]:  # a mistake in one that is not chosen shows today, not some day
            registry.check_options("strategy", name, registry.load("strategy", name), options, {})
    strategies: list[Strategy] = [registry.build("strategy", spec) for spec in config.strategy]
    chunks = -(-stream.total_steps // (config.rollout.copies * config.rollout.steps))
    for strategy in strategies:
        strategy.expect(chunks * config.rollout.copies)
    foreseen = foresee(config, stream, strategies, copies, device, folder)
    # if others act, one copy to know the spaces from
    env = environment("training", copies if acting is None else 1, ages=config.rollout.random_initial_age)
    opened.callback(env.close)
    check_resets(config, stream, env)
    check_restarts(config, env)
    policy = build_policy(config, env).to(device)
    if not foreseen:
        check_memory(config, needs_of(config, env, policy, strategies, copies), device)
        check_places(config, policy, strategies, device, folder)

    def engine_of(count: int, name: str = "source gradient") -> GradientEngine:
        made = engine_for(config.gradient, policy.cell, count)
        made.seed(own_seed(name))
        made.setup(policy)
        return made

    engine = engine_of(copies, "gradient")
    objective: Objective = registry.build("objective", config.objective, policy.distribution)
    objective.setup(policy)
    objective.workers = workers
    objective.even = env.every_step_counts and not objective.needs_target
    if objective.minibatches > copies:
        raise ConfigError(
            f"objective.minibatches is {objective.minibatches}, more than the {copies} copies"
            f"{' of a worker' if workers.count > 1 else ''}; lower it or raise rollout.copies"
        )
    check_strategies(config, strategies, objective, workers)
    check_runners(config, objective)
    optimizer = build_optimizer(config, policy)
    check_optimizer(config, optimizer, strategies)
    check_streaming(config, objective, optimizer)

    def generator(name: str) -> torch.Generator:
        return torch.Generator(device=device).manual_seed(own_seed(name))

    reset_memory_on = config.policy.reset_memory_on
    rollout: Acting
    if acting is None:
        rollout = Rollout(env, policy, generator("actions"), reset_memory_on=reset_memory_on)
    else:
        rollout = acting(config, policy, engine, env)

    def fresh_rollout(step: int) -> tuple[Rollout, torch.Generator]:
        env = environment("source", copies, key=step)
        rollout = Rollout(env, policy, generator(f"source actions {step}"), reset_memory_on=reset_memory_on)
        return rollout, torch.Generator().manual_seed(own_seed("source draw", step))

    learner = Learner(
        policy,
        engine,
        objective,
        optimizer,
        strategies,
        config.max_grad_norm,
        torch.Generator().manual_seed(subseed(config.seed, "minibatches")),
        workers,
        config.on_nonfinite == "skip",
        build_learning_pass(config, policy, objective),
    )
    evaluation_env = environment("evaluation", config.evaluation.episodes, evaluation=True)
    opened.callback(evaluation_env.close)
    check_masks(config, evaluation_env, policy.distribution)
    evaluator = Evaluator(
        evaluation_env,
        policy,
        seed=subseed(config.seed, "evaluation"),
        reset_memory_on=reset_memory_on,
        deterministic=config.evaluation.deterministic,
        max_steps=config.evaluation.max_steps,
    )
    names = [task.name for task in stream.tasks]
    scores = [tuple(map(float, score)) for score in env.scores]
    evaluations = Evaluations(tasks=names, scores=scores, training_end=stream.training_ends(), scored=env.scored)
    check_scores(config, env)
    record = Record(config, folder, versions(), names, device, restarts, alike=len({*scores}) == 1)
    fresh = Fresh(fresh_rollout, engine_of)
    graph = CudaGraph if can_capture(config, rollout, workers) else None
    detection = build_detection(config, strategies, copies, device, workers)
    trainer = Trainer(
        record, stream, rollout, learner, strategies, evaluator, evaluations, fresh, workers, graph, detection
    )
    if objective.needs_target and not _has_target(env):
        raise ConfigError(
            f"objective {config.objective['kind']} needs prediction tasks, but {names[0]!r} gives no target; use "
            "objective actor_critic or ppo"
        )
    for index, (strategy, spec) in enumerate(zip(strategies, config.strategy, strict=True)):
        own = strategy.data_parallel == "shard"
        seed = own_seed("strategy", index) if own else subseed(config.seed, "strategy", index)
        try:
            strategy.setup(trainer.context(), seed)
        except ValueError as error:
            raise ConfigError(f"strategy {spec['kind']}: {error}") from error
    # once more: what a strategy needs may depend on the policy it was set up with
    check_strategies(config, strategies, objective, workers)
    return trainer


def _has_target(env: TaskEnv) -> bool:
    return all(e.PREDICTION for e in env.envs)
