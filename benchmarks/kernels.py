"""Kernel benchmark: what exact RTRL costs over truncated BPTT, and our cells against what a user would otherwise pick.

    python benchmarks/kernels.py --json FILE

Every comparison is paired: the candidates take turns in one process, after a warm-up, and ratios of medians are
reported. An eLSTM cell here is `kernels.elstm.elstm_layer`: the core and a dense output gate.
All timings are forward + backward to every parameter, the input being data; `rtrl` has the carry too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # or `import kernels` would find this file

from benchmarks.measure import finish, medians, take_turns
from lifelong.kernels import dispatch
from lifelong.kernels.diag_scan import diag_scan
from lifelong.kernels.elstm import core, elstm_layer

SIZES = ((64, 32, 128, 128), (64, 32, 256, 256))
SCAN_SIZE = (16, 128, 256)
GROWTH_FROM = dict(zip("BTND", SIZES[0], strict=True))
SECONDS_PER_COMPARISON = 4.0


class Problem:
    """One chunk of input, resets and a loss gradient, and the cells to run on it."""

    def __init__(self, B: int, T: int, N: int, D: int, device: torch.device | str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(*shape, generator=generator) * scale).to(device)

        self.x_TBD = normal(T, B, D)
        self.e_TBN = normal(T, B, N, scale=1 / (T * B * N))
        self.is_init_TB = (torch.rand(T, B, generator=generator) < 0.02).to(device)
        self.W_MD, self.b_M = normal(2 * N, D, scale=0.1), normal(2 * N, scale=0.1)
        self.v_M = normal(2 * N, scale=0.1)
        self.W_out_ND, self.U_out_NN, self.b_out_N = normal(N, D, scale=0.1), normal(N, N, scale=0.1), normal(N)
        self.parameters = (self.W_MD, self.b_M, self.v_M, self.W_out_ND, self.U_out_NN, self.b_out_N)
        for parameter in self.parameters:
            parameter.requires_grad_()
        self.c_BN = normal(B, N)
        self.S_BGND, self.s_BKN = torch.zeros(B, 2, N, D, device=device), torch.zeros(B, 4, N, device=device)
        self.lstm, self.lstm_cell = torch.nn.LSTM(D, N).to(device), torch.nn.LSTMCell(D, N).to(device)

    def output(self, c_TBN: torch.Tensor) -> torch.Tensor:
        """The output gate in plain torch, for the literature's learner."""
        gate_TBN = F.linear(self.x_TBD, self.W_out_ND, self.b_out_N) + F.linear(c_TBN, self.U_out_NN)
        return gate_TBN.sigmoid() * c_TBN

    def bptt(self) -> None:
        """Forward and backward of the eLSTM cell, the gradient cut at the chunk's start."""
        h_TBN, *_ = elstm_layer(self.x_TBD, *self.parameters, self.c_BN, self.is_init_TB)
        torch.autograd.grad(h_TBN, self.parameters, self.e_TBN)

    def rtrl(self) -> None:
        """`bptt`, plus the gradient through the state at the chunk's start, plus the new carry."""
        c0_BN = self.c_BN.detach().requires_grad_()
        h_TBN, _, c_TBN, _ = elstm_layer(self.x_TBD, *self.parameters, c0_BN, self.is_init_TB)
        *grads, boundary_BN = torch.autograd.grad(h_TBN, (*self.parameters, c0_BN), self.e_TBN)
        weight, bias, v = self.parameters[:3]
        grad_GND, grad_KN, _ = core().advance(
            self.S_BGND[:, None],
            self.s_BKN[:, None],
            self.x_TBD,
            weight,
            bias,
            v.view(2, -1),
            torch.cat([c0_BN[None], c_TBN[:-1]]),
            self.is_init_TB,
            boundary_BS=boundary_BN,
        )
        assert grad_GND is not None
        assert grad_KN is not None
        grads[0] += grad_GND.view_as(self.W_MD)
        grads[1] += grad_KN[:2].flatten()
        grads[2] += grad_KN[2:].flatten()

    def per_step_rtrl(self) -> None:
        """RTRL as in the literature, after the learner of IDSIA/rtrl-elstm: the error of every state from the output
        gate and loss first, then a loop that resets, advances (broadcast multiply, outer product) and reads six
        sensitivities.
        """
        F_ND, Z_ND = self.W_MD.chunk(2)
        (b_f, b_z), (v_f, v_z) = self.b_M.chunk(2), self.v_M.chunk(2)
        keep_TB1 = (~self.is_init_TB)[..., None].float()
        with torch.no_grad():
            c_BN, states, gates = self.c_BN, [], []
            for x_BD, keep_B1 in zip(self.x_TBD, keep_TB1, strict=True):
                c_BN = keep_B1 * c_BN
                f = torch.sigmoid(F.linear(x_BD, F_ND, b_f) + v_f * c_BN)
                z = torch.tanh(F.linear(x_BD, Z_ND, b_z) + v_z * c_BN)
                gates.append((f, z, c_BN))
                c_BN = f * c_BN + (1 - f) * z
                states.append(c_BN)
        c_TBN = torch.stack(states).requires_grad_()
        e_TBN, *_ = torch.autograd.grad(self.output(c_TBN), (c_TBN, *self.parameters[3:]), self.e_TBN)
        with torch.no_grad():
            S_F, S_Z = self.S_BGND[:, 0], self.S_BGND[:, 1]
            s_bf, s_bz, s_vf, s_vz = self.s_BKN.unbind(1)
            grads = [torch.zeros_like(part) for part in (S_F[0], S_Z[0], *[b_f] * 4)]
            for (f, z, c_BN), x_BD, keep_B1, e_BN in zip(gates, self.x_TBD, keep_TB1, e_TBN, strict=True):
                f_hat, z_hat = (c_BN - z) * f * (1 - f), (1 - f) * (1 - z * z)
                a_BN = f + v_f * f_hat + v_z * z_hat
                S_F, S_Z = keep_B1[..., None] * S_F, keep_B1[..., None] * S_Z
                S_F = a_BN[..., None] * S_F + f_hat[..., None] * x_BD[:, None]
                S_Z = a_BN[..., None] * S_Z + z_hat[..., None] * x_BD[:, None]
                s_bf, s_bz = a_BN * (keep_B1 * s_bf) + f_hat, a_BN * (keep_B1 * s_bz) + z_hat
                s_vf, s_vz = a_BN * (keep_B1 * s_vf) + f_hat * c_BN, a_BN * (keep_B1 * s_vz) + z_hat * c_BN
                grads[0] += (e_BN[..., None] * S_F).sum(0)
                grads[1] += (e_BN[..., None] * S_Z).sum(0)
                for grad, s in zip(grads[2:], (s_bf, s_bz, s_vf, s_vz), strict=True):
                    grad += (e_BN * s).sum(0)

    def torch_lstm(self) -> None:
        """torch's nn.LSTM of the same size, which knows no resets."""
        h_TBN, _ = self.lstm(self.x_TBD)
        torch.autograd.grad(h_TBN, list(self.lstm.parameters()), self.e_TBN)

    def cell_loop(self) -> None:
        """A loop over nn.LSTMCell that resets its state, as a user would write it."""
        h_BN = c_BN = torch.zeros_like(self.c_BN)
        outputs = []
        for x_BD, is_init_B in zip(self.x_TBD, self.is_init_TB, strict=True):
            keep_B1 = (~is_init_B)[:, None].float()
            h_BN, c_BN = self.lstm_cell(x_BD, (h_BN * keep_B1, c_BN * keep_B1))
            outputs.append(h_BN)
        torch.autograd.grad(torch.stack(outputs), list(self.lstm_cell.parameters()), self.e_TBN)


def scan_shares(B: int, T: int, N: int) -> dict[str, float]:
    """Bandwidth of diag_scan (3 arrays forward, 8 forward and backward) over that of a copy (2 arrays) of the same
    size."""
    a, b, e = torch.rand(T, B, N), torch.randn(T, B, N), torch.randn(T, B, N)
    target, h0, is_init = torch.empty_like(a), torch.randn(B, N), torch.rand(T, B) < 0.02
    leaves = (a.clone().requires_grad_(), b.clone().requires_grad_(), h0.clone().requires_grad_())
    times = medians(
        take_turns(
            {
                "copy": lambda: target.copy_(a),
                "forward": lambda: diag_scan(a, b, h0, is_init),
                "both": lambda: torch.autograd.grad(diag_scan(*leaves, is_init)[0], leaves, e),
            },
            seconds=SECONDS_PER_COMPARISON / 2,
        )
    )
    return {
        "forward": 3 / times["forward"] / (2 / times["copy"]),
        "forward+backward": 8 / times["both"] / (2 / times["copy"]),
        "copy_gigabytes_per_second": 2 * a.nbytes / times["copy"] / 1e9,
    }


def growth() -> dict[str, dict[str, float]]:
    """How many times longer `bptt` and `rtrl` take when B, T, N or D is doubled, and `rtrl` with its carry in bf16."""
    runs: dict[str, Callable[[], None]] = {}
    for name, size in {"": GROWTH_FROM, **{k: {**GROWTH_FROM, k: 2 * GROWTH_FROM[k]} for k in GROWTH_FROM}}.items():
        problem = Problem(**size)
        runs |= {f"bptt {name}": problem.bptt, f"rtrl {name}": problem.rtrl}
    half = Problem(**GROWTH_FROM)
    half.S_BGND = half.S_BGND.bfloat16()
    runs["rtrl bf16"] = half.rtrl
    times = medians(take_turns(runs, seconds=2 * SECONDS_PER_COMPARISON))
    found = {
        f"{name}_when_doubled": {k: times[f"{name} {k}"] / times[f"{name} "] for k in GROWTH_FROM}
        for name in ("bptt", "rtrl")
    }
    size = " ".join(f"{k}={v}" for k, v in GROWTH_FROM.items())
    return {**found, "rtrl_bf16_carry_over_rtrl": {size: times["rtrl bf16"] / times["rtrl "]}}


def matmul_gigaflops(n: int = 1024) -> float:
    """What a matrix product reaches here, as the ceiling of the dense ops."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    return 2 * n**3 / medians(take_turns({"": lambda: a @ b}, seconds=SECONDS_PER_COMPARISON / 4))[""] / 1e9


def main(json_path: str | Path | None = None) -> dict[str, Any]:
    """Runs everything (under a minute), prints the ratios, writes the JSON; returns what it wrote."""
    ratios: dict[str, dict[str, float]] = {}
    milliseconds: dict[str, dict[str, float]] = {}
    for B, T, N, D in SIZES:
        problem, size = Problem(B, T, N, D), f"B={B} T={T} N={N} D={D}"
        fast = medians(
            take_turns(
                {
                    "bptt": problem.bptt,
                    "rtrl": problem.rtrl,
                    "torch_lstm": problem.torch_lstm,
                    "cell_loop": problem.cell_loop,
                },
                seconds=SECONDS_PER_COMPARISON,
            )
        )
        slow = medians(
            take_turns({"rtrl": problem.rtrl, "per_step": problem.per_step_rtrl}, seconds=SECONDS_PER_COMPARISON)
        )
        milliseconds[size] = {name: 1e3 * value for name, value in {**slow, **fast}.items()}
        for name, value in {
            "rtrl_over_bptt": fast["rtrl"] / fast["bptt"],
            "per_step_rtrl_over_rtrl": slow["per_step"] / slow["rtrl"],
            "lstm_over_elstm_bptt": fast["torch_lstm"] / fast["bptt"],
            "cell_loop_over_elstm_bptt": fast["cell_loop"] / fast["bptt"],
        }.items():
            ratios.setdefault(name, {})[size] = value
    B, T, N = SCAN_SIZE
    shares = scan_shares(B, T, N)
    bandwidth = shares.pop("copy_gigabytes_per_second")
    ratios["scan_share_of_copy_bandwidth"] = {f"B={B} T={T} N={N} {name}": share for name, share in shares.items()}
    ratios |= growth()
    gigaflops = matmul_gigaflops()
    for name, values in ratios.items():
        for size, value in values.items():
            print(f"{name:32} {size:36} {value:8.2f}")
    print(f"copy {bandwidth:.0f} GB/s, matrix product {gigaflops:.0f} Gflop/s, {torch.get_num_threads()} threads")
    found = {
        "ratios": ratios,
        "milliseconds": milliseconds,
        "copy_gigabytes_per_second": bandwidth,
        "matmul_gigaflops": gigaflops,
        "backends": dispatch.chosen(),
    }
    return finish("kernels", found, json_path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="file the result is written to")
    main(parser.parse_args().json)
