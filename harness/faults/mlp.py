"""The feed-forward part of a block and the residual stream around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx import nn

from engine.layers import no_tap
from engine.layers.mlp import activation
from engine.spec import MLPSpec

from . import Fault, NotApplicable
from ._patient import Call, Patient

Inject = Callable[[Patient, int], None]
_TANH = ("gelu_new", "gelu_pytorch_tanh")


def dense(patient: Patient, block: int) -> MLPSpec:
    """The MLP of a block that has no experts."""
    spec = patient.spec.blocks[block].mlp
    if not isinstance(spec, MLPSpec):
        raise NotApplicable("the block has experts")
    return spec


def _inner(change: Callable[..., mx.array]) -> Inject:
    """A fault that has `change(act, gate, up)` for what goes into the down projection.

    Without a gate, `gate` is None and the activation is that of `up`.
    """

    def inject(patient: Patient, block: int) -> None:
        spec = dense(patient, block)
        act = activation(spec.activation)
        for role in ("mlp.gate", "mlp.up") if spec.gated else ("mlp.up",):
            patient.alone(role, block)

        def called(call: Call, x: mx.array, tap: Any = no_tap) -> mx.array:
            gate = tap("gate", patient.part("mlp.gate", block)(x)) if spec.gated else None
            up = tap("up", patient.part("mlp.up", block)(x))
            return tap("down", patient.part("mlp.down", block)(change(act, gate, up)))

        patient.around("mlp", block, called)

    return inject


def _acted(act: Any, gate: mx.array | None, up: mx.array) -> mx.array:
    return act(up) if gate is None else act(gate) * up


def _swapped(patient: Patient, block: int) -> None:
    if not dense(patient, block).gated:
        raise NotApplicable("no gate")
    _inner(lambda act, gate, up: act(up) * gate)(patient, block)


def _other_activation(meant: tuple[str, ...], used: Callable[[mx.array], mx.array]) -> Inject:
    def inject(patient: Patient, block: int) -> None:
        if dense(patient, block).activation not in meant:
            raise NotApplicable("another activation")
        _inner(lambda act, gate, up: _acted(used, gate, up))(patient, block)

    return inject


def _halved(act: Any, gate: mx.array | None, up: mx.array) -> mx.array:
    def low(x: mx.array) -> mx.array:
        return act(x.astype(mx.bfloat16)).astype(x.dtype)

    return _acted(low, gate, up)


def _activated_twice(act: Any, gate: mx.array | None, up: mx.array) -> mx.array:
    """The gate's activation on both halves."""
    return act(act(up)) if gate is None else act(gate) * act(up)


def _without_bias(role: str) -> Inject:
    def inject(patient: Patient, block: int) -> None:
        dense(patient, block)
        if patient.part(role, block).pop("bias", None) is None:
            raise NotApplicable("no bias")

    return inject


def _output(role: str, change: Callable[[mx.array], mx.array]) -> Inject:
    def inject(patient: Patient, block: int) -> None:
        patient.around(role, block, lambda call, *args, **kw: change(call(*args, **kw)))

    return inject


def _scaled(patient: Patient, block: int) -> None:
    if patient.spec.blocks[block].post_norm:
        raise NotApplicable("a norm follows, which takes any scale away")
    _output("mlp.down", lambda y: y * 1.0001)(patient, block)


def _not_normalised(patient: Patient, block: int) -> None:
    patient.around("mlp_norm", block, lambda call, x: x)


def _residual(change: Callable[[mx.array, mx.array, mx.array], mx.array]) -> Inject:
    """A fault that makes a block's output `change(out, h, y)`: what comes out, what the MLP's
    branch y = mlp(norm(h)) is added to, and that branch."""

    def inject(patient: Patient, block: int) -> None:
        seen: dict[str, mx.array] = {}
        last = "mlp_post_norm" if patient.spec.blocks[block].post_norm else "mlp"

        def entered(call: Call, x: mx.array) -> mx.array:
            seen["h"] = x
            return call(x)

        def left(call: Call, *args: Any, **kwargs: Any) -> mx.array:
            seen["y"] = call(*args, **kwargs)
            return seen["y"]

        def around(call: Call, *args: Any, **kwargs: Any) -> mx.array:
            out = call(*args, **kwargs)
            return change(out, seen.pop("h"), seen.pop("y"))

        patient.around("mlp_norm", block, entered)
        patient.around(last, block, left)
        patient.around("", block, around)

    return inject


def _in_parallel(patient: Patient, block: int) -> None:
    entered: list[mx.array] = []

    def around(call: Call, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        entered[:] = [x]
        return call(x, *args, **kwargs)

    patient.around("", block, around)
    patient.around("mlp_norm", block, lambda call, x: call(entered[0]))


def _normalised_residual(patient: Patient, block: int) -> None:
    """As in a post-norm block: the branch is added to what was normalised."""
    normed: list[mx.array] = []

    def entered(call: Call, x: mx.array) -> mx.array:
        normed[:] = [call(x) - x]
        return normed[0] + x

    patient.around("mlp_norm", block, entered)
    _output("", lambda out: out + normed[0])(patient, block)


FAULTS = (
    Fault("swapped", "gate and up are swapped", _swapped, "mlp", source="M01"),
    Fault(
        "exact-gelu",
        "exact GELU where the tanh form is meant",
        _other_activation(_TANH, nn.gelu),
        "mlp",
        source="M02",
    ),
    Fault(
        "tanh-gelu",
        "the tanh form of GELU where the exact one is meant",
        _other_activation(("gelu",), nn.gelu_approx),
        "mlp",
        source="M02",
    ),
    Fault(
        "sigmoid-gelu",
        "GELU as x * sigmoid(1.702 x)",
        _other_activation((*_TANH, "gelu"), nn.gelu_fast_approx),
        "mlp",
    ),
    Fault(
        "silu",
        "SiLU where GELU is meant",
        _other_activation((*_TANH, "gelu"), nn.silu),
        "mlp",
    ),
    Fault("gelu", "GELU where SiLU is meant", _other_activation(("silu",), nn.gelu_approx), "mlp"),
    Fault("relu", "ReLU where SiLU is meant", _other_activation(("silu",), nn.relu), "mlp"),
    Fault("activated-twice", "the activation is on up as well", _inner(_activated_twice), "mlp"),
    Fault("half-precision", "the activation is computed in bfloat16", _inner(_halved), "mlp"),
    Fault("no-up-bias", "the bias of up is dropped", _without_bias("mlp.up"), "mlp.up"),
    Fault("no-down-bias", "the bias of down is dropped", _without_bias("mlp.down"), "mlp.down"),
    Fault(
        "scaled",
        "what down gives is larger by a ten-thousandth",
        _scaled,
        "mlp.down",
    ),
    Fault("not-normalised", "the MLP's input is not normalised", _not_normalised, "mlp_norm"),
    Fault(
        "in-parallel",
        "the MLP sees what attention sees, as if the two ran in parallel",
        _in_parallel,
        "",
    ),
    Fault(
        "normalised-residual",
        "the MLP is added to its normalised input",
        _normalised_residual,
        "",
    ),
    Fault("no-residual", "the MLP is added to nothing", _residual(lambda out, h, y: y), ""),
    Fault("no-mlp", "the MLP is left out", _residual(lambda out, h, y: h), ""),
    Fault(
        "residual-twice",
        "what the MLP is added to is added twice",
        _residual(lambda out, h, y: out + h),
        "",
    ),
    Fault(
        "other-order",
        "up times the activation of the gate, not the other way round",
        _inner(lambda act, gate, up: act(up) if gate is None else up * act(gate)),
        "mlp",
        equivalent=True,
    ),
)
