"""float64 all the way through transformers.

transformers computes norms, softmax and rotary angles in float32 whatever the model's dtype, so
that `model.double()` is no better than float32 there. Source: docs/METHOD.md, "The oracle".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def lifted() -> Iterator[None]:
    """Answer every request for float32 with float64 while models are built and run."""
    import torch
    from torch.overrides import TorchFunctionMode

    def up(value: Any) -> Any:
        if value is torch.float32:
            return torch.float64
        if isinstance(value, (tuple, list)) and any(v is torch.float32 for v in value):
            return type(value)(map(up, value))
        return value

    class Lift(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            if func is torch.Tensor.float:
                return args[0].double()
            kwargs = {key: up(value) for key, value in (kwargs or {}).items()}
            return func(*map(up, args), **kwargs)

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Lift():
            yield
    finally:
        torch.set_default_dtype(default)
