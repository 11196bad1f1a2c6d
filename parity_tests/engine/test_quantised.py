"""Quantised checkpoints: values by an independent reading, mlx-lm's files, and files for mlx-lm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import CorruptWeights, EngineError, InvalidConfig, UnsupportedFormat
from engine.files import find_model
from engine.generate import generate
from engine.layers.packed import PackedExperts, PackedLinear
from engine.model import load
from engine.weights import read_weights, write_weights
from engine.weights.plain import plain_weights
from engine.weights.quantised import MODES, Packing, quantisation

IDS = [3, 5, 9, 100, 44, 17]
EVERY = [Packing(g, b, mode) for mode, known in MODES.items() for g in known[0] for b in known[1]]


# Values -------------------------------------------------------------------------------------


def unpacked(parts: dict[str, mx.array], how: Packing) -> np.ndarray:
    """The matrix in float64, from the bits alone."""
    words, scales = (np.array(parts[name].astype(kind)) for name, kind in (
        ("weight", mx.uint32), ("scales", mx.float32 if how.mode == "affine" else mx.uint8)
    ))  # fmt: skip
    bits = (words[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    bits = bits.reshape(*words.shape[:-1], -1, how.bits)
    codes = (bits << np.arange(how.bits)).sum(-1)  # (..., width)
    if how.mode == "affine":
        values, biases = codes.astype(np.float64), np.array(parts["biases"]).astype(np.float64)
        return values * grown(scales, how) + grown(biases, how)
    values = small_float(codes, 2, 1) if how.bits == 4 else small_float(codes, 4, 3)
    if how.mode == "nvfp4":
        return values * grown(small_float(scales, 4, 3), how)
    return values * grown(2.0 ** (scales.astype(np.float64) - 127), how)


def small_float(codes: np.ndarray, exponent: int, mantissa: int) -> np.ndarray:
    """Sign, exponent and mantissa, as OCP's microscaling formats have them."""
    codes = codes.astype(np.int64)
    sign = np.where(codes >> (exponent + mantissa) & 1, -1.0, 1.0)
    power = codes >> mantissa & ((1 << exponent) - 1)
    fraction = (codes & ((1 << mantissa) - 1)) / (1 << mantissa)
    bias = (1 << (exponent - 1)) - 1
    normal = (1 + fraction) * 2.0 ** (power - bias)
    return sign * np.where(power > 0, normal, fraction * 2.0 ** (1 - bias))


def grown(scales: np.ndarray, how: Packing) -> np.ndarray:
    """One value for every number of a group."""
    return np.repeat(scales, how.group_size, axis=-1)


@settings(max_examples=40)
@given(st.sampled_from(EVERY), st.integers(0, 2**31), st.sampled_from([(3,), (2, 3)]))
def test_values_are_those_of_the_format(how, seed, rows):
    random = np.random.default_rng(seed)
    matrix = random.standard_normal((*rows, 2 * how.group_size)) * 10.0 ** random.integers(-3, 3)
    parts = how.pack(mx.array(matrix.astype(np.float32)))
    assert tuple(parts) == how.parts
    expected = unpacked(parts, how)
    largest = np.abs(matrix).max()
    assert np.abs(np.array(how.unpack(parts)) - expected).max() <= 1e-6 * largest
    step = 2 / (2**how.bits - 1) if how.mode == "affine" else 0.26  # of E2M1, its scale rounded
    assert np.abs(expected - matrix).max() <= step * largest


def test_values_of_bfloat16_scales_are_exact():
    """Products of a bfloat16 scale and a whole number of 8 bits fit float32."""
    how = Packing(32, 8)
    parts = how.pack(mx.random.normal((4, 64)).astype(mx.bfloat16))
    wide = {name: a if name == "weight" else a.astype(mx.float32) for name, a in parts.items()}
    assert np.array_equal(np.array(how.unpack(parts)), unpacked(wide, how).astype(np.float32))


# Reading ------------------------------------------------------------------------------------


def some(path, module):
    """A block's value projection as it was, its neighbour finer, the rest as for all."""
    if path == "model.layers.0.self_attn.v_proj":
        return False
    return {"group_size": 64, "bits": 8} if path.endswith("1.mlp.down_proj") else True


@pytest.mark.parametrize(
    ("family", "variant", "options"),
    [
        ("llama", "tied", {"predicate": some}),
        ("llama", "linear", {"mode": "mxfp4"}),
        ("qwen3", None, {"bits": 3, "dtype": "bfloat16"}),
        ("gemma3_text", None, {"mode": "mxfp8", "bits": 8, "sliding_window": 64}),
        ("qwen3_moe", None, {"bits": 6}),
        ("mixtral", "full", {"mode": "nvfp4", "group_size": 16}),
        ("dots1", None, {"bits": 5}),
    ],
)
def test_what_mlx_lm_writes_is_read(family, variant, options, quantised_model):
    """Two ways of multiplying by one packed matrix: mlx-lm's and the engine's."""
    folder = quantised_model(family, variant or first(family), **options)
    decoder = load(folder, dtype="float32").decoder
    assert any(isinstance(module, PackedLinear) for module in decoder.modules())
    assert logits_agree(folder, decoder)


def test_settings_of_single_modules_are_followed(quantised_model):
    folder = quantised_model("llama", "tied", some)
    decoder = load(folder, dtype="float32").decoder
    assert not isinstance(decoder.blocks[0].attn.v, PackedLinear)
    assert decoder.blocks[1].mlp.down.packing == Packing(64, 8)
    assert decoder.blocks[1].mlp.up.packing == Packing(32, 4)
    ignored = json.loads((folder / "config.json").read_text())
    ignored["quantization"].pop("model.layers.1.mlp.down_proj")
    text = refusal(CorruptWeights, folder, config=ignored)
    assert "model.layers.1.mlp.down_proj.weight" in text
    assert "4 bits in groups of 32" in text


def test_experts_stay_packed(quantised_model):
    moe = load(quantised_model("qwen3_moe", first("qwen3_moe"), bits=6)).decoder.blocks[0].mlp
    assert isinstance(moe.experts.gate, PackedExperts)
    assert isinstance(moe.router, PackedLinear)
    assert moe.router.packing == Packing(64, 8)  # mlx-lm's own override for this family


def test_experts_one_by_one_are_read_too(quantised_model, tmp_path):
    """Conversions of 2023 packed every expert by itself."""
    folder = quantised_model("mixtral", "full")
    tensors = read_weights(find_model(folder))
    for name in [name for name in tensors if "switch_mlp" in name]:
        for expert, array in enumerate(tensors.pop(name)):
            old = name.replace("switch_mlp.gate_proj", f"experts.{expert}.w1")
            old = old.replace("switch_mlp.down_proj", f"experts.{expert}.w2")
            tensors[old.replace("switch_mlp.up_proj", f"experts.{expert}.w3")] = array
    write_weights(tmp_path / "model.safetensors", tensors)
    shutil.copy(folder / "config.json", tmp_path)
    assert np.array_equal(logits(load(tmp_path).decoder), logits(load(folder).decoder))


def test_a_fused_matrix_is_split_while_packed():
    """Rows of numbers and rows of scales go to the same target."""
    from engine.names import Name
    from engine.spec import DecoderSpec, NormSpec
    from engine.weights.arrange import arrange
    from engine.weights.quantised import packed_places

    names = (Name("qkv", ("blocks.0.attn.q", "blocks.0.attn.k")),)
    spec = DecoderSpec("toy", 9, 64, (), NormSpec("rms", 1e-5), names, False, 64)
    how, matrix = Packing(32, 4), mx.random.normal((12, 64))
    tensors = {f"qkv.{part}": array for part, array in how.pack(matrix).items()}
    plain = {"blocks.0.attn.q.weight": (8, 64), "blocks.0.attn.k.weight": (4, 64)}
    quantised = quantisation({"quantization": how.settings}, "config.json")
    places = packed_places(tensors, spec, plain, quantised, "here")
    assert places == {"blocks.0.attn.q": how, "blocks.0.attn.k": how}
    shapes = {}
    for path, rows in (("blocks.0.attn.q", 8), ("blocks.0.attn.k", 4)):
        for part, array in tensors.items():
            shapes[f"{path}.{part.partition('.')[2]}"] = (rows, array.shape[1])
    found = arrange(tensors, spec, shapes, "here")
    for path, rows in (("blocks.0.attn.q", slice(0, 8)), ("blocks.0.attn.k", slice(8, 12))):
        parts = {part: found[f"{path}.{part}"] for part in how.parts}
        assert mx.array_equal(how.unpack(parts), how.unpack(how.pack(matrix))[rows])


def test_the_embedding_has_the_dtype_of_the_model(quantised_model):
    """Values of mode mxfp4 have no dtype of their own: mlx-lm's embedding is bfloat16 always."""
    folder = quantised_model("llama", "linear", mode="mxfp4")
    for dtype in ("float32", "bfloat16", "float16"):
        assert load(folder, dtype=dtype).decoder(mx.array([IDS])).dtype == getattr(mx, dtype)
    assert load(folder).decoder(mx.array([IDS])).dtype == mx.float32


def test_products_are_rounded_once():
    """On the CPU too, where MLX's own kernel adds up in bfloat16."""
    how = Packing(32, 4)
    x = mx.random.normal((7, 256)).astype(mx.bfloat16)
    linear = PackedLinear((48, 256), how)
    parts = how.pack(mx.random.normal((48, 256)).astype(mx.bfloat16))
    for name, array in parts.items():
        linear[name] = array
    exact = np.array(x.astype(mx.float32)).astype(np.float64) @ np.array(how.unpack(parts)).T
    error = np.abs(np.array(linear(x).astype(mx.float32)) - exact).max() / np.abs(exact).max()
    assert linear(x).dtype == mx.bfloat16
    assert error < 2.0**-8


# Refusing -----------------------------------------------------------------------------------

AFFINE = {"group_size": 32, "bits": 4, "mode": "affine"}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"mode": "int4"}, UnsupportedFormat, ["mode is 'int4'", "mxfp8"]),
        ({"bits": 7}, UnsupportedFormat, ["bits is 7", "affine has 1, 2, 3, 4, 5, 6, 8"]),
        ({"bits": "4"}, UnsupportedFormat, ["bits is '4'"]),
        ({"group_size": 48}, UnsupportedFormat, ["group_size is 48", "32, 64, 128"]),
        ({"mode": "mxfp4", "bits": 8}, UnsupportedFormat, ["bits is 8", "mxfp4 has 4"]),
        ({"quant_method": "awq"}, UnsupportedFormat, ["'awq'", "engine convert --quantize"]),
        ({"lm_head": {"mode": "nvfp4", "global_scale": True}}, UnsupportedFormat, ["global_scale"]),
        ({"lm_head": {"bits": 9}}, UnsupportedFormat, ["'lm_head'", "bits is 9"]),
        ({"bits": 8}, CorruptWeights, ["8 bits in groups of 32", "uint32 (131, 8)"]),
        ({"group_size": 64}, CorruptWeights, ["4 bits in groups of 64"]),
        ({"mode": "mxfp4"}, CorruptWeights, ["mode 'mxfp4'", "float32"]),
        ({"lm_head": False}, CorruptWeights, ["'lm_head.scales'", "false"]),
    ],
)
def test_settings_that_cannot_be_are_one_line(changes, error, words, quantised_model):
    folder = quantised_model("llama", "linear")
    config = json.loads((folder / "config.json").read_text())
    text = refusal(error, folder, config={**config, "quantization": {**AFFINE, **changes}})
    assert all(word in text for word in words), text
    assert "config.json" in text


def test_tensors_that_cannot_be_are_one_line(quantised_model):
    folder = quantised_model("llama", "linear")
    config = json.loads((folder / "config.json").read_text())
    bare = {key: value for key, value in config.items() if "quantization" not in key}
    assert "has no 'quantization'" in refusal(CorruptWeights, folder, config=bare)
    text = refusal(InvalidConfig, folder, config={**config, "quantization": [4]})
    assert "quantization is [4]" in text
    text = refusal(CorruptWeights, folder, drop="lm_head.biases")
    assert "'lm_head.biases' is missing" in text
    text = refusal(CorruptWeights, folder, drop="model.layers.1.mlp.up_proj.scales")
    assert "model.layers.1.mlp.up_proj" in text


def test_a_transposed_matrix_is_refused_while_packed(tmp_path, packable_model):
    source = packable_model("gpt2", "plain", n_embd=64)
    tensors = read_weights(find_model(source))
    name = "transformer.h.0.attn.c_attn"
    parts = Packing(32, 4).pack(tensors.pop(f"{name}.weight"))
    tensors |= {f"{name}.{part}": array for part, array in parts.items()}
    write_weights(tmp_path / "model.safetensors", tensors)
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization": AFFINE}))
    with pytest.raises(UnsupportedFormat, match=r"c_attn.weight' in .* the engine needs it transp"):
        load(tmp_path)


def test_absent_settings_are_the_modes_own():
    """A module's own settings take nothing from those for all: MLX fills in its defaults."""
    config = {"quantization": {"bits": 4, "mode": "mxfp4", "a": {"bits": 8}, "b": True}}
    found = quantisation(config, "config.json")
    assert found is not None
    assert found.default == Packing(32, 4, "mxfp4")
    assert found.of("a") == Packing(64, 8, "affine")
    assert found.of("b") == found.of("c") == found.default
    assert quantisation({}, "config.json") is None


# Writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", []),
        ("gemma3_text", ["--mode", "mxfp8"]),
        ("qwen3_moe", ["--bits", 8, "--group-size", 32]),
        ("dots1", ["--mode", "nvfp4"]),
    ],
)
def test_mlx_lm_reads_what_the_engine_writes(family, options, packable_model, command, tmp_path):
    source = packable_model(family, first(family), sliding_window=64)
    out = tmp_path / "out"
    result = command("engine", "convert", "--model", source, "--out", out, "--quantize", *options)
    assert result.status == 0, result.err
    assert result.out.strip() == str(out / "model.safetensors")
    decoder = load(out, dtype="float32").decoder
    assert logits_agree(out, decoder)
    assert list(generate(decoder, IDS, 8)) == tokens_of_mlx_lm(out, 8)
    config = json.loads((out / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    assert set(config["quantization"]) == {"group_size", "bits", "mode"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_file_is_mlx_lms_own(dtype, quantised_model, packable_model, tmp_path):
    """The same names, and under each the same bits."""
    from engine.convert import convert

    source = convert(packable_model("llama", "tied"), tmp_path / "source")
    tensors = read_weights(find_model(source.parent))
    write_weights(source, {k: v.astype(getattr(mx, dtype)) for k, v in tensors.items()})
    convert(source.parent, tmp_path / "q", quantise=Packing(32, 4))
    ours = read_weights(find_model(tmp_path / "q"))
    theirs = read_weights(find_model(quantised_model("llama", "tied", dtype=dtype)))
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        assert mx.array_equal(ours[name], array), name


def test_an_npz_is_a_quantised_model_by_itself(packable_model, tmp_path):
    from engine.convert import convert

    packed = convert(packable_model("llama", "tied"), tmp_path / "q.npz", quantise=Packing(32, 4))
    (tmp_path / "config.json").unlink()
    back = convert(packed, tmp_path / "back")
    assert np.array_equal(logits(load(packed).decoder), logits(load(back.parent).decoder))


def test_what_is_put_back_is_near_the_original(packable_model, tmp_path):
    """Names and shapes of the original, values within the coarseness of 8 bits."""
    from engine.convert import convert

    source = packable_model("mixtral", "full")
    convert(source, tmp_path / "q", quantise=Packing(32, 8))
    original, found = read_weights(find_model(source)), plain_weights(find_model(tmp_path / "q"))
    assert set(found) == set(original)
    for name, array in original.items():
        off = mx.max(mx.abs(found[name] - array)).item()
        assert off <= mx.max(mx.abs(array)).item() / 100, name


def test_what_cannot_be_quantised_leaves_nothing(
    packable_model, quantised_model, random_model, command, tmp_path
):
    def asked(source, *options):
        result = command("engine", "convert", "--model", source, "--out", tmp_path / "q", *options)
        assert result.status == 2
        assert len(result.err.strip().splitlines()) == 1
        assert not (tmp_path / "q").exists()
        return result.err

    source = packable_model("llama", "tied")
    assert "quantised already" in asked(quantised_model("llama", "tied"), "--quantize")
    assert "stored transposed" in asked(packable_model("gpt2", "plain", n_embd=64), "--quantize")
    assert "--group-size" in asked(random_model("llama", "tied"), "--quantize")
    assert "bits is 7" in asked(source, "--quantize", "--bits", 7)
    assert "mode is 'q4'" in asked(source, "--quantize", "--mode", "q4")
    assert "--bits goes with --quantize" in asked(source, "--bits", 4)
    config = (source / "config.json").read_bytes()
    out = source / "packed.npz"
    result = command("engine", "convert", "--model", source, "--out", out, "--quantize", "--force")
    assert result.status == 2 and "another folder" in result.err
    assert not out.exists() and (source / "config.json").read_bytes() == config


# Helpers ------------------------------------------------------------------------------------


def first(family: str) -> str:
    from engine.architectures import architecture

    return next(iter(architecture(family).TINY))


def logits(decoder) -> np.ndarray:
    return np.array(decoder(mx.array([IDS]))[0].astype(mx.float32))


def logits_agree(folder: Path, decoder) -> bool:
    """Whether mlx-lm, at float32 too, gives the same but for rounding."""
    model = of_mlx_lm(folder)
    expected = np.array(model(mx.array([IDS]))[0].astype(mx.float32))
    return np.abs(logits(decoder) - expected).max() < 2e-5 * np.abs(expected).max()


def of_mlx_lm(folder: Path):
    import mlx_lm.utils
    from mlx.utils import tree_map

    model, _ = mlx_lm.utils.load_model(folder)
    model.update(
        tree_map(
            lambda a: a.astype(mx.float32) if mx.issubdtype(a.dtype, mx.floating) else a,
            model.parameters(),
        )
    )
    return model


def tokens_of_mlx_lm(folder: Path, count: int) -> list[int]:
    from mlx_lm.generate import generate_step

    steps = generate_step(mx.array(IDS), of_mlx_lm(folder), max_tokens=count)
    return [int(token) for token, _ in steps]


def refusal(
    error: type[EngineError], folder: Path, config: dict | None = None, drop: str | None = None
) -> str:
    """The one line that a model like `folder`, but for these changes, is refused with."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        other = Path(name)
        shutil.copytree(folder, other, dirs_exist_ok=True)
        if config is not None:
            (other / "config.json").write_text(json.dumps(config))
        if drop is not None:
            (other / "model.safetensors.index.json").unlink()
            tensors = read_weights(find_model(folder))
            tensors.pop(drop)
            write_weights(other / "model.safetensors", tensors)
        with pytest.raises(error) as caught:
            load(other)
    text = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in text
    return text
