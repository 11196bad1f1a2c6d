"""`engine generate`: a prompt goes on, as it would for a user of the library."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
    from ..generate import Step
    from ..tokenizer import Tokenizer


def generate(
    model: ModelOption,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="At most so many.")] = 100,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text to end before; may be given again.")
    ] = None,
    json_schema: Annotated[
        str | None, typer.Option(help="Write JSON that this schema, text or a file, validates.")
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="Write what this regular expression matches as a whole.")
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, max=100, help="Print log-probabilities, and the so many likeliest."),
    ] = None,
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
    """Continue a prompt, greedily unless asked otherwise; figures go to stderr."""
    from ..answer import Answer
    from ..backend import choose_backend, open_model
    from ..errors import InvalidPrompt
    from ..files import find_model
    from ..generate import Timing
    from ._output import rate, tell, tell_packing
    from ._sampling import constraint_of, sampling_of, told

    if not prompt:
        raise InvalidPrompt("--prompt is empty: give a text to continue")
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
    constraint = constraint_of(json_schema, regex, tokenizer, running.vocab)
    timing, answer, taken = Timing(), Answer(tokenizer, stop or ()), []
    for step in running.steps(
        tokenizer.prompt(prompt),
        max_tokens,
        stop=tokenizer.eos_ids,
        timing=timing,
        sampling=sampling,
        constraint=constraint,
        logprobs=logprobs,
    ):
        taken.append(step)
        print(answer.push(step.token), end="", flush=True)
        if answer.stopped_by is not None:
            break
    print(answer.finish(), flush=True)
    if logprobs is not None:
        _print_logprobs(taken, tokenizer)
    print(f"sampling: {told(sampling, defaults)}", file=sys.stderr)
    print(f"prompt: {timing.prompt_tokens} tokens, {rate(timing.prompt_rate)}", file=sys.stderr)
    print(f"decode: {timing.tokens} tokens, {rate(timing.decode_rate)}", file=sys.stderr)
    print(f"peak memory: {running.peak_memory() / 2**20:.1f} MiB", file=sys.stderr)
    print(f"backend={running.backend} device={running.device}", file=sys.stderr)


def _print_logprobs(steps: Sequence[Step], tokenizer: Tokenizer) -> None:
    """A line a token: its log-probability, its text, then the likeliest."""
    print("log-probabilities:", file=sys.stderr)
    for step in steps:
        best = ", ".join(f"{tokenizer.decode([id])!r} {value:.3f}" for id, value in step.best)
        line = f"  {step.logprob:8.3f}  {tokenizer.decode([step.token])!r:<16}"
        print(f"{line}  of {best}" if best else line.rstrip(), file=sys.stderr)
