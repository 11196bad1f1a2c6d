"""Goldens: recorded, found, and refused when anything about them is not as it was."""

from __future__ import annotations

import contextlib
import json
import os
import shutil

import numpy as np
import pytest

from engine.files import find_model
from harness.errors import BadGolden
from harness.golden.manifest import weights_digest
from harness.golden.store import GoldenReference, record, verify
from harness.metrics import relative_error


@pytest.fixture
def golden(tmp_path, tiny_llama):
    """A copy of one golden model with one trace and its manifest."""
    folder = tmp_path / "golden"
    shutil.copytree(tiny_llama, folder / "models" / "tiny-llama")
    (folder / "traces").mkdir()
    source = tiny_llama.parents[1]
    manifest = json.loads((source / "MANIFEST.json").read_text())
    name = "traces/tiny-llama.torch.float32.safetensors"
    shutil.copy(source / name, folder / name)
    manifest["goldens"] = [entry for entry in manifest["goldens"] if entry["file"] == name]
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    return folder


def test_greedy_tokens_stand_beside_their_margins(golden):
    from safetensors import safe_open

    path = next((golden / "traces").iterdir())
    with safe_open(path, framework="numpy") as file:
        (greedy,) = [p for p in json.loads(file.metadata()["golden"])["probes"] if p["prompt"]]
        tokens = file.get_tensor("greedy/tokens")
    assert len(tokens) - greedy["prompt"] == len(greedy["margins"]) == 64
    assert min(greedy["margins"]) > 0


def test_what_is_shipped_is_whole(command):
    result = command("harness", "golden", "verify")
    assert result.status == 0, result.err
    assert len(result.out.splitlines()) == 6


def test_the_manifest_says_where_each_golden_comes_from(golden):
    (entry,) = json.loads((golden / "MANIFEST.json").read_text())["goldens"]
    for key in ("sha256", "weights", "config", "tokenizer", "dtype", "device", "date", "packages"):
        assert entry[key]
    assert entry["packages"]["torch"] and "golden record" in entry["command"]


def test_recording_twice_gives_the_same_bytes(tiny_llama, tmp_path):
    folders = tmp_path / "one", tmp_path / "two"
    paths = [record(str(tiny_llama), "torch", "float32", folder) for folder in folders]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert verify(folders[0]) == [f"traces/{paths[0].name}"]


def test_what_is_shipped_is_what_a_new_recording_says(tiny_llama, tmp_path, monkeypatch):
    """On another machine the noise may differ; the oracle may not, beyond its own rounding."""
    record(str(tiny_llama), "torch", "float32", tmp_path)
    files = find_model(tiny_llama)
    shipped = GoldenReference(files, "float32")
    monkeypatch.setattr("harness.golden.manifest.golden_folders", lambda files: [tmp_path])
    new = GoldenReference(files, "float32")
    assert new.tokens() == shipped.tokens()
    for probe in shipped.probes:
        pairs = zip(
            shipped.evidence(probe).expected["propagated"].values(),
            new.evidence(probe).expected["propagated"].values(),
            strict=True,
        )
        assert all(relative_error(a, b) < 1e-12 for a, b in pairs)


def tampered(folder):
    path = next((folder / "traces").iterdir())
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def truncated(folder):
    path = next((folder / "traces").iterdir())
    os.truncate(path, path.stat().st_size // 2)


def gone(folder):
    next((folder / "traces").iterdir()).unlink()


def other_weights(folder):
    import mlx.core as mx

    path = folder / "models" / "tiny-llama" / "model.safetensors"
    weights = mx.load(str(path))
    weights["lm_head.weight"] = weights["lm_head.weight"] * 1.0001
    mx.eval(weights)
    mx.save_safetensors(str(path), weights)


def other_config(folder):
    path = folder / "models" / "tiny-llama" / "config.json"
    path.write_text(path.read_text().replace("5000.0", "5001.0"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (tampered, "altered or cut short"),
        (truncated, "altered or cut short"),
        (gone, "cannot be read"),
        (other_weights, "another weights"),
        (other_config, "another config"),
    ],
)
def test_verify_names_and_refuses_what_changed(command, golden, spoil, words):
    assert command("harness", "golden", "verify", "--golden", golden).status == 0
    spoil(golden)
    result = command("harness", "golden", "verify", "--golden", golden)
    assert result.status == 2 and words in result.err
    assert "tiny-llama.torch.float32.safetensors" in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("spoil", [tampered, truncated, gone])
def test_compare_refuses_a_golden_that_changed(command, golden, spoil):
    model = golden / "models" / "tiny-llama"
    spoil(golden)
    result = command("harness", "compare", "--model", model, "--reference", "golden")
    assert result.status == 2 and "tiny-llama.torch.float32" in result.err


def test_a_file_nobody_recorded_is_named(command, golden):
    (golden / "traces" / "stray.safetensors").write_bytes(b"")
    result = command("harness", "golden", "verify", "--golden", golden)
    assert result.status == 2 and "stray.safetensors" in result.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a manifest"),
        ("[]", "not a manifest"),
        ('{"schema": "harness.manifest/9", "goldens": []}', "harness.manifest/9"),
        ('{"schema": "harness.manifest/1", "goldens": [{}]}', "without"),
    ],
)
def test_manifests_that_are_none(command, golden, text, words):
    (golden / "MANIFEST.json").write_text(text)
    result = command("harness", "golden", "verify", "--golden", golden)
    assert result.status == 2 and words in result.err


def test_a_manifest_cannot_point_outside_its_folder(command, golden):
    manifest = json.loads((golden / "MANIFEST.json").read_text())
    manifest["goldens"][0]["file"] = "../../etc/passwd"
    (golden / "MANIFEST.json").write_text(json.dumps(manifest))
    result = command("harness", "golden", "verify", "--golden", golden)
    assert result.status == 2 and "outside its folder" in result.err


def test_an_interrupted_recording_leaves_the_old_one(golden, monkeypatch):
    before = {p: p.read_bytes() for p in golden.rglob("*") if p.is_file()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.whole.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        record(str(golden / "models" / "tiny-llama"), "torch", "float32", golden)
    assert {p: p.read_bytes() for p in golden.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_golden_and_its_entry_come_together(golden, monkeypatch, error):
    """Between the two the manifest would call the new golden altered, and the old one is gone."""
    before = {p: p.read_bytes() for p in golden.rglob("*") if p.is_file()}

    def stop(*_):
        raise error

    model = str(golden / "models" / "tiny-llama")
    with monkeypatch.context() as patch:
        patch.setattr("harness.golden.manifest.add_entry", stop)
        with pytest.raises(type(error)):
            record(model, "torch", "float32", golden, columns=4)
    assert {p: p.read_bytes() for p in golden.rglob("*") if p.is_file()} == before


def test_two_recordings_do_not_lose_each_others_entry(tiny_llama, tmp_path, monkeypatch):
    """From reading the manifest to writing it nobody else can do the same."""
    from harness.golden import manifest

    read, write, seen = manifest.read_manifest, manifest.write_whole, []

    def held(call):
        def checked(path, *rest):
            with pytest.raises(BadGolden, match="another command"), manifest.alone(tmp_path):
                pass
            seen.append(call)
            return call(path, *rest)

        return checked

    record(str(tiny_llama), "torch", "float32", tmp_path, columns=4)
    monkeypatch.setattr(manifest, "read_manifest", held(read))
    monkeypatch.setattr(manifest, "write_whole", held(write))
    record(str(tiny_llama), "torch", "float16", tmp_path, columns=4)
    assert seen == [read, write] and len(verify(tmp_path)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dtype", "float8"], "'float8' is not one of"),
        (["--reference", "trace:x"], "a recording already"),
        (["--reference", "golden"], "a recording already"),
        (["--golden", "{file}"], "Not a directory"),
        (["--golden", "{broken}"], "not a manifest of goldens"),
    ],
)
def test_a_recording_that_cannot_be_kept_is_refused_first(
    command, tmp_path, tiny_llama, monkeypatch, arguments, words
):
    monkeypatch.setattr("harness.golden.store.load_reference", None)  # what takes long
    (tmp_path / "file").touch()
    (tmp_path / "MANIFEST.json").write_text("{")
    places = {"{file}": tmp_path / "file", "{broken}": tmp_path}
    given = [places.get(each, each) for each in arguments]
    result = command("harness", "golden", "record", "--model", tiny_llama, *given)
    assert result.status == 2 and words in result.err and len(result.err.splitlines()) == 1


def test_a_full_disk_is_refused_with_the_numbers(command, tmp_path, tiny_llama, monkeypatch):
    monkeypatch.setattr("harness.golden.store.load_reference", None)  # what takes long
    usage = type("usage", (), {"free": 1_000_000})
    monkeypatch.setattr("harness.memory.shutil.disk_usage", lambda path: usage)
    result = command("harness", "golden", "record", "--model", tiny_llama, "--golden", tmp_path)
    assert result.status == 2 and "takes 5 MB" in result.err and "1 MB are free" in result.err


def test_the_golden_of_a_reference_with_an_argument_can_be_shared(command, tiny_llama, tmp_path):
    path = record(str(tiny_llama), "torch:sdpa", "float32", tmp_path / "here")
    assert path.name == "tiny-llama.torch-sdpa.float32.safetensors"
    result = command("harness", "golden", "push", tmp_path / "far", "--golden", tmp_path / "here")
    assert result.status == 0 and (tmp_path / "far" / "traces" / path.name).exists()


def test_the_digest_is_of_the_tensors_not_of_the_file(tiny_llama, tmp_path):
    from engine.convert import convert
    from engine.weights import read_weights

    npz = convert(str(tiny_llama), tmp_path / "m" / "model.npz")
    converted, original = find_model(npz), find_model(tiny_llama)
    digests = {weights_digest(read_weights(files)) for files in (converted, original)}
    assert len(digests) == 1
    assert GoldenReference(converted, "float32").probes


def test_no_golden_says_how_to_make_one(random_model):
    with pytest.raises(BadGolden, match="harness golden record --model"):
        GoldenReference(find_model(random_model("llama", "tied")), "float32")


# Stale or regression


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Record goldens of a small random model in a folder of their own; `find` sees no others."""
    from harness.random_models import config_of, write_model

    model = write_model(tmp_path / "models" / "small", config_of("llama", "tied"))
    monkeypatch.setattr("harness.golden.manifest.golden_folders", lambda files: [tmp_path])

    def make(**how):
        record(str(model), "torch", "float32", tmp_path, **how)
        return model

    return make


def other_norm(monkeypatch):
    """Another version of transformers, whose norms add an epsilon ten times as large."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    whole = LlamaRMSNorm.__init__

    def init(self, size, eps=1e-6):
        whole(self, size, eps * 10)

    monkeypatch.setattr(LlamaRMSNorm, "__init__", init)


def test_a_stale_golden_is_no_regression(recorded, command, monkeypatch, tmp_path):
    with pytest.MonkeyPatch.context() as elsewhere:
        other_norm(elsewhere)
        model = recorded()
    manifest = tmp_path / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"5.', '"4.'))  # of transformers
    result = command("harness", "compare", "--model", model, "--reference", "golden")
    assert result.status == 2
    assert "STALE" in result.err and "transformers 4." in result.err and "here " in result.err
    assert "harness golden record --model" in result.err


def test_a_regression_is_not_blamed_on_the_golden(recorded, command, monkeypatch):
    from harness.backends.engine import EngineBackend

    model, forward = recorded(), EngineBackend.forward

    def off(self, tokens, observe=None, **how):
        if observe is None:
            return forward(self, tokens, **how)
        return forward(self, tokens, lambda s, a: observe(s, a * 1.001), **how)

    monkeypatch.setattr(EngineBackend, "forward", off)
    result = command("harness", "compare", "--model", model, "--reference", "golden")
    assert result.status == 1
    assert "pass  golden" in result.out and "a fresh run of torch agrees with it" in result.out


def test_nothing_fresh_is_run_beside_a_stream(recorded, monkeypatch, tmp_path):
    """It would need the whole model in memory, also where the candidate is a file."""
    from safetensors.numpy import load_file, save_file

    import harness
    from harness.tracing import write_trace

    model, trace = recorded(), tmp_path / "trace.safetensors"
    write_trace(str(model), "engine", trace)
    arrays = load_file(trace)
    off = {key: a * np.float32(1.01) if "/propagated/" in key else a for key, a in arrays.items()}
    save_file(off, trace, {"schema": "harness.trace/1", "dtype": "float32"})
    monkeypatch.setattr("harness.golden.freshness.load_backend", None)
    verdict = harness.compare(model, f"trace:{trace}", "golden", stream=True)
    (golden,) = [check for check in verdict.checks if check.name == "golden"]
    assert verdict.verdict == "fail" and golden.verdict == "skip" and "streamed" in golden.reason


def test_where_nothing_fresh_can_be_run_it_says_so(recorded, command, monkeypatch):
    from engine.errors import BackendUnavailable

    with pytest.MonkeyPatch.context() as elsewhere:
        other_norm(elsewhere)
        model = recorded()

    def gone(name, request):
        raise BackendUnavailable("no torch")

    monkeypatch.setattr("harness.golden.freshness.load_backend", gone)
    result = command("harness", "compare", "--model", model, "--reference", "golden")
    assert result.status == 1
    assert "cannot be told without torch" in " ".join(result.out.split())


# Looked at


def test_list_and_show_say_where_goldens_come_from(command, golden):
    listed = command("harness", "golden", "list", "--golden", golden)
    assert listed.status == 0 and "tiny-llama" in listed.out and "2.13" in listed.out
    path = golden / "traces" / "tiny-llama.torch.float32.safetensors"
    shown = command("harness", "golden", "show", path)
    for words in ("transformers", "beyond", "whole arrays", "harness golden record"):
        assert words in shown.out


def test_a_sketch_is_shown_as_one(command, recorded, tmp_path):
    recorded(columns=8)
    shown = command("harness", "golden", "show", next((tmp_path / "traces").iterdir()))
    assert "sketches of 8 columns" in shown.out


def test_diff_tells_what_moved(command, recorded, tmp_path):
    recorded()
    one = tmp_path / "traces" / "small.torch.float32.safetensors"
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "traces").mkdir(parents=True)
    other = elsewhere / "traces" / one.name
    for file in (one, tmp_path / "MANIFEST.json"):
        shutil.copy(file, elsewhere / file.relative_to(tmp_path))
    same = command("harness", "golden", "diff", one, other)
    assert same.status == 0 and "did not move at all" in same.out
    with pytest.MonkeyPatch.context() as patch:
        other_norm(patch)
        recorded()
    moved = command("harness", "golden", "diff", one, other)
    assert moved.status == 1 and "model.layers.0" in moved.out


def test_diff_of_a_sketch_and_the_whole(command, recorded, tmp_path):
    """Both are brought into one form."""
    recorded()
    one = tmp_path / "traces" / "small.torch.float32.safetensors"
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "traces").mkdir(parents=True)
    for file in (one, tmp_path / "MANIFEST.json"):
        shutil.copy(file, elsewhere / file.relative_to(tmp_path))
    recorded(columns=8)
    result = command("harness", "golden", "diff", elsewhere / "traces" / one.name, one)
    assert result.status == 0, result.out + result.err


@pytest.mark.parametrize("arguments", [["show"], ["diff", "{other}"]])
def test_files_nobody_recorded_are_one_line(command, golden, tmp_path, arguments):
    stray = tmp_path / "stray.safetensors"
    stray.write_bytes(b"")
    given = [str(stray) if word == "{other}" else word for word in arguments]
    result = command("harness", "golden", *given, stray)
    assert result.status == 2 and len(result.err.splitlines()) == 1
    assert "stray.safetensors is not in the manifest" in result.err


def test_sketches_of_other_columns_cannot_be_compared(command, recorded, tmp_path):
    for folder, columns in (("one", 8), ("other", 16)):
        recorded(columns=columns)
        shutil.copytree(tmp_path / "traces", tmp_path / folder / "traces")
        shutil.copy(tmp_path / "MANIFEST.json", tmp_path / folder)
    name = next((tmp_path / "traces").iterdir()).name
    result = command(
        "harness", "golden", "diff",
        tmp_path / "one" / "traces" / name, tmp_path / "other" / "traces" / name,
    )  # fmt: skip
    assert result.status == 2 and "8 and 16 columns" in result.err


# Hostile files, whose manifest agrees with them


def enter(folder, path):
    """Write the hash of what is there into the manifest: only the content can be refused."""
    import hashlib

    manifest = json.loads((folder / "MANIFEST.json").read_text())
    (entry,) = manifest["goldens"]
    entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    entry["bytes"] = path.stat().st_size
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def rewritten(golden, change):
    from safetensors.numpy import load_file, save_file

    path = next((golden / "traces").iterdir())
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    arrays, known = load_file(path), json.loads(metadata["golden"])
    change(arrays, known)
    save_file(arrays, path, {**metadata, "golden": json.dumps(known)})
    enter(golden, path)


def dropped(arrays, known):
    del arrays["text/propagated/model.layers.2"]


def not_a_number(arrays, known):
    arrays["text/isolated/logits"][3, 3] = float("nan")


def too_long(arrays, known):
    import numpy as np

    arrays["text/twin"] = np.zeros((1, 512), np.float32)


def no_sites(arrays, known):
    known["sites"] = []


def odd_sites(arrays, known):
    known["sites"][1]["block"] = "../x"


def odd_width(arrays, known):
    known["sites"][1]["width"] = -4


def no_probes(arrays, known):
    known["probes"] = 7


def odd_sketch(arrays, known):
    known["sketch"] = 16


def odd_tokens(arrays, known):
    known["tokens"]["ids"] = {"a": "b"}


def odd_scales(arrays, known):
    arrays[f"{known['probes'][0]['name']}/scales"] = np.full(5, 1 << 20, np.int32)


def unknown_tokens(arrays, known):
    arrays["text/tokens"] = np.full(34, 70_000, np.int32)


def negative_tokens(arrays, known):
    arrays["text/tokens"] = np.full(34, -3, np.int32)


def tokens_of_floats(arrays, known):
    arrays["text/tokens"] = np.full(34, 2.5, np.float32)


def only_a_prompt(arrays, known):
    arrays["greedy/prompt"] = np.array([98])


def no_growth(arrays, known):
    known["growth"] = 0


def odd_noise(arrays, known):
    known["probes"][1]["noise"]["isolated"] = [float("nan")] * 7


def negative_noise(arrays, known):
    known["probes"][1]["noise"]["isolated"] = [-1e-7] * 7


def narrow_twin(arrays, known):
    arrays["text/twin"] = np.ones((34, 1), np.float32)


def short_ties(arrays, known):
    arrays["text/tied"] = np.zeros(3, np.uint8)


def steering_reason(arrays, known):
    known["probes"][1]["reason"] = "\x1b]0;owned\x07"


def steering_site(arrays, known):
    known["sites"][1]["path"] = "\x1b[2J.1"


@pytest.mark.parametrize("change", [
    dropped, not_a_number, too_long, no_sites, odd_sites, odd_width, no_probes, odd_sketch,
    odd_tokens, odd_scales, unknown_tokens, negative_tokens, tokens_of_floats, only_a_prompt,
    no_growth, odd_noise, negative_noise, narrow_twin, short_ties, steering_reason, steering_site,
])  # fmt: skip
def test_a_golden_whose_content_is_wrong_is_one_line(command, golden, change):
    rewritten(golden, change)
    model = golden / "models" / "tiny-llama"
    result = command("harness", "compare", "--model", model, "--reference", "golden")
    assert result.status == 2 and len(result.err.splitlines()) == 1
    assert "tiny-llama.torch.float32.safetensors" in result.err


def odd_ids(scores):
    scores["ids"][3, 3] = 512


def narrow_oracle(scores):
    scores["oracle"] = scores["oracle"][:, :5].copy()


def long_best(scores):
    scores["best"] = np.zeros(99, np.int64)


def no_margin(scores):
    del scores["margin"]


@pytest.mark.parametrize("change", [odd_ids, narrow_oracle, long_best, no_margin])
def test_scores_that_are_wrong_are_refused(change):
    from harness.scores import coarse, read_scores, scores_of

    logits = np.random.default_rng(0).standard_normal((8, 512))
    arrays = coarse(scores_of(logits, logits + 1e-7), range(8)).arrays()
    assert read_scores(arrays, 8, 512).ids.shape[0] == 8
    change(arrays)
    with pytest.raises((KeyError, TypeError, ValueError)):
        read_scores(arrays, 8, 512)


@pytest.mark.parametrize("entry", [
    {"date": "[/red]"}, {"device": {"name": "[/b]\x1b[31m"}}, {"packages": {"torch": ["[/x]"]}},
])  # fmt: skip
def test_a_manifest_is_shown_as_it_is(command, golden, entry):
    """Neither brackets nor escape sequences mean anything to the terminal."""
    path = golden / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    manifest["goldens"][0] |= entry
    path.write_text(json.dumps(manifest))
    trace = next((golden / "traces").iterdir())
    for arguments in (["list", "--golden", golden], ["show", trace], ["diff", trace, trace]):
        result = command("harness", "golden", *arguments)
        assert result.status == 0, result.err
        assert "\x1b" not in result.out and ("[/" in result.out or arguments[0] == "diff")


@pytest.mark.parametrize("file", ["traces/a\0b.safetensors", "../traces/a.safetensors"])
def test_show_reads_no_odd_names(command, golden, file):
    path = golden / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    manifest["goldens"][0]["file"] = file
    path.write_text(json.dumps(manifest))
    result = command("harness", "golden", "show", next((golden / "traces").iterdir()))
    assert result.status == 2 and "outside its folder" in result.err


def test_any_change_of_bytes_is_read_or_refused(golden, tmp_path_factory):
    from hypothesis import given, settings
    from hypothesis import strategies as st

    from harness.golden.format import Content

    whole = next((golden / "traces").iterdir()).read_bytes()
    path = tmp_path_factory.mktemp("fuzzed") / "golden.safetensors"

    @settings(max_examples=40)
    @given(st.integers(0, 60_000), st.integers(0, 40), st.binary(max_size=40))
    def fuzz(start, cut, put_in):
        path.write_bytes(whole[:start] + put_in + whole[start + cut :])
        with contextlib.suppress(BadGolden):
            Content(path, "float32")

    fuzz()
