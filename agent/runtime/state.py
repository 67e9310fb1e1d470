"""The state of a run: what a checkpoint holds, and how a trainer goes on from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lifelong.agent import config as configs
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.randomness import as_tensors, globals_now, set_globals

if TYPE_CHECKING:
    from lifelong.agent.runtime.logging import NoLog, RunLog
    from lifelong.agent.runtime.trainer import Trainer


def shared(trainer: Trainer) -> dict[str, Any]:
    """What is equal on all workers."""
    return {
        "config": configs.to_dict(trainer.config),
        "step": trainer.step,
        "segment": trainer.segment,
        "ended": trainer.ended,
        "owed": trainer.owed,
        "stream": trainer.stream.state_dict(),
        "detection": trainer.detection.shared_state() if trainer.detection else None,
        "policy": trainer.rollout.policy.state_dict(),
        "optimizer": trainer.learner.optimizer.state_dict(),
        "objective": trainer.learner.objective.state_dict(),
        "minibatches": trainer.learner.generator.get_state(),
        "changed": trainer.learner.changed.generator.get_state() if trainer.learner.changed else None,
        "strategies": _strategies(trainer, sharded=False),
    }


def own(trainer: Trainer) -> dict[str, Any]:
    """What belongs to this worker: its environments, carry, replay and randomness."""
    return {
        "carry": trainer.learner.engine.state_dict(),
        "traces": trainer.learner.objective.own_state_dict(),
        "rollout": trainer.rollout.state_dict(),
        "strategy_shards": _strategies(trainer, sharded=True),
        "kept": trainer.detection.own_state() if trainer.detection else [],
        "record": trainer.record.state_dict(),
        "torch_random": torch.get_rng_state(),
        "global_random": as_tensors(globals_now()),
    }


def _strategies(trainer: Trainer, *, sharded: bool) -> dict[str, Any]:
    return {
        spec["kind"]: strategy.state_dict()
        for strategy, spec in zip(trainer.strategies, trainer.config.strategy, strict=True)
        if (strategy.data_parallel == "shard") == sharded
    }


def load(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Restore what `shared` and `own` returned; strategies that were not there before start afresh."""
    trainer.stream.load_state_dict(saved["stream"])
    trainer.evaluations.training_end = trainer.stream.training_ends()
    trainer.step, trainer.segment, trainer.ended = saved["step"], saved["segment"], saved["ended"]
    trainer.owed = saved["owed"]
    trainer.logged = trainer.step
    trainer.rollout.policy.load_state_dict(saved["policy"])
    trainer.learner.objective.load_state_dict(saved.get("objective", {}))
    groups = zip(saved["optimizer"]["param_groups"], trainer.learner.optimizer.param_groups, strict=False)
    for group, here in groups:  # this option belongs to the device, and a run may change it
        if "capturable" in here:
            group["capturable"] = here["capturable"]
    trainer.learner.optimizer.load_state_dict(saved["optimizer"])
    trainer.learner.engine.load_state_dict(saved["carry"])
    trainer.learner.objective.load_own_state_dict(saved.get("traces", {}))
    trainer.learner.generator.set_state(saved["minibatches"])
    if trainer.learner.changed and saved["changed"] is not None:
        trainer.learner.changed.generator.set_state(saved["changed"].cpu())
    trainer.rollout.load_state_dict(saved["rollout"])
    states = {**saved["strategies"], **saved["strategy_shards"]}
    for strategy, spec in zip(trainer.strategies, trainer.config.strategy, strict=True):
        if spec["kind"] in states:
            strategy.load_state_dict(states[spec["kind"]])
    if trainer.detection and saved.get("detection"):
        trainer.detection.load_state_dict(saved["detection"], saved["kept"], trainer.rollout.env.device)
    trainer.record.load_state_dict(saved["record"])
    torch.set_rng_state(saved["torch_random"])
    set_globals(saved["global_random"])


def save(trainer: Trainer, log: RunLog | NoLog) -> None:
    """Write a checkpoint from which the run goes on bit for bit."""
    record, folder = trainer.record, trainer.record.folder / "checkpoints"
    both, about = (trainer.shared_state(), trainer.own_state()), record.about(log)
    checkpoint.save(folder, trainer.step, *both, about, record.config.checkpoint.keep, trainer.workers)
