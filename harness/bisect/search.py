"""Where along a line of releases an answer turns, found with few questions. Knows no release.

An answer is True (moved), False (as it was) or None (it could not be told, which is passed over).
"""

from __future__ import annotations

from collections.abc import Callable

Answer = bool | None


def search(count: int, test: Callable[[int], Answer]) -> tuple[int, int]:
    """(last that is as it was, first that moved), of positions 0 to count - 1.

    The first position is as it was, the last one has moved; `test` is asked of those between, each
    at most once, about log2(count) of them. Of those between the two returned none could be told.
    Where answers turn several times, one of the turns is found.
    """
    low, high, silent = 0, count - 1, set[int]()
    while True:
        middle = (low + high) / 2
        left = [i for i in range(low + 1, high) if i not in silent]
        if not left:
            return low, high
        at = min(left, key=lambda i: (abs(i - middle), i))
        answer = test(at)
        if answer is None:
            silent.add(at)
        elif answer:
            high = at
        else:
            low = at
