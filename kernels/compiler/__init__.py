"""A compiler for element-wise functions written in torch.

`trace` follows a Python function with torch.fx into a `graph` of element-wise operations, `derivatives` differentiates
graphs, `plan` chooses what is computed where, `emit` writes the statements of a loop over elements. What an operation
is, in torch, in C, in Triton and to a derivative, stands in one table, `operations`.

The clients lay the loops around that: `kernels.recurrence` for recurrent cells.
"""
