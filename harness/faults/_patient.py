"""A loaded candidate with the places where a fault can be put, the same ones for engine and mlx-lm.

Everything is changed on the live objects of one candidate, never on a class or a file that others
use, except while one of its modules is being called.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

from engine.architectures import decoder_spec
from engine.config import Config
from engine.decoder import Decoder
from engine.spec import AttentionSpec

from ..backends._mlx import columns_of
from ..reference import has_tokenizer
from . import NotApplicable

Call = Callable[..., Any]


class Patient:
    """`backend` is a loaded engine or mlx-lm side of a comparison; `config` its config.json.

    Roles are the engine's names: "attn_norm", "attn", "attn.q", "attn.k", "attn.v", "attn.o",
    "attn.q_norm", "attn.k_norm", "attn_post_norm", "mlp_norm", "mlp", "mlp.gate", "mlp.up",
    "mlp.down", "mlp_post_norm", "" (the block), and outside blocks "embed", "positions", "norm",
    "head", "" (the whole).
    """

    def __init__(self, backend: Any, config: Mapping[str, Any]) -> None:
        self.backend, self.config = backend, config
        self.is_engine = backend.name == "engine"
        self.spec = decoder_spec(Config(dict(config), "config.json"))
        self.root: nn.Module = backend.model.decoder if self.is_engine else backend.model
        self.blocks: list[Any] = list(
            self.root.blocks if self.is_engine else backend.model.layers  # type: ignore[arg-type]
        )

    def site(self, role: str) -> str:
        """The transformers path of a role, below its block where it has one."""
        return self._source(role).partition("{i}.")[2] or self._source(role)

    def part(self, role: str, block: int | None = None) -> Any:
        """The module of a role. Raises NotApplicable where there is none."""
        if self.is_engine:
            module = self.root if block is None else self.blocks[block]
            steps = role.split(".") if role else []
        else:
            module = self.root if block is None else self.blocks[block]
            steps = self._steps(role, block is None) if role else []
        for step in steps:
            if step not in module:
                raise NotApplicable(f"no {role}")
            module = module[step]
        return module

    def heads_spec(self, block: int) -> AttentionSpec:
        """The attention of a block whose heads have keys and values of their own."""
        spec = self.spec.blocks[block].attention
        if not isinstance(spec, AttentionSpec):
            raise NotApplicable("keys and values are made of a latent vector")
        return spec

    def alone(self, role: str, block: int) -> Any:
        """The module of a role. Raises NotApplicable where it makes others as well."""
        if self._rows(role, block) is not None:
            raise NotApplicable(f"{role} is fused")
        return self.part(role, block)

    def around(self, role: str, block: int | None, wrap: Call) -> None:
        """Have `wrap(call, *args, **kwargs)` in place of every call of a module."""
        swap_call(self.part(role, block), wrap)

    def rotary(self, block: int, wrap: Call) -> None:
        """Have `wrap(rotate, x, offset)` in place of `rotate(x, offset)`; x (B, H, T, D).

        Queries are rotated first, then keys.
        """
        attention = self.part("attn", block)
        if self.is_engine:
            whole = attention._rope
            if whole is None:
                raise NotApplicable("no rotary embedding")

            def rotated(x: mx.array, offset: Any, *rest: Any, **more: Any) -> mx.array:
                return wrap(lambda x, offset: whole(x, offset, *rest, **more), x, offset)

            attention._rope = rotated
        else:
            if "rope" not in attention:
                raise NotApplicable("no rotary module")

            def called(call: Call, x: mx.array, offset: Any = 0) -> mx.array:
                return wrap(lambda x, offset: call(x, offset=offset), x, offset)

            swap_call(attention["rope"], called)

    def head(self, wrap: Call) -> None:
        """Have `wrap(product, x)` in place of `product(x)`: hidden states (B, T, C) to logits.

        A soft-cap comes after it. The product is the embedding's where the head is tied.
        """
        if self.spec.tied_head:
            swap_call(self.part("embed"), wrap, "as_linear")
        else:
            self.around("head", None, wrap)

    def weight(self, role: str, block: int | None = None, leaf: str = "weight") -> mx.array:
        """A parameter of a role, its output rows first; of a fused module, the role's rows."""
        module = self.part(role, block)
        if leaf not in module:
            raise NotApplicable(f"no {leaf} in {role}")
        rows = self._rows(role, block)
        return module[leaf] if rows is None else module[leaf][rows]

    def set_weight(
        self, role: str, block: int | None, value: mx.array, leaf: str = "weight"
    ) -> None:
        """Put another array in place of `weight(role, block, leaf)`."""
        module, rows = self.part(role, block), self._rows(role, block)
        if rows is not None:
            whole = mx.array(module[leaf])
            whole[rows] = value
            value = whole
        module[leaf] = value

    @property
    def has_tokenizer(self) -> bool:
        """Whether the model's folder holds one: random models have none."""
        files = self.backend.model.files if self.is_engine else self.backend._files
        return has_tokenizer(files)

    def tokenizer(self, change: Call) -> None:
        """Have `change(tokenizer)` done to the `tokenizers.Tokenizer` that turns text into ids."""
        if self.is_engine:
            change(self.backend.model.tokenizer._backend)
            return
        import mlx_lm.tokenizer_utils as file

        tokens = self.backend.tokens

        def called(texts: Any) -> Any:
            load = file.load

            def changed(*args: Any, **kwargs: Any) -> Any:
                loaded = load(*args, **kwargs)
                change(loaded._tokenizer.backend_tokenizer)
                return loaded

            with replaced(file, "load", changed):
                return tokens(texts)

        self.backend.tokens = called

    def facts(self, change: Call) -> None:
        """Have `change(facts)` in place of what the backend says of its tokenizer."""
        tokens = self.backend.tokens
        self.backend.tokens = lambda texts: change(tokens(texts))

    def attention(self, block: int, wrap: Call) -> None:
        """Have `wrap(attend, q, k, v, scale, mask)` in place of `attend(q, k, v, scale, mask)`.

        q (B, H, T, D), k and v (B, K, S, D); mask is None, "causal" or an array that broadcasts to
        (B, H, T, S), true or 0 where a key is seen.
        """
        own = sys.modules[type(self.part("attn", block)).__module__]
        if self.is_engine:
            file, name = own, "attend"
        else:
            # What mlx-lm's own function ends in, so that whoever watches that one sees the fault.
            file, name = mx.fast, "scaled_dot_product_attention"
            if not hasattr(own, name):
                raise NotApplicable("attention is written out in place")

        def changed(whole: Call) -> Call:
            def in_engine(q: Any, k: Any, v: Any, scale: float, mask: Any, *rest: Any) -> Any:
                def attend(q: Any, k: Any, v: Any, scale: float, mask: Any) -> Any:
                    return whole(q, k, v, scale, mask, *rest)

                return wrap(attend, q, k, v, scale, mask)

            def in_mlx(
                q: Any, k: Any, v: Any, *, scale: float, mask: Any = None, **more: Any
            ) -> Any:
                def attend(q: Any, k: Any, v: Any, scale: float, mask: Any) -> Any:
                    return whole(q, k, v, scale=scale, mask=mask, **more)

                return wrap(attend, q, k, v, scale, mask)

            return in_engine if self.is_engine else in_mlx

        def called(call: Call, *args: Any, **kwargs: Any) -> Any:
            with replaced(file, name, changed(getattr(file, name))):
                return call(*args, **kwargs)

        self.around("attn", block, called)

    def caching(self, block: int, wrap: Call) -> None:
        """Have `wrap(update, k, v, offset)` in place of `update(k, v)` of the block's cache.

        `offset` is how many tokens were seen before; update gives back the k and v (B, K, S, D)
        that are attended to. Calls without a cache, and those that begin one, are changed too.
        """

        def called(call: Call, *args: Any, **kwargs: Any) -> Any:
            found = [a for a in (*args, *kwargs.values()) if hasattr(a, "offset")]
            if not found:
                return call(*args, **kwargs)
            proxy = _Caching(found[0], wrap)
            args = tuple(proxy if a is found[0] else a for a in args)
            kwargs = {key: proxy if a is found[0] else a for key, a in kwargs.items()}
            return call(*args, **kwargs)

        self.around("attn", block, called)

    def _source(self, role: str) -> str:
        for pattern in (role, f"blocks.{{i}}.{role}" if role else "blocks.{i}"):
            for name in self.spec.names:
                if pattern in name.targets:
                    return name.source
        raise NotApplicable(f"no {role}")

    def _steps(self, role: str, outside: bool) -> list[str]:
        if not outside:
            return self.site(role).split(".")
        first, *rest = self._source(role).split(".")
        # mlx-lm calls every base model so; transformers has other words, as in gpt2.
        return [first if first in self.root or not rest else "model", *rest]

    def _rows(self, role: str, block: int | None) -> mx.array | None:
        """The output rows of a role in a module that makes others as well, else None."""
        if self.is_engine or block is None:
            return None
        path = f"blocks.{{i}}.{role}"
        for name in self.spec.names:
            if path in name.targets and len(name.targets) > 1:
                columns = columns_of(name.at(block), Decoder(self.spec).shapes())
                return mx.array(columns[name.targets.index(path)])
        return None


class _Caching:
    """A cache whose update goes through a fault; everything else is the cache's own."""

    def __init__(self, cache: Any, wrap: Call) -> None:
        self._cache, self._wrap = cache, wrap

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update(self, keys: Any, values: Any) -> Any:
        return self._wrap(self._cache.update, keys, values, self._cache.offset)

    def update_and_fetch(self, keys: Any, values: Any) -> Any:
        return self._wrap(self._cache.update_and_fetch, keys, values, self._cache.offset)


def swap_call(module: nn.Module, wrap: Call, method: str = "__call__") -> None:
    """Have `wrap(call, *args, **kwargs)` in place of this module's call, from now on."""
    kind = type(module)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrap(lambda *a, **k: getattr(kind, method)(self, *a, **k), *args, **kwargs)

    members = {method: call, "__module__": kind.__module__}
    module.__class__ = type(kind.__name__, (kind,), members)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def seen_keys(mask: Any, queries: int, keys: int) -> mx.array:
    """A mask as booleans (.., T, S), true where a key is seen."""
    if mask is None:
        return mx.ones((queries, keys), dtype=mx.bool_)
    if isinstance(mask, str):
        return mx.arange(keys)[None] <= mx.arange(keys - queries, keys)[:, None]
    return mask if mask.dtype == mx.bool_ else mask == 0
