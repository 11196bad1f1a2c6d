"""State that outlives a call, and chance: another answer when asked again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import mlx.core as mx

from . import Fault, NotApplicable
from ._patient import Call, Patient

Inject = Callable[[Patient, int], None]
LAST_BIT = 2.0**-23


def _output(role: str, change: Callable[[mx.array, int], mx.array]) -> Inject:
    """A fault that makes `change(output, n)` of what a module gives in its n-th call."""

    def inject(patient: Patient, block: int) -> None:
        calls = count()

        def called(call: Call, *args: Any, **kwargs: Any) -> mx.array:
            return change(call(*args, **kwargs), next(calls))

        patient.around(role, block, called)

    return inject


def _dropped(y: mx.array, n: int) -> mx.array:
    """Dropout of a tenth, as in training."""
    return y * mx.random.bernoulli(0.9, y.shape) / 0.9


def _attention_dropout(patient: Patient, block: int) -> None:
    patient.attention(block, lambda attend, *args: _dropped(attend(*args), 0))


def _drifting_gain(patient: Patient, block: int) -> None:
    """A parameter that is changed in place."""

    def called(call: Call, x: mx.array) -> mx.array:
        y = call(x)
        norm = patient.part("attn_norm", block)
        norm.weight = norm.weight * 1.0001
        return y

    patient.around("attn_norm", block, called)


def _remembered(patient: Patient, block: int) -> None:
    """An answer is kept for inputs of one shape."""
    answers: dict[tuple[int, ...], mx.array] = {}

    def called(call: Call, x: mx.array) -> mx.array:
        if tuple(x.shape) not in answers:
            answers[tuple(x.shape)] = call(x)
        return answers[tuple(x.shape)]

    patient.around("attn_norm", block, called)


def _remembered_rightly(patient: Patient, block: int) -> None:
    """An answer is kept, and given for the same input only."""
    kept: list[tuple[mx.array, mx.array]] = []

    def called(call: Call, x: mx.array) -> mx.array:
        for before, answer in kept:
            if before.shape == x.shape and mx.array_equal(before, x):
                return answer
        kept.append((x, call(x)))
        return kept[-1][1]

    patient.around("attn_norm", block, called)


def _other_kernel(patient: Patient, block: int) -> None:
    """A product that is added up in another order on every other call."""
    calls = count()

    def called(call: Call, *args: Any) -> mx.array:
        x = args[0]
        if next(calls) % 2 == 0:
            return call(*args)
        half = x.shape[-1] // 2
        weight = patient.weight("attn.v", block)
        y = x[..., half:] @ weight[:, half:].T + x[..., :half] @ weight[:, :half].T
        bias = patient.part("attn.v", block).get("bias")
        return y if bias is None else y + bias

    module = patient.part("attn.v", block)
    if patient.weight("attn.v", block).shape != module.weight.shape:
        raise NotApplicable("the projection is fused")
    patient.around("attn.v", block, called)


def _noisy(patient: Patient, block: int) -> None:
    def called(call: Call, *args: Any) -> mx.array:
        y = call(*args)
        return y * (1 + 1e-3 * mx.random.normal(y.shape))

    patient.around("embed", None, called)


FAULTS = (
    Fault(
        "counted",
        "every call gives a thousandth more than the one before",
        _output("", lambda y, n: y * (1 + n * 1e-3)),
        "",
    ),
    Fault("gain-drifts", "the gain of a norm grows with every call", _drifting_gain, "attn_norm"),
    Fault("dropout", "dropout is left on after the MLP", _output("mlp", _dropped), "mlp"),
    Fault("attention-dropout", "dropout is left on in attention", _attention_dropout, "attn"),
    Fault("stale", "an answer is kept for inputs of one length", _remembered, "attn_norm"),
    Fault(
        "noise",
        "noise of a thousandth is added to the embedding",
        _noisy,
        "embed",
        "model",
    ),
    Fault(
        "last-bit",
        "every other call differs in the last bit",
        _output("attn.o", lambda y, n: y * (1 + LAST_BIT * (n % 2))),
        "attn.o",
        "repeat",
    ),
    Fault(
        "rounding-by-chance",
        "the last bit is rounded by chance",
        _output("mlp_norm", lambda y, n: y * (1 + LAST_BIT * mx.random.bernoulli(0.5, y.shape))),
        "mlp_norm",
        "repeat",
    ),
    Fault(
        "other-order",
        "sums are added up in another order on every other call",
        _other_kernel,
        "attn.v",
        "repeat",
    ),
    Fault(
        "drawn",
        "random numbers are drawn and not used",
        _output("mlp", lambda y, n: y + 0 * mx.random.normal(y.shape)),
        "mlp",
        equivalent=True,
    ),
    Fault(
        "remembered",
        "answers are kept, and given for the same input",
        _remembered_rightly,
        "attn_norm",
        equivalent=True,
    ),
)
