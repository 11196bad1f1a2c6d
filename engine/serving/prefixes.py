"""Keys and values of sequences that were computed before, found by what they begin with.

A tree: each node has some tokens and, for each block, their keys and values, which depend on them
and on those of its ancestors alone. So a sequence shares what it has in common with any other, to
the token, and a cache is made of a path. Windows lose nothing: a node keeps all of its tokens.

Where keys depend on the length of the sequence as well (`era` of layers/rope.py), each era has a
tree of its own. What was used longest ago goes first. Nothing here knows requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import mlx.core as mx

from ..cache import Cache, restored
from ..layers.rope import era
from ..spec import DecoderSpec
from ..weights.quantised import Packing

# Of every block, the keys and values (1, K, T, D) of some tokens, or the parts of both.
Segment = list[tuple[mx.array, ...]]


class Prefixes:
    """At most `limit` bytes of keys and values, packed by `packing`. A limit of 0 keeps nothing.

    Found lengths are multiples of `step`.
    """

    def __init__(
        self, spec: DecoderSpec, limit: int, step: int = 1, packing: Packing | None = None
    ) -> None:
        self._limit, self._step, self._packing = limit, step, packing
        self._windows = [block.attention.window for block in spec.blocks]
        self._ropes = spec.stretched
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._roots: dict[tuple[int, ...], _Node] = {}
        self._used: OrderedDict[_Node, None] = OrderedDict()  # a node is older than its ancestors
        self.nbytes = 0

    def find(self, tokens: Sequence[int], beyond: int = 0) -> list[Cache] | None:
        """Caches of the longest known prefix of a sequence, less its last token at least.

        None where it has no more than `beyond` tokens. (A token has to be fed, for its logits.)
        """
        path, count = self._walk(tokens[:-1], len(tokens))
        count -= count % self._step
        if count <= beyond:
            return None
        self._touch(path)
        return [self._cache(block, path, count) for block in range(len(self._windows))]

    def put(
        self, tokens: Sequence[int], length: int, last: Callable[[int], Segment | None]
    ) -> None:
        """Keep a sequence, computed as one of `length` tokens.

        `last(n)` gives the segment of its last n tokens, or None if it is not there any more.
        """
        if not self._limit:
            return
        path, count = self._walk(tokens, length)
        if count < len(tokens) and (segment := last(len(tokens) - count)) is not None:
            mx.eval(segment)
            if path and (extra := sum(len(node.tokens) for node in path) - count):
                path[-1] = self._split(path[-1], len(path[-1].tokens) - extra)
            root = self._roots.setdefault(self._era(length), _Node((), [], None))
            parent = path[-1] if path else root
            path.append(self._add(tuple(tokens[count:]), segment, parent))
        self._touch(path)
        while self.nbytes > self._limit:
            self._drop(next(iter(self._used)))

    def _walk(self, tokens: Sequence[int], length: int) -> tuple[list[_Node], int]:
        """The nodes that a sequence begins with, and how many tokens of it they have.

        The last node may go on otherwise than the sequence.
        """
        node, path, count = self._roots.get(self._era(length)), [], 0
        while node is not None and count < len(tokens):
            node = node.children.get(tokens[count])
            if node is not None:
                path.append(node)
                common = _common(node.tokens, tokens, count)
                count += common
                if common < len(node.tokens):
                    break
        return path, count

    def _era(self, length: int) -> tuple[int, ...]:
        return tuple(era(rope, length) for rope in self._ropes)

    def same_era(self, one: int, other: int) -> bool:
        """Whether a token has the same keys in sequences of both lengths."""
        return self._era(one) == self._era(other)

    def _cache(self, block: int, path: Sequence[_Node], count: int) -> Cache:
        parts = zip(*(node.segment[block] for node in path), strict=True)
        whole = (mx.concatenate(list(part), axis=2)[:, :, :count] for part in parts)
        return restored(self._windows[block], *whole, packing=self._packing)

    def _add(self, tokens: tuple[int, ...], segment: Segment, parent: _Node) -> _Node:
        node = parent.children[tokens[0]] = _Node(tokens, segment, parent)
        self._used[node] = None
        self.nbytes += node.nbytes
        return node

    def _split(self, node: _Node, at: int) -> _Node:
        """Cut a node in two behind its first `at` tokens; return the first."""
        assert node.parent is not None
        self.nbytes -= node.nbytes
        first = self._add(node.tokens[:at], _cut(node.segment, 0, at), node.parent)
        node.tokens, node.segment, node.parent = (
            node.tokens[at:], _cut(node.segment, at, len(node.tokens)), first,
        )  # fmt: skip
        first.children[node.tokens[0]] = node
        self.nbytes += node.nbytes
        return first

    def _touch(self, path: Sequence[_Node]) -> None:
        for node in reversed(path):
            self._used.move_to_end(node)

    def _drop(self, node: _Node) -> None:
        assert node.parent is not None and not node.children, "the oldest node is a leaf"
        del node.parent.children[node.tokens[0]]
        del self._used[node]
        self.nbytes -= node.nbytes
        self._roots = {era: root for era, root in self._roots.items() if root.children}


class _Node:
    """Some tokens behind those of the parent, and their keys and values."""

    def __init__(self, tokens: tuple[int, ...], segment: Segment, parent: _Node | None) -> None:
        self.tokens, self.segment, self.parent = tokens, segment, parent
        self.children: dict[int, _Node] = {}  # by first token

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for parts in self.segment for part in parts)


def _common(known: Sequence[int], tokens: Sequence[int], start: int) -> int:
    """How many tokens two sequences have in common, the second from `start` on."""
    if tuple(tokens[start : start + len(known)]) == known:
        return len(known)
    pairs = zip(known, tokens[start:], strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(tokens) - start)


def _cut(segment: Segment, first: int, end: int) -> Segment:
    """A copy of some tokens: a slice would keep the whole alive."""
    at = mx.arange(first, end)
    cut = [tuple(mx.take(part, at, axis=2) for part in parts) for parts in segment]
    mx.eval(cut)
    return cut
