"""Watching a transformers model from outside: forward hooks at its sites, no family known by name.

Points inside attention are no module's output. Every model calls its attention through one
interface of transformers, which is where they are seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..types import CONTEXT, KEY, QUERY, Site
from . import Observe, rows, unrows

# As transformers calls them in every family that has them.
EXPERTS, SELECTION_BIAS = "experts", "e_score_correction_bias"
GROUPS, TOP_GROUPS = "num_group", "topk_group"


class Hooks:
    """Tells `observe` every site of one pass, and gives what `feed` holds for a site in its place.

    `inside` is the block whose modules are sites as well. `length` is T. A context manager.
    """

    def __init__(
        self,
        model: Any,
        layers_path: str,
        layers: Any,
        norm: Any,
        observe: Observe | None,
        feed: Mapping[Site, np.ndarray] | None,
        inside: int | None,
        length: int,
    ) -> None:
        self._model, self._path, self._layers, self._norm = model, layers_path, layers, norm
        self._observe, self._feed = observe, feed or {}
        self._inside, self._length = inside, length
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Hooks:
        paths = {module: path for path, module in self._model.named_modules()}
        embedding = Site("embedding", None, "", paths[self._model.get_input_embeddings()])
        before = self._layers[0].register_forward_pre_hook(self._input(embedding), with_kwargs=True)
        self._stack.enter_context(before)
        for k, layer in enumerate(self._layers):
            self._output(layer, Site("block", k, "", f"{self._path}.{k}"))
            self._routing(k, layer)
        if self._inside is not None:
            for part, module in self._layers[self._inside].named_modules():
                if part and EXPERTS not in part.split(".")[:-1]:  # called once per expert
                    self._output(module, self._site(part))
            self._stack.enter_context(self._attention(self._layers[self._inside]))
        if self._norm is not None:
            self._output(self._norm, Site("norm", None, "", paths[self._norm]))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def see(self, site: Site, value: Any) -> Any:
        """Tell a tensor (1, T, ...), and give back what is to be used in its place."""
        if self._observe is not None:
            # A copy: what is done to the tensor in place later is not what the site gave.
            self._observe(site, rows(to_numpy(value), self._length).copy())
        if site not in self._feed:
            return value
        fed = unrows(self._feed[site], tuple(value.shape))
        return value.new_tensor(fed, dtype=value.dtype)

    def _site(self, part: str) -> Site:
        return Site("module", self._inside, part, f"{self._path}.{self._inside}.{part}")

    def _input(self, site: Site) -> Callable[..., Any]:
        def hook(module: Any, args: tuple, kwargs: dict) -> Any:
            if args:
                return (self.see(site, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self.see(site, kwargs["hidden_states"])}

        return hook

    def _output(self, module: Any, site: Site) -> None:
        def hook(module: Any, args: tuple, out: Any) -> Any:
            value = out[0] if isinstance(out, tuple) else out
            if not hasattr(value, "is_floating_point") or not value.is_floating_point():
                return None
            if value.ndim < 3 and tuple(value.shape[:1]) != (self._length,):
                return None
            value = self.see(site, value if value.ndim > 2 else value[None]).reshape(value.shape)
            return (value, *out[1:]) if isinstance(out, tuple) else value

        self._stack.enter_context(module.register_forward_hook(hook))

    def _routing(self, block: int, layer: Any) -> None:
        """Where a module has `experts`: what they are called with, and what they are chosen by.

        Where only some groups of experts are chosen from, a group counts by its two best scores, or
        by its best where there is no bias; it is told how far that is from the edge between the
        last group chosen and the next.
        """

        def chosen(module: Any, args: tuple, kwargs: dict) -> None:
            for value in (*args, *kwargs.values()):
                if hasattr(value, "is_floating_point") and not value.is_floating_point():
                    self.see(Site("experts", block), value[None])
                    return

        def logits(module: Any, args: tuple, out: Any) -> None:
            if isinstance(out, tuple):
                scores, bias = out[0], getattr(module, SELECTION_BIAS, None)
                if bias is not None:  # added to what the choice is made by, to nothing else
                    scores = scores.sigmoid() + bias
                self.see(Site("router", block), scores[None])
                groups = getattr(module, GROUPS, None) or 1
                kept = getattr(module, TOP_GROUPS, None) or groups
                if kept < groups:
                    best = (
                        scores.view(len(scores), groups, -1).topk(1 if bias is None else 2).values
                    )
                    total = best.sum(-1)
                    edge = total.topk(kept + 1).values[:, -2:].mean(-1, keepdim=True)
                    self.see(Site("groups", block), (total - edge)[None])

        for owner in layer.modules():
            children = dict(owner.named_children())
            experts = children.pop(EXPERTS, None)
            if experts is None:
                continue
            enter = self._stack.enter_context
            enter(experts.register_forward_pre_hook(chosen, with_kwargs=True))
            for child in children.values():
                enter(child.register_forward_hook(logits))

    @contextlib.contextmanager
    def _attention(self, layer: Any) -> Iterator[None]:
        """See what attention of this layer gets and gives, by whatever implementation it calls."""
        from transformers.modeling_utils import AttentionInterface

        parts = {module: part for part, module in layer.named_modules()}
        original = AttentionInterface.get_interface

        def get_interface(interface: Any, name: str, default: Any) -> Any:
            function = original(interface, name, default)

            def observed(module: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
                if module not in parts:
                    return function(module, query, key, *args, **kwargs)
                part = parts[module]
                # (1, H, T, D) -> (1, T, H, D), in which everything else here is told
                query = self._turned(self._site(f"{part}.{QUERY}"), query)
                key = self._turned(self._site(f"{part}.{KEY}"), key)
                out, *rest = function(module, query, key, *args, **kwargs)
                return (self.see(self._site(f"{part}.{CONTEXT}"), out), *rest)

            return observed

        setattr(AttentionInterface, "get_interface", get_interface)  # noqa: B010
        try:
            yield
        finally:
            setattr(AttentionInterface, "get_interface", original)  # noqa: B010

    def _turned(self, site: Site, value: Any) -> Any:
        return self.see(site, value.transpose(1, 2)).transpose(1, 2)


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor as numpy, exactly; bfloat16 and float16 become float32."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.to(torch.float64).to(torch.float32)
    return tensor.numpy()
