"""What would go wrong with a model here, found by loading it once and running one token.

Findings are data; `engine probe` prints them. An error becomes a finding and the rest is asked all
the same, so that one run names what can be known.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from .backend import MLX, TORCH, choose_backend, open_model
from .errors import EngineError
from .files import ModelFiles, find_model

STOPS, NOTE = "stops", "note"
ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
TEXT = "def main(): return 1"
HELLO = ({"role": "user", "content": "Hello"},)


@dataclass(frozen=True)
class Finding:
    """`kind` is STOPS, what keeps the model from being run, or NOTE; `about` one word."""

    kind: str
    about: str
    text: str


# Findings, and at the end the rows of the embedding, where the model could be loaded.
Loading = Generator[Finding, None, int | None]


def probe(
    model: str,
    backend: str = "auto",
    dtype: str | None = None,
    device: str | None = None,
    revision: str | None = None,
) -> Iterator[Finding]:
    """Yield what is found, as it is found; a model without STOPS is ready."""
    try:
        files = find_model(model, revision)
    except EngineError as error:
        yield Finding(STOPS, "files", str(error))
        return
    chosen = MLX
    try:
        choice = choose_backend(files, backend, device, dtype)
    except EngineError as error:
        yield Finding(STOPS, "backend", str(error))
    else:
        chosen = choice.backend
        why, *details = choice.reason.splitlines()
        yield Finding(NOTE, "backend", f"{chosen}, {why}")
        yield from (Finding(NOTE, "backend", line) for line in details)
    short, rows = list(_memory(files, dtype)), None
    yield from short
    if not short:
        rows = yield from (_torch if chosen == TORCH else _mlx)(files, dtype, device)
    yield from _tokenizer(files, rows)


def _memory(files: ModelFiles, dtype: str | None) -> Iterator[Finding]:
    from .machine import available_memory, size
    from .weights import shapes_of

    try:
        numbers = sum(math.prod(shape) for shape in shapes_of(files.weights).values())
    except EngineError:  # which loading them will explain
        return
    stored = sum(path.stat().st_size for path in files.weights)
    packed = "quantization" in files.config or "quantization_config" in files.config
    needed = stored if dtype is None or packed else numbers * ITEM.get(dtype, 4)
    free = available_memory()
    if needed > free:
        yield Finding(
            STOPS,
            "memory",
            f"the weights take {size(needed)}, and {size(free)} are free: free some, or quantise "
            "the model with engine convert --quantize",
        )


def _mlx(files: ModelFiles, dtype: str | None, device: str | None) -> Loading:
    """Load with the engine, and look at the logits of a few tokens."""
    import mlx.core as mx

    from .cache import make_cache
    from .generate import prefill
    from .model import load

    try:
        loaded = load(files, dtype=dtype)
        rows = loaded.spec.vocab
        logits = prefill(loaded.decoder, [*range(min(8, rows))], make_cache(loaded.spec))
    except EngineError as error:
        yield Finding(STOPS, "model", str(error))
        return None
    if not mx.isfinite(logits).all().item():
        yield Finding(
            STOPS,
            "logits",
            "they are not finite numbers: try --dtype float32; where that does not help, the "
            "weights are damaged",
        )
    return rows


def _torch(files: ModelFiles, dtype: str | None, device: str | None) -> Loading:
    """Load with transformers, and have it give one token."""
    try:
        running = open_model(files, TORCH, dtype, device)
        list(running.generate([0], 1))
    except EngineError as error:
        yield Finding(STOPS, "model", str(error))
        return None
    return running.vocab


def _tokenizer(files: ModelFiles, rows: int | None) -> Iterator[Finding]:
    """Whether the tokenizer is this model's, of `rows` of embedding where that is known."""
    from .tokenizer import check_fits, load_tokenizer

    try:
        tokenizer = load_tokenizer(files)
        if rows is not None:
            check_fits(tokenizer.max_id, rows, files.folder)
        back = tokenizer.decode(tokenizer.prompt(TEXT), skip_special=True)
    except EngineError as error:
        yield Finding(STOPS, "tokenizer", str(error))
        return
    if back.strip() != TEXT:
        yield Finding(NOTE, "tokenizer", f"gives {back!r} back for {TEXT!r}: is it this model's?")
    if not tokenizer.eos_ids:
        yield Finding(
            NOTE, "tokenizer", "no file names an end token: answers go on to --max-tokens"
        )
    try:
        tokenizer.chat(HELLO)
    except EngineError as error:
        yield Finding(NOTE, "chat", str(error))
