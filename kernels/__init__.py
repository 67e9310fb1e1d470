"""Numeric operations of `lifelong`; knows no agent.

One folder per op: `reference.py` (readable loop, the oracle), `torch_backend.py` (hand-written backward), `cpu.py` and
`cpu.c` (compiled on first use) and `triton_backend.py` (CUDA). The public function lives in the folder's `__init__.py`,
checks its inputs once and takes `backend="auto"` (see `kernels.dispatch`).
"""
