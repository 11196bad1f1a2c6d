"""PyTorch through transformers: the reference's float32 or deployment-dtype twin, and the oracle.

The oracle is the same model in float64 with every float32 island of transformers (norms, softmax,
rotary angles) lifted to float64 as well: see `Lift`. Attention is the eager one, the definition
the fused kernels approximate. Remote code and pickled weights are never loaded.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from engine.errors import BackendUnavailable

from ..errors import ReferenceUnavailable
from ..types import Site, TokenFacts
from . import Observe, Request, rows
from ._code import code_of
from ._lift import lifted

DTYPES = ("float32", "bfloat16", "float16")
SMALL = 20_000_000  # parameters; below, starting threads costs more than they save


def load(request: Request) -> TorchBackend:
    """Load the twin at the requested dtype; `torch:sdpa` takes another attention than eager.

    Raises ReferenceUnavailable without torch.
    """
    if request.device not in (None, "cpu"):
        raise BackendUnavailable(f"backend torch on device {request.device!r}: it runs on cpu here")
    return TorchBackend(request.files, request.dtype, request.argument or "eager")


def _import() -> tuple[Any, Any]:
    try:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import torch
        import transformers
    except ImportError as error:
        raise ReferenceUnavailable(
            f"backend torch needs {error.name or 'torch'}, which is not installed: "
            "pip install 'mlx-parity[reference]', or compare with --reference golden"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers


class TorchBackend:
    """One transformers model on the CPU at one precision.

    `dtype` is the dtype under test; with `oracle` the weights are rounded to it and everything is
    computed in float64.
    """

    name = "torch"
    device = "cpu"
    limits: Mapping[str, str] = {}

    def __init__(
        self,
        files: Any,
        dtype: str,
        attention: str = "eager",
        *,
        lifts: TorchBackend | None = None,
    ) -> None:
        """`lifts` makes this the oracle of a model already loaded."""
        torch, _ = _import()
        if dtype not in DTYPES:
            raise BackendUnavailable(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        self._torch, self._files, self.dtype = torch, files, dtype
        self._context = contextlib.nullcontext if lifts is None else lifted
        self._model = _lift(lifts) if lifts else _load(files, dtype, attention)
        self._model.eval().requires_grad_(False)
        self._layers_path, self._layers = _blocks(self._model)
        self._paths = {module: path for path, module in self._model.named_modules()}
        self._norm = _last_norm(self._model, self._layers_path)
        self._small = sum(p.numel() for p in self._model.parameters()) < SMALL

    def oracle(self) -> TorchBackend:
        """The same weights in float64, all islands lifted."""
        return TorchBackend(self._files, self.dtype, lifts=self)

    @property
    def blocks(self) -> int:
        return len(self._layers)

    def forward(
        self,
        tokens: Sequence[int],
        observe: Observe | None = None,
        *,
        feed: Sequence[np.ndarray] | None = None,
        inside: int | None = None,
        chunks: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See `Backend.forward`. The oracle's feed is rounded by its caller."""
        torch = self._torch
        with self._running(), self._hooks(observe, feed, inside, len(tokens)):
            if chunks is None:
                logits = self._model(torch.tensor([list(tokens)]), use_cache=False).logits
            else:
                logits, past, start = [], None, 0
                for size in chunks:
                    part = torch.tensor([list(tokens[start : start + size])])
                    out = self._model(part, past_key_values=past, use_cache=True)
                    logits, past = [*logits, out.logits], out.past_key_values
                    start += size
                logits = torch.cat(logits, dim=1)
            result = _numpy(logits)[0]
        if observe is not None:
            observe(self._site("logits", None, "lm_head"), result)
        return result

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """Greedy tokens through transformers' own cache."""
        torch = self._torch
        found: list[int] = []
        with self._running():
            part, past = torch.tensor([list(prompt)]), None
            for _ in range(count):
                out = self._model(part, past_key_values=past, use_cache=True, logits_to_keep=1)
                past = out.past_key_values
                part = out.logits[:, -1].float().argmax(-1, keepdim=True)
                found.append(int(part))
        return found

    def weights(self) -> Mapping[str, Any]:
        """Parameters by transformers names, tied ones once."""
        return dict(self._model.named_parameters())

    def checkpoint(self) -> Mapping[str, Any]:
        return self.weights()

    def expected_weights(self, reference: Mapping[str, Any]) -> Mapping[str, Any]:
        return reference

    def tokens(self, texts: Sequence[str]) -> TokenFacts:
        _, transformers = _import()
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(self._files.folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises nearly anything here
            raise ReferenceUnavailable(
                f"transformers cannot load the tokenizer of {self._files.folder}: "
                f"{str(error).splitlines()[0]}"
            ) from None
        return TokenFacts(
            ids={text: tuple(tokenizer(text)["input_ids"]) for text in texts},
            bos_id=tokenizer.bos_token_id,
            eos_ids=_eos_ids(tokenizer, self._files),
            max_id=max(tokenizer.get_vocab().values(), default=-1),
            rows=self._model.get_input_embeddings().weight.shape[0],
        )

    def locate(self, site: Site) -> str | None:
        module = dict(self._model.named_modules()).get(site.path)
        return None if module is None else code_of(type(module).forward, type(module).__name__)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """No gradients, float32 islands lifted for the oracle, and no state of earlier inputs.

        A small model runs on one thread: that is quicker, and the same on any number of cores.
        """
        torch, threads = self._torch, self._torch.get_num_threads()
        with contextlib.ExitStack() as stack:
            if self._small:
                torch.set_num_threads(1)
                stack.callback(torch.set_num_threads, threads)
            stack.enter_context(torch.inference_mode())
            stack.enter_context(self._context())
            rotary = getattr(self._model.config, "rope_parameters", None) or {}
            if "dynamic" in str(rotary.get("rope_type", "")):
                # transformers keeps the base of the longest sequence seen until a short one comes.
                self._model(torch.tensor([[0]]), use_cache=False)
            yield

    @contextlib.contextmanager
    def _hooks(
        self,
        observe: Observe | None,
        feed: Sequence[np.ndarray] | None,
        inside: int | None,
        length: int,
    ) -> Iterator[None]:
        if observe is None and feed is None:
            yield
            return
        with contextlib.ExitStack() as stack:

            def see(site: Site, value: Any) -> None:
                if observe is not None:
                    observe(site, rows(_numpy(value), length))

            def fed(k: int, like: Any) -> Any:
                assert feed is not None
                return self._torch.tensor(feed[k], dtype=like.dtype)[None]

            def entering(module: Any, args: tuple, kwargs: dict) -> Any:
                name = "hidden_states"
                value = args[0] if args else kwargs[name]
                path = self._paths[self._model.get_input_embeddings()]
                see(self._site("embedding", None, path), value)
                if feed is None:
                    return None
                if args:
                    return (fed(0, value), *args[1:]), kwargs
                return args, {**kwargs, name: fed(0, value)}

            def leaving(k: int) -> Any:
                def hook(module: Any, args: tuple, out: Any) -> Any:
                    value = out[0] if isinstance(out, tuple) else out
                    see(self._site("block", k, f"{self._layers_path}.{k}"), value)
                    if feed is None:
                        return None
                    replaced = fed(k + 1, value)
                    return (replaced, *out[1:]) if isinstance(out, tuple) else replaced

                return hook

            def inner(site: Site) -> Any:
                def hook(module: Any, args: tuple, out: Any) -> None:
                    value = out[0] if isinstance(out, tuple) else out
                    if self._torch.is_tensor(value) and value.ndim >= 3:
                        see(site, value)

                return hook

            enter = stack.enter_context
            enter(self._layers[0].register_forward_pre_hook(entering, with_kwargs=True))
            for k, layer in enumerate(self._layers):
                enter(layer.register_forward_hook(leaving(k)))
            if inside is not None:
                base = f"{self._layers_path}.{inside}."
                for part, module in self._layers[inside].named_modules():
                    if part:
                        site = Site("module", inside, part, base + part)
                        enter(module.register_forward_hook(inner(site)))
            if self._norm is not None:
                site = self._site("norm", None, self._paths[self._norm])
                enter(self._norm.register_forward_hook(inner(site)))
            yield

    def _site(self, kind: str, block: int | None, path: str) -> Site:
        return Site(kind, block, "", path)


def _load(files: Any, dtype: str, attention: str) -> Any:
    """The model as transformers loads it, from tensors of either format."""
    import torch
    import transformers

    config = _config(transformers, files)
    mapping: Any = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        raise ReferenceUnavailable(
            f"transformers has no causal language model for {config.model_type!r} ({files.folder})"
        )
    model, report = mapping[type(config)].from_pretrained(
        None,
        config=config,
        state_dict=_state(torch, files),
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        output_loading_info=True,
    )
    if wrong := sorted(report["missing_keys"]) or sorted(report["mismatched_keys"]):
        raise ReferenceUnavailable(
            f"transformers misses parameter {wrong[0]!r} in {files.folder}: "
            "the weights do not belong to this config.json"
        )
    return model


def _lift(twin: TorchBackend) -> Any:
    """The twin's weights in a model built, rotary frequencies included, in float64."""
    import transformers
    from transformers import initialization

    state = {
        name: value.double() if value.is_floating_point() else value
        for name, value in twin._model.state_dict().items()
    }
    kind, config = type(twin._model), _config(transformers, twin._files)
    with lifted(), initialization.no_init_weights():
        config._attn_implementation = "eager"
        model = kind(config)
    model.double().load_state_dict(state)
    return model


def _state(torch: Any, files: Any) -> dict[str, Any]:
    """The checkpoint as torch tensors, by its own names."""
    if files.weights[0].suffix == ".safetensors":
        from safetensors.torch import load_file

        return {k: v for shard in files.weights for k, v in load_file(shard).items()}
    from engine.weights import read_weights

    return {name: to_torch(torch, array) for name, array in read_weights(files).items()}


def to_torch(torch: Any, array: Any) -> Any:
    """An mlx array as a torch tensor, bit for bit."""
    import mlx.core as mx

    if array.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(array.view(mx.uint16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _config(transformers: Any, files: Any) -> Any:
    raw = copy.deepcopy(dict(files.config))  # transformers writes into nested settings
    try:
        return transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    except Exception as error:  # validation errors of many kinds
        raise ReferenceUnavailable(
            f"transformers {transformers.__version__} does not accept the configuration of "
            f"{files.folder}: {str(error).splitlines()[0]}"
        ) from None


def _blocks(model: Any) -> tuple[str, Any]:
    """Path and list of the decoder layers: the module list as long as the config says."""
    import torch

    count = model.config.num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return path, module
    raise ReferenceUnavailable(f"{type(model).__name__} has no list of {count} decoder layers")


def _last_norm(model: Any, layers_path: str) -> Any:
    """The norm after the last block: the last one beside the list of layers."""
    owner = model.get_submodule(layers_path.rpartition(".")[0])
    norms = [m for m in owner.children() if "norm" in type(m).__name__.lower()]
    return norms[-1] if norms else None


def _numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.to(torch.float64).to(torch.float32)
    return tensor.numpy()


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
