"""`engine serve`: one model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import Backend, Device, Dtype, KvBits, KvGroupSize, ModelOption, Revision
from ._ranks import RanksOption, ranked


def serve(
    model: ModelOption,
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default only this machine can ask.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any that is free.")] = 11435,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file of keys, one a line; a request shows one of them.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A site whose pages may ask; may be given again.")
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, max=1024, help="Requests computed at once.")] = 8,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more get 429.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one answer.")] = 4096,
    prefix_cache: Annotated[
        int, typer.Option(min=0, help="MB for beginnings of prompts; 0 keeps none.")
    ] = 1024,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Same bits whatever runs beside; slower.")
    ] = False,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
    kv_bits: KvBits = None,
    kv_group_size: KvGroupSize = None,
    revision: Revision = None,
    ranks: RanksOption = None,
) -> None:
    """Serve a model by the protocols of OpenAI, Anthropic and shimmy, and a page to chat."""
    from ..backend import MLX, choose_backend, open_model
    from ..errors import BackendUnavailable, RankLost
    from ..files import find_model
    from ..serving.run import listen
    from ..serving.run import serve as answer
    from ..serving.service import Service, served_name
    from ..serving.settings import Settings, read_keys
    from ._output import tell, tell_packing

    keys = read_keys(api_key_file) if api_key_file else ()
    settings = Settings(host, port, keys, tuple(allow_origin or ()), max_tokens)
    with ranked(ranks) as group:
        bound = listen(settings) if group is None or group.rank == 0 else None
        files = find_model(model, revision)
        choice = choose_backend(files, backend, device, dtype, group)
        tell(choice)
        if choice.backend == MLX:
            from ..kv import packing_of
            from ..model import load
            from ..serving.lockstep import Lockstep
            from ..serving.worker import Worker

            loaded = load(files, dtype=dtype, ranks=group)
            packing = packing_of(loaded.spec, kv_bits, kv_group_size)
            tell_packing(packing)
            tokenizer, vocab = loaded.tokenizer, loaded.spec.vocab
            worker = Worker(
                loaded,
                max_rows=max_rows,
                queue=queue,
                prefix_cache_bytes=prefix_cache * 1_000_000,
                deterministic=deterministic,
                packing=packing,
                lockstep=None if group is None else Lockstep(group, loaded),
            )
        else:
            from ..serving.single import SingleWorker

            if deterministic:
                raise BackendUnavailable(
                    "--deterministic is MLX's: add --backend mlx, or leave it out"
                )
            running = open_model(
                files, choice.backend, dtype, device, kv_bits=kv_bits, kv_group_size=kv_group_size
            )
            tokenizer, vocab = running.tokenizer(), running.vocab
            worker = SingleWorker(running, tokenizer, queue=queue)
        service = Service(
            served_name(model),
            worker,
            tokenizer,
            vocab,
            settings,
            aliases=frozenset({model}),
            details={
                "size_bytes": sum(path.stat().st_size for path in files.weights),
                "model_type": files.config.get("model_type"),
            },
        )
        if bound is None:  # the worker, which is MLX's, does what that of rank 0 does
            worker.join()  # type: ignore[union-attr]
        else:
            answer(service, bound)
        if group is not None and (dead := worker.status.dead):
            raise RankLost(dead)
