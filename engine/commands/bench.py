"""`engine bench`: how fast a model runs here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ..console import remark
from ..options import AsJson, Backend, Device, Dtype, KvBits, KvGroupSize, ModelOption, Revision
from ._ranks import RanksOption, ranked


def bench(
    model: ModelOption,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Random tokens to begin with.")] = 512,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 128,
    runs: Annotated[int, typer.Option(min=1, help="Runs that count, after one that does not.")] = 5,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
    kv_bits: KvBits = None,
    kv_group_size: KvGroupSize = None,
    json: AsJson = False,
    revision: Revision = None,
    ranks: RanksOption = None,
) -> None:
    """Prefill and decode speed, time to first token, peak memory: median, lowest and highest."""
    from ..backend import choose_backend, open_model
    from ..bench import bench as measure
    from ..files import find_model
    from ..machine import describe, size
    from ._output import print_json, rate, show, table, tell, tell_packing

    with ranked(ranks) as group:
        files = find_model(model, revision)
        choice = choose_backend(files, backend, device, dtype, group)
        tell(choice)
        running = open_model(files, choice.backend, dtype, device, group, kv_bits, kv_group_size)
        tell_packing(running.packing)

        def told(run, timing) -> None:
            what = f"run {run} of {runs}" if run else "warm-up"
            speeds = f"prefill {rate(timing.prompt_rate)}, decode {rate(timing.decode_rate)}"
            remark(f"{what}: {speeds}")

        figures = measure(running, prompt_tokens, tokens, runs, told)
        memory = [figures.memory] if group is None else group.bytes_each(figures.memory)
        if json:
            on = {"backend": running.backend, "device": running.device, "memory_by_rank": memory}
            machine = {key: value for key, value in describe().items() if key != "memory"}
            print_json({"model": model, **on, **asdict(figures), "machine": machine})
            return
        shown = table("", "median", "lowest", "highest", "")
        for name, spread, factor, unit in (
            ("prefill", figures.prefill, 1, "tokens/s"),
            ("decode", figures.decode, 1, "tokens/s"),
            ("time to first token", figures.first, 1000, "ms"),
        ):
            if spread is not None:
                numbers = (spread.median, spread.low, spread.high)
                shown.add_row(name, *(f"{number * factor:.1f}" for number in numbers), unit)
        show(shown)
        held = ", ".join(map(size, memory)) + (" by rank" if group is not None else "")
        print(f"{prompt_tokens} + {tokens} tokens, {runs} runs; peak memory {held}")
        remark(f"backend={running.backend} device={running.device}")
