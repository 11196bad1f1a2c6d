"""A verdict as one HTML page that needs nothing else: what was found first, then where it shows.

Knows nothing of how the page is made (`_page.py`) and how pictures are drawn (`_charts.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.whole import write_whole

from ..types import ERROR, FAIL, INCONCLUSIVE, ISOLATED, PASS, PROPAGATED, SKIP, Verdict
from ._charts import STYLE as CHARTS
from ._charts import errors, errors_legend, tokens, tokens_legend
from ._page import page, text
from ._words import WORDS, limits_of, number

KINDS = {PASS: "pass", FAIL: "fail", ERROR: "error", INCONCLUSIVE: "no", SKIP: "open"}
MARKS = {PASS: "✓", FAIL: "✗", ERROR: "!", INCONCLUSIVE: "?", SKIP: "·"}
MODES = {
    ISOLATED: "every part on the reference's own input",
    PROPAGATED: "every part on what the candidate's earlier parts gave",
}
NUMBERS = ("logits", "head", "distribution")  # the checks that judge logits

STYLE = """
h1{overflow-wrap:anywhere;margin-bottom:.2rem}p{overflow-wrap:anywhere}
.no{color:var(--no)}
.verdict{border-left:.35rem solid currentColor;background:var(--soft);border-radius:.3rem;
padding:.6rem .9rem;margin:1rem 0}
.verdict>*{color:CanvasText;font-weight:400;margin:.35rem 0}
.verdict>.word{color:inherit;font-size:1.15rem;
font-weight:700;margin:0}
.verdict b{font-weight:600}
.checks>div{display:grid;grid-template-columns:1.2rem 7rem 5rem minmax(0,1fr);gap:0 .5rem;
padding:.25rem 0;border-bottom:1px solid var(--line);overflow-wrap:anywhere}
.chips{display:flex;flex-wrap:wrap;gap:.25rem}
.chip{border:1px solid var(--line);border-radius:.3rem;padding:0 .35rem;font-size:.8rem;
font-variant-numeric:tabular-nums}
.chip.tie{border-color:var(--no);color:var(--no)}
.chip.off{border-color:var(--fail);color:var(--fail);font-weight:600}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:0 1.5rem}
.cards h3{margin:.6rem 0 .2rem}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.15rem .9rem;margin:.5rem 0}
dt{opacity:.7}dd{margin:0;overflow-wrap:anywhere}
@media(max-width:480px){.checks>div{grid-template-columns:1.2rem minmax(0,1fr) auto}
.checks>div>:last-child{grid-column:2/-1}}
"""


def write(verdict: Verdict, path: Path) -> None:
    """Write the page whole or not at all. Raises OSError."""
    write_whole(path, as_html(verdict))


def as_html(verdict: Verdict) -> bytes:
    """The page of any verdict, that of an error included."""
    parts = (_head, _checks, _errors, _tokens, _logits, _greedy, _tokenizer, _environment)
    body = "\n".join(line for part in parts for line in part(verdict))
    return page(f"{verdict.verdict}: {text(verdict.model)}", CHARTS + STYLE, body)


def _head(verdict: Verdict) -> Iterator[str]:
    against = f" against {verdict.reference}" if verdict.reference else ""
    yield f"<h1>{text(verdict.model)}</h1>"
    yield f'<p class="dim">{text(f"{verdict.candidate}{against}, {verdict.dtype}")}</p>'
    yield f'<div class="verdict {KINDS[verdict.verdict]}">'
    yield f'<p class="word">{WORDS[verdict.verdict]}</p>'
    first, needed = verdict.first_divergence, verdict.prompts_needed
    broken = verdict.error or next((c.reason for c in verdict.checks if c.verdict == ERROR), None)
    if broken:
        yield f"<p>{text(broken)}</p>"
    if first is not None:
        yield f"<p><b>First divergence:</b> {text(f'{first.check}: {first.message}')}</p>"
        if first.code:
            yield f"<p><b>In the code:</b> <code>{text(first.code)}</code></p>"
    if verdict.diagnosis:
        yield f"<p><b>Likely cause:</b> {text(verdict.diagnosis)}</p>"
    if verdict.verdict == INCONCLUSIVE and needed:
        yield f"<p>About {needed} more prompts of a kind would decide: --until-decided</p>"
    yield "</div>"


def _checks(verdict: Verdict) -> Iterator[str]:
    asked = {check.name for check in verdict.checks if check.verdict != SKIP}
    shown = [c for c in verdict.checks if c.verdict != SKIP or c.name not in asked]
    if not shown:
        return
    yield '<h2>Checks</h2><div class="checks">'
    for check in shown:
        kind, mark = KINDS[check.verdict], MARKS[check.verdict]
        yield (
            f'<div><span class="{kind}" title="{check.verdict}">{mark}</span>'
            f'<span>{text(check.name)}</span><span class="dim">{text(check.dtype or "")}</span>'
            f'<span class="{kind * (kind == "open")}">{text(check.reason or "")}</span></div>'
        )
    yield "</div>"


def _errors(verdict: Verdict) -> Iterator[str]:
    judged = [diff for diff in verdict.sites if diff.judged]
    if not judged:
        return
    yield "<h2>Error against noise</h2>"
    yield (
        '<p class="dim">Relative error against the float64 oracle, on a log scale, of the probe '
        "that is nearest to its limit. The number is the error in units of the reference's own.</p>"
    )
    yield errors_legend()
    for dtype in dict.fromkeys(diff.dtype for diff in judged):
        for mode in MODES:
            diffs = [d for d in judged if (d.dtype, d.mode) == (dtype, mode)]
            inner = [
                d for d in verdict.sites if not d.judged and (d.dtype, d.mode) == (dtype, mode)
            ]
            if diffs:
                yield f"<h3>{text(dtype)}, {mode}: {MODES[mode]}</h3>"
                yield from errors(diffs, inner)


def _tokens(verdict: Verdict) -> Iterator[str]:
    if not verdict.token_maps:
        return
    yield "<h2>Tokens and layers</h2>"
    yield tokens_legend()
    for found in verdict.token_maps:
        probe = found.probe
        yield f"<h3>{text(found.dtype)}, {found.mode}, probe {text(probe.name)}</h3>"
        yield (
            f'<p class="dim">{text(probe.reason)}; {len(probe.tokens)} tokens. '
            f"The limit is {found.limit:.1f} times the noise.</p>"
        )
        yield from tokens(found)


def _logits(verdict: Verdict) -> Iterator[str]:
    checks = [c for c in verdict.checks if c.name in NUMBERS and c.verdict != SKIP]
    if not checks:
        return
    yield '<h2>Logits</h2><div class="cards">'
    for check in checks:
        several = len({c.dtype for c in checks}) > 1
        dtype = f", {check.dtype}" if several else ""
        yield f"<div><h3>{text(check.name + dtype)}</h3>"
        yield from _measures(check.measures)
        yield "</div>"
    yield "</div>"
    diffs = [d for d in verdict.sites if d.site.kind == "logits"]
    if diffs:
        rows = (
            (d.probe, d.dtype, d.mode, number(d.ratio), f"{d.limit:.1f}", f"{d.error:.1e}",
             f"{d.noise:.1e}", d.ties) for d in diffs
        )  # fmt: skip
        yield "<details><summary>Every probe</summary>"
        yield from _table(
            ("probe", "dtype", "mode", "ratio", "limit", "error", "noise", "ties"), rows
        )
        yield "</details>"


def _greedy(verdict: Verdict) -> Iterator[str]:
    found = [c for c in verdict.checks if c.name == "greedy" and c.measures.get("steps")]
    if not found:
        return
    yield "<h2>Greedy tokens</h2>"
    yield (
        '<p class="dim">Expected tokens in order. <span class="chip tie">a≈b</span> is a tie: the '
        "two best tokens are within noise, and either is right. "
        '<span class="chip off">a≠b</span> is none.</p>'
    )
    for check in found:
        steps = check.measures["steps"]
        yield f"<h3>{text(check.dtype)}: {text(check.reason)}</h3>"
        yield f'<div class="chips">{"".join(map(_chip, steps))}</div>'
        near = min(steps, key=lambda step: step[2])
        yield (
            f'<p class="dim">The narrowest choice, token {steps.index(near)}, has a margin of '
            f"{number(near[2])} times the noise.</p>"
        )


def _chip(step: Sequence[Any]) -> str:
    expected, taken, margin, tie = step
    told = f"margin {number(margin)} &times; noise"
    if expected == taken:
        return f'<span class="chip{" tie" * tie}" title="{told}">{expected}</span>'
    kind, sign = ("tie", "≈") if tie else ("off", "≠")
    return f'<span class="chip {kind}" title="{told}">{expected}{sign}{taken}</span>'


def _tokenizer(verdict: Verdict) -> Iterator[str]:
    check = next((c for c in verdict.checks if c.name == "tokens" and c.measures), None)
    if check is None:
        return
    measures = check.measures
    yield "<h2>Tokenizer</h2>"
    kind = KINDS[check.verdict]
    yield f'<p class="{kind}">{MARKS[check.verdict]} {text(check.reason or "")}</p>'
    plain = {k: v for k, v in measures.items() if not isinstance(v, dict) and k != "states"}
    yield from _measures(plain)
    if questions := measures.get("questions"):
        rows = ((name, *answer) for name, answer in questions.items())
        yield from _table(("question", "answer", "asked", "differ"), rows)
    if states := measures.get("states"):
        heads = ("special tokens", "source", "generation prompt", "BOS", "EOS", "equal")
        yield from _table(heads, (tuple(map(_told, state.values())) for state in states))


def _environment(verdict: Verdict) -> Iterator[str]:
    found = verdict.environment
    yield "<h2>Environment</h2>"
    device = found.get("device", {})
    facts = {
        "device": f"{verdict.device}; MLX on {device.get('kind')}, {device.get('name')}",
        "platform": found.get("platform"),
        "Python": found.get("python"),
        **found.get("packages", {}),
        **found.get("variables", {}),
        "limits": " ".join(limits_of(verdict.calibration)).removeprefix("limits: "),
        "time": f"{sum(verdict.seconds.values()):.1f} s",
        "peak memory": f"{verdict.peak_memory_bytes / 2**20:.0f} MiB",
    }
    if not found:
        yield '<p class="dim">Nothing was run.</p>'
        return
    yield from _list((name, value) for name, value in facts.items() if value)


def _measures(found: Mapping[str, Any]) -> Iterator[str]:
    yield from _list((name.replace("_", " "), _told(v)) for name, v in found.items() if v != [])


def _list(rows: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """Names and values."""
    shown = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows)
    yield f"<dl>{shown}</dl>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """A table that scrolls by itself where it is too wide."""
    head = "".join(f"<th>{text(name)}</th>" for name in heads)
    yield f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>'
    for row in rows:
        yield f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>"
    yield "</tbody></table></div>"


def _told(value: Any) -> str:
    """A measure as a reader wants it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return f"{value['mean']:.4g} ± {value['standard_error']:.1g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_told, value)) or "-"
    return str(value)
