"""Train the tiny models that `golden/models` ships.

    python -m harness.golden.train NAME [--out golden/models]      NAME: tiny-llama, tiny-gemma3,
                                                                   tiny-gpt2 or all

Each model is one `Recipe` of `recipes.py`. It is built and trained in float32 by transformers' own
class. A row of the training data is what generation sees: BOS where the tokenizer adds one, then
text. The text is the Python standard library's source, which every machine has.

Promised: on one machine, with one version of Python (the text is its library), torch,
transformers and tokenizers, a second run writes the same bytes, `training.json` apart (it holds
the seconds). Not promised: the same bytes from another processor, thread count or version.

This module knows nothing of the engine, of MLX, of traces and of the manifest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recipes import CONTEXT, RECIPES, Recipe
from .vocabulary import TOKENIZERS, VOCABULARY

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

BATCH = 8
THREADS = 2  # sums depend on how work is split, so the count is part of the recipe
REPORT_EVERY = 100  # steps between two printed lines

# Modules that Python 3.11, 3.12 and 3.13 all have; a held-out file is never trained on.
_TRAIN_FILES = """
_collections_abc abc argparse ast asyncio/base_events asyncio/events asyncio/futures
asyncio/locks asyncio/queues asyncio/streams asyncio/tasks base64 bdb bisect calendar cmd code
codecs collections/__init__ compileall concurrent/futures/_base concurrent/futures/process
configparser contextlib copy csv dataclasses difflib email/feedparser email/header
email/message enum filecmp fileinput fractions ftplib functools getopt gettext glob graphlib
gzip hashlib heapq html/parser http/client http/cookies http/server imaplib ipaddress
json/decoder json/encoder linecache logging/__init__ logging/config mailbox numbers operator
optparse pickle pkgutil plistlib poplib pprint queue random sched selectors shelve shutil
socketserver statistics string subprocess tempfile textwrap threading timeit tokenize
traceback types unittest/case unittest/loader unittest/suite urllib/parse urllib/robotparser
uuid warnings wave weakref xml/dom/minidom zipapp
"""
TRAIN_FILES = tuple(_TRAIN_FILES.split())
HELD_OUT_FILES = ("cProfile", "fnmatch", "json/tool", "netrc", "quopri", "reprlib", "shlex")


def train(name: str, out: Path, steps: int | None = None) -> dict[str, Any]:
    """Train the recipe `name` into `out/name`; return what `training.json` records.

    `steps` shortens the training, for tests. Raises KeyError for an unknown name.
    """
    recipe = RECIPES[name]
    steps = recipe.steps if steps is None else steps
    started = time.perf_counter()
    train_texts, held_out_texts = _read_library(TRAIN_FILES), _read_library(HELD_OUT_FILES)
    tokenizer = TOKENIZERS[recipe.tokenizer](train_texts)
    train_ids, held_out_ids = (
        _token_stream(recipe, tokenizer, texts) for texts in (train_texts, held_out_texts)
    )
    with _deterministic(recipe.seed):
        model = _build(recipe)
        losses = _descend(recipe, model, train_ids, steps)
        rows = held_out_ids[: len(held_out_ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)
        held_out_loss, peak = _evaluate(model, _with_bos(recipe, rows))
    weights = {
        key: value.detach().contiguous().numpy()
        for key, value in model.state_dict().items()
        if not (key == "lm_head.weight" and recipe.config["tie_word_embeddings"])
    }
    record = {
        "command": f"python -m harness.golden.train {name}",
        "seed": recipe.seed,
        "threads": THREADS,
        "steps": steps,
        "tokens_seen": steps * BATCH * CONTEXT,
        "corpus": {
            "text": "Python standard library, files in harness/golden/train.py",
            "sha256": hashlib.sha256("".join(train_texts + held_out_texts).encode()).hexdigest(),
            "train_tokens": len(train_ids),
            "held_out_tokens": len(held_out_ids),
        },
        "optimizer": {"name": "AdamW", "peak_rate": recipe.peak_rate, "batch": BATCH},
        "parameters": sum(value.size for value in weights.values()),
        "loss": {
            "train": sum(losses[-REPORT_EVERY:]) / len(losses[-REPORT_EVERY:]),
            "held_out": held_out_loss,
            "uniform": math.log(VOCABULARY),
        },
        "attention_peak": peak,
        "versions": _versions(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    folder = out / name
    _write(folder, recipe, tokenizer, weights)
    _write_json(folder / "training.json", record)
    return record


def _read_library(names: tuple[str, ...]) -> list[str]:
    import sysconfig

    library = Path(sysconfig.get_path("stdlib"))
    missing = [name for name in names if not (library / f"{name}.py").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{library} lacks the source of {', '.join(missing)}: install the complete library"
        )
    return [(library / f"{name}.py").read_text(encoding="utf-8") for name in names]


def _token_stream(recipe: Recipe, tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """Return all texts as one row of ids, each text followed by EOS."""
    import torch

    ids: list[int] = []
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        ids += [*encoding.ids, recipe.config["eos_token_id"]]
    return torch.tensor(ids)


def _with_bos(recipe: Recipe, rows: torch.Tensor) -> torch.Tensor:
    if recipe.tokenizer == "gpt2":
        return rows
    rows = rows.clone()
    rows[:, 0] = recipe.config["bos_token_id"]
    return rows


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seed torch and fix everything its sums depend on; leave torch as it was found."""
    import torch

    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(THREADS)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict)


def _build(recipe: Recipe) -> PreTrainedModel:
    import copy

    import torch
    import transformers

    model_class = getattr(transformers, recipe.architecture)
    # a copy: transformers 5 rewrites the rotary dictionaries in place
    config = model_class.config_class(**copy.deepcopy(dict(recipe.config)))
    config._attn_implementation = "eager"
    model = model_class(config).to(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start = next((each for each in recipe.starts if re.search(each.names, name)), None)
            if start is not None:
                parameter.uniform_(start.low, start.high)
    return model


def _descend(recipe: Recipe, model: PreTrainedModel, ids: torch.Tensor, steps: int) -> list[float]:
    """Train in place with AdamW, warm-up and a cosine; return the loss of every step."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), recipe.peak_rate, weight_decay=0.0)
    warm_up = min(100, steps)

    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        progress = (step - warm_up) / max(1, steps - warm_up)
        return 0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    offsets = torch.arange(CONTEXT)
    losses: list[float] = []
    model.train()
    for step in range(1, steps + 1):
        firsts = torch.randint(len(ids) - CONTEXT, (BATCH, 1))
        rows = _with_bos(recipe, ids[firsts + offsets])  # [B, T]
        loss = _loss(model, rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % REPORT_EVERY == 0 or step == steps:
            recent = losses[-REPORT_EVERY:]
            print(
                f"{recipe.name} step {step}/{steps} loss {sum(recent) / len(recent):.3f}",
                flush=True,
            )
    return losses


def _loss(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    import torch

    logits = model(rows, use_cache=False).logits  # [B, T, V]
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())


def _evaluate(model: PreTrainedModel, rows: torch.Tensor) -> tuple[float, float]:
    """Return the loss over `rows` [B, T] and how peaked attention is.

    The second number is the largest attention probability, averaged over blocks, heads and the
    later half of the positions of the first row: near 1 / positions where logits are too small
    to matter.
    """
    import torch

    model.eval()
    with torch.no_grad():
        loss = sum(_loss(model, row[None]).item() for row in rows) / len(rows)
        attentions = model(rows[:1], use_cache=False, output_attentions=True).attentions
        peaks = [each[..., CONTEXT // 2 :, :].amax(-1).mean() for each in attentions]
    return loss, torch.stack(peaks).mean().item()


# Writing ------------------------------------------------------------------------------------


def _write(folder: Path, recipe: Recipe, tokenizer: Tokenizer, weights: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", recipe.config)
    _write_json(folder / "tokenizer_config.json", recipe.tokenizer_config)
    generation = {key: value for key, value in recipe.config.items() if key.endswith("_token_id")}
    _write_json(folder / "generation_config.json", generation | dict(recipe.generation))
    tokenizer.save(str(folder / "tokenizer.json"))
    if recipe.weights == "npz":
        # Names as gpt2 has on the Hub, without the base model's prefix: mlx-lm reads only those.
        bare = {name.removeprefix("transformer."): array for name, array in weights.items()}
        _write_npz(folder / "model.npz", bare, (folder / "config.json").read_bytes())
    else:
        from safetensors.numpy import save

        (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))


def _write_npz(path: Path, weights: dict[str, Any], config: bytes) -> None:
    """Write what `numpy.savez` writes, with fixed dates; `__config__` holds config.json's bytes."""
    import zipfile

    import numpy as np

    arrays = {"__config__": np.frombuffer(config, dtype=np.uint8)} | weights
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for key, array in arrays.items():
            member = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    packages = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    return versions | {"platform": f"{platform.system()} {platform.machine()}"}


def main(arguments: list[str] | None = None) -> int:
    """Train what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.golden.train",
        description="Train the tiny models that golden/models ships.",
    )
    parser.add_argument("name", choices=[*RECIPES, "all"])
    parser.add_argument("--out", type=Path, default=Path("golden/models"))
    options = parser.parse_args(arguments)
    for name in RECIPES if options.name == "all" else [options.name]:
        try:
            record = train(name, options.out)
        except OSError as error:  # a library without its source, a folder that refuses a file
            print(f"{parser.prog}: {error}", file=sys.stderr)
            return 2
        loss = record["loss"]
        print(
            f"{options.out / name}: {record['parameters']} parameters, loss {loss['train']:.3f}, "
            f"held out {loss['held_out']:.3f}, uniform {loss['uniform']:.3f}, "
            f"{record['seconds']} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
