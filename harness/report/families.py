"""The families of the engine as a page in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.whole import write_whole

from ..environment import describe
from ..errors import BadOption
from ..families import DTYPES, Family

HEAD = """# Models

Made by `{command}`. For every variant of every family of the engine
transformers writes a small random model and is compared with the engine on it: every check of
`harness compare`, at float32 and at bfloat16. "Nearest" is the largest share of its limit that any
site took up.
{versions}.
"""
GAPS = """## Settings that are refused

A setting in `config.json` that changes what is computed, and that the engine has no field for, is
refused with one line that names it. Allowed are the values given here.
"""


def write(families: Sequence[Family], path: Path, command: str) -> None:
    """Write the page. Raises BadOption where that cannot be done."""
    try:
        write_whole(path, as_markdown(families, command).encode())
    except OSError as error:
        raise BadOption(f"--out {path}: {error.strerror}") from None


def as_markdown(families: Sequence[Family], command: str) -> str:
    """The whole page."""
    described = describe()
    packages = described["packages"]
    shown = [f"{name} {packages[name]}" for name in ("mlx", "torch", "transformers")]
    lines = [HEAD.format(command=command, versions=", ".join(shown) + ", " + described["platform"])]
    lines += ["| model_type | | variants | " + " | ".join(DTYPES) + " | nearest |"]
    lines += ["|---|---|---|" + "---|" * len(DTYPES) + "---|"]
    lines += map(_row, families)
    lines += ["", GAPS, "| model_type | setting | allowed |", "|---|---|---|"]
    for family in families:
        for key, allowed in family.gaps.items():
            values = ", ".join(f"`{value!r}`" for value in allowed) or "absent"
            lines.append(f"| {family.name} | `{key}` | {values} |")
    return "\n".join(lines) + "\n"


def _row(family: Family) -> str:
    names = ", ".join(family.verdicts)
    counts = " | ".join(_count(family, dtype) for dtype in DTYPES)
    return f"| {family.name} | {family.about} | {names} | {counts} | {family.nearest:.0%} |"


def _count(family: Family, dtype: str) -> str:
    """ "pass", or what there is instead, with the variants."""
    found = {v: of[dtype] for v, of in family.verdicts.items() if dtype in of}
    other = [f"{verdict}: {variant}" for variant, verdict in found.items() if verdict != "pass"]
    return "; ".join(other) or "pass"
