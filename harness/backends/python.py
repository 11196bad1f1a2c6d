"""A callable of the user's as a side: `python:MODULE:FUNCTION`.

The function takes a list of token ids and returns logits (T, V), as anything numpy can read. If it
has a parameter `tap`, it may call `tap(path, array)` with transformers module paths; the array
that comes back must be used in place of the one given, which makes isolated comparison possible.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from engine.errors import one_line

from ..errors import BadCandidate
from ..types import LOGITS, Site, TokenFacts
from . import Observe, Request, rows, unrows
from ._code import code_of

_BLOCK = re.compile(r"^(?P<block>.*?\.(?P<index>\d+))(?:\.(?P<part>.+))?$")


def load(request: Request) -> PythonBackend:
    return PythonBackend(_function(request.argument), request.argument, request.dtype)


class PythonBackend:
    """One function from token ids to logits."""

    device = "host"

    def __init__(self, function: Callable[..., Any], name: str, dtype: str) -> None:
        self._function, self.dtype = function, dtype
        self.name = f"python:{name}"
        try:
            self._taps = "tap" in inspect.signature(function).parameters
        except ValueError:  # a builtin does not tell
            self._taps = False
        self.limits: Mapping[str, str] = {
            "cache": "a function of all tokens has no cache",
            "batch": "a function of one sequence has no batches",
            **({} if self._taps else {"sites": f"{self.name} has no parameter `tap`"}),
        }

    def forward(
        self,
        tokens: Sequence[int],
        observe: Observe | None = None,
        *,
        feed: Mapping[Site, np.ndarray] | None = None,
        inside: int | None = None,
        chunks: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See `Backend.forward`."""
        blocks = 0

        def tap(path: str, value: Any) -> Any:
            nonlocal blocks
            array = _array(value)
            array = array[None] if array.ndim == 2 else array
            match = _BLOCK.match(path)
            if match and not match["part"]:
                blocks += 1
                site = Site("block", int(match["index"]), "", path)
            elif match:
                if int(match["index"]) != inside:
                    return value
                site = Site("module", inside, match["part"], path)
            else:
                site = Site("norm" if blocks else "embedding", None, "", path)
            if observe is not None:
                observe(site, rows(array, len(tokens)))
            if feed is None or site not in feed:
                return value
            return _like(feed[site], value)

        arguments = {"tap": tap} if self._taps else {}
        try:
            logits = _array(self._function(list(tokens), **arguments))
        except Exception as error:  # the user's function may raise anything
            what = f"{type(error).__name__}: {one_line(error)}"
            raise BadCandidate(f"{self.name} raised {what} (--debug shows where)") from error
        logits = logits[0] if logits.ndim == 3 else logits
        if logits.ndim != 2 or logits.shape[0] != len(tokens):
            raise BadCandidate(
                f"{self.name} returned shape {logits.shape} for {len(tokens)} tokens: "
                "(tokens, vocabulary) is expected"
            )
        if observe is not None:
            observe(LOGITS, logits)
        return logits

    def batch(
        self, sequences: Sequence[Sequence[int]], chunks: Sequence[int] | None = None
    ) -> None:
        return None

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        found = list(prompt)
        for _ in range(count):
            found.append(int(np.argmax(self.forward(found)[-1])))
        return found[len(prompt) :]

    def weights(self) -> Mapping[str, Any] | None:
        return None

    def checkpoint(self) -> None:
        return None

    def expected_weights(self, reference: Mapping[str, Any]) -> Mapping[str, Any] | None:
        return None

    def tokens(self, texts: Sequence[str]) -> TokenFacts | None:
        return None

    def locate(self, site: Site) -> str | None:
        return code_of(self._function, self.name)


def _function(argument: str) -> Callable[..., Any]:
    module_name, _, name = argument.partition(":")
    if not module_name or not name:
        raise BadCandidate(f"candidate 'python:{argument}': write python:MODULE:FUNCTION")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise BadCandidate(
            f"candidate 'python:{argument}': {type(error).__name__}: {one_line(error)}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise BadCandidate(f"candidate 'python:{argument}': {module_name} has no function {name!r}")
    return function


def _array(value: Any) -> np.ndarray:
    """Anything with numbers in it as float numpy; bfloat16 through float32."""
    if type(value).__module__.startswith("mlx"):
        from ._mlx import to_numpy

        return to_numpy(value)
    if hasattr(value, "detach"):
        value = value.detach().float().cpu()
    return np.asarray(value)


def _like(array: np.ndarray, value: Any) -> Any:
    """The feed in the type and shape the function gave."""
    if len(np.shape(value)) > 2:
        array = unrows(array, tuple(value.shape))
    if type(value).__module__.startswith("mlx"):
        import mlx.core as mx

        return mx.array(array).astype(value.dtype).reshape(value.shape)
    if hasattr(value, "detach"):
        import torch

        return torch.tensor(array, dtype=value.dtype, device=value.device).reshape(value.shape)
    return array.astype(np.asarray(value).dtype).reshape(np.shape(value))
