"""Traces: written by anybody, judged like a backend, refused when they are not what they say."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import harness
from harness.errors import BadTrace, ReferenceUnavailable
from harness.seeded import block_input, exponent_for, signs
from harness.traces import PROBES, SCHEMA, Trace, name_of, site_named
from harness.types import Site

DOCUMENT = Path(__file__).parents[2] / "docs" / "TRACE_FORMAT.md"
MODEL = Path(__file__).parents[2] / "golden" / "models" / "tiny-llama"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Probes of tiny-llama, and the engine's trace on them."""
    from harness.tracing import write_probes, write_trace

    folder = tmp_path_factory.mktemp("traces")
    probes = write_probes(str(MODEL), folder / "probes.safetensors", "golden")
    write_trace(str(MODEL), "engine", folder / "engine.safetensors", on=probes)
    return folder


def checks(verdict):
    return {check.name: check.verdict for check in verdict.checks}


def changed(folder, tmp_path, change, **metadata):
    """The engine's trace with something done to its arrays."""
    arrays = load_file(folder / "engine.safetensors")
    change(arrays)
    path = tmp_path / "changed.safetensors"
    save_file(arrays, path, {"schema": SCHEMA, "dtype": "float32", **metadata})
    return path


# Judged


@pytest.mark.parametrize("reference", ["torch", "golden"])
def test_a_trace_is_judged_like_the_backend_that_wrote_it(folder, reference):
    verdict = harness.compare(MODEL, f"trace:{folder / 'engine.safetensors'}", reference)
    found = checks(verdict)
    assert verdict.verdict == "pass"
    assert {name for name, answer in found.items() if answer == "pass"} >= {
        "logits", "head", "distribution", "greedy", "blocks",
    }  # fmt: skip
    assert {"weights", "cache", "batch", "repeat"} <= {n for n, a in found.items() if a == "skip"}
    modes = {site.mode for site in verdict.sites}
    # A golden of whole arrays feeds blocks the oracle's values, which no other program has.
    assert modes == ({"propagated", "isolated"} if reference == "torch" else {"propagated"})


@pytest.mark.parametrize("block", [0, 2])
def test_a_block_that_is_off_in_a_trace_is_named(folder, tmp_path, block):
    def wrong(arrays):
        for key in arrays:
            if key.endswith(f"isolated/model.layers.{block}"):
                arrays[key] = arrays[key] * np.float32(1.0001)

    verdict = harness.compare(MODEL, f"trace:{changed(folder, tmp_path, wrong)}")
    assert verdict.verdict == "fail" and verdict.first_divergence.block == block


def test_a_reference_that_is_wrong_is_refused_and_does_not_widen_limits(folder, tmp_path):
    def wrong(arrays):
        arrays["text/propagated/logits"] *= 0

    path = changed(folder, tmp_path, wrong)
    with pytest.raises(ReferenceUnavailable, match=r"is off by 1 at lm_head, probe 'text'"):
        harness.compare(MODEL, "engine", f"trace:{path}")


def test_a_trace_can_be_the_reference(folder):
    """Its noise is measured against PyTorch's oracle; its weights are the model's own."""
    verdict = harness.compare(MODEL, "engine", f"trace:{folder / 'engine.safetensors'}")
    assert verdict.verdict == "pass"
    ratios = [site.ratio for site in verdict.sites if site.mode == "isolated"]
    assert max(ratios) <= 1.0  # the same program on both sides


def test_a_trace_is_asked_at_its_own_dtype(folder, tmp_path, command):
    path = tmp_path / "half.safetensors"
    made = command("harness", "trace", "--model", MODEL, "--dtype", "bfloat16", "--out", path)
    assert made.status == 0, made.err
    verdict = harness.compare(MODEL, f"trace:{path}")
    assert verdict.verdict == "pass"
    assert {check.dtype for check in verdict.checks} == {"bfloat16"}
    assert checks(verdict)["engagement"] == "pass"


def test_greedy_tokens_of_a_trace_are_judged(folder, tmp_path):
    def other(arrays):
        arrays["greedy/taken"][3] += 1

    verdict = harness.compare(MODEL, f"trace:{changed(folder, tmp_path, other)}")
    assert checks(verdict)["greedy"] == "fail"


def test_the_program_of_the_documentation_passes(folder, tmp_path):
    """It is run as a user would, with PyTorch and safetensors and nothing of this project."""
    source = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[1]
    assert "harness" not in re.sub(r'"[^"]*"', "", source) and len(source.splitlines()) < 45
    script, out = tmp_path / "trace.py", tmp_path / "out.safetensors"
    script.write_text(source + '\nassert "harness" not in sys.modules\n')
    probes = folder / "probes.safetensors"
    done = subprocess.run(
        [sys.executable, "-I", str(script), str(MODEL), str(probes), str(out)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    verdict = harness.compare(MODEL, f"trace:{out}")
    assert verdict.verdict == "pass"
    assert {s.mode for s in verdict.sites if s.site.kind == "block"} == {"isolated", "propagated"}


# The format


@given(st.integers(0, 300), st.integers(1, 4), st.integers(1, 9), st.integers(-16, 15))
def test_seeded_inputs_are_what_the_documentation_says(block, length, width, exponent):
    x = block_input(block, length, width, exponent)
    for t in range(length):
        for c in range(width):
            h = ((t * width + c) * 0x9E3779B1 + block * 0x85EBCA77) & 0xFFFFFFFF
            for _ in range(2):
                h = ((h ^ (h >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
            h ^= h >> 16
            assert x[t, c] == (2 * (h >> 24) - 255) * 2.0 ** (exponent - 8)
    import ml_dtypes

    for dtype in (np.float16, ml_dtypes.bfloat16):
        assert np.array_equal(x.astype(dtype).astype(np.float32), x)


@given(st.integers(1, 64), st.integers(-14, 14))
def test_inputs_have_the_size_that_was_asked_for(width, exponent):
    x = block_input(3, 40, 8 * width, exponent)
    assert exponent_for(x) == exponent
    assert exponent_for(np.zeros((3, 4))) == 0


def test_signs_are_balanced_and_unlike_each_other():
    found = signs(16, 4096 * 16).reshape(4096, 16)
    products = found.T @ found / 4096
    assert set(np.unique(found)) == {-1.0, 1.0}
    assert np.abs(products - np.eye(16)).max() < 0.08


@given(st.integers(0, 999), st.sampled_from(["", "mlp", "self_attn.q_proj", "mlp.experts.5.w1"]))
def test_names_lead_to_their_sites(block, part):
    site = Site(
        "module" if part else "block", block, part, f"model.layers.{block}.{part}".strip(".")
    )
    assert site_named(name_of(site)) == site
    for kind in ("router", "experts"):
        assert site_named(name_of(Site(kind, block))) == Site(kind, block)
    for name in ("embedding", "norm", "logits"):
        assert site_named(name).kind == name
    for name in ("", "model.norm", "layers.x", "layers.3:other", "layers.3.mlp:router"):
        assert site_named(name) is None


def test_probes_hold_what_a_program_needs(folder):
    trace = Trace(folder / "probes.safetensors", PROBES)
    arrays = load_file(folder / "probes.safetensors")
    assert {probe.name for probe in trace.probes} == {
        "single", "text", "random", "beyond", "greedy",
    }  # fmt: skip
    for probe in trace.probes:
        for place, name in enumerate([*(f"model.layers.{i}" for i in range(4)), "norm"]):
            expected = block_input(place, len(probe.tokens), 60, probe.scales[place])
            assert np.array_equal(arrays[f"{probe.name}/input/{name}"], expected)


# Refused


def without(ending):
    def change(arrays):
        for key in [key for key in arrays if key.endswith(ending)]:
            del arrays[key]

    return change


def put(key, array):
    return lambda arrays: arrays.update({key: array})


def spoiled(key, value):
    def change(arrays):
        arrays[key] = arrays[key].copy()
        arrays[key].flat[7] = value

    return change


def keep(arrays):
    """As it is."""


BAD = {
    "no logits": (without("text/propagated/logits"), {}, "text/propagated/logits is missing"),
    "a block short": (without("text/propagated/model.layers.3"), {}, "lacks block 3"),
    "a block too many": (
        lambda a: a.update({"text/propagated/model.layers.4": a["text/propagated/model.layers.3"]}),
        {}, "has block 4 of 4",
    ),
    "NaN": (spoiled("text/propagated/model.layers.1", np.nan), {}, "NaN or infinity, first in row"),
    "infinity": (spoiled("greedy/propagated/logits", np.inf), {}, "NaN or infinity"),
    "no tokens": (without("text/tokens"), {}, "text/tokens is missing"),
    "no scales": (without("text/scales"), {}, "text/scales is not"),
    "wild scales": (put("text/scales", np.full(5, 4000, np.int32)), {}, "no exponents"),
    "few scales": (put("text/scales", np.zeros(2, np.int32)), {}, "exponents for"),
    "negative tokens": (put("text/tokens", np.array([-1], np.int32)), {}, "-1"),
    "tokens of floats": (put("text/tokens", np.ones(34, np.float32)), {}, "not whole numbers"),
    "unknown tokens": (
        put("text/tokens", np.full(34, 70000, np.int32)), {}, "token 70000 is among the tokens",
    ),
    "another length": (put("text/tokens", np.ones(3, np.int32)), {}, "(3, features) is expected"),
    "flat": (put("text/propagated/norm", np.ones(34, np.float32)), {}, "has shape [34]"),
    "no site": (put("text/propagated/what", np.ones((34, 4), np.float32)), {}, "names no site"),
    "no mode": (put("text/sideways/norm", np.ones((34, 4), np.float32)), {}, "names no site"),
    "no probe": (put("norm", np.ones((34, 4), np.float32)), {}, "is not PROBE/tokens"),
    "twice": (
        lambda a: a.update({"text/propagated/h.1": a["text/propagated/model.layers.1"]}),
        {}, "are the same site",
    ),
    "booleans": (put("text/propagated/norm", np.ones((34, 60), bool)), {}, "not numbers"),
    "prompt": (put("greedy/prompt", np.array([500], np.int32)), {}, "greedy/prompt is 500"),
    "only a prompt": (put("greedy/prompt", np.array([98], np.int32)), {}, "greedy/prompt is 98"),
    "a name that steers": (put("a\x1b[2J/tokens", np.array([1], np.int32)), {}, "x1b"),
    "other schema": (keep, {"schema": "harness.trace/9"}, "harness.trace/9"),
    "no dtype": (keep, {"dtype": "int4"}, "dtype 'int4'"),
    "device": (keep, {"device": "../../etc/passwd"}, "device '../../etc/passwd'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("side", ["--candidate", "--reference"])
def test_a_trace_that_is_wrong_is_one_line(folder, tmp_path, command, case, side):
    change, metadata, words = BAD[case]
    path = changed(folder, tmp_path, change, **metadata)
    result = command("harness", "compare", "--model", MODEL, side, f"trace:{path}")
    assert result.status == 2 and len(result.err.splitlines()) == 1, result.err
    assert words in result.err and path.name in result.err


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


SHAPES = {"a/tokens": {"dtype": "I32", "shape": [1 << 62, 4], "data_offsets": [0, 16]}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        header(b"{}", 1 << 62),  # a header that claims more than there is
        header(b"[" * 200_000),
        header(b'{"__metadata__": []}'),
        header(json.dumps(SHAPES).encode()) + b"\x00" * 16,
        header(b'{"a": {"dtype": "I32", "shape": [2], "data_offsets": [8, 0]}}') + b"\x00" * 8,
        header(b"\xff\xfe{}"),
        header(b"{}"),
    ],
)
def test_files_that_are_no_safetensors_are_one_line(tmp_path, command, data):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    result = command("harness", "compare", "--model", MODEL, "--candidate", f"trace:{path}")
    assert result.status == 2 and len(result.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["nothing.safetensors", "", "."])
def test_no_file_at_all_is_one_line(tmp_path, command, name):
    where = f"trace:{tmp_path / name}" if name else "trace:"
    result = command("harness", "compare", "--model", MODEL, "--candidate", where)
    assert result.status == 2 and len(result.err.splitlines()) == 1


def test_another_dtype_on_the_other_side_is_refused(folder, tmp_path, command):
    half = changed(folder, tmp_path, keep, dtype="float16")
    result = command(
        "harness", "compare", "--model", MODEL,
        "--candidate", f"trace:{half}", "--reference", f"trace:{folder / 'engine.safetensors'}",
    )  # fmt: skip
    assert result.status == 2 and "one dtype" in result.err


@pytest.mark.parametrize("side", ["--candidate", "--reference"])
def test_a_dtype_that_a_trace_is_not_at_is_refused(folder, command, side):
    trace = f"trace:{folder / 'engine.safetensors'}"
    result = command("harness", "compare", "--model", MODEL, side, trace, "--dtype", "float16")
    assert result.status == 2 and "is at float32" in result.err


def test_a_trace_has_its_own_probes_only(folder, command, tmp_path):
    (tmp_path / "prompts").write_text("[1, 2]\n")
    trace = f"trace:{folder / 'engine.safetensors'}"
    result = command(
        "harness", "compare", "--model", MODEL,
        "--candidate", trace, "--prompts", tmp_path / "prompts",
    )  # fmt: skip
    assert result.status == 2 and "own probes only" in result.err


@pytest.mark.parametrize("layers", ["4", None])
def test_a_configuration_without_a_number_of_blocks_is_one_line(folder, command, tmp_path, layers):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    config = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": layers}
    (model / "config.json").write_text(json.dumps(config))
    trace = f"trace:{folder / 'engine.safetensors'}"
    result = command("harness", "compare", "--model", model, "--candidate", trace)
    assert result.status == 2 and "num_hidden_layers" in result.err


def test_logits_as_large_as_float32_allows_are_judged(folder, tmp_path):
    """Their divergence is infinite: a failure like any other, without a warning."""
    huge = put("text/propagated/logits", np.full((34, 512), 3e38, np.float32))
    huge_but_one = changed(folder, tmp_path, huge)
    arrays = load_file(huge_but_one)
    arrays["text/propagated/logits"][:, 7] = -3e38
    save_file(arrays, huge_but_one, {"schema": SCHEMA, "dtype": "float32"})
    assert checks(harness.compare(MODEL, f"trace:{huge_but_one}"))["distribution"] == "fail"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--on", "{unknown}"], "70000 is outside the vocabulary"),
        (["--on", "{unknown}", "--probes"], "goes with a trace"),
        (["--reference", "golden"], "goes with --probes"),
        (["--out", "{folder}"], "is a folder"),
        (["--dtype", "int4"], "'int4'"),
    ],
)
def test_what_no_trace_can_be_written_of_is_one_line(folder, command, tmp_path, arguments, words):
    unknown = {"text/tokens": np.full(3, 70_000, np.int32)}
    save_file(unknown, tmp_path / "unknown.safetensors", {"schema": PROBES})
    places = {"{unknown}": tmp_path / "unknown.safetensors", "{folder}": tmp_path}
    given = [places.get(each, each) for each in arguments]
    result = command(
        "harness", "trace", "--model", MODEL, "--out", tmp_path / "out.safetensors", *given
    )
    assert result.status == 2 and words in result.err and len(result.err.splitlines()) == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_an_interrupted_trace_leaves_the_old_one(folder, monkeypatch, tmp_path):
    from harness.tracing import write_trace

    path = tmp_path / "trace.safetensors"
    path.write_bytes(b"the old one")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.whole.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_trace(str(MODEL), "engine", path)
    assert path.read_bytes() == b"the old one" and len(list(tmp_path.iterdir())) == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_of_bytes_is_read_or_refused(folder, tmp_path, data):
    """Nothing but BadTrace comes out of a file with bytes changed, put in or cut off."""
    whole = (folder / "probes.safetensors").read_bytes()
    start = data.draw(st.integers(0, 4000))
    cut = data.draw(st.integers(0, 40))
    put_in = data.draw(st.binary(max_size=40))
    path = tmp_path / "fuzzed.safetensors"
    path.write_bytes(whole[:start] + put_in + whole[start + cut :])
    with contextlib.suppress(BadTrace):
        Trace(path, PROBES)
