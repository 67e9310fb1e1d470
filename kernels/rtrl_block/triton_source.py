"""Writes the Triton of the RTRL carry with PxP blocks, for one P: a program owns a block of (unit, input) of one gate
and copy, in all parts. The suffix product of the Jacobians (a0_0 .. ) and the sums (h0 ..) stay in registers."""

from __future__ import annotations


def source(parts: int) -> str:
    """The kernels `advance` and `advance_vector` for blocks of `parts` times `parts`."""
    return "\n\n\n".join([_advance(parts), _advance_vector(parts)]) + "\n"


def _row(name: str, at: str, P: int, i: int) -> str:
    """sum_j name_ij at_j, `at` having a place for j."""
    return " + ".join(f"{name}{i}_{j}{at.format(j)}" for j in range(P))


def _jacobian(P: int, mask: str) -> list[str]:
    return [
        f"        j{i}_{j} = tl.load(J_ptr + (row * {P * P} + {i * P + j}) * N + n, {mask}, 0.0)"
        for i in range(P)
        for j in range(P)
    ]


def _advance(P: int) -> str:
    every = range(P)
    lines = [
        "@triton.jit",
        "def advance(S_ptr, J_ptr, l_ptr, x_ptr, T, B, G, N, D, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):",
        "    b, g = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)",
        "    blocks_d = tl.cdiv(D, BLOCK_D)",
        "    n = (tl.program_id(2) // blocks_d).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)",
        "    d = (tl.program_id(2) % blocks_d).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)",
        "    mask_n, mask_d = n < N, d < D",
        "    mask = mask_n[:, None] & mask_d[None, :]",
        *[f"    a{i}_{j} = tl.full([BLOCK_N], {float(i == j)}, tl.float32)" for i in every for j in every],
        *[f"    h{i} = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)" for i in every],
        "    for i in range(T):",
        "        row = (T - 1 - i) * B + b",
        "        x = tl.load(x_ptr + row * D + d, mask_d, 0.0)[None, :]",
        *[f"        l{i} = tl.load(l_ptr + ((row * {P} + {i}) * G + g) * N + n, mask_n, 0.0)" for i in every],
        *[f"        h{i} += ({_row('a', ' * l{}', P, i)})[:, None] * x" for i in every],
        *_jacobian(P, "mask_n"),
    ]
    for i in every:
        moved = [_row("a", f" * j{{}}_{j}", P, i) for j in every]
        lines.append(f"        {', '.join(f'a{i}_{j}' for j in every)} = {', '.join(moved)}")
    at = "((b * {0} + {1}) * G + g) * N + n"
    lines += [f"    at{i} = S_ptr + ({at.format(P, i)})[:, None] * D + d[None, :]" for i in every]
    lines += [f"    s{i} = tl.load(at{i}, mask, 0.0).to(tl.float32)" for i in every]
    lines += [f"    h{i} += {_row('a', '[:, None] * s{}', P, i)}" for i in every]
    lines += [f"    tl.store(at{i}, h{i}.to(S_ptr.dtype.element_ty), mask)" for i in every]
    return "\n".join(lines)


def _advance_vector(P: int) -> str:
    every = range(P)
    lines = [
        "@triton.jit",
        "def advance_vector(S_ptr, J_ptr, l_ptr, T, B, K, N, BLOCK: tl.constexpr):",
        "    b, k = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)",
        "    n = tl.program_id(2).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
        "    mask = n < N",
        *[f"    at{i} = ((b * {P} + {i}) * K + k) * N + n" for i in every],
        *[f"    s{i} = tl.load(S_ptr + at{i}, mask, 0.0)" for i in every],
        "    for t in range(T):",
        "        row = t * B + b",
        *_jacobian(P, "mask"),
        *[f"        l{i} = tl.load(l_ptr + ((row * {P} + {i}) * K + k) * N + n, mask, 0.0)" for i in every],
    ]
    moved = [f"{_row('j', ' * s{}', P, i)} + l{i}" for i in every]
    lines.append(f"        {', '.join(f's{i}' for i in every)} = {', '.join(moved)}")
    return "\n".join([*lines, *[f"    tl.store(S_ptr + at{i}, s{i}, mask)" for i in every]])
