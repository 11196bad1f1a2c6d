"""Mixtures of experts: router, choice, weights, sum, and the matrices of single experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from engine.layers import no_tap, under
from engine.layers.moe import choose
from engine.spec import MoESpec

from . import Fault, NotApplicable
from ._patient import Call, Patient

Inject = Callable[[Patient, int], None]
MATRICES = ("gate", "up", "down")


@dataclass(frozen=True)
class _Routed:
    """What is known of T tokens when they are weighed: (B, T, E), and `chosen` (B, T, k)."""

    spec: MoESpec
    logits: mx.array
    scores: mx.array
    biased: mx.array
    chosen: mx.array


def _score(logits: mx.array, spec: MoESpec) -> mx.array:
    if spec.scoring == "softmax":
        return mx.softmax(logits, axis=-1, precise=True)
    return mx.sigmoid(logits)


def _choose(scores: mx.array, biased: mx.array, spec: MoESpec) -> mx.array:
    return choose(biased, spec.top_k)


def _weigh(routed: _Routed) -> mx.array:
    return _weighed(routed.scores, routed)


def _weighed(scores: mx.array, routed: _Routed) -> mx.array:
    weights = mx.take_along_axis(scores, routed.chosen, axis=-1)
    if routed.spec.renormalise:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return weights * routed.spec.scale


def _combine(y: mx.array, weights: mx.array) -> mx.array:
    """(B, T, k, C), (B, T, k) -> (B, T, C)"""
    return (y * weights[..., None]).sum(axis=-2)


@dataclass(frozen=True)
class _Stages:
    """What happens between the modules of a mixture. A fault is one stage done otherwise."""

    logits: Callable[[mx.array], mx.array] = lambda logits: logits
    score: Callable[[mx.array, MoESpec], mx.array] = _score
    choose: Callable[[mx.array, mx.array, MoESpec], mx.array] = _choose
    weigh: Callable[[_Routed], mx.array] = _weigh
    combine: Callable[[mx.array, mx.array], mx.array] = _combine
    shared: Callable[[mx.array, MoESpec], mx.array] | None = lambda y, spec: y


class _Parts:
    """The modules of one mixture, called alike in both candidates."""

    def __init__(self, patient: Patient, block: int) -> None:
        self.owner = patient.part("mlp", block)
        self.is_engine = patient.is_engine
        if self.is_engine:
            self.experts = self.owner.experts
            self.bias, self.shared = self.owner.get("selection_bias"), self.owner.get("shared")
            return
        from mlx_lm.models.switch_layers import SwitchGLU

        children = self.owner.children().values()
        self.experts = next(m for m in children if isinstance(m, SwitchGLU))
        self.bias = self.owner.gate.get("e_score_correction_bias")
        self.shared = self.owner.get("shared_experts")

    def logits(self, x: mx.array) -> mx.array:
        if self.is_engine:
            return self.owner._logits(x)
        gate = self.owner.gate  # a linear layer, or one that has the matrix of such
        return gate(x) if self.bias is None else x @ gate.weight.T

    def shared_of(self, x: mx.array, tap: Any) -> mx.array:
        return self.shared(x, under(tap, "shared")) if self.is_engine else self.shared(x)

    def matrix(self, name: str) -> mx.array:
        """(E, out, in)"""
        return self.experts[name] if self.is_engine else self.experts[f"{name}_proj"]["weight"]

    def set_matrix(self, name: str, value: mx.array) -> None:
        owner = self.experts if self.is_engine else self.experts[f"{name}_proj"]
        owner[name if self.is_engine else "weight"] = value


def _spec(patient: Patient, block: int) -> MoESpec:
    spec = patient.spec.blocks[block].mlp
    if not isinstance(spec, MoESpec):
        raise NotApplicable("the block has no experts")
    return spec


def _staged(stages: _Stages, only: Callable[[MoESpec], Any] = lambda spec: True) -> Inject:
    """A fault in a stage, of mixtures of which `only` is true."""

    def inject(patient: Patient, block: int) -> None:
        spec = _spec(patient, block)
        if not only(spec):
            raise NotApplicable("another kind of mixture")
        parts = _Parts(patient, block)

        def called(call: Call, x: mx.array, tap: Any = no_tap) -> mx.array:
            logits = stages.logits(tap("router", parts.logits(x)).astype(mx.float32))
            scores = stages.score(logits, spec)
            biased = scores if parts.bias is None else scores + parts.bias
            chosen = tap("experts", stages.choose(scores, biased, spec))
            weights = stages.weigh(_Routed(spec, logits, scores, biased, chosen))
            y = stages.combine(parts.experts(x, chosen), weights).astype(x.dtype)
            if parts.shared is not None and stages.shared is not None:
                y = y + stages.shared(tap("shared", parts.shared_of(x, tap)), spec)
            return y

        patient.around("mlp", block, called)

    return inject


def _rounded(x: mx.array) -> mx.array:
    return x.astype(mx.bfloat16).astype(x.dtype)


def _low_sum(y: mx.array, weights: mx.array) -> mx.array:
    return _combine(y.astype(mx.bfloat16), weights.astype(mx.bfloat16))


def _other_score(logits: mx.array, spec: MoESpec) -> mx.array:
    return _score(logits, replace(spec, scoring=_OTHER[spec.scoring]))


_OTHER = {"softmax": "sigmoid", "sigmoid": "softmax"}


def _flipped(routed: _Routed) -> mx.array:
    spec = replace(routed.spec, renormalise=not routed.spec.renormalise)
    return _weigh(replace(routed, spec=spec))


def _not_scaled(routed: _Routed) -> mx.array:
    return _weigh(replace(routed, spec=replace(routed.spec, scale=1.0)))


def _reversed_weights(routed: _Routed) -> mx.array:
    """Weights from the highest down for experts that are named in ascending order."""
    return -mx.sort(-_weigh(routed), axis=-1)


def _chosen_softmax(routed: _Routed) -> mx.array:
    logits = mx.take_along_axis(routed.logits, routed.chosen, axis=-1)
    return mx.softmax(logits, axis=-1, precise=True) * routed.spec.scale


def _partitioned(scores: mx.array, biased: mx.array, spec: MoESpec) -> mx.array:
    return mx.argpartition(-biased, kth=spec.top_k, axis=-1)[..., : spec.top_k]


def _each_expert(change: Callable[[mx.array], mx.array], matrices: tuple[str, ...]) -> Inject:
    """A fault that puts `change(matrix)`, (E, out, in), in place of matrices of all experts."""

    def inject(patient: Patient, block: int) -> None:
        _spec(patient, block)
        parts = _Parts(patient, block)
        for name in matrices:
            parts.set_matrix(name, change(parts.matrix(name)))

    return inject


def _exchanged(w: mx.array) -> mx.array:
    return mx.concatenate([w[1:2], w[:1], w[2:]])


def _first_rounded(w: mx.array) -> mx.array:
    return mx.concatenate([_rounded(w[:1]), w[1:]])


def _one_off(w: mx.array) -> mx.array:
    place = mx.arange(w.size).reshape(w.shape) == w.size // 2
    return mx.where(place, w + 0.05, w)


def _gate_for_up(patient: Patient, block: int) -> None:
    _spec(patient, block)
    parts = _Parts(patient, block)
    gate, up = parts.matrix("gate"), parts.matrix("up")
    parts.set_matrix("gate", up)
    parts.set_matrix("up", gate)


def _fault(name: str, what: str, inject: Inject, **more: Any) -> Fault:
    return Fault(name, what, inject, "mlp", **more)


FAULTS = (
    _fault(
        "softmax",
        "scores are a softmax where a sigmoid is meant",
        _staged(_Stages(score=_other_score), lambda spec: spec.scoring == "sigmoid"),
        source="M04",
    ),
    _fault(
        "sigmoid",
        "scores are a sigmoid where a softmax is meant",
        _staged(_Stages(score=_other_score), lambda spec: spec.scoring == "softmax"),
        source="M04",
    ),
    _fault(
        "bias-leaks",
        "the selection bias is part of the weights",
        _staged(
            _Stages(weigh=lambda routed: _weighed(routed.biased, routed)),
            lambda spec: spec.selection_bias,
        ),
        source="M04",
    ),
    _fault(
        "bias-ignored",
        "the selection bias does not help to choose",
        _staged(
            _Stages(choose=lambda scores, biased, spec: choose(scores, spec.top_k)),
            lambda spec: spec.selection_bias,
        ),
    ),
    _fault(
        "renormalised",
        "weights are renormalised where they are not to be, or the other way round",
        _staged(_Stages(weigh=_flipped)),
        source="M06",
    ),
    _fault(
        "low-sum",
        "experts are summed in bfloat16",
        _staged(_Stages(combine=_low_sum)),
        source="M09",
    ),
    _fault(
        "low-router",
        "the router's logits are rounded to bfloat16",
        _staged(_Stages(logits=_rounded)),
        source="M09",
    ),
    _fault(
        "low-weights",
        "the experts' weights are rounded to bfloat16",
        _staged(_Stages(weigh=lambda routed: _rounded(_weigh(routed)))),
    ),
    _fault(
        "one-too-few",
        "one expert too few is chosen",
        _staged(_Stages(choose=lambda scores, biased, spec: choose(biased, spec.top_k - 1))),
        source="M13",
    ),
    _fault(
        "one-too-many",
        "one expert too many is chosen",
        _staged(_Stages(choose=lambda scores, biased, spec: choose(biased, spec.top_k + 1))),
    ),
    _fault(
        "worst",
        "the experts of the lowest scores are chosen",
        _staged(_Stages(choose=lambda scores, biased, spec: choose(-biased, spec.top_k))),
        source="M13",
    ),
    _fault(
        "not-scaled",
        "the scale of the routed experts is dropped",
        _staged(_Stages(weigh=_not_scaled), lambda spec: spec.scale != 1.0),
    ),
    _fault(
        "no-shared",
        "the shared expert is dropped",
        _staged(_Stages(shared=None), lambda spec: spec.shared),
    ),
    _fault(
        "shared-scaled",
        "the shared expert is scaled like the routed ones",
        _staged(
            _Stages(shared=lambda y, spec: y * spec.scale),
            lambda spec: spec.shared and spec.scale != 1.0,
        ),
    ),
    _fault(
        "weights-unsorted",
        "weights are not in the order of their experts",
        _staged(_Stages(weigh=_reversed_weights)),
    ),
    _fault("exchanged", "two experts are swapped", _each_expert(_exchanged, MATRICES)),
    _fault(
        "down-exchanged",
        "the down projections of two experts are swapped",
        _each_expert(_exchanged, ("down",)),
    ),
    _fault(
        "one-rounded",
        "one expert is rounded to bfloat16",
        _each_expert(_first_rounded, MATRICES),
    ),
    _fault("one-off", "one weight of one expert is off by 0.05", _each_expert(_one_off, ("up",))),
    _fault("swapped", "gate and up are swapped in all experts", _gate_for_up, source="M01"),
    _fault(
        "other-order",
        "experts are named in another order, their weights too",
        _staged(_Stages(choose=lambda *args: _choose(*args)[..., ::-1])),
        equivalent=True,
    ),
    _fault(
        "argpartition",
        "chosen by a partition at another place",
        _staged(_Stages(choose=_partitioned)),
        equivalent=True,
    ),
    _fault(
        "chosen-softmax",
        "softmax of the chosen alone, where weights are renormalised",
        _staged(
            _Stages(weigh=_chosen_softmax),
            lambda spec: spec.scoring == "softmax" and spec.renormalise,
        ),
        equivalent=True,
    ),
)
