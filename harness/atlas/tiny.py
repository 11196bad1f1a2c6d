"""A tiny fault-exposing configuration of any family, by rule.

The rule looks at fields alone: SIZES says what a field of a name becomes wherever a configuration
class has it. What the class derives from its fields it derives from the small ones. Layers are
added until every kind of layer of the full-sized default is there. What no rule can tell is in the
family's recipe.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from engine.errors import one_line

from ..backends._transformers import import_torch
from .recipes import recipe_of
from .variants import FLIPPED, PLAIN, VARIANTS, Variant

LARGEST = 2_000_000  # parameters of a tiny model
DEEPEST = 8  # layers
PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

# Hidden width no square, head width no hidden / heads, epsilon and rotary base no family's default.
# 512 tokens are longer than every probe that does not come from a window.
SIZES: dict[str, Any] = {
    "hidden_size": 96, "d_model": 96, "n_embd": 96,
    "intermediate_size": 116, "ffn_hidden_size": 116, "intermediate_size_mlp": 108,
    "moe_intermediate_size": 44, "expert_ffn_hidden_size": 44,
    "shared_intermediate_size": 52, "shared_expert_intermediate_size": 52,
    "moe_shared_expert_intermediate_size": 52,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "vocab_size": 131, "vocab_size_per_layer_input": 131, "hidden_size_per_layer_input": 12,
    "max_position_embeddings": 512, "n_positions": 512, "max_seq_len": 512,
    "sliding_window": 512, "attention_window_size": 512, "attention_chunk_size": 512,
    "rms_norm_eps": 3e-5, "layer_norm_epsilon": 3e-5, "layer_norm_eps": 3e-5, "norm_eps": 3e-5,
    "norm_epsilon": 3e-5, "mixer_rms_eps": 3e-5,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
    "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "moe_num_experts": 8,
    "num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 3, "top_k_experts": 2,
    "n_shared_experts": 2, "num_shared_experts": 2, "moe_num_shared_experts": 2,
    "zero_expert_num": 4, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "num_dense_layers": 1, "moe_layer_start_index": 1,
    "q_lora_rank": 28, "kv_lora_rank": 20, "qk_rope_head_dim": 8, "qk_nope_head_dim": 14,
    "v_head_dim": 18, "index_topk": 16, "index_head_dim": 16, "index_n_heads": 16,
    "mamba_d_state": 8, "mamba_n_heads": 6, "mamba_d_ssm": 192, "mamba_n_groups": 2,
    "mamba_chunk_size": 16, "state_size": 8, "num_heads": 6, "n_groups": 2, "chunk_size": 16,
    "ssm_state_size": 8, "mamba_num_heads": 6, "mamba_head_dim": 32,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 12,
    "linear_value_head_dim": 20, "linear_head_dim": 16, "linear_num_heads": 4,
    "embedding_multiplier": 1.7, "residual_multiplier": 0.6, "attention_multiplier": 0.2,
    "logits_scaling": 1.9, "lm_head_multiplier": 0.8, "key_multiplier": 0.7,
    "attention_out_multiplier": 0.9, "attention_in_multiplier": 1.1, "ssm_in_multiplier": 1.2,
    "ssm_out_multiplier": 0.85, "logit_scale": 0.3,
    "routed_scaling_factor": 1.7, "moe_routed_scaling_factor": 1.7, "route_scale": 1.7,
    "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "logits_soft_cap": 3.0,
    "query_pre_attn_scalar": 30, "rotary_dim": 8, "floor_scale": 16, "block_size": 16,
    "block_multiple_of": 4,
    "layer_group_size": 2, "global_attn_every_n_layers": 2, "no_rope_layer_interval": 2,
}  # fmt: skip

# Fields that a class leaves empty mean something by it, but for these, which it fills in itself.
FILLED = ("num_key_value_heads", "linear_num_key_heads", "linear_num_value_heads",
          "linear_key_head_dim", "linear_value_head_dim")  # fmt: skip
ROTARY_BASES = (5000.0, 700.0, 3000.0)


class CannotBuild(Exception):
    """No tiny model of a family by rule; the message says what stands in the way."""


def tiny_configs(family: str) -> Iterator[tuple[str, Any]]:
    """(variant, configuration object) of every variant that a family has. Raises CannotBuild."""
    without = recipe_of(family).without
    plain = build(family, VARIANTS[PLAIN])
    yield PLAIN, plain
    shapes = parameters(plain)
    for name, variant in VARIANTS.items():
        if name == PLAIN or name in without:
            continue
        try:
            config = build(family, variant, plain)
            others = parameters(config)
        except CannotBuild:
            continue  # class or model refuse it
        if config.to_dict() == plain.to_dict():
            continue
        if not variant.new_weights or others != shapes:
            yield name, config


def build(family: str, variant: Variant, plain: Any = None) -> Any:
    """The configuration of one variant; `plain` is that of the plain one."""
    whole, kind = _classes(family)
    default = _default(kind)
    recipe = recipe_of(family)
    settings = settings_of(kind, default) | dict(recipe.settings)
    if variant.factors and not recipe.factors:
        raise CannotBuild("its recipe has no factors")
    rotary = {**variant.rotary, **(recipe.factors if variant.factors else {})}
    if plain is not None:
        known = {f.name for f in dataclasses.fields(kind)}
        for name, value in variant.settings.items():
            if name in known:
                old = vars(plain.get_text_config()).get(name)
                settings[name] = not old if value is FLIPPED else value
    fixed = {*LAYERS, *PER_LAYER} & set(recipe.settings)
    layers = None if fixed else next((name for name in LAYERS if name in settings), None)
    config = _rotated(kind, settings, rotary)
    while layers and _kinds_of_layers(config) != _kinds_of_layers(default):
        if settings[layers] == DEEPEST:
            break
        settings[layers] += 1
        config = _rotated(kind, settings, rotary)
    if whole is kind:
        return config
    tied = config.tie_word_embeddings
    return whole(text_config=config, tie_word_embeddings=tied, **recipe.around)


def settings_of(kind: Any, default: Any) -> dict[str, Any]:
    """What the rule sets: fields of the class that SIZES knows and the default does not omit."""
    found: dict[str, Any] = {}
    there = vars(default)
    for field in dataclasses.fields(kind):
        name = field.name
        if name in LAYERS:
            found[name] = 3
        elif name in SIZES:
            value = there.get(kind.attribute_map.get(name, name))
            if name in FILLED or value is not None:
                found[name] = SIZES[name]
    if "kv_lora_rank" in found and "num_key_value_heads" in found:
        found["num_key_value_heads"] = found["num_attention_heads"]  # latent, not grouped
    return found


def parameters(config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters, with none of them in memory.

    Raises CannotBuild for a model that is too large, naming its largest parameter.
    """
    torch, transformers = import_torch()
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:  # what a model's code raises for a configuration it cannot have
        raise CannotBuild(f"{type(error).__name__}: {one_line(error)}") from None
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    total = sum(p.numel() for p in model.parameters())
    if total > LARGEST:
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        name = max(sizes, key=lambda name: sizes[name])
        raise CannotBuild(f"{total:,} parameters, {name} has the shape {shapes[name]}")
    return shapes


def written(config: Any) -> dict[str, Any]:
    """config.json as transformers writes it beside a model's weights."""
    return json.loads(config.to_json_string(use_diff=True))


def _classes(family: str) -> tuple[Any, Any]:
    """The configuration class of a family, and that of its text, where there is more to it."""
    _, transformers = import_torch()
    whole = transformers.CONFIG_MAPPING[family]
    text = whole.sub_configs.get("text_config")
    return whole, whole if text is None else type(_default(whole).get_text_config())


def _default(kind: Any) -> Any:
    try:
        return kind()
    except Exception as error:
        raise CannotBuild(f"{kind.__name__}() has no default: {one_line(error)}") from None


def _rotated(kind: Any, settings: Mapping[str, Any], rotary: Mapping[str, Any]) -> Any:
    """The configuration with rotary bases that are no default, but for those that a recipe gives,
    and scaled as a variant wants."""
    try:
        config = kind(**settings)
        rope = json.loads(json.dumps(vars(config).get("rope_parameters") or {}))
        if not rope:
            if rotary:
                raise CannotBuild("it has no rotary embedding")
            return config
        nested = [part for part in rope.values() if isinstance(part, dict)]
        given = "rope_theta" in json.dumps(settings.get("rope_parameters", {}))
        for part, base in zip(nested or [rope], ROTARY_BASES, strict=False):
            if part.get("rope_theta") is not None and not given:
                part["rope_theta"] = base
        if rotary:
            scaled = rope.get("full_attention", rope)
            if scaled.get("rope_type", "default") != "default":
                raise CannotBuild("its rotary embedding is scaled already")
            scaled.update(rotary)
        if "rope_theta" in {field.name for field in dataclasses.fields(kind)}:
            settings = {**settings, "rope_theta": ROTARY_BASES[0]}
        return kind(**{**settings, "rope_parameters": rope})
    except CannotBuild:
        raise
    except Exception as error:  # its own validation
        raise CannotBuild(f"{type(error).__name__}: {one_line(error)}") from None


def _kinds_of_layers(config: Any) -> dict[str, set[str]]:
    """The kinds there are in every list that has one entry a layer."""
    found = {}
    for name in PER_LAYER:
        value = getattr(config, name, None)
        if isinstance(value, (list, tuple)):
            found[name] = set(map(str, value))
    return found
