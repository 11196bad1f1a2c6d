"""What the configuration files around a tokenizer say, in the precedence transformers gives them.

- Special tokens: tokenizer_config.json. Where it has no `added_tokens_decoder`, what
  special_tokens_map.json says wins, and added_tokens.json adds tokens; else both are passed over.
- BOS is the tokenizer's own. EOS is what the tokenizer, config.json and generation_config.json
  say, all together; what a model type has by default is nobody's statement, and counts for nothing.
- Chat templates: chat_template.jinja (the default one) and additional_chat_templates/NAME.jinja;
  where there is neither, `chat_template` of tokenizer_config.json, which may hold several by name.

Sources: PreTrainedTokenizerBase.from_pretrained and .__init__ of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import TokenizerMismatch
from ..files import ModelFiles, read_json

# In the order in which they get ids where the vocabulary has none for them.
NAMED = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_NAMED_TEMPLATES = "additional_chat_templates"
DEFAULT = "default"  # the name of a model's only chat template


@dataclass(frozen=True)
class Settings:
    """The configuration of one tokenizer.

    `stated` is tokenizer_config.json with what older files add; `added` its tokens by id, None
    where tokenizer.json's own added tokens count, and `older` those of added_tokens.json. `model`
    and `generation` are config.json and generation_config.json.
    """

    stated: Mapping[str, Any]
    added: Mapping[int, Mapping[str, Any]] | None
    older: Mapping[int, Mapping[str, Any]]
    templates: Mapping[str, str]
    model: Mapping[str, Any]
    generation: Mapping[str, Any]

    @property
    def named(self) -> dict[str, Any]:
        """Special tokens by name, `bos_token` and its like first, then names of the model's own."""
        extra = self.stated.get("extra_special_tokens")
        own = {key: self.stated.get(key) for key in NAMED}
        own |= {k: v for k, v in self.stated.items() if k.endswith("_token") and k not in own}
        own |= extra if isinstance(extra, dict) else {}
        return {key: token for key, token in own.items() if content(token)}

    @property
    def extra(self) -> list[Any]:
        """Special tokens without a name."""
        extra = self.stated.get("extra_special_tokens", self.stated.get(_OLD_EXTRA)) or []
        return [] if isinstance(extra, dict) else list(extra)

    def eos_ids(self, id_of: Callable[[str], int | None]) -> frozenset[int]:
        """Every id that some file calls EOS; `id_of` is None for a text that is no token."""
        named = content(self.stated.get("eos_token"))
        found: list[Any] = [id_of(named) if named else None]
        for source in (self.model, self.generation):
            ids = source.get("eos_token_id")
            found += ids if isinstance(ids, list) else [ids]
        return frozenset(filter(_is_id, found))


_OLD_EXTRA = "additional_special_tokens"


def read_settings(files: ModelFiles) -> Settings:
    """Read what is there. Raises TokenizerMismatch for a file that is no JSON object."""
    folder = files.folder
    stated, older = _stated(folder), {}
    added = stated.get("added_tokens_decoder")
    if added is None:
        special = {content(stated.get(key)) for key in NAMED}
        special |= set(map(content, stated.get("extra_special_tokens") or ()))
        for text, id in _optional(folder / "added_tokens.json").items():
            flags = {"normalized": text not in special, "special": text in special}
            older[int(id)] = {"content": text, **flags}
    else:
        added = {int(id): token for id, token in added.items()}
    templates = _template_files(folder) or _stated_templates(stated.get("chat_template"))
    generation = _optional(folder / "generation_config.json")
    return Settings(stated, added, older, templates, files.config, generation)


def content(token: Any) -> str | None:
    """A token's text; configurations spell it as a string or as an object."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _stated(folder: Path) -> dict[str, Any]:
    stated = _optional(folder / "tokenizer_config.json")
    if _OLD_EXTRA in stated and not stated.get("extra_special_tokens"):
        stated["extra_special_tokens"] = stated.pop(_OLD_EXTRA)
    if "added_tokens_decoder" in stated:
        return stated
    for key, token in _optional(folder / "special_tokens_map.json").items():
        if key == "extra_special_tokens" and isinstance(token, list):
            known = list(stated.get(key) or [])
            token = known + [each for each in map(_special, token) if each not in known]
        stated[key] = _special(token) if key != "extra_special_tokens" else token
    return stated


def _special(token: Any) -> Any:
    return {**token, "special": True} if isinstance(token, dict) else token


def _template_files(folder: Path) -> dict[str, str]:
    found = dict(_named_files(folder))
    whole = folder / "chat_template.jinja"
    return {DEFAULT: _text(whole), **found} if whole.is_file() else found


def _named_files(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((folder / _NAMED_TEMPLATES).glob("*.jinja")):
        yield path.stem, _text(path)


def _stated_templates(stated: Any) -> dict[str, str]:
    if isinstance(stated, list):
        stated = {each.get("name"): each.get("template") for each in stated}
    stated = {DEFAULT: stated} if isinstance(stated, str) else stated
    return dict(stated) if isinstance(stated, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise TokenizerMismatch(
            f"{path} is not a readable text ({cause}): fetch it again"
        ) from None


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, TokenizerMismatch) if path.is_file() else {}


def _is_id(value: Any) -> TypeGuard[int]:
    """`true` is 1 to Python; a file that says so names no id."""
    return type(value) is int and value >= 0
