"""Parity: the answers are those that Python finds in the digits that were shown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lifelong.envs.errors import EnvError
from lifelong.envs.prediction.parity import Parity


def live(env: Parity, steps: int) -> list[dict[str, Tensor]]:
    """What was seen and told in so many steps, guessing 1 everywhere."""
    seen, _ = env.reset()
    found = []
    for _ in range(steps):
        shown = seen
        seen, reward, done, _, info = env.step(torch.ones(env.num_envs, env.longest - 1, dtype=torch.int64))
        found.append({"digit": shown[:, 0], "reward": reward, "done": done, **info})
    return found


def episodes(env: Parity, copy: int, steps: int) -> list[list[dict[str, Tensor]]]:
    """The whole episodes of one copy."""
    rows = [{name: x[copy] for name, x in step.items()} for step in live(env, steps)]
    ends = [i + 1 for i, row in enumerate(rows) if row["done"]]
    return [rows[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(("question", "least"), [("parity", 0), ("parity", 3), ("match", 2)])
def test_every_answer_is_that_of_the_digits_that_were_shown(question: str, least: int) -> None:
    env = Parity(2, longest=6, question=question, n=[5, 5], least=least, seed=3)  # type: ignore[arg-type]
    found = episodes(env, 0, 600)
    assert len(found) > 30
    for rows in found:
        digits = [int(row["digit"]) for row in rows]
        truth = [sum(digits[-N:]) % 2 if question == "parity" else int(digits[-N] == digits[-1]) for N in range(2, 7)]
        told = [t if (least or 5) <= N <= 5 else -1 for N, t in zip(range(2, 7), truth, strict=True)]
        assert rows[-1]["target"].tolist() == told
        assert [bool(row["target_mask"]) for row in rows] == [False] * (len(rows) - 1) + [True]
        assert [float(row["reward"]) for row in rows] == [0.0] * (len(rows) - 1) + [float(truth[3] == 1)]


def test_lengths_are_uniform_and_follow_the_n_of_the_copy() -> None:
    env = Parity(2, longest=4, n=[2, 4], seed=0)
    for copy, n in ((0, 2), (1, 4)):
        lengths = torch.tensor([len(rows) for rows in episodes(env, copy, 20_000)])
        assert lengths.min() == n + 2 and lengths.max() == 4 * n + 2
        share = torch.bincount(lengths)[n + 2 :] / len(lengths)
        assert float((share * (3 * n + 1) - 1).abs().max()) < 0.3


def test_guessing_is_right_half_of_the_time() -> None:
    returns = torch.stack([row["reward"] for row in live(Parity(200, longest=5, n=5, seed=1), 400)])
    ended = torch.stack([row["done"] for row in live(Parity(200, longest=5, n=5, seed=1), 400)])
    assert abs(float(returns[ended].mean()) - 0.5) < 0.02


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(EnvError, match=r"Parity\.n is 5, above longest, 4"):
        Parity(2, longest=4, n=5)
    with pytest.raises(EnvError, match=r"Parity\.least must be 0"):
        Parity(2, longest=4, n=3, least=4)
