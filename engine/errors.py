"""Every error a user of the engine can meet, in one tree.

A message is one line: it names the value, where it was found, and the way out. The command lines
print it and exit with status 2; `--debug` shows the traceback. Nothing here imports anything.
"""


class EngineError(Exception):
    """Base of all errors that are the user's to act on."""


class ModelNotFound(EngineError):
    """What `--model` names is not a folder, a file, a golden model or a reachable Hub id."""


class UnsupportedFormat(EngineError):
    """The files are there, but not in a form the engine reads (pickles, unknown suffixes)."""


class InvalidConfig(EngineError):
    """config.json is missing, is not JSON, or says something that cannot be."""


class UnsupportedArchitecture(EngineError):
    """`model_type` has no file in engine/architectures, or uses a feature that has no field."""


class CorruptWeights(EngineError):
    """A weight file is truncated, a tensor is missing, left over, or has the wrong shape."""


class TokenizerMismatch(EngineError):
    """The tokenizer is absent, unreadable, or reaches ids the embedding has no row for."""


class InvalidPrompt(EngineError):
    """The prompt is empty, no text, refused by a chat template, or of ids that do not exist."""


class InvalidRequest(EngineError):
    """A wish that cannot be granted: a sampling setting out of range, a grammar that is none."""


class InvalidTemplate(EngineError):
    """There is no chat template, or it is broken, or runs beyond its limits."""


class BackendUnavailable(EngineError):
    """A device, dtype or library that was asked for is not there."""


class MetalNotAvailable(BackendUnavailable):
    """A GPU was asked for and MLX has none."""


class ModelNotServed(EngineError):
    """A request names another model than the one that is served."""


class QueueFull(EngineError):
    """More requests wait than may; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ShuttingDown(EngineError):
    """The server finishes what it has begun and takes nothing new."""


class GenerationFailed(EngineError):
    """The worker gave a request up."""


class RanksUnavailable(EngineError):
    """A model that cannot be cut into so many ranks, or a command that runs in one process."""


class RankLost(EngineError):
    """Another rank has ended, or does not answer."""


def one_line(error: BaseException) -> str:
    """An error of somebody else's on one line, short enough to read."""
    return " ".join(str(error).split())[:200] or type(error).__name__
