"""A transformers model that is never in memory as a whole: built empty, and filled by part."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from engine.errors import UnsupportedArchitecture, one_line
from engine.files import ModelFiles

from ..errors import ReferenceUnavailable
from ..types import LOGITS, Site, TokenFacts
from . import Observe
from ._hooks import Hooks, to_numpy
from ._lift import lifted
from ._streamed import EMBEDDING, Shards, before, block_of, row_slices, within
from ._transformers import (
    configuration,
    decoder_layers,
    import_torch,
    last_norm,
    size_of,
    threads_for,
    unpack_mxfp4,
)


class Reached(Exception):
    """The part that was asked for is done."""


class StreamedTorch:
    """The reference at one dtype, part by part; or its oracle, made of the parts of `lifts`."""

    name = "torch"
    sums = "torch"
    device = "cpu"
    limits: Mapping[str, str] = {}

    def __init__(self, files: ModelFiles, dtype: str, lifts: StreamedTorch | None = None) -> None:
        self._torch, self._transformers = import_torch()
        self._files, self.dtype, self._lifts = files, dtype, lifts
        self._shards = lifts._shards if lifts else Shards(files, "pt")
        self._context = lifted if lifts else contextlib.nullcontext
        self._rounded = getattr(self._torch, dtype)
        self._own = self._torch.float64 if lifts else self._rounded
        self._model = self._empty()
        self._path, self._layers = decoder_layers(self._model)
        self._norm = last_norm(self._model, self._path)
        self.blocks = len(self._layers)
        self._size = size_of(self._model)
        self._tables = self._find_tables()
        self._in_tuple: bool | None = None  # how a layer gives its output
        held = {name for name, _ in self._tables.values()}
        beside = [n for n in self._shards.shapes if block_of(n) is None and n not in held]
        self._fill(self._model, "", beside)

    def oracle(self) -> StreamedTorch:
        """The same weights in float64, all islands lifted."""
        return StreamedTorch(self._files, self.dtype, lifts=self)

    def tokens(self, texts: Sequence[str]) -> TokenFacts:
        from .torch import load_tokenizer, token_facts

        rows = self._shards.shapes[self._tables[EMBEDDING][0]][0]
        return token_facts(load_tokenizer(self._files), self._files, texts, rows)

    def checkpoint(self) -> None:
        """Its parameters are those of the file."""

    @contextlib.contextmanager
    def resident(self, part: Site) -> Iterator[None]:
        """See `Streamed.resident`. Tables are read row by row as they are used."""
        if part.block is None:
            yield
            return
        layer = self._layers[part.block]
        names = [name for name in self._shards.shapes if block_of(name) == part.block]
        self._fill(layer, f"{self._path}.{part.block}.", names)
        try:
            yield
        finally:
            layer.to("meta")

    def run(
        self,
        tokens: Sequence[int],
        part: Site,
        mode: str,
        fed: np.ndarray | None,
        observe: Observe,
    ) -> None:
        """See `Streamed.run`."""

        def told(site: Site, array: np.ndarray) -> None:
            if within(site, part):
                observe(site, array)
            if site == part:
                raise Reached

        torch, feed = self._torch, {} if fed is None else {before(part, self.blocks): fed}
        if fed is None:
            with self._used_rows(tokens) as ids:
                self._pass(feed, told, len(tokens), input_ids=torch.tensor([ids]))
            return
        given = torch.zeros((1, *fed.shape), dtype=self._own)  # `feed` says what it becomes
        if part != LOGITS:
            with self._skipping(range(part.block or 0)):
                self._pass(feed, told, len(tokens), inputs_embeds=given)
            return
        columns, watch = [], told
        with self._skipping(range(self.blocks)):
            for slice_set in self._head_slices():
                with slice_set:
                    out = self._pass(feed, watch, len(tokens), inputs_embeds=given)
                columns.append(to_numpy(out.logits)[0])
                watch = _nobody
        observe(LOGITS, np.concatenate(columns, axis=1))

    def _pass(
        self, feed: Mapping[Site, np.ndarray], told: Observe, length: int, **given: Any
    ) -> Any:
        hooks = Hooks(self._model, self._path, self._layers, self._norm, told, feed, None, length)
        try:
            with threads_for(self._size), self._torch.inference_mode(), self._context(), hooks:
                return self._model(**given, use_cache=False)
        except Reached:
            return None
        except Exception as error:  # a configuration that transformers builds and cannot run
            raise ReferenceUnavailable(
                f"transformers cannot run {self._files.folder} part by part: "
                f"{type(error).__name__}: {one_line(error)} (--debug shows where)"
            ) from error

    def _empty(self) -> Any:
        """The model with no weights, its buffers apart."""
        from accelerate import init_empty_weights
        from transformers import initialization

        config = copy.deepcopy(configuration(self._transformers, self._files))
        rotary = getattr(config, "rope_parameters", None) or {}
        if "dynamic" in str(rotary):
            raise UnsupportedArchitecture(
                f"{self._files.folder} has dynamic rotary scaling, whose base transformers keeps "
                "from one sequence to the next: it cannot be streamed"
            )
        config._attn_implementation = config._experts_implementation = "eager"
        mapping: Any = self._transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
        default = self._torch.get_default_dtype()
        with self._context(), init_empty_weights(), initialization.no_init_weights():
            self._torch.set_default_dtype(self._own)
            try:
                model = mapping[type(config)](config)
            finally:
                self._torch.set_default_dtype(default)
        return model.eval().requires_grad_(False)

    def _fill(self, module: Any, prefix: str, names: Sequence[str]) -> None:
        """Give parameters their values: from the checkpoint, or those of the model to be lifted."""
        if self._lifts:
            model = self._lifts._model
            source = model.get_submodule(prefix.removesuffix(".")) if prefix else model
            with self._lifts.resident(_part_of(prefix)):
                state = {
                    name: value.double() if value.is_floating_point() else value
                    for name, value in source.state_dict().items()
                    if not value.is_meta
                }
            module.load_state_dict(state, strict=False, assign=True)
            return
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        conversions: Any = get_model_conversion_mapping(self._model)
        plan = self._model._get_dtype_plan(self._rounded)
        how = LoadStateDictConfig(dtype=self._rounded, dtype_plan=plan, weight_mapping=conversions)
        convert_and_load_state_dict_in_model(
            self._model, unpack_mxfp4(self._shards.read(names)), how
        )
        empty = [name for name, value in module.named_parameters() if value.is_meta]
        tables = [f"{path}.weight" for _, path in self._tables.values()]
        missing = [n for n in empty if prefix or (block_of(n) is None and n not in tables)]
        if missing:
            raise ReferenceUnavailable(
                f"transformers misses parameter {prefix + missing[0]!r} in {self._files.folder}: "
                "the weights do not belong to this config.json"
            )

    def _find_tables(self) -> dict[Site, tuple[str, str]]:
        """The tensors of the embedding and of the output matrix, with the modules' paths."""
        paths = {module: path for path, module in self._model.named_modules()}
        found = {}
        modules = self._model.get_input_embeddings(), self._model.get_output_embeddings()
        for part, module in zip((EMBEDDING, LOGITS), modules, strict=True):
            tied = part == LOGITS and self._model.config.get_text_config().tie_word_embeddings
            besides = found[EMBEDDING][0] if part == LOGITS and not tied else None
            name = self._shards.table(
                f"{paths[module]}.weight", tuple(module.weight.shape), besides
            )
            if name is None and tied:
                name = found[EMBEDDING][0]
            if name is None:
                raise ReferenceUnavailable(
                    f"the table of {paths[module]} is not found in {self._files.folder}"
                )
            found[part] = name, paths[module]
        return found

    @contextlib.contextmanager
    def _used_rows(self, tokens: Sequence[int]) -> Iterator[list[int]]:
        """The embedding holds the rows of these tokens alone; yields their places in it."""
        name, path = self._tables[EMBEDDING]
        used = sorted(set(tokens))
        rows = self._torch.cat([self._shards.rows(name, token, token + 1) for token in used])
        with self._holding(path, rows):
            yield [used.index(token) for token in tokens]

    def _head_slices(self) -> Iterator[contextlib.AbstractContextManager[None]]:
        """The output matrix, some rows at a time."""
        name, path = self._tables[LOGITS]
        for start, stop in row_slices(self._shards.shapes[name][0]):
            yield self._holding(path, self._shards.rows(name, start, stop), start, stop)

    @contextlib.contextmanager
    def _holding(
        self, path: str, rows: Any, start: int | None = None, stop: int | None = None
    ) -> Iterator[None]:
        """Rows of a table as the weight of its module, and of its bias the same."""
        module, torch = self._model.get_submodule(path), self._torch
        kept = dict(module.named_parameters(recurse=False))
        weight = rows.to(self._rounded).to(self._own)
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        if getattr(module, "bias", None) is not None:
            module.bias = torch.nn.Parameter(kept["bias"][start:stop], requires_grad=False)
        try:
            yield
        finally:
            for name, value in kept.items():
                setattr(module, name, value)

    @contextlib.contextmanager
    def _skipping(self, blocks: range) -> Iterator[None]:
        """These layers compute nothing. They give what they get, in the form that layers give."""
        if blocks and self._in_tuple is None:
            self._in_tuple = self._gives_tuple()

        def skip(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            return (hidden_states,) if self._in_tuple else hidden_states

        layers = [self._layers[k] for k in blocks]
        for layer in layers:
            layer.forward = skip
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward

    def _gives_tuple(self) -> bool:
        """Whether layers give a tuple: one token through the first shows it."""
        found: list[bool] = []
        first = Site("block", 0)
        width = self._shards.shapes[self._tables[EMBEDDING][0]][1]

        def hook(module: Any, args: Any, out: Any) -> None:
            found.append(isinstance(out, tuple))
            raise Reached

        with self.resident(first):
            handle = self._layers[0].register_forward_hook(hook)
            try:
                given = self._torch.zeros((1, 1, width), dtype=self._own)
                self._pass({}, _nobody, 1, inputs_embeds=given)
            finally:
                handle.remove()
        return found[0]


def _part_of(prefix: str) -> Site:
    """The part whose parameters have a prefix."""
    block = block_of(prefix)
    return EMBEDDING if block is None else Site("block", block)


def _nobody(site: Site, array: np.ndarray) -> None:
    """Watches nothing."""
