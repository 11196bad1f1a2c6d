"""Both spellings of a configuration mean the same; what cannot be read is one clear line."""

from __future__ import annotations

import pytest

from engine.architectures import decoder_spec, supported
from engine.config import Config
from engine.errors import InvalidConfig, UnsupportedArchitecture
from harness.random_models import config_of, variants


def respelt(config: dict) -> dict:
    """The same configuration in the other spelling: transformers 5's, or 4's where it is in 5's."""
    if "rope_parameters" in config:
        rotary = dict(config["rope_parameters"])
        old = {k: v for k, v in config.items() if k != "rope_parameters"}
        return {**old, "rope_theta": rotary.pop("rope_theta"), "rope_scaling": rotary}
    new = {k: v for k, v in config.items() if not k.startswith("rope_")}
    scaling = dict(config.get("rope_scaling") or {"rope_type": "default"})
    if "rope_local_base_freq" in config:
        new["rope_parameters"] = {
            "full_attention": {**scaling, "rope_theta": config["rope_theta"]},
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": config["rope_local_base_freq"],
            },
        }
    elif "rope_theta" in config:
        new["rope_parameters"] = {**scaling, "rope_theta": config["rope_theta"]}
    return new


@pytest.mark.parametrize(("family", "variant"), variants())
def test_both_spellings_mean_the_same(family, variant):
    config = config_of(family, variant)
    assert decoder_spec(Config(config)) == decoder_spec(Config(respelt(config)))


@pytest.mark.parametrize(("family", "variant"), variants())
def test_transformers_reads_the_new_spelling_alike(family, variant):
    """The respelling used above is transformers' own: it normalises both to one form."""
    import transformers

    old, new = config_of(family, variant), respelt(config_of(family, variant))
    kind = old.pop("model_type")
    new.pop("model_type")
    parsed = [transformers.AutoConfig.for_model(kind, **raw).to_dict() for raw in (old, new)]
    assert parsed[0].get("rope_parameters") == parsed[1].get("rope_parameters")


def test_every_changed_rotary_number_changes_the_spec():
    config = config_of("llama", "llama3")
    base = decoder_spec(Config(config))
    for key in ("factor", "low_freq_factor", "original_max_position_embeddings"):
        scaling = {**config["rope_scaling"], key: config["rope_scaling"][key] * 2}
        assert decoder_spec(Config({**config, "rope_scaling": scaling})) != base


def test_older_key_type_is_rope_type():
    config = config_of("llama", "linear")
    old = {**config, "rope_scaling": {"type": "linear", "factor": 2.5}}
    assert decoder_spec(Config(old)) == decoder_spec(Config(config))


def test_unsupported_model_type_lists_the_nearest_first():
    with pytest.raises(UnsupportedArchitecture) as caught:
        decoder_spec(Config({"model_type": "qwen4"}, "somewhere/config.json"))
    message = str(caught.value)
    assert "'qwen4'" in message and "somewhere/config.json" in message
    listed = message.partition("the engine has ")[2]
    assert listed.startswith("qwen") and all(name in listed for name in supported())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": None}, "model_type is missing in x/config.json"),
        ({"hidden_size": None}, "hidden_size is missing in x/config.json"),
        ({"hidden_size": "72"}, "hidden_size is '72' in x/config.json"),
        ({"hidden_size": 0}, "hidden_size is 0 in x/config.json"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3 in x/config.json"),
        ({"rms_norm_eps": -1.0}, "norm epsilon is -1.0 in x/config.json"),
        ({"head_dim": 25}, "rotary width is 25 in x/config.json"),
        ({"rope_theta": 0}, "rope_theta is 0 in x/config.json"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear' in x/config.json"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'linear' in x/config.json has factor None"),
    ],
)
def test_wrong_values_are_named_with_their_place(changes, words):
    with pytest.raises(InvalidConfig) as caught:
        decoder_spec(Config({**config_of("llama", "tied"), **changes}, "x/config.json"))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "'spiral'"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "twist": 1}}, "'twist'"),
        ("llama", {"hidden_act": "sine"}, "'sine'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_settings_without_a_field_are_refused_not_ignored(family, changes, words):
    from engine.decoder import Decoder

    variant = next(v for f, v in variants() if f == family)
    with pytest.raises(UnsupportedArchitecture) as caught:
        Decoder(decoder_spec(Config({**config_of(family, variant), **changes}, "x/config.json")))
    assert words in str(caught.value)


@pytest.mark.parametrize("family", supported())
def test_absent_and_null_keys_mean_what_they_mean_to_transformers(family):
    """The defaults of a family are those of its configuration class."""
    import transformers

    small = {"hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4}
    small |= {"num_hidden_layers": 2, "vocab_size": 131}
    if family == "gpt2":
        small = {"n_embd": 64, "n_head": 4, "n_layer": 2}
    if family in ("deepseek_v2", "dots1"):  # have no defaults for these that it could be built with
        small |= {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
    configs = [{**small, "num_key_value_heads": 4}]
    if family == "llama":  # the one class here that takes nulls for both
        configs.append({**small, "num_key_value_heads": None, "head_dim": None})
    for config in configs:
        spec = decoder_spec(Config({**config, "model_type": family}))
        theirs = transformers.AutoConfig.for_model(family, **config)
        attention = spec.blocks[0].attention
        heads = getattr(theirs, "num_key_value_heads", theirs.num_attention_heads)
        assert attention.kv_heads == heads
        width = getattr(theirs, "qk_head_dim", None) or getattr(theirs, "head_dim", None)
        width = width or theirs.hidden_size // attention.heads
        assert attention.head_dim == width
        assert spec.tied_head == theirs.tie_word_embeddings
        assert spec.vocab == theirs.vocab_size and spec.max_length == theirs.max_position_embeddings
        eps = getattr(theirs, "rms_norm_eps", None) or theirs.layer_norm_epsilon
        assert spec.blocks[0].norm.eps == eps
        assert spec.logit_softcap == getattr(theirs, "final_logit_softcapping", None)


def test_an_explicit_null_is_not_absence():
    config = {**config_of("qwen3", "plain"), "num_key_value_heads": None}
    assert decoder_spec(Config(config)).blocks[0].attention.kv_heads == 4
