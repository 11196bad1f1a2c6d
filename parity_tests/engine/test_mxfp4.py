"""Four-bit matrices of a checkpoint become the numbers that transformers makes of them."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import CorruptWeights
from engine.files import find_model
from engine.model import load
from engine.weights import read_weights, write_weights
from engine.weights.mxfp4 import dequantised, unpacked
from harness.random_models import config_of

EVERY_BYTE = np.arange(256, dtype=np.uint8).reshape(1, 16, 1, 16)


def bits(array: mx.array) -> np.ndarray:
    return np.array(array.view(mx.uint16))


def by_transformers(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Bits of what transformers' own function gives, bfloat16."""
    torch = pytest.importorskip("torch")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    made = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales))
    return made.view(torch.uint16).numpy()


def test_one_block_by_hand():
    """Lower half first; sign, two bits of exponent, one of mantissa; 2 to the scale less 127."""
    blocks = mx.array([[[[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2]]], mx.uint8)
    half = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    for scale, factor in ((127, 1.0), (128, 2.0), (120, 2.0**-7)):
        found = dequantised(blocks, mx.array([[[scale]]], mx.uint8))
        assert found.dtype == mx.bfloat16
        assert found[0, :, 0].tolist() == [factor * x for x in (half + [-x for x in half]) * 2]


@pytest.mark.parametrize("scale", [1, 64, 119, 127, 140, 250, 254])
def test_every_byte_is_what_transformers_makes_of_it(scale):
    scales = np.full((1, 16, 1), scale, np.uint8)
    found = dequantised(mx.array(EVERY_BYTE), mx.array(scales))
    assert np.array_equal(bits(found), by_transformers(EVERY_BYTE, scales))
    other = dequantised(mx.array(EVERY_BYTE), mx.array(scales - 1))
    assert not np.array_equal(bits(other), bits(found))


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3)),
    seed=st.integers(0, 99),
)
def test_any_shape(shape, seed):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (*shape, 16), dtype=np.uint8)
    scales = rng.integers(100, 140, shape, dtype=np.uint8)
    found = dequantised(mx.array(blocks), mx.array(scales))
    assert found.shape == (shape[0], shape[2] * 32, shape[1])
    assert np.array_equal(bits(found), by_transformers(blocks, scales))


class TestNames:
    blocks, scales = mx.zeros((2, 3, 1, 16), mx.uint8), mx.zeros((2, 3, 1), mx.uint8)

    def test_pairs_become_one_and_the_rest_stays(self):
        other = {"b_blocks": mx.zeros((2, 2)), "b_scales": mx.zeros(2), "c": mx.zeros(1)}
        found = unpacked({"a_blocks": self.blocks, "a_scales": self.scales, **other}, "x")
        assert set(found) == {"a", *other}
        assert found["a"].shape == (2, 32, 3)

    @pytest.mark.parametrize("scales", [None, scales[:1], scales.astype(mx.float32)])
    def test_what_does_not_belong_together_is_refused(self, scales):
        given = {} if scales is None else {"a_scales": scales}
        with pytest.raises(CorruptWeights, match=r"'a_scales' is .* in some/folder") as caught:
            unpacked({"a_blocks": self.blocks, **given}, "some/folder")
        assert "\n" not in str(caught.value)


def test_a_model_is_read_as_its_experts_put_back(tmp_path):
    """A checkpoint of four-bit experts, and one of the numbers that they stand for."""
    config = config_of("gpt_oss", "yarn") | {"hidden_size": 64, "intermediate_size": 32}
    kinds, rng = ("gate_up_proj", "down_proj"), np.random.default_rng(0)
    packed, plain = {}, {}
    for name, value in read_weights(find_model(_written(tmp_path / "first", config))).items():
        if not name.endswith(kinds):
            packed[name] = plain[name] = value
            continue
        E, width, rows = value.shape
        blocks = rng.integers(0, 256, (E, rows, width // 32, 16), dtype=np.uint8)
        scales = rng.integers(120, 126, blocks.shape[:3], dtype=np.uint8)
        packed[f"{name}_blocks"], packed[f"{name}_scales"] = mx.array(blocks), mx.array(scales)
        plain[name] = dequantised(mx.array(blocks), mx.array(scales))
    logits = []
    for name, tensors in (("packed", packed), ("plain", plain)):
        folder = tmp_path / name
        folder.mkdir()
        write_weights(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text(json.dumps(config))
        logits.append(load(folder, dtype="float32").decoder(mx.array([[3, 1, 4]])))
    assert mx.array_equal(*logits)
    assert not mx.array_equal(
        logits[0], load(tmp_path / "first", dtype="float32").decoder(mx.array([[3, 1, 4]]))
    )


def _written(folder, config):
    pytest.importorskip("torch")
    from harness.random_models import write_model

    return write_model(folder, config)
