"""Functions of one copy, compiled: every operation that is known, against torch bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lifelong.kernels import build
from lifelong.kernels.transitions import Transition, Untraceable, trace

pytestmark = pytest.mark.skipif(not build.can_compile(), reason="there is no C compiler")

COPIES, B = 61, 150
Inputs = dict[str, Tensor]


def inputs(copies: int, seed: int = 0) -> Inputs:
    """x, y, u > 0 float32; v [5] and w [3, 7] of it; i, j in 0..4 int64; n int32; k uint8; p, q bool; d float64."""
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(copies, generator=g) * 3, torch.randn(copies, generator=g)
    i = torch.randint(-9, 10, (copies,), generator=g)
    return {
        "x": x,
        "y": y,
        "u": torch.rand(copies, generator=g) + 0.05,
        "v": torch.randn(copies, 5, generator=g),
        "i": i,
        "j": torch.randint(0, 5, (copies,), generator=g),
        "n": torch.randint(-100, 100, (copies,), generator=g).to(torch.int32),
        "k": torch.randint(0, 256, (copies,), generator=g).to(torch.uint8),
        "p": torch.rand(copies, generator=g) < 0.5,
        "q": torch.rand(copies, generator=g) < 0.5,
        "w": torch.randn(copies, 3, 7, generator=g),
        "d": torch.randn(copies, generator=g, dtype=torch.float64),
        "table": torch.arange(12.0).view(3, 4),
    }


def run(function: Callable[[Inputs], Tensor], given: Inputs, in_place: str | None = None) -> Tensor:
    """The function compiled, on those inputs."""
    traced = trace(lambda t: {"result": function(t)}, inputs(COPIES), COPIES, torch.Generator())
    made = Transition("test", traced)
    (slot,) = made.outputs
    result = torch.empty(len(given["x"]), *slot.shape, dtype=slot.dtype)
    where = [given[s.name].data_ptr() for s in made.inputs] + [result.data_ptr()]
    pointers, sizes = (build.ctypes.c_void_p * len(where))(*where), (build.ctypes.c_int64 * 2)(len(result), 1)
    made.function(build.ctypes.addressof(sizes), build.ctypes.addressof(pointers))
    return result


def written(row: Tensor, x: Tensor) -> Tensor:
    row[:, 1:4] = 0.5
    row[:, 2] = x
    row[:, 3:][:, 1:].mul_(2)
    return row + 1


CASES: dict[str, Callable[[Inputs], Tensor]] = {
    "sums": lambda t: t["x"] + t["y"] - 3 + (1 - t["u"]) + 0.1,
    "sums with a factor": lambda t: torch.add(t["x"], t["y"], alpha=0.3) - torch.sub(t["u"], t["y"], alpha=2),
    "products": lambda t: t["x"] * t["y"] / t["u"] * -t["x"] / 7 + 2 / t["u"],
    "powers": lambda t: t["x"] ** 2 + t["y"] ** 3 + t["u"] ** -1 + t["u"] ** -2 + t["x"].square() + t["u"].reciprocal(),
    "integer powers": lambda t: t["i"] ** 2 + t["n"] ** 3,
    "integers": lambda t: t["i"] * t["j"] + t["n"] - t["k"] + 5 - t["i"].abs() + t["i"].sign() + -t["j"],
    "small integers wrap": lambda t: t["k"] * 3 + t["k"],
    "whole quotients": lambda t: torch.div(t["i"], 4, rounding_mode="floor") + t["i"] // 3 + t["i"] % 5 - t["i"] % -4,
    "quotients of integers": lambda t: t["i"] / 3 + t["j"] / (t["n"] * 2 + 1),
    "rests of floats": lambda t: torch.remainder(t["x"], 1.5) + t["x"] % t["u"],
    "shifts": lambda t: ((t["j"] << 3) ^ (t["i"] & 7)) | (t["i"] >> 1) | ~t["j"],
    "fused": lambda t: torch.addcmul(t["x"], t["y"], t["u"]) + torch.addcmul(t["y"], t["x"], t["u"], value=1 / 6),
    "fused, negative": lambda t: torch.addcmul(t["x"], t["y"], t["u"], value=-1),
    "fused, a quotient": lambda t: torch.addcdiv(t["x"], t["y"], t["u"], value=0.7),
    "between": lambda t: torch.lerp(t["x"], t["y"], 0.3) + torch.lerp(t["x"], t["y"], t["u"]),
    "trigonometry": lambda t: t["x"].sin() + t["x"].cos() * t["y"].tan() + (t["y"] / 9).asin() + (t["y"] / 9).acos(),
    "exponentials": lambda t: t["x"].exp() + t["u"].log() + t["u"].sqrt() + t["x"].tanh() + t["x"].atan(),
    "functions of torch itself": lambda t: t["y"].expm1() + t["u"].log1p() + t["y"].exp2() + t["y"].erf(),
    "functions of functions": lambda t: (t["x"].sin() * t["u"].sqrt()).cos().exp().sin() + t["x"].sin(),
    "rounding": lambda t: t["x"].floor() + t["x"].ceil() * 10 + t["x"].round() * 100 + t["x"].trunc() * 1000,
    "comparisons": lambda t: (
        (t["x"] < t["y"]).float()
        + (t["x"] <= 0).long() * 2
        + (t["i"] == t["j"]) * 4
        + (t["k"] != 7).int()
        + (t["p"] > t["q"]).float()
        + (t["i"] >= 1.5).float() * 8
    ),
    "truth": lambda t: (t["p"] & ~t["q"]) | (t["p"] ^ (t["x"] > 0)) & torch.logical_not(t["i"]),
    "truth of numbers": lambda t: torch.logical_or(t["i"], t["p"]) ^ torch.logical_xor(t["x"], t["q"]),
    "truth as numbers": lambda t: t["p"] + t["q"] * t["x"] + t["p"] * 2,
    "choice": lambda t: torch.where(t["p"], t["x"], t["i"]) + torch.where(t["q"], 1.5, t["y"]).masked_fill(t["p"], -3),
    "bounds": lambda t: t["x"].clamp(-1, 2) + t["y"].clamp(min=t["u"]) + t["i"].clamp(max=3) + torch.relu(t["x"]),
    "larger and smaller": lambda t: torch.maximum(t["x"], t["y"]) - torch.minimum(t["i"], t["j"]),
    "conversions": lambda t: t["x"].long() + t["x"].int() + t["i"].to(torch.int8) + t["x"].bool().byte(),
    "double": lambda t: (t["d"] * 2 + t["x"] - 1 / (t["d"] * t["d"] + 1)).float() + t["x"].double().float(),
    "made": lambda t: torch.zeros_like(t["x"]) + torch.ones(len(t["x"])) + torch.full_like(t["i"], 3),
    "columns": lambda t: t["v"].unbind(1)[2] + t["v"][:, -1] - t["v"][:, 1:4].sum(1) + t["v"][:, ::2][:, 1],
    "backwards": lambda t: t["v"].flip(1) + t["v"].roll(2, 1) + t["v"].roll(-1, dims=1),
    "side by side": lambda t: torch.cat((t["v"], t["x"].unsqueeze(1), t["w"][:, 0]), 1),
    "one above the other": lambda t: torch.stack((t["w"], t["w"] * 2), 1).flatten(2),
    "a long history": lambda t: torch.cat((t["x"].view(-1, 1, 1).expand(-1, 1, 7), t["w"][:, :-1]), 1).permute(0, 2, 1),
    "other axes": lambda t: t["w"].transpose(1, 2).reshape(-1, 3, 7) + t["w"].view(-1, 7, 3).transpose(1, 2),
    "a row of a table": lambda t: torch.arange(12.0).view(3, 4)[t["j"] % 3] + t["table"][(t["j"] + 1) % 3],
    "an entry of a table": lambda t: t["table"][t["j"] % 3, t["k"].long() % 4] + t["table"].flatten()[t["j"]],
    "counted from the end": lambda t: t["table"][-1 - t["j"] % 3, 1],
    "looked up": lambda t: t["v"].gather(1, t["j"].unsqueeze(1)) + t["w"].flatten(1).gather(1, t["v"].long().abs()),
    "of its own row": lambda t: t["v"][torch.arange(len(t["j"])), t["j"]],
    "put": lambda t: t["v"].scatter(1, t["j"].unsqueeze(1), 9.0) * 2,
    "put from a row": lambda t: t["v"].scatter(1, t["j"].unsqueeze(1), t["x"].unsqueeze(1)),
    "one hot": lambda t: torch.nn.functional.one_hot(t["j"], 6).float() * t["x"].unsqueeze(1),
    "a long one hot": lambda t: torch.nn.functional.one_hot(t["j"], 40),
    "sums of a copy": lambda t: t["v"].sum(1) + t["v"].mean(-1) + t["w"].sum((1, 2)) * 0 + (t["w"] > 0).sum((1, 2)),
    "bounds of a copy": lambda t: t["w"].amax(2).amin(1) + t["v"].amax(1),
    "the best of a copy": lambda t: t["v"].argmax(1) * 10 + t["v"].argmin(1, keepdim=True).squeeze(1),
    "all and any": lambda t: (t["v"] > 1).any(1) ^ (t["v"] < 1).all(1) | (t["w"] > 2).any(2).any(1),
    "written over": lambda t: t["x"].clone().add_(1).mul_(t["y"]).clamp_(min=0).masked_fill_(t["p"], 4.0),
    "a part written over": lambda t: written(t["v"].clone(), t["x"]),
    "a part of a long one written over": lambda t: written(t["w"].flatten(1).clone(), t["x"]),
    "counted up": lambda t: t["v"].long().cumsum(1) + (t["w"] > 0).flatten(1).cumsum(1)[:, :5],
    "one of those counted up": lambda t: (t["v"] > 0).cumsum(1).gather(1, t["j"].unsqueeze(1)),
    "a long one counted up": lambda t: (t["w"] > 0).flatten(1).cumsum(1) % 2,
    "counted": lambda t: torch.arange(5) + t["j"].unsqueeze(1),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operation_is_torchs_to_the_bit(name: str) -> None:
    given = inputs(B, seed=1)
    expected, got = CASES[name](given), run(CASES[name], given)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda t: t["v"].cumsum(1), "uses torch.cumsum of floats"),
        (lambda t: t["i"].cumsum(0), "reduces over the copies"),
        (lambda t: (lambda a: (lambda view: a.add_(1) + view[:, 0])(a[:, 1:]))(t["v"].clone())[:, 0], "a view of a"),
        (lambda t: t["v"][:, 1].add_(1), "Tensor.add_"),
        (lambda t: written(t["v"].clone().t().t(), t["x"])[:, 0], "others see"),
        (lambda t: t["x"] - t["x"].mean(), "reduces over the copies"),
        (lambda t: t["x"].flip(0), "another copy"),
        (lambda t: t["x"][torch.zeros(len(t["x"]), dtype=torch.int64)], "another copy"),
        (lambda t: t["x"].unsqueeze(0).expand(len(t["x"]), -1).sum(1), "another copy"),
        (lambda t: torch.cat((t["x"][:1], t["x"][1:])), "copies|another copy"),
        (lambda t: t["x"].reshape(1, -1).sum(1), "another copy|no row a copy"),
        (lambda t: t["x"] + (1 if t["x"][0] > 0 else 2), "control flow depends on the data"),
        (lambda t: t["x"].add_(1), "Tensor.add_"),
        (lambda t: t["v"] @ t["v"].T, "uses torch"),
        (lambda t: t["x"] ** t["y"], "exponent"),
        (lambda t: t["x"] ** 1.5, "exponent"),
        (lambda t: t["x"].to(torch.complex64).real, "complex64"),
        (lambda t: torch.rand(len(t["x"])), "another generator"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_named(function: Callable[[Inputs], Tensor], why: str) -> None:
    with pytest.raises((Untraceable, ValueError), match=why):
        run(function, inputs(B))


def test_an_index_outside_its_axis_is_moved_to_its_end() -> None:
    given = inputs(B)
    got = run(lambda t: t["v"].gather(1, t["i"].unsqueeze(1)), given)
    assert torch.equal(got, given["v"].gather(1, given["i"].clamp(0, 4).unsqueeze(1)))


def test_what_nobody_reads_is_not_written_and_a_state_may_be_written_over() -> None:
    """Two outputs, one of them NULL, the other in the memory of its input; long and short ones."""

    def function(t: Inputs) -> Inputs:
        return {
            "state.w": t["w"].flip(1) + t["x"].view(-1, 1, 1),
            "state.v": t["v"].flip(1) * t["w"][:, 0, :5],
            "none": t["x"],
        }

    made = Transition("test", trace(function, inputs(COPIES), COPIES, torch.Generator()))
    given, kept = inputs(B), inputs(B)
    expected = function(kept)
    targets = {"state.w": given["w"], "state.v": given["v"]}
    where = [given[s.name].data_ptr() for s in made.inputs]
    where += [targets[s.name].data_ptr() if s.name in targets else None for s in made.outputs]  # type: ignore[misc]
    pointers, sizes = (build.ctypes.c_void_p * len(where))(*where), (build.ctypes.c_int64 * 2)(B, 2)
    made.function(build.ctypes.addressof(sizes), build.ctypes.addressof(pointers))
    assert torch.equal(given["w"], expected["state.w"]) and torch.equal(given["v"], expected["state.v"])
    assert torch.equal(given["x"], kept["x"])


@pytest.mark.parametrize("kinds", ["uniform", "integers", "mixed"])
def test_random_numbers_drawn_ahead_are_those_of_one_step_after_the_other(kinds: str) -> None:
    generator = torch.Generator()

    def function(t: Inputs, g: torch.Generator) -> Tensor:
        n = len(t["x"])
        if kinds == "uniform":
            return torch.empty(n, 2).uniform_(-0.6, -0.4, generator=g).sum(1) + torch.rand(n, 1, generator=g)[:, 0]
        if kinds == "integers":
            return torch.randint(7, (n,), generator=g) * 10 + torch.randint(7, (n, 3), generator=g)[:, 1]
        noise = torch.randn(n, 17, generator=g).sum(1) * 0 + torch.empty(n).normal_(2, 0.5, generator=g)
        return noise + torch.randint(2, 9, (n,), generator=g) + torch.empty(n).exponential_(2.0, generator=g)

    traced = trace(lambda t: {"result": function(t, generator)}, inputs(COPIES), COPIES, generator)
    made, given, T = Transition("test", traced), inputs(B), 4
    random = made.draw(T, B, torch.Generator().manual_seed(5))
    eager = torch.Generator().manual_seed(5)
    for t in range(T):
        expected = function(given, eager)
        result = torch.empty_like(expected)
        tensors = {**given, **{name: rows[t] for name, rows in random.items()}}
        where = [tensors[s.name].data_ptr() for s in made.inputs] + [result.data_ptr()]
        pointers, sizes = (build.ctypes.c_void_p * len(where))(*where), (build.ctypes.c_int64 * 2)(B, 1)
        made.function(build.ctypes.addressof(sizes), build.ctypes.addressof(pointers))
        assert torch.equal(result, expected)
