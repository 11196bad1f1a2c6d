"""From the pattern of what failed to a likely cause, in one sentence. Source: docs/METHOD.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .types import FAIL, ISOLATED, PROPAGATED, CheckResult, SiteDiff


def diagnose(checks: Sequence[CheckResult], sites: Sequence[SiteDiff]) -> str | None:
    """The first pattern that fits; None where everything holds."""
    failed = [check.name for check in checks if check.verdict == FAIL]
    if not failed:
        return None
    by = {check.name: check for check in checks if check.verdict == FAIL}
    off = [d for d in sites if d.verdict == FAIL and d.judged]
    isolated = {d.site.block for d in off if d.mode == ISOLATED and d.site.kind == "block"}
    blocks = {d.site.block for d in sites if d.site.kind == "block" and d.mode == ISOLATED}
    late = _same_token(d for d in off if d.mode == ISOLATED and d.site.kind == "block")

    if "weights" in by:
        return f"a parameter is not the reference's: {by['weights'].reason}"
    if any(d.site.kind == "embedding" for d in off):
        return "what enters block 0 is off: embedding, its scale, positions, or the tokens"
    if not any(d.mode == ISOLATED for d in sites) and "logits" in by:
        return "the logits are off, and the candidate shows no blocks, so no place can be named"
    if isolated and late is not None:
        where = _blocks(isolated)
        return (
            f"{where} right up to token {late} and off from there: mask, window or rotary scaling"
        )
    if len(blocks) > 1 and isolated == blocks:
        return "every block is off alike: a constant they share (epsilon, rotary base, scale, norm)"
    if isolated:
        return f"{_blocks(isolated)} off on the reference's own input: the defect is inside"
    if any(d.mode == ISOLATED for d in off) or failed == ["logits"]:
        return "blocks are clean and logits are not: last norm, head, tied weights, cap or scale"
    if failed == ["cache"]:
        return "right in one pass and wrong in pieces: cache, offsets or the mask of a later chunk"
    if failed == ["tokens"]:
        return "the model computes what it should; its tokenizer does not"
    if any(d.mode == PROPAGATED for d in off):
        return "every part is right on its own, and errors grow on the way faster than they should"
    return None


def _same_token(diffs: Iterable[SiteDiff]) -> int | None:
    """The token at which every failing probe goes wrong, where it is one and the same.

    The first two tokens say nothing: a wrong scale cannot show before there are two to attend to.
    """
    tokens = [d.token for d in diffs]
    same = len(tokens) > 1 and len(set(tokens)) == 1 and tokens[0] is not None and tokens[0] > 1
    return tokens[0] if same else None


def _blocks(found: set[int | None]) -> str:
    """ "block 3 is", "blocks 1, 4 are"."""
    numbers = sorted(b for b in found if b is not None)
    shown = ", ".join(map(str, numbers[:6])) + (" ..." if len(numbers) > 6 else "")
    return f"block {shown} is" if len(numbers) == 1 else f"blocks {shown} are"
