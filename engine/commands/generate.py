"""`engine generate`: a prompt goes on, as it would for a user of the library."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..options import Backend, Device, Dtype, ModelOption, Revision


def generate(
    model: ModelOption,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="At most so many.")] = 100,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
) -> None:
    """Continue a prompt greedily, streaming the text; figures go to stderr."""
    from ..backend import choose_backend, open_model
    from ..errors import InvalidPrompt
    from ..files import find_model
    from ..generate import Timing
    from ._output import rate, tell

    if not prompt:
        raise InvalidPrompt("--prompt is empty: give a text to continue")
    files = find_model(model, revision)
    choice = choose_backend(files, backend, device, dtype)
    tell(choice)
    running = open_model(files, choice.backend, dtype, device)
    tokenizer = running.tokenizer()
    timing, text = Timing(), tokenizer.stream()
    ids = tokenizer.prompt(prompt)
    for token in running.generate(ids, max_tokens, stop=tokenizer.eos_ids, timing=timing):
        if token not in tokenizer.eos_ids:
            print(text.push(token), end="", flush=True)
    print(text.finish(), flush=True)
    print(f"prompt: {timing.prompt_tokens} tokens, {rate(timing.prompt_rate)}", file=sys.stderr)
    print(f"decode: {timing.tokens} tokens, {rate(timing.decode_rate)}", file=sys.stderr)
    print(f"peak memory: {running.peak_memory() / 2**20:.1f} MiB", file=sys.stderr)
    print(f"backend={running.backend} device={running.device}", file=sys.stderr)
