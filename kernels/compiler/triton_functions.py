"""Element-wise functions of the compiler's Triton that the language does not have."""

# ruff: noqa: ANN001, ANN202 (Triton functions are typed by their launch)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    """tanh."""
    y = tl.abs(x)
    e = tl.exp(-2.0 * y)
    large = (1.0 - e) / (1.0 + e)
    z = x * x
    small = y * (1.0 - z * (0.33333332 - z * 0.13333334))  # cancellation would cost digits here
    return tl.where(x < 0.0, -1.0, 1.0) * tl.where(y < 0.05, small, large)


@triton.jit
def _log1p(x):  # type: ignore[no-untyped-def]
    """log(1 + x); what rounding 1 + x lost is given back by the ratio."""
    w = 1.0 + x
    d = w - 1.0
    return tl.where(d == 0.0, x, tl.log(w) * (x / tl.where(d == 0.0, 1.0, d)))


@triton.jit
def _expm1(x):  # type: ignore[no-untyped-def]
    """exp(x) - 1; likewise."""
    w = tl.exp(x)
    d = w - 1.0
    inside = (d != 0.0) & (w > 1e-6) & (w < 1e30)
    return tl.where(d == 0.0, x, tl.where(inside, d * (x / tl.log(tl.where(inside, w, 2.0))), d))


@triton.jit
def _softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + exp(x))."""
    return tl.where(x < 0.0, 0.0, x) + _log1p(tl.exp(-tl.abs(x)))


@triton.jit
def _maximum(a, b):  # type: ignore[no-untyped-def]
    """The larger one, NaN if either is."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def _minimum(a, b):  # type: ignore[no-untyped-def]
    """The smaller one, NaN if either is."""
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def _pow(x, y):  # type: ignore[no-untyped-def]
    """x to the power y; of a negative x if y is whole."""
    size = tl.abs(x)
    inside = size > 0.0
    power = tl.exp(y * tl.log(tl.where(inside, size, 1.0)))
    power = tl.where(inside, power, tl.where(y > 0.0, 0.0, float("inf")))
    whole = tl.floor(y) == y
    odd = whole & (tl.floor(0.5 * y) * 2.0 != y)
    signed = tl.where(x < 0.0, tl.where(whole, tl.where(odd, -power, power), float("nan")), power)
    return tl.where(y == 0.0, 1.0, signed)


@triton.jit
def _trunc(x):  # type: ignore[no-untyped-def]
    """Rounded towards zero."""
    return tl.where(x < 0.0, tl.ceil(x), tl.floor(x))


@triton.jit
def _round(x):  # type: ignore[no-untyped-def]
    """Rounded to the nearest whole number, halves to the even one."""
    near = tl.floor(x + 0.5)
    tie = near - x == 0.5
    return tl.where(tie & (2.0 * tl.floor(0.5 * near) != near), near - 1.0, near)


@triton.jit
def _floor_mod(a, b):  # type: ignore[no-untyped-def]
    """The rest that has the sign of b; 0 if b is."""
    safe = tl.where(b == 0, 1, b)
    rest = a % safe
    return tl.where((rest != 0) & ((rest < 0) != (safe < 0)), rest + safe, rest)


@triton.jit
def _floor_div(a, b):  # type: ignore[no-untyped-def]
    """The quotient rounded down; 0 if b is 0."""
    safe = tl.where(b == 0, 1, b)
    return tl.where(b == 0, 0, (a - _floor_mod(a, safe)) // safe)
