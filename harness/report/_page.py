"""What pages share: one HTML document that needs nothing else, for a phone, in light and in dark.

Knows nothing of what a page shows. Every text goes through `text`, whoever wrote it.
"""

from __future__ import annotations

from html import escape
from typing import Any

from engine.console import printable

STYLE = """
:root{color-scheme:light dark;--line:#8883;--soft:#8882;--pass:#1a7f37;--fail:#cf222e;--no:#9a6700;
--open:#6e7781;--error:#8250df}
@media(prefers-color-scheme:dark){:root{--pass:#3fb950;--fail:#ff7b72;--no:#d29922;--open:#9da7b1;
--error:#bc8cff}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1rem}
h1{font-size:1.5rem;line-height:1.2}h2{font-size:1.2rem;margin-top:2rem}h3{font-size:1rem}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:.4rem;margin-top:.6rem}
table{border-collapse:collapse;font-size:.87rem;width:100%}
th,td{padding:.25rem .5rem;text-align:center;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:Canvas}
thead th{font-weight:600}
.pass{color:var(--pass)}.fail{color:var(--fail);font-weight:600}
.open{color:var(--open)}.error{color:var(--error);font-weight:600}
details{border-bottom:1px solid var(--line);padding:.3rem 0}summary{cursor:pointer}
code{background:var(--soft);border-radius:.25rem;padding:.05rem .3rem;overflow-wrap:anywhere;
font-size:.85em}
ul{padding-left:1.2rem}li{overflow-wrap:anywhere}.dim{opacity:.7}
"""


def text(value: Any) -> str:
    """Anything as text of a page or of an attribute: escaped, and no character that is none."""
    return escape(printable(" ".join(str(value).split())), quote=True)


def page(title: str, style: str, body: str, script: str = "") -> bytes:
    """The whole document; `title` is escaped already, `style` is added to what pages share."""
    last = f"<script>{script}</script>" if script else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{title}</title><style>{STYLE}{style}</style></head>\n<body>\n{body}\n"
        f"{last}</body></html>\n"
    ).encode()
