"""TaskEnv: many tasks behind one contract, each copy on its own."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.envs.errors import EnvError
from lifelong.envs.tasks import Task, TaskEnv, environment_class

MIXED: list[dict[str, Any]] = [
    {"kind": "CartPole", "max_episode_steps": 9},
    {"kind": "TMaze", "corridor": 4, "distractors": 1},
    {"kind": "RepeatPrevious", "symbols": 5, "length": 7, "lag": 2},
    {"kind": "TMaze", "corridor": 2, "distractors": 1, "reversed": 1},
]
ACTIONS = (2, 3, 5, 3)
B = 8


def make(
    specs: list[dict[str, Any]] = MIXED, copies: int = B, spaces: str = "pad", seed: int = 3, **options: Any
) -> TaskEnv:
    tasks = [Task.from_spec(f"t{i}", spec, 100) for i, spec in enumerate(specs)]
    return TaskEnv(tasks, copies, spaces=spaces, seed=seed, **options)


def start(env: TaskEnv, assignment: Tensor) -> Tensor:
    env.set_tasks(assignment)
    obs: Tensor = env.reset()[0]
    return obs


def actions_for(step: int, copies: int = B) -> Tensor:
    return torch.randint(5, (copies,), generator=torch.Generator().manual_seed(step))


# ---- spaces ----------------------------------------------------------------------------------------------------------


def test_padding_takes_the_widest_observation_and_the_most_actions() -> None:
    env = make()
    assert env.single_observation_space.shape == (5,) and env.single_action_space == Discrete(5)
    assert env.observation_space.shape == (B, 5)
    obs = start(env, torch.arange(B) % 4)
    widths = torch.tensor([4, 3, 5, 3])[torch.arange(B) % 4]
    for b in range(B):
        assert not obs[b, widths[b] :].any() and bool(obs[b, : widths[b]].any())


def test_the_mask_allows_exactly_the_actions_of_the_copys_task() -> None:
    env = make()
    assignment = torch.tensor([3, 2, 1, 0, 0, 1, 2, 3])
    start(env, assignment)
    assert env.action_mask_BA.shape == (B, 5)
    assert env.action_mask_BA.sum(1).tolist() == [ACTIONS[t] for t in assignment.tolist()]
    for b, task in enumerate(assignment.tolist()):
        assert bool(env.action_mask_BA[b, : ACTIONS[task]].all())


def test_tasks_that_share_their_spaces_are_neither_padded_nor_masked() -> None:
    env = make([MIXED[1], MIXED[3]], spaces="same")
    assert not env.padded and env.action_mask_BA.shape == (B, 0) and len(env.envs) == 1


def test_different_spaces_are_refused_under_same_in_one_sentence_that_names_the_tasks() -> None:
    with pytest.raises(
        EnvError, match=r"tasks 't0' and 't1' have different spaces .* set stream.spaces to pad"
    ) as refusal:
        make(MIXED[:2], spaces="same")
    assert "\n" not in str(refusal.value)
    with pytest.raises(EnvError, match="tasks 't0' and 't2' have different spaces"):
        make([MIXED[1], MIXED[3], MIXED[2]], spaces="same")


PICTURE = Box(0, 255, (6, 6, 3), np.uint8)


class Picture(gymnasium.Env[Any, Any]):
    """Shows noise."""

    observation_space = PICTURE

    def __init__(self, actions: int) -> None:
        self.action_space = Discrete(actions)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return self.observation_space.sample(), 0.0, False, False, {}


gymnasium.register("tests/Picture-v0", entry_point=Picture)


def test_spaces_that_cannot_be_padded_are_refused() -> None:
    with pytest.raises(EnvError, match=r"env Pendulum\) has spaces"):
        make([MIXED[0], {"kind": "Pendulum"}])


def test_images_of_one_shape_stay_bytes_and_tasks_with_fewer_actions_mask_the_rest() -> None:
    image = {"kind": "gymnasium", "id": "tests/Picture-v0"}
    env = make([{**image, "kwargs": {"actions": 3}}, {**image, "kwargs": {"actions": 5}}], 4)
    assert env.single_observation_space == PICTURE and env.single_action_space == Discrete(5)
    env.set_tasks(torch.tensor([0, 1, 0, 1]))
    obs, _ = env.reset(seed=0)
    assert obs.dtype == torch.uint8 and obs.shape == (4, 6, 6, 3)
    assert env.action_mask_BA.sum(1).tolist() == [3, 5, 3, 5]
    env.step(torch.tensor([2, 4, 1, 3]))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"kind": "CartPol"}, "did you mean 'CartPole'"),
        ({"kind": "CartPole", "gravty": 3.0}, "gravty"),
        ({"kind": "TMaze", "corridor": 0}, "'t1'.*corridor of env TMaze is 0"),
        ({"kind": "no_such_module:Env"}, "there is no module 'no_such_module'"),
    ],
)
def test_a_wrong_task_is_refused_by_name_before_anything_runs(spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EnvError, match=sentence):
        make([{"kind": "TMaze"}, spec])


# ---- tasks -----------------------------------------------------------------------------------------------------------


def test_tasks_of_one_environment_share_an_instance_and_others_do_not() -> None:
    env = make()
    assert env.group_of == [0, 1, 2, 1] and len(env.envs) == 3


def test_a_switch_writes_the_parameters_of_the_changed_copies_only_and_restores_defaults() -> None:
    specs = [{"kind": "TMaze", "corridor": 4}, {"kind": "TMaze", "reversed": 1}]
    env = make(specs, spaces="same")
    env.reset()
    changed = env.set_tasks(torch.tensor([0, 1, 0, 1, 0, 0, 0, 0]))
    assert changed.nonzero().flatten().tolist() == [1, 3]
    params = env.envs[0].params
    assert params["corridor"].tolist() == [4, 10, 4, 10, 4, 4, 4, 4]  # 10 is the default: nothing of task 0 is left
    assert params["reversed"].tolist() == [0, 1, 0, 1, 0, 0, 0, 0]
    env.envs[0].set_params(None, corridor=[7] * B)
    assert not env.set_tasks(env.task_B.clone()).any()
    assert params is not env.envs[0].params or env.envs[0].params["corridor"].tolist() == [7] * B


def test_the_episodes_of_the_other_copies_go_on_through_a_switch() -> None:
    switched, left_alone = make(), make()
    assignment = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])
    for env in (switched, left_alone):
        start(env, assignment)
        for step in range(2):
            env.step(actions_for(step))
    after = assignment.clone()
    after[[1, 3]] = 2
    changed = switched.set_tasks(after)
    states = [copy.deepcopy(env.state) for env in switched.envs]
    obs, _ = switched.reset(options={"reset_mask": changed})
    kept = ~changed
    for before, env, group in zip(states, switched.envs, range(3), strict=True):
        here = kept & (torch.tensor(switched.group_of)[after] == group)
        for name, tensor in vars(before).items():
            assert torch.equal(tensor[here], getattr(env.state, name)[here])
    a = switched.step(actions_for(9))
    b = left_alone.step(actions_for(9))
    for copy_index in (0, 6):  # CartPole draws nothing during an episode
        assert torch.equal(a[0][copy_index], b[0][copy_index]) and a[1][copy_index] == b[1][copy_index]
    assert a[4]["episode_length"].tolist() == [3, 1, 3, 1, 3, 3, 3, 3]
    assert obs.shape == (B, 5)


@pytest.mark.parametrize("spec", range(3))
def test_each_environment_of_a_mix_behaves_as_it_does_alone(spec: int) -> None:
    """The same instance seed, the same actions: trajectories, ends, returns and final observations are the same."""
    env = make()
    assignment = torch.arange(B) % 3
    group = env.group_of[spec]
    alone = environment_class(MIXED[spec]["kind"])(
        B, seed=3 + 1_000_003 * group, **{k: v for k, v in MIXED[spec].items() if k != "kind"}
    )
    obs = start(env, assignment)
    expected, _ = alone.reset()
    here = assignment == spec
    ends = 0
    for step in range(30):
        width = expected.shape[-1]
        torch.testing.assert_close(obs[here, :width], expected[here], rtol=0, atol=0)
        action = actions_for(step)
        obs, reward, terminated, truncated, info = env.step(action)
        expected, *others, info_alone = alone.step(action.clamp(max=ACTIONS[spec] - 1))
        for got, want in zip((reward, terminated, truncated), others, strict=True):
            assert torch.equal(got[here], want[here])
        for key in ("episode_return", "episode_length", "_final_obs"):
            assert torch.equal(info[key][here], info_alone[key][here])
        assert torch.equal(info["final_obs"][here, :width], info_alone["final_obs"][here])
        assert torch.equal(info["is_init"][here], info_alone["_final_obs"][here])
        ends += int(info["_final_obs"][here].sum())
    assert ends > 5


def test_every_step_gives_the_whole_info() -> None:
    env = make()
    start(env, torch.arange(B) % 4)
    info = env.step(actions_for(0))[4]
    assert info["valid"].all() and not info["target_mask"].any() and info["target"].shape == (B, 0)
    for key in ("final_obs", "_final_obs", "episode_return", "episode_length", "is_init"):
        assert info[key].shape[0] == B


def test_an_environment_with_dead_steps_must_say_so() -> None:
    env = TaskEnv([Task.from_spec("a", {"kind": "gymnasium", "id": "CartPole-v1", "autoreset": "next_step"}, 9)], 2)
    env.reset()
    assert not env.every_step_counts and "valid" in env.step(torch.zeros(2, dtype=torch.int64))[4]
    env.every_step_counts = True
    with pytest.raises(EnvError, match="must set every_step_counts to False"):
        env.step(torch.zeros(2, dtype=torch.int64))


def test_prediction_tasks_beside_others_have_targets_only_where_they_are() -> None:
    env = make([{"kind": "ImageRows"}, {"kind": "CartPole"}])
    start(env, torch.arange(B) % 2)
    seen = torch.zeros(B, dtype=torch.bool)
    for step in range(30):
        info = env.step(actions_for(step))[4]
        seen |= info["target_mask"]
    assert seen.tolist() == [True, False] * 4


def test_a_performance_of_zero_is_useless_and_of_one_is_solved() -> None:
    tasks = [Task("a", "TMaze", {}, {}, 1), Task("b", "TMaze", {}, {"reversed": 1}, 1, score=(-10.0, 30.0))]
    env = TaskEnv(tasks, 2)
    assert env.performance(torch.tensor([0.0, 1.0]), 0).tolist() == [0.0, 1.0]
    assert env.performance(torch.tensor([-10.0, 10.0, 30.0, 50.0]), 1).tolist() == [0.0, 0.5, 1.0, 1.5]


def test_a_state_restored_goes_on_bit_for_bit_even_after_a_switch() -> None:
    env, other = make(), make(seed=77)
    start(env, torch.arange(B) % 3)
    for step in range(5):
        env.step(actions_for(step))
    env.reset(options={"reset_mask": env.set_tasks(torch.arange(B) // 2 % 4)})
    env.step(actions_for(5))
    saved = copy.deepcopy(env.state_dict())
    other.load_state_dict(saved)
    assert torch.equal(other.task_device_B, env.task_device_B) and torch.equal(other.action_mask_BA, env.action_mask_BA)
    for step in range(6, 30):
        a, b = env.step(actions_for(step)), other.step(actions_for(step))
        for left, right in zip(a[:4], b[:4], strict=True):
            assert torch.equal(left, right)
        if step == 15:  # a switch after the restore, to a task whose instance had been running unseen
            for each in (env, other):
                each.reset(options={"reset_mask": each.set_tasks(torch.full((B,), 2))})


def test_a_parameter_written_while_episodes_go_on_interrupts_none() -> None:
    env = make([{"kind": "TMaze", "corridor": 6}], spaces="same")
    env.reset()
    env.step(torch.zeros(B, dtype=torch.int64))
    env.set_params(corridor=3)
    lengths = []
    for _ in range(4):
        _, _, terminated, _, info = env.step(torch.zeros(B, dtype=torch.int64))
        lengths += info["episode_length"][terminated].tolist()
    assert lengths == [4] * B


# ---- how often an episode can be truncated ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "most"),
    [((0, 0), 0), ((12, 12), 1), ((12, 20), 1), ((11, 20), 2), ((4, 5), 3), ((1, 9), 12), ((0, 9), 12)],
)
def test_no_copy_is_truncated_more_often_than_its_time_limits_allow(limits: tuple[int, int], most: int) -> None:
    """In twelve steps; a drift between a limit and none passes through every limit."""
    specs = [{"kind": "TMaze", "corridor": 40, "max_episode_steps": limit} for limit in limits]
    env = make(specs, spaces="same", random_initial_age=True)
    assert env.truncations(12) == most
    start(env, torch.arange(B) % 2)
    seen = []
    for _ in range(8):
        truncated = torch.stack([env.step(torch.zeros(B, dtype=torch.int64))[3] for _ in range(12)])
        seen.append(int(truncated.sum(0).max()))
    assert max(seen) <= most
    if 0 not in limits:
        assert max(seen) == most


def test_environments_of_others_may_truncate_at_every_step() -> None:
    assert make([{"kind": "gymnasium", "id": "CartPole-v1"}], spaces="same", copies=2).truncations(12) == 12


@pytest.mark.parametrize(
    ("env", "together", "apart"),
    [
        ({"kind": "AssociativeRecall", "keys": 6}, {"pairs": 6}, {"pairs": 7}),
        ({"kind": "Parity", "longest": 4}, {"n": 4}, {"n": 5}),
        ({"kind": "Copy", "length": 4, "shortest": 2}, {"permutation": 0}, {"permutation": 3}),
        ({"kind": "RepeatPrevious"}, {"lag": 4, "length": 5}, {"lag": 5, "length": 5}),
    ],
    ids=lambda given: given.get("kind", "") if isinstance(given, dict) else None,
)
def test_values_that_do_not_go_together_are_refused_before_their_task_begins(
    env: dict[str, Any], together: dict[str, int], apart: dict[str, int]
) -> None:
    """By a trial, which writes nothing; and where they are written, nothing is left of them."""
    made = environment_class(env["kind"])(3, **{key: env[key] for key in env if key != "kind"})
    before = {name: value.clone() for name, value in made.params.items()}
    nobody = torch.zeros(3, dtype=torch.bool)
    made.set_params(nobody, **together)
    for mask in (nobody, None):
        with pytest.raises(EnvError, match=env["kind"]):
            made.set_params(mask, **apart)
        assert all(torch.equal(before[name], made.params[name]) for name in before)
