"""The smallest input that still shows a difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MOST = 2000  # tries


def shrink(found: Any, differs: Callable[[Any], bool], simple: Any) -> Any:
    """A smaller text or sequence of ids for which `differs` holds.

    Parts are taken away, halves first, then single elements; then elements become `simple`, a
    character or an id.
    """
    tries = MOST
    size = max(1, len(found) // 2)
    while size and tries > 0:
        at = 0
        while at < len(found) and tries > 0:
            less = found[:at] + found[at + size :]
            tries -= 1
            if len(less) and differs(less):
                found = less
            else:
                at += size
        size //= 2
    for at in range(len(found)):
        if tries <= 0:
            break
        plainer = found[:at] + simple + found[at + 1 :]
        tries -= 1
        if plainer != found and differs(plainer):
            found = plainer
    return found
