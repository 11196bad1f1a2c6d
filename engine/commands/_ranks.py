"""The option of commands that run a model over several processes, and what is made of it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..ranks import Ranks

# Seconds after which another rank than 0 says what it fails at: what all fail at, rank 0 has said
# by then, and whoever started them has ended the others.
_LATER = 3.0

RanksOption = Annotated[
    int | None,
    typer.Option(
        "--ranks", min=1, help="Split the model over so many processes here; mlx.launch for more."
    ),
]


@contextlib.contextmanager
def ranked(asked: int | None) -> Iterator[Ranks | None]:
    """The ranks that this process is one of, None where it is alone.

    Where they are asked for and nobody has started them, they are started, and this process ends
    with their status. All ranks run the command; only rank 0 prints, but for errors.
    """
    from ..launch import Started, started

    if not started():
        if asked is None or asked == 1:
            yield None
            return
        with Started([sys.executable, "-m", "engine", *sys.argv[1:]], asked) as processes:
            processes.keep_signals()
            raise typer.Exit(processes.wait())
    from ..errors import EngineError, RankLost, RanksUnavailable
    from ..launch import end_with_starter
    from ..ranks import join

    end_with_starter()
    ranks = join()
    if asked is not None and asked != (ranks.size if ranks else 1):
        raise RanksUnavailable(
            f"--ranks {asked}: {ranks.size if ranks else 1} processes were started; leave it out"
        )
    if ranks is None:
        yield None
        return
    if ranks.rank == 0:
        with ranks.guarded():
            yield ranks
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 says when it is over
    try:
        with (
            open(os.devnull, "w") as nothing,
            contextlib.redirect_stdout(nothing),
            contextlib.redirect_stderr(nothing),
            ranks.guarded(),
        ):
            yield ranks
    except RankLost:
        raise
    except EngineError as error:
        time.sleep(_LATER)
        raise type(error)(f"rank {ranks.rank}: {error}") from None
