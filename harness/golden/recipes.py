"""The tiny models of `golden/models` as data: configuration, start of the parameters, steps.

Each is made to expose faults: norm gains and biases start at random, far from one and zero, and
query and key weights start large, so that attention is peaked. `config.json` is spelled as
transformers 4 spells it, which mlx-lm 0.32.2 reads too; on the newer spelling it falls back to its
defaults in silence. Nothing here trains or writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .vocabulary import VOCABULARY

CONTEXT = 256  # tokens a row holds: every position a config allows is trained


@dataclass(frozen=True)
class Start:
    """How the parameters whose name matches `names` begin; the rest begin as the class does."""

    names: str  # regular expression, searched
    low: float
    high: float


@dataclass(frozen=True)
class Recipe:
    """Everything that makes one golden model."""

    name: str
    architecture: str  # class in transformers
    config: Mapping[str, Any]  # config.json itself; the class's config is built from it
    tokenizer: str  # key of TOKENIZERS
    tokenizer_config: Mapping[str, Any]  # tokenizer_config.json itself
    starts: tuple[Start, ...]  # the first that matches counts
    steps: int
    weights: str = "safetensors"  # or npz
    generation: Mapping[str, Any] = field(default_factory=dict)  # generation_config.json's own
    peak_rate: float = 3e-3
    seed: int = 20


COMMON = {"vocab_size": VOCABULARY, "torch_dtype": "float32", "use_cache": True}

LLAMA = Recipe(
    name="tiny-llama",
    architecture="LlamaForCausalLM",
    config=COMMON
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_size": 60,  # not a square
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,  # not 60 / 4
        "intermediate_size": 160,
        "hidden_act": "silu",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 5000.0,
        # wavelengths are 6 to 15454 tokens: two of the twelve stay, two blend, eight are stretched
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "attention_dropout": 0.0,
    },
    tokenizer="llama3",
    tokenizer_config={
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    },
    starts=(
        Start(r"norm\.weight$", 0.5, 1.5),
        Start(r"\.bias$", -0.3, 0.3),
        Start(r"[qk]_proj\.weight$", -0.35, 0.35),
    ),
    steps=2000,
)

GEMMA3 = Recipe(
    name="tiny-gemma3",
    architecture="Gemma3ForCausalLM",
    config=COMMON
    | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        # A square on purpose: mlx-lm 0.32.2 rounds the embedding's scale sqrt(hidden_size) to
        # bfloat16 at every dtype (models/gemma3_text.py, Gemma3Model.__call__), so that any
        # other width would be a true difference; 8 is exact.
        "hidden_size": 64,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,  # not 64 / 4
        "query_pre_attn_scalar": 18,  # neither head_dim nor 64 / 4
        "intermediate_size": 128,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "rms_norm_eps": 3e-5,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 20000.0,  # global layers
        "rope_local_base_freq": 3000.0,
        "rope_scaling": None,
        "sliding_window": 8,
        "sliding_window_pattern": 3,  # blocks 2 and 5 see everything, the others the window
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "attention_dropout": 0.0,
    },
    tokenizer="gemma",
    tokenizer_config={
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",  # GemmaTokenizer would add it beyond the embedding's rows
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    },
    # a Gemma norm multiplies by 1 + weight
    starts=(
        Start(r"[qk]_norm\.weight$", 0.2, 1.0),
        Start(r"norm\.weight$", -0.5, 0.5),
    ),
    steps=1200,
    generation={"eos_token_id": [1, 4]},  # a list, as chat models have
)

GPT2 = Recipe(
    name="tiny-gpt2",
    architecture="GPT2LMHeadModel",
    config=COMMON
    | {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "n_embd": 60,  # not a square
        "n_layer": 4,
        "n_head": 4,
        "n_inner": None,  # 4 * n_embd, which mlx-lm takes for granted
        "n_positions": CONTEXT,
        "n_ctx": CONTEXT,  # mlx-lm requires the old spelling too
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 3e-5,
        "tie_word_embeddings": True,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    },
    tokenizer="gpt2",
    tokenizer_config={
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    },
    starts=(
        Start(r"ln_\w+\.weight$", 0.5, 1.5),
        Start(r"\.bias$", -0.3, 0.3),
        Start(r"c_attn\.weight$", -0.35, 0.35),
    ),
    steps=2500,
    weights="npz",
)

RECIPES = {recipe.name: recipe for recipe in (LLAMA, GEMMA3, GPT2)}
