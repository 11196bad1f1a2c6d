"""Where chat templates run: jinja2's immutable sandbox, with the names transformers gives them, and
limits on what a template writes, how long it takes and how large a value becomes.

Templates come with models, from strangers. Loops, calls and filters look at the clock; what is
written is counted, macros included; values that operators, calls and filters make are measured.
Importing this module imports jinja2.
Source: _cached_compile_jinja_template of transformers/utils/chat_template_utils.py, 5.23.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer


@dataclass(frozen=True)
class Limits:
    """What one rendering may take: characters written or held in one value, and seconds."""

    characters: int = 1 << 24  # ten times a context of a million tokens
    seconds: float = 10.0


class OverLimit(SecurityError):
    """A template went beyond its limits."""


class Refusal(TemplateError):
    """A template refused the conversation, by its own `raise_exception`."""


class _Measure(NodeTransformer):
    """Puts a look at the clock into every loop, and a measure around what may grow at once."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        tick = nodes.ExprStmt(_call("tick"), lineno=node.lineno)
        node.body.insert(0, tick)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("measured", node)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        self.generic_visit(node)
        if node.node is None:  # of a block: what it writes is counted
            return node
        node.args = [_call("measured", each) for each in node.args]
        for pair in node.kwargs:
            pair.value = _call("measured", pair.value)
        return _call("measured", node)


def _call(method: str, *arguments: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles and renders. Not for several renderings at once: it counts for the current one."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, limits: Limits) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self.finalize = self.wrote
        self.filters["tojson"] = _tojson
        self.globals |= {
            "raise_exception": _refuse,
            "strftime_now": lambda format: datetime.now().strftime(format),
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        self._limits = limits
        self._left, self._deadline = limits.characters, float("inf")

    def rendered(self, template: str, variables: Mapping[str, Any]) -> str:
        """The text of a template. Raises OverLimit, Refusal and whatever jinja2 and it raise."""
        self._deadline = float("inf")
        self._left = self._limits.characters
        compiled = self.from_string(template)
        self._left = self._limits.characters
        self._deadline = time.monotonic() + self._limits.seconds
        blocks = []
        written = 0
        for block in compiled.generate(**variables):
            written += len(block)
            if written > self._limits.characters:
                raise self._too_long()
            blocks.append(block)
        return "".join(blocks)

    def tick(self) -> None:
        """Raise OverLimit where time is up."""
        if time.monotonic() > self._deadline:
            raise OverLimit(f"it takes longer than {self._limits.seconds:g} s")

    def wrote(self, value: Any) -> Any:
        """Count what goes into the text, or into a macro's."""
        self._left -= len(value) if isinstance(value, str) else 1
        if self._left < 0:
            raise self._too_long()
        return value

    def measured(self, value: Any) -> Any:
        """Raise OverLimit for a number or a text that is too large."""
        self.tick()
        size = len(value) if isinstance(value, (str, list, tuple, dict)) else value
        if isinstance(size, int) and size > self._limits.characters:
            raise self._too_long()
        return value

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call of a template."""
        for value in (*args, *kwargs.values()):
            self.measured(value)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):  # replace and join multiply
            sizes = [len(each) for each in args if hasattr(each, "__len__")]
            self._product(len(owner), max(sizes, default=0))
        return self.measured(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `**` and `%`, which make texts and numbers of any size."""
        for one, other in ((left, right), (right, left)):
            if operator == "*" and isinstance(one, (str, list, tuple)) and isinstance(other, int):
                self._product(len(one), other)
        if operator == "**" and isinstance(right, int) and right > 64:
            raise self._too_long()
        if operator == "%" and isinstance(left, str) and _wide(left, right):
            raise self._too_long()
        return self.measured(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Any:
        """`str.format`, whose fields may be as wide as they say."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and _wide(value.__self__):
            raise self._too_long()
        return wrapped

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Measure().visit(tree)
        return tree.set_environment(self)  # type: ignore[return-value]

    def _product(self, one: int, other: int) -> None:
        if one * other > self._limits.characters:
            raise self._too_long()

    def _too_long(self) -> OverLimit:
        return OverLimit(f"it makes more than {self._limits.characters:,} characters")


def _wide(format: str, arguments: Any = ()) -> bool:
    """Whether a field of a format may be wider than a million."""
    digits = run = 0
    for character in format:
        run = run + 1 if character.isdigit() else 0
        digits = max(digits, run)
    return digits > 6 or ("*" in format and bool(arguments))


class _Generation(Extension):
    """`{% generation %}`: marks an assistant's words for training, and changes nothing else."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 has it)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return caller()


class _Dict:
    """`dict(...)` without the type's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace(...)` that takes no name beginning with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no {name!r}: names begin with a letter")


def _refuse(message: str) -> None:
    raise Refusal(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As json.dumps has it; jinja2's own escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
