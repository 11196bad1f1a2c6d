"""`engine generate` and `engine convert`. Heavy imports happen in the command that needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Run language models on Apple MLX.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[
    str,
    typer.Option("--model", help="Folder, .npz or .safetensors file, golden name or Hub id."),
]
Revision = Annotated[str | None, typer.Option(help="Revision of a Hub id.")]


@app.command()
def generate(
    model: ModelOption,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="At most so many.")] = 100,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or gpu; default MLX's own.")] = None,
    revision: Revision = None,
) -> None:
    """Continue a prompt greedily, streaming the text; figures go to stderr."""
    from .errors import InvalidPrompt
    from .generate import Timing
    from .generate import generate as tokens
    from .model import load
    from .runtime import peak_memory, use_device

    if not prompt:
        raise InvalidPrompt("--prompt is empty: give a text to continue")
    used = use_device(device)
    loaded = load(model, dtype=dtype, revision=revision)
    tokenizer = loaded.tokenizer
    timing, text = Timing(), tokenizer.stream()
    for token in tokens(
        loaded.decoder,
        tokenizer.prompt(prompt),
        max_tokens,
        stop=tokenizer.eos_ids,
        timing=timing,
    ):
        if token not in tokenizer.eos_ids:
            print(text.push(token), end="", flush=True)
    print(text.finish(), flush=True)
    print(f"prompt: {timing.prompt_tokens} tokens, {_rate(timing.prompt_rate)}", file=sys.stderr)
    print(f"decode: {timing.tokens} tokens, {_rate(timing.decode_rate)}", file=sys.stderr)
    print(f"peak memory: {peak_memory() / 2**20:.1f} MiB", file=sys.stderr)
    print(f"backend=mlx device={used}", file=sys.stderr)


@app.command()
def convert(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="A .npz or .safetensors file, or a folder.")],
    quantize: Annotated[bool, typer.Option("--quantize", help="Pack as mlx-lm does.")] = False,
    bits: Annotated[
        int | None, typer.Option(help="Of a number; default the mode's, 4 or 8.")
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(help="Numbers that share a scale; default the mode's.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="affine, mxfp4, mxfp8 or nvfp4.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    revision: Revision = None,
) -> None:
    """Write a model's weights in the other format, or quantised; else names and values stay."""
    from .convert import convert as write
    from .errors import EngineError

    asked = {"bits": bits, "group_size": group_size, "mode": mode}
    how = None
    if quantize:
        from .weights.quantised import packing

        how = packing(asked, "--quantize")
    elif given := [key for key, value in asked.items() if value is not None]:
        raise EngineError(f"--{given[0].replace('_', '-')} goes with --quantize: add it")
    print(write(model, out, revision=revision, quantise=how, force=force))


def _rate(tokens_per_second: float | None) -> str:
    return "too few to time" if tokens_per_second is None else f"{tokens_per_second:.1f} tokens/s"
