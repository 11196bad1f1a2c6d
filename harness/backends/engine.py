"""Our engine as a side: the decoder that serves users, observed through its own taps.

`engine:steps` is the same engine fed token by token: what is judged then at every site is the
compiled step that decoding runs, not the pass over a whole sequence. `engine:kv-bits=8` keeps keys
and values packed, `kv-group-size=32` beside it in groups of 32: the checks of parity are asked of
the same engine with plain caches, since the loss is wanted; what packing does is asked apart, in
checks/kv_cache.py and kv_loss.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from engine import kv
from engine.architectures import supported
from engine.cache import Cache, make_cache
from engine.decoder import Decoder
from engine.files import ModelFiles
from engine.generate import generate
from engine.layers import feeding
from engine.layers.packed import pack
from engine.layers.ranked import unshared, whole_tap
from engine.model import DTYPES
from engine.model import load as load_model
from engine.ranks import Ranks
from engine.runtime import use_device
from engine.weights.arrange import arrange

from ..errors import BadOption
from ..tokenizers.sides import Side, engine_side
from ..types import CONTEXT, KEY, LOGITS, QUERY, Site, TokenFacts
from . import Backend, Observe, Request
from ._code import code_of
from ._kept import Kept, Watched
from ._mlx import (
    Gathered,
    as_mlx,
    columns_of,
    in_chunks,
    left_padded,
    packing_of,
    to_numpy,
    unpadded,
    weights_of,
    without_leaf,
)
from ._mlx_streamed import StreamedMLX


def load(request: Request) -> Backend:
    wishes = _wishes(request.argument)
    if request.ranks > 1:
        if wishes.keys() - {"steps"}:
            raise BadOption(f"engine:{request.argument}: packed caches are judged on one rank")
        from ._ranked import RankedEngine

        return RankedEngine(request)
    device = use_device(request.device)
    return EngineBackend(request.files, request.dtype, device, **wishes)


def load_streamed(request: Request) -> StreamedMLX:
    if request.argument:
        raise BadOption(f"engine:{request.argument}: only engine itself can be streamed")
    device = use_device(request.device)
    return StreamedMLX(request.files, lambda: EngineBackend(request.files, request.dtype, device))


def _wishes(argument: str) -> dict[str, Any]:
    """What follows the colon, `steps,kv-bits=8` or part of it. Raises BadOption."""
    found: dict[str, Any] = {}
    for wish in argument.split(",") if argument else ():
        name, _, value = wish.partition("=")
        if wish == "steps":
            found["steps"] = True
        elif name in ("kv-bits", "kv-group-size") and value.isdecimal():
            found[name.replace("-", "_")] = int(value)
        else:
            raise BadOption(
                f"engine:{argument}: {wish!r} is none of steps, kv-bits=8 and kv-group-size=64, "
                "which stand with commas between them"
            )
    return found


def families() -> frozenset[str]:
    """The model types it has."""
    return frozenset(supported())


class EngineBackend:
    """`engine.load(model)` at one dtype; one of several `ranks` shows what is whole."""

    name = "engine"
    sums = "mlx"
    limits: Mapping[str, str] = {}

    def __init__(
        self,
        files: ModelFiles,
        dtype: str,
        device: str,
        ranks: Ranks | None = None,
        steps: bool = False,
        kv_bits: int | None = None,
        kv_group_size: int | None = None,
    ) -> None:
        self.dtype, self.device, self._ranks, self._steps = dtype, device, ranks, steps
        self.model = load_model(files, dtype=dtype, ranks=ranks)
        self.packing = kv.packing_of(self.model.spec, kv_bits, kv_group_size)
        self._fused = [name for name in self.model.spec.names if len(name.targets) > 1]
        self._sources = {
            target: name.source
            for name in self.model.spec.names
            for target in name.targets
            if len(name.targets) == 1
        }

    @property
    def blocks(self) -> int:
        return len(self.model.spec.blocks)

    def path_of(self, site: Site) -> str:
        """The path in the checkpoint of the module that makes the value at a site."""
        head = "head" if site.kind == "logits" and not self.model.spec.tied_head else "embed"
        return f"{self._sources[head]}.weight"

    def forward(
        self,
        tokens: Sequence[int],
        observe: Observe | None = None,
        *,
        feed: Mapping[Site, np.ndarray] | None = None,
        inside: int | None = None,
        chunks: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See `Backend.forward`."""
        decoder, ids = self.model.decoder, mx.array([list(tokens)])
        if chunks is not None:
            cache = make_cache(decoder.spec)
            logits = in_chunks(lambda x: decoder(x, cache, length=len(tokens)), ids, chunks)
            return to_numpy(logits)[0]
        if self._steps:
            return self._by_steps(ids, observe, feed or {}, inside)
        gathered = Gathered(len(tokens), feed)
        return gathered.tell(observe, self.graph(ids, gathered, inside))

    def _by_steps(
        self,
        ids: mx.array,
        observe: Observe | None,
        feed: Mapping[Site, np.ndarray],
        inside: int | None,
    ) -> np.ndarray:
        """`forward`, one token (1, 1) at a time."""
        cache, length = make_cache(self.model.spec), ids.shape[1]
        seen: dict[Site, list[np.ndarray]] = {}
        for t in range(length):
            fed = {site: array[t : t + 1] for site, array in feed.items()}
            gathered = Gathered(1, fed)
            logits = self.graph(ids[:, t : t + 1], gathered, inside, cache, length)
            gathered.tell(lambda site, row: seen.setdefault(site, []).append(row), logits)
        found = {site: np.concatenate(rows) for site, rows in seen.items()}
        if observe is not None:
            for site, array in found.items():
                observe(site, array)
        return found[LOGITS]

    def graph(
        self,
        ids: mx.array,
        gathered: Gathered,
        inside: int | None,
        cache: Sequence[Cache] | None = None,
        length: int | None = None,
    ) -> mx.array:
        """Logits (1, T, V) of ids (1, T), not evaluated; `gathered` sees the sites."""
        parts: dict[str, mx.array] = {}  # of fused modules

        def tap(name: str, value: mx.array) -> mx.array:
            kind, _, rest = name.partition(".")
            index, _, part = rest.partition(".")
            if kind == "embed":
                return gathered.see(self._site("embedding", None, name), value)
            if kind == "norm":
                return gathered.see(self._site("norm", None, name), value)
            if kind != "blocks":
                return value
            block = int(index)
            if not part:
                return gathered.see(self._site("block", block, name), value)
            leaf = part.rpartition(".")[2]
            if leaf in ("router", "experts"):
                return gathered.see(Site(leaf, block), value)
            if block != inside:
                return value
            if value.ndim == 4:  # (1, H, T, D), told as (1, T, H, D)
                value = value.transpose(0, 2, 1, 3)
                value = self._see_inside(gathered, block, part, value, parts)
                return value.transpose(0, 2, 1, 3)
            return self._see_inside(gathered, block, part, value, parts)

        watching = feeding(tap) if gathered.feeds else tap
        share, ranks = self.model.share, self._ranks
        if share is not None and ranks is not None:
            watching = whole_tap(watching, share, ranks, inside)
        return self.model.decoder(ids, cache, length=length, tap=watching)

    def packed(self, tokens: Sequence[int]) -> tuple[np.ndarray, list[Kept]]:
        """Logits (T, V) with keys and values packed, and what came back of those in each block."""
        assert self.packing is not None
        windows = [block.attention.window for block in self.model.spec.blocks]
        caches = [Watched(window, self.packing) for window in windows]
        sizes = [1] * len(tokens) if self._steps else [len(tokens)]
        ids = mx.array([list(tokens)])
        logits = in_chunks(lambda x: self.model.decoder(x, caches, length=len(tokens)), ids, sizes)
        return to_numpy(logits)[0], [kept for i, c in enumerate(caches) for kept in c.kept(i)]

    def batch(
        self, sequences: Sequence[Sequence[int]], chunks: Sequence[int] | None = None
    ) -> list[np.ndarray] | None:
        ids, padding = left_padded(sequences)
        cache = make_cache(self.model.spec, padding)
        logits = in_chunks(lambda x: self.model.decoder(x, cache), ids, chunks or (ids.shape[1],))
        return unpadded(logits, padding)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        return list(generate(self.model.decoder, prompt, count))

    def weights(self) -> Mapping[str, Any]:
        plain, found = self._plain, weights_of(self._whole_decoder(), self.dtype)
        # Matrices of experts are parameters where they are plain, modules where they are packed.
        return {k if k in plain else k.removesuffix(".weight"): v for k, v in found.items()}

    def _whole_decoder(self) -> Decoder:
        """The decoder, or one that has what all ranks hold."""
        model, ranks = self.model, self._ranks
        if ranks is None or model.share is None:
            return model.decoder
        modules = {unshared(path): m for path, m in model.decoder.named_modules()}
        packed = {path: how for path, module in modules.items() if (how := packing_of(module))}
        whole, found = Decoder(model.spec), {}
        pack(whole, packed, DTYPES[self.dtype])
        held: dict[str, mx.array] = dict(tree_flatten(model.decoder.parameters()))
        for path, array in held.items():
            path = unshared(path)
            part = model.share.parameters.get(path)
            found[path] = array if part is None else ranks.total(part.addend(array))
        whole.update(tree_unflatten(list(found.items())))
        return whole

    def checkpoint(self) -> None:
        return None

    def expected_weights(self, reference: Mapping[str, Any]) -> Mapping[str, Any]:
        tensors = {name: as_mlx(value) for name, value in reference.items()}
        return arrange(tensors, self.model.spec, self._plain, "the reference")

    @cached_property
    def _plain(self) -> dict[str, tuple[int, ...]]:
        """Parameters of the same decoder with no matrix packed."""
        return Decoder(self.model.spec).shapes()

    def tokens(self, texts: Sequence[str]) -> TokenFacts:
        tokenizer = self.model.tokenizer
        return TokenFacts(
            ids={text: tuple(tokenizer.encode(text)) for text in texts},
            bos_id=tokenizer.bos_id,
            eos_ids=tuple(sorted(tokenizer.eos_ids)),
            max_id=tokenizer.max_id,
            rows=self.model.spec.vocab,
        )

    def side(self) -> Side:
        """The tokenizer, to be asked anything."""
        return engine_side(self.model.tokenizer)

    def locate(self, site: Site) -> str | None:
        """The code of the deepest module around a site that is the engine's own."""
        kinds = [type(module) for module in self._around(site)]
        own = [kind for kind in kinds if not kind.__module__.startswith("mlx.")]
        return code_of(own[-1].__call__, own[-1].__name__)

    def module_at(self, site: Site) -> Any:
        """The module whose parameters make the value at a site."""
        return self._around(site)[-1]

    def _around(self, site: Site) -> list[Any]:
        """The modules a site is in, outermost first."""
        decoder: Any = self.model.decoder
        if site.block is None:
            head = "head" if "head" in decoder else "embed"
            return [decoder, decoder[{"embedding": "embed", "logits": head}.get(site.kind, "norm")]]
        found = [decoder, decoder.blocks[site.block]]
        part = without_leaf(site.part)
        targets = [n.targets for n in self.model.spec.names if part and _part(n.source) == part]
        for step in _part(targets[0][0]).split(".") if targets else ():
            found.append(found[-1][step])
        # A source that is split between several of our modules is the work of what holds them.
        return found[:-1] if targets and len(targets[0]) > 1 else found

    def _site(self, kind: str, block: int | None, name: str) -> Site:
        pattern = name if block is None else "blocks.{i}"
        return Site(kind, block, "", self._sources.get(pattern, name).replace("{i}", str(block)))

    def _see_inside(
        self,
        gathered: Gathered,
        block: int,
        part: str,
        value: mx.array,
        parts: dict[str, mx.array],
    ) -> mx.array:
        pattern = f"blocks.{{i}}.{part}"
        owner, _, leaf = pattern.rpartition(".")
        if leaf in (QUERY, KEY, CONTEXT):
            return gathered.see(_module_site(f"{self._sources[owner]}.{leaf}", block), value)
        if pattern in self._sources:
            return gathered.see(_module_site(self._sources[pattern], block), value)
        for name in self._fused:
            if pattern in name.targets:
                parts[pattern] = value
                columns = columns_of(name.at(block), self._plain)
                site = _module_site(name.source, block)
                if all(target in parts for target in name.targets):
                    joined = mx.concatenate([parts[t] for t in name.targets], axis=-1)
                    order = mx.array(np.argsort(np.concatenate(columns)))
                    gathered.see(site, joined[..., order])
                return gathered.part(site, value, columns[name.targets.index(pattern)])
        return value


def _module_site(source: str, block: int) -> Site:
    return Site("module", block, _part(source), source.replace("{i}", str(block)))


def _part(path: str) -> str:
    """What follows the block in a path with `{i}`."""
    return path.partition("{i}.")[2]
