"""Parts of `benchmarks/gpu.py`: its rows and sizes, and the checks of the kernels."""
