"""Find a model and its files: what `--model` names becomes a folder, weight files and a config.

Resolved in this order: a path that exists, a golden model, a Hub id through huggingface_hub's own
cache. Here files are only found; what the weights hold is `engine/weights`' business, what the
configuration means is `engine/config.py`'s. The network is touched for a Hub id alone.
"""

from __future__ import annotations

import difflib
import errno
import json
import re
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import (
    CorruptWeights,
    InvalidConfig,
    ModelNotFound,
    UnsupportedFormat,
    one_line,
)

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
HUB_PATTERNS = ("*.json", "*.safetensors", "*.npz", "*.model", "*.txt", "*.jinja")
# Sub-folders hold other frameworks' copies, chat templates apart; `consolidated*` is a second copy
# in Meta's layout.
HUB_IGNORED = (*(f"*/{pattern}" for pattern in HUB_PATTERNS[:-1]), "consolidated*")
_NPZ_SHARD = re.compile(r"weights\.\d+\.npz")  # of early conversions of large models
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model; nothing but config and index has been read yet."""

    name: str  # what the user gave
    folder: Path  # where config.json and the tokenizer's files lie
    weights: tuple[Path, ...]  # safetensors shards in name order, or one .npz
    index: Mapping[str, str] | None  # tensor name -> shard name, where there is an index
    config: Mapping[str, Any]  # config.json, what the npz carries, or either made of Meta's


def find_model(
    model: str | Path, revision: str | None = None, *, pickles: bool = False
) -> ModelFiles:
    """Find the files of a model.

    `revision` is a branch, tag or commit and goes with a Hub id only. `pickles` accepts pickled
    weights where there are no others; the engine itself never reads them. Raises ModelNotFound,
    UnsupportedFormat, CorruptWeights or InvalidConfig.
    """
    name = str(model)
    path = _path(name, revision)
    return _folder(name, path, pickles) if path.is_dir() else _file(name, path, pickles)


def find_tokenizer(model: str | Path, revision: str | None = None) -> ModelFiles:
    """The files of a model without its weights, which need not be there; nor need config.json."""
    name = str(model)
    path = _path(name, revision)
    folder = path if path.is_dir() else path.parent
    config = folder / "config.json"
    found = read_json(config, InvalidConfig) if config.is_file() else {}
    return ModelFiles(name, folder, (), None, found)


def _path(name: str, revision: str | None) -> Path:
    if not name.strip():
        raise ModelNotFound(
            "the model name is empty: give a folder, a file, a golden model or a Hub id"
        )
    path = _local(name)
    if path is None:
        if _HUB_ID.fullmatch(name) is None:
            raise ModelNotFound(_not_found(name))
        path = _download(name, revision)
    elif revision is not None:
        raise ModelNotFound(
            f"revision {revision!r} goes with a Hub id, and {name!r} is the local {path}: "
            "leave --revision out"
        )
    return path


def golden_roots() -> tuple[Path, ...]:
    """Folders that may hold golden models: here, installed with the package, in the source tree."""
    return (
        Path("golden/models"),
        Path(sysconfig.get_path("data")) / "share" / "mlx-parity" / "golden" / "models",
        Path(__file__).parent.parent / "golden" / "models",
    )


def golden_models() -> list[str]:
    """Names that `--model` takes from the golden folders, sorted."""
    found = set()
    for root in golden_roots():
        if root.is_dir():
            entries = (p for p in root.iterdir() if p.is_dir() or p.suffix == ".npz")
            found |= {entry.name for entry in entries if not entry.name.startswith(".")}
    return sorted(found)


def read_json(path: Path, error: type[Exception]) -> dict[str, Any]:
    """The object in a JSON file; anything else is raised as `error`."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as cause:
        raise error(
            f"{path} is not readable JSON ({one_line(cause)}): fetch the file again"
        ) from None
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {type(value).__name__}, not an object: fetch it again")
    return value


def _local(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.exists():
        return path
    inner = name.replace("\\", "/").removeprefix("./").removeprefix("golden/models/").strip("/")
    if "/" in inner or inner in ("", ".", ".."):
        return None
    candidates = (root / file for root in golden_roots() for file in (inner, f"{inner}.npz"))
    return next((candidate for candidate in candidates if candidate.exists()), None)


def _not_found(name: str) -> str:
    golden = golden_models()
    near = difflib.get_close_matches(Path(name).name, golden, n=3, cutoff=0.5) or golden
    hint = f"golden models: {', '.join(near)}" if near else "no golden models are installed"
    if Path(name).parent != Path("."):
        return f"no file or folder {name!r}: check the path; {hint}"
    return f"no model {name!r}: give a folder, a file, or a Hub id as owner/name; {hint}"


def _download(name: str, revision: str | None) -> Path:
    """A snapshot of the needed files in huggingface_hub's cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelNotFound(
            f"{name!r} is no local path, and huggingface_hub is missing to fetch it as a Hub id: "
            "pip install huggingface_hub"
        ) from None
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(HUB_PATTERNS),
            ignore_patterns=list(HUB_IGNORED),
        )
    except Exception as cause:  # its client, the network, the disk: no common base, one meaning
        raise ModelNotFound(_hub_failure(name, revision, cause)) from cause
    return Path(folder)


def _hub_failure(name: str, revision: str | None, cause: BaseException) -> str:
    from huggingface_hub import constants, errors

    place = f"Hub id {name!r}" + (f" at revision {revision!r}" if revision else "")
    where = constants.ENDPOINT
    chain = list(_causes(cause))

    def met(kind: type[BaseException]) -> bool:
        return any(isinstance(each, kind) for each in chain)

    if any(isinstance(each, OSError) and each.errno in _NO_ROOM for each in chain):
        return (
            f"{place} does not fit into {constants.HF_HUB_CACHE} ({one_line(chain[-1])}): make "
            "room there, or set HF_HOME to another place; what was fetched is kept"
        )
    if met(errors.OfflineModeIsEnabled):
        return f"{place} is not in the cache, and HF_HUB_OFFLINE is set: unset it to download"
    if met(errors.GatedRepoError):
        return f"{place} is gated: accept its terms at {where}/{name} and set HF_TOKEN"
    if met(errors.RepositoryNotFoundError):
        return (
            f"{place} does not exist at {where}, nor is there such a folder here: check the "
            "spelling; a private one needs HF_TOKEN"
        )
    if met(errors.RevisionNotFoundError):
        return f"{place} has no such revision at {where}: check --revision"
    if met(errors.HFValidationError):
        return (
            f"{place} is neither a file or folder here nor a valid id ({one_line(cause)}): check it"
        )
    return f"{place} could not be fetched from {where} ({one_line(chain[-1])}): check the network"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__


def _folder(name: str, folder: Path, pickles: bool) -> ModelFiles:
    index_file = folder / INDEX
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    shards = tuple(file for file in files if file.suffix == ".safetensors")
    packed = tuple(file for file in files if file.suffix == ".npz")
    index = None
    if index_file.exists():
        index = _weight_map(index_file)
        weights = tuple(folder / shard for shard in sorted(set(index.values())))
        absent = [shard.name for shard in weights if not shard.is_file()]
        if absent:
            others = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise CorruptWeights(
                f"shard {absent[0]}{others} is missing: {index_file} names it; fetch it again"
            )
    elif shards:
        whole = folder / "model.safetensors"
        weights = (whole,) if whole in shards else shards
    elif len(packed) == 1 or (packed and all(_NPZ_SHARD.fullmatch(file.name) for file in packed)):
        weights = packed
    elif packed:
        raise UnsupportedFormat(
            f"{folder} holds {len(packed)} .npz files ({packed[0].name}, {packed[1].name}...): "
            "name one of them"
        )
    else:
        weights = tuple(file for file in files if file.suffix in PICKLES) if pickles else ()
        if not weights:
            raise _no_weights(folder, files)
    return ModelFiles(name, folder, weights, index, _config(folder, weights))


def _file(name: str, path: Path, pickles: bool) -> ModelFiles:
    if path.suffix in PICKLES and not pickles:
        raise pickled(path)
    if path.suffix not in (".safetensors", ".npz", *PICKLES):
        raise UnsupportedFormat(
            f"{path} is neither .safetensors nor .npz: give such a file, or the model's folder"
        )
    return ModelFiles(name, path.parent, (path,), None, _config(path.parent, (path,)))


def _no_weights(folder: Path, files: list[Path]) -> Exception:
    refused = [file for file in files if file.suffix in PICKLES]
    if refused:
        return pickled(refused[0])
    return ModelNotFound(
        f"{folder} is a folder without weights: it needs {INDEX}, *.safetensors or one .npz"
    )


def pickled(path: Path) -> UnsupportedFormat:
    """The refusal of a pickle."""
    return UnsupportedFormat(
        f"{path} is a pickle, which can run code when read, and is refused: convert it where you "
        "trust it, with transformers' from_pretrained(...).save_pretrained(...), to safetensors"
    )


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> shard name; a shard is a plain name, so it cannot lead out of the folder."""
    table = read_json(path, CorruptWeights).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CorruptWeights(f"{path} has no weight_map: fetch the index again, or delete it")
    for tensor, shard in table.items():
        plain = isinstance(shard, str) and re.fullmatch(r"[^/\\:\0]+\.safetensors", shard)
        if not plain:
            raise CorruptWeights(
                f"{path} places {tensor!r} in {shard!r}: a shard must be a plain .safetensors "
                "file name in the same folder; correct the index"
            )
    return table


def _config(folder: Path, weights: tuple[Path, ...]) -> dict[str, Any]:
    """The configuration in transformers' form, wherever it stands."""
    where, config = _raw_config(folder, weights)
    if not {"dim", "n_layers"} <= config.keys():
        return config
    from .weights import meta, shapes_of

    return meta.normal_config(config, shapes_of(weights), where)


def _raw_config(folder: Path, weights: tuple[Path, ...]) -> tuple[str, dict[str, Any]]:
    """config.json, what the npz carries, or Meta's params.json; and where it stands."""
    path, params = folder / "config.json", folder / "params.json"
    if path.exists():
        return str(path), read_json(path, InvalidConfig)
    if weights[0].suffix == ".npz":
        from .weights.npz import CONFIG_KEY, read_config

        config = read_config(weights[0])
        if config is not None:
            return f"entry {CONFIG_KEY!r} of {weights[0]}", config
        if not params.exists():
            raise InvalidConfig(
                f"{weights[0]} has no config.json beside it and no entry {CONFIG_KEY!r} inside: "
                "put the model's config.json beside it"
            )
    if params.exists():
        return str(params), read_json(params, InvalidConfig)
    raise InvalidConfig(f"{path} is missing: put the model's config.json beside its weights")
