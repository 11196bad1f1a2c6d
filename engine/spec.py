"""What a decoder is, as data.

An architecture file turns a transformers config into a `DecoderSpec`; `decoder.py` builds the one
decoder from it. A family that needs something new gets a field here, named for what it does. This
module knows neither arrays nor families.

Axis letters of the whole project: B batch, T tokens, H query heads, K key/value heads, D head
width, C hidden width, F feed-forward width, V vocabulary, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from .names import Name


@dataclass(frozen=True)
class NormSpec:
    """`kind` is "rms" or "layer"; the gain is `offset + weight` (gemma, nemotron: offset 1).

    `float32_gain` says where a family rounds: after the product with the gain, not before it. With
    an offset that is so anyway.
    """

    kind: str
    eps: float
    offset: float = 0.0
    bias: bool = False
    float32_gain: bool = False


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding of the first `dims` of D.

    `pairs` says which features turn together: "halves" (i and i + dims/2), "neighbours" (2i and
    2i + 1), or "neighbours to halves", which also leaves them sorted as halves (deepseek).
    `type` is one of the names of `layers/rope.py`, with what it needs: `factor`, the length the
    model was trained for (`original_length`), the bounds of "llama3" and "yarn" (`truncate` rounds
    the latter's to whole pairs), the factors of "longrope", one per pair, up to that length and
    beyond. `magnitude` multiplies what was rotated.
    """

    dims: int
    theta: float
    pairs: str = "halves"
    type: str = "default"
    factor: float = 1.0
    original_length: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    magnitude: float = 1.0


@dataclass(frozen=True)
class AttentionSpec:
    """H query heads over K key/value heads of width D.

    `rope` None: no positions. `window` W: a token sees itself and the W-1 before it. `softcap` c:
    logits become c*tanh(logits/c) before the mask. `sinks`: a learned logit per query head takes
    its share of the softmax and gives nothing. `qk_norm` is taken over each head with one gain
    (D,) for all ("head"), over each with a gain of its own (H, D) ("each head"), or over all at
    once, gain (H*D,) ("all heads"). `clip` c: what the norms give, and the values, are kept within
    -c and c before positions are given.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None = None
    window: int | None = None
    softcap: float | None = None
    qk_norm: NormSpec | None = None
    qk_norm_over: str = "head"
    qkv_bias: bool = False
    out_bias: bool = False
    sinks: bool = False
    clip: float | None = None


@dataclass(frozen=True)
class LatentAttentionSpec:
    """H heads whose keys and values are made of one latent vector a token (deepseek).

    Queries and keys are `nope_dim` features without position beside `rope_dim` with; the latter's
    key is the same for all heads. Values are `value_dim` wide. `query_rank` None: queries are made
    of x in one product. `norm` is that of both latent vectors, `bias` that of the products of x.
    """

    heads: int
    query_rank: int | None
    latent_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    scale: float
    rope: RopeSpec
    norm: NormSpec
    bias: bool = False
    window: int | None = None

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def head_dim(self) -> int:
        return self.nope_dim + self.rope_dim


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

    `scoring` is what the router's logits become, over all E: "softmax" or "sigmoid"; or "softmax of
    chosen", over the k chosen alone. `selection_bias`: a learned bias per expert that helps to
    choose and does not weigh. `groups`: experts come in so many, and are chosen from the
    `top_groups` whose `group_best` best scores add up to the most. `renormalise`: the weights of a
    token sum to one; `scale` multiplies them after that. `shared` is an MLP that every token goes
    through as well, weighed by the sigmoid of a learned product where `shared_gate`. `clamp` c:
    gates are at most c and ups within -c and c; `up_offset` is added to the ups. `router_bias`,
    `bias`: of the router, and of every expert's three products.

    Two fields say where a family rounds: `float32_logits`, the router's product is done in float32;
    `rounded_weights`, the weights are in the dtype of the model when they multiply.
    """

    experts: int
    top_k: int
    width: int
    activation: str
    scoring: str = "softmax"
    selection_bias: bool = False
    groups: int = 1
    top_groups: int = 1
    group_best: int = 2
    renormalise: bool = True
    scale: float = 1.0
    shared: MLPSpec | None = None
    shared_gate: bool = False
    clamp: float | None = None
    up_offset: float = 0.0
    router_bias: bool = False
    bias: bool = False
    float32_logits: bool = False
    rounded_weights: bool = False


@dataclass(frozen=True)
class BlockSpec:
    """x + attn(norm(x)), then x + mlp(norm(x)).

    `pre_norm` False: the branches take x as it is (olmo2). `post_norm`: each branch is normalised
    before it is added (gemma). `parallel`: both branches start from the same x and are added
    together; with `one_norm` they share its norm as well (cohere). `residual_scale` multiplies
    each branch.
    """

    attention: AttentionSpec | LatentAttentionSpec
    mlp: MLPSpec | MoESpec
    norm: NormSpec
    pre_norm: bool = True
    post_norm: bool = False
    parallel: bool = False
    one_norm: bool = False
    residual_scale: float = 1.0


@dataclass(frozen=True)
class DecoderSpec:
    """A whole decoder.

    `learned_positions` is the number of rows of a position table. `logit_scale` multiplies the
    logits, before `logit_softcap` bends them. `draft_blocks`: so many blocks after the last, for
    drafting, may be in a checkpoint, and are passed over.
    """

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
    head_bias: bool = False
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    draft_blocks: int = 0

    @cached_property
    def stretched(self) -> tuple[RopeSpec, ...]:
        """Rotations that depend on the length of the whole sequence, each once."""
        ropes = dict.fromkeys(block.attention.rope for block in self.blocks)
        return tuple(r for r in ropes if r is not None and r.type in ("dynamic", "longrope"))
