"""Is every parameter of the candidate the reference's, after the declared renames?"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..comparison import Comparison
from ..types import FAIL, PASS, SKIP, CheckResult, Divergence

ORDER = 10


def run(comparison: Comparison) -> CheckResult:
    """Exact equality, at the dtype under test, of names, shapes and values.

    A parameter may keep the dtype the reference has it in.
    """
    import mlx.core as mx

    from engine.model import DTYPES

    from ..backends._mlx import as_mlx

    shown = comparison.candidate.weights()
    if shown is None:
        return CheckResult("weights", SKIP, f"{comparison.candidate.name} shows no parameters")
    actual = {name: as_mlx(array) for name, array in shown.items()}
    expected = dict(comparison.candidate.expected_weights(comparison.reference.weights()) or {})
    del shown
    count = sum(int(np.prod(array.shape)) for array in actual.values())
    measures = {"parameters": count, "tensors": len(actual)}
    for name in list(actual):
        array = actual.pop(name)  # so that lazy arrays are in memory one by one
        if name not in expected:
            return _differs(name, "the reference has no such parameter", measures)
        value = as_mlx(expected.pop(name))
        if tuple(value.shape) != tuple(array.shape):
            shapes = f"shape {tuple(array.shape)}, the reference has {tuple(value.shape)}"
            return _differs(name, shapes, measures)
        if array.dtype not in (DTYPES[comparison.dtype], value.dtype):
            dtypes = f"{array.dtype}, the reference has {value.dtype}".replace("mlx.core.", "")
            return _differs(name, dtypes, measures)
        value = value.astype(array.dtype)
        if not bool(mx.array_equal(array, value, equal_nan=True)):
            worst = mx.max(mx.abs(array.astype(mx.float32) - value.astype(mx.float32)))
            wrong = int(mx.sum(array != value))
            text = f"{wrong} of {array.size} values differ, by at most {float(worst):.2e}"
            return _differs(name, text, measures)
    return CheckResult("weights", PASS, f"{count:,} parameters equal", measures)


def _differs(name: str, what: str, measures: dict[str, Any]) -> CheckResult:
    message = f"parameter {name}: {what}"
    divergence = Divergence("weights", "", message, site=name, block=_block(name))
    return CheckResult("weights", FAIL, message, measures, divergence=divergence)


def _block(name: str) -> int | None:
    """The block a parameter belongs to: the first number in its path."""
    return next((int(step) for step in name.split(".") if step.isdigit()), None)
