"""The Forager keeps its rules: what things give, where they grow, when they come back; searching is worth what it
knows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lifelong.envs.errors import EnvError
from lifelong.envs.forager.forager import BIG, HEIGHT, LIFE, MOVES, PLACES, SMALL, STRIP, STRIPS, WIDTH, Forager
from lifelong.envs.forager.search import search


def world(env: Forager, state: Any, b: int) -> np.ndarray:
    """The whole world of a copy, cell by cell: 3 walls, 1 big, 2 small things."""
    found = np.where(env.worlds[0][int(state.layout[b])].numpy(), 3, 0).reshape(HEIGHT, WIDTH)
    for strip, first in enumerate(STRIPS):
        for y in range(HEIGHT):
            for x in range(STRIP):
                thing = int(state.things[b, strip * PLACES + y * STRIP + x])
                if thing:
                    assert found[y, first + x] == 0, "a thing in a wall"
                    found[y, first + x] = thing
    return found


def test_what_is_seen_is_the_world_around_the_agent_on_a_torus() -> None:
    env = Forager(40, view=7)
    obs, _ = env.reset(seed=0)
    for b in range(40):
        whole, y, x = world(env, env.state, b), int(env.state.y[b]), int(env.state.x[b])
        around = np.take(np.take(whole, range(y - 3, y + 4), 0, mode="wrap"), range(x - 3, x + 4), 1, mode="wrap")
        assert np.array_equal(obs[b].numpy(), np.stack([around == 3, around == BIG, around == SMALL], 2))
        assert whole[y, x] == 0


def test_worlds_have_walls_in_one_of_fifteen_cells_and_a_quarter_of_the_strips_is_big_and_a_quarter_small() -> None:
    env = Forager(64)
    env.reset(seed=1)
    for b in range(64):
        whole = world(env, env.state, b)
        assert (whole == 3).sum() == WIDTH * HEIGHT // 15
        for first in STRIPS:
            strip = whole[:, first : first + STRIP]
            assert ((strip == BIG).sum(), (strip == SMALL).sum()) == (PLACES // 4, PLACES // 4)
        outside = np.delete(whole, [x + i for x in STRIPS for i in range(STRIP)], 1)
        assert set(np.unique(outside)) <= {0, 3}


@pytest.mark.parametrize("action", range(4))
def test_a_move_goes_one_cell_on_the_torus_and_not_into_walls(action: int) -> None:
    env = Forager(300)
    env.reset(seed=2)
    before = env.state
    after: Any = env.advance(before, torch.full((300,), action))[0]
    dy, dx = MOVES[action]
    held = 0
    for b in range(300):
        y, x = (int(before.y[b]) + dy) % HEIGHT, (int(before.x[b]) + dx) % WIDTH
        wall = world(env, before, b)[y, x] == 3
        held += wall
        wanted = (int(before.y[b]), int(before.x[b])) if wall else (y, x)
        assert (int(after.y[b]), int(after.x[b])) == wanted
    assert held > 3


def test_what_a_thing_gives_follows_the_sine_and_is_the_other_way_round_in_the_other_strip() -> None:
    period, rng = 1000, np.random.default_rng(0)
    env = Forager(600, period=period, base=-5.0, big=9.0, small=3.0)
    env.reset(seed=3)
    times = torch.from_numpy(rng.integers(1, 5 * period, 600))
    times = torch.where(times % (period // 2) == 0, times + 1, times)
    strip, kind = torch.arange(600) % 2, 1 + torch.arange(600) // 2 % 2
    y, x = torch.from_numpy(rng.integers(0, HEIGHT, 600)), torch.tensor(STRIPS)[strip]
    place = strip * PLACES + y * STRIP
    things = env.state.things.scatter(1, place.unsqueeze(1), kind.unsqueeze(1).to(torch.uint8))
    state = replace(env.state, things=things, time=times, y=y, x=(x - 1) % WIDTH)
    following, reward, over, _ = env.advance(state, torch.ones(600, dtype=torch.int64))
    assert not over.any()
    eaten = 0
    for b in range(600):
        if int(following.x[b]) == int(state.x[b]):
            continue  # there was a wall
        sign = math.copysign(1, math.sin(2 * math.pi * int(times[b]) / period)) * (1 if strip[b] == 0 else -1)
        assert float(reward[b]) == -5 + sign * (9 if kind[b] == BIG else 3)
        assert float(env.worth(state)[b, place[b]]) == float(reward[b])
        eaten += 1
    assert eaten > 500


def test_what_is_eaten_comes_back_after_nine_to_eleven_steps_in_a_free_place_of_its_strip() -> None:
    env = Forager(900)
    env.reset(seed=4)
    strip, kind = torch.arange(900) % 2, 1 + torch.arange(900) // 2 % 2
    place = strip * PLACES + env.state.y * STRIP
    alone = torch.zeros_like(env.state.things).scatter(1, place.unsqueeze(1), kind.unsqueeze(1).to(torch.uint8))
    state: Any = replace(env.state, things=alone, x=torch.tensor(STRIPS)[strip] - 1)
    state = env.advance(state, torch.ones(900, dtype=torch.int64))[0]
    eaten = state.things.sum(1) == 0
    assert int(eaten.sum()) > 700
    back = torch.zeros(900, dtype=torch.int64)
    for t in range(1, 40):
        state = env.advance(state, torch.zeros(900, dtype=torch.int64))[0]  # away, to the left
        back[(back == 0) & eaten & (state.things.sum(1) > 0)] = t
    assert torch.equal(state.things.sum(1).long(), kind)
    at = state.things.argmax(1)
    assert torch.equal(at >= PLACES, strip == 1) and len(at.unique()) > 100
    for b in eaten.nonzero().flatten().tolist()[::30]:
        world(env, state, b)  # no thing in a wall
    waits = torch.bincount(back[eaten])
    assert int(waits[:9].sum()) == 0 and waits[9:12].min() > 150 and int(waits[12:].sum()) < 20


def test_nothing_is_lost_however_much_is_eaten() -> None:
    env = Forager(100)
    env.reset(seed=4)
    for _ in range(300):
        env.step(search(env, env.state, "nearest"))
        for i in (0, 1):
            there = (env.state.things[:, i * PLACES : (i + 1) * PLACES] > 0).sum(1)
            waiting = ((env.state.wait > 0) & (env.state.back // 4 == i)).sum(1)
            assert (there + waiting).tolist() == [2 * (PLACES // 4)] * 100


def test_what_is_not_eaten_moves_after_its_time() -> None:
    env = Forager(20)
    env.reset(seed=5)
    still = torch.zeros(20, dtype=torch.int64)  # to the left, until a wall
    oldest = 0
    for _ in range(1500):
        env.step(still)
        ages = (env.state.time.unsqueeze(1) - env.state.born)[env.state.things > 0]
        oldest = max(oldest, int(ages.max()))
    assert LIFE < oldest <= LIFE + 2 * PLACES
    assert bool((env.state.born[env.state.things > 0] > 0).all())  # all of them came anew


def rate(policy: Any, steps: int = 300, **params: Any) -> float:
    """Mean reward of a step."""
    env, total = Forager(64, **params), 0.0
    env.reset(seed=6)
    for _ in range(steps):
        total += float(env.eager_step(search(env, env.state, policy))[1].mean())
    return total / steps


def test_knowing_what_is_good_is_worth_more_than_knowing_where_it_is() -> None:
    oracle, nearest, random = (rate(policy) for policy in ("oracle", "nearest", "random"))
    assert oracle > 0.6 > 0 > random > nearest  # what is nearest is bad more often than good


def test_the_oracle_goes_to_the_other_strip_when_half_a_period_is_over() -> None:
    env = Forager(64, period=600)
    env.reset(seed=7)
    good = []
    for _ in range(600):
        env.eager_step(search(env, env.state, "oracle"))
        good.append(float((env.state.x < 12).float().mean()))
    assert np.mean(good[100:300]) > 0.9 and np.mean(good[400:600]) < 0.1


def test_a_view_that_is_even_or_too_large_is_refused() -> None:
    for view in (4, 17):
        with pytest.raises(EnvError, match=f"view is {view}"):
            Forager(1, view=view)
