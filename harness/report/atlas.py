"""An atlas as Markdown, as JSON, and in a few lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from ..atlas import Atlas
from ..errors import BadOption
from ..files import json_with_rows, write_whole
from .json import finite

SCHEMA = "harness.atlas/1"


def write(atlas: Atlas, path: Path, form: Callable[[Atlas], bytes]) -> None:
    """Write it whole. Raises BadOption where that cannot be done."""
    try:
        write_whole(path, form(atlas))
    except OSError as error:
        raise BadOption(f"{path}: {error.strerror}") from None


def as_json(atlas: Atlas) -> bytes:
    head = {
        "schema": SCHEMA,
        "candidate": atlas.candidate,
        "environment": atlas.environment,
        "count": atlas.count(),
        "left_out": atlas.left_out,
        "findings": [asdict(waiver) for waiver in atlas.waivers.entries],
        "stale": [waiver.title for waiver in atlas.stale],
    }
    rows = [{**row.document(), "finding": atlas.number(row)} for row in atlas.rows]
    return json_with_rows(finite(head), "rows", finite(rows))


def summary(atlas: Atlas) -> Iterator[str]:
    """A line for every failure that nobody knows, every stale waiver, and the sums."""
    for row in atlas.failures:
        yield f"{row.outcome}: {row.name}: {row.told}"
    for waiver in atlas.stale:
        yield f"stale waiver, it matches nothing: {waiver.title} ({', '.join(waiver.families)})"
    sums = ", ".join(f"{number} {outcome}" for outcome, number in atlas.count().items())
    waived = sum(row.outcome != "pass" and atlas.waivers.of(row) is not None for row in atlas.rows)
    yield (
        f"{atlas.candidate}: {len(atlas.attempted)} families attempted ({sums}); "
        f"{len(atlas.rows)} models, {waived} waived, {len(atlas.failures)} not"
    )
    if atlas.waivers.elsewhere:
        yield f"{atlas.waivers.elsewhere} waivers are for another version of {atlas.candidate}"


FORMATS: dict[str, Callable[[Atlas], bytes]] = {"json": as_json}
