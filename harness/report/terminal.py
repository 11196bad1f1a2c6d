"""The verdict in a terminal: environment, checks, a bar per block, the first divergence."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..types import ERROR, FAIL, INCONCLUSIVE, ISOLATED, PASS, SKIP, SiteDiff, Verdict
from ._words import WORDS, limits_of, name_of, nearness_of, number, worst_of

COLOURS = {PASS: "green", FAIL: "bold red", ERROR: "bold red", INCONCLUSIVE: "yellow", SKIP: "dim"}
BAR = 28  # characters
DECADES = 2  # of ratios below the limit; half as many above it
SHOWN_BLOCKS = 40


def show(verdict: Verdict, console: Console) -> None:
    """Print the whole report."""
    console.print(_head(verdict), soft_wrap=False)
    console.print()
    console.print(_checks(verdict))
    for dtype in dict.fromkeys(diff.dtype for diff in verdict.sites):
        diffs = [d for d in verdict.sites if d.dtype == dtype and d.judged]
        if diffs:
            console.print()
            console.print(_bars(diffs, dtype))
    console.print()
    console.print(_end(verdict))


def _head(verdict: Verdict) -> Text:
    environment = verdict.environment
    packages = environment.get("packages", {})
    versions = "  ".join(f"{name} {number}" for name, number in packages.items() if number)
    device = environment.get("device", {})
    tf32 = environment.get("variables", {}).get("MLX_ENABLE_TF32", "not set")
    candidate = verdict.candidate + (f" over {verdict.ranks} ranks" if verdict.ranks > 1 else "")
    lines = [
        (f"{verdict.model}", "bold"),
        (f"  {candidate} against {verdict.reference}, {verdict.dtype}\n", ""),
        (f"{environment.get('platform', '')}, python {environment.get('python', '')}, ", "dim"),
        (f"MLX on {device.get('kind')} ({device.get('name')}), MLX_ENABLE_TF32={tf32}\n", "dim"),
        (versions, "dim"),
    ]
    return Text.assemble(*lines)


def _checks(verdict: Verdict) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    several = len({check.dtype for check in verdict.checks}) > 1
    asked = {check.name for check in verdict.checks if check.verdict != SKIP}
    for check in verdict.checks:
        if check.verdict == SKIP and check.name in asked:
            continue  # answered on another rung
        table.add_row(
            Text(check.verdict, COLOURS[check.verdict]),
            check.name,
            Text(check.dtype or "", "dim") if several else "",
            Text(check.reason or ""),
        )
    return table


def _bars(diffs: list[SiteDiff], dtype: str) -> Table:
    """One row per site: the probe nearest to its limit, whose ratio is drawn on a log scale."""
    modes = list(dict.fromkeys(d.mode for d in diffs))
    mode = ISOLATED if ISOLATED in modes else modes[0]
    worst = worst_of(d for d in diffs if d.mode == mode)
    failed = [d for d in worst if d.verdict == FAIL]
    dropped = 0
    if len(worst) > SHOWN_BLOCKS:
        keep = set(map(id, failed[:SHOWN_BLOCKS] or worst[:SHOWN_BLOCKS]))
        dropped = len(worst) - len(keep)
        worst = [d for d in worst if id(d) in keep]
    title = f"error / noise, {mode}, {dtype}, of the probe nearest to its limit, which is at │"
    table = Table(title=title, title_justify="left", title_style="dim", box=None, pad_edge=False)
    table.add_column("site", style="dim", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("noise", justify="right", no_wrap=True)
    table.add_column("worst probe", no_wrap=True)
    for diff in worst:
        table.add_row(
            name_of(diff.site),
            _bar(diff),
            number(diff.ratio),
            f"{diff.limit:.1f}",
            f"{diff.error:.1e}",
            f"{diff.noise:.1e}",
            diff.probe,
        )
    if dropped:
        table.add_row(f"{dropped} more in the JSON", *[""] * 6)
    return table


def _bar(diff: SiteDiff) -> Text:
    """Two bars of decades below the limit, one above it, on a log scale."""
    nearness = nearness_of(diff)
    place = (math.log10(max(nearness, 1e-9)) + DECADES) / (1.5 * DECADES)
    filled = round(BAR * min(max(place if nearness < math.inf else 1.0, 0.0), 1.0))
    mark = round(BAR * 2 / 3)
    colour = "red" if diff.verdict == FAIL else "green"
    bar = Text()
    for i in range(BAR):
        if i == mark:
            bar.append("│", "bold")
        else:
            bar.append("█" if i < filled else "·", colour if i < filled else "dim")
    return bar


def _end(verdict: Verdict) -> Text:
    text = Text(WORDS[verdict.verdict], COLOURS[verdict.verdict])
    first = verdict.first_divergence
    if first is not None:
        text.append(f"\nfirst divergence: {first.check}: {first.message}", "default")
        if first.code:
            text.append(f"\nin the code: {first.code}", "default")
    if verdict.diagnosis:
        text.append(f"\nlikely cause: {verdict.diagnosis}", "default")
    needed = verdict.prompts_needed
    if verdict.verdict == INCONCLUSIVE and needed:
        text.append(
            f"\nabout {needed} more prompts of a kind would decide: --until-decided", "default"
        )
    for line in limits_of(verdict.calibration):
        text.append(f"\n{line}", "dim not bold")
    total = sum(verdict.seconds.values())
    memory = verdict.peak_memory_bytes / 2**20
    text.append(f"\n{total:.1f} s, peak memory {memory:.0f} MiB", "dim not bold")
    return text
