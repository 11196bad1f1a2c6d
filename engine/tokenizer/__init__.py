"""Text to token ids and back, streamed text, stop strings, chat templates, without transformers.

One file a format (`fast.py`, `sentencepiece.py`, `tekken.py`); each becomes a pipeline of the
tokenizers library. `load_tokenizer` is the door. Nothing here knows a model, or runs code that
comes with one.
"""

from __future__ import annotations

from .loading import check_fits, load_tokenizer, tokenizer_file
from .stream import StopStrings, StreamDecoder
from .template import Templates
from .tokenizer import Tokenizer

__all__ = [
    "StopStrings",
    "StreamDecoder",
    "Templates",
    "Tokenizer",
    "check_fits",
    "load_tokenizer",
    "tokenizer_file",
]
