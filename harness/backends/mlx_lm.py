"""mlx-lm as a side, with any of its models: modules are observed from outside (`_recording.py`)."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from engine.errors import CorruptWeights, InvalidConfig, UnsupportedArchitecture, one_line
from engine.files import ModelFiles, read_json
from engine.model import DTYPES
from engine.runtime import use_device

from ..errors import ReferenceUnavailable
from ..tokenizers.sides import Side, mlx_lm_side
from ..types import Site, TokenFacts
from . import Observe, Request
from ._code import code_of
from ._mlx import (
    Gathered,
    as_mlx,
    in_chunks,
    left_padded,
    to_numpy,
    unpadded,
    weights_of,
    without_leaf,
)
from ._mlx_streamed import StreamedMLX
from ._recording import recorded

TABLES = (nn.Embedding, nn.QuantizedEmbedding)


def load(request: Request) -> MLXLMBackend:
    device = use_device(request.device)
    return MLXLMBackend(request.files, request.dtype, device)


def load_streamed(request: Request) -> StreamedMLX:
    device = use_device(request.device)
    return StreamedMLX(
        request.files, lambda: MLXLMBackend(request.files, request.dtype, device, lazy=True)
    )


def families() -> frozenset[str]:
    """The model types it has: its files that hold a model, and those it reads by another's file."""
    utils = _utils()
    folder = Path(utils.__file__).with_name("models")
    model = re.compile(r"^(class Model\(|from \.\w+ import Model\b)", re.MULTILINE)
    files = {p.stem for p in folder.glob("*.py") if model.search(p.read_text("utf-8"))}
    return frozenset(files | {name for name, to in utils.MODEL_REMAPPING.items() if to in files})


class MLXLMBackend:
    """`mlx_lm.utils.load_model` at one dtype."""

    name = "mlx-lm"
    sums = "mlx"

    def __init__(self, files: ModelFiles, dtype: str, device: str, lazy: bool = False) -> None:
        """`lazy` leaves every array to be read when it is used first."""
        self.limits: Mapping[str, str] = {}
        utils = _utils()
        self._files, self.dtype, self.device = files, dtype, device
        self._classes = utils._get_classes
        with _folder(files) as folder:
            try:
                self.model, _ = utils.load_model(folder, lazy)
            except (Exception, SystemExit) as error:  # nearly anything, for what it cannot load
                reason = one_line(error)
                if isinstance(error, SystemExit):
                    reason = "it ends the program, for want of a package that it needs"
                kind = UnsupportedArchitecture if "not supported" in reason else CorruptWeights
                raise kind(f"mlx-lm cannot load {files.folder}: {reason}") from None
        self.model.update(_cast(self.model, DTYPES[dtype]))
        self._blocks: list[Any] = list(self.model.layers)  # type: ignore[arg-type]
        names = {id(module): path for path, module in self.model.named_modules()}
        self._names = names
        owner = names[id(self._blocks[0])].rpartition(".")[0].rpartition(".")[0]
        beside = dict(self.model.named_modules())[owner].children().values()
        norms = [m for m in beside if isinstance(m, nn.Module) and "Norm" in type(m).__name__]
        self._norm = norms[-1] if norms else None

    @property
    def blocks(self) -> int:
        return len(self._blocks)

    def path_of(self, site: Site) -> str:
        """The path of the weight that makes the value at a site."""
        return f"{self._names[id(self.module_at(site))]}.weight"

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
        from mlx_lm.models.cache import make_prompt_cache

        ids = mx.array([list(tokens)])
        with self._running():
            if chunks is not None:
                cache = make_prompt_cache(self.model)
                return to_numpy(in_chunks(lambda x: self.model(x, cache=cache), ids, chunks))[0]
            gathered = Gathered(len(tokens), feed)
            return gathered.tell(observe, self.graph(ids, gathered, inside))

    def graph(self, ids: mx.array, gathered: Gathered, inside: int | None) -> mx.array:
        """Logits (1, T, V) of ids (1, T), not evaluated; `gathered` sees the sites."""
        with recorded(self._blocks, self._norm, self._names, gathered, inside):
            return self.model(ids)

    def batch(
        self, sequences: Sequence[Sequence[int]], chunks: Sequence[int] | None = None
    ) -> list[np.ndarray] | None:
        """Through mlx-lm's own batch caches; None, and a limit, where it has none or cannot run.

        Its gemma2 and its dynamic rotary scaling raise for a mask or an offset per row.
        """
        from mlx_lm.models import cache as caches

        ids, padding = left_padded(sequences)
        batched = []
        for single in caches.make_prompt_cache(self.model):
            if type(single) is caches.KVCache:
                batched.append(caches.BatchKVCache(padding))
            elif type(single) is caches.RotatingKVCache and not single.keep:
                batched.append(caches.BatchRotatingKVCache(single.max_size, padding))
            else:
                reason = f"mlx-lm has no left-padded batches of {type(single).__name__}"
                self.limits = {**self.limits, "batch": reason}
                return None
        try:
            with self._running():
                logits = in_chunks(
                    lambda x: self.model(x, cache=batched), ids, chunks or (ids.shape[1],)
                )
                return unpadded(logits, padding)
        except UnsupportedArchitecture as error:
            self.limits = {**self.limits, "batch": f"as one batch: {error}"}
            return None

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        from mlx_lm.generate import generate_step

        with self._running():
            steps = generate_step(mx.array(list(prompt)), self.model, max_tokens=count)
            return [int(token) for token, _ in steps]

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Say in one line what mlx-lm cannot do here, as gather_mm in bfloat16 on the CPU."""
        try:
            yield
        except (RuntimeError, ValueError, TypeError) as error:
            raise UnsupportedArchitecture(
                f"mlx-lm cannot run {self._files.folder} at {self.dtype} on {self.device}: "
                f"{one_line(error)} (--debug shows where)"
            ) from error

    def weights(self) -> Mapping[str, Any]:
        return weights_of(self.model, self.dtype)

    def checkpoint(self) -> None:
        return None

    def expected_weights(self, reference: Mapping[str, Any]) -> Mapping[str, Any]:
        """mlx-lm's own clean-up of the reference's parameters.

        Checkpoints come with the base model's prefix and without it; both are tried, because
        mlx-lm reads some families in one form only.
        """
        tensors = {name: as_mlx(value) for name, value in reference.items()}
        short = {k.partition(".")[2] if k.count(".") > 1 else k: v for k, v in tensors.items()}
        mine = set(self.weights())
        found = []
        for names in (tensors, short):
            with contextlib.suppress(KeyError, ValueError):  # sanitize, for names it cannot read
                found.append(self._clean(dict(names)))
        return min(found, key=lambda names: len(mine.symmetric_difference(names)), default={})

    def _clean(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """`sanitize` of a fresh model, because some families change themselves in it."""
        config = copy.deepcopy(dict(self._files.config))
        kind, arguments = self._classes(config)
        fresh = kind(arguments.from_dict(config))
        return fresh.sanitize(tensors) if hasattr(fresh, "sanitize") else tensors

    def tokens(self, texts: Sequence[str]) -> TokenFacts:
        tokenizer = load_wrapper(self._files)
        return TokenFacts(
            ids={text: tuple(tokenizer.encode(text)) for text in texts},
            bos_id=tokenizer.bos_token_id,
            eos_ids=tuple(sorted(tokenizer.eos_token_ids)),
            max_id=max(tokenizer.get_vocab().values(), default=-1),
            rows=_embedding_rows(self.model),
        )

    def side(self) -> Side:
        """The tokenizer, to be asked anything."""
        return mlx_lm_side(load_wrapper(self._files))

    def locate(self, site: Site) -> str | None:
        """The code of the deepest module around a site that is a model's own."""
        kinds = [type(module) for module in self._around(site)]
        own = [kind for kind in kinds if not kind.__module__.startswith("mlx.")]
        return code_of(own[-1].__call__, f"mlx-lm {own[-1].__name__}")

    def module_at(self, site: Site) -> Any:
        """The module whose parameters make the value at a site."""
        return self._around(site)[-1]

    def _around(self, site: Site) -> list[Any]:
        """The modules a site is in, outermost first."""
        if site.block is not None:
            found, inner = (
                [self._blocks[site.block]],
                dict(self._blocks[site.block].named_modules()),
            )
            steps = without_leaf(site.part).split(".")
            paths = [".".join(steps[: i + 1]) for i in range(len(steps))]
            return [*found, *(inner[path] for path in paths if path and path in inner)]
        named = dict(self.model.named_modules())
        tables = [m for m in named.values() if isinstance(m, TABLES)]
        heads = [m for path, m in named.items() if path.endswith("lm_head")]
        end = {"embedding": tables[:1], "logits": heads[:1] or tables[:1]}
        return [self.model, *end.get(site.kind, [self._norm] if self._norm else [])]


def load_wrapper(files: ModelFiles) -> Any:
    """mlx-lm's tokenizer of a model, as its own generation has it. Raises ReferenceUnavailable."""
    try:
        from mlx_lm.tokenizer_utils import load
        from mlx_lm.utils import load_config

        # as mlx_lm.utils.load does: generation_config.json's EOS in place of config.json's
        there = (files.folder / "config.json").is_file()
        config = (load_config(files.folder) if there else files.config).get("eos_token_id")
        eos = config if isinstance(config, list) or config is None else [config]
        return load(files.folder, eos_token_ids=eos)
    except Exception as error:  # mlx-lm and transformers raise nearly anything here
        raise ReferenceUnavailable(
            f"mlx-lm cannot load the tokenizer of {files.folder}: {one_line(error)}"
        ) from None


def _utils() -> Any:
    """mlx_lm.utils. Raises ReferenceUnavailable where it is missing."""
    try:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import mlx_lm.utils
    except ImportError as error:
        raise ReferenceUnavailable(
            f"backend mlx-lm needs {error.name}, which is not installed: "
            "pip install 'mlx-parity[reference]'"
        ) from None
    return mlx_lm.utils


@contextlib.contextmanager
def _folder(files: ModelFiles) -> Iterator[Path]:
    """A folder as mlx-lm reads it: config.json beside model*.safetensors."""
    plain = files.weights[0].suffix == ".safetensors" and _its_own(files)
    if plain and all(path.name.startswith("model") for path in files.weights):
        yield files.folder
        return
    import json

    from engine.weights import read_weights, write_weights

    folder = Path(tempfile.mkdtemp(prefix="mlx-parity-"))
    try:
        write_weights(folder / "model.safetensors", read_weights(files))
        (folder / "config.json").write_text(json.dumps(dict(files.config)))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _its_own(files: ModelFiles) -> bool:
    """Whether the configuration is config.json as it stands, and not made of another."""
    path = files.folder / "config.json"
    return path.is_file() and read_json(path, InvalidConfig) == files.config


def _cast(model: Any, dtype: mx.Dtype) -> Any:
    """Parameters at a dtype, those apart that the model itself would keep when converted."""
    from mlx.utils import tree_map_with_path

    casts = getattr(model, "cast_predicate", lambda path: True)

    def cast(path: str, array: mx.array) -> mx.array:
        whole = not mx.issubdtype(array.dtype, mx.floating) or not casts(path)
        return array if whole else array.astype(dtype)

    return tree_map_with_path(cast, model.parameters())


def _embedding_rows(model: Any) -> int:
    """Rows of the token embedding: the largest table of any embedding."""
    tables = [m.weight.shape[0] for _, m in model.named_modules() if isinstance(m, TABLES)]
    return max(tables, default=0)
