"""What a user of the harness can meet beyond the engine's errors; the same rules hold."""

from __future__ import annotations

from engine.errors import BackendUnavailable, EngineError


class ReferenceUnavailable(BackendUnavailable):
    """The reference asked for needs a library or a file that is not there."""


class BadGolden(EngineError):
    """A golden file is missing, truncated, altered, or belongs to another model."""


class GoldenMissing(BadGolden):
    """There is no golden of exactly these weights, from this reference, at this dtype."""


class BadTrace(EngineError):
    """A trace file, or a file of probes, is truncated, of another schema, or does not fit."""


class BadCandidate(EngineError):
    """The callable behind `python:MODULE:FUNCTION`, or the server behind a URL, cannot be used."""


class ServerStopped(BadCandidate):
    """A server that answered before answers nothing any more."""


class BadOption(EngineError):
    """An option names something that does not exist."""


class WorkerDied(EngineError):
    """A process that ran a task of a sweep ended by itself, every time it was tried."""


class IndexUnavailable(EngineError):
    """A package index cannot be read, or has no release of a package."""
