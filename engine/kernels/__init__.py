"""Kernels of our own, one a file, where MLX's cost most. Each has MLX's as its reference.

A kernel is here because it was measured to be faster (`benchmarks/kernels.py`), on a machine that
docs/PERFORMANCE.md names; anywhere else the reference runs. `takes` says where.
"""
