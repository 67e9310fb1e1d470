"""Pictures of environments: every one has one, drawn from the state and nothing else; an own one needs one method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

from lifelong.envs import render
from lifelong.envs.base import BatchedEnv
from lifelong.envs.control.cartpole import CartPole
from lifelong.envs.control.mountain_car import MountainCar
from lifelong.envs.errors import EnvError
from lifelong.envs.memory.labyrinth import LabyrinthExplore
from lifelong.envs.memory.mine_sweeper import MineSweeper
from lifelong.envs.memory.tmaze import TMaze
from lifelong.envs.rooms.explore_goal import RoomsExploreGoal
from tests.envs.test_contract import NATIVE, actions_of, make


@pytest.mark.parametrize("name", NATIVE)
def test_every_environment_has_a_picture_of_each_copy_that_follows_from_the_state_alone(name: str) -> None:
    env = make(name, 3)
    env.reset(seed=0)
    for action in actions_of(env, 4):
        env.step(action)
    before = env.generator.get_state()
    pictures = [env.render(env.state, index) for index in range(3)]
    for picture in pictures:
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        assert 60 < max(picture.shape[:2]) <= 1000
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1, "an empty picture"
    assert np.array_equal(env.render(), pictures[0])
    assert torch.equal(env.generator.get_state(), before)


def column_of(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Where along the width, from 0 to 1, the pixels of about a colour lie on average."""
    near = (np.abs(picture.astype(int) - np.array(colour)) < 12).all(2)
    assert near.any(), "no pixel has the colour"
    return float(np.nonzero(near)[1].mean() / picture.shape[1])


def test_a_cart_and_a_car_are_where_they_are() -> None:
    cart = CartPole(3)
    cart.reset(seed=0)
    cart.state.physics[:, 0] = torch.tensor([-2.0, 0.0, 2.0])
    assert [column_of(cart.render(cart.state, i), render.INK) for i in range(3)] == pytest.approx(
        [(x + 3.2) / 6.4 for x in (-2, 0, 2)], abs=0.01
    )
    car = MountainCar(2)
    car.reset(seed=0)
    car.state.physics[:, 0] = torch.tensor([-1.0, 0.3])
    assert [column_of(car.render(car.state, i), render.COLOURS[0]) for i in range(2)] == pytest.approx(
        [0.2 / 1.8, 1.5 / 1.8], abs=0.01
    )


def test_a_cue_is_green_while_it_is_seen_only() -> None:
    env = TMaze(1)
    env.reset(seed=0)
    green = np.array(render.COLOURS[2])
    assert (env.render(env.state, 0) == green).all(2).any()
    env.step(torch.tensor([0]))
    assert not (env.render(env.state, 0) == green).all(2).any()


def test_a_maze_shows_its_walls_and_the_agent() -> None:
    env = LabyrinthExplore(2)
    env.reset(seed=0)
    size = env.size
    picture = env.render(env.state, 1)
    cells = picture[:: picture.shape[0] // size, :: picture.shape[1] // size][:size, :size]
    y, x = env.state.place[1].tolist()
    assert cells[y, x].tolist() == list(render.COLOURS[1])
    walls = env.table[int(env.state.maze[1])][1:-1, 1:-1].numpy() == 1
    walls[y, x] = False
    assert np.array_equal((cells == render.INK).all(2), walls)


def test_opened_cells_say_how_many_mines_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifelong.envs.memory.mine_sweeper.board", lambda values, colours, texts: (values, texts))
    env, opened = MineSweeper(1), 0
    env.reset(seed=0)
    for cell in range(env.cells):
        following, _, over, _ = env.advance(env.state, torch.tensor([cell]))
        if not over:
            values, texts = env.render(following, 0)
            assert texts[values.flatten()[cell]] == str(int(following.near[0]))
            opened += 1
    assert opened == env.free


def test_a_room_is_shown_as_it_is_seen_beside_a_map() -> None:
    env = RoomsExploreGoal(1, height=40, width=60)
    obs, _ = env.reset(seed=0)
    picture = env.render(env.state, 0)
    times = 320 // 60
    assert np.array_equal(picture[: 40 * times : times, : 60 * times : times], obs[0].numpy())
    assert picture.shape[1] > 60 * times


@dataclass(frozen=True)
class _Value:
    value: torch.Tensor


class Own(BatchedEnv):
    """A number that grows."""

    def spaces(self) -> Any:
        return gymnasium.spaces.Box(0, 9, (1,), np.float32), gymnasium.spaces.Discrete(2)

    def draw_state(self) -> Any:
        return _Value(torch.zeros(self.num_envs, 1))

    def advance(self, state: Any, action: torch.Tensor) -> Any:
        return _Value(state.value + 1), state.value[:, 0], state.value[:, 0] > 8, {}

    def observe(self, state: Any) -> torch.Tensor:
        return state.value  # type: ignore[no-any-return]


class Drawn(Own):
    """The same, with a picture of its own."""

    def render(self, state: Any, index: int) -> np.ndarray:  # type: ignore[override]
        return np.full((10, 20, 3), int(state.value[index, 0]), np.uint8)


def test_an_own_environment_shows_its_numbers_or_what_its_one_method_draws() -> None:
    env = Own(2)
    env.reset()
    heights = []
    for _ in range(4):
        env.step(torch.zeros(2))
        heights.append(int((env.render(env.state, 0) == render.COLOURS[0]).all(2).any(1).sum()))
    assert np.diff(heights).tolist() == pytest.approx([heights[0] + 2] * 3, abs=4)
    drawn = Drawn(2)
    drawn.reset()
    drawn.step(torch.zeros(2))
    assert (drawn.render(drawn.state, 1) == 1).all()


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_a_film_has_its_frames(suffix: str, tmp_path: Path) -> None:
    frames = [render.sheet([np.full((80, 100, 3), 40 * i, np.uint8)], [str(i)]) for i in range(5)]
    path = tmp_path / f"new/film.{suffix}"
    if suffix == "gif":
        render.save(path, frames)
        with Image.open(path) as film:
            assert film.n_frames == 5 and film.size == frames[0].shape[1::-1]  # type: ignore[attr-defined]
            film.seek(3)
            assert np.abs(np.asarray(film.convert("RGB")).astype(int)[40, 160] - 120).max() < 8
    else:
        films = pytest.importorskip("imageio_ffmpeg")
        render.save(path, frames)
        assert films.count_frames_and_secs(str(path))[0] == 5


def test_an_unknown_kind_of_file_is_refused() -> None:
    with pytest.raises(EnvError, match=r"a \.gif or \.mp4, not 'film\.avi'"):
        render.save(Path("film.avi"), [np.zeros((2, 2, 3), np.uint8)])
