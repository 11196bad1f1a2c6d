"""Sides of a comparison: one file per backend, found by scanning this folder.

A file has `load(request: Request) -> Backend`, and where what it loads is recorded or served at one
dtype, `only_dtype(request) -> str`: that rung alone is asked for then. One that can say which model
types it has does so in `families() -> frozenset[str]`. Its module name is the
backend's name on the command line, with `_` for `-`; what follows a colon
(`python:module:function`) is passed on. A plain URL is short for `server:URL`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from engine.errors import BackendUnavailable

from ..errors import BadOption
from ..metrics import FLOOR
from ..types import Site, TokenFacts

if TYPE_CHECKING:
    from engine.files import ModelFiles

Observe = Callable[[Site, np.ndarray], None]


@dataclass(frozen=True)
class Request:
    """What is to be loaded.

    `argument` is what follows the colon of the backend's name; `allow` names what is otherwise
    refused: "remote-code" (of the model's folder), "pickle" (weights that run code when read).
    `ranks` is how many processes the engine runs in.
    Raises BackendUnavailable for a dtype that nothing is judged at.
    """

    files: ModelFiles
    dtype: str
    device: str | None = None
    argument: str = ""
    allow: Collection[str] = ()
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.dtype not in FLOOR:
            raise BackendUnavailable(f"dtype {self.dtype!r} is not one of {', '.join(FLOOR)}")


class Backend(Protocol):
    """One implementation of one model at one dtype.

    A backend that lacks a part returns None for it (`weights`, `expected_weights`, `tokens`), and
    says so in `limits`: {"sites": "no taps", ...}; the checks that need the part are skipped with
    that reason, and so is a check whose own name stands there. One that adds as MLX or PyTorch do
    on this machine says so in `sums` ("mlx", "torch", see `products.py`).
    """

    name: str
    dtype: str
    device: str
    limits: Mapping[str, str]

    def forward(
        self,
        tokens: Sequence[int],
        observe: Observe | None = None,
        *,
        feed: Mapping[Site, np.ndarray] | None = None,
        inside: int | None = None,
        chunks: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Logits (T, V) of one sequence.

        `observe` is told every site in execution order with its array (T, features); of modules
        inside blocks only those of block `inside`. `feed[site]` (T, features) replaces the value
        at that site once it was observed. `chunks` feeds the sequence through the cache in pieces
        of those lengths.
        """
        ...

    def batch(
        self, sequences: Sequence[Sequence[int]], chunks: Sequence[int] | None = None
    ) -> list[np.ndarray] | None:
        """Logits (T_i, V) of every sequence, computed as one left-padded batch.

        `chunks` feeds its columns through the cache in pieces of those lengths. None where the
        backend has no batches, or none of these sequences.
        """
        ...

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The next `count` tokens, taken by the path that serves users; stop tokens do not stop."""
        ...

    def weights(self) -> Mapping[str, Any] | None:
        """Every parameter as loaded, by the backend's own names; values are numpy-convertible."""
        ...

    def checkpoint(self) -> Mapping[str, Any] | None:
        """Every parameter by the checkpoint's own names; None where the backend renames them."""
        ...

    def expected_weights(self, reference: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The reference's parameters after this backend's declared renames, splits, transposes."""
        ...

    def tokens(self, texts: Sequence[str]) -> TokenFacts | None:
        """What the backend's own tokenizer does with these texts."""
        ...

    def locate(self, site: Site) -> str | None:
        """FILE:LINE and name of the code that computes a site."""
        ...


def available() -> list[str]:
    """Backend names as they are typed."""
    names = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))


def load_backend(name: str, request: Request, others: Sequence[str] = ()) -> Backend:
    """Load a side by its name; BadOption lists the names there are, and `others` with them."""
    module, argument = find_backend(name, others)
    return module.load(replace(request, argument=argument))


def only_dtype(name: str, request: Request) -> str | None:
    """The one dtype that a side is recorded or served at; None where it runs at any."""
    if name.partition(":")[0] == "golden":
        return None
    module, argument = find_backend(name, ("golden",))
    fixed = getattr(module, "only_dtype", None)
    return fixed(replace(request, argument=argument)) if fixed else None


def find_backend(name: str, others: Sequence[str] = ()) -> tuple[ModuleType, str]:
    """The module of a backend, and what follows the colon of its name."""
    if name.startswith(("http://", "https://")):
        name = f"server:{name}"
    head, _, argument = name.partition(":")
    if head not in available():
        known = sorted([*available(), *others])
        near = difflib.get_close_matches(head, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadOption(f"backend {name!r}: {hint}there are {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{head.replace('-', '_')}"), argument


def rows(array: np.ndarray, length: int) -> np.ndarray:
    """(1, T, ...) or (1, H, T, D) -> (T, features), so that layouts can be compared."""
    array = array[0]
    if array.ndim == 3 and array.shape[0] != length and array.shape[1] == length:
        array = array.transpose(1, 0, 2)
    return array.reshape(length, -1)


def unrows(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(T, features) -> `shape`, which `rows` would turn into it."""
    length = array.shape[0]
    if len(shape) == 4 and shape[1] != length and shape[2] == length:
        return array.reshape(1, length, shape[1], shape[3]).transpose(0, 2, 1, 3)
    return array.reshape(shape)
