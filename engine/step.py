"""The decode step: one token a row, for which a device waits for Python and for launches.

What lies between two attentions is one function, compiled on a GPU, with products that share an
input fused (`fused.py`). Attention is called as ever: its keys grow, and a compiled function would
have to be made anew for every length. The layers' own code is what is compiled, so that there is no
second decoder; sites are outputs of the compiled functions where a tap wants them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from .cache import AnyCache
from .fused import fused, turned
from .layers import Tap, no_tap, ranked, under
from .layers.rope import Rope, era

if TYPE_CHECKING:
    from .decoder import Decoder

Lengths = int | Sequence[int]


class Steps:
    """A decoder's compiled steps, made when they are first asked for.

    They are made again when the decoder has other arrays or modules than it had. A decoder with
    modules that are not the engine's own has none, and neither have sequences whose rotation
    changes with every token. `compiled` None compiles on a GPU: MLX's CPU build would have g++ make
    every function first, for seconds, and gains nothing by it.
    """

    def __init__(self, compiled: bool | None = None) -> None:
        self._compiled = compiled
        self._arrays: list[mx.array] | None = None  # of the decoder they were made of
        self._sure = False  # that these are still its arrays
        self._shell: Any = None  # the decoder with fused blocks; None: it can have no steps
        self._made: dict[Any, list[Callable[..., Any]]] = {}

    def doubt(self) -> None:
        """Look at the decoder again before the next step: a new sequence begins."""
        self._sure = False

    def __call__(
        self,
        decoder: Decoder,
        tokens: mx.array,
        cache: Sequence[AnyCache],
        lengths: Lengths,
        tap: Tap,
    ) -> mx.array | None:
        """Logits (B, 1, V) of tokens (B, 1), as `decoder` itself would give; None where it has to.

        For a tap that feeds (`layers.feeding`) the same functions run as they are, not compiled.
        Raises ValueError where any other tap gives back another array.
        """
        eras = _eras(decoder, lengths)
        if eras is None:
            return None
        if not self._sure:
            self._look_at(decoder)
        if self._shell is None:
            return None
        length = lengths if isinstance(lengths, int) else lengths[0]
        # Streams are a thread's own, and what is compiled has the streams it was traced with.
        how = self._how(tap)
        key = (threading.current_thread(), mx.default_device().type, eras, how)
        if key not in self._made:
            self._made[key] = [how(function) for function in _functions(self._shell, length)]
        first, *rest = self._made[key]
        start = cache[0].positions
        start = mx.array(start) if isinstance(start, int) else start
        state = first(tap, tokens, start)
        for block, past, function in zip(self._shell.blocks, cache, rest, strict=True):
            x, normed, heads = state
            state = function(tap, x, normed, block.attn.attend(heads, past, no_tap), start)
        return state

    def _how(self, tap: Tap) -> Callable[..., Any]:
        """What is made of the functions for a tap, on this device."""
        on_gpu = mx.default_device().type == mx.gpu
        if hasattr(tap, "feeds") or not (on_gpu if self._compiled is None else self._compiled):
            return _as_it_is
        return _plain if tap is no_tap else _watched

    def _look_at(self, decoder: Decoder) -> None:
        """Have the steps of the decoder as it is now."""
        own = all(map(_own, decoder.modules()))
        if not own or self._arrays is None or not _same(_arrays(decoder), self._arrays):
            # Nothing may hold the parts' arrays while they are fused: that were the model twice.
            self._made, self._shell, self._arrays = {}, None, None
            if own:
                mx.eval(decoder.parameters())  # what is not there yet would be computed every time
                self._shell = _shell(decoder)
                self._arrays = _arrays(decoder)
        self._sure = True


def _shell(decoder: Decoder) -> Any:
    """The same decoder with fused blocks, which does not hold it."""
    made = turned(decoder)
    del made._steps
    made.blocks = [fused(block) for block in decoder.blocks]
    return made


def _functions(shell: Any, length: int) -> list[Callable[..., Any]]:
    """What a step consists of: up to the first attention, from each to the next, to the logits."""

    def before(i: int, x: mx.array, start: mx.array, tap: Tap) -> tuple[Any, ...]:
        return x, *shell.blocks[i].before(x, start, length, under(tap, f"blocks.{i}"))

    def first(tap: Tap, tokens: mx.array, start: mx.array) -> Any:
        return before(0, shell.embedded(tokens, start, tap), start, tap)

    def behind(i: int) -> Callable[..., Any]:
        def function(
            tap: Tap, x: mx.array, normed: mx.array, context: mx.array, start: mx.array
        ) -> Any:
            x = shell.blocks[i].after(x, normed, context, under(tap, f"blocks.{i}"))
            x = tap(f"blocks.{i}", x)
            if i + 1 < len(shell.blocks):
                return before(i + 1, x, start, tap)
            return shell.logits(x, tap)

        return function

    return [first, *(behind(i) for i in range(len(shell.blocks)))]


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = mx.compile(lambda *arrays: function(no_tap, *arrays))
    return lambda tap, *arrays: compiled(*arrays)


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose sites are outputs of what is compiled, and are told to the tap after."""
    names: list[str] = []

    def traced(*arrays: mx.array) -> Any:
        values: list[mx.array] = []
        names.clear()

        def tap(name: str, value: mx.array) -> mx.array:
            names.append(name)
            values.append(value)
            return value

        return function(tap, *arrays), values

    compiled = mx.compile(traced)

    def call(tap: Tap, *arrays: mx.array) -> Any:
        result, values = compiled(*arrays)
        for name, value in zip(names, values, strict=True):
            if tap(name, value) is not value:
                raise ValueError(f"{name}: a tap that feeds must say so, with layers.feeding")
        return result

    return call


def _eras(decoder: Decoder, lengths: Lengths) -> tuple[int, ...] | None:
    """What rotations of sequences of these lengths have in common; None if nothing for long."""
    found = []
    for spec in decoder.spec.stretched:
        eras = {era(spec, n) for n in ([lengths] if isinstance(lengths, int) else lengths)}
        if len(eras) > 1 or (spec.type == "dynamic" and eras != {era(spec, 0)}):
            return None
        found += eras
    return tuple(found)


def _own(module: nn.Module) -> bool:
    """Whether a module is of the engine's or MLX's code, and not something in its place.

    Those of several ranks are not compiled: what passes between them keeps the order of calls.
    """
    kind = type(module)
    if kind.__module__ == ranked.__name__:
        return False
    if isinstance(getattr(module, "_rope", None), Rope | NoneType):
        owner, _, _ = kind.__module__.partition(".")
        file = sys.modules.get(kind.__module__)
        return owner in ("engine", "mlx") and getattr(file, kind.__name__, None) is kind
    return False


def _arrays(decoder: Decoder) -> list[mx.array]:
    flat: Any = tree_flatten(decoder.parameters())
    return [array for _, array in flat]


def _same(ours: list[mx.array], theirs: list[mx.array]) -> bool:
    return len(ours) == len(theirs) and all(map(lambda a, b: a is b, ours, theirs))
