"""Models are found in every place, whatever lies beside them; nothing unreadable ends a search."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from engine.discovery import discover
from engine.errors import EngineError
from engine.files import find_model

ROOT = Path(__file__).parents[2]
LLAMA, GPT2 = (ROOT / "golden" / "models" / name for name in ("tiny-llama", "tiny-gpt2"))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder, a current folder in it, and none of the real ones."""
    (home := tmp_path / "home").mkdir()
    (here := home / "here").mkdir()
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("MLX_PARITY_MODEL_DIRS", raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    return home


def found(*folders, **options) -> dict[str, str]:
    """Names and formats of what is found, golden models apart."""
    search = discover([str(folder) for folder in folders], **options)
    return {each.name: each.format for each in search.found if each.place != "golden"}


def test_golden_models_are_found_once(home):
    golden = [each.name for each in discover().found]
    assert golden == ["tiny-gemma3", "tiny-gpt2", "tiny-llama"]
    assert all(find_model(name).weights for name in golden)


def snapshot(cache: Path, name: str, commit: str, source: Path, main: bool = True) -> Path:
    """A model in the layout of the Hub's cache: files are links into blobs."""
    repository = cache / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    for file in source.iterdir():
        blob = repository / "blobs" / f"{commit}-{file.name}"
        shutil.copy(file, blob)
        (folder / file.name).symlink_to(os.path.relpath(blob, folder))
    if main:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    return folder


@pytest.mark.parametrize(
    ("variable", "inside"), [("HF_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", None)]
)
def test_the_hub_cache_is_where_the_variables_say(home, monkeypatch, variable, inside):
    root = home / "elsewhere"
    monkeypatch.setenv(variable, str(root))
    cache = root / "huggingface" / "hub" if inside is None else root / inside
    snapshot(cache, "owner/name", "a" * 40, LLAMA)
    assert found() == {"owner/name": "safetensors"}


def test_snapshots_that_no_branch_names_are_named_by_their_path(home):
    cache = home / ".cache" / "huggingface" / "hub"
    snapshot(cache, "owner/name", "a" * 40, LLAMA)
    snapshot(cache, "owner/name", "b" * 40, GPT2, main=False)
    snapshot(cache, "gpt2", "c" * 40, GPT2)  # of the time before owners: no id that --model takes
    old = f"~/.cache/huggingface/hub/models--owner--name/snapshots/{'b' * 40}"
    plain = f"~/.cache/huggingface/hub/models--gpt2/snapshots/{'c' * 40}"
    assert found() == {"owner/name": "safetensors", old: "npz", plain: "npz"}
    assert find_model(old).weights[0].name == find_model(plain).weights[0].name == "model.npz"


def ollama(root: Path, name: str, tag: str, blob: bytes, owner: str = "library") -> None:
    manifest = root / "manifests" / "registry.ollama.ai" / owner / name / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    (root / "blobs").mkdir(exist_ok=True)
    (root / "blobs" / f"sha256-{name}").write_bytes(blob)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{name}"}
    manifest.write_text(json.dumps({"layers": [{"mediaType": "text", "digest": "x"}, layer]}))


def test_what_ollama_keeps_is_named_as_what_it_is(home):
    root = home / ".ollama" / "models"
    ollama(root, "llama3", "8b", b"GGUF1234")
    ollama(root, "own", "latest", b"something", owner="me")
    search = discover()
    assert found() == {"llama3:8b": "gguf", "me/own:latest": "unknown"}
    assert all(each.problem for each in search.found if each.place == "Ollama")


def test_single_files_shards_and_folders_are_models(home):
    models = home / "here" / "models"
    shutil.copytree(LLAMA, models / "whole")
    shutil.copytree(GPT2, models / "one")
    (several := models / "several").mkdir()
    for name in ("a.npz", "b.npz"):
        shutil.copy(GPT2 / "model.npz", several / name)
    shutil.copy(GPT2 / "config.json", several)
    (models / "deep" / "er").mkdir(parents=True)
    (models / "deep" / "er" / "q4.gguf").write_bytes(b"GGUF")
    assert found() == {
        "models/whole": "safetensors",
        "models/one": "npz",
        "models/several/a.npz": "npz",
        "models/several/b.npz": "npz",
        "models/deep/er/q4.gguf": "gguf",
    }
    assert all(find_model(name) for name, kind in found().items() if kind != "gguf")
    assert set(found(format="npz").values()) == {"npz"}
    assert set(found(format="safetensors")) == {"models/whole"}
    with pytest.raises(EngineError, match="'gguf'"):
        discover(format="gguf")


def sharded(folder: Path) -> Path:
    import mlx.core as mx

    folder.mkdir()
    tensors = dict(mx.load(str(LLAMA / "model.safetensors")))
    names, index = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i}.safetensors"
        mx.save_safetensors(str(folder / file), {name: tensors[name] for name in part})
        index |= dict.fromkeys(part, file)
    shutil.copy(LLAMA / "config.json", folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_a_shard_that_is_missing_is_told(home):
    folder = sharded(home / "sharded")
    whole = {each.name: each for each in discover([str(folder)]).found}["~/sharded"]
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert whole.problem is None and whole.bytes == size
    (folder / "model-1.safetensors").unlink()
    lacking = {each.name: each for each in discover([str(folder)]).found}["~/sharded"]
    assert "model-1.safetensors is missing" in lacking.problem


def test_configured_folders_come_by_option_and_variable(home, monkeypatch):
    for name in ("a", "b", "c"):
        shutil.copytree(LLAMA, home / name / "m")
    monkeypatch.setenv("MLX_PARITY_MODEL_DIRS", f"{home / 'a'}{os.pathsep}/nowhere")
    search = discover([f"{home / 'b'};~/c"])
    names = [each.name for each in search.found if each.place == "configured"]
    assert names == ["~/b/m", "~/c/m", "~/a/m"]
    assert search.skipped == ["/nowhere does not exist"]


def test_lm_studio_is_searched(home):
    shutil.copytree(LLAMA, home / ".lmstudio" / "models" / "publisher" / "m")
    shutil.copytree(LLAMA, home / ".cache" / "lm-studio" / "models" / "publisher" / "m")
    places = [each.place for each in discover().found if each.place != "golden"]
    assert places == ["LM Studio"] * 2


def test_links_and_loops_lead_to_a_model_once(home):
    models = home / "here" / "models"
    shutil.copytree(LLAMA, models / "real")
    (models / "again").symlink_to(models / "real")
    (models / "real" / "up").symlink_to(models)
    (models / "self").symlink_to(models / "self")
    (models / "broken.safetensors").symlink_to("/nowhere")
    search = discover([str(models)])
    assert len([each for each in search.found if each.place != "golden"]) == 1
    assert (
        sorted(search.skipped)
        == [
            f"{models / 'broken.safetensors'} is a link to nothing".replace(str(home), str(home)),
            f"{models / 'self'} is a link to nothing",
        ]
        or "is a link to nothing" in search.skipped[0]
    )


@pytest.mark.parametrize("place", ["models", "../.cache/huggingface/hub", "../.ollama/models"])
def test_an_unreadable_folder_is_passed_over_and_told(home, monkeypatch, place):
    """Root may read everything, so the refusal is planted."""
    here = home / "here"
    shutil.copytree(LLAMA, here / "models" / "good")
    secret = (here / place).resolve() / "manifests" if "ollama" in place else here / place
    secret = secret.resolve() / "secret"
    secret.mkdir(parents=True)
    real = Path.iterdir

    def refused(self):
        if self.resolve() == secret:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", refused)
    if "huggingface" in place:
        secret.rename(secret.with_name("models--a--b"))
        secret = secret.with_name("models--a--b") / "snapshots"
        secret.mkdir()
    search = discover()
    assert "models/good" in [each.name for each in search.found]
    assert any("cannot be read (Permission denied)" in why for why in search.skipped)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads what nobody may")
def test_a_folder_of_mode_000_is_passed_over(home):
    (secret := home / "here" / "models" / "secret").mkdir(parents=True)
    secret.chmod(0)
    search = discover()
    secret.chmod(0o700)
    assert search.skipped == ["models/secret cannot be read (Permission denied)"]


def test_whatever_lies_about_the_search_ends(home):
    """Trees of rubbish under the names that mean something."""
    draw = random.Random(0)
    names = [
        "config.json", "model.safetensors", "model.safetensors.index.json", "a.npz", "refs", "main",
        "snapshots", "models--a--b", "manifests", "x.gguf", "pytorch_model.bin", "params.json",
    ]  # fmt: skip
    contents = [b"", b"{}", b"[]", b"\xff\x00", b'{"weight_map": {"a": "../x"}}', b'{"layers": 1}']
    roots = (".ollama/models", ".cache/huggingface/hub", "here/models", ".lmstudio/models")
    for root in roots:
        for _ in range(40):
            path = home.joinpath(root, *(draw.choice(names) for _ in range(draw.randrange(1, 5))))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if draw.random() < 0.2:
                    path.symlink_to(draw.choice([home, "/nowhere/at/all", path]))
                else:
                    path.write_bytes(draw.choice(contents))
            except OSError:  # a file stands where a folder should
                continue
    search = discover()
    assert len(search.found) > 3 and search.skipped
    assert all(each.problem for each in search.found if each.place != "golden")


def test_discover_prints_a_table_and_json(home, command):
    shutil.copytree(LLAMA, home / "here" / "models" / "\x1b[31mred")
    ollama(home / ".ollama" / "models", "llama3", "8b", b"GGUF1234")
    shown = command("engine", "discover", "--model-dirs", "/nowhere")
    assert shown.status == 0 and shown.err == "skipped: /nowhere does not exist\n"
    assert "\x1b" not in shown.out and "llama3:8b: GGUF" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100
    listed = json.loads(command("engine", "discover", "--json").out)
    assert {each["format"] for each in listed} == {"npz", "safetensors", "gguf"}
