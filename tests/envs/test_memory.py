"""Memory tasks: remembering solves them, not remembering does not, and hand-checked sequences come out right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lifelong.envs.base import BatchedEnv
from lifelong.envs.errors import EnvError
from lifelong.envs.memory.repeat_previous import MAX_LAG, RepeatPrevious
from lifelong.envs.memory.tmaze import DOWN, FORWARD, UP, TMaze


def mean_return(env: BatchedEnv, policy: Callable[[Tensor, Tensor], Tensor], steps: int) -> float:
    """Mean return of the finished episodes; the policy sees the observation and whether it is the first."""
    obs, _ = env.reset(seed=0)
    first = torch.ones(env.num_envs, dtype=torch.bool)
    returns = []
    for _ in range(steps):
        obs, _, terminated, truncated, info = env.step(policy(obs, first))
        first = terminated | truncated
        returns.append(info["episode_return"][first])
    return float(torch.cat(returns).mean())


class RemembersCue:
    """Goes to the cued side (or away from it), walking forward in the corridor."""

    def __init__(self, sign: int = 1) -> None:
        self.sign = sign
        self.cue = torch.zeros(0)

    def __call__(self, obs: Tensor, first: Tensor) -> Tensor:
        self.cue = torch.where(first, obs[:, 0], self.cue if len(self.cue) else obs[:, 0])
        side = torch.where(self.cue * self.sign > 0, UP, DOWN)
        return torch.where(obs[:, 1] == 1, side, FORWARD)


@pytest.mark.parametrize("auto_move", [True, False])
@pytest.mark.parametrize("corridor, distractors", [(1, 0), (32, 3)])
def test_remembering_the_cue_solves_tmaze(auto_move: bool, corridor: int, distractors: int) -> None:
    env = TMaze(32, corridor=corridor, distractors=distractors, auto_move=auto_move)
    assert mean_return(env, RemembersCue(), 100) == 1.0 == env.SCORE[1]


def test_without_memory_tmaze_is_a_coin_toss() -> None:
    env = TMaze(256, corridor=2)
    up = mean_return(env, lambda obs, first: torch.full((256,), UP), 60)
    assert abs(up - env.SCORE[0]) < 0.05


def test_a_reversed_tmaze_rewards_the_other_side() -> None:
    env = TMaze(32, corridor=3, reversed=1)
    assert mean_return(env, RemembersCue(), 40) == -1.0
    assert mean_return(env, RemembersCue(sign=-1), 40) == 1.0


def test_a_tmaze_episode_by_hand() -> None:
    env = TMaze(2, corridor=[1, 2], seed=0)
    obs, _ = env.reset()
    cue = obs[:, 0].clone()
    assert set(cue.abs().tolist()) == {1.0} and obs[:, 1].tolist() == [0.0, 0.0]
    right = torch.where(cue > 0, UP, DOWN)
    obs, reward, terminated, _, info = env.step(right)
    assert obs.tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert reward.tolist() == [0.0, 0.0] and not terminated.any() and not info["success"].any()
    wrong = torch.where(cue > 0, DOWN, UP)
    obs, reward, terminated, _, info = env.step(wrong)
    assert terminated.tolist() == [True, False] and reward.tolist() == [-1.0, 0.0]
    assert info["final_obs"].tolist() == [[0.0, 1.0], [0.0, 1.0]] and not info["success"].any()
    assert abs(obs[0, 0].item()) == 1.0 and obs[0, 1] == 0.0
    obs, reward, terminated, truncated, info = env.step(right)
    assert terminated.tolist() == [False, True] and reward.tolist() == [0.0, 1.0]
    assert info["success"].tolist() == [0.0, 1.0] and info["episode_length"].tolist() == [1, 3]
    assert not truncated.any()


def test_walking_costs_the_penalty_for_actions_that_do_not_move() -> None:
    env = TMaze(1, corridor=2, auto_move=False, penalty=0.25, seed=0)
    cue = env.reset()[0][0, 0].item()
    right = UP if cue > 0 else DOWN
    seen = []
    for action in (UP, FORWARD, DOWN, FORWARD, FORWARD, right):
        _, reward, terminated, _, info = env.step(torch.tensor([action]))
        seen.append((reward.item(), bool(terminated), info["final_obs"][0].tolist()))
    corridor, junction = [0.0, 0.0], [0.0, 1.0]
    assert seen == [
        (-0.25, False, corridor),
        (0.0, False, corridor),
        (-0.25, False, corridor),
        (0.0, False, junction),
        (-0.25, False, junction),
        (1.0, True, junction),
    ]


def test_an_agent_that_never_chooses_a_side_is_truncated_when_it_walks_and_wrong_when_it_is_moved() -> None:
    def forward(obs: Tensor, first: Tensor) -> Tensor:
        return torch.full((4,), FORWARD)

    assert mean_return(TMaze(4, corridor=3), forward, 8) == -1.0
    env = TMaze(4, corridor=3, auto_move=False, penalty=0.0, max_episode_steps=10)
    assert mean_return(env, forward, 10) == 0.0


def test_the_longest_corridor_ends_before_the_time_limit() -> None:
    assert TMaze.PARAMS["corridor"].high + 1 <= TMaze.MAX_EPISODE_STEPS


def test_distractors_are_fresh_signs_at_every_step_and_say_nothing_about_the_cue() -> None:
    env = TMaze(2000, corridor=4, distractors=3)
    first, _ = env.reset(seed=0)
    second = env.step(torch.zeros(2000, dtype=torch.int64))[0]
    for obs in (first, second):
        assert obs.shape == (2000, 5) and bool((obs[:, 2:].abs() == 1).all())
    signs = torch.cat((first[:, :1], first[:, 2:], second[:, 2:]), 1)
    correlation = torch.corrcoef(signs.T) - torch.eye(7)
    assert correlation.abs().max() < 0.1


def remembered(history: list[Tensor], lag: Tensor, shown: int) -> Tensor:
    """The symbol of `lag` steps ago, or 0 while there is none."""
    rows = []
    for b, k in enumerate(lag.tolist()):
        rows.append(int(history[shown - k][b]) if shown >= k else 0)
    return torch.tensor(rows)


def test_repeating_the_symbol_of_lag_steps_ago_returns_one_whatever_the_lag() -> None:
    lag = torch.tensor([1, 2, 4, 17, MAX_LAG])
    env = RepeatPrevious(5, lag=lag.tolist(), length=70)
    obs, _ = env.reset(seed=0)
    history, rewards = [obs.argmax(1)], []
    for t in range(70):
        obs, reward, terminated, _, info = env.step(remembered(history, lag, t))
        assert obs.sum(1).tolist() == [1.0] * 5
        history.append(obs.argmax(1))
        rewards.append(reward)
        assert bool(terminated.all()) == (t == 69)
    table = torch.stack(rewards)
    for b, k in enumerate(lag.tolist()):
        assert not table[:k, b].any()
        assert table[k:, b].tolist() == pytest.approx([1 / (70 - k)] * (70 - k))
    assert info["episode_return"].tolist() == pytest.approx([1.0] * 5, abs=1e-5)


@pytest.mark.parametrize("symbols", [2, 4, 10])
def test_guessing_returns_the_lower_score(symbols: int) -> None:
    env = RepeatPrevious(400, symbols=symbols)
    guess = mean_return(env, lambda obs, first: torch.full((400,), symbols - 1), 51)
    assert guess == pytest.approx(env.SCORE[0], abs=0.03)
    assert (-1 + 2 / symbols, 1.0) == env.SCORE


def test_a_wrong_symbol_costs_as_much_as_a_right_one_gives() -> None:
    env = RepeatPrevious(1, lag=1, length=3, seed=0)
    shown = [int(env.reset()[0].argmax())]
    answers = [0, None, None]
    rewards = []
    for t in range(3):
        answer = answers[t] if t == 0 else (shown[t - 1] + (t == 2)) % 4
        _, reward, _, _, info = env.step(torch.tensor([answer]))
        shown.append(int(info["final_obs"].argmax()))
        rewards.append(reward.item())
    assert rewards == [0.0, 0.5, -0.5]


def test_a_lag_that_is_not_below_the_length_is_refused_and_nothing_changes() -> None:
    with pytest.raises(EnvError, match="lag"):
        RepeatPrevious(2, lag=10, length=10)
    env = RepeatPrevious(2)
    with pytest.raises(EnvError, match="below length"):
        env.set_params(torch.tensor([True, False]), lag=[60, 60])
    assert env.params["lag"].tolist() == [4, 4]
    nobody = torch.zeros(2, dtype=torch.bool)
    env.set_params(nobody, lag=60, length=100)
    with pytest.raises(EnvError, match="below length"):
        env.set_params(nobody, lag=60)


@pytest.mark.parametrize("make", [lambda: TMaze(2, distractors=-1), lambda: RepeatPrevious(2, symbols=1)])
def test_impossible_options_are_refused(make: Callable[[], BatchedEnv]) -> None:
    with pytest.raises(EnvError, match="must"):
        make()
