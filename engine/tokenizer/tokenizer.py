"""Text to token ids and back, as transformers does it; chats, and what begins and ends a text.

The tokenizers library does the work. Where the files come from is the business of `loading.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import InvalidPrompt, TokenizerMismatch, one_line
from .cleanup import cleaned
from .stream import StreamDecoder
from .template import Templates


class Tokenizer:
    """Encode, decode, and the ids that begin and end a text.

    `vocab_size` counts the tokens, `max_id` is the highest id that text can become; added tokens
    are in both. `added` are those, and decoding can leave out `special_ids`. `templates` are the
    model's chat templates.
    """

    def __init__(
        self,
        backend: Any,
        bos_id: int | None = None,
        eos_ids: Iterable[int] = (),
        *,
        templates: Templates | None = None,
        clean_up: bool = False,
    ) -> None:
        """`backend` is a `tokenizers.Tokenizer`; `clean_up` is that of `cleanup.py`."""
        self._backend = backend
        vocab = backend.get_vocab(with_added_tokens=True)
        inserted = backend.encode("").ids  # by the post-processor, which may know ids of its own
        self.vocab_size = len(vocab)
        self.max_id = max((*vocab.values(), *inserted), default=-1)
        added = backend.get_added_tokens_decoder().items()
        self.added = {id: token.content for id, token in added}
        self.special_ids = frozenset(id for id, token in added if token.special)
        self.bos_id = bos_id
        self.eos_ids = frozenset(eos_ids)
        self.templates = templates or Templates({}, {})
        self.clean_up = clean_up

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; `special` adds what the tokenizer adds of itself, such as BOS.

        Raises InvalidPrompt for half a surrogate pair, which is no text, and TokenizerMismatch
        when the tokenizer has no token for some of it.
        """
        return self._encoding(text, special).ids

    def offsets(self, text: str, *, special: bool = True) -> list[tuple[int, int]]:
        """Where in the text each id of `encode` comes from; (0, 0) for what the tokenizer adds."""
        return self._encoding(text, special).offsets

    def prompt(self, text: str) -> list[int]:
        """Token ids to feed to a model: as `encode` gives them, but BOS is not added to a text
        that begins with it."""
        plain = self.encode(text, special=False)
        begun = self.bos_id is not None and plain[:1] == [self.bos_id]
        ids = self.encode(text)
        return ids[1:] if begun and ids[:2] == [self.bos_id] * 2 else ids

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        generation: bool = True,
        **more: Any,
    ) -> list[int]:
        """Token ids of a conversation, by the model's chat template, which alone writes BOS.

        `generation` asks for the beginning of an answer. `more` is given to the template. Raises
        InvalidPrompt and InvalidTemplate.
        """
        text = self.templates.render(messages, tools=tools, generation=generation, **more)
        return self.encode(text, special=False)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of token ids; ids without a token are passed over."""
        text = self.raw_decode(ids, skip_special=skip_special)
        return cleaned(text) if self.clean_up else text

    def raw_decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The same before any clean-up."""
        known = [int(each) for each in ids if 0 <= each <= self.max_id]
        return self._backend.decode(known, skip_special_tokens=skip_special)

    def token(self, id: int) -> str | None:
        """How the vocabulary writes an id."""
        return self._backend.id_to_token(id) if 0 <= id <= self.max_id else None

    def to_json(self) -> str:
        """The pipeline as tokenizer.json has it."""
        return self._backend.to_str()

    def stream(self, *, skip_special: bool = False) -> StreamDecoder:
        """A decoder that takes one id at a time."""
        return StreamDecoder(self, skip_special=skip_special)

    def _encoding(self, text: str, special: bool) -> Any:
        try:
            return self._backend.encode(text, add_special_tokens=special)
        except Exception as cause:
            at = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
            if at is not None:
                raise InvalidPrompt(
                    f"the text has half a surrogate pair, U+{ord(text[at]):04X}, at character {at}:"
                    " it is no Unicode text; decode its source with errors='replace'"
                ) from None
            raise TokenizerMismatch(
                f"the tokenizer cannot encode {text[:40]!r} ({one_line(cause)}): change the "
                "prompt, or give it as token ids"
            ) from None
