"""Our engine as a side: the decoder that serves users, observed through its own taps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from engine.cache import make_cache
from engine.files import ModelFiles
from engine.generate import generate
from engine.model import load as load_model
from engine.runtime import use_device
from engine.weights.arrange import arrange

from ..types import Site, TokenFacts
from . import Observe, Request
from ._code import code_of
from ._mlx import Gathered, as_mlx, in_chunks, weights_of


def load(request: Request) -> EngineBackend:
    device = use_device(request.device)
    return EngineBackend(request.files, request.dtype, device)


class EngineBackend:
    """`engine.load(model)` at one dtype."""

    name = "engine"
    limits: Mapping[str, str] = {}

    def __init__(self, files: ModelFiles, dtype: str, device: str) -> None:
        self.dtype, self.device = dtype, device
        self.model = load_model(files, dtype=dtype)
        self._fused = [name for name in self.model.spec.names if len(name.targets) > 1]
        self._sources = {
            target: name.source
            for name in self.model.spec.names
            for target in name.targets
            if len(name.targets) == 1
        }

    def forward(
        self,
        tokens: Sequence[int],
        observe: Observe | None = None,
        *,
        feed: Sequence[np.ndarray] | None = None,
        inside: int | None = None,
        chunks: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See `Backend.forward`."""
        decoder = self.model.decoder
        if chunks is not None:
            cache = make_cache(decoder.spec)
            return in_chunks(lambda ids: decoder(ids, cache, length=len(tokens)), tokens, chunks)

        gathered = Gathered(len(tokens), feed)
        parts: dict[str, mx.array] = {}  # of fused modules

        def tap(name: str, value: mx.array) -> mx.array:
            kind, _, rest = name.partition(".")
            index, _, part = rest.partition(".")
            if kind == "embed":
                return gathered.boundary(self._site("embedding", None, name), value, 0)
            if kind == "norm":
                gathered.see(self._site("norm", None, name), value)
            elif kind == "blocks" and not part:
                site = self._site("block", int(index), name)
                return gathered.boundary(site, value, int(index) + 1)
            elif kind == "blocks" and inside is not None and int(index) == inside:
                self._see_inside(gathered, inside, part, value, parts)
            return value

        logits = decoder(mx.array([list(tokens)]), tap=tap)
        return gathered.tell(observe, logits)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        return list(generate(self.model.decoder, prompt, count))

    def weights(self) -> Mapping[str, Any]:
        return weights_of(self.model.decoder)

    def checkpoint(self) -> None:
        return None

    def expected_weights(self, reference: Mapping[str, Any]) -> Mapping[str, Any]:
        tensors = {name: as_mlx(value) for name, value in reference.items()}
        return arrange(tensors, self.model.spec, self.model.decoder.shapes(), "the reference")

    def tokens(self, texts: Sequence[str]) -> TokenFacts:
        tokenizer = self.model.tokenizer
        return TokenFacts(
            ids={text: tuple(tokenizer.encode(text)) for text in texts},
            bos_id=tokenizer.bos_id,
            eos_ids=tuple(sorted(tokenizer.eos_ids)),
            max_id=tokenizer.max_id,
            rows=self.model.spec.vocab,
        )

    def locate(self, site: Site) -> str | None:
        """The code of the module that computes the site, deepest one that can be told."""
        module: Any = self.model.decoder
        if site.block is not None:
            module = module.blocks[site.block]
            for name in self.model.spec.names:
                if site.part and _part(name.source) == site.part:
                    for step in _part(name.targets[0]).split("."):
                        # Leaves are mlx's own layers: their caller is the code that matters.
                        inner = module[step]
                        if type(inner).__module__.startswith("mlx."):
                            break
                        module = inner
        elif site.kind == "norm":
            module = module.norm
        return code_of(type(module).__call__, type(module).__name__)

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
    ) -> None:
        pattern = f"blocks.{{i}}.{part}"
        if pattern in self._sources:
            source = self._sources[pattern]
            gathered.see(_module_site(source, block), value)
        for name in self._fused:
            if pattern in name.targets:
                parts[pattern] = value
                if all(target in parts for target in name.targets):
                    joined = mx.concatenate([parts[t] for t in name.targets], axis=-1)
                    gathered.see(_module_site(name.source, block), joined)


def _module_site(source: str, block: int) -> Site:
    return Site("module", block, _part(source), source.replace("{i}", str(block)))


def _part(path: str) -> str:
    """What follows the block in a path with `{i}`."""
    return path.partition("{i}.")[2]
