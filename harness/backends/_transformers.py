"""Models of transformers: loaded as transformers loads them, or lifted to float64.

Code that lies in a model's folder is not run, and pickles are not read, unless asked for by name.
No family is known here.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from engine.errors import one_line
from engine.files import PICKLES, ModelFiles
from engine.torch_backend import PACKED, to_torch
from engine.weights.plain import as_original, plain_weights

from ..errors import ReferenceUnavailable
from ._lift import lifted

SMALL = 20_000_000  # parameters; below, starting threads costs more than they save


def import_torch() -> tuple[Any, Any]:
    """torch and transformers, quiet. Raises ReferenceUnavailable where they are missing."""
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


def load_model(files: ModelFiles, dtype: str, attention: str, allow: Collection[str]) -> Any:
    """The model as transformers loads it, from tensors of any format that is allowed.

    `allow` may hold "remote-code" and "pickle". Raises ReferenceUnavailable.
    """
    import torch
    import transformers

    # Experts one by one: the definition that faster kernels approximate, and fit for float64.
    common = {
        "dtype": getattr(torch, dtype),
        "attn_implementation": attention,
        "experts_implementation": "eager",
    }
    if "remote-code" in allow and "auto_map" in files.config:
        return transformers.AutoModelForCausalLM.from_pretrained(
            str(files.folder), trust_remote_code=True, local_files_only=True, **common
        )
    config = configuration(transformers, files)
    mapping: Any = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        raise ReferenceUnavailable(
            f"transformers has no causal language model for {config.model_type!r} ({files.folder})"
        )
    kind = mapping[type(config)]
    if kind.config_class is config.sub_configs.get("text_config"):
        config = config.get_text_config()  # of a family that sees, the class that only reads
    model, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=unpack_mxfp4(_state(torch, files, dtype, allow)),
        output_loading_info=True,
        **common,
    )
    if wrong := sorted(report["missing_keys"]) or sorted(report["mismatched_keys"]):
        raise ReferenceUnavailable(
            f"transformers misses parameter {wrong[0]!r} in {files.folder}: "
            "the weights do not belong to this config.json"
        )
    return model


def lift(model: Any) -> Any:
    """The weights of a model in one built, rotary frequencies included, in float64."""
    from transformers import initialization

    config = copy.deepcopy(model.config)
    config._attn_implementation = config._experts_implementation = "eager"
    with lifted(), initialization.no_init_weights():
        high = type(model)(config)
    state = model.state_dict()
    floating = {name: v.double() for name, v in state.items() if v.is_floating_point()}
    high.double().load_state_dict({**state, **floating})
    return high


def _state(torch: Any, files: ModelFiles, dtype: str, allow: Collection[str]) -> dict[str, Any]:
    """The checkpoint as torch tensors, by the names of its original: a quantised one put back."""
    if files.weights[0].suffix in PICKLES and "pickle" in allow:
        shards = [torch.load(path, map_location="cpu", weights_only=True) for path in files.weights]
        return {name: value for shard in shards for name, value in shard.items()}
    if files.weights[0].suffix == ".safetensors" and as_original(files):
        from safetensors.torch import load_file

        return {k: v for shard in files.weights for k, v in load_file(shard).items()}
    plain = plain_weights(files, dtype)
    return {name: to_torch(torch, array) for name, array in plain.items()}


def unpack_mxfp4(state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint with the matrices that transformers makes of MXFP4 blocks and scales."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    found = dict(state)
    for name in state:
        base = name.removesuffix("_blocks")
        if base != name and f"{base}_scales" in state:  # bfloat16 holds every one of these numbers
            blocks, scales = found.pop(name), found.pop(f"{base}_scales")
            found[base] = convert_moe_packed_tensors(blocks, scales)
    return found


def configuration(transformers: Any, files: ModelFiles) -> Any:
    """config.json as transformers' own object. Raises ReferenceUnavailable."""
    try:
        # It is given plain matrices.
        return parsed({key: v for key, v in files.config.items() if key not in PACKED})
    except Exception as error:  # validation errors of many kinds
        if "auto_map" in files.config:
            raise ReferenceUnavailable(
                f"transformers would run code that lies in {files.folder} (auto_map), "
                "which is refused: --allow remote-code runs it"
            ) from None
        raise ReferenceUnavailable(
            f"transformers {transformers.__version__} does not accept the configuration of "
            f"{files.folder}: {one_line(error)}"
        ) from None


def parsed(raw: Mapping[str, Any]) -> Any:
    """What stands in a config.json as transformers' object; raises whatever its class raises."""
    import transformers

    # It spells infinity {"__float__": "Infinity"}, and writes into nested settings it is given.
    settings = transformers.PreTrainedConfig._decode_special_floats(copy.deepcopy(dict(raw)))
    return transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)


def size_of(model: Any) -> int:
    """How many parameters, empty ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextlib.contextmanager
def threads_for(parameters: int) -> Iterator[None]:
    """A small model runs on one thread: that is quicker, and the same on any number of cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1 if parameters < SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def decoder_layers(model: Any) -> tuple[str, Any]:
    """Path and list of the decoder layers: the module list as long as the config says. LongCat has
    two attentions a layer, and counts both in num_hidden_layers."""
    import torch

    config = model.config.get_text_config()
    count = config.num_hidden_layers
    for length in (count, getattr(config, "num_layers", count)):
        for path, module in model.named_modules():
            if isinstance(module, torch.nn.ModuleList) and len(module) == length:
                return path, module
    raise ReferenceUnavailable(f"{type(model).__name__} has no list of {count} decoder layers")


def last_norm(model: Any, layers_path: str) -> Any:
    """The norm after the last block: the last one beside the list of layers."""
    owner = model.get_submodule(layers_path.rpartition(".")[0])
    norms = [m for m in owner.children() if "norm" in type(m).__name__.lower()]
    return norms[-1] if norms else None
