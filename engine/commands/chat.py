"""`engine chat`: a conversation in a terminal or through a pipe."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import remark
from ..options import (
    Backend,
    Device,
    Dtype,
    KvBits,
    KvGroupSize,
    ModelOption,
    Revision,
    StopToken,
)
from ._sampling import with_sampling

if TYPE_CHECKING:
    from ..backend import Running
    from ..sampling import Sampling
    from ..tokenizer import Tokenizer

QUOTES = '"""'  # around a message of several lines
HELP = f"/reset forgets the conversation, /exit ends it; {QUOTES} begins and ends several lines"
RESET, EXIT, ASK = "/reset", "/exit", "/help"
Message = dict[str, str]


@with_sampling
def chat(
    model: ModelOption,
    system: Annotated[str | None, typer.Option(help="What the model is told beforehand.")] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="At most so many in an answer.")
    ] = 1000,
    stop_token: StopToken = None,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
    kv_bits: KvBits = None,
    kv_group_size: KvGroupSize = None,
    revision: Revision = None,
    *,
    wishes: Mapping[str, Any],
) -> None:
    """Converse with a model, by its own chat template.

    Ctrl-C stops an answer. Every line of a pipe is a message.
    """
    from ..answer import stop_tokens
    from ..backend import choose_backend, open_model
    from ..errors import EngineError
    from ..files import find_model
    from ._output import tell, tell_packing
    from ._sampling import sampling_of, told

    files = find_model(model, revision)
    sampling = sampling_of(files.folder, wishes)
    choice = choose_backend(files, backend, device, dtype)
    tell(choice)
    running = open_model(
        files, choice.backend, dtype, device, kv_bits=kv_bits, kv_group_size=kv_group_size
    )
    tell_packing(running.packing)
    tokenizer = running.tokenizer()
    ends = tokenizer.eos_ids | stop_tokens(stop_token or (), tokenizer, running.vocab)
    before: list[Message] = [{"role": "system", "content": system}] if system else []
    tokenizer.chat([*before, _user("Hello")])  # what the template refuses is said at once
    remark(f"sampling: {told(sampling, wishes)}")
    terminal = sys.stdin.isatty()
    if terminal:
        remark(HELP)
    said, turn = list(before), 0
    for text in _messages(terminal):
        if text == EXIT:
            return
        if text == RESET:
            said, turn = list(before), 0
        elif text.startswith("/") and len(text.split()) == 1:
            remark(HELP if text == ASK else f"{text} is no command; {HELP}")
        else:
            said.append(_user(text))
            try:
                answer = _answer(running, tokenizer, said, max_tokens, ends, _nth(sampling, turn))
            except EngineError as error:
                if not terminal:
                    raise
                remark(f"engine: {error}")
                said.pop()
                continue
            said.append({"role": "assistant", "content": answer})
            turn += 1


def _answer(
    running: Running,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, str]],
    max_tokens: int,
    ends: frozenset[int],
    sampling: Sampling,
) -> str:
    """Print the answer to a conversation as it comes, and return it; Ctrl-C ends it."""
    from ..answer import Answer

    answer, pieces, note = Answer(tokenizer, ends=ends, skip_special=True), [], ""
    with _one_interrupt():
        try:
            for step in running.steps(
                tokenizer.chat(messages), max_tokens, stop=ends, sampling=sampling
            ):
                pieces.append(answer.push(step.token))
                print(pieces[-1], end="", flush=True)
            if answer.stopped_by is None:
                note = f"(ends here after {len(pieces)} tokens: --max-tokens allows more)"
        except KeyboardInterrupt:
            note = "(stopped)"
        pieces.append(answer.finish())
        print(pieces[-1], flush=True)
        if note:
            remark(note)
    return "".join(pieces)


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """A second Ctrl-C in here, of one who is impatient, does not end the program."""

    def interrupt(signal_number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    usual = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _messages(terminal: bool) -> Iterator[str]:
    """What is typed or piped, a message at a time, to the end of the input."""
    if terminal:
        import readline  # noqa: F401 - importing it gives input() its editing
    lines = _lines(terminal)
    for line in lines:
        text = line.strip()
        if text.startswith(QUOTES):
            text = _to_quotes(text.removeprefix(QUOTES), lines)
        if text:
            yield text


def _to_quotes(first: str, lines: Iterator[str]) -> str:
    """The lines up to the one that ends in quotes; to the end of the input where none does."""
    found = [first]
    while not found[-1].rstrip().endswith(QUOTES):
        line = next(lines, None)
        if line is None:
            break
        found.append(line)
    return "\n".join(found).rstrip().removesuffix(QUOTES).strip()


def _lines(terminal: bool) -> Iterator[str]:
    if not terminal:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # what is no text is seen to be none
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    while True:
        try:
            yield input(">>> ")
        except KeyboardInterrupt:
            remark(f"\n{EXIT} or Ctrl-D ends the conversation")
        except EOFError:
            print()
            return


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _nth(sampling: Sampling, turn: int) -> Sampling:
    """Every answer has the next seed, so that two that are asked for alike need not be alike."""
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + turn) % 2**64)
