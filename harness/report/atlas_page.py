"""An atlas as one HTML page that needs nothing else: for a phone, in light and in dark."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from ..atlas import Atlas
from ..atlas.rows import CANNOT_LOAD, NEW, OLD, Row
from ..types import ERROR, FAIL, INCONCLUSIVE, PASS

MARKS = {PASS: "✓", FAIL: "✗", CANNOT_LOAD: "⊘", INCONCLUSIVE: "?", ERROR: "!"}
WORDS = {
    PASS: "parity holds",
    FAIL: "parity does not hold",
    CANNOT_LOAD: "the candidate does not load or run it",
    INCONCLUSIVE: "open",
    ERROR: "not judged",
}
KINDS = {PASS: "pass", FAIL: "fail", CANNOT_LOAD: "no", INCONCLUSIVE: "open", ERROR: "error"}
SPELLINGS = {OLD: "as before transformers 5", NEW: "as transformers 5 writes it"}

STYLE = """
:root{color-scheme:light dark;--line:#8883;--soft:#8882;--pass:#1a7f37;--fail:#cf222e;--no:#9a6700;
--open:#6e7781;--error:#8250df}
@media(prefers-color-scheme:dark){:root{--pass:#3fb950;--fail:#ff7b72;--no:#d29922;--open:#9da7b1;
--error:#bc8cff}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1rem}
h1{font-size:1.5rem;line-height:1.2}h2{font-size:1.2rem;margin-top:2rem}h3{font-size:1rem}
input{font:inherit;width:100%;max-width:24rem;padding:.4rem .6rem;border:1px solid var(--line);
border-radius:.4rem;background:transparent;color:inherit}
.legend span{margin-right:1rem;white-space:nowrap}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:.4rem;margin-top:.6rem}
table{border-collapse:collapse;font-size:.87rem;width:100%}
th,td{padding:.25rem .5rem;text-align:center;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:Canvas}
thead th{font-weight:600}
td a{text-decoration:none}
.pass{color:var(--pass)}.fail{color:var(--fail);font-weight:600}.no{color:var(--no)}
.open{color:var(--open)}.error{color:var(--error);font-weight:600}
details{border-bottom:1px solid var(--line);padding:.3rem 0}summary{cursor:pointer}
code{background:var(--soft);border-radius:.25rem;padding:.05rem .3rem;overflow-wrap:anywhere;
font-size:.85em}
ul{padding-left:1.2rem}li{overflow-wrap:anywhere}.dim{opacity:.7}
"""

SCRIPT = """
const box=document.querySelector('input');
box.addEventListener('input',()=>{const word=box.value.trim().toLowerCase();
for(const row of document.querySelectorAll('[data-family]'))
row.hidden=!row.dataset.family.includes(word)});
"""


def as_html(atlas: Atlas) -> bytes:
    title = escape(f"{atlas.candidate} against transformers")
    body = "\n".join([*_head(atlas, title), *_table(atlas), *_findings(atlas), *_families(atlas),
                      *_left_out(atlas)])  # fmt: skip
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n{body}\n"
        f"<script>{SCRIPT}</script></body></html>\n"
    ).encode()


def _head(atlas: Atlas, title: str) -> Iterator[str]:
    packages = atlas.environment.get("packages", {})
    versions = ", ".join(f"{name} {number}" for name, number in packages.items() if number)
    yield f"<h1>{title}</h1>"
    yield (
        f"<p>{len(atlas.attempted)} families, {len(atlas.rows)} tiny random models, float32. "
        f"{len(atlas.passing(OLD))} families pass in every variant, {len(atlas.passing(NEW))} as "
        "transformers 5 writes config.json. Of two marks the first is of files as they were before "
        "that, or as checkpoints on the Hub have them, the second as it writes them; numbers are "
        "findings.<br>"
        f'<span class="dim">{escape(versions)}</span></p>'
    )
    marks = (f'<span class="{KINDS[o]}">{MARKS[o]} {WORDS[o]}</span>' for o in MARKS)
    yield f'<p class="legend">{" ".join(marks)}</p>'
    yield '<p><input type="search" placeholder="family" aria-label="Show families named"></p>'


def _table(atlas: Atlas) -> Iterator[str]:
    heads = "".join(f"<th>{escape(name)}</th>" for name in atlas.variants)
    yield f'<div class="wide"><table><thead><tr><th>family</th>{heads}</tr></thead><tbody>'
    for family in atlas.attempted:
        cells = "".join(
            f"<td>{_cell(atlas, atlas.of(family, variant))}</td>" for variant in atlas.variants
        )
        name = escape(family)
        yield (f'<tr data-family="{name}"><td><a href="#f-{name}">{name}</a></td>{cells}</tr>')
    yield "</tbody></table></div>"


def _cell(atlas: Atlas, rows: list[Row]) -> str:
    ordered = sorted(rows, key=lambda row: (OLD, NEW).index(row.spelling))
    return " ".join(_mark(atlas, row) for row in ordered) or '<span class="open">·</span>'


def _mark(atlas: Atlas, row: Row) -> str:
    number = atlas.number(row)
    title = escape(f"{SPELLINGS[row.spelling]}: {row.told or WORDS[row.outcome]}", quote=True)
    mark = f'<span class="{KINDS[row.outcome]}" title="{title}">{MARKS[row.outcome]}'
    if number is None:
        return f"{mark}</span>"
    return f'<a href="#n-{number}">{mark}{number}</span></a>'


def _findings(atlas: Atlas) -> Iterator[str]:
    yield "<h2>Findings</h2>"
    for number, waiver in enumerate(atlas.waivers.entries, 1):
        rows = atlas.rows_of(waiver)
        if rows:
            names = ", ".join(sorted({row.family for row in rows}))
            yield f'<h3 id="n-{number}">{number}. {escape(waiver.title)}</h3>'
            yield f"<p>{escape(waiver.reason)} <code>{escape(waiver.where)}</code></p>"
            if waiver.confirmed:
                yield f"<p>Confirmed: {escape(waiver.confirmed)}</p>"
            yield f'<p class="dim">{escape(names)}</p>'


def _families(atlas: Atlas) -> Iterator[str]:
    yield "<h2>Families</h2>"
    for family in atlas.attempted:
        rows, name = atlas.of(family), escape(family)
        marks = "".join(
            f'<span class="{KINDS[row.outcome]}">{MARKS[row.outcome]}</span>' for row in rows
        )
        yield f'<details data-family="{name}" id="f-{name}"><summary>{name} {marks}</summary><ul>'
        for row in rows:
            told = escape(row.told or WORDS[row.outcome])
            code = f" <code>{escape(row.code)}</code>" if row.code else ""
            yield (
                f"<li>{escape(row.variant)}, {SPELLINGS[row.spelling]}, {row.parameters:,} "
                f'parameters: <span class="{KINDS[row.outcome]}">{told}</span>{code}</li>'
            )
        yield "</ul></details>"


def _left_out(atlas: Atlas) -> Iterator[str]:
    yield "<h2>Left out</h2><ul>"
    for reason, names in sorted(atlas.left_out.items()):
        yield f"<li>{escape(reason)}: {escape(', '.join(names))}</li>"
    yield "</ul>"
