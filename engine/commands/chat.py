"""`engine chat`: a conversation in a terminal or through a pipe."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import Backend, Device, Dtype, KvBits, KvGroupSize, ModelOption, Revision
from ._sampling import (
    Bias,
    Defaults,
    Frequency,
    MinP,
    OrderName,
    Presence,
    Repetition,
    Seed,
    Temperature,
    TopK,
    TopP,
    TypicalP,
)

if TYPE_CHECKING:
    from ..backend import Running
    from ..sampling import Sampling
    from ..tokenizer import Tokenizer

QUOTES = '"""'  # around a message of several lines
HELP = f"/reset forgets the conversation, /exit ends it; {QUOTES} begins and ends several lines"
RESET, EXIT, ASK = "/reset", "/exit", "/help"
Message = dict[str, str]


def chat(
    model: ModelOption,
    system: Annotated[str | None, typer.Option(help="What the model is told beforehand.")] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="At most so many in an answer.")
    ] = 1000,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
    kv_bits: KvBits = None,
    kv_group_size: KvGroupSize = None,
    revision: Revision = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    typical_p: TypicalP = None,
    repetition_penalty: Repetition = None,
    presence_penalty: Presence = None,
    frequency_penalty: Frequency = None,
    logit_bias: Bias = None,
    seed: Seed = None,
    order: OrderName = None,
    defaults: Defaults = False,
) -> None:
    """Converse with a model, by its own chat template.

    Ctrl-C stops an answer. Every line of a pipe is a message.
    """
    from ..backend import choose_backend, open_model
    from ..errors import EngineError
    from ..files import find_model
    from ._output import tell, tell_packing
    from ._sampling import sampling_of, told

    files = find_model(model, revision)
    sampling = sampling_of(
        files.folder,
        defaults,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=logit_bias,
        seed=seed,
        order=order,
    )
    choice = choose_backend(files, backend, device, dtype)
    tell(choice)
    running = open_model(files, choice.backend, dtype, device, kv_bits, kv_group_size)
    tell_packing(running)
    tokenizer = running.tokenizer()
    before: list[Message] = [{"role": "system", "content": system}] if system else []
    tokenizer.chat([*before, _user("Hello")])  # what the template refuses is said at once
    print(f"sampling: {told(sampling, defaults)}", file=sys.stderr)
    terminal = sys.stdin.isatty()
    if terminal:
        print(HELP, file=sys.stderr)
    said, turn = list(before), 0
    for text in _messages(terminal):
        if text == EXIT:
            return
        if text == RESET:
            said, turn = list(before), 0
        elif text.startswith("/") and len(text.split()) == 1:
            print(HELP if text == ASK else f"{text} is no command; {HELP}", file=sys.stderr)
        else:
            said.append(_user(text))
            try:
                answer = _answer(running, tokenizer, said, max_tokens, _nth(sampling, turn))
            except EngineError as error:
                if not terminal:
                    raise
                print(f"engine: {error}", file=sys.stderr)
                said.pop()
                continue
            said.append({"role": "assistant", "content": answer})
            turn += 1


def _answer(
    running: Running,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, str]],
    max_tokens: int,
    sampling: Sampling,
) -> str:
    """Print the answer to a conversation as it comes, and return it; Ctrl-C ends it."""
    from ..answer import Answer

    answer, pieces, note = Answer(tokenizer, skip_special=True), [], ""
    with _one_interrupt():
        try:
            for step in running.steps(
                tokenizer.chat(messages), max_tokens, stop=tokenizer.eos_ids, sampling=sampling
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
            print(note, file=sys.stderr)
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
            print(f"\n{EXIT} or Ctrl-D ends the conversation", file=sys.stderr)
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
