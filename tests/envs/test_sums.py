"""Addition and ModularAddition: the sums are those that Python finds, and training never sees what is evaluated."""

from __future__ import annotations

import torch

from lifelong.envs.prediction.addition import Addition
from lifelong.envs.prediction.modular_addition import ModularAddition


def test_the_digits_are_those_of_the_sum_that_python_finds() -> None:
    env = Addition(64, base=10, digits=12, least=3, seed=0)
    obs, _ = env.reset()
    lengths, shown, said = set(), [[] for _ in range(64)], [[] for _ in range(64)]  # type: ignore[var-annotated]
    for _ in range(40):
        before = obs
        obs, _, ended, _, info = env.step(torch.zeros(64, dtype=torch.int64))
        for copy in range(64):
            shown[copy].append(before[copy].tolist())
            said[copy].append(int(info["target"][copy]))
            if ended[copy]:
                assert shown[copy][-1] == [10, 10]
                digits = shown[copy][:-1]
                a, b = (sum(pair[i] * 10**k for k, pair in enumerate(digits)) for i in (0, 1))
                assert sum(digit * 10**k for k, digit in enumerate(said[copy])) == a + b
                lengths.add(len(digits))
                shown[copy], said[copy] = [], []
    assert lengths == set(range(3, 13))


def test_a_sum_is_right_if_every_digit_is() -> None:
    env = Addition(200, digits=4, seed=1)
    env.reset()
    wrong = torch.arange(200) % 2 == 0
    for step in range(5):
        total = torch.where(env.state.left < 0, 0, env.state.pair.sum(1)) + env.state.carry
        slip = (wrong & (step == 2)).long()
        _, reward, ended, *_ = env.step((total + slip) % 10)
    assert bool(ended.all()) and torch.equal(reward, (~wrong).float())


def test_pairs_that_are_evaluated_were_never_trained_on() -> None:
    seen: dict[bool, set[tuple[int, int]]] = {}
    for evaluation in (False, True):
        env = ModularAddition(500, modulus=11, share=0.3, split=4, evaluation=evaluation, seed=0)
        first, _ = env.reset()
        seen[evaluation] = set()
        for _ in range(40):
            second = env.step(torch.zeros(500, dtype=torch.int64))[0]
            first, reward, ended, _, info = (lambda a, out: (a, *out[1:]))(first, env.step((first + second) % 11))
            assert bool(ended.all()) and bool((reward == 1).all()) and bool(info["target_mask"].all())
            assert torch.equal(info["target"], (first + second) % 11)
            seen[evaluation] |= set(zip(first.tolist(), second.tolist(), strict=True))
            first = env.observe(env.state)
    assert len(seen[False]) == round(0.3 * 121) and not seen[False] & seen[True]
    assert len(seen[False] | seen[True]) == 121
