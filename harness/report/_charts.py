"""Two pictures as inline SVG: error against noise by site, and tokens against layers.

A picture is a list of rows: a name, an SVG as wide as there is room, a number. Places in an SVG are
percents of its width, so that marks keep their shape and texts their size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from ..types import FAIL, LOGITS, SiteDiff, TokenMap
from ._page import text
from ._words import name_of, number, worst_of

STYLE = """
.row{display:grid;grid-template-columns:7.5rem minmax(0,1fr) 4.3rem;gap:.5rem;align-items:center;
font-size:.8rem;line-height:1.25}
.row>:first-child{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.row>:last-child{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.row svg{width:100%;height:18px;display:block;overflow:visible}
.row.in>:first-child{padding-left:.8rem;opacity:.8}
.axis{font-size:.7rem;opacity:.7}.axis svg text{fill:currentColor;font-size:10px}
.grid{stroke:var(--line)}.band{fill:var(--soft)}.noise,.limit{stroke:currentColor}
.noise{opacity:.45}.limit{stroke-width:2}
.dot{fill:var(--pass)}.dot.off{fill:var(--fail)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.8rem;margin:.3rem 0 .5rem}
.legend span{display:inline-flex;align-items:center;gap:.35rem}
.legend svg{width:18px;height:14px;flex:none}
.heat svg{height:14px;shape-rendering:crispEdges}.heat{line-height:14px}
.h0{fill:var(--pass);fill-opacity:.12}.h1{fill:var(--pass);fill-opacity:.3}
.h2{fill:var(--pass);fill-opacity:.6}.h3{fill:var(--fail);fill-opacity:.4}
.h4{fill:var(--fail);fill-opacity:.65}.h5{fill:var(--fail);fill-opacity:.85}.h6{fill:var(--fail)}
.hx{fill:none}
@media(max-width:480px){.row{grid-template-columns:5.6rem minmax(0,1fr) 4.1rem;gap:.3rem}}
"""

TICKS = 5  # at most
COLUMNS = 128  # of a heat map; more tokens share a column, which shows the worst of them

# Shades of a token, by the largest share of the limit that has them.
SHADES = ((0.1, "h0"), (0.3, "h1"), (1.0, "h2"), (10.0, "h3"), (100.0, "h4"), (1e4, "h5"))
LAST, LEFT_OUT = "h6", "hx"


def errors(diffs: Sequence[SiteDiff], inner: Sequence[SiteDiff]) -> Iterator[str]:
    """Rows of every site, on the probe nearest to its limit; `inner` are modules of blocks."""
    worst, modules = worst_of(diffs), worst_of(inner)
    scale = Scale(value for d in (*worst, *modules) for value in (d.error, d.noise * d.limit))
    grid = "".join(
        f'<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="18"/>' for x, _ in scale.ticks
    )
    yield scale.axis()
    for diff in worst:
        yield _error_row(diff, scale, grid)
        for module in modules:
            if module.site.block == diff.site.block and diff.site.block is not None:
                yield _error_row(module, scale, grid, "in")


class Scale:
    """A logarithmic axis that has room for all of some errors and limits, in whole decades."""

    def __init__(self, values: Iterable[float]) -> None:
        logs = [math.log10(v) for v in values if 0 < v < math.inf] or [-7.0]
        self.low, self.high = math.floor(min(logs) - 0.3), math.ceil(max(logs) + 0.3)

    def at(self, value: float) -> float:
        """Percent of the width; what is zero or not finite lies at an end."""
        if value == 0 or not math.isfinite(value):
            return 0.0 if value == 0 else 100.0
        return min(max(self._place(math.log10(value)), 0.0), 100.0)

    def _place(self, exponent: float) -> float:
        return 100 * (exponent - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[tuple[float, int]]:
        """Percent of the width and exponent of the decades that are marked."""
        step = max(1, math.ceil((self.high - self.low) / TICKS))
        return [(self._place(e), e) for e in range(self.low, self.high + 1, step)]

    def axis(self) -> str:
        marks = "".join(
            f'<text x="{x:.2f}%" y="12" text-anchor="{_anchor(x)}">1e{e}</text>'
            for x, e in self.ticks
        )
        name, unit = "<span>error</span>", "<span>&times; noise</span>"
        return f'<div class="row axis">{name}<svg>{marks}</svg>{unit}</div>'


def _anchor(x: float) -> str:
    """How a text stands at a place, so that it stays between 0 and 100 percent."""
    return "start" if x < 1 else "end" if x > 99 else "middle"


def _error_row(diff: SiteDiff, scale: Scale, grid: str, kind: str = "") -> str:
    noise, limit = scale.at(diff.noise), scale.at(diff.noise * diff.limit)
    off = diff.verdict == FAIL
    told = text(
        f"{diff.site.path}, {diff.mode}, probe {diff.probe}: error {diff.error:.2e}, noise "
        f"{diff.noise:.2e}, limit {diff.limit:.1f} times the noise"
    )
    name, path = text(name_of(diff.site).rpartition(".")[2]), text(diff.site.path)
    return (
        f'<div class="row {kind}"><span title="{path}">{name}</span>'
        f'<svg role="img"><title>{told}</title>{grid}'
        f'<rect class="band" x="{noise:.2f}%" width="{limit - noise:.2f}%" y="4" height="10"/>'
        f'<line class="noise" x1="{noise:.2f}%" x2="{noise:.2f}%" y1="4" y2="14"/>'
        f'<line class="limit" x1="{limit:.2f}%" x2="{limit:.2f}%" y1="2" y2="16"/>'
        f'<circle class="dot{" off" * off}" cx="{scale.at(diff.error):.2f}%" cy="9" r="4.5"/>'
        f'</svg><span class="{"fail" * off}">{number(diff.ratio)}</span></div>'
    )


def errors_legend() -> str:
    """What the marks of `errors` mean."""
    entries = (
        ('<circle class="dot" cx="9" cy="7" r="4.5"/>', "error, within its limit"),
        ('<circle class="dot off" cx="9" cy="7" r="4.5"/>', "error, beyond it"),
        ('<line class="noise" x1="9" x2="9" y1="2" y2="12"/>', "noise of the reference"),
        ('<line class="limit" x1="9" x2="9" y1="0" y2="14"/>', "limit"),
    )
    shown = "".join(f"<span><svg>{mark}</svg>{word}</span>" for mark, word in entries)
    return f'<div class="legend">{shown}</div>'


def tokens(found: TokenMap) -> Iterator[str]:
    """A row per layer, a column per token, from the first layer down to the logits."""
    count = len(found.probe.tokens)
    width = math.ceil(count / COLUMNS)
    axis = "".join(
        f'<text x="{x}%" y="12" text-anchor="{_anchor(x)}">{at}</text>'
        for x, at in ((0, 0), (50, count // 2), (100, count - 1))
        if count > 8 or not x
    )
    yield f'<div class="row axis"><span>token</span><svg>{axis}</svg><span>worst</span></div>'
    for site, ratios in sorted(found.rows.items(), key=lambda row: row[0] == LOGITS):
        known = [ratio for ratio in ratios if ratio is not None]
        worst = max(known, default=0.0)
        cells = "".join(
            _cell(found, at // width, at, ratios[at : at + width]) for at in range(0, count, width)
        )
        off = "fail" * (worst > found.limit)
        yield (
            f'<div class="row heat"><span title="{text(site.path)}">{text(name_of(site))}</span>'
            f'<svg viewBox="0 0 {math.ceil(count / width)} 1" preserveAspectRatio="none">{cells}'
            f'</svg><span class="{off}">{number(worst)}</span></div>'
        )


def _cell(found: TokenMap, x: int, at: int, ratios: Sequence[float | None]) -> str:
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return f'<rect class="{LEFT_OUT}" x="{x}" width="1" height="1"/>'
    worst = max(known)
    share = worst / found.limit
    shade = next((shade for most, shade in SHADES if share <= most), LAST)
    id = found.probe.tokens[at]
    return (
        f'<rect class="{shade}" x="{x}" width="1" height="1">'
        f"<title>token {at} (id {id}): {number(worst)} &times; noise</title></rect>"
    )


def tokens_legend() -> str:
    """What the shades of `tokens` mean, in shares of the limit."""
    words = [f"to {most:g}" for most, _ in SHADES] + ["above"]
    names = [shade for _, shade in SHADES] + [LAST]
    shown = "".join(
        f'<span><svg><rect class="{shade}" width="18" height="14"/></svg>{word}</span>'
        for shade, word in zip(names, words, strict=True)
    )
    return f'<div class="legend"><span>of the limit:</span>{shown}<span>none: a tie</span></div>'
