"""What a client holds of its request: its events, for a thread or for an event loop.

Whoever reads slowly, the worker never waits: a ticket buffers what was made, at most one event a
token. Nothing here knows what is in an event, but that a `Done` is the last.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from weakref import WeakValueDictionary

from .requests import Done, Piece


class Bell:
    """Wakes an event loop, once for all that happened since it last looked.

    A turn of the worker tells every row something: the first of them wakes the loop, and the others
    find it awake.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: deque[Callable[[], object]] = deque()
        self._rung = False

    def ring(self, wake: Callable[[], object]) -> None:
        """Have the loop call `wake`; for any thread. Raises RuntimeError where it is closed."""
        self._due.append(wake)  # before the bell is looked at: see `_answer`
        if not self._rung:
            self._rung = True
            self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._rung = False  # what is due from here on rings again, or is found below
        while self._due:
            self._due.popleft()()


# Of each event loop, while there is a ticket that waits in it.
_BELLS: WeakValueDictionary[asyncio.AbstractEventLoop, Bell] = WeakValueDictionary()


class Ticket:
    """The events of one request, for one reader. `on_cancel()` wakes whoever frees the row."""

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        self._on_cancel = on_cancel
        self._events: deque[Piece | Done] = deque()
        self._changed = threading.Condition()
        self._wake: Callable[[], object] | None = None  # of an event loop that waits
        self.cancelled = False

    def put(self, event: Piece | Done) -> None:
        """Add an event; called by the worker alone."""
        with self._changed:
            self._events.append(event)
            self._changed.notify()
            wake = self._wake
        if wake is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody reads any more
                wake()

    def cancel(self) -> None:
        """Have the worker end the request: its row is free before the next step."""
        self.cancelled = True
        self._on_cancel()

    def events(self) -> Iterator[Piece | Done]:
        """Pieces that nobody has read, then a `Done`; blocks until there is one."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events)
                event = self._next()
            yield event
            if isinstance(event, Done):
                return

    async def aevents(self) -> AsyncIterator[Piece | Done]:
        """The same for an event loop, which is never blocked."""
        ready, loop = asyncio.Event(), asyncio.get_running_loop()
        bell = _BELLS.setdefault(loop, Bell(loop))
        with self._changed:
            self._wake = partial(bell.ring, ready.set)
        while True:
            ready.clear()
            while self._events:
                event = self._next()
                yield event
                if isinstance(event, Done):
                    return
            await ready.wait()

    def _next(self) -> Piece | Done:
        """The oldest event. The end stays: who reads on finds it again, and does not wait."""
        return self._events[0] if isinstance(self._events[0], Done) else self._events.popleft()
