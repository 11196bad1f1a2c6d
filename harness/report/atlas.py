"""An atlas as Markdown, as JSON, and in a few lines; `atlas_page.py` makes the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from engine.whole import write_whole

from ..atlas import Atlas
from ..atlas.rows import CANNOT_LOAD, NEW, OLD, Row
from ..atlas.variants import VARIANTS
from ..atlas.waivers import Waiver
from ..errors import BadOption
from ..files import json_with_rows
from ..types import ERROR, FAIL, INCONCLUSIVE, PASS
from .atlas_page import as_html
from .json import finite

SCHEMA = "harness.atlas/1"
WORDS = {PASS: "pass", FAIL: "FAIL", CANNOT_LOAD: "refused", INCONCLUSIVE: "open", ERROR: "error"}


def write(atlas: Atlas, path: Path, form: Callable[[Atlas], bytes]) -> None:
    """Write it whole. Raises BadOption where that cannot be done."""
    try:
        write_whole(path, form(atlas))
    except OSError as error:
        raise BadOption(f"{path}: {error.strerror}") from None


def summary(atlas: Atlas) -> Iterator[str]:
    """A line for every failure that nobody knows, every stale waiver, and the sums."""
    for row in atlas.failures:
        yield f"{row.outcome}: {row.name}: {row.told}"
    for waiver, family in atlas.stale:
        yield f"stale waiver: {family} shows nothing of {waiver.title!r} any more"
    yield _sums(atlas)
    if atlas.waivers.elsewhere:
        yield f"{atlas.waivers.elsewhere} waivers are for another version of {atlas.candidate}"


def as_json(atlas: Atlas) -> bytes:
    head = {
        "schema": SCHEMA,
        "candidate": atlas.candidate,
        "environment": atlas.environment,
        "passing": {spelling: atlas.passing(spelling) for spelling in (OLD, NEW)},
        "left_out": atlas.left_out,
        "findings": [asdict(waiver) for waiver in atlas.waivers.entries],
        "stale": [[waiver.title, family] for waiver, family in atlas.stale],
    }
    rows = [{**row.document(), "finding": atlas.number(row)} for row in atlas.rows]
    return json_with_rows(finite(head), "rows", finite(rows))


def as_markdown(atlas: Atlas) -> bytes:
    parts = [*_head(atlas), *_table(atlas), *_findings(atlas), *_open(atlas), *_left_out(atlas)]
    return ("\n".join(parts) + "\n").encode()


def _head(atlas: Atlas) -> Iterator[str]:
    packages = atlas.environment.get("packages", {})
    versions = ", ".join(f"{name} {number}" for name, number in packages.items() if number)
    yield f"# Atlas: {atlas.candidate} against transformers"
    yield ""
    yield (
        "Written by `harness atlas --markdown FILE`; do not edit. What is said of findings stands "
        "in `harness/atlas/waivers.toml`, what is particular to a family in "
        "`harness/atlas/recipes.toml`."
    )
    yield ""
    yield f"{_sums(atlas)}. float32, {atlas.environment.get('platform', '')}, {versions}."
    yield ""
    yield (
        "Every cell is the ordinary verdict on a tiny random model. `pass`: parity holds. `FAIL n` "
        "and `refused n`: it does not, or the candidate does not load or run it, which is finding "
        "n. `-`: the family has no such variant. Two answers in a cell are those of files as they "
        "were before transformers 5, or as checkpoints on the Hub have them, and as transformers 5 "
        "writes them; one answer is of the older spelling where there is one."
    )
    yield ""
    for name in atlas.variants:
        if name in VARIANTS:
            yield f"- **{name}**: {VARIANTS[name].what}"
    yield ""


def _table(atlas: Atlas) -> Iterator[str]:
    yield f"## {len(atlas.attempted)} families"
    yield ""
    yield "| family | " + " | ".join(atlas.variants) + " |"
    yield "|---" * (len(atlas.variants) + 1) + "|"
    for family in atlas.attempted:
        cells = [_cell(atlas, atlas.of(family, variant)) for variant in atlas.variants]
        yield f"| {family} | " + " | ".join(cells) + " |"
    yield ""


def _cell(atlas: Atlas, rows: list[Row]) -> str:
    ordered = sorted(rows, key=lambda row: (OLD, NEW).index(row.spelling))
    return " / ".join(_answer(atlas, row) for row in ordered) or "-"


def _answer(atlas: Atlas, row: Row) -> str:
    number = atlas.number(row)
    return f"{WORDS[row.outcome]}{'' if number is None else f' {number}'}"


def _findings(atlas: Atlas) -> Iterator[str]:
    yield "## Findings"
    yield ""
    yield (
        "The models of a family are written below `models` by `harness atlas --families FAMILY "
        "--keep models`; the commands go on from there."
    )
    yield ""
    for number, waiver in enumerate(atlas.waivers.entries, 1):
        rows = atlas.rows_of(waiver)
        if rows:
            yield from _finding(atlas, number, waiver, rows)


def _finding(atlas: Atlas, number: int, waiver: Waiver, rows: list[Row]) -> Iterator[str]:
    yield f"### {number}. {waiver.title}"
    yield ""
    yield f"{waiver.reason} ({waiver.candidate} {waiver.version}, `{waiver.where}`)"
    yield ""
    if waiver.confirmed:
        yield f"- Confirmed: {waiver.confirmed}"
    yield f"- In: {', '.join(sorted({row.family for row in rows}))}."
    shown = rows[0]
    yield f"- Seen, {shown.name}: {shown.told}"
    yield f"- `{command(atlas.candidate, shown)}`"
    yield ""


def command(candidate: str, row: Row) -> str:
    """What shows a failure again: a script where a part is wrong by itself, else the verdict."""
    model = f"--model models/{row.family}/{row.variant}-{row.spelling} --candidate {candidate}"
    if row.outcome == FAIL and row.check in ("blocks", "logits"):
        return f"harness repro {model} --out repro"
    return f"harness compare {model}"


def _open(atlas: Atlas) -> Iterator[str]:
    if atlas.failures:
        yield "## Not looked into"
        yield ""
        for row in atlas.failures:
            yield f"- {row.outcome}, {row.name}: {row.told}"
        yield ""


def _left_out(atlas: Atlas) -> Iterator[str]:
    yield "## Left out"
    yield ""
    for reason, names in sorted(atlas.left_out.items()):
        yield f"- {reason}: {', '.join(names)}"


def _sums(atlas: Atlas) -> str:
    waived = sum(row.outcome != PASS and atlas.waivers.of(row) is not None for row in atlas.rows)
    return (
        f"{atlas.candidate}: {len(atlas.attempted)} families attempted, {len(atlas.rows)} models; "
        f"{len(atlas.passing(OLD))} families pass in every variant, {len(atlas.passing(NEW))} as "
        f"transformers 5 writes config.json; {waived} failures known, {len(atlas.failures)} not"
    )


FORMATS: dict[str, Callable[[Atlas], bytes]] = {
    "markdown": as_markdown,
    "json": as_json,
    "html": as_html,
}
