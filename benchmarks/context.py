"""Memory of the caches and time per token against the length of the context.

    python benchmarks/context.py [--shape tiny] [--blocks 4 16] [--model tiny-gemma3]
        [--contexts 256 1024 ...] [--bits 8 4] [--dtype bfloat16] [--tokens 24] [--runs 3]
        [--device gpu] [--plot FILE.svg]

A shape is a llama of random weights (`sides.py`), without windows, with plain caches and with
packed ones; a model runs as it is, and packed where its heads allow. Caches are filled with random
keys and values, a chunk at a time as a prompt is: what they hold takes no part in the time. Then
tokens are decoded greedily. All variants take turns at a length, each in caches of its own; printed
are the medians over all tokens of all runs, with those of the fastest and the slowest run. The
peak is what MLX held above the weights while it decoded.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from sides import SHAPES, made

from engine.cache import Cache, make_cache
from engine.errors import InvalidRequest
from engine.generate import PREFILL_CHUNK
from engine.kv import packing_of
from engine.model import Model, load
from engine.runtime import use_device
from engine.spec import LatentAttentionSpec
from engine.weights.quantised import Packing

CONTEXTS = (256, 1024, 4096, 16384, 32768)


@dataclass(frozen=True)
class Variant:
    """A model with one kind of cache."""

    name: str
    model: Model
    packing: Packing | None


@dataclass(frozen=True)
class Figure:
    """At one length: bytes of the caches, bytes above the weights, seconds a token of each run."""

    context: int
    cache: int
    peak: int
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def variants(name: str, model: Model, bits: Sequence[int]) -> list[Variant]:
    """A model with plain caches, and with packed ones where its heads allow."""
    found = [Variant(name, model, None)]
    for count in bits:
        try:
            packing = packing_of(model.spec, count)
        except InvalidRequest as error:
            print(f"{name}: {error}")
            break
        found.append(Variant(f"{name}, {count} bits", model, packing))
    return found


def filled(variant: Variant, context: int) -> list[Cache]:
    """Caches of so many tokens."""
    spec = variant.model.spec
    dtype = variant.model.decoder.blocks[0].attn.o.weight.dtype
    caches = make_cache(spec, packing=variant.packing)
    for start in range(0, context, PREFILL_CHUNK):
        count = min(PREFILL_CHUNK, context - start)
        for block, cache in zip(spec.blocks, caches, strict=True):
            attention = block.attention
            if isinstance(attention, LatentAttentionSpec):
                heads, widths = 1, (attention.latent_rank, attention.rope_dim)
            else:
                heads, widths = attention.kv_heads, (attention.head_dim,) * 2
            cache.update(*(mx.random.normal((1, heads, count, width), dtype) for width in widths))
            cache.compact()
            mx.eval(cache.arrays)
    return caches


def run(variant: Variant, context: int, tokens: int) -> tuple[int, int, float]:
    """Bytes of the caches after decoding, bytes above the weights, median seconds a token."""
    decoder, caches = variant.model.decoder, filled(variant, context)
    token = mx.array([[1]])
    held = sum(cache.nbytes for cache in caches)
    mx.clear_cache()
    mx.eval(decoder(token, caches))  # compiles, makes room
    mx.reset_peak_memory()
    weights = mx.get_active_memory() - held
    taken = []
    for _ in range(tokens):
        begin = time.perf_counter()
        token = mx.argmax(decoder(token, caches)[:, -1:], axis=-1)
        mx.eval(token)
        taken.append(time.perf_counter() - begin)
    size = sum(cache.nbytes for cache in caches)
    return size, mx.get_peak_memory() - weights, statistics.median(taken)


def measure(
    chosen: Sequence[Variant], contexts: Sequence[int], tokens: int, runs: int
) -> dict[str, list[Figure]]:
    """Figures of every variant, in order of length."""
    found: dict[str, list[Figure]] = {variant.name: [] for variant in chosen}
    for context in contexts:
        taken: dict[str, list[tuple[int, int, float]]] = {}
        for _ in range(runs):
            for variant in chosen:
                taken.setdefault(variant.name, []).append(run(variant, context, tokens))
        for name, each in taken.items():
            sizes, peaks, seconds = zip(*each, strict=True)
            figure = Figure(context, max(sizes), max(peaks), seconds)
            found[name].append(figure)
            print(
                f"{context:7} {name:28} caches {figure.cache / 1e6:9.2f} MB, "
                f"peak {figure.peak / 1e6:9.2f} MB, {1e3 * figure.median:8.2f} ms a token "
                f"({1e3 * min(seconds):.2f} to {1e3 * max(seconds):.2f})",
                flush=True,
            )
    return found


def plot(found: dict[str, list[Figure]], out: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "context"  # the same file of the same figures
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, figures in found.items():
        lengths = [each.context for each in figures]
        left.plot(lengths, [each.cache / 1e6 for each in figures], "o-", label=name)
        right.plot(lengths, [1e3 * each.median for each in figures], "o-", label=name)
    for axes, label in ((left, "MB of keys and values"), (right, "ms a token")):
        axes.set(xlabel="tokens of context", ylabel=label, xscale="log", yscale="log")
        axes.set_xticks(lengths, [str(length) for length in lengths], minor=False)
        axes.minorticks_off()
    left.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", default=[])
    parser.add_argument("--blocks", type=int, nargs="+", help="shapes of other depths")
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 4])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    device = use_device(options.device)
    chosen: list[Variant] = []
    for shape in options.shape or ([] if options.model else ["tiny"]):
        width, blocks, *rest = SHAPES[shape]
        for depth in options.blocks or [blocks]:
            name = f"{shape}, {depth} blocks" if options.blocks else shape
            SHAPES[name] = (width, depth, *rest)
            chosen += variants(f"llama {name}", made(name, options.dtype).ours, options.bits)
    for name in options.model:
        chosen += variants(name, load(name, dtype=options.dtype), options.bits)
    print(f"{device}, {options.dtype}, {options.runs} runs of {options.tokens} tokens")
    found = measure(chosen, options.contexts, options.tokens, options.runs)
    if options.plot:
        plot(found, options.plot, f"Decoding with a long context, {options.dtype} on {device}")


if __name__ == "__main__":
    main()
