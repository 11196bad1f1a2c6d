"""Weight files: what is written is what is read, and a damaged file is named before it is used."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import CorruptWeights, EngineError, UnsupportedFormat
from engine.files import ModelFiles
from engine.weights import CONFIG_KEY, read_weights, write_weights

FORMATS = ["npz", "safetensors"]
DTYPES = {
    mx.bool_: 1, mx.uint8: 1, mx.int8: 1, mx.uint16: 2, mx.int16: 2, mx.float16: 2,
    mx.bfloat16: 2, mx.uint32: 4, mx.int32: 4, mx.float32: 4, mx.uint64: 8, mx.int64: 8,
    mx.complex64: 8,
}  # fmt: skip
NAMES = st.text("abz019._-/é▁ ", min_size=1, max_size=12) | st.just("file")


@st.composite
def arrays(draw: st.DrawFn) -> mx.array:
    """Any bits of any dtype, in any layout: NaN payloads and infinities too."""
    dtype, size = draw(st.sampled_from(sorted(DTYPES.items(), key=str)))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    data = draw(st.binary(min_size=(n := int(np.prod(shape)) * size), max_size=n))
    if dtype == mx.bool_:
        data = bytes(byte & 1 for byte in data)
    array = mx.array(np.frombuffer(data, np.uint8)).view(dtype).reshape(shape)
    return array.T if draw(st.booleans()) else array


def bits(array: mx.array) -> tuple:
    flat = mx.contiguous(array).reshape(-1)
    return array.dtype, array.shape, bytes(memoryview(flat.view(mx.uint8))) if array.size else b""


def files(*paths: Path, index: dict[str, str] | None = None) -> ModelFiles:
    return ModelFiles("m", paths[0].parent, paths, index, {})


def message(error: type[EngineError], *paths: Path, index: dict[str, str] | None = None) -> str:
    """The message of the error that reading raises; it is one line and names the file."""
    with pytest.raises(error) as caught:
        read_weights(files(*paths, index=index))
    text = str(caught.value)
    assert "\n" not in text
    assert type(caught.value) is error
    assert str(paths[0].parent) in text
    return text


class TestRoundTrip:
    @pytest.mark.parametrize("suffix", FORMATS)
    @settings(
        deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(tensors=st.dictionaries(NAMES, arrays(), max_size=4))
    def test_any_tensors(self, tmp_path, suffix, tensors):
        path = tmp_path / f"model.{suffix}"
        write_weights(path, tensors, {"a": 1})
        found = read_weights(files(path))
        assert {name: bits(array) for name, array in found.items()} == {
            name: bits(array) for name, array in tensors.items()
        }

    def test_float64_goes_into_an_npz_alone(self, tmp_path):
        with mx.stream(mx.cpu):
            tensors = {"a": mx.array([1 / 3], mx.float64)}
            write_weights(tmp_path / "m.npz", tensors)
            assert bits(read_weights(files(tmp_path / "m.npz"))["a"]) == bits(tensors["a"])
            with pytest.raises(UnsupportedFormat, match=r"'a' is float64.*write .npz"):
                write_weights(tmp_path / "m.safetensors", tensors)
        assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]

    def test_others_read_what_is_written(self, tmp_path):
        tensors = {"w": mx.arange(6, dtype=mx.float32).reshape(2, 3), "s": mx.array(2.5)}
        for suffix in FORMATS:
            write_weights(tmp_path / f"m.{suffix}", tensors, {"model_type": "x"})
        with np.load(tmp_path / "m.npz") as archive:
            assert archive["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
            assert json.loads(bytes(archive[CONFIG_KEY])) == {"model_type": "x"}
        from safetensors import safe_open

        with safe_open(tmp_path / "m.safetensors", "np") as file:
            assert file.get_tensor("w").tolist() == [[0, 1, 2], [3, 4, 5]]
            assert file.metadata() == {"format": "pt"}

    def test_what_numpy_writes(self, tmp_path):
        values = np.arange(12, dtype=">f4").reshape(3, 4)
        np.savez_compressed(tmp_path / "m.npz", a=values, b=np.asfortranarray(values))
        found = read_weights(files(tmp_path / "m.npz"))
        assert found["a"].tolist() == found["b"].tolist() == values.tolist()

    def test_equal_tensors_give_equal_bytes(self, tmp_path):
        for suffix in FORMATS:
            for name in "ab":
                write_weights(tmp_path / f"{name}.{suffix}", {"x": mx.ones(3), "y": mx.zeros(2)})
            first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
            assert first == second


class TestWriting:
    def test_a_failure_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "m.npz"
        write_weights(path, {"a": mx.ones(2)})
        before = path.read_bytes()
        with pytest.raises(UnsupportedFormat, match=f"'{CONFIG_KEY}'.*rename"):
            write_weights(path, {"b": mx.ones(2), CONFIG_KEY: mx.ones(2)})
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_an_unknown_suffix(self, tmp_path):
        with pytest.raises(UnsupportedFormat, match=r"suffix '.gguf': write .npz or .safetensors"):
            write_weights(tmp_path / "m.gguf", {})

    def test_a_file_may_be_written_over_while_it_is_read(self, tmp_path):
        path = tmp_path / "m.safetensors"
        write_weights(path, {"a": mx.arange(1000)})
        lazy = read_weights(files(path))
        write_weights(path, {"a": lazy["a"] + 1})
        assert read_weights(files(path))["a"][0].item() == 1


@pytest.mark.parametrize("suffix", FORMATS)
def test_arrays_stay_unread(tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    write_weights(path, {name: mx.zeros((1 << 20, 4), mx.float32) for name in "abcd"})  # 64 MB
    code = (
        "import resource, sys; from pathlib import Path; import mlx.core as mx, numpy\n"
        "from engine.files import ModelFiles; from engine.weights import read_weights\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "mx.eval(mx.ones(3)); path = Path(sys.argv[1]); before = peak()\n"
        "arrays = read_weights(ModelFiles('m', path.parent, (path,), None, {}))\n"
        "assert arrays['a'].shape == (1 << 20, 4)\n"
        "print(peak() - before, mx.get_active_memory())"
    )
    root = Path(read_weights.__code__.co_filename).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True, check=True
    )
    grown, active = map(int, done.stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024
    assert grown * unit < 16 << 20
    assert active < 1 << 20


class TestShards:
    def test_a_tensor_absent_from_its_shard(self, tmp_path):
        a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
        write_weights(a, {"x": mx.ones(1)})
        write_weights(b, {"y": mx.ones(1)})
        whole = {"x": a.name, "y": b.name}
        assert set(read_weights(files(a, b, index=whole))) == {"x", "y"}
        text = message(CorruptWeights, a, b, index={**whole, "z": a.name, "y": a.name})
        assert "'y' (1 more)" in text
        assert "shard a.safetensors" in text
        assert "fetch" in text

    def test_a_tensor_in_two_shards(self, tmp_path):
        paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
        for path in paths:
            write_weights(path, {"x": mx.ones(1)})
        text = message(CorruptWeights, *paths)
        assert "'x' is in both a.safetensors and b.safetensors" in text
        assert "remove" in text


# --- damaged safetensors


def whole(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DAMAGED = {
    "empty": (b"", "truncated"),
    "shorter than a length": (b"\1\0\0", "truncated"),
    "header beyond the end": (whole({}, length=1000), "claims 1000"),
    "absurd header": (whole({}, length=1 << 63), "claims 9223372036854775808"),
    "text": (b"<!DOCTYPE html>" * 9, "claims"),
    "no JSON": (whole(b"{"), "JSON"),
    "deep JSON": (whole(b"[" * 100_000), "JSON"),
    "no UTF-8": (whole(b"\xff\xfe"), "JSON"),
    "no object": (whole([]), "object"),
    "no entry": (whole({"x": 3}), "'x'"),
    "no dtype": (whole({"x": {"shape": [], "data_offsets": [0, 4]}}), "'x'"),
    "three offsets": (whole({"x": entry(offsets=[0, 4, 8])}, bytes(8)), "'x'"),
    "negative": (whole({"x": entry(shape=[-2])}, bytes(8)), "'x'"),
    "fraction": (whole({"x": entry(shape=[2.0])}, bytes(8)), "'x'"),
    "text for a shape": (whole({"x": entry(shape="2")}, bytes(8)), "'x'"),
    "wrong size": (whole({"x": entry(shape=[3])}, bytes(8)), "has 8 bytes"),
    "truncated": (whole({"x": entry()}, bytes(7)), "truncated: 8 bytes of tensors expected, 7"),
    "followed": (whole({"x": entry()}, bytes(9)), "followed by other bytes"),
    "hole": (whole({"x": entry(offsets=[4, 12])}, bytes(12)), "starts at byte 4, not 0"),
    "overlap": (
        whole({"x": entry(), "y": entry(offsets=[4, 12])}, bytes(12)),
        "'y' starts at byte 4, not 8",
    ),
    "twice": (whole(b'{"x": 1, "x": 2}'), "twice"),
}


class TestSafetensors:
    @pytest.mark.parametrize("kind", DAMAGED)
    def test_damage_is_named(self, tmp_path, kind):
        data, said = DAMAGED[kind]
        path = tmp_path / "model.safetensors"
        path.write_bytes(data)
        text = message(CorruptWeights, path)
        assert str(path) in text
        assert said in text
        assert "again" in text

    @pytest.mark.parametrize("dtype", ["F64", "F8_E4M3", "Q4"])
    def test_a_dtype_that_mlx_does_not_read(self, tmp_path, dtype):
        path = tmp_path / "model.safetensors"
        path.write_bytes(whole({"x": entry(dtype=dtype)}, bytes(8)))
        text = message(UnsupportedFormat, path)
        assert f"'x' in {path} has dtype '{dtype}'" in text
        assert "BF16" in text

    @settings(
        deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.data())
    def test_every_cut_is_found(self, tmp_path, data):
        path = tmp_path / "model.safetensors"
        write_weights(path, {"x": mx.ones((3, 5)), "y": mx.arange(7)})
        content = path.read_bytes()
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        message(CorruptWeights, path)


class TestNpz:
    def test_pickled_objects_are_refused(self, tmp_path):
        path = tmp_path / "m.npz"
        np.savez(path, good=np.ones(3), evil=np.array([{}, print], dtype=object))
        text = message(UnsupportedFormat, path)
        assert "'evil'" in text
        assert str(path) in text
        assert "pickle" in text
        assert "save plain" in text

    @pytest.mark.parametrize(
        "value", [np.array(["a"]), np.zeros(2, [("a", "f4")]), np.array([1], "M8[s]")]
    )
    def test_other_dtypes_are_refused(self, tmp_path, value):
        path = tmp_path / "m.npz"
        np.savez(path, odd=value)
        text = message(UnsupportedFormat, path)
        assert "'odd'" in text
        assert "save plain" in text

    def test_an_entry_that_is_no_array(self, tmp_path):
        path = tmp_path / "m.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("README.md", "hello")
        text = message(UnsupportedFormat, path)
        assert "'README.md'" in text
        assert CONFIG_KEY in text

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x93NUMPY\x01\x00",
            b"\x93NUMPY\x09\x00\x02\x00{}",
            b"\x93NUMPY\x01\x00\x02\x00{}",
            b"\x93NUMPY\x01\x00\x0e\x00" + b"__import__('')",
            b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
            b"\x93NUMPY\x01\x00\x36\x00{'descr':'<f4','fortran_order':False,'shape':(1<<60,)}",
            b"\x93NUMPY\x01\x00\x33\x00{'descr':'<f4','fortran_order':False,'shape':(-1,)}",
            b"\x93NUMPY\x01\x00\x32\x00{'descr':'<f4','fortran_order':False,'shape':(9,)}abcd",
        ],
    )
    def test_a_bad_entry(self, tmp_path, content):
        path = tmp_path / "m.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w.npy", content)
        text = message(CorruptWeights, path)
        assert str(path) in text
        assert "'w.npy'" in text or "'w'" in text
        assert "again" in text

    @settings(
        deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.data())
    def test_every_cut_is_found(self, tmp_path, data):
        path = tmp_path / "m.npz"
        write_weights(path, {"x": mx.ones((3, 5)), "y": mx.arange(7)}, {"model_type": "x"})
        content = path.read_bytes()
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        message(CorruptWeights, path)

    @pytest.mark.parametrize("packed", [False, True])
    def test_a_flipped_bit_in_a_tensor_is_found(self, tmp_path, packed):
        path = tmp_path / "m.npz"
        values = np.random.default_rng(0).standard_normal(4000)
        (np.savez_compressed if packed else np.savez)(path, w=values)
        content = bytearray(path.read_bytes())
        content[5000] ^= 1
        path.write_bytes(content)
        text = message(CorruptWeights, path)
        assert str(path) in text
        assert "corrupt" in text
