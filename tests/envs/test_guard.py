"""The border to Gymnasium environments: what they raise or return wrongly, copies made anew, and what is closed."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from lifelong.envs.adapters import gymnasium as adapter
from lifelong.envs.adapters.guard import Guards
from lifelong.envs.adapters.gymnasium import GymnasiumEnv
from lifelong.envs.border import Restarts
from lifelong.envs.errors import EnvError, EnvStepError
from lifelong.envs.tasks import Task, TaskEnv
from tests.envs.faulty import Faulty, diary, reset_counts

ID = "tests.envs.faulty:faulty-v0"
WRAPPED = "tests.envs.faulty:faulty-wrapped-v0"
FILE = str(Path(__file__).with_name("faulty.py"))
RAISING = ["sys.exit", "OSError", "unpicklable", "KeyError", "TypeError", "ValueError"]
WRONG = ["shape", "dtype", "class", "none"]


@pytest.fixture(autouse=True)
def counts() -> Iterator[None]:
    reset_counts()
    yield


def line_of(text: str) -> int:
    """The line of faulty.py that holds `text`."""
    return next(n for n, line in enumerate(Path(FILE).read_text().splitlines(), start=1) if text in line)


def task_env(copies: int = 2, restarts: int = 0, **options: Any) -> TaskEnv:
    spec = {"kind": "gymnasium", "id": ID, **options}
    return TaskEnv([Task.from_spec("t", spec, 100)], copies, restarts=Restarts(restarts))


# ---- one sentence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("where", ["at", "resets"])
@pytest.mark.parametrize("fault", RAISING)
def test_what_an_environment_raises_is_one_sentence_with_file_and_line(
    fault: str, where: str, vectorization: str
) -> None:
    env = task_env(vectorization=vectorization, kwargs={"fault": fault, where: [1]})
    with pytest.raises(EnvStepError) as caught:
        env.reset()
        env.step(torch.zeros(2, dtype=torch.int64))
    env.close()
    told = str(caught.value)
    kind = {"sys.exit": "SystemExit", "unpicklable": "Awkward"}.get(fault, fault)
    marks = {"sys.exit": "sys.exit(3)", "OSError": "raise OSError", "unpicklable": "raise Awkward"}
    line = line_of(marks.get(fault, 'raise {"KeyError"'))
    assert re.match(rf"task 't' \(env {ID}\): {re.escape(FILE)}:{line}: {kind}: ", told)
    assert len(told) <= 300 and "\n" not in told and "disk" not in told
    if vectorization == "sync":
        assert caught.value.__cause__ is not None  # for --traceback


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("reward", [False, True])
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_observation_or_reward_is_one_sentence_that_names_the_method(
    fault: str, reward: bool, vectorization: str
) -> None:
    env = task_env(vectorization=vectorization, kwargs={"fault": fault, "at": [2], "reward": reward})
    env.reset()
    with pytest.raises(EnvStepError) as caught:
        for _ in range(2):
            env.step(torch.zeros(2, dtype=torch.int64))
    env.close()
    is_ = {"shape": "float32 (3,)", "dtype": "<U1 (2,)", "class": "a dict with not", "none": "a NoneType"}[fault]
    what = "the reward is" if reward else "an observation is"
    assert f"{FILE}:{line_of('def step')}: {what} {is_}" in str(caught.value)


def test_parts_of_a_nested_observation_are_looked_at() -> None:
    env = task_env(kwargs={"fault": "class", "resets": [1], "nested": True})
    with pytest.raises(EnvStepError, match="an observation is a dict with not, but the space is Dict"):
        env.reset()


def test_an_array_of_one_number_is_a_reward() -> None:
    class One(Faulty):
        def step(self, action: Any) -> Any:
            obs, _, *rest = super().step(action)
            return obs, torch.tensor([0.25]).numpy(), *rest

    gymnasium.register("tests/One-v0", entry_point=One)
    env = GymnasiumEnv(3, id="tests/One-v0")
    env.reset()
    assert env.step(torch.zeros(3))[1].tolist() == [0.25] * 3


def test_gymnasiums_own_checks_name_the_environment() -> None:
    env = task_env(id="tests.envs.faulty:faulty-checked-v0", kwargs={"fault": "none", "resets": [1]})
    with pytest.raises(EnvStepError, match=re.escape(f"{FILE}:{line_of('def reset(')}: ")):
        env.reset()


def test_wrappers_of_a_registered_environment_are_kept() -> None:
    env = GymnasiumEnv(2, id=WRAPPED, restarts=Restarts(1), kwargs={"at": [5]})
    obs, _ = env.reset(seed=0)
    assert obs.shape == (2, 2, 2)  # two frames
    lengths = []
    for _ in range(8):
        *_, truncated, info = env.step(torch.zeros(2))
        lengths += info["episode_length"][info["_final_obs"]].tolist()
        assert not info["_final_obs"].any() or bool(truncated.any())
    # the first copy broke in its third step and has a new life under the same wrappers; TimeLimit ends the others
    assert lengths == [3, 4, 4, 4] and env.restarts.count == 1
    assert env.env.call("episode_count") == (0, 0)  # type: ignore[attr-defined]  # of RecordEpisodeStatistics


# ---- made anew -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("autoreset", ["same_step", "disabled", "next_step"])
def test_a_copy_that_raised_ends_its_episode_and_goes_on_with_a_new_environment(
    autoreset: str, vectorization: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    # in a worker each copy has its own count; in one process copy 0 does the odd steps
    at = [5] if vectorization == "sync" else [3]
    kwargs = {"at": at, "diary": str(tmp_path / "diary")}
    env = task_env(restarts=4, vectorization=vectorization, autoreset=autoreset, kwargs=kwargs)
    env.reset(seed=0)
    broken = torch.tensor([True, vectorization == "async"])
    with caplog.at_level(logging.WARNING, "lifelong"):
        for _ in range(2):
            obs, *_ = env.step(torch.zeros(2, dtype=torch.int64))
        before = obs
        obs, reward, terminated, truncated, info = env.step(torch.zeros(2, dtype=torch.int64))
    assert torch.equal(truncated, broken) and not terminated.any()
    assert reward.tolist() == (~broken).float().tolist()
    assert torch.equal(info["final_obs"][broken], before[broken])
    assert info["episode_return"].tolist() == [2.0 + (not b) for b in broken.tolist()]
    if autoreset == "next_step":
        obs, *_, info = env.step(torch.zeros(2, dtype=torch.int64))
        assert torch.equal(info["valid"], ~broken)
    assert obs[broken, 0].tolist() == [0.0] * int(broken.sum())  # a fresh episode
    assert (obs[broken, 1] != before[broken, 1]).all()  # of another instance
    assert torch.equal(obs[~broken, 1], before[~broken, 1])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == int(broken.sum())
    line = line_of('raise {"KeyError"')
    what = f"task 't' (env {ID}), copy 0: {FILE}:{line}: ValueError: three lines"
    assert lines[0] == f"{what}; it goes on with a new environment (1 of 4)"
    env.close()
    entries = diary(tmp_path / "diary")
    assert sorted(entries["made"]) == sorted(entries["closed"])  # the broken one too
    if vectorization == "async":
        assert not any(p.is_alive() for p in env.envs[0].env.processes)  # type: ignore[attr-defined]


def test_restarts_are_counted_over_all_environments_and_then_the_error_is_told() -> None:
    restarts = Restarts(3)
    tasks = [Task.from_spec("t", {"kind": "gymnasium", "id": ID, "kwargs": {"at": [1, 2, 5, 8]}}, 100)]
    one, two = (TaskEnv(tasks, 2, restarts=restarts) for _ in range(2))
    one.reset()
    two.reset()
    one.step(torch.zeros(2, dtype=torch.int64))  # calls 1 and 2
    one.step(torch.zeros(2, dtype=torch.int64))
    two.step(torch.zeros(2, dtype=torch.int64))  # calls 5 and 6
    assert restarts.count == 3
    with pytest.raises(EnvStepError, match="ValueError: three lines"):
        two.step(torch.zeros(2, dtype=torch.int64))
    assert restarts.count == 3


def test_a_reset_that_raises_is_tried_with_new_environments_as_often_as_is_allowed() -> None:
    env = GymnasiumEnv(1, id=ID, restarts=Restarts(3), kwargs={"resets": [1, 2, 3]})
    obs, _ = env.reset(seed=0)
    assert env.restarts.count == 3 and obs[0, 1] == 4  # the fourth instance
    reset_counts()
    env = GymnasiumEnv(1, id=ID, restarts=Restarts(2), kwargs={"resets": [1, 2, 3]})
    with pytest.raises(EnvStepError, match="three lines"):
        env.reset(seed=0)


def test_a_new_environment_has_a_seed_of_its_own_that_the_first_one_decides() -> None:
    seeds = []
    for seed in (0, 0, 1):
        reset_counts()
        env = GymnasiumEnv(1, id=ID, restarts=Restarts(2), kwargs={"at": [1, 2]})
        env.reset(seed=seed)
        for _ in range(2):
            env.step(torch.zeros(1))
        seeds.append(env.env.unwrapped.envs[0].np_random_seed)  # type: ignore[attr-defined]
    assert seeds[0] == seeds[1] != seeds[2] and 0 not in seeds


def test_restarts_are_no_option_of_a_config() -> None:
    for option in ("restarts", "label"):
        with pytest.raises(EnvError, match=f"unknown option or parameter of env gymnasium '{option}'"):
            Task.from_spec("t", {"kind": "gymnasium", "id": ID, option: 3}, 100)


# ---- closing ---------------------------------------------------------------------------------------------------------


class Stubborn(VectorEnv):
    """Does not close."""

    num_envs = 2
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
    single_observation_space = gymnasium.spaces.Box(-99, 99, (2,))
    single_action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, **kwargs: Any) -> None: ...

    def close_extras(self, **kwargs: Any) -> None:
        raise RuntimeError("the window is stuck")


gymnasium.register("tests/Stubborn-v0", entry_point=Faulty, vector_entry_point=Stubborn)


@pytest.mark.parametrize("fault", ["sys.exit", "OSError"])
def test_a_worker_that_cannot_make_its_environment_says_why_and_none_is_left(
    fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first instance is made here, to know the spaces from."""
    with warnings.catch_warnings(), pytest.raises(EnvError) as caught:
        warnings.simplefilter("error")
        task_env(vectorization="async", kwargs={"fault": fault, "makes": [2]})
    mark = "sys.exit(3)" if fault == "sys.exit" else "raise OSError"
    assert f"task 't' (env {ID}): {FILE}:{line_of(mark)}: " in str(caught.value)
    del caught
    gc.collect()
    assert not multiprocessing.active_children() and not capfd.readouterr().err


def test_one_that_cannot_be_closed_is_told_of_and_the_others_are_closed(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    stuck = {"kind": "gymnasium", "id": "tests/Stubborn-v0", "vectorization": "vector_entry_point"}
    good = {"kind": "gymnasium", "id": ID, "kwargs": {"diary": str(tmp_path / "diary")}}
    env = TaskEnv([Task.from_spec("a", stuck, 1), Task.from_spec("b", good, 1)], 2, spaces="same")
    env.close()
    assert "task 'a' (env tests/Stubborn-v0) cannot be closed: " in caplog.text
    assert "RuntimeError: the window is stuck" in caplog.text
    entries = diary(tmp_path / "diary")
    assert entries["closed"] == entries["made"] and len(entries["made"]) == 2


def test_a_start_that_fails_closes_what_was_made(tmp_path: Path) -> None:
    good = {"kind": "gymnasium", "id": ID, "kwargs": {"diary": str(tmp_path / "diary")}}
    bad = {"kind": "gymnasium", "id": ID, "kwargs": {"no_such_option": 1}}
    tasks = [Task.from_spec("a", good, 1), Task.from_spec("b", bad, 1)]
    with pytest.raises(EnvError, match="no_such_option"):
        TaskEnv(tasks, 2)
    other = {"kind": "CartPole"}
    with pytest.raises(EnvError, match="different spaces"):
        TaskEnv([Task.from_spec("a", good, 1), Task.from_spec("b", other, 1)], 2)
    entries = diary(tmp_path / "diary")
    assert entries["closed"] == entries["made"] and len(entries["made"]) == 4


def test_copies_that_were_made_before_one_that_cannot_be_are_closed(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="KeyError"):
        task_env(copies=4, kwargs={"fault": "KeyError", "makes": [3], "diary": str(tmp_path / "diary")})
    entries = diary(tmp_path / "diary")
    assert entries["closed"] == entries["made"] and len(entries["made"]) == 2


def test_environments_do_not_travel_to_processes_that_make_their_own() -> None:
    """Where workers are spawned, what they need is pickled."""
    guards = Guards(partial(gymnasium.make, ID), 3)
    guards(gymnasium.make(ID))
    guards.made[0].env.unwrapped.window = (_ for _ in ())  # type: ignore[attr-defined]  # cannot be pickled
    copy = cloudpickle.loads(cloudpickle.dumps(guards))
    assert not copy.made and copy.restarts == 3 and copy.make().reset(seed=0)[0].shape == (2,)


def test_a_worker_that_is_killed_or_hangs_is_gone_after_closing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = task_env(vectorization="async")
    env.reset()
    processes = env.envs[0].env.processes  # type: ignore[attr-defined]
    os.kill(processes[0].pid, signal.SIGKILL)
    with pytest.raises(EnvStepError, match="the process of copy 0 is gone, with exit code -9"):
        env.step(torch.zeros(2, dtype=torch.int64))
    env.close()
    assert not any(p.is_alive() for p in processes) and not caplog.records

    env = task_env(vectorization="async", kwargs={"fault": "hangs", "at": [1]})
    env.reset()
    inner = env.envs[0].env  # type: ignore[attr-defined]
    inner.step_async([0, 0])
    monkeypatch.setattr(adapter, "CLOSE_TIMEOUT", 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.close()
    assert not any(p.is_alive() for p in inner.processes)


def test_workers_leave_termination_to_the_parent_but_not_when_it_terminates_them() -> None:
    env = GymnasiumEnv(2, id=ID, vectorization="async")
    env.reset(seed=0)
    processes = env.env.processes  # type: ignore[attr-defined]
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.05)
    assert env.step(torch.zeros(2))[0].shape == (2, 2)
    env.env.close(terminate=True)
    assert not any(p.is_alive() for p in processes)


PARENT = """
from lifelong.envs.adapters.gymnasium import GymnasiumEnv
busy = {{"fault": "hangs", "at": [1]}}
envs = [
    GymnasiumEnv(2, id="tests.envs.faulty:faulty-v0", vectorization="async", kwargs=kwargs) for kwargs in ({{}}, busy)
]
for env in envs:
    env.reset(seed=0)
    env.env.step_async([0, 0])
print(*(p.pid for env in envs for p in env.env.processes), flush=True)
{end}
"""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("end", ["input()", ""], ids=["killed", "unclosed"])
def test_no_worker_outlives_its_parent(end: str) -> None:
    """Not one that is killed, nor one that ends without having closed its environments; be they idle or busy."""
    words = [sys.executable, "-c", PARENT.format(end=end)]
    parent = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 4
    try:
        if end:
            assert all(map(running, pids))
            parent.kill()
        parent.wait(timeout=20)
    finally:
        parent.kill()
    deadline = time.monotonic() + 10
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, pids))
