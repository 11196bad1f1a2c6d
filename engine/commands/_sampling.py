"""The options of sampling, which several commands share, and what is made of them."""

from __future__ import annotations

import functools
import inspect
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..constraint import Constraint
    from ..sampling import Sampling
    from ..tokenizer import Tokenizer


def _option(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Sampling", show_default=False, **more)


def _wishes(
    temperature: Annotated[float | None, _option("0 is greedy, and the default.")] = None,
    top_k: Annotated[int | None, _option("Of the k best tokens.")] = None,
    top_p: Annotated[
        float | None, _option("Of the best until their probabilities reach p.")
    ] = None,
    min_p: Annotated[float | None, _option("Of those p times as probable as the best.")] = None,
    typical_p: Annotated[
        float | None, _option("Of those of usual surprise, until they reach p.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, _option("Divides the logits of what was said; 1 is off.")
    ] = None,
    presence_penalty: Annotated[
        float | None, _option("Taken off the logits of what was said.")
    ] = None,
    frequency_penalty: Annotated[
        float | None, _option("The same for every time it was said.")
    ] = None,
    logit_bias: Annotated[
        list[str] | None,
        _option("Added to a token's logit, -inf bans it; may be given again.", metavar="ID=BIAS"),
    ] = None,
    seed: Annotated[
        int | None, _option("Draws the same again; else a new one is drawn and told.")
    ] = None,
    order: Annotated[
        str | None, _option("transformers (default), mlx-lm or llama.cpp: docs/SAMPLING.md.")
    ] = None,
    defaults: Annotated[
        bool, _option("Start from the model's generation_config.json.", "--defaults")
    ] = False,
) -> None:
    """The options themselves."""


def with_sampling(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `wishes` is given as the options above, last of all."""
    own = inspect.signature(command, eval_str=True).parameters
    options = inspect.signature(_wishes, eval_str=True).parameters

    @functools.wraps(command)
    def run(**given: Any) -> None:
        wishes = {name: given.pop(name) for name in options}
        command(**given, wishes=wishes)

    shown = [each for name, each in own.items() if name != "wishes"]
    run.__signature__ = inspect.Signature([*shown, *options.values()])  # type: ignore[attr-defined]
    return run


_FILTERS = ("top_k", "top_p", "min_p", "typical_p")  # which do nothing to a greedy choice


def sampling_of(folder: Path, wishes: Mapping[str, Any]) -> Sampling:
    """What the options ask for: what was given, over the model's own or over none.

    Where tokens are drawn it has a seed. Raises InvalidRequest and InvalidConfig.
    """
    from ..errors import InvalidRequest
    from ..sampling import Sampling
    from ..sampling.defaults import model_defaults

    given = {name: value for name, value in wishes.items() if value is not None}
    defaults = given.pop("defaults")
    if "logit_bias" in given:
        given["logit_bias"] = bias_of(given["logit_bias"])
    sampling = replace(model_defaults(folder) if defaults else Sampling(), **given)
    if sampling.temperature > 0:
        return sampling if sampling.seed is not None else replace(sampling, seed=_new_seed())
    if idle := [name for name in _FILTERS if name in given]:
        raise InvalidRequest(
            f"--{idle[0].replace('_', '-')} does nothing at temperature 0, which is greedy: "
            "give --temperature, too"
        )
    return sampling


def bias_of(given: Sequence[str]) -> dict[int, float]:
    """ID=BIAS, again and again, as token ids and what is added to them. Raises InvalidRequest."""
    from ..errors import InvalidRequest

    found = {}
    for each in given:
        token, _, bias = each.partition("=")
        try:
            found[int(token)] = float(bias)
        except ValueError:
            raise InvalidRequest(
                f"--logit-bias {each!r:.40}: give a token id and a number, as 42=-1.5"
            ) from None
    return found


def told(sampling: Sampling, wishes: Mapping[str, Any]) -> str:
    """What was asked for, for people to read and to repeat."""
    usual = type(sampling)()
    asked = {
        f.name: value
        for f in fields(sampling)
        if (value := getattr(sampling, f.name)) != getattr(usual, f.name)
    }
    drawn = sampling.temperature > 0
    words = [f"{name} {value}" for name, value in asked.items()]
    words += [f"order {sampling.order}"] if drawn and "order" not in asked else []
    whose = " (the model's own, but for what was given)" if wishes["defaults"] else ""
    return ", ".join(words if drawn else ["greedy", *words]) + whose


def constraint_of(
    json_schema: str | None, regex: str | None, tokenizer: Tokenizer, vocab: int
) -> Constraint | None:
    """The grammar that was asked for; a schema is text or a file. Raises InvalidRequest."""
    if json_schema is None and regex is None:
        return None
    from ..constraint import Constraint
    from ..errors import InvalidRequest

    if json_schema is not None and regex is not None:
        raise InvalidRequest("--json-schema and --regex are two grammars: give one")
    if json_schema is None:
        return Constraint.regex(regex or "", tokenizer, vocab)
    if not json_schema.lstrip().startswith("{"):
        try:
            json_schema = Path(json_schema).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InvalidRequest(f"{json_schema} is no text: give a JSON schema") from None
    return Constraint.json_schema(json_schema, tokenizer, vocab)


def _new_seed() -> int:
    return secrets.randbits(32)
