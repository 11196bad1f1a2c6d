"""`harness tokenizer`: a candidate's tokenizer against transformers', loaded and compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.files import ModelFiles, find_tokenizer
from engine.tokenizer import check_fits, load_tokenizer

from ..errors import BadOption
from .comparing import Findings, compare
from .sides import Side, engine_side, mlx_lm_side, server_side

LOCAL = ("engine", "mlx-lm")
SERVER = ("http://", "https://")


def judge(
    model: str,
    candidate: str = "engine",
    count: int = 1000,
    seed: int = 0,
    *,
    revision: str | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Findings:
    """Compare with `count` random texts. The model needs no weights.

    Raises the errors of engine and harness; TokenizerMismatch where the reference's tokenizer does
    not fit the model.
    """
    from ..backends.torch import tokenizer_side

    if candidate not in LOCAL and not candidate.startswith(SERVER):
        raise BadOption(f"candidate {candidate!r}: there are {', '.join(LOCAL)}, http://HOST:PORT")
    files = find_tokenizer(model, revision)
    expected = tokenizer_side(files)
    actual = _side(candidate, files, expected.special)
    rows = files.config.get("vocab_size")
    if isinstance(rows, int) and expected.facts is not None:
        check_fits(expected.facts["max_id"], rows, files.folder)
    return compare(expected, actual, count, seed, progress=progress)


def _side(candidate: str, files: ModelFiles, special: frozenset[int]) -> Side:
    if candidate == "engine":
        return engine_side(load_tokenizer(files))
    if candidate == "mlx-lm":
        from ..backends.mlx_lm import load_wrapper

        return mlx_lm_side(load_wrapper(files))
    from ..backends import Request
    from ..backends.server import load

    server: Any = load(Request(files, "float32", argument=candidate))
    return server_side(server, special)
