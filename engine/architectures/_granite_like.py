"""What granite and granitemoe share: multipliers of embedding, attention, branches and logits."""

from __future__ import annotations

from dataclasses import replace

from ..config import Config
from ..spec import BlockSpec, DecoderSpec
from ._llama_like import TINY as BASE


def multiplied(base: DecoderSpec, config: Config) -> DecoderSpec:
    """`base` with granite's multipliers; that of attention stands in place of D**-0.5."""
    scale = config.number("attention_multiplier", 1.0)
    residual = config.number("residual_multiplier", 1.0)

    def block(plain: BlockSpec) -> BlockSpec:
        attention = replace(plain.attention, scale=scale)
        return replace(plain, attention=attention, residual_scale=residual)

    return replace(
        base,
        blocks=tuple(map(block, base.blocks)),
        embed_scale=config.number("embedding_multiplier", 1.0),
        logit_scale=1 / config.positive("logits_scaling", 1.0),
    )


# No multiplier is a number of few bits, so that a rounded one shows.
TINY = {
    **BASE,
    "embedding_multiplier": 1.7,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.3,
}
