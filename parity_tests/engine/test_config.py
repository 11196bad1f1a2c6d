"""Both spellings of a configuration mean the same; what cannot be read is one clear line."""

from __future__ import annotations

import contextlib

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError

from engine.architectures import decoder_spec, supported
from engine.config import Config
from engine.errors import InvalidConfig, UnsupportedArchitecture
from harness.random_models import config_of, variants


def respelt(config: dict) -> dict:
    """The same configuration in the other spelling: transformers 5's, or 4's where it is in 5's."""
    if "rope_parameters" in config:
        rotary = dict(config["rope_parameters"])
        if "rope_theta" not in rotary:  # nested by layer type, which the older spelling cannot be
            return dict(config)
        old = {k: v for k, v in config.items() if k != "rope_parameters"}
        theta = "rotary_emb_base" if config["model_type"] == "gpt_neox" else "rope_theta"
        return {**old, theta: rotary.pop("rope_theta"), "rope_scaling": rotary}
    new = {k: v for k, v in config.items() if not k.startswith(("rope_", "rotary_"))}
    scaling = dict(config.get("rope_scaling") or {"rope_type": "default"})
    if "rope_local_base_freq" in config or config["model_type"] == "olmo3":
        new["rope_parameters"] = {
            "full_attention": {**scaling, "rope_theta": config["rope_theta"]},
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": config.get("rope_local_base_freq", 500_000.0),
            },
        }
    elif "rope_theta" in config:
        new["rope_parameters"] = {**scaling, "rope_theta": config["rope_theta"]}
    elif "rotary_emb_base" in config:  # gpt_neox
        new["rope_parameters"] = {
            **scaling,
            "rope_theta": config["rotary_emb_base"],
            "partial_rotary_factor": config["rotary_pct"],
        }
    return new


@pytest.mark.parametrize(("family", "variant"), variants())
def test_both_spellings_mean_the_same(family, variant):
    config = config_of(family, variant)
    assert decoder_spec(Config(config)) == decoder_spec(Config(respelt(config)))


@pytest.mark.parametrize(("family", "variant"), variants())
def test_transformers_reads_the_other_spelling_alike(family, variant):
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


@pytest.mark.parametrize("name", ["su", "yarn"])
def test_old_names_of_longrope_are_read(name):
    config = config_of("phi3", "longrope")
    old = {**config, "rope_scaling": {**config["rope_scaling"], "type": name}}
    assert decoder_spec(Config(old)) == decoder_spec(Config(config))
    other = {**config_of("llama", "linear"), "rope_scaling": {"type": name, "factor": 2.0}}
    assert decoder_spec(Config(other)).blocks[0].attention.rope.type == name


def test_the_original_length_is_looked_for_where_transformers_does():
    """At top level, then in the scaling, then it is the longest; a layer type has its own alone."""
    yarn = {"rope_type": "yarn", "factor": 4.0}
    inner = {**yarn, "original_max_position_embeddings": 64}
    raw = {"max_position_embeddings": 256}
    top = {**raw, "original_max_position_embeddings": 48}

    def length(config: dict, scaling: dict) -> int:
        return Config({**config, "rope_parameters": scaling}).rope(64).original_length

    assert (length(top, inner), length(raw, inner), length(raw, yarn)) == (48, 64, 256)
    for config, scaling, expected in ((top, inner, 64), (top, yarn, 256)):
        nested = Config({**config, "rope_parameters": {"full_attention": scaling}})
        assert nested.rope(64, layer_type="full_attention").original_length == expected


def test_a_part_of_the_head_is_rotated_where_the_family_does():
    inner = {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}
    for raw in ({"partial_rotary_factor": 0.5}, inner):
        assert Config(raw).rope(20, part=1.0).dims == 10
        with pytest.raises(UnsupportedArchitecture, match="the family rotates whole heads"):
            Config(raw).rope(20)
    assert Config({}).rope(20, part=0.25).dims == 5
    assert Config({"rotary_pct": 0.5}).rope(20, part=0.25, part_key="rotary_pct").dims == 10


_YARN = {"rope_type": "yarn", "factor": 4.0}
_LONG = {"rope_type": "longrope", "short_factor": [1.0] * 9, "long_factor": [2.0] * 9}
_LLAMA3 = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({"rope_type": "linear", "factor": -1.0}, "'linear' in x/config.json has factor -1.0"),
        ({"rope_type": "dynamic", "factor": True}, "'dynamic' in x/config.json has factor True"),
        ({**_YARN, "attention_factor": 0.0}, "has attention_factor 0.0: a number above 0"),
        ({**_YARN, "mscale": "1", "mscale_all_dim": 1.0}, "has mscale '1': a number above 0"),
        ({**_YARN, "beta_fast": []}, "has beta_fast []: a number above 0"),
        ({**_YARN, "original_max_position_embeddings": -5}, "embeddings -5: a number above 0"),
        ({**_LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor 1.0: a number above 1"),
        ({**_LLAMA3, "low_freq_factor": None}, "low_freq_factor None: a number above 0"),
        ({**_LONG, "long_factor": None}, "long_factor None: a list of 9 numbers"),
        ({**_LONG, "short_factor": [1.0] * 8}, "short_factor 8 numbers: a list of 9 numbers"),
        ({**_LONG, "short_factor": [0.0] * 9}, "a list of numbers above 0"),
    ],
)
def test_wrong_rotary_values_are_named_with_their_place(scaling, words):
    config = {**config_of("llama", "tied"), "rope_scaling": scaling}
    with pytest.raises(InvalidConfig) as caught:
        decoder_spec(Config(config, "x/config.json"))
    assert words in str(caught.value) and "\n" not in str(caught.value)


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
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "phi3 has longrope alone"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("olmo3", {"rope_parameters": {"rope_theta": 5000.0}}, "not by layer type"),
        ("olmoe", {"sliding_window": 8}, "sliding_window is 8"),
        ("qwen2_moe", {"layer_types": ["sliding_attention"] * 3}, "layer_types is"),
    ],
)
def test_settings_without_a_field_are_refused_not_ignored(family, changes, words):
    from engine.decoder import Decoder

    variant = next(v for f, v in variants() if f == family)
    with pytest.raises(UnsupportedArchitecture) as caught:
        Decoder(decoder_spec(Config({**config_of(family, variant), **changes}, "x/config.json")))
    assert words in str(caught.value)


NORM_EPS = ("rms_norm_eps", "layer_norm_eps", "norm_epsilon", "norm_eps", "layer_norm_epsilon")


def rotated(theirs, width: int) -> int | None:
    """How many features of a head transformers rotates, None where it does not."""
    rotary = getattr(theirs, "rope_parameters", None)
    if rotary is None:
        return None
    rotary = rotary.get("full_attention", rotary)
    return int(width * rotary.get("partial_rotary_factor", 1.0))


@pytest.mark.parametrize("family", supported())
def test_absent_and_null_keys_mean_what_they_mean_to_transformers(family):
    """The defaults of a family are those of its configuration class."""
    import transformers

    small = {"hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4}
    small |= {"num_hidden_layers": 2, "vocab_size": 131}
    if family in ("deepseek_v2", "dots1"):  # have no defaults for these that it could be built with
        small |= {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
    configs = [{**small, "num_key_value_heads": 4}]
    for key in ("num_key_value_heads", "head_dim"):
        null = {"num_key_value_heads": 4, **small, key: None}
        with contextlib.suppress(StrictDataclassFieldValidationError):  # not in every class
            found = transformers.AutoConfig.for_model(family, **null)
            if (
                getattr(found, "num_key_value_heads", 4) is not None
            ):  # no model can be built with it
                configs.append(null)
    if family == "gpt_bigcode":  # its class works it out from `multi_query`
        configs = [small]
    for config in configs:
        spec = decoder_spec(Config({**config, "model_type": family}))
        theirs = transformers.AutoConfig.for_model(family, **config)
        attention = spec.blocks[0].attention
        heads = getattr(theirs, "num_key_value_heads", None) or theirs.num_attention_heads
        assert attention.kv_heads == heads
        width = getattr(theirs, "qk_head_dim", None) or getattr(theirs, "head_dim", None)
        width = width or theirs.hidden_size // attention.heads
        assert attention.head_dim == width
        assert spec.tied_head == theirs.tie_word_embeddings
        assert spec.vocab == theirs.vocab_size and spec.max_length == theirs.max_position_embeddings
        eps = next(getattr(theirs, key) for key in NORM_EPS if hasattr(theirs, key))
        assert spec.blocks[0].norm.eps == eps
        width = getattr(theirs, "qk_rope_head_dim", width)
        assert (attention.rope and attention.rope.dims) == rotated(theirs, width)
        assert spec.logit_softcap == getattr(theirs, "final_logit_softcapping", None)


def test_an_explicit_null_is_not_absence():
    config = {**config_of("qwen3", "plain"), "num_key_value_heads": None}
    assert decoder_spec(Config(config)).blocks[0].attention.kv_heads == 4


def test_blocks_without_positions_and_their_windows():
    """Every fourth block by default; a list says 1 where a block is rotated."""
    small = {"model_type": "smollm3", "hidden_size": 64, "intermediate_size": 80}
    small |= {"num_attention_heads": 4, "num_hidden_layers": 5, "vocab_size": 131}
    window = {"use_sliding_window": True, "sliding_window": 8}

    def blocks(**more):
        spec = decoder_spec(Config({**small, **more}, "x/config.json"))
        return [(b.attention.rope is not None, b.attention.window) for b in spec.blocks]

    assert blocks() == [(True, None)] * 3 + [(False, None), (True, None)]
    assert blocks(**window) == [(True, None)] * 3 + [(False, 8), (True, None)]
    turned = blocks(no_rope_layers=[0, 1, 1, 0, 1, 1], **window)
    assert turned == [(False, 8), (True, None), (True, None), (False, 8), (True, None)]
    kinds = ["sliding_attention"] + ["full_attention"] * 4
    assert blocks(layer_types=kinds, sliding_window=8)[0] == (True, 8)
    with pytest.raises(InvalidConfig, match="no_rope_layers has 2 entries in x"):
        blocks(no_rope_layers=[1, 0])
    with pytest.raises(InvalidConfig, match="sliding_window is missing"):
        blocks(layer_types=kinds)


def test_a_multiplier_that_divides_is_not_zero():
    config = {**config_of("granite", "bias"), "logits_scaling": 0.0}
    with pytest.raises(InvalidConfig, match=r"logits_scaling is 0\.0 in x"):
        decoder_spec(Config(config, "x/config.json"))


WINDOWED = ["cohere2", "exaone4", "gemma2", "olmo3", "qwen2", "qwen2_moe"]


@pytest.mark.parametrize("family", WINDOWED)
@pytest.mark.parametrize("changes", [{}, {"sliding_window_pattern": 3, "max_window_layers": 2}])
def test_windows_are_in_the_blocks_where_transformers_has_them(family, changes):
    import transformers

    config = {"hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 4, "num_hidden_layers": 9, "vocab_size": 131}
    config |= {"use_sliding_window": True, "max_window_layers": 5, **changes}
    spec = decoder_spec(Config({**config, "model_type": family}))
    theirs = transformers.AutoConfig.for_model(family, **config)
    size = {"sliding_attention": theirs.sliding_window, "full_attention": None}
    assert [b.attention.window for b in spec.blocks] == [size[kind] for kind in theirs.layer_types]
    assert {"sliding_attention", "full_attention"} == set(theirs.layer_types)


@pytest.mark.parametrize("family", ["cohere2", "exaone4"])
def test_blocks_that_see_everything_have_no_positions_where_others_have_windows(family):
    variant = next(v for f, v in variants() if f == family)
    config = config_of(family, variant)
    attention = [block.attention for block in decoder_spec(Config(config)).blocks]
    assert [a.rope is None for a in attention] == [a.window is None for a in attention]
    assert {a.window for a in attention} == {8, None}


def test_positions_are_everywhere_where_there_are_no_windows():
    spec = decoder_spec(Config(config_of("exaone4", "full")))
    assert all(b.attention.rope and b.attention.window is None for b in spec.blocks)


@pytest.mark.parametrize("family", ["cohere2", "exaone4", "olmo3"])
def test_a_window_of_null_is_refused_where_blocks_need_one(family):
    variant = next(v for f, v in variants() if f == family)
    changes = {"sliding_window": None, "layer_types": ["sliding_attention"] * 4}
    with pytest.raises(InvalidConfig, match=r"sliding_window is null in x/config\.json"):
        decoder_spec(Config({**config_of(family, variant), **changes}, "x/config.json"))


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 2.0}])
def test_a_top_level_base_and_scaling_may_be_of_one_layer_type_alone(scaling):
    """As olmo3 is read by transformers 5: what it makes of the same keys is what is expected."""
    import transformers

    config = {**config_of("olmo3", "yarn"), "rope_scaling": scaling}
    del config["model_type"]
    theirs = transformers.AutoConfig.for_model("olmo3", **config)
    assert theirs.rope_parameters["sliding_attention"]["rope_theta"] != config["rope_theta"]
    spec = decoder_spec(Config({**config, "model_type": "olmo3"}))
    for block, kind in zip(spec.blocks, theirs.layer_types, strict=True):
        expected, found = theirs.rope_parameters[kind], block.attention.rope
        assert (found.theta, found.type) == (expected["rope_theta"], expected["rope_type"])
        assert found.factor == expected.get("factor", 1.0)
