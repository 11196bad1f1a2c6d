"""Harmless changes to PyTorch's arithmetic: the same mathematics, rounded otherwise.

Scored as candidates, they show how far apart two right implementations are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np


@contextlib.contextmanager
def reordered() -> Iterator[None]:
    """Sum every matrix product in another order."""
    import torch
    from torch.overrides import TorchFunctionMode

    def order(size: int) -> Any:
        return torch.from_numpy(np.random.default_rng(size).permutation(size))

    class Reordered(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            name, kwargs = getattr(func, "__name__", ""), kwargs or {}
            if name == "linear":
                x, weight, *rest = args
                at = order(x.shape[-1])
                args = (x[..., at], weight[:, at], *rest)
            elif name in ("matmul", "__matmul__") and min(a.ndim for a in args) > 1:
                x, y = args
                at = order(x.shape[-1])
                args = (x[..., at], y[..., at, :])
            elif name == "addmm":
                bias, x, y = args
                at = order(x.shape[-1])
                args = (bias, x[:, at], y[at])
            return func(*args, **kwargs)

    with Reordered():
        yield


@contextlib.contextmanager
def threaded() -> Iterator[None]:
    """Two threads, which share out sums otherwise than one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


CHANGES = {"reordered": reordered, "threaded": threaded}
