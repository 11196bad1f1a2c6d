"""Watching an mlx-lm model from outside, no family known by name.

mlx modules have no hooks, but Python looks `__call__` up on the class, so a module whose class is
swapped for a recording subclass tells its output wherever it is called. Points inside attention
are seen where the model's file calls `scaled_dot_product_attention`, and the experts chosen where a
module is called with whole numbers.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from mlx import nn

from ..types import CONTEXT, KEY, QUERY, Site
from ._mlx import Gathered

ATTENTION = "scaled_dot_product_attention"


@contextlib.contextmanager
def recorded(
    blocks: list[Any], norm: Any, names: dict[int, str], gathered: Gathered, inside: int | None
) -> Iterator[None]:
    """Swap classes of blocks, norm and the modules inside one block for one pass.

    `names` gives the path of a module by its id.
    """
    with contextlib.ExitStack() as stack:

        def swap(module: nn.Module, around: Callable[..., Any]) -> None:
            stack.enter_context(_swapped(module, around))

        if inside is not None:
            running: list[str] = []  # parts whose call is not over, outermost first
            block, base = blocks[inside], names[id(blocks[inside])]
            stack.enter_context(_attention(block, inside, base, gathered, running))
            for part, module in block.named_modules():
                if part:
                    site = Site("module", inside, part, f"{base}.{part}")
                    swap(module, _output(site, gathered, running))
        for i, block in enumerate(blocks):
            for experts, beside in _mixtures(block):
                swap(experts, _experts(i, gathered))
                for module in beside:
                    swap(module, _router(i, gathered))
            swap(block, _block(i, names[id(block)], gathered))
        if norm is not None:
            swap(norm, _output(Site("norm", None, "", names[id(norm)]), gathered, []))
        yield


@contextlib.contextmanager
def _swapped(module: nn.Module, around: Callable[..., Any]) -> Iterator[None]:
    """Have `around(call, *args, **kwargs)` in place of the module's call."""
    kind = type(module)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(lambda *a, **k: kind.__call__(self, *a, **k), *args, **kwargs)

    module.__class__ = type(
        kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__}
    )
    try:
        yield
    finally:
        module.__class__ = kind


def _block(i: int, path: str, gathered: Gathered) -> Callable[..., Any]:
    def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if i == 0:
            site = Site("embedding", None, "", "embedding")
            if args:
                args = (gathered.see(site, args[0]), *args[1:])
            else:
                name = next(iter(kwargs))
                kwargs[name] = gathered.see(site, kwargs[name])
        out = call(*args, **kwargs)
        value = out[0] if isinstance(out, tuple) else out
        value = gathered.see(Site("block", i, "", path), value)
        return (value, *out[1:]) if isinstance(out, tuple) else value

    return around


def _output(site: Site, gathered: Gathered, running: list[str]) -> Callable[..., Any]:
    def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        running.append(site.part)
        out = call(*args, **kwargs)
        running.pop()
        value = out[0] if isinstance(out, tuple) else out
        if not isinstance(value, mx.array) or not gathered.fits(value):
            return out
        value = gathered.see(site, value)
        return (value, *out[1:]) if isinstance(out, tuple) else value

    return around


def _experts(block: int, gathered: Gathered) -> Callable[..., Any]:
    def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.integer):
                gathered.see(Site("experts", block), _with_batch(value))
                break
        return call(*args, **kwargs)

    return around


def _router(block: int, gathered: Gathered) -> Callable[..., Any]:
    def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = call(*args, **kwargs)
        if isinstance(out, mx.array):
            gathered.see(Site("router", block), _with_batch(out))
        return out

    return around


def _with_batch(value: mx.array) -> mx.array:
    """(1, T, ...), also of what a mixture is given as rows (T, ...)."""
    return value[None] if value.ndim == 2 else value


def _mixtures(block: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Experts of a block, each with the modules beside them that give one number per expert."""
    from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP

    for _, owner in block.named_modules():
        children = [m for m in owner.children().values() if isinstance(m, nn.Module)]
        for experts in children:
            if isinstance(experts, (SwitchGLU, SwitchMLP)):
                inner: Any = next(iter(experts.children().values()))
                count = len(inner.weight)
                beside = [m for m in children if "weight" in m and len(m["weight"]) == count]
                yield experts, beside


@contextlib.contextmanager
def _attention(
    block: nn.Module, index: int, base: str, gathered: Gathered, running: list[str]
) -> Iterator[None]:
    """See what attention of this block gets and gives, in every file its modules come from."""
    names = {type(module).__module__ for _, module in block.named_modules()}
    files = [sys.modules[name] for name in names if name in sys.modules]
    originals = [(file, getattr(file, ATTENTION)) for file in files if hasattr(file, ATTENTION)]

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def observed(queries: mx.array, keys: Any, *args: Any, **kwargs: Any) -> Any:
            if not running:  # another block
                return function(queries, keys, *args, **kwargs)

            def see(leaf: str, value: mx.array) -> mx.array:
                part = f"{running[-1]}.{leaf}"
                turned = value.transpose(0, 2, 1, 3)  # (1, H, T, D) -> (1, T, H, D)
                return gathered.see(
                    Site("module", index, part, f"{base}.{part}"), turned
                ).transpose(0, 2, 1, 3)

            queries, keys = see(QUERY, queries), see(KEY, keys)
            return see(CONTEXT, function(queries, keys, *args, **kwargs))

        return observed

    for file, function in originals:
        setattr(file, ATTENTION, around(function))
    try:
        yield
    finally:
        for file, function in originals:
            setattr(file, ATTENTION, function)
