"""GridWorld: ways are as long as scipy finds them, and layouts are tasks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import shortest_path

from lifelong.envs.memory.grid_world import MOVES, GridWorld, layout_of


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_way_is_as_long_as_scipy_finds_it(seed: int) -> None:
    size, away = 6, layout_of(seed, 6).numpy()
    graph = np.zeros((size * size, size * size))
    for cell in range(size * size):
        for down, right in MOVES:
            y, x = cell // size + down, cell % size + right
            if 0 <= y < size and 0 <= x < size and away[cell] >= 0 and away[y * size + x] >= 0:
                graph[cell, y * size + x] = 1
    found = shortest_path(graph, unweighted=True, indices=int((away == 0).argmax()))
    assert (found[away >= 0] == away[away >= 0]).all() and (away == 0).sum() == 1 and (away > 0).sum() > 17


def test_who_goes_the_shortest_way_is_paid_by_its_length() -> None:
    env = GridWorld(400, layout=[i % 8 for i in range(400)], seed=0)
    env.reset()
    left = env._away(env.state.cell)
    assert bool((left > 0).all())
    first, done = left.clone(), torch.zeros(400, dtype=torch.bool)
    for step in range(1, 30):
        _, reward, ended, *_ = env.step(env.oracle(env.state))
        now = ended & ~done
        assert torch.equal(now, (first == step) & ~done)
        assert torch.allclose(reward[now], torch.tensor(1 - 0.9 * step / 30))
        done |= ended
    assert bool(done.all())


def test_walls_and_the_rim_hold_the_agent_back() -> None:
    env, generator = GridWorld(200, layout=3, seed=1), torch.Generator().manual_seed(1)
    obs, _ = env.reset()
    assert torch.equal(obs[0, :36] > 0, layout_of(3, 6) < 0)
    for _ in range(60):
        before = env.state.cell.clone()
        *_, info = env.step(torch.randint(4, (200,), generator=generator))
        agent = info["final_obs"][:, 72:].argmax(1)
        assert bool((layout_of(3, 6)[agent] >= 0).all())
        moved = (agent // 6 - before // 6).abs() + (agent % 6 - before % 6).abs()
        assert int(moved.max()) == 1


def test_the_score_is_that_of_random_actions_and_of_the_shortest_way() -> None:
    for which, wanted in enumerate(GridWorld.SCORE):
        env = GridWorld(3000, layout=[i % 50 for i in range(3000)], seed=0)
        env.reset()
        generator, returns = torch.Generator().manual_seed(0), []
        for _ in range(60):
            random = torch.randint(4, (3000,), generator=generator)
            _, _, ended, cut, info = env.step(env.oracle(env.state) if which else random)
            returns.append(info["episode_return"][ended | cut])
        assert float(torch.cat(returns).mean()) == pytest.approx(wanted, abs=0.02)
