"""The tokenizer of a model: which file it is read from, and what is added to it.

tokenizer.json counts before tekken.json, and that before tokenizer.model, as for transformers
without mistral-common. Nothing here knows a model, or runs code that comes with one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import TokenizerMismatch, one_line
from ..files import ModelFiles
from .building import added_token
from .fast import read_fast
from .sentencepiece import read_sentencepiece
from .settings import Settings, content, read_settings
from .tekken import read_tekken
from .template import Templates
from .tokenizer import Tokenizer

Read = Callable[[Path, Settings], tuple[Any, Settings]]
FORMATS: dict[str, Read] = {
    "tokenizer.json": read_fast,
    "tekken.json": read_tekken,
    "tokenizer.model": read_sentencepiece,
}
# Clean-up was made for WordPiece; transformers does it to a BPE only where this is set.
_CLEAN_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """The tokenizer of a model. Raises TokenizerMismatch when none is there or readable."""
    settings = read_settings(files)
    path = tokenizer_file(files.folder)
    if path is None:
        raise TokenizerMismatch(
            f"{files.folder} has neither {' nor '.join(FORMATS)}: put the model's tokenizer "
            "there, or give prompts as token ids"
        )
    try:
        backend, settings = FORMATS[path.name](path, settings)
        _add_tokens(backend, settings)
        if path.name != "tokenizer.json":  # there its own post-processor adds BOS and EOS
            backend.post_processor = _ends(backend, settings)
    except TokenizerMismatch:
        raise
    except Exception as cause:  # the library raises bare Exceptions
        raise TokenizerMismatch(
            f"{path} is not a readable tokenizer ({one_line(cause)}): fetch it again"
        ) from None
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(settings.stated.get("split_special_tokens"))
    bos = content(settings.stated.get("bos_token"))
    named = {name: content(token) or "" for name, token in settings.named.items()}
    return Tokenizer(
        backend,
        backend.token_to_id(bos) if bos else None,
        settings.eos_ids(backend.token_to_id),
        templates=Templates(settings.templates, named, files.folder),
        clean_up=_cleans_up(backend, settings),
    )


def tokenizer_file(folder: Path) -> Path | None:
    """The file a tokenizer is read from; None where there is none."""
    return next((folder / name for name in FORMATS if (folder / name).is_file()), None)


def check_fits(max_id: int, rows: int, where: str | Path) -> None:
    """Raise TokenizerMismatch unless every id has an embedding row, and most rows an id.

    Rows without a token are normal, because embeddings are padded; by 2.4 % in DeepSeek-V2, the
    most known. Where more than half of them have none, the tokenizer is of another model.
    """
    if max_id >= rows:
        raise TokenizerMismatch(
            f"the tokenizer of {where} reaches id {max_id}, and the embedding has "
            f"{rows} rows, the last for id {rows - 1}: tokenizer and weights are not "
            "of the same model"
        )
    if 2 * (max_id + 1) < rows:
        raise TokenizerMismatch(
            f"the tokenizer of {where} ends at id {max_id}, and the embedding has {rows} rows: "
            f"ids from {max_id + 1} are missing; tokenizer and weights are not of the same model"
        )


def _add_tokens(backend: Any, settings: Settings) -> None:
    """Add the tokens a configuration names, in the order in which transformers gives them ids."""
    stated = {**settings.older, **(settings.added or {})}
    present = backend.get_added_tokens_decoder().values()
    named = {content(token) for token in settings.named.values()}
    known = {repr(token) for token in present}
    tokens = [added_token(stated[id]) for id in sorted(stated)]
    new = [token for token in tokens if repr(token) not in known]
    contents = {token.content for token in (*present, *new)}
    for token in filter(content, (*settings.named.values(), *settings.extra)):
        if content(token) not in contents:
            contents.add(content(token))
            new.append(added_token(token))
    for token in new:
        token.special = token.special or token.content in named
    backend.add_tokens(new)


def _ends(backend: Any, settings: Settings) -> Any:
    """What puts BOS and EOS around a text, where tokenizer_config.json asks for them."""
    from tokenizers.processors import TemplateProcessing

    around: list[list[tuple[str, Any]]] = []
    for end in ("bos", "eos"):
        text = content(settings.stated.get(f"{end}_token"))
        id = backend.token_to_id(text) if text else None
        asked = settings.stated.get(f"add_{end}_token") and id is not None
        around.append([(text or "", id)] if asked else [])
    bos, eos = around
    single = [text for text, _ in bos] + ["$A"] + [text for text, _ in eos]
    return TemplateProcessing(single=single, special_tokens=bos + eos)


def _cleans_up(backend: Any, settings: Settings) -> bool:
    asked = bool(settings.stated.get("clean_up_tokenization_spaces"))
    bpe = type(backend.model).__name__ == "BPE"
    return asked and (not bpe or bool(settings.stated.get(_CLEAN_BPE)))
