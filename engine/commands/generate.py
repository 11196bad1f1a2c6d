"""`engine generate`: a prompt goes on, as it would for a user of the library."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..options import ModelOption, Revision


def generate(
    model: ModelOption,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="At most so many.")] = 100,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or gpu; default MLX's own.")] = None,
    revision: Revision = None,
) -> None:
    """Continue a prompt greedily, streaming the text; figures go to stderr."""
    from ..errors import InvalidPrompt
    from ..generate import Timing
    from ..generate import generate as tokens
    from ..model import load
    from ..runtime import peak_memory, use_device

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


def _rate(tokens_per_second: float | None) -> str:
    return "too few to time" if tokens_per_second is None else f"{tokens_per_second:.1f} tokens/s"
