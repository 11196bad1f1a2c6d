"""Which backend is taken, and that it is told; PyTorch gives the same tokens, on demand alone.

What a certificate does to the choice stands in `harness/test_certify.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.backend import choose_backend, open_model
from engine.convert import convert
from engine.errors import BackendUnavailable, InvalidPrompt, MetalNotAvailable
from engine.files import find_model

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("certificates")


def tokens(model, backend, prompt=(5, 6, 7), count=12) -> list[int]:
    return list(open_model(find_model(model), backend).generate(list(prompt), count))


def test_both_backends_give_the_same_tokens(golden_model):
    assert tokens(golden_model, "torch") == tokens(golden_model, "mlx")


def test_models_that_only_the_engine_reads_run_on_both(tmp_path, tiny_llama, quantised_model):
    npz = convert(tiny_llama, tmp_path / "alone" / "model.npz")
    (npz.parent / "config.json").unlink()  # the archive holds it
    for model in (npz, quantised_model("llama", "llama3")):
        assert tokens(model, "torch") == tokens(model, "mlx")


def test_other_weights_give_other_tokens(tiny_llama, quantised_model):
    """The control: equal answers above are no accident."""
    assert tokens(tiny_llama, "torch") != tokens(quantised_model("llama", "llama3"), "torch")


def test_experts_kept_as_mxfp4_run_on_both(random_model, tmp_path):
    """Blocks and scales in the checkpoint, matrices in transformers."""
    import mlx.core as mx

    source = random_model("gpt_oss", "plain", hidden_size=64, intermediate_size=64)
    tensors = dict(mx.load(str(source / "model.safetensors")))
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        E, _, out = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = mx.random.randint(0, 256, (E, out, 2, 16)).astype(mx.uint8)
        tensors[f"{name}_scales"] = mx.full((E, out, 2), 122, dtype=mx.uint8)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    assert tokens(tmp_path, "torch") == tokens(tmp_path, "mlx")


def test_a_missing_tensor_is_no_random_one(tmp_path, tiny_llama):
    """transformers makes up what a checkpoint lacks."""
    import mlx.core as mx

    tensors = dict(mx.load(str(tiny_llama / "model.safetensors")))
    del tensors["model.norm.weight"]
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    (tmp_path / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    with pytest.raises(BackendUnavailable, match=r"misses parameter 'model.norm.weight'"):
        tokens(tmp_path, "torch")


def test_learned_positions_end_both_alike(tmp_path):
    gpt2 = ROOT / "golden" / "models" / "tiny-gpt2"
    prompt = [1] * 254  # of 256 positions: tokens 255 and 256, and one predicted behind them
    assert len(tokens(gpt2, "torch", prompt, 20)) == len(tokens(gpt2, "mlx", prompt, 20)) == 3
    with pytest.raises(InvalidPrompt, match="256 positions"):
        tokens(gpt2, "torch", [1] * 257)


def test_a_family_the_engine_has_not_runs_on_torch_by_auto(tmp_path):
    import transformers

    config = transformers.MambaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4
    )
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    files = find_model(tmp_path)
    assert choose_backend(files, "auto").backend == "torch"
    assert len(tokens(tmp_path, "torch", count=3)) == 3


@pytest.mark.parametrize("backend", ["auto", "mlx", "torch"])
def test_a_gpu_that_is_not_there_is_named(command, backend):
    """On a machine with one this is another test: that it is used."""
    import mlx.core as mx

    if mx.metal.is_available() or mx.cuda.is_available():
        pytest.skip("MLX has a GPU here")
    arguments = ("--model", "tiny-llama", "--prompt", "x", "--device", "gpu")
    result = command("engine", "generate", *arguments, "--backend", backend)
    assert result.status == 2 and "device gpu: " in result.err and "--device cpu" in result.err
    if backend != "torch":
        with pytest.raises(MetalNotAvailable):
            choose_backend(find_model("tiny-llama"), backend, "gpu")


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_torch_that_is_missing_is_named(monkeypatch, backend):
    monkeypatch.setitem(sys.modules, "transformers", None)
    files = find_model("tiny-llama")
    with pytest.raises(BackendUnavailable, match=r"transformers.*not installed.*--backend mlx"):
        choose_backend(files, backend)
    assert choose_backend(files, "mlx").backend == "mlx"


def test_a_backend_that_does_not_exist_is_named(command):
    result = command(
        "engine", "generate", "--model", "tiny-llama", "--prompt", "x", "--backend", "x"
    )
    assert result.status == 2 and "'x' is not one of auto, mlx, torch" in result.err


def test_generate_tells_what_it_chose_and_why(command):
    arguments = ("engine", "generate", "--model", "tiny-llama", "--prompt", "x", "--max-tokens", 3)
    by_auto, asked = command(*arguments), command(*arguments, "--backend", "mlx")
    assert by_auto.out == asked.out
    assert "there is no parity certificate" in by_auto.err
    assert by_auto.err.splitlines()[-1].startswith("backend=torch device=")
    assert asked.err.splitlines()[0] == "backend: mlx, asked for"
    assert asked.err.splitlines()[-1].startswith("backend=mlx device=")


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_mlx_runs_without_loading_torch(backend):
    """With torch as the control."""
    code = (
        "import sys\nfrom engine.cli import app\nfrom engine.console import run\n"
        "arguments = ['--model', 'tiny-llama', '--prompt', 'x', '--max-tokens', '2']\n"
        f"assert run(app, 'engine', ['generate', *arguments, '--backend', {backend!r}]) == 0\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert (done.stdout.splitlines()[-1] == "set()") == (backend == "mlx")


def test_the_command_line_pins_tf32_off():
    """Certificates are of float32 that is float32; what the user says stands."""
    code = (
        "import os\nfrom engine.cli import app\nfrom engine.console import run\n"
        "run(app, 'engine', ['gpu-info'])\nprint(os.environ['MLX_ENABLE_TF32'])"
    )
    environ = {key: value for key, value in os.environ.items() if key != "MLX_ENABLE_TF32"}
    for given, expected in (({}, "0"), ({"MLX_ENABLE_TF32": "1"}, "1")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, cwd=ROOT, check=True, env=environ | given,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == expected
