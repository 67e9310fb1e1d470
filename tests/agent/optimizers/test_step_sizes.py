"""Step-size rules against their published equations, written out number by number, and against closed forms."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lifelong.agent.optimizers.autostep import Autostep
from lifelong.agent.optimizers.intentional import Intentional
from lifelong.agent.optimizers.obgd import ObGD
from lifelong.agent.optimizers.step_size import StepSize, Streamed
from lifelong.agent.parallel import ALONE, Workers

GAMMA, LAM = 0.9, 0.8


class Stream:
    """A linear prediction v = theta x in two tensors, its gradients x and targets that are random."""

    def __init__(self, rule: Any, rows: int = 1, seed: int = 0, lam: float = LAM, **options: Any) -> None:
        self.draw, self.rows, self.decay = np.random.default_rng(seed), rows, GAMMA * lam
        start = self.draw.normal(size=7)
        self.parameters = [nn.Parameter(torch.tensor(start[:4]).view(2, 2)), nn.Parameter(torch.tensor(start[4:]))]
        self.rule: StepSize = rule(self.parameters, **options)
        self.trace = torch.zeros(rows, 7, dtype=torch.float64)

    def theta(self) -> np.ndarray:
        return torch.cat([p.detach().flatten() for p in self.parameters]).numpy().copy()

    def moment(self) -> tuple[np.ndarray, np.ndarray]:
        """Gradients [rows, 7] and errors [rows], some of them large."""
        slope = self.draw.normal(size=(self.rows, 7)) * np.geomspace(0.1, 10, 7)
        return slope, self.draw.normal(size=self.rows) * (20 if self.draw.random() < 0.2 else 1)

    def step(self, slope: np.ndarray, error: np.ndarray, workers: Any = ALONE) -> None:
        self.trace = self.decay * self.trace + torch.tensor(slope)
        share = torch.full((self.rows,), 1 / self.rows, dtype=torch.float64)
        streamed = Streamed(torch.tensor(error), share, self.trace, torch.tensor(slope), self.decay, self.parameters)
        factor = share * streamed.error_R * self.rule.scales(streamed, workers)
        for p, x in zip(self.parameters, streamed.split(factor @ self.trace), strict=True):
            p.grad = -x
        workers.mean_([p.grad for p in self.parameters])
        self.rule.step()


@pytest.mark.parametrize("rows", [1, 3])
def test_obgd_is_algorithm_3_of_stream_x(rows: int) -> None:
    stream = Stream(ObGD, rows, lr=1.0, kappa=2.0)
    theta, trace, bounded = stream.theta(), np.zeros((rows, 7)), 0
    for _ in range(30):
        slope, error = stream.moment()
        stream.step(slope, error)
        trace = GAMMA * LAM * trace + slope
        for r in range(rows):
            over = 1.0 * 2.0 * max(abs(error[r]), 1.0) * np.abs(trace[r]).sum()
            alpha = min(1.0 / over, 1.0)
            bounded += alpha < 1
            theta = theta + alpha * error[r] * trace[r] / rows
        np.testing.assert_allclose(stream.theta(), theta, rtol=1e-12)
    assert bounded


def test_a_bounded_step_never_overshoots() -> None:
    """Without a trace, on a linear prediction with inputs up to 1: the error after the step has the sign it had."""
    stream = Stream(ObGD, lam=0.0, kappa=1.0, lr=10.0)
    for _ in range(200):
        x, error = stream.draw.uniform(-1, 1, (1, 7)), stream.draw.normal(size=1) * 5
        before = stream.theta()
        stream.step(x, error)
        moved = float((stream.theta() - before) @ x[0])
        assert 0 <= moved / error[0] <= 1


class LiteralIntentional:
    """The paper's equations for one row, a number at a time."""

    def __init__(self, eta: float, normalize: bool, decay: float) -> None:
        self.eta, self.normalize, self.decay = eta, normalize, decay
        self.v, self.z, self.sigma, self.square, self.size, self.t = np.zeros(7), np.zeros(7), 0.0, 1.0, 0.0, 0

    def step(self, g: np.ndarray, delta: float) -> np.ndarray:
        self.t += 1
        self.v = 0.999 * self.v + 0.001 * g * g
        m = np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8
        self.z = self.decay * self.z + g
        self.sigma += (1 - self.decay) * (float((g * g / m).sum()) - self.sigma)
        corrected = self.sigma / (1 - self.decay**self.t)
        alpha = self.eta / max(math.sqrt(corrected * float((self.z * self.z / m).sum())), 1e-8)
        self.square = 0.9998 * self.square + 0.0002 * delta * delta
        most = 20.0 * math.sqrt(self.square / (1 - 0.9998**self.t))
        safe = math.copysign(min(abs(delta), most), delta)
        if self.normalize:
            self.size = 0.9998 * self.size + 0.0002 * abs(safe)
            safe /= max(self.size / (1 - 0.9998**self.t), 1e-12)
        return alpha * safe * self.z / m


@pytest.mark.parametrize("normalize", [False, True])
def test_intentional_is_the_published_update(normalize: bool) -> None:
    stream = Stream(Intentional, lr=0.5, normalize=normalize)
    literal, theta = LiteralIntentional(0.5, normalize, GAMMA * LAM), stream.theta()
    for t in range(40):
        slope, error = stream.moment()
        error = error * 1e6 if t == 30 else error  # clipped
        stream.step(slope, error)
        theta = theta + literal.step(slope[0], float(error[0]))
        np.testing.assert_allclose(stream.theta(), theta, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_an_intended_share_of_the_error_is_what_the_prediction_moves_by(scale: float) -> None:
    """Closed form: without a trace and with inputs of constant size, v moves by eta delta, whatever their scale is."""
    stream = Stream(Intentional, lam=0.0, lr=0.3)
    x = np.sign(stream.draw.normal(size=(1, 7))) * scale * np.geomspace(0.5, 2, 7)
    for _ in range(5):
        error, before = stream.draw.normal(size=1), stream.theta()
        stream.step(x, error)
        assert float((stream.theta() - before) @ x[0]) == pytest.approx(0.3 * float(error[0]), rel=1e-4)


def literal_autostep(
    x: np.ndarray, z: np.ndarray, delta: float, kept: tuple[np.ndarray, ...], mu: float, tau: float
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Table 1 of Mahmood et al. 2012 with the trace z in place of the second x, entry by entry."""
    alpha, v, h = (k.copy() for k in kept)
    for i in range(len(x)):
        pull = delta * x[i] * h[i]
        v[i] = max(abs(pull), v[i] + alpha[i] * x[i] * z[i] * (abs(pull) - v[i]) / tau)
        if v[i] != 0:
            alpha[i] *= math.exp(mu * pull / v[i])
    over = max(1.0, sum(alpha[i] * x[i] * z[i] for i in range(len(x))))
    alpha = alpha / over
    step = alpha * delta * z
    h = h * np.maximum(0.0, 1 - alpha * x * z) + step
    return step, (alpha, v, h)


@pytest.mark.parametrize("lam", [0.0, LAM])
def test_autostep_is_the_published_table(lam: float) -> None:
    stream = Stream(Autostep, lam=lam, lr=0.05, meta=0.2, tau=50.0)
    theta, z, kept = stream.theta(), np.zeros(7), (np.full(7, 0.05), np.zeros(7), np.zeros(7))
    for _ in range(60):
        slope, error = stream.moment()
        stream.step(slope, error)
        z = GAMMA * lam * z + slope[0]
        step, kept = literal_autostep(slope[0], z, float(error[0]), kept, 0.2, 50.0)
        theta = theta + step
        np.testing.assert_allclose(stream.theta(), theta, rtol=1e-8)
    assert kept[0].max() > 1.5 * kept[0].min()


def test_autostep_finds_the_inputs_that_matter() -> None:
    """A drifting linear target of two of seven inputs: their step sizes grow beyond those of the others."""
    stream = Stream(Autostep, lam=0.0, lr=0.01, meta=0.02)
    truth, draw = np.zeros(7), np.random.default_rng(1)
    for _ in range(6000):
        truth[:2] += 0.05 * draw.normal(size=2)
        x = draw.normal(size=(1, 7))
        stream.step(x, np.array([float((truth - stream.theta()) @ x[0]) + 0.1 * draw.normal()]))
    alpha = torch.cat([0.01 * stream.rule.state[p]["growth"].exp().flatten() for p in stream.parameters])
    assert float(alpha[:2].min()) > 3 * float(alpha[2:].max())


class Thread(Workers):
    """One of two workers that are threads of this process."""

    def __init__(self, rank: int, barrier: threading.Barrier, table: dict[int, list[Tensor]]) -> None:
        super().__init__(rank, 2)
        self.barrier, self.table = barrier, table

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        self.table[self.rank] = [x.clone() for x in tensors]
        self.barrier.wait(30)
        means = [(a + b) / 2 for a, b in zip(self.table[0], self.table[1], strict=True)]
        self.barrier.wait(30)
        for x, mean in zip(tensors, means, strict=True):
            x.copy_(mean)


@pytest.mark.parametrize("rule", [ObGD, Intentional, Autostep])
def test_two_workers_make_the_step_of_one_with_all_rows(rule: Any) -> None:
    whole, parts = Stream(rule, 4), [Stream(rule, 2) for _ in range(2)]
    for part in parts:
        for p, q in zip(part.parameters, whole.parameters, strict=True):
            p.data.copy_(q.data)
    moments = [whole.moment() for _ in range(8)]
    for slope, error in moments:
        whole.step(slope, error)

    barrier, table = threading.Barrier(2), dict[int, list[Tensor]]()

    def work(rank: int) -> None:
        for slope, error in moments:
            half = slice(2 * rank, 2 * rank + 2)
            parts[rank].step(slope[half], error[half], Thread(rank, barrier, table))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part in parts:
        np.testing.assert_allclose(part.theta(), whole.theta(), rtol=1e-10)


@pytest.mark.parametrize("rule", [ObGD, Intentional, Autostep])
def test_a_rule_goes_on_from_its_state(rule: Any) -> None:
    whole, part = Stream(rule), Stream(rule)
    moments = [whole.moment() for _ in range(12)]
    for slope, error in moments:
        whole.step(slope, error)
    for slope, error in moments[:6]:
        part.step(slope, error)
    rest = Stream(rule)
    for p, q in zip(rest.parameters, part.parameters, strict=True):
        p.data.copy_(q.data)
    rest.rule.load_state_dict(part.rule.state_dict())
    rest.trace = part.trace
    for slope, error in moments[6:]:
        rest.step(slope, error)
    np.testing.assert_array_equal(rest.theta(), whole.theta())
