"""Memory and time of a streamed comparison of a 7B-shaped llama, against its depth.

    python benchmarks/streaming.py docs/streaming.svg --folder /tmp/llama-7b

writes random models of 8, 16 and 32 layers (14 GB of bfloat16 in the deepest, removed afterwards),
compares engine and transformers on one probe of 16 tokens at float32, each in a process of its own,
and plots the largest resident size and the time. `--check` is for a few small layers in the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
DEPTHS = (8, 16, 32)
TOKENS = 16
RUN = """
import json, sys, time
import harness
begin = time.perf_counter()
verdict = harness.compare(
    sys.argv[1], prompts=sys.argv[2], kinds=["prompt"], stream=True,
    notice=lambda text: print(text, file=sys.stderr),
)
print(json.dumps({
    "verdict": verdict.verdict,
    "peak": verdict.peak_memory_bytes,
    "seconds": time.perf_counter() - begin,
    "parts": verdict.seconds,
    "worst": max(site.ratio for site in verdict.sites),
    "blocks": len({site.site.block for site in verdict.sites} - {None}),
}))
"""


def write_model(folder: Path, layers: int, shape: dict = LLAMA_7B, seed: int = 0) -> Path:
    """A random llama in bfloat16, a shard per layer, so that it is never in memory either."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    width, inner, rows = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    head = width // shape["num_attention_heads"]
    keys = head * shape["num_key_value_heads"]
    generator = torch.Generator().manual_seed(seed)
    index: dict[str, str] = {}

    def save(name: str, tensors: dict[str, tuple[int, ...]]) -> None:
        made = {}
        for key, size in tensors.items():
            tensor = torch.empty(size, dtype=torch.bfloat16)
            if len(size) == 1:
                tensor.uniform_(0.6, 1.4, generator=generator)
            else:
                tensor.normal_(0, 1 / size[1] ** 0.5, generator=generator)
            made[key], index[key] = tensor, name
        save_file(made, folder / name, {"format": "pt"})

    for i in range(layers):
        at = f"model.layers.{i}"
        save(
            f"model-{i:05}.safetensors",
            {
                f"{at}.input_layernorm.weight": (width,),
                f"{at}.self_attn.q_proj.weight": (width, width),
                f"{at}.self_attn.k_proj.weight": (keys, width),
                f"{at}.self_attn.v_proj.weight": (keys, width),
                f"{at}.self_attn.o_proj.weight": (width, width),
                f"{at}.post_attention_layernorm.weight": (width,),
                f"{at}.mlp.gate_proj.weight": (inner, width),
                f"{at}.mlp.up_proj.weight": (inner, width),
                f"{at}.mlp.down_proj.weight": (width, inner),
            },
        )
    ends = {"model.embed_tokens.weight": (rows, width), "lm_head.weight": (rows, width)}
    save("model-ends.safetensors", {**ends, "model.norm.weight": (width,)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps({**shape, "num_hidden_layers": layers}))
    return folder


def measure(folder: Path, layers: int, shape: dict = LLAMA_7B) -> dict:
    """Compare one model in a process of its own; what RUN prints, with the depth."""
    prompts = folder / "prompts.txt"
    ids = np.random.default_rng(0).integers(0, shape["vocab_size"], TOKENS)
    prompts.write_text(json.dumps(ids.tolist()) + "\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), str(prompts)],
        stdout=subprocess.PIPE, text=True, check=True, env=environment,
    )  # fmt: skip
    return {"layers": layers, **json.loads(done.stdout.splitlines()[-1])}


def plot(results: list[dict], out: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    depth = [r["layers"] for r in results]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot(depth, [r["peak"] / 1e9 for r in results], "o-", label="largest resident size")
    left.plot(depth, [r["stored"] / 1e9 for r in results], "s--", label="weights on disk, bfloat16")
    left.axhline(6, color="grey", linewidth=0.8, label="6 GB")
    left.set(xlabel="layers", ylabel="GB", ylim=(0, None), xticks=depth)
    left.legend(frameon=False)
    right.plot(depth, [r["seconds"] / 60 for r in results], "o-")
    right.set(
        xlabel="layers", ylabel="minutes, 2 cores", ylim=(0, None), xlim=(0, None), xticks=depth
    )
    figure.suptitle("A streamed float32 comparison of a llama of 7B shape, 16 tokens", fontsize=10)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the plot, .svg")
    parser.add_argument("--folder", type=Path, required=True, help="where the models are written")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    options = parser.parse_args()
    results = []
    for layers in options.depths:
        folder = options.folder / str(layers)
        begin = time.perf_counter()
        write_model(folder, layers)
        print(f"{layers} layers written in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
        try:
            result = measure(folder, layers)
            result["stored"] = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        finally:
            shutil.rmtree(folder)
        results.append(result)
        print(json.dumps(result), flush=True)
    plot(results, options.out)


if __name__ == "__main__":
    main()
