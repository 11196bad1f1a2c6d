"""The verdict in a terminal: environment, checks, a bar per block, the first divergence."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..types import ERROR, FAIL, INCONCLUSIVE, ISOLATED, PASS, SKIP, SiteDiff, Verdict

COLOURS = {PASS: "green", FAIL: "bold red", ERROR: "bold red", INCONCLUSIVE: "yellow", SKIP: "dim"}
WORDS = {
    PASS: "PASS: parity holds",
    FAIL: "FAIL: parity does not hold",
    ERROR: "ERROR: the comparison could not be run",
    INCONCLUSIVE: "INCONCLUSIVE: nothing is shown to be wrong, nor that nothing is",
}
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
    lines = [
        (f"{verdict.model}", "bold"),
        (f"  {verdict.candidate} against {verdict.reference}, {verdict.dtype}\n", ""),
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
    worst = _worst(d for d in diffs if d.mode == mode)
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
            _name(diff),
            _bar(diff),
            _number(diff.ratio),
            f"{diff.limit:.1f}",
            f"{diff.error:.1e}",
            f"{diff.noise:.1e}",
            diff.probe,
        )
    if dropped:
        table.add_row(f"{dropped} more in the JSON", *[""] * 6)
    return table


def _worst(diffs: Iterable[SiteDiff]) -> list[SiteDiff]:
    found: dict[object, SiteDiff] = {}
    for diff in diffs:
        if diff.site not in found or not _nearness(found[diff.site]) >= _nearness(diff):
            found[diff.site] = diff
    return list(found.values())


def _nearness(diff: SiteDiff) -> float:
    return diff.ratio / diff.limit


def _bar(diff: SiteDiff) -> Text:
    """Two bars of decades below the limit, one above it, on a log scale."""
    nearness = _nearness(diff)
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


def _name(diff: SiteDiff) -> str:
    return f"block {diff.site.block}" if diff.site.block is not None else diff.site.kind


def _number(ratio: float) -> str:
    if not math.isfinite(ratio):
        return "inf"
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:.3g}"


def _limits(calibration: dict) -> str:
    """Where the limits come from, and what they bound."""
    if not calibration:
        return ""
    device, runs, share = (calibration[key] for key in ("device_class", "runs", "share"))
    if not calibration["calibrated"]:
        why = (
            "of another class" if share else f"from {runs} harmless runs, too few to bound a share"
        )
        return f"\nlimits: uncalibrated for {device} ({why}); harness calibrate measures them"
    confidence = calibration["confidence"]
    text = (
        f"\nlimits: calibrated for {device}, each above {share:.0%} of harmless runs at "
        f"{confidence:.0%} confidence ({runs} or more)"
    )
    if calibration["wider"] > 1:
        text += (
            f"\nand {calibration['wider']:.1f} times wider: in products of "
            f"{calibration['longest_product']:,} terms rounding grows so much more here"
        )
    return text


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
    text.append(_limits(verdict.calibration), "dim not bold")
    total = sum(verdict.seconds.values())
    memory = verdict.peak_memory_bytes / 2**20
    text.append(f"\n{total:.1f} s, peak memory {memory:.0f} MiB", "dim not bold")
    return text
