"""What families share whose blocks are all alike: everything around the blocks."""

from __future__ import annotations

from typing import Any

from ..config import Config
from ..names import Name
from ..spec import BlockSpec, DecoderSpec


def same_blocks(
    config: Config, block: BlockSpec, names: tuple[Name, ...], *, tied: bool = False, **more: Any
) -> DecoderSpec:
    """A decoder of `num_hidden_layers` times this block, its norm after the last one as well.

    `tied` is the family's default; `more` are further fields of `DecoderSpec`.
    """
    return DecoderSpec(
        model_type=config.text("model_type"),
        vocab=config.integer("vocab_size"),
        width=config.integer("hidden_size"),
        blocks=(block,) * config.integer("num_hidden_layers"),
        norm=block.norm,
        names=names,
        tied_head=config.boolean("tie_word_embeddings", tied),
        max_length=config.integer("max_position_embeddings"),
        **more,
    )


# Small enough for a test; odd where a fault would otherwise hide (see docs/ARCHITECTURE.md).
TINY = {
    "vocab_size": 131,
    "hidden_size": 72,
    "intermediate_size": 84,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
