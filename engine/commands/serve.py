"""`engine serve`: one model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import ModelOption, Revision


def serve(
    model: ModelOption,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's "
                                           "own should have --api-key-file.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any that is free.")] = 11435,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file of keys, one a line; a request shows one of them.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A site whose pages may ask; may be given repeatedly.")
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, max=1024, help="Requests computed at once.")] = 8,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; more get 429.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one answer.")] = 4096,
    prefix_cache: Annotated[
        int, typer.Option(min=0, help="MB for beginnings of prompts; 0 keeps none.")
    ] = 512,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Same bits whatever else runs beside.")
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or gpu; default MLX's own.")] = None,
    revision: Revision = None,
) -> None:
    """Serve a model: OpenAI's, Anthropic's and shimmy's protocols, and a page to chat."""
    from ..serving.settings import Settings, read_keys

    settings = Settings(
        host=host,
        port=port,
        keys=read_keys(api_key_file) if api_key_file else (),
        origins=tuple(allow_origin or ()),
        max_tokens=max_tokens,
    )
    from ..serving.run import listen, serve as run
    from ..serving.service import Service, served_name

    bound = listen(settings)
    from ..model import load
    from ..runtime import use_device
    from ..serving.worker import Worker

    use_device(device)
    loaded = load(model, dtype=dtype, revision=revision)
    worker = Worker(
        loaded,
        max_rows=max_rows,
        queue=queue,
        prefix_cache_bytes=prefix_cache * 1_000_000,
        deterministic=deterministic,
    )
    service = Service(
        served_name(model),
        worker,
        loaded.tokenizer,
        loaded.spec.vocab,
        settings,
        aliases=frozenset({model}),
    )
    run(service, bound)
