"""Evaluations and the continual-learning metrics computed from them. numpy only: nothing here needs torch.

Notation: p_i(t) is the *performance* on task i at environment step t: the mean return over the evaluation episodes, on
a scale where 0 is a useless policy and 1 a solved task (not clipped). T is the last evaluation point. Task i was
*learned* at the first evaluation point at or after the step at which its training ended for the last time.

Every metric is recomputed from `evaluation.npz`; the scale comes from the task, never from the runs that are compared.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lifelong.agent.errors import CheckpointError
from lifelong.agent.files import NUMBER, parse_json, write
from lifelong.agent.runtime.appended import POINTS

#: a task whose performance when its training ended is below this was never learned: a share of it that is left, or its
#: being forgotten, would mean nothing
LEARNED_FROM = 0.1


class Evaluations:
    """The raw evaluation tensor of a run: evaluation point x task x episode.

    A run may be given tasks and another number of episodes: what a point does not have is not a number there.

    Args:
        tasks: names of the tasks.
        scores: (return of a useless policy, return of a solved task) per task.
        training_end: environment step at which training on each task ends for the last time.
        scored: whether the score of each task is known; (0, 1) stands for one that is not, and performance is the
            return. None: all are.

    Raises:
        ValueError: no task, lists of different lengths, or a score whose two returns are equal.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        scores: Sequence[Sequence[float]],
        training_end: Sequence[int],
        scored: Sequence[bool] | None = None,
    ) -> None:
        if not tasks or not len(tasks) == len(scores) == len(training_end):
            raise ValueError(
                f"{len(tasks)} tasks, {len(scores)} scores and {len(training_end)} training ends do not match"
            )
        self.tasks = [str(task) for task in tasks]
        self.scores = [(float(low), float(high)) for low, high in scores]
        self.training_end = [int(end) for end in training_end]
        self.scored = [True] * len(tasks) if scored is None else [bool(known) for known in scored]
        #: environment step of each evaluation point
        self.steps: list[int] = []
        #: returns of each evaluation point, [tasks, episodes]
        self.returns: list[np.ndarray] = []
        for task, (low, high) in zip(self.tasks, self.scores, strict=True):
            if low == high:
                raise ValueError(
                    f"task {task}: a useless and a solved policy both score {low}; nothing can be measured"
                )

    def add(self, step: int, returns: np.ndarray) -> None:
        """Append an evaluation point.

        Args:
            step: environment step; not before the last point (a finished run may be evaluated again).
            returns: returns of the evaluation episodes, [tasks, episodes].

        Raises:
            ValueError: wrong shape, or a step that lies before the last point.
        """
        returns = np.array(returns, dtype=np.float64)
        if returns.ndim != 2 or returns.shape[0] != len(self.tasks) or not returns.shape[1]:
            raise ValueError(f"returns have shape {returns.shape}; this run needs [{len(self.tasks)} tasks, episodes]")
        if self.steps and step < self.steps[-1]:
            raise ValueError(f"evaluation at step {step} comes after the one at step {self.steps[-1]}")
        self.steps.append(int(step))
        self.returns.append(returns)

    def tensor(self) -> np.ndarray:
        """All returns, [points, tasks, episodes]."""
        tensor = np.full((len(self.steps), len(self.tasks), max([r.shape[1] for r in self.returns], default=0)), np.nan)
        for point, returns in enumerate(self.returns):
            tensor[point, : returns.shape[0], : returns.shape[1]] = returns
        return tensor

    @property
    def complete(self) -> bool:
        """Whether every task has been evaluated."""
        return bool(self.returns) and len(self.returns[-1]) == len(self.tasks)

    def performance(self) -> np.ndarray:
        """p_i(t) = mean over episodes of (return - low_i) / (high_i - low_i), not clipped; [points, tasks].

        Not a number before there was the task.
        """
        return np.array([self.performance_at(point) for point in range(len(self.steps))]).reshape(-1, len(self.tasks))

    def performance_at(self, point: int) -> np.ndarray:
        """p_i at one evaluation point, [tasks]; costs the same however many there are."""
        low, high = np.array(self.scores).T
        means = np.full(len(self.tasks), np.nan)
        means[: len(self.returns[point])] = _mean(self.returns[point])
        return (means - low) / (high - low)

    def only(self, tasks: Sequence[int]) -> Evaluations:
        """The evaluations of some of the tasks, given by their indices."""
        if list(tasks) == list(range(len(self.tasks))):
            return self
        chosen = Evaluations(
            [self.tasks[i] for i in tasks],
            [self.scores[i] for i in tasks],
            [self.training_end[i] for i in tasks],
            [self.scored[i] for i in tasks],
        )
        tensor = self.tensor()[:, list(tasks)]
        for step, returns in zip(self.steps, tensor, strict=True):
            chosen.add(step, returns)
        return chosen

    def save(self, path: Path) -> None:
        """Write `evaluation.npz` atomically; the same data gives the same bytes (zip members carry no clock time)."""
        arrays: dict[str, Any] = {
            "steps": np.array(self.steps, dtype=np.int64),
            "returns": self.tensor(),
            "performance": self.performance(),
            "tasks": np.array(self.tasks, dtype=np.str_),
            "scores": np.array(self.scores),
            "training_end": np.array(self.training_end, dtype=np.int64),
            "scored": np.array(self.scored, dtype=np.bool_),
        }
        write(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: Path) -> Evaluations:
        """Read what `save` wrote.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as saved:
                names = ("tasks", "scores", "training_end", *(["scored"] if "scored" in saved else []))
                evaluations = cls(*(saved[name].tolist() for name in names))
                for step, returns in zip(saved["steps"].tolist(), saved["returns"], strict=True):
                    evaluations.add(step, returns)
        except Exception as error:  # damaged bytes make zip, zlib and numpy raise whatever they have
            raise CheckpointError(f"cannot read {path}: {error or type(error).__name__}") from error
        return evaluations

    @classmethod
    def of(cls, folder: Path) -> Evaluations:
        """Those of a run folder: its `evaluation.npz`, and what a run that goes on has appended to `evaluation.jsonl`
        since it wrote that.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        evaluations = cls.load(folder / "evaluation.npz")
        lines = folder / POINTS
        if lines.exists():
            for step, returns in _points(lines)[len(evaluations.steps) :]:
                evaluations.add(step, returns)
        return evaluations

    def line(self) -> str:
        """The last point as a line of `evaluation.jsonl`; every bit of it comes back."""
        return json.dumps({"step": self.steps[-1], "returns": self.returns[-1].tolist()}) + "\n"

    def restore(self, folder: Path, size: int) -> None:
        """Take the points from the first `size` bytes of `evaluation.jsonl`; tasks may have been added since.

        Raises:
            ValueError: they are of more tasks than this run has.
            CheckpointError: the file is missing or damaged.
        """
        points = _points(folder / POINTS, size)
        if any(len(returns) > len(self.tasks) for _, returns in points):
            raise ValueError(f"saved evaluations are of more tasks than the {len(self.tasks)} in this run")
        self.steps, self.returns = [step for step, _ in points], [returns for _, returns in points]


def _points(path: Path, size: int = -1) -> list[tuple[int, np.ndarray]]:
    """(step, returns [tasks, episodes]) of the whole lines among the first `size` bytes of `evaluation.jsonl`."""
    try:
        with open(path, "rb") as file:
            *whole, rest = file.read(size).split(b"\n")
        if rest and size >= 0:
            raise ValueError(f"no line ends at byte {size:,}, where the checkpoint has one")
        points = [parse_json(line, path, {"step": int, "returns": [[NUMBER]]}) for line in whole]
        return [(point["step"], np.array(point["returns"], dtype=np.float64)) for point in points]
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def _mean(returns: np.ndarray) -> np.ndarray:
    """Mean over the episodes that there were, [tasks]."""
    there = ~np.isnan(returns)
    total, count = np.where(there, returns, 0.0).sum(axis=1), there.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


# ---- per task --------------------------------------------------------------------------------------------------------


def _learned_points(evaluations: Evaluations) -> np.ndarray:
    """Index of the evaluation point at which each task was learned (the last point if that is still to come)."""
    if not evaluations.steps:
        raise ValueError("there is no evaluation point yet")
    last = len(evaluations.steps) - 1
    return np.array([min(bisect.bisect_left(evaluations.steps, end), last) for end in evaluations.training_end])


def _can_forget(evaluations: Evaluations) -> np.ndarray:
    """Tasks that enter forgetting and backward transfer, bool [tasks].

    Those that were trained until the end, or have no evaluation point after the one they were learned at, cannot have
    forgotten anything yet; counting their zero would only dilute the mean (`reference/cl_libraries.md` 6.7, trap e).
    """
    ends = np.array(evaluations.training_end)
    return (ends < ends.max()) & (_learned_points(evaluations) < len(evaluations.steps) - 1)


def learned(evaluations: Evaluations) -> np.ndarray:
    """p_i at the first evaluation point at or after the end of training on task i (else the last point); [tasks].

    The diagonal R_{i,i} of Lopez-Paz & Ranzato, *GEM* (NeurIPS 2017); p_i(i·Δ) of Wołczyk et al., *Continual World*
    (NeurIPS 2021), without the smoothing over five evaluations that their code does.

    Raises:
        ValueError: there is no evaluation point yet (also in every metric below).
    """
    points = _learned_points(evaluations)
    return np.array([evaluations.performance_at(point)[task] for task, point in enumerate(points)])


def final(evaluations: Evaluations) -> np.ndarray:
    """p_i(T), performance at the last evaluation point; [tasks]. R_{N,i} of *GEM*."""
    _learned_points(evaluations)
    return evaluations.performance_at(-1)


def retained(evaluations: Evaluations) -> np.ndarray:
    """p_i(T) / p_i(learned), the share of what was learned that is left; NaN where nothing was learned; [tasks]."""
    at_learning = learned(evaluations)
    share = np.full_like(at_learning, np.nan)
    np.divide(final(evaluations), at_learning, out=share, where=was_learned(at_learning))
    return share


def was_learned(at_learning: np.ndarray | float) -> Any:
    """Whether a performance p_i(learned) is at least `LEARNED_FROM` of the way from useless to solved."""
    return np.asarray(at_learning) >= LEARNED_FROM


# ---- over tasks ------------------------------------------------------------------------------------------------------


def average_performance(evaluations: Evaluations) -> float:
    """`continual/average_performance`: P = (1/N) Σ_i p_i(T), over all tasks. *Continual World*, P(T)."""
    return float(np.nanmean(final(evaluations)))


def over_tasks(evaluations: Evaluations) -> dict[str, float]:
    """What a log has of the last evaluation point: the metrics that need no other run, by their names."""
    return {
        "continual/average_performance": average_performance(evaluations),
        "continual/forgetting": forgetting(evaluations),
        "continual/backward_transfer": backward_transfer(evaluations),
    }


def average_performance_over_time(evaluations: Evaluations) -> np.ndarray:
    """P(t) = (1/N) Σ_i p_i(t) at every evaluation point, tasks that were not trained yet included; [points].

    *Continual World*, P(t). Of a run that was given tasks, N counts those that there were at t.
    """
    return np.nanmean(evaluations.performance(), axis=1)


def forgetting(evaluations: Evaluations) -> float:
    """`continual/forgetting`: F = mean_i [p_i(learned) - p_i(T)] over all tasks but those trained until the end.

    Negative when later tasks improved earlier ones. 0.0 when no task can have forgotten yet (a single task, joint
    training, the middle of the first task). A task that was never learned has nothing to forget and pulls the mean
    towards 0, so whoever shows this number shows which tasks those are, too. *Continual World* takes the mean over all
    tasks, the last one included, which makes the number smaller by (N-1)/N; COOM leaves it out as we do.
    """
    counted = _can_forget(evaluations)
    return float((learned(evaluations) - final(evaluations))[counted].mean()) if counted.any() else 0.0


def forgetting_max(evaluations: Evaluations) -> float:
    """`continual/forgetting_max`: F = mean_i [max_{t<T} p_i(t) - p_i(T)] over the tasks of `forgetting`.

    Chaudhry et al., *Riemannian Walk* (ECCV 2018), with the maximum over every evaluation point before the last, not
    over task ends only. Noise in the evaluation biases it upwards. 0.0 when no task can have forgotten yet.
    """
    counted = _can_forget(evaluations)
    if not counted.any():
        return 0.0
    performance = evaluations.performance()
    return float((np.nanmax(performance[:-1, counted], axis=0) - performance[-1, counted]).mean())


def backward_transfer(evaluations: Evaluations) -> float:
    """`continual/backward_transfer`: BWT = mean_i [p_i(T) - p_i(learned)] over all tasks but those trained last.

    *GEM*: (1/(N-1)) Σ_{i<N} (R_{N,i} - R_{i,i}). The negative of `forgetting`; 0.0 when that is.
    """
    counted = _can_forget(evaluations)
    return float((final(evaluations) - learned(evaluations))[counted].mean()) if counted.any() else 0.0


def forward_transfer_auc(evaluations: Evaluations, references: Sequence[Evaluations]) -> np.ndarray:
    """FT_i = (AUC_i - AUC_i^b) / (1 - AUC_i^b); [tasks]. Its mean is `continual/forward_transfer_auc`.

    AUC_i = (1/Δ) ∫ p_i(t) dt over the Δ steps in which task i is trained (for the last time), AUC_i^b the same for a
    run on task i alone with the same budget Δ. Wołczyk et al., *Continual World* (NeurIPS 2021). The integral is
    trapezoidal over the evaluation points, with p interpolated at both ends of the interval (constant before the first
    and after the last point). NaN where AUC_i^b >= 1, where the formula means nothing; very negative if the reference
    is strong.

    Args:
        evaluations: the run on the stream.
        references: one single-task run per task, in the order of `evaluations.tasks`; its `training_end` is Δ.

    Raises:
        ValueError: a reference is missing, of another task or another score, or was trained longer than the stream.
    """
    if len(references) != len(evaluations.tasks):
        raise ValueError(f"{len(references)} references for {len(evaluations.tasks)} tasks; one per task is needed")
    transfer = np.full(len(evaluations.tasks), np.nan)
    for i, (task, reference) in enumerate(zip(evaluations.tasks, references, strict=True)):
        if task not in reference.tasks:
            raise ValueError(f"the reference of task {task} was evaluated on {reference.tasks}")
        j = reference.tasks.index(task)
        if reference.scores[j] != evaluations.scores[i]:
            raise ValueError(f"task {task} has score {evaluations.scores[i]}, its reference {reference.scores[j]}")
        end, budget = evaluations.training_end[i], reference.training_end[j]
        if not 0 < budget <= end:
            raise ValueError(
                f"the reference of task {task} has {budget} steps; its training in the stream ends at {end}"
            )
        auc = _mean_over(evaluations, i, end - budget, end)
        baseline = _mean_over(reference, j, 0, budget)
        if baseline < 1:
            transfer[i] = (auc - baseline) / (1 - baseline)
    return transfer


def _mean_over(evaluations: Evaluations, task: int, start: int, end: int) -> float:
    """Mean of p_task over the steps [start, end]: the area under the evaluation curve divided by its length."""
    _learned_points(evaluations)
    curve = evaluations.performance()[:, task]
    there = ~np.isnan(curve)
    steps, curve = np.array(evaluations.steps, dtype=np.float64)[there], curve[there]
    inside = steps[(steps > start) & (steps < end)]
    grid = np.concatenate([[start], inside, [end]])
    curve = np.interp(grid, steps, curve)
    return float((0.5 * (curve[1:] + curve[:-1]) * np.diff(grid)).sum() / (end - start))
