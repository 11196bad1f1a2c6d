"""Train the tiny models that `golden/models` ships.

    python -m harness.golden.train NAME [--out golden/models]      NAME: tiny-llama, tiny-gemma3,
                                                                   tiny-gpt2 or all

Each model is one `Recipe` below, data only; the rest of the file is common to all. A model is
built and trained in float32 by transformers' own class, and made to expose faults: norm gains
and biases start at random, far from one and zero, and query and key weights start large, so that
attention is peaked. A row of the training data is what generation sees: BOS where the tokenizer
adds one, then text. The text is the Python standard library's source, which every machine has.

Promised: on one machine, with one version of Python (the text is its library), torch,
transformers and tokenizers, a second run writes the same bytes, `training.json` apart (it holds
the seconds). Not promised: the same bytes from another processor, thread count or version.

`config.json` is spelled as transformers 4 spells it (rope_theta + rope_scaling,
rope_local_base_freq + sliding_window_pattern): transformers 5 reads both spellings, mlx-lm 0.32.2
only this one, and falls back to its defaults in silence on the newer. The dictionary that is
written is the one the model was built from.

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

VOCABULARY = 512
CONTEXT = 256  # tokens a row holds: every position a config allows is trained
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


@dataclass(frozen=True)
class Start:
    """How the parameters whose name matches `names` begin; the rest begin as the class does."""

    names: str  # regular expression, searched
    low: float
    high: float


@dataclass(frozen=True)
class Recipe:
    """Everything that makes one golden model."""

    name: str
    architecture: str  # class in transformers
    config: Mapping[str, Any]  # config.json itself; the class's config is built from it
    tokenizer: str  # key of TOKENIZERS
    tokenizer_config: Mapping[str, Any]  # tokenizer_config.json itself
    starts: tuple[Start, ...]  # the first that matches counts
    steps: int
    weights: str = "safetensors"  # or npz
    peak_rate: float = 3e-3
    seed: int = 20


COMMON = {"vocab_size": VOCABULARY, "torch_dtype": "float32", "use_cache": True}

LLAMA = Recipe(
    name="tiny-llama",
    architecture="LlamaForCausalLM",
    config=COMMON
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_size": 60,  # not a square
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,  # not 60 / 4
        "intermediate_size": 160,
        "hidden_act": "silu",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 5000.0,
        # wavelengths are 6 to 15454 tokens: two of the twelve stay, two blend, eight are stretched
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "attention_dropout": 0.0,
    },
    tokenizer="llama3",
    tokenizer_config={
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    },
    starts=(
        Start(r"norm\.weight$", 0.5, 1.5),
        Start(r"\.bias$", -0.3, 0.3),
        Start(r"[qk]_proj\.weight$", -0.35, 0.35),
    ),
    steps=2000,
)

GEMMA3 = Recipe(
    name="tiny-gemma3",
    architecture="Gemma3ForCausalLM",
    config=COMMON
    | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        # A square on purpose: mlx-lm 0.32.2 rounds the embedding's scale sqrt(hidden_size) to
        # bfloat16 at every dtype (models/gemma3_text.py, Gemma3Model.__call__), so that any
        # other width would be a true difference; 8 is exact.
        "hidden_size": 64,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,  # not 64 / 4
        "query_pre_attn_scalar": 18,  # neither head_dim nor 64 / 4
        "intermediate_size": 128,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "rms_norm_eps": 3e-5,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 20000.0,  # global layers
        "rope_local_base_freq": 3000.0,
        "rope_scaling": None,
        "sliding_window": 8,
        "sliding_window_pattern": 3,  # blocks 2 and 5 see everything, the others the window
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "attention_dropout": 0.0,
    },
    tokenizer="gemma",
    tokenizer_config={
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",  # GemmaTokenizer would add it beyond the embedding's rows
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    },
    # a Gemma norm multiplies by 1 + weight
    starts=(
        Start(r"[qk]_norm\.weight$", 0.2, 1.0),
        Start(r"norm\.weight$", -0.5, 0.5),
    ),
    steps=1200,
)

GPT2 = Recipe(
    name="tiny-gpt2",
    architecture="GPT2LMHeadModel",
    config=COMMON
    | {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "n_embd": 60,  # not a square
        "n_layer": 4,
        "n_head": 4,
        "n_inner": None,  # 4 * n_embd, which mlx-lm takes for granted
        "n_positions": CONTEXT,
        "n_ctx": CONTEXT,  # mlx-lm requires the old spelling too
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 3e-5,
        "tie_word_embeddings": True,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    },
    tokenizer="gpt2",
    tokenizer_config={
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    },
    starts=(
        Start(r"ln_\w+\.weight$", 0.5, 1.5),
        Start(r"\.bias$", -0.3, 0.3),
        Start(r"c_attn\.weight$", -0.35, 0.35),
    ),
    steps=2500,
    weights="npz",
)

RECIPES = {recipe.name: recipe for recipe in (LLAMA, GEMMA3, GPT2)}


# Tokenizers ---------------------------------------------------------------------------------


def _llama3_tokenizer(texts: list[str]) -> Tokenizer:
    """Return a byte-level BPE that splits as Llama 3 does and begins every text with BOS."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _learn_merges(tokenizer, texts, ["<|begin|>", "<|end|>"], pre_tokenizers.ByteLevel.alphabet())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A",
        pair="<|begin|> $A <|begin|> $B",
        special_tokens=[("<|begin|>", 0)],
    )
    return tokenizer


def _gpt2_tokenizer(texts: list[str]) -> Tokenizer:
    """Return GPT-2's byte-level BPE: no BOS, one special token that ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _learn_merges(tokenizer, texts, ["<|endoftext|>"], pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


def _gemma_tokenizer(texts: list[str]) -> Tokenizer:
    """Return a BPE over characters, in SentencePiece's manner, with byte fallback and BOS.

    The pipeline is the one transformers' GemmaTokenizer builds whatever the file says, so the
    file says the same.
    """
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = [chr(code) for code in range(0x21, 0x7F)] + ["\n", "\t", "\u2581"]
    words = "\u2581*[A-Za-z0-9_]+|\u2581*[^A-Za-z0-9_\u2581\n]+|\u2581+|\n+"

    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "\u2581")
    # for learning alone: without it the whole corpus would be one word
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(words), "isolated")
    _learn_merges(learner, texts, specials + fallback, characters)
    learned = json.loads(learner.to_str())["model"]

    tokenizer = Tokenizer(
        models.BPE(
            vocab=learned["vocab"],
            merges=[tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B:1", special_tokens=[("<bos>", 2)]
    )
    tokenizer.add_special_tokens(specials)
    return tokenizer


TOKENIZERS: dict[str, Callable[[list[str]], Tokenizer]] = {
    "llama3": _llama3_tokenizer,
    "gemma": _gemma_tokenizer,
    "gpt2": _gpt2_tokenizer,
}


def _learn_merges(
    tokenizer: Tokenizer,
    texts: list[str],
    specials: list[str],
    alphabet: list[str],
) -> None:
    from tokenizers import trainers

    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=sorted(alphabet),
        limit_alphabet=len(alphabet),  # a rarer character goes to the byte fallback
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}")


# Training -----------------------------------------------------------------------------------


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
    _write_json(folder / "generation_config.json", generation)
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
