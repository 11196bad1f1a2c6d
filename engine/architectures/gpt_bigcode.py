"""StarCoder 1, SantaCoder: gpt2 with one key/value head for all queries, or, where every query head
has its own, with q, k and v fused head by head."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec
from ._gpt2_like import TINY as BASE
from ._gpt2_like import gpt2_like


def spec(config: Config) -> DecoderSpec:
    """The settings about softmax in float32 change nothing: it is done so in any case."""
    one = config.boolean("multi_query", True)
    return gpt2_like(config, activation="gelu_pytorch_tanh", one_kv_head=one, by_head=not one)


_TINY = {**BASE, "model_type": "gpt_bigcode"}
TINY = {
    "multi-query": {**_TINY, "n_inner": 84, "activation_function": "gelu"},
    "multi-head": {
        **_TINY,
        "multi_query": False,
        "n_inner": None,
        "scale_attn_weights": False,
        "tie_word_embeddings": False,
    },
}
