"""Copy: the words that were shown are the truth, in the order that belongs to the task."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lifelong.envs.errors import EnvError
from lifelong.envs.prediction.copy import Copy, order_of


def episode(env: Copy, answer: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is seen [T, B, bits + 1], the truth [T, B, bits], where it counts [T, B], the returns [B] of one episode."""
    seen, truth, counts = [env.observe(env.state)], [], []
    steps = 2 * env.length + env.delay
    for t in range(steps):
        action = torch.zeros(env.num_envs, env.bits, dtype=torch.int64) if answer is None else answer[t]
        _, _, terminated, _, info = env.step(action)
        assert terminated.tolist() == [t == steps - 1] * env.num_envs
        truth.append(info["target"])
        counts.append(info["target_mask"])
        seen.append(info["final_obs"])
    return torch.stack(seen[:-1]), torch.stack(truth), torch.stack(counts), info["episode_return"]


@pytest.mark.parametrize("delay", [0, 3])
def test_what_was_shown_is_asked_for_in_the_order_of_the_task(delay: int) -> None:
    env = Copy(3, length=4, bits=6, delay=delay, permutation=[0, 1, 2], seed=0)
    env.reset()
    seen, truth, counts, _ = episode(env)
    words, begins = seen[:4, :, :6], 4 + delay
    assert counts.sum(0).tolist() == [4] * 3 and bool(counts[begins:].all())
    for copy, seed in enumerate((0, 1, 2)):
        order = order_of(seed, 4)
        assert sorted(order.tolist()) == [0, 1, 2, 3]
        assert torch.equal(truth[begins:, copy].float(), words[order, copy])
    assert order_of(0, 4).tolist() == [0, 1, 2, 3]
    assert seen[:, :, 6].nonzero()[:, 0].tolist() == [begins] * 3  # the sign to answer, once
    assert not seen[4:, :, :6].any()


def test_the_return_is_the_share_of_bits_that_are_right() -> None:
    env = Copy(4, length=5, bits=2, seed=1)
    env.reset()
    other = Copy(4, length=5, bits=2, seed=1)
    other.reset()
    _, truth, _, _ = episode(other)
    wrong = truth.clone()
    wrong[:, 1, 0] = 1 - wrong[:, 1, 0]  # one of two bits
    wrong[:, 2] = 1 - wrong[:, 2]
    *_, returns = episode(env, wrong)
    torch.testing.assert_close(returns, torch.tensor([1.0, 0.5, 0.0, 1.0]))


def test_words_are_drawn_uniformly_and_orders_survive_a_restart() -> None:
    env = Copy(500, length=5, bits=7, permutation=3, seed=0)
    env.reset()
    assert abs(float(env.state.words.float().mean()) - 0.5) < 0.02
    other = Copy(500, length=5, bits=7)
    other.load_state_dict(env.state_dict())
    assert torch.equal(episode(other)[1], episode(env)[1])


def test_episodes_of_a_changing_number_of_words_end_with_the_last_answer() -> None:
    env = Copy(300, length=6, shortest=2, bits=1, seed=0)
    env.reset()
    count = env.state.count.clone()
    assert set(count.tolist()) == {2, 3, 4, 5, 6}
    words, ended = env.state.words[:, :, 0].long(), torch.zeros(300, dtype=torch.int64)
    for t in range(12):
        now = (t - count).clamp(0, 5)
        target = words.gather(1, now[:, None])
        _, _, terminated, _, info = env.step(target)
        alive = ended == 0
        answers = (t >= count) & alive
        assert torch.equal(info["target_mask"][alive], answers[alive])
        assert torch.equal(info["target"][answers], target[answers])
        assert bool((info["episode_return"][terminated & alive] == 1.0).all())
        ended = torch.where(terminated & alive, t + 1, ended)
    assert torch.equal(ended, 2 * count)


def test_what_is_not_shown_whole_is_not_permuted() -> None:
    with pytest.raises(EnvError, match=r"Copy\.shortest is 7, above length, 5"):
        Copy(2, shortest=7)
    with pytest.raises(EnvError, match=r"Copy\.permutation must be 0"):
        Copy(2, shortest=2, permutation=1)
