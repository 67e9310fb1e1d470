"""GRU, LSTM and RNN are those of torch, with the weights copied over."""

from __future__ import annotations

import pytest
import torch

from lifelong.agent.cells.gru import GRU
from lifelong.agent.cells.lstm import LSTM
from lifelong.agent.cells.rnn import RNN

D, N, T, B = 5, 7, 20, 4


def test_gru_equals_torch_gru() -> None:
    torch.manual_seed(0)
    cell, torchs = GRU(D, size=N), torch.nn.GRU(D, N)
    torchs.load_state_dict(
        {
            "weight_ih_l0": cell.input.weight,
            "bias_ih_l0": cell.input.bias,
            "weight_hh_l0": cell.hidden.weight,
            "bias_hh_l0": cell.hidden.bias,
        }
    )
    x, h = torch.randn(T, B, D), torch.randn(B, N)
    y, final = cell.sequence(x, h, torch.zeros(T, B, dtype=torch.bool))
    expected, end = torchs(x, h.unsqueeze(0))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(final, end[0], rtol=0, atol=1e-6)


def test_lstm_equals_torch_lstm() -> None:
    torch.manual_seed(0)
    cell, torchs = LSTM(D, size=N), torch.nn.LSTM(D, N)
    torchs.load_state_dict(
        {
            "weight_ih_l0": cell.input.weight,
            "bias_ih_l0": cell.input.bias,
            "weight_hh_l0": cell.hidden.weight,
            "bias_hh_l0": torch.zeros(4 * N),
        }
    )
    x, h, c = torch.randn(T, B, D), torch.randn(B, N), torch.randn(B, N)
    y, final = cell.sequence(x, torch.cat([h, c], -1), torch.zeros(T, B, dtype=torch.bool))
    expected, (h_end, c_end) = torchs(x, (h.unsqueeze(0), c.unsqueeze(0)))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(final, torch.cat([h_end[0], c_end[0]], -1), rtol=0, atol=1e-6)


def test_rnn_equals_torch_rnn_and_its_recurrent_weights_begin_orthogonal() -> None:
    torch.manual_seed(0)
    cell, torchs = RNN(D, size=N), torch.nn.RNN(D, N)
    torch.testing.assert_close(cell.hidden.weight @ cell.hidden.weight.T, torch.eye(N))
    torchs.load_state_dict(
        {
            "weight_ih_l0": cell.input.weight,
            "bias_ih_l0": cell.input.bias,
            "weight_hh_l0": cell.hidden.weight,
            "bias_hh_l0": torch.zeros(N),
        }
    )
    x, h = torch.randn(T, B, D), torch.randn(B, N)
    y, final = cell.sequence(x, h, torch.zeros(T, B, dtype=torch.bool))
    expected, end = torchs(x, h.unsqueeze(0))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(final, end[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("forget_bias", [0.0, 2.5])
def test_lstm_starts_with_the_forget_bias_it_was_given_on_the_forget_gate_only(forget_bias: float) -> None:
    bias = LSTM(D, size=N, forget_bias=forget_bias).input.bias.view(4, N)
    assert bool((bias[1] == forget_bias).all())
    assert not bool((bias[[0, 2, 3]] == forget_bias).any())
