"""Resume with changes: every key of the config applies or is refused before anything is written."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from lifelong.agent import cli, registry, run
from lifelong.agent import config as configs
from lifelong.agent.errors import CheckpointError, ConfigError
from lifelong.agent.runtime import changes, checkpoint, session
from lifelong.agent.runtime.build import build
from lifelong.agent.runtime.trainer import Trainer

RAW: dict[str, Any] = {
    "name": "small",
    "stream": {
        "spaces": "pad",
        "tasks": [
            {"name": "maze", "env": {"kind": "TMaze", "corridor": 3}, "steps": 64},
            {"name": "pole", "env": {"kind": "CartPole"}},
        ],
        "steps_per_task": 192,
    },
    "policy": {"encoder": {"kind": "mlp", "hidden": [8]}, "cell": {"kind": "elstm", "size": 4}},
    "gradient": "rtrl",
    "optimizer": {"kind": "adam", "lr": 1e-3},
    "strategy": [{"kind": "ewc", "sequences": 8}, {"kind": "clear", "capacity": 24, "start": 4}],
    "rollout": {"copies": 4, "steps": 4},
    "evaluation": {"every": 64, "episodes": 2, "max_steps": 8},
    "checkpoint": {"every": 10_000},
    "log_every": 64,
    "runtime": {"device": "cpu"},
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in the middle of its second task."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    config = configs.check(RAW)
    trainer = build(config, folder)
    folder.mkdir()
    (folder / "config.yaml").write_text(configs.to_yaml(config))
    assert not session.train(trainer, {}, session.Progress(256, quiet=True), lambda: trainer.step >= 128)
    assert trainer.step == 128 and trainer.segment == 1
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def resume(folder: Path, *words: str, **options: Any) -> Trainer:
    trainer, finished = run.resume(folder, list(words), quiet=True, **options)
    assert finished
    return trainer


def recorded(folder: Path) -> dict[str, tuple[str, Any, Any]]:
    """Key -> (kind, old, new) of changes.jsonl."""
    return {line["key"]: (line["kind"], line["old"], line["new"]) for line in changes.read(folder)}


def at(config: Any, key: str) -> Any:
    """The value at a dotted key of plain data."""
    for step in key.split("."):
        config = config[int(step) if isinstance(config, list) else step]
    return config


# ---- every key -------------------------------------------------------------------------------------------------------


def keys(value: Any, schema: Any, prefix: str = "") -> list[str]:
    """The dotted keys of a config of the schema, the options of its parts included."""
    import dataclasses

    found = []
    for field in dataclasses.fields(schema):
        key, inner = f"{prefix}{field.name}", value[field.name]
        if "part" in field.metadata or "parts" in field.metadata:
            kind = field.metadata.get("part") or field.metadata["parts"]
            for where, part in (
                [(key, inner)] if isinstance(inner, dict) else [(f"{key}.{i}", p) for i, p in enumerate(inner)]
            ):
                found += [f"{where}.kind", *(f"{where}.{option}" for option in options(kind, part["kind"]))]
        elif dataclasses.is_dataclass(getattr(schema, field.name)):
            found += keys(inner, getattr(schema, field.name), f"{key}.")
        elif isinstance(inner, list) and inner and isinstance(inner[0], dict):
            for index, item in enumerate(getattr(schema, field.name)):
                found += keys(inner[index], item, f"{key}.{index}.")
        else:
            found.append(key)
    return found


def options(kind: str, name: str) -> list[str]:
    part = registry.load(kind, name)
    unasked = {
        "device",
        "seed",
        "evaluation",
        "random_initial_age",
        "num_envs",
        "params",
        "capturable",
        "differentiable",
    }
    known = {*registry.options_of(part), *(part.all_params() if kind == "env" else ())}
    return sorted(known - unasked)


#: another value, where the one that `other` makes up would not do
VALUES: dict[str, Any] = {
    "stream.tasks.0.env.kind": "Acrobot",
    "stream.tasks.1.env.kind": "Acrobot",
    "stream.tasks.0.score": [0, 3],
    "stream.tasks.1.score": [0, 300],
    "stream.schedule.kind": "interleaved",
    "stream.added": [1],
    "stream.share": 0.9,
    "policy.encoder.kind": "identity",
    "policy.encoder.hidden": [9],
    "policy.encoder.activation": "relu",
    "policy.cell.kind": "gru",
    "policy.cell.forget_bias": [1, 2],
    "detector.kind": "one_class",
    "gradient.kind": "bptt",
    "gradient.carry_dtype": "bfloat16",
    "objective.kind": "ppo",
    "objective.advantage": "impala",
    "optimizer.kind": "sgd",
    "optimizer.betas": [0.5, 0.6],
    "optimizer.foreach": False,
    "optimizer.fused": False,
    "strategy.0.kind": "finetune",
    "strategy.1.kind": "finetune",
    "strategy.1.writing": "ring",
    "strategy_options": {"gpm": {"chunks": 2}},
    "runtime.backend": "ray",
    "runtime.device": "auto",
    "runtime.address": "local",
    "on_nonfinite": "skip",
    "modules": ["."],
    "trackers": ["csv"],
}


def other(config: dict[str, Any], schema: Any, key: str) -> Any:
    """Another valid value for a key: the next number, the other word of its choices."""
    if key in VALUES:
        return VALUES[key]
    try:
        value = at(config, key)
    except KeyError:  # an option that is not given
        owner = at(config, key.rpartition(".")[0])
        kind = {"encoder": "encoder", "cell": "cell"}.get(key.split(".")[-2], key.split(".")[0])
        kind = "env" if ".env." in key else "schedule" if ".schedule." in key else kind
        part, option = registry.load(kind, owner["kind"]), key.rpartition(".")[2]
        params = part.all_params() if kind == "env" else {}
        value = params[option].default if option in params else registry.options_of(part)[option].default
        if isinstance(value, str):
            _, hint = registry.annotated(kind, part)[option]
            return next(word for word in get_args(hint) if word != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or 0.125
    *path, last = key.split(".")
    for step in path:
        schema = schema[int(step)] if isinstance(schema, list) else getattr(schema, step)
    if isinstance(value, str) and not isinstance(schema, dict):
        choices = type(schema).__dataclass_fields__[last].metadata.get("choices")
        return next(c for c in choices if c != value) if choices else f"{value}-2"
    raise AssertionError(f"VALUES needs a value for {key}")


SCHEMA = configs.check(RAW)
KEYS = keys(configs.to_dict(SCHEMA), SCHEMA)


def test_every_key_of_the_schema_has_a_rule_and_every_rule_a_key() -> None:
    options = {"policy.encoder.depth"}  # rules for one option of one part
    assert set(changes.patterns()) == set(changes.RULES) - options
    assert len(KEYS) > 90


@pytest.mark.parametrize("key", KEYS)
def test_a_changed_key_applies_or_is_refused_before_anything_is_written(key: str, folder: Path) -> None:
    value = other(configs.to_dict(SCHEMA), SCHEMA, key)
    word = f"{key}={json.dumps(value)}"
    before = contents(folder)
    try:
        config = session.load_config(folder, [word])
        trainer, _ = session.reopen(config, folder, run._planned(config), run._acting(config))
    except (ConfigError, CheckpointError) as refused:
        assert len(str(refused)) <= 300, str(refused)
        assert key.split(".")[-1] in str(refused) or key.split(".")[0] in str(refused), str(refused)
        with pytest.raises((ConfigError, CheckpointError)):
            run.resume(folder, [word], quiet=True)
        assert contents(folder) == before
    else:
        assert contents(folder) == before
        assert trainer.step == 128
        if key != "runtime.backend":  # it would start a cluster
            resume(folder, word, inexact=key == "runtime.threads")
            assert recorded(folder), word
            assert at(yaml.safe_load((folder / "config.yaml").read_text()), key) == value
    assert run.resume(folder, quiet=True)[1]


def test_code_that_only_a_checkpoint_names_is_not_imported(folder: Path, tmp_path: Path) -> None:
    """Whoever is asked to trust a run folder is shown the parts of its config.yaml."""
    (state,) = folder.glob("checkpoints/*/state.pt")
    manifest = state.with_name("manifest.json")
    for place in ("schedule", "env", "strategy"):
        saved = torch.load(state, weights_only=True)
        config = configs.to_dict(SCHEMA)
        foreign = {"kind": "antigravity:Attr"}
        if place == "strategy":
            config["strategy"] = [foreign]
        elif place == "env":
            config["stream"]["tasks"][1]["env"] = foreign
        else:
            config["stream"]["schedule"] = foreign
        torch.save({**saved, "config": config}, state)
        content = json.loads(manifest.read_text())
        digest = hashlib.sha256(state.read_bytes()).hexdigest()
        content["files"]["state.pt"] = {"size": state.stat().st_size, "sha256": digest}
        manifest.write_text(json.dumps(content))
        if place == "strategy":
            resume(folder, "stream.steps_per_task=200")
        else:
            with pytest.raises(ConfigError, match=r"antigravity"):
                run.resume(folder, ["stream.steps_per_task=200"], quiet=True)
        assert "antigravity" not in sys.modules


# ---- what takes effect -----------------------------------------------------------------------------------------------

EFFECTS: dict[str, Callable[[Trainer], bool]] = {
    "optimizer.lr=0.25": lambda t: t.learner.optimizer.param_groups[0]["lr"] == 0.25,
    "optimizer.betas=[0.5, 0.6]": lambda t: list(t.learner.optimizer.param_groups[0]["betas"]) == [0.5, 0.6],
    "optimizer.weight_decay=0.5": lambda t: t.learner.optimizer.param_groups[0]["weight_decay"] == 0.5,
    "optimizer.kind=rmsprop": lambda t: isinstance(t.learner.optimizer, torch.optim.RMSprop),
    "optimizer={kind: sgd, lr: 0.5}": lambda t: isinstance(t.learner.optimizer, torch.optim.SGD),
    "stream.tasks.1.env.length=1.5": lambda t: bool((t.rollout.env.envs[1].params["length"] == 1.5).all()),  # type: ignore[attr-defined]
    "stream.tasks.1.score=[0, 50]": lambda t: t.evaluations.scores[1] == (0.0, 50.0),
    "rollout.copies=8": lambda t: t.rollout.env.num_envs == 8,
    "evaluation.episodes=5": lambda t: t.evaluations.tensor().shape[2] == 5,
    "strategy.1.capacity=8": lambda t: t.strategies[1].replay.size <= 8,  # type: ignore[attr-defined]
    "strategy={kind: ewc, strength: 5}": lambda t: t.strategies[0].strength == 5,  # type: ignore[attr-defined]
    "strategy=[clear, gpm]": lambda t: [s["kind"] for s in t.config.strategy] == ["clear", "gpm"],
    "strategy.0.value_weight=0.5": lambda t: t.strategies[0].value_weight == 0.5,  # type: ignore[attr-defined]
    "gradient=bptt": lambda t: not t.learner.engine.state_dict(),
    "stream.steps_per_task=320": lambda t: t.step == 384,
    "max_grad_norm=0.5": lambda t: t.learner.max_grad_norm == 0.5,
}


@pytest.mark.parametrize("word", EFFECTS)
def test_a_change_takes_effect_and_is_on_record(word: str, folder: Path) -> None:
    trainer = resume(folder, word)
    assert EFFECTS[word](trainer)
    (line, *_) = changes.read(folder)
    assert line["step"] == 128 and line["key"].startswith(word.partition("=")[0].partition(".")[0])
    assert json.loads((folder / "summary.json").read_text())["changes"] == changes.read(folder)
    trainer, finished = run.resume(folder, quiet=True)
    assert finished and EFFECTS[word](trainer) and len(changes.read(folder)) == len(recorded(folder))


def test_the_state_of_the_optimiser_stays_unless_it_is_of_another_kind_or_lacks_something(folder: Path) -> None:
    def opened(*words: str) -> Trainer:
        config = session.load_config(folder, words)
        return session.load(config, folder, run._planned(config))[0]

    saved = checkpoint.load(folder / "checkpoints")[0]["optimizer"]["state"]
    kept = opened("optimizer.lr=0.5", "optimizer.betas=[0.1, 0.2]").learner.optimizer.state_dict()
    assert torch.equal(kept["state"][0]["exp_avg_sq"], saved[0]["exp_avg_sq"])
    assert kept["param_groups"][0]["lr"] == 0.5
    for words in (["optimizer.kind=rmsprop"], ["optimizer.amsgrad=true"]):
        trainer = opened(*words)
        assert not trainer.learner.optimizer.state_dict()["state"]
        assert {change.note for change in trainer.record.changes} == {"the optimiser's state"}


def test_no_parameter_moves_with_a_learning_rate_of_zero(folder: Path) -> None:
    before = checkpoint.load(folder / "checkpoints")[0]["policy"]
    after = resume(folder, "optimizer.lr=0.0").rollout.policy.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_training_and_evaluation_get_an_environment_parameter_and_other_tasks_do_not(folder: Path) -> None:
    words = ["stream.tasks.1.env.length=1.5", "stream.tasks.1.env.max_episode_steps=7"]
    trainer = resume(folder, *words)
    for env in (trainer.rollout.env, trainer.evaluator.env):
        params = env.envs[1].params  # type: ignore[attr-defined]
        assert set(params["length"].tolist()) == {1.5} and set(params["max_episode_steps"].tolist()) == {7}


def test_only_the_copies_on_a_task_get_its_new_parameters(tmp_path: Path) -> None:
    poles = [{"name": name, "env": {"kind": "CartPole", "length": 0.5 + i}} for i, name in enumerate("ab")]
    raw = configs.merge(RAW, {"stream": {"tasks": poles, "schedule": "interleaved", "steps_per_task": 64}})
    run.start(configs.check(raw), tmp_path / "run", quiet=True)
    config = session.load_config(tmp_path / "run", ["stream.tasks.0.env.gravity=5", "stream.tasks.0.env.length=0.75"])
    trainer, _ = session.load(config, tmp_path / "run", run._planned(config))
    env = trainer.rollout.env
    lengths = env.envs[0].params["length"]  # type: ignore[attr-defined]
    assert lengths.tolist() == [1.5 if task else 0.75 for task in env.task_B.tolist()]
    assert set(env.task_B.tolist()) == {0, 1}


def test_replayed_rewards_and_values_follow_the_reward_scale_of_their_task(folder: Path) -> None:
    saved = checkpoint.load(folder / "checkpoints")[0]["strategy_shards"]["clear"]["replay"]["storage"]
    config = session.load_config(folder, ["stream.tasks.1.reward_scale=0.5"])
    trainer, _ = session.load(config, folder, run._planned(config))
    replay = trainer.strategies[1].replay  # type: ignore[attr-defined]
    stored = replay.storage.select(torch.arange(replay.size))
    assert set(saved["task"].flatten().tolist()) == {0, 1}
    for name in ("reward", "value", "final_value"):
        factor = torch.where(saved["task"] == 1, 0.5, 1.0)
        assert torch.equal(getattr(stored, name), saved[name] * factor), name
    assert torch.equal(stored.bootstrap_value, saved["bootstrap_value"] * torch.where(saved["task"][-1] == 1, 0.5, 1.0))
    with pytest.raises(ConfigError, match="multiplied by 0"):
        changes.check(
            [changes.Change("override", "stream.tasks.1.reward_scale", 0.0, 1.0)], trainer.config, trainer.config, 128
        )


def test_another_length_of_a_chunk_is_refused_while_a_replay_holds_sequences(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rollout\.steps is 2, but a replay holds 24 sequences of 4 steps"):
        run.resume(folder, ["rollout.steps=2"], quiet=True)
    assert resume(folder, "rollout.steps=2", "strategy=ewc").chunk.steps == 2


def test_the_past_of_the_stream_stays_as_it_was(folder: Path) -> None:
    for word in ("stream.tasks.0.steps=128", "stream.schedule={kind: random, every: 64}", "stream.tasks.1.steps=32"):
        before = contents(folder)
        with pytest.raises(ConfigError, match=r"trained already"):
            run.resume(folder, [word], quiet=True)
        assert contents(folder) == before
    assert resume(folder, "stream.cycles=2").step == 512


def test_earlier_evaluations_keep_their_episodes(folder: Path) -> None:
    before = session.load(configs.check(RAW), folder, run._planned(configs.check(RAW)))[0].evaluations
    evaluations = resume(folder, "evaluation.episodes=5").evaluations
    tensor = evaluations.tensor()
    assert (~torch.from_numpy(tensor).isnan()).sum(-1).tolist() == [[2, 2]] * 3 + [[5, 5]] * 2
    assert evaluations.performance()[:3].tolist() == before.performance().tolist()
    again = type(evaluations).load(folder / "evaluation.npz")
    assert again.performance().tolist() == evaluations.performance().tolist()


# ---- the record ------------------------------------------------------------------------------------------------------


def test_a_change_that_was_killed_before_it_was_on_record_is_recorded_by_the_next_resume(folder: Path) -> None:
    config = session.load_config(folder, ["optimizer.lr=0.5"])
    (folder / "config.yaml").write_text(configs.to_yaml(config))  # and then came the kill
    resume(folder)
    assert recorded(folder) == {"optimizer.lr": ("override", 0.001, 0.5)}


def test_a_change_is_on_record_once_however_often_its_checkpoint_is_gone_on_from(folder: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run.resume(folder, ["optimizer.lr=0.5"], quiet=True, on_evaluation=_interrupt)
    assert len(changes.read(folder)) == 1
    resume(folder)
    assert len(changes.read(folder)) == 1


def _interrupt(step: int, evaluations: Any) -> None:
    raise KeyboardInterrupt


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path: Path) -> None:
    change = changes.Change("override", "log_every", 1, 2)
    changes.record(tmp_path, 5, [change])
    with open(tmp_path / changes.FILE, "a") as file:
        file.write('{"step": 7, "ti')
    assert len(changes.read(tmp_path)) == 1
    changes.record(tmp_path, 9, [change])
    assert [line["step"] for line in changes.read(tmp_path)] == [5, 9]


def test_tensorboard_has_the_changes_as_text_and_as_a_mark(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    resume(folder, "optimizer.lr=0.5", "log_every=32")
    events = EventAccumulator(str(folder)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("changes")] == [(128, 1.0), (128, 2.0)]
    (text,) = events.Tensors("changes/text_summary")
    assert text.step == 128 and b"optimizer.lr" in text.tensor_proto.string_val[0]


def test_the_report_shows_what_was_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resume(folder, "optimizer.kind=sgd")
    assert cli.main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    page = (folder / "report.html").read_text()
    for text in (printed, page):
        assert "128" in text and "swap" in text and "optimiser" in text
    assert "Changed while it was trained" in page


def test_parts_are_compared_by_what_they_do_not_by_how_they_are_written() -> None:
    raw = configs.merge(RAW, {"optimizer": {"kind": "adam", "lr": 1e-3, "betas": [0.9, 0.999]}})
    assert changes.between(configs.check(RAW), configs.check(raw)) == []
    assert math.isclose(configs.check(raw).optimizer["lr"], 1e-3)
