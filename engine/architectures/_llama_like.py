"""What llama, mistral, mixtral and the qwens share: RMSNorm before each branch, gated MLPs, rotary.

A family passes what it does differently; the defaults are those of transformers' LlamaConfig.
"""

from __future__ import annotations

from collections.abc import Callable

from ..config import REQUIRED, Config
from ..errors import InvalidConfig
from ..names import Name, names
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, MoESpec, NormSpec, RopeSpec


def llama_like(
    config: Config,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    windows: list[int | None] | None = None,
    experts: list[MoESpec | None] | None = None,
    more_names: tuple[Name, ...] = (),
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    qk_norm_over: str = "head",
    clip: float | None = None,
    norm: NormSpec | None = None,
    rope: Callable[[int, int], RopeSpec | None] | None = None,
    eps: float = 1e-6,
    theta: float = 10000.0,
    max_length: int = 2048,
    tied: bool = False,
) -> DecoderSpec:
    """A decoder of the llama kind.

    `windows` and `experts` hold one entry per block, None for full attention and for a dense MLP.
    `norm` is that of the whole decoder, an RMSNorm where left out. `rope(i, head_dim)` gives the
    rotary embedding of block i, where it is more than whole heads turned in halves. `more_names` go
    before the common table. `kv_heads`, `head_dim`, `eps`, `theta`, `max_length` and `tied` are the
    defaults of the family where config.json is silent.
    """
    width = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    count = config.integer("num_hidden_layers")
    # An explicit null means what follows from other keys; absence means the family's default.
    kv_heads = kv_heads if "num_key_value_heads" not in config.raw else None
    head_dim = head_dim if "head_dim" not in config.raw else None
    K: int = config.integer("num_key_value_heads", kv_heads or heads)
    D: int = config.integer("head_dim", head_dim or width // heads)
    norm = norm or NormSpec("rms", config.number("rms_norm_eps", eps))
    config.raw.setdefault("max_position_embeddings", max_length)
    mlp = MLPSpec(
        config.integer("intermediate_size"), config.text("hidden_act", "silu"), bias=mlp_bias
    )
    rope = rope or (lambda i, head_dim: config.rope(head_dim, default_theta=theta))
    blocks = tuple(
        BlockSpec(
            AttentionSpec(
                heads=heads,
                kv_heads=K,
                head_dim=D,
                scale=D**-0.5,
                rope=rope(i, D),
                window=window,
                qk_norm=norm if qk_norm else None,
                qk_norm_over=qk_norm_over,
                qkv_bias=qkv_bias,
                out_bias=out_bias,
                clip=clip,
            ),
            moe or mlp,
            norm,
        )
        for i, (window, moe) in enumerate(
            zip(windows or [None] * count, experts or [None] * count, strict=True)
        )
    )
    return DecoderSpec(
        model_type=config.text("model_type"),
        vocab=config.integer("vocab_size"),
        width=width,
        blocks=blocks,
        norm=norm,
        names=(*more_names, *names()),
        tied_head=config.boolean("tie_word_embeddings", tied),
        max_length=config.integer("max_position_embeddings"),
    )


def expert_count(config: Config, alias: str, key: str, default: int = REQUIRED) -> int:
    """The number of experts, under either of its names; transformers goes by the alias first."""
    if alias in config:
        return config.integer(alias)
    return config.integer(key, default)


def windows_of(config: Config, kinds: list[str]) -> list[int | None]:
    """The window of each block by its layer type: `sliding_window`, which is 4096 where absent."""
    absent = "sliding_window" not in config.raw
    window = config.integer("sliding_window", 4096 if absent else None)
    if window is None and "sliding_attention" in kinds:
        raise InvalidConfig(
            f"sliding_window is null in {config.where}: blocks of sliding_attention need a number"
        )
    return [window if kind == "sliding_attention" else None for kind in kinds]


def qwen_windows(config: Config) -> list[int | None]:
    """Qwen's windows: off unless `use_sliding_window`, then on from block `max_window_layers`."""
    count = config.integer("num_hidden_layers")
    size = config.integer("sliding_window", 4096)
    on = config.boolean("use_sliding_window", False)
    first = config.integer("max_window_layers", 28, minimum=0)
    default = ["sliding_attention" if on and i >= first else "full_attention" for i in range(count)]
    kinds = config.layer_types(count, default)
    return [size if on and kind == "sliding_attention" else None for kind in kinds]


# Small enough for a test; odd where a fault would otherwise hide (see docs/ARCHITECTURE.md).
TINY = {
    "vocab_size": 131,
    "hidden_size": 72,
    "intermediate_size": 84,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 3e-5,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
