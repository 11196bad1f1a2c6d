"""Meta's layout: the same logits, bit for bit, as the same model under transformers' names."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import harness
from engine.convert import convert
from engine.errors import CorruptWeights, EngineError, InvalidConfig, UnsupportedArchitecture
from engine.files import find_model
from engine.model import load
from engine.weights import meta, read_weights, write_weights
from engine.weights.quantised import Packing

IDS = [3, 5, 9, 100, 44, 17, 2, 2, 8]
LLAMA = {"head_dim": 18, "rope_scaling": None, "num_hidden_layers": 2}  # 72 / 4, as Meta's have
PARAMS = {
    "dim": 72,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "norm_eps": 3e-5,
    "rope_theta": 5000.0,
    "vocab_size": -1,
    "multiple_of": 4,
    "ffn_dim_multiplier": 1.3,
}
NAMES = {  # transformers' words -> Meta's
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}


def metas_name(name: str) -> str:
    for word, other in NAMES.items():
        name = name.replace(word, other)
    return name


def in_pairs(array: np.ndarray, D: int) -> np.ndarray:
    """Rows of every head in Meta's order, from transformers': one row after the other."""
    rows = []
    for head in range(len(array) // D):
        for i in range(D // 2):
            rows += [array[head * D + i], array[head * D + D // 2 + i]]
    return np.stack(rows)


def as_meta(source: Path, D: int = 18, pairs: bool = True) -> dict[str, mx.array]:
    """The tensors of a llama in Meta's layout."""
    found = {"rope.freqs": mx.ones((D // 2,))}
    for name, array in read_weights(find_model(source)).items():
        if pairs and ("q_proj" in name or "k_proj" in name):
            array = mx.array(in_pairs(np.array(array), D))
        found[metas_name(name)] = array
    return found


@pytest.fixture(scope="module")
def llama(random_model) -> Path:
    return random_model("llama", "linear", **LLAMA)


@pytest.fixture
def meta_npz(llama, tmp_path) -> Path:
    """The same llama as an early conversion: weights.npz beside params.json."""
    write_weights(tmp_path / "weights.npz", as_meta(llama))
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    return tmp_path


def logits(model: Path) -> np.ndarray:
    return np.array(load(model).decoder(mx.array([IDS]))[0])


def refusal(error: type[EngineError], model: Path) -> str:
    with pytest.raises(error) as caught:
        load(model)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_layouts_give_the_same_bits(llama, meta_npz, tmp_path):
    expected = logits(llama)
    named = convert(llama, tmp_path / "named/model.npz")
    (tmp_path / "st").mkdir()
    write_weights(tmp_path / "st/model.safetensors", as_meta(llama))
    (tmp_path / "st/params.json").write_text(json.dumps(PARAMS))
    for model in (named, meta_npz, meta_npz / "weights.npz", tmp_path / "st"):
        assert np.array_equal(logits(model), expected), model


def test_pairs_left_as_they_are_give_other_logits(llama, meta_npz):
    """The control: without the change of places the same file is another model."""
    write_weights(meta_npz / "weights.npz", as_meta(llama, pairs=False))
    assert np.abs(logits(meta_npz) - logits(llama)).max() > 0.1


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 8), st.booleans())
def test_rows_change_places_by_heads(heads, half, packed):
    D = 2 * half
    rows = np.random.default_rng(heads * 31 + half).standard_normal((heads * D, 32))
    plain = rows.astype(np.float32)
    config = {"num_attention_heads": heads, "hidden_size": heads * D}
    parts = {"weight": mx.array(in_pairs(plain, D))}
    if packed:
        parts = Packing(32, 4).pack(parts["weight"])
    tensors = {f"layers.3.attention.wk.{part}": array for part, array in parts.items()}
    found = meta.normal_tensors(tensors, config, "here")
    back = {part: found[f"model.layers.3.self_attn.k_proj.{part}"] for part in parts}
    expected = Packing(32, 4).pack(mx.array(plain)) if packed else {"weight": mx.array(plain)}
    assert all(mx.array_equal(back[part], expected[part]) for part in parts)


def test_what_params_json_leaves_out_is_read_off_the_weights(meta_npz):
    assert find_model(meta_npz).config == {
        "model_type": "llama",
        "hidden_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 84,
        "rms_norm_eps": 3e-5,
        "vocab_size": 131,
        "rope_theta": 5000.0,
        "tie_word_embeddings": False,
    }
    few = {key: PARAMS[key] for key in ("dim", "n_layers", "n_heads")}
    (meta_npz / "params.json").write_text(json.dumps({**few, "vocab_size": 200}))
    config = find_model(meta_npz).config
    assert config["num_key_value_heads"] == 4
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 10000.0)
    assert config["vocab_size"] == 200  # what is said counts, and does not fit here
    assert "shape (131, 72), expected is (200, 72)" in refusal(CorruptWeights, meta_npz)


def test_a_conversion_of_a_transformers_model_has_no_pairs(llama, tmp_path):
    """mlx-examples' TinyLlama: Meta's names, transformers' rows, and config.json says so."""
    write_weights(tmp_path / "weights.npz", as_meta(llama, pairs=False))
    said = {"hidden_dim": 84, "vocab_size": 131, "model_type": "llama", "rope_traditional": False}
    (tmp_path / "config.json").write_text(json.dumps({**PARAMS, **said}))
    assert np.array_equal(logits(tmp_path), logits(llama))


def test_shards_of_a_large_conversion(llama, tmp_path):
    tensors = as_meta(llama)
    for number in range(2):
        part = {name: a for i, (name, a) in enumerate(tensors.items()) if i % 2 == number}
        write_weights(tmp_path / f"weights.0{number}.npz", part)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    assert np.array_equal(logits(tmp_path), logits(llama))


def test_a_quantised_conversion(random_model, tmp_path):
    """Its linear layers are packed, row by row as Meta orders them; the embedding is not."""
    source = random_model("llama", "linear", **LLAMA, hidden_size=64, intermediate_size=96)
    how, plain = Packing(32, 4), as_meta(source)
    packed = {}
    for name, array in plain.items():
        module = name.rpartition(".")[0]
        if array.ndim == 2 and "tok_embeddings" not in name and how.fits(array.shape[1]):
            packed |= {f"{module}.{part}": a for part, a in how.pack(array).items()}
        else:
            packed[name] = array
    write_weights(tmp_path / "weights.npz", packed)
    config = {**PARAMS, "dim": 64, "head_dim": 18, "quantization": {"group_size": 32, "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    other = tmp_path / "other"
    other.mkdir()
    back = {name: a for name, a in plain.items() if how.fits(a.shape[-1]) and a.ndim == 2}
    back = {
        name: how.unpack(how.pack(a)) if "tok_embeddings" not in name else a
        for name, a in back.items()
    }
    write_weights(other / "weights.npz", {**plain, **back})
    (other / "params.json").write_text(json.dumps({**PARAMS, "dim": 64, "head_dim": 18}))
    assert np.abs(logits(tmp_path) - logits(other)).max() < 1e-4
    assert np.abs(logits(other) - logits(source)).max() > 1e-2


def test_it_is_written_in_transformers_layout(meta_npz, llama, tmp_path):
    out = convert(meta_npz, tmp_path / "out")
    assert set(read_weights(find_model(out))) == set(read_weights(find_model(llama)))
    assert np.array_equal(logits(out.parent), logits(llama))
    assert json.loads((out.parent / "config.json").read_text())["hidden_size"] == 72


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"moe": {"num_experts": 8}}, UnsupportedArchitecture, ["'moe'"]),
        ({"use_scaled_rope": True}, UnsupportedArchitecture, ["use_scaled_rope", "factor"]),
        ({"head_dim": 14}, CorruptWeights, ["layers.0.attention.w", "width 14"]),
        ({"dim": "72"}, InvalidConfig, ["hidden_size is '72'"]),
        ({"n_heads": None}, InvalidConfig, ["num_attention_heads"]),
    ],
)
def test_settings_that_cannot_be_are_one_line(changes, error, words, meta_npz):
    (meta_npz / "params.json").write_text(json.dumps({**PARAMS, **changes}))
    text = refusal(error, meta_npz)
    assert all(word in text for word in words), text


def test_metas_settings_beside_other_weights_are_one_line(llama, meta_npz):
    write_weights(meta_npz / "weights.npz", {"model.norm.weight": mx.ones((72,))})
    text = refusal(InvalidConfig, meta_npz)
    assert "params.json" in text and "tok_embeddings.weight" in text


# Compared with PyTorch ----------------------------------------------------------------------

CHECKS = ["weights", "blocks", "logits", "greedy"]


def test_parity_holds_on_the_npz(meta_npz):
    verdict = harness.compare(meta_npz, "engine", "torch", checks=CHECKS)
    assert verdict.verdict == "pass", [check.reason for check in verdict.checks]
    assert [check.verdict for check in verdict.checks] == ["pass"] * len(CHECKS)


def test_mlx_lm_is_given_the_same_model(meta_npz):
    verdict = harness.compare(meta_npz, "mlx-lm", "torch", checks=["weights", "logits"])
    assert verdict.verdict == "pass", [check.reason for check in verdict.checks]


def test_rows_in_the_other_order_are_found(llama, meta_npz):
    """A candidate that reads Meta's rows as transformers' is not let through."""
    wrong = load(meta_npz).decoder
    for block in wrong.blocks:
        for module in (block.attn.q, block.attn.k):
            module.weight = mx.array(in_pairs(np.array(module.weight), 18))

    def as_candidate(tokens):
        return wrong(mx.array([tokens]))

    verdict = harness.compare(meta_npz, as_candidate, "torch", checks=["logits"])
    assert verdict.verdict == "fail"
