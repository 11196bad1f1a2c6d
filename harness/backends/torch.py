"""PyTorch through transformers: the reference's float32 or deployment-dtype twin, and the oracle.

The oracle is the same model in float64 with every float32 island of transformers (norms, softmax,
rotary angles) lifted to float64 as well: see `Lift`. Attention is the eager one, the definition
the fused kernels approximate. Remote code and pickled weights are never loaded.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import BackendUnavailable, one_line

from ..errors import ReferenceUnavailable
from ..tokenizers.sides import Side, transformers_side
from ..types import LOGITS, Site, TokenFacts
from . import Backend, Observe, Request
from ._code import code_of
from ._harmless import CHANGES
from ._hooks import Hooks, to_numpy
from ._lift import lifted
from ._transformers import (
    decoder_layers,
    import_torch,
    last_norm,
    lift,
    load_model,
    size_of,
    threads_for,
)

if TYPE_CHECKING:
    from ._torch_streamed import StreamedTorch

DTYPES = ("float32", "bfloat16", "float16")
CACHES = ("past_key_values", "cache_params")


def load(request: Request) -> TorchBackend:
    """Load the twin at the requested dtype.

    `torch:reordered` and `torch:threaded` change the order of its sums, any other argument is the
    attention implementation in place of eager (`torch:sdpa`). Raises ReferenceUnavailable without
    torch.
    """
    if request.device not in (None, "cpu"):
        raise BackendUnavailable(f"backend torch on device {request.device!r}: it runs on cpu here")
    change = CHANGES.get(request.argument)
    attention = "eager" if change else request.argument or "eager"
    return TorchBackend(request.files, request.dtype, attention, request.allow, change=change)


def load_streamed(request: Request) -> StreamedTorch:
    """The twin part by part; only eager attention, and nothing that has to be allowed."""
    from ._torch_streamed import StreamedTorch

    if request.argument or request.allow:
        what = request.argument or ", ".join(request.allow)
        raise BackendUnavailable(f"backend torch with {what!r} cannot be streamed")
    return StreamedTorch(request.files, request.dtype)


class TorchBackend:
    """One transformers model on the CPU at one precision.

    `dtype` is the dtype under test; with `oracle` the weights are rounded to it and everything is
    computed in float64.
    """

    name = "torch"
    sums = "torch"
    device = "cpu"
    limits: Mapping[str, str] = {}

    def __init__(
        self,
        files: Any,
        dtype: str,
        attention: str = "eager",
        allow: Collection[str] = (),
        *,
        lifts: TorchBackend | None = None,
        change: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
    ) -> None:
        """`lifts` makes this the oracle of a model already loaded; `change` is of CHANGES."""
        torch, _ = import_torch()
        if dtype not in DTYPES:
            raise BackendUnavailable(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        self._torch, self._files, self.dtype = torch, files, dtype
        self._trusted = "remote-code" in allow
        self._context = lifted if lifts else change or contextlib.nullcontext
        self._model = lift(lifts._model) if lifts else load_model(files, dtype, attention, allow)
        self._model.eval().requires_grad_(False)
        self._layers_path, self._layers = decoder_layers(self._model)
        self._norm = last_norm(self._model, self._layers_path)
        self._size = size_of(self._model)

    def oracle(self) -> TorchBackend:
        """The same weights in float64, all islands lifted."""
        return TorchBackend(self._files, self.dtype, lifts=self)

    def is_lifted_by(self, oracle: Backend) -> bool:
        """Whether an oracle, of this model at another dtype, has these weights to the last bit."""
        if not isinstance(oracle, TorchBackend) or oracle._files is not self._files:
            return False
        mine, known = self._model.state_dict(), oracle._model.state_dict()
        return mine.keys() == known.keys() and all(
            self._torch.equal(value.to(known[name].dtype), known[name])
            for name, value in mine.items()
        )

    @property
    def blocks(self) -> int:
        return len(self._layers)

    def forward(
        self,
        tokens: Sequence[int],
        observe: Observe | None = None,
        *,
        feed: Mapping[Site, np.ndarray] | None = None,
        inside: int | None = None,
        chunks: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See `Backend.forward`. The oracle's feed is rounded by its caller."""
        torch = self._torch
        ids = torch.tensor([list(tokens)])
        with self._running(), self._watched(observe, feed, inside, len(tokens)):
            if chunks is None:
                logits = self._run(ids, use_cache=False).logits
            else:
                logits = self._in_chunks(ids, chunks, None)
            result = to_numpy(logits)[0]
        if observe is not None:
            observe(LOGITS, result)
        return result

    def _watched(self, observe: Any, feed: Any, inside: int | None, length: int) -> Any:
        if observe is None and feed is None:
            return contextlib.nullcontext()
        at = self._layers_path, self._layers, self._norm
        return Hooks(self._model, *at, observe, feed, inside, length)

    def batch(
        self, sequences: Sequence[Sequence[int]], chunks: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """Left-padded, with an attention mask and positions that begin after the padding."""
        torch = self._torch
        longest = max(map(len, sequences))
        pads = [longest - len(sequence) for sequence in sequences]
        ids = [[0] * n + list(row) for n, row in zip(pads, sequences, strict=True)]
        mask = torch.tensor([[0] * n + [1] * (longest - n) for n in pads])
        with self._running():
            logits = self._in_chunks(torch.tensor(ids), chunks or (longest,), mask)
            return [to_numpy(row[n:]) for n, row in zip(pads, logits, strict=True)]

    def _in_chunks(self, ids: Any, chunks: Sequence[int], mask: Any) -> Any:
        """Logits (B, T, V) of ids (B, T) fed through the cache; `mask` (B, T) is 0 at padding."""
        logits, past, start = [], None, 0
        for size in chunks:
            end, known = start + size, {}
            if mask is not None:
                places = (mask.cumsum(-1) - 1).clamp(min=0)
                known = {"attention_mask": mask[:, :end], "position_ids": places[:, start:end]}
            if past is not None:
                known[self._cache] = past
            out = self._run(ids[:, start:end], use_cache=True, **known)
            logits, past, start = [*logits, out.logits], getattr(out, self._cache), end
        return self._torch.cat(logits, dim=1)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """Greedy tokens through transformers' own cache."""
        torch = self._torch
        found: list[int] = []
        with self._running():
            ids, past = torch.tensor([list(prompt)]), None
            for _ in range(count):
                known = {} if past is None else {self._cache: past}
                part = ids if past is None else ids[:, -1:]
                use = bool(self._cache)
                out = self._model(part, **known, use_cache=use, logits_to_keep=1)
                past = getattr(out, self._cache, None)
                best = out.logits[:, -1].float().argmax(-1, keepdim=True)
                ids = torch.cat([ids, best], dim=1)
                found.append(int(best))
        return found

    @property
    def _cache(self) -> str:
        """What the model calls its cache: models of states alone say cache_params. Empty for one
        that keeps its state to itself, and so is asked without."""
        known = inspect.signature(self._model.forward).parameters
        return next((name for name in CACHES if name in known), "")

    def weights(self) -> Mapping[str, Any]:
        """Parameters and kept buffers by the names they are saved under, tied ones once.

        In memory transformers stacks experts and renames some modules.
        """
        from transformers.core_model_loading import revert_weight_conversion

        buffers = dict(self._model.named_buffers())
        kept = {name: b for name, b in self._model.state_dict().items() if name in buffers}
        parameters = dict(self._model.named_parameters())
        return revert_weight_conversion(self._model, {**parameters, **kept})

    def checkpoint(self) -> Mapping[str, Any]:
        return self.weights()

    def expected_weights(self, reference: Mapping[str, Any]) -> Mapping[str, Any]:
        return reference

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._files, trusted=self._trusted)

    def tokens(self, texts: Sequence[str]) -> TokenFacts:
        rows = self._model.get_input_embeddings().weight.shape[0]
        return token_facts(self._tokenizer, self._files, texts, rows)

    def side(self) -> Side:
        """The tokenizer, to be asked anything."""
        return transformers_side(self._tokenizer, _eos_ids(self._tokenizer, self._files))

    def locate(self, site: Site) -> str | None:
        module = dict(self._model.named_modules()).get(site.path)
        return None if module is None else code_of(type(module).forward, type(module).__name__)

    def _run(self, ids: Any, **options: Any) -> Any:
        try:
            return self._model(ids, **options)
        except Exception as error:  # a configuration that transformers builds and cannot run
            raise ReferenceUnavailable(
                f"transformers cannot run {self._files.folder}: {type(error).__name__}: "
                f"{one_line(error)} (--debug shows where)"
            ) from error

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """No gradients, float32 islands lifted for the oracle, and no state of earlier inputs."""
        torch = self._torch
        with threads_for(self._size), torch.inference_mode(), self._context():
            rotary = getattr(self._model.config, "rope_parameters", None) or {}
            if "dynamic" in str(rotary):
                # transformers keeps the base of the longest sequence seen until a short one comes.
                self._model(torch.tensor([[0]]), use_cache=False)
            yield


def token_facts(tokenizer: Any, files: Any, texts: Sequence[str], rows: int) -> TokenFacts:
    """What transformers' tokenizer of a model does."""
    return TokenFacts(
        ids={text: tuple(tokenizer(text)["input_ids"]) for text in texts},
        bos_id=tokenizer.bos_token_id,
        eos_ids=_eos_ids(tokenizer, files),
        max_id=max(tokenizer.get_vocab().values(), default=-1),
        rows=rows,
    )


def tokenizer_side(files: Any, *, trusted: bool = False) -> Side:
    """The same tokenizer, to be asked anything."""
    tokenizer = load_tokenizer(files, trusted=trusted)
    return transformers_side(tokenizer, _eos_ids(tokenizer, files))


def load_tokenizer(files: Any, *, trusted: bool = False) -> Any:
    """transformers' tokenizer of a model. Raises ReferenceUnavailable."""
    _, transformers = import_torch()
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(files.folder), local_files_only=True, trust_remote_code=trusted
        )
    except Exception as error:  # transformers raises nearly anything here
        raise ReferenceUnavailable(
            f"transformers cannot load the tokenizer of {files.folder}: {one_line(error)}"
        ) from None


def _eos_ids(tokenizer: Any, files: Any) -> tuple[int, ...]:
    """Union of tokenizer, config.json and generation_config.json."""
    import json

    found: set[int] = set()
    sources = [files.config.get("eos_token_id"), tokenizer.eos_token_id]
    generation = files.folder / "generation_config.json"
    if generation.exists():
        sources.append(json.loads(generation.read_text()).get("eos_token_id"))
    for value in sources:
        if value is not None:
            found.update(value if isinstance(value, list) else [value])
    return tuple(sorted(found))
