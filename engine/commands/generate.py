"""`engine generate`: a prompt goes on, as it would for a user of the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from ._ranks import RanksOption, ranked
from ._sampling import with_sampling

if TYPE_CHECKING:
    from ..generate import Step
    from ..tokenizer import Tokenizer


@with_sampling
def generate(
    model: ModelOption,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="At most so many.")] = 100,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text to end before; may be given again.")
    ] = None,
    stop_token: StopToken = None,
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
    ranks: RanksOption = None,
    *,
    wishes: Mapping[str, Any],
) -> None:
    """Continue a prompt, greedily unless asked otherwise; figures go to stderr."""
    from ..answer import Answer, stop_tokens
    from ..backend import choose_backend, open_model
    from ..errors import InvalidPrompt
    from ..files import find_model
    from ..generate import Timing
    from ._output import rate, tell, tell_packing
    from ._sampling import constraint_of, sampling_of, told

    if not prompt:
        raise InvalidPrompt("--prompt is empty: give a text to continue")
    with ranked(ranks) as group:
        files = find_model(model, revision)
        sampling = sampling_of(files.folder, wishes)
        if group is not None and sampling.temperature > 0:
            sampling = replace(sampling, seed=int(group.told(str(sampling.seed))))
        choice = choose_backend(files, backend, device, dtype, group)
        tell(choice)
        running = open_model(files, choice.backend, dtype, device, group, kv_bits, kv_group_size)
        tell_packing(running.packing)
        tokenizer = running.tokenizer()
        constraint = constraint_of(json_schema, regex, tokenizer, running.vocab)
        ends = tokenizer.eos_ids | stop_tokens(stop_token or (), tokenizer, running.vocab)
        timing, answer, taken = Timing(), Answer(tokenizer, stop or (), ends=ends), []
        for step in running.steps(
            tokenizer.prompt(prompt),
            max_tokens,
            stop=ends,
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
        remark(f"sampling: {told(sampling, wishes)}")
        remark(f"prompt: {timing.prompt_tokens} tokens, {rate(timing.prompt_rate)}")
        remark(f"decode: {timing.tokens} tokens, {rate(timing.decode_rate)}")
        remark(f"peak memory: {running.peak_memory() / 2**20:.1f} MiB")
        remark(f"backend={running.backend} device={running.device}")


def _print_logprobs(steps: Sequence[Step], tokenizer: Tokenizer) -> None:
    """A line a token: its log-probability, its text, then the likeliest."""
    remark("log-probabilities:")
    for step in steps:
        best = ", ".join(f"{tokenizer.decode([id])!r} {value:.3f}" for id, value in step.best)
        line = f"  {step.logprob:8.3f}  {tokenizer.decode([step.token])!r:<16}"
        remark(f"{line}  of {best}" if best else line.rstrip())
