"""The same model through PyTorch and transformers: what runs where MLX is not proven.

The only module of the engine that imports either, and only in functions. Code that lies in a
model's folder is not run, and pickles are not read. Prompts and text are the engine's tokenizer's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from .errors import BackendUnavailable, EngineError, MetalNotAvailable, one_line
from .files import ModelFiles
from .generate import Step, steps

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

# What mlx-lm writes into config.json of packed matrices; transformers is given them unpacked.
PACKED = ("quantization", "quantization_config")


class TorchModel:
    """A transformers model on one device.

    `device` None takes a GPU where PyTorch has one. `rows` are those of the embedding.
    """

    def __init__(self, files: ModelFiles, dtype: str | None, device: str | None) -> None:
        """Raises BackendUnavailable, MetalNotAvailable, and what weights raise."""
        torch, transformers = _quiet_imports()
        self._torch, self._files = torch, files
        self.device = _device(torch, device)
        try:
            model = _load(torch, transformers, files, dtype)
            self._model = model.to(self.device).eval().requires_grad_(False)
        except EngineError:
            raise
        except Exception as error:  # transformers and torch raise nearly anything here
            raise BackendUnavailable(
                f"transformers cannot load {files.folder}: {one_line(error)} (--debug shows where)"
            ) from error
        self.rows = self._model.get_input_embeddings().weight.shape[0]

    def tokenizer(self) -> Tokenizer:
        """The engine's own. Raises TokenizerMismatch."""
        from .tokenizer import check_fits, load_tokenizer

        tokenizer = load_tokenizer(self._files)
        check_fits(tokenizer.max_id, self.rows, self._files.folder)
        return tokenizer

    def steps(self, prompt: Sequence[int], max_tokens: int, **wishes: Any) -> Iterator[Step]:
        """As `engine.generate.steps`."""
        return steps(_Feed(self, self._room()), prompt, max_tokens, **wishes)

    def peak_memory(self) -> int:
        """Bytes held at most: by PyTorch on CUDA, else by this process."""
        if self.device == "cuda":
            return self._torch.cuda.max_memory_allocated()
        from .machine import peak_resident

        return peak_resident()

    def after(self, tokens: list[int], past: Any) -> tuple[Any, Any]:
        """Logits (V,) float32 after `tokens`, which follow what `past` holds; what holds all."""
        torch = self._torch
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self.device)
            given = {} if past is None else {"past_key_values": past}
            try:
                out = self._model(ids, use_cache=True, **given)
            except Exception as error:
                raise BackendUnavailable(
                    f"transformers cannot run {self._files.folder}: {one_line(error)} "
                    "(--debug shows where)"
                ) from error
            return out.logits[0, -1].float().cpu(), getattr(out, "past_key_values", None)

    def _room(self) -> int | None:
        """How many positions there are where they are learned, of families that the engine has."""
        from .architectures import decoder_spec
        from .config import Config

        try:
            return decoder_spec(Config(self._files.config)).learned_positions
        except EngineError:
            return None


class _Feed:
    """A model without a cache of keys is fed everything for every token."""

    ahead = False

    def __init__(self, model: TorchModel, room: int | None) -> None:
        self.vocab, self.room, self._model = model.rows, room, model

    def begin(self, prompt: Sequence[int]) -> mx.array:
        self._known, self._past = list(prompt), None
        return self._fed(self._known)

    def next(self, token: mx.array) -> mx.array:
        self._known.append(int(token.item()))  # type: ignore[arg-type]
        return self._fed(self._known if self._past is None else self._known[-1:])

    def _fed(self, tokens: list[int]) -> mx.array:
        logits, self._past = self._model.after(tokens, self._past)
        return mx.array(logits.numpy())


def _quiet_imports() -> tuple[Any, Any]:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers


def _device(torch: Any, asked: str | None) -> str:
    if asked not in (None, "cpu", "gpu"):
        raise BackendUnavailable(f"device {asked!r} is not one of cpu, gpu")
    if asked != "cpu":
        if torch.cuda.is_available():
            return "cuda"
        if torch.backends.mps.is_available():
            return "mps"
    if asked == "gpu":
        raise MetalNotAvailable(
            "device gpu: PyTorch sees no GPU; use --device cpu, or install its build for CUDA"
        )
    return "cpu"


def _load(torch: Any, transformers: Any, files: ModelFiles, dtype: str | None) -> Any:
    """The model of transformers' own class, of the tensors that the engine reads."""
    from .certificate import MIXED, stored_dtype

    settings = {key: value for key, value in files.config.items() if key not in PACKED}
    config = transformers.AutoConfig.for_model(**settings)
    kinds = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in kinds:
        raise BackendUnavailable(
            f"transformers has no causal language model for {config.model_type!r} ({files.folder})"
        )
    dtype = dtype or stored_dtype(files)
    model, report = kinds[type(config)].from_pretrained(
        None,
        config=config,
        state_dict=_tensors(torch, files, None if dtype == MIXED else dtype),
        dtype="auto" if dtype == MIXED else getattr(torch, dtype),
        output_loading_info=True,
    )
    if wrong := sorted(report["missing_keys"]) or sorted(report["mismatched_keys"]):
        raise BackendUnavailable(
            f"transformers misses parameter {wrong[0]!r} in {files.folder}: weights and "
            "config.json are not of the same model"
        )
    return model


def _tensors(torch: Any, files: ModelFiles, dtype: str | None) -> dict[str, Any]:
    """The checkpoint by the names of its original, packed matrices unpacked.

    Where it is stored so already, its files are mapped into memory and not copied.
    """
    from .weights import shapes_of
    from .weights.mxfp4 import unpacked
    from .weights.plain import plain_weights

    plain = unpacked(plain_weights(files, dtype), str(files.folder))
    if (
        files.weights[0].suffix == ".safetensors"
        and plain.keys() == shapes_of(files.weights).keys()
    ):
        from safetensors.torch import load_file

        return {name: t for path in files.weights for name, t in load_file(path).items()}
    return {name: to_torch(torch, plain.pop(name)) for name in list(plain)}


def to_torch(torch: Any, array: Any) -> Any:
    """An mlx array as a torch tensor, bit for bit."""
    import numpy as np

    if array.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(array.view(mx.uint16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))
