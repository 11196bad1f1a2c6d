"""Finding a model: paths, golden names, Hub ids, and every way in which that goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlx.core as mx
import pytest

from engine import files
from engine.errors import CorruptWeights, InvalidConfig, ModelNotFound, UnsupportedFormat
from engine.files import INDEX, ModelFiles, find_model
from engine.weights import write_weights

CONFIG = {"model_type": "llama", "hidden_size": 60}
ROOT = Path(files.__file__).parent.parent


def model_folder(path: Path, *shards: str, config: dict | None = CONFIG) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for i, shard in enumerate(shards):
        write_weights(path / shard, {f"tensor{i}": mx.ones((2, i + 1))})
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def message(error: type[Exception], model: object, **options: str) -> str:
    """The message of the error that finding a model raises; it is one line."""
    with pytest.raises(error) as caught:
        find_model(model, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert type(caught.value) is error
    return text


class TestPaths:
    def test_a_folder_with_one_file(self, tmp_path):
        folder = model_folder(tmp_path / "m", "model.safetensors")
        assert find_model(folder) == ModelFiles(
            str(folder), folder, (folder / "model.safetensors",), None, CONFIG
        )

    def test_shards_come_in_name_order_and_from_the_index(self, tmp_path):
        folder = model_folder(tmp_path, "b.safetensors", "a.safetensors", "stray.safetensors")
        weight_map = {"tensor0": "b.safetensors", "tensor1": "a.safetensors"}
        write_index(folder, weight_map)
        found = find_model(folder)
        assert [path.name for path in found.weights] == ["a.safetensors", "b.safetensors"]
        assert found.index == weight_map

    def test_shards_without_an_index(self, tmp_path):
        folder = model_folder(tmp_path, "2.safetensors", "1.safetensors")
        assert [path.name for path in find_model(folder).weights] == [
            "1.safetensors",
            "2.safetensors",
        ]

    def test_model_safetensors_goes_before_other_copies(self, tmp_path):
        folder = model_folder(tmp_path, "consolidated.safetensors", "model.safetensors", "w.npz")
        assert find_model(folder).weights == (folder / "model.safetensors",)

    def test_a_single_file_has_its_config_beside_it(self, tmp_path):
        folder = model_folder(tmp_path, "a.safetensors", "b.npz", "c.npz")
        for name in ("a.safetensors", "b.npz"):
            found = find_model(str(folder / name))
            assert found.weights == (folder / name,)
            assert (found.folder, found.config) == (folder, CONFIG)

    def test_an_npz_carries_its_config(self, tmp_path):
        write_weights(tmp_path / "m.npz", {"a": mx.ones(3)}, {"model_type": "gpt2", "name": "é"})
        for name in (tmp_path, tmp_path / "m.npz"):
            assert find_model(name).config == {"model_type": "gpt2", "name": "é"}

    def test_config_json_goes_before_the_one_inside(self, tmp_path):
        write_weights(tmp_path / "m.npz", {"a": mx.ones(3)}, {"model_type": "gpt2"})
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        assert find_model(tmp_path).config == CONFIG


class TestGoldenNames:
    def test_in_the_working_directory(self, tmp_path, monkeypatch):
        folder = model_folder(tmp_path / "golden/models/mine", "model.safetensors")
        monkeypatch.chdir(tmp_path)
        for name in ("mine", "golden/models/mine", "./golden/models/mine"):
            assert find_model(name).folder.resolve() == folder

    @pytest.mark.parametrize("place", ["installed", "source tree"])
    def test_elsewhere(self, tmp_path, monkeypatch, place):
        roots = {
            "installed": tmp_path / "data/share/mlx-parity/golden/models",
            "source tree": tmp_path / "source/golden/models",
        }
        monkeypatch.setattr(files.sysconfig, "get_path", lambda _: str(tmp_path / "data"))
        monkeypatch.setattr(files, "__file__", str(tmp_path / "source/engine/files.py"))
        folder = model_folder(roots[place] / "mine", "model.safetensors")
        write_weights(roots[place] / "packed.npz", {"a": mx.ones(1)}, CONFIG)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        for name in ("mine", "golden/models/mine"):
            assert find_model(name).folder == folder
        for name in ("packed", "golden/models/packed.npz"):
            assert find_model(name).weights == (roots[place] / "packed.npz",)
        assert files.golden_models() == ["mine", "packed.npz"]

    def test_a_misspelt_name_gets_the_nearest(self, tmp_path, monkeypatch):
        for name in ("tiny-llama", "tiny-gemma", "other"):
            model_folder(tmp_path / "golden/models" / name, "model.safetensors")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(files, "__file__", str(tmp_path / "nowhere/engine/files.py"))
        text = message(ModelNotFound, "tiny-lama")
        assert "'tiny-lama'" in text
        assert text.index("tiny-llama") < text.index("tiny-gemma")
        assert "other" not in text
        assert "owner/name" in text
        text = message(ModelNotFound, "golden/models/tiny-lama")
        assert "check the path" in text
        assert "tiny-llama" in text


class TestBadInput:
    @pytest.mark.parametrize("name", ["", "  "])
    def test_an_empty_name(self, name):
        assert "empty" in message(ModelNotFound, name)

    @pytest.mark.parametrize("name", ["./no/such", "/no/such.npz", "a/b/c", "../x", "~/no-such"])
    def test_a_missing_path(self, name):
        text = message(ModelNotFound, name)
        assert repr(name) in text
        assert "check the path" in text

    def test_a_revision_of_a_local_model(self, tmp_path):
        folder = model_folder(tmp_path, "model.safetensors")
        text = message(ModelNotFound, folder, revision="v1")
        assert "'v1'" in text
        assert str(folder) in text
        assert "leave --revision out" in text

    def test_a_folder_without_weights(self, tmp_path):
        text = message(ModelNotFound, model_folder(tmp_path))
        assert str(tmp_path) in text
        assert "without weights" in text
        assert "safetensors" in text

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
    def test_pickles_are_refused(self, tmp_path, name):
        (model_folder(tmp_path) / name).write_bytes(b"\x80\x04.")
        for given in (tmp_path, tmp_path / name):
            text = message(UnsupportedFormat, given)
            assert str(tmp_path / name) in text
            assert "refused" in text
            assert "save_pretrained" in text

    def test_an_unknown_file(self, tmp_path):
        path = tmp_path / "model.gguf"
        path.write_bytes(b"GGUF")
        text = message(UnsupportedFormat, path)
        assert str(path) in text
        assert ".safetensors" in text

    def test_several_npz(self, tmp_path):
        text = message(UnsupportedFormat, model_folder(tmp_path, "a.npz", "b.npz"))
        assert "a.npz" in text
        assert "name one" in text

    def test_a_shard_missing_from_the_folder(self, tmp_path):
        folder = model_folder(tmp_path, "a.safetensors")
        write_index(folder, {"x": "a.safetensors", "y": "b.safetensors", "z": "c.safetensors"})
        text = message(CorruptWeights, folder)
        assert "shard b.safetensors and 1 more" in text
        assert str(folder / INDEX) in text
        assert "fetch it again" in text

    @pytest.mark.parametrize(
        "shard", ["../a.safetensors", "/etc/a.safetensors", "s\\a.safetensors", "a.bin", "", 3]
    )
    def test_a_shard_outside_the_folder(self, tmp_path, shard):
        folder = model_folder(tmp_path / "m", "a.safetensors")
        write_index(folder, {"x": shard})
        text = message(CorruptWeights, folder)
        assert repr(shard) in text
        assert str(folder / INDEX) in text
        assert "correct the index" in text

    @pytest.mark.parametrize("weight_map", [None, {}, []])
    def test_an_index_without_weight_map(self, tmp_path, weight_map):
        folder = model_folder(tmp_path, "a.safetensors")
        write_index(folder, weight_map)
        assert str(folder / INDEX) in message(CorruptWeights, folder)

    @pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff\xfe{}", b"", b"[" * 100_000])
    def test_a_config_that_is_no_object(self, tmp_path, text):
        folder = model_folder(tmp_path, "model.safetensors")
        (folder / "config.json").write_bytes(text)
        said = message(InvalidConfig, folder)
        assert str(folder / "config.json") in said
        assert "again" in said

    def test_a_missing_config(self, tmp_path):
        folder = model_folder(tmp_path, "model.safetensors", config=None)
        text = message(InvalidConfig, folder)
        assert str(folder / "config.json") in text
        assert "beside" in text

    def test_an_npz_without_config(self, tmp_path):
        folder = model_folder(tmp_path, "m.npz", config=None)
        text = message(InvalidConfig, folder)
        assert str(folder / "m.npz") in text
        assert "__config__" in text

    @pytest.mark.parametrize(
        "value", [mx.ones(3), mx.array([123], mx.uint8), mx.array(list(b"[]"), mx.uint8)]
    )
    def test_a_bad_config_inside_an_npz(self, tmp_path, value):
        mx.savez(str(tmp_path / "m.npz"), __config__=value)
        text = message(InvalidConfig, tmp_path)
        assert "__config__" in text
        assert str(tmp_path / "m.npz") in text


# --- the Hub, imitated on loopback


class Hub(ThreadingHTTPServer):
    """Answers what huggingface_hub 2.4's snapshot_download asks, for `repos[id][revision]`."""

    daemon_threads = True

    def __init__(self, repos: dict[str, dict[str, dict[str, bytes]]]) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repos = repos
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def sha(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.api("/".join(parts[2:4]), parts[4], parts[5])
        else:
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    do_HEAD = do_GET

    def api(self, repo: str, kind: str, revision: str):
        if repo == "someone/gated":
            return self.fail(403, "GatedRepo")
        if repo not in self.server.repos:
            return self.fail(404, "RepoNotFound")
        found = self.files(repo, revision)
        if found is None:
            return self.fail(404, "RevisionNotFound")
        tree = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in found[1].items()
        ]
        info = {"id": repo, "modelId": repo, "sha": found[0], "siblings": []}
        body = json.dumps(tree if kind == "tree" else info).encode()
        return self.answer(body, {"Content-Type": "application/json"})

    def resolve(self, repo: str, revision: str, name: str):
        commit, content = self.files(repo, revision)
        etag = hashlib.sha1(content[name]).hexdigest()
        self.answer(content[name], {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def files(self, repo: str, revision: str):
        for name, content in self.server.repos[repo].items():
            if revision in (name, sha(name)):
                return sha(name), content
        return None

    def answer(self, body: bytes, headers: dict[str, str], status: int = 200):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def fail(self, status: int, code: str):
        self.answer(b"{}", {"X-Error-Code": code, "X-Error-Message": code}, status)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    repos: dict[str, dict[str, bytes]] = {}
    for revision, config in (("main", CONFIG), ("v2", {**CONFIG, "hidden_size": 84})):
        folder = tmp_path_factory.mktemp(revision)
        model_folder(folder, "model.safetensors", "consolidated.safetensors", config=config)
        for name in ("pytorch_model.bin", "modeling_evil.py", "merges.txt", "tokenizer.model"):
            (folder / name).write_bytes(name.encode())
        repos[revision] = {path.name: path.read_bytes() for path in folder.iterdir()}
        repos[revision]["onnx/config.json"] = b"{}"
    server = Hub({"someone/tiny": repos})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


CLIENT = """
import json, sys
from engine.errors import EngineError
from engine.files import find_model
answers = []
for model, revision in json.loads(sys.argv[1]):
    try:
        files = find_model(model, revision)
    except EngineError as error:
        answers.append([type(error).__name__, str(error)])
    else:
        inside = sorted(path.name for path in files.folder.iterdir())
        answers.append([inside, [path.name for path in files.weights], dict(files.config)])
print(json.dumps(answers))
"""


def ask(
    home: Path,
    endpoint: str,
    questions: list[tuple[str, str | None]],
    room: int = resource.RLIM_INFINITY,
    **variables: str,
):
    """What a fresh process answers; HF variables of this one are not inherited. No file that it
    writes has more than `room` bytes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    no_proxy = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CLIENT, json.dumps(questions)],
        env={**kept, **settings, **no_proxy, **variables},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


NEEDED = ["config.json", "merges.txt", "model.safetensors", "tokenizer.model"]


class TestHub:
    def test_download_then_offline(self, hub, tmp_path):
        questions = [("someone/tiny", None), ("someone/tiny", "v2"), ("someone/tiny", sha("v2"))]
        first = ask(tmp_path, hub.url, questions)
        widths = []
        for inside, weights, config in first:
            assert inside == NEEDED
            assert weights == ["model.safetensors"]
            widths.append(config["hidden_size"])
        assert widths == [60, 84, 84]
        assert not [path for path in hub.asked if path.endswith((".bin", ".py"))]
        asked = len(hub.asked)
        questions += [("someone/absent", None), ("someone/tiny", "v3")]
        *again, absent, other = ask(tmp_path, hub.url, questions, HF_HUB_OFFLINE="1")
        assert again == first
        assert len(hub.asked) == asked
        for kind, text in (absent, other):
            assert kind == "ModelNotFound"
            assert "HF_HUB_OFFLINE" in text
            assert "\n" not in text
        assert "'someone/absent'" in absent[1]
        assert "'v3'" in other[1]

    def test_what_the_hub_refuses(self, hub, tmp_path):
        questions = [("someone/absent", None), ("someone/tiny", "v9"), ("someone/gated", None)]
        questions += [("no..such/na--me", None)]
        answers = ask(tmp_path, hub.url, questions)
        for (model, revision), (kind, text) in zip(questions, answers, strict=True):
            assert kind == "ModelNotFound"
            assert repr(model) in text
            assert "\n" not in text
            assert revision is None or repr(revision) in text
        said = [text for _, text in answers]
        assert "does not exist" in said[0]
        assert "spelling" in said[0]
        assert "check --revision" in said[1]
        assert "accept its terms" in said[2]
        assert all(hub.url in text for text in said[:3])
        assert "valid id" in said[3]

    def test_no_network(self, tmp_path):
        closed = "http://127.0.0.1:9"
        ((kind, text),) = ask(tmp_path, closed, [("someone/tiny", None)])
        assert kind == "ModelNotFound"
        assert "'someone/tiny'" in text
        assert closed in text
        assert "check the network" in text
        assert "\n" not in text

    def test_a_full_disk(self, hub, tmp_path):
        whole = hub.repos["someone/tiny"]["main"]["model.safetensors"]
        question = [("someone/tiny", None)]
        ((kind, text),) = ask(tmp_path, hub.url, question, room=len(whole) - 1)
        assert kind == "ModelNotFound"
        assert f"does not fit into {tmp_path}/hub" in text and "HF_HOME" in text
        assert "\n" not in text
        ((inside, _, _),) = ask(tmp_path, hub.url, question, room=len(whole))
        assert inside == NEEDED
