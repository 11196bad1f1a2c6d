"""The options of sampling, which several commands share, and what is made of them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..constraint import Constraint
    from ..sampling import Sampling
    from ..tokenizer import Tokenizer


def _option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Sampling", show_default=False)


Temperature = Annotated[float | None, _option("0 is greedy, and the default.")]
TopK = Annotated[int | None, _option("Of the k best tokens.")]
TopP = Annotated[float | None, _option("Of the best until their probabilities reach p.")]
MinP = Annotated[float | None, _option("Of those p times as probable as the best.")]
TypicalP = Annotated[float | None, _option("Of those of usual surprise, until they reach p.")]
Repetition = Annotated[
    float | None, _option("Divides the logits of what was said; 1 is off.", "--repetition-penalty")
]
Presence = Annotated[
    float | None, _option("Taken off the logits of what was said.", "--presence-penalty")
]
Frequency = Annotated[
    float | None, _option("The same for every time it was said.", "--frequency-penalty")
]
Bias = Annotated[
    list[str] | None,
    typer.Option(
        "--logit-bias",
        metavar="ID=BIAS",
        help="Added to a token's logit, -inf bans it; may be given again.",
        rich_help_panel="Sampling",
    ),
]
Seed = Annotated[int | None, _option("Draws the same again; else a new one is drawn and told.")]
OrderName = Annotated[
    str | None, _option("transformers (default), mlx-lm or llama.cpp: docs/SAMPLING.md.", "--order")
]
Defaults = Annotated[bool, _option("Start from the model's generation_config.json.", "--defaults")]
_FILTERS = ("top_k", "top_p", "min_p", "typical_p")  # which do nothing to a greedy choice


def sampling_of(folder: Path, defaults: bool, **given: Any) -> Sampling:
    """The wishes of a command: what was given, over the model's own or over none.

    Where tokens are drawn it has a seed. Raises InvalidRequest and InvalidConfig.
    """
    from ..errors import InvalidRequest
    from ..sampling import Sampling
    from ..sampling.defaults import model_defaults

    given = {name: value for name, value in given.items() if value is not None}
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


def told(sampling: Sampling, defaults: bool) -> str:
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
    whose = " (the model's own, but for what was given)" if defaults else ""
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
