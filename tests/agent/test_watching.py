"""`lifelong show-env` and `lifelong watch` write pictures and films."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

from lifelong.agent import cli
from lifelong.agent.inference import load


class Lamp(gymnasium.Env):
    """A lamp that is as bright as the step; a picture of one colour."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None, broken: bool = False) -> None:
        self.render_mode, self.broken, self.t = render_mode, broken, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), 1.0, False, False, {}

    def render(self):
        if self.broken:
            raise RuntimeError("no light")
        return np.full((60, 340, 3), 10 * self.t, np.uint8)


@pytest.fixture
def lamp():
    gymnasium.register("Lamp-v0", Lamp)
    yield "Lamp-v0"
    del gymnasium.registry["Lamp-v0"]


def test_a_picture_of_environments_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both.png"
    assert cli.main(["show-env", "CartPole", "Breakout", "--out", str(out), "--steps", "2"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    with Image.open(out) as picture:
        assert picture.size[0] == 640


def test_an_option_of_the_environment_is_taken(tmp_path: Path) -> None:
    sizes = []
    for corridor in (4, 20):
        out = tmp_path / f"{corridor}.png"
        assert cli.main(["show-env", "TMaze", f"corridor={corridor}", "--out", str(out), "--steps", "0"]) == 0
        with Image.open(out) as picture:
            sizes.append(picture.size[1])
    assert sizes[0] > sizes[1]


def test_environments_of_gymnasium_draw_themselves(lamp: str, tmp_path: Path) -> None:
    out = tmp_path / "lamp.gif"
    assert cli.main(["show-env", lamp, "--out", str(out), "--steps", "5"]) == 0
    with Image.open(out) as film:
        assert film.n_frames == 6
        film.seek(5)
        assert np.abs(np.asarray(film.convert("RGB"))[30, 170].astype(int) - 50).max() < 8


def test_a_picture_that_cannot_be_drawn_is_one_sentence(
    lamp: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "a.png")
    assert cli.main(["show-env", lamp, "kwargs={broken: true}", "--out", out]) == 2
    assert capsys.readouterr().err == "lifelong: task 'Lamp-v0' (env Lamp-v0) cannot be drawn: no light\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show-env", "CartPol"], "did you mean 'CartPole'"),
        (["show-env", "CartPole", "--out", "a.jpg"], "must end in .png, .gif, .mp4"),
        (["show-env", "CartPole", "--steps", "-1"], "--steps is -1"),
        (["show-env", "CartPole", "lenth=3"], "lenth"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


CONFIG = """
stream:
  steps_per_task: 64
  tasks:
    - {name: maze, env: {kind: TMaze, corridor: 3}}
    - {name: pole, env: {kind: TMaze, corridor: 5}}
policy: {encoder: identity, cell: {kind: elstm, size: 8}}
rollout: {copies: 4, steps: 8}
evaluation: {every: 1000, episodes: 2}
"""


def test_a_trained_agent_is_watched_in_its_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run, film = tmp_path / "small.yaml", tmp_path / "run", tmp_path / "film.gif"
    config.write_text(CONFIG)
    assert cli.main(["run", str(config), "--out", str(run), "--quiet"]) == 0
    capsys.readouterr()
    assert cli.main(["watch", str(run), "--task", "pole", "--video", str(film), "--episodes", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(film)
    from lifelong.envs.memory.tmaze import TMaze

    env, policy = TMaze(1, corridor=5, seed=0, evaluation=True), load(run, "pole")
    obs, _ = env.reset(seed=0)
    memory, returns, steps = None, [], 0
    while len(returns) < 2:
        action, memory = policy(obs, memory)
        obs, _, terminated, truncated, info = env.step(torch.as_tensor(action))
        steps += 1
        if bool(terminated | truncated):
            returns.append(f"{float(info['episode_return'][0]):.3g}")
            memory = policy.reset(memory, terminated.numpy())
    assert lines[1] == f"returns: {', '.join(returns)}"
    with Image.open(film) as shown:
        assert shown.n_frames <= steps  # equal frames that follow each other are one
    assert cli.main(["watch", str(run)]) == 0
    assert (run / "watch-maze.gif").exists()
    assert cli.main(["watch", str(run), "--task", "poll"]) == 2
    assert "did you mean 'pole'" in capsys.readouterr().err
    assert "PIL" in sys.modules
