"""The shipped tiny models are what STYLE.md's rule 19 asks for, and training repeats itself.

Facts are read from the files in `golden/models`, never from the recipes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.golden import train

MODELS = Path(__file__).parents[2] / "golden" / "models"
NAMES = ("tiny-llama", "tiny-gemma3", "tiny-gpt2")
LIMIT_BYTES = 2_000_000
PROMPT = '''def strip(self, text, window=8):
    """Return text without the spaces at either end; raise ValueError where nothing is left."""
    for index, line in enumerate(text.splitlines()):
        if not line.strip() and index % window == 0:
            raise ValueError(f"line {index} is empty: {line!r}")
    return self.join(text)
'''


def read_json(name: str, file: str) -> dict[str, Any]:
    return json.loads((MODELS / name / file).read_text(encoding="utf-8"))


def read_weights(name: str) -> dict[str, np.ndarray]:
    if (MODELS / name / "model.npz").is_file():
        with np.load(MODELS / name / "model.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files if key != "__config__"}
    from safetensors.numpy import load_file

    return load_file(MODELS / name / "model.safetensors")


def load_reference(name: str) -> Any:
    """Return transformers' model as `transformers` itself reads the folder, eager, float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(MODELS / name)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    weights = {key: torch.from_numpy(value) for key, value in read_weights(name).items()}
    # the npz names its weights as gpt2 does on the Hub, without the base model's prefix
    target = model.base_model if name == "tiny-gpt2" else model
    missing, unexpected = target.load_state_dict(weights, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if name == "tiny-gemma3" else [])
    model.tie_weights()
    return model.eval()


def load_mlx_lm(name: str) -> Any:
    """Return mlx-lm's model; by hand for the npz, which mlx-lm does not load."""
    pytest.importorskip("mlx_lm")
    import mlx.core as mx

    if name != "tiny-gpt2":
        from mlx_lm.utils import load_model

        return load_model(MODELS / name)[0]
    from mlx_lm.models import gpt2

    model = gpt2.Model(gpt2.ModelArgs.from_dict(read_json(name, "config.json")))
    weights = {key: mx.array(value) for key, value in read_weights(name).items()}
    model.load_weights(list(model.sanitize(weights).items()))
    return model


# The shipped files --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_folder_is_small(name: str) -> None:
    assert sum(file.stat().st_size for file in (MODELS / name).iterdir()) <= LIMIT_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_training_converged(name: str) -> None:
    record = read_json(name, "training.json")
    loss = record["loss"]
    assert loss["uniform"] == pytest.approx(math.log(read_json(name, "config.json")["vocab_size"]))
    assert max(loss["train"], loss["held_out"]) < 0.7 * loss["uniform"]
    assert record["parameters"] == sum(value.size for value in read_weights(name).values())
    assert record["steps"] == train.RECIPES[name].steps, "shipped by a shortened training"


@pytest.mark.parametrize("name", NAMES)
def test_files_follow_the_recipe(name: str) -> None:
    recipe = train.RECIPES[name]
    assert read_json(name, "config.json") == recipe.config
    assert read_json(name, "tokenizer_config.json") == recipe.tokenizer_config


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_finite_float32(name: str) -> None:
    for key, value in read_weights(name).items():
        assert value.dtype == np.float32, key
        assert np.isfinite(value).all(), key


@pytest.mark.parametrize("name", NAMES)
def test_norm_gains_are_away_from_one(name: str) -> None:
    offset = 1.0 if name == "tiny-gemma3" else 0.0  # Gemma multiplies by 1 + weight
    gains = {
        key: value + offset
        for key, value in read_weights(name).items()
        if value.ndim == 1 and not key.endswith(".bias")
    }
    assert len(gains) == {"tiny-llama": 9, "tiny-gemma3": 43, "tiny-gpt2": 9}[name]
    for key, gain in gains.items():
        assert np.abs(gain - 1).mean() > 0.1, key
        assert gain.std() > 0.1, key


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_biases_are_not_zero(name: str) -> None:
    biases = {key: value for key, value in read_weights(name).items() if key.endswith(".bias")}
    assert len(biases) == {"tiny-llama": 4 * 7, "tiny-gpt2": 4 * 6 + 1}[name]
    for key, bias in biases.items():
        assert np.abs(bias).mean() > 0.05, key


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_peaked(name: str) -> None:
    # attention that ignores its logits would give about 1/192, and 1/8 in a window of 8
    assert read_json(name, "training.json")["attention_peak"] > 0.2


def test_llama_exposes_faults() -> None:
    config, weights = read_json("tiny-llama", "config.json"), read_weights("tiny-llama")
    assert math.isqrt(config["hidden_size"]) ** 2 != config["hidden_size"]
    assert config["head_dim"] != config["hidden_size"] // config["num_attention_heads"]
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (4, 2)
    assert config["rope_theta"] not in (10_000, 500_000)
    assert config["rope_scaling"]["original_max_position_embeddings"] == 64
    assert not config["tie_word_embeddings"]
    assert not np.allclose(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_gemma3_exposes_faults() -> None:
    config, weights = read_json("tiny-gemma3", "config.json"), read_weights("tiny-gemma3")
    heads = config["num_attention_heads"]
    assert (heads, config["num_key_value_heads"]) == (4, 2)
    widths = {config["head_dim"], config["query_pre_attn_scalar"], config["hidden_size"] // heads}
    assert len(widths) == 3
    assert (config["sliding_window"], config["num_hidden_layers"]) == (8, 7)
    assert config["rope_theta"] != 1_000_000
    assert config["rope_local_base_freq"] != 10_000
    assert config["rms_norm_eps"] != 1e-6
    # the one deliberate exception: mlx-lm rounds sqrt(hidden_size) to bfloat16
    assert math.isqrt(config["hidden_size"]) ** 2 == config["hidden_size"]
    assert "lm_head.weight" not in weights


def test_gpt2_exposes_faults() -> None:
    config, weights = read_json("tiny-gpt2", "config.json"), read_weights("tiny-gpt2")
    assert math.isqrt(config["n_embd"]) ** 2 != config["n_embd"]
    assert config["layer_norm_epsilon"] != 1e-5
    assert "h.0.attn.c_attn.weight" in weights  # the only names mlx-lm reads
    assert "lm_head.weight" not in weights
    assert not [key for key in weights if key.endswith((".attn.bias", ".masked_bias"))]


def test_npz_carries_its_configuration() -> None:
    with np.load(MODELS / "tiny-gpt2" / "model.npz", allow_pickle=False) as file:
        stored = file["__config__"]
    assert stored.dtype == np.uint8
    assert stored.tobytes() == (MODELS / "tiny-gpt2" / "config.json").read_bytes()


# How other programs read them ---------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_tokenizers_agree_and_add_bos(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS / name)
    raw = Tokenizer.from_file(str(MODELS / name / "tokenizer.json"))
    config = read_json(name, "config.json")
    assert len(tokenizer) == raw.get_vocab_size() == config["vocab_size"]
    assert tokenizer.bos_token_id == config["bos_token_id"]
    assert tokenizer.eos_token_id == config["eos_token_id"]
    bos = [] if name == "tiny-gpt2" else [config["bos_token_id"]]
    for text in ("", "a", " a  b\t\n", "h\u00e9llo \u65e5\u672c \U0001f389\r\n", PROMPT):
        ids = tokenizer(text)["input_ids"]
        assert ids == raw.encode(text).ids
        assert ids[: len(bos)] == bos
        assert config["eos_token_id"] not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_transformers_reads_the_spelling() -> None:
    transformers = pytest.importorskip("transformers")

    llama = transformers.AutoConfig.from_pretrained(MODELS / "tiny-llama")
    assert llama.rope_parameters == {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    gemma = transformers.AutoConfig.from_pretrained(MODELS / "tiny-gemma3")
    assert gemma.rope_parameters == {
        "full_attention": {"rope_type": "default", "rope_theta": 20000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
    }
    assert [i for i, kind in enumerate(gemma.layer_types) if kind == "full_attention"] == [2, 5]
    assert str(gemma.dtype) == "torch.float32"


@pytest.mark.parametrize("name", NAMES)
def test_mlx_lm_and_transformers_read_the_same_model(name: str) -> None:
    # a key that one of them overlooks moves logits by more than 1e-2, rounding by less than 1e-6
    torch = pytest.importorskip("torch")
    pytest.importorskip("mlx_lm")
    import mlx.core as mx
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(MODELS / name / "tokenizer.json")).encode(PROMPT).ids[:100]
    assert len(ids) == 100
    with torch.no_grad():
        expected = load_reference(name)(torch.tensor([ids])).logits[0].numpy()
    with mx.stream(mx.cpu):  # a GPU may round its products to TF32
        actual = np.array(load_mlx_lm(name)(mx.array([ids]))[0])
    error = np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2))
    assert error < 1e-5


# The script ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "tiny-gpt2" else pytest.mark.full) for n in NAMES],
)
def test_training_repeats_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(train, "TRAIN_FILES", train.HELD_OUT_FILES)  # seconds saved
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    for run in ("first", "second"):
        train.train(name, tmp_path / run, steps=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    first, second = (sorted((tmp_path / run / name).iterdir()) for run in ("first", "second"))
    assert [file.name for file in first] == sorted(file.name for file in (MODELS / name).iterdir())
    for one, other in zip(first, second, strict=True):
        if one.name != "training.json":
            assert one.read_bytes() == other.read_bytes(), one.name


def test_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        train.main(["tiny-bert"])
    assert exit_status.value.code == 2
    assert "tiny-bert" in capsys.readouterr().err


def test_incomplete_library_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="no_such_module"):
        train._read_library(("no_such_module",))
