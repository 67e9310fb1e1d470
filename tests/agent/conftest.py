"""Tests of the agent run on one thread: they are many and small."""

import torch

torch.set_num_threads(1)
