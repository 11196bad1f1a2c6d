"""What a decoder is, as data.

An architecture file turns a transformers config into a `DecoderSpec`; `decoder.py` builds the one
decoder from it. A family that needs something new gets a field here, named for what it does. This
module knows neither arrays nor families.

Axis letters of the whole project: B batch, T tokens, H query heads, K key/value heads, D head
width, C hidden width, F feed-forward width, V vocabulary, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from .names import Name


@dataclass(frozen=True)
class NormSpec:
    """`kind` is "rms" or "layer"; the gain is `offset + weight` (gemma: offset 1)."""

    kind: str
    eps: float
    offset: float = 0.0
    bias: bool = False


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding of the first `dims` of D, half-split pairs.

    `type` is one of the names of `layers/rope.py`. `original_length` is the length the model was
    trained for, where a scaling needs it.
    """

    dims: int
    theta: float
    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int | None = None


@dataclass(frozen=True)
class AttentionSpec:
    """H query heads over K key/value heads of width D.

    `window` W: a token sees itself and the W-1 before it. `softcap` c: logits become
    c*tanh(logits/c) before the mask.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None = None
    window: int | None = None
    softcap: float | None = None
    qk_norm: NormSpec | None = None
    qkv_bias: bool = False
    out_bias: bool = False


@dataclass(frozen=True)
class MLPSpec:
    """down(act(gate(x)) * up(x)) when `gated`, else down(act(up(x)))."""

    width: int
    activation: str
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class MoESpec:
    """The weighted sum of what `top_k` of E gated MLPs of width F make of a token.

    `scoring` is what the router's logits become, over all E and in float32: "softmax" or "sigmoid".
    `selection_bias`: a learned bias per expert that helps to choose and does not weigh.
    `renormalise`: the weights of a token sum to one; `scale` multiplies them after that. `shared`
    is an MLP that every token goes through as well.

    Two fields say where a family rounds: `float32_logits`, the router's product is done in float32;
    `rounded_weights`, the weights are in the dtype of the model when they multiply.
    """

    experts: int
    top_k: int
    width: int
    activation: str
    scoring: str = "softmax"
    selection_bias: bool = False
    renormalise: bool = True
    scale: float = 1.0
    shared: MLPSpec | None = None
    float32_logits: bool = False
    rounded_weights: bool = False


@dataclass(frozen=True)
class BlockSpec:
    """x + attn(norm(x)), then x + mlp(norm(x)).

    `post_norm`: each branch is normalised once more before it is added (gemma).
    """

    attention: AttentionSpec
    mlp: MLPSpec | MoESpec
    norm: NormSpec
    post_norm: bool = False


@dataclass(frozen=True)
class DecoderSpec:
    """A whole decoder. `learned_positions` is the number of rows of a position table."""

    model_type: str
    vocab: int
    width: int
    blocks: tuple[BlockSpec, ...]
    norm: NormSpec
    names: tuple[Name, ...]
    tied_head: bool
    max_length: int
    embed_scale: float = 1.0
    learned_positions: int | None = None
    logit_softcap: float | None = None
