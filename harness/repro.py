"""The first divergence as a folder that runs by itself: one part, its input, weights, expectation.

The part's computation is exported from the candidate as MLX built it (`mx.export_function`), so the
script that comes with it needs mlx and numpy, and neither the model nor this package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from engine.errors import EngineError

from .answers import culprit, first
from .backends._mlx import Gathered
from .comparison import MODULE, Comparison
from .errors import BadOption
from .metrics import relative_error
from .policy import effective_noise
from .types import FAIL, ISOLATED, LOGITS, Evidence, Probe, Site

TOKENS = "tokens"  # the name of the ids among a part's inputs

SCRIPT = Template('''"""$title

$code
Run it with mlx $mlx and numpy: exit status 1 while the divergence is there.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("MLX_ENABLE_TF32", "0")

import mlx.core as mx
import numpy as np

HERE = Path(__file__).parent
NOISE = $noise  # PyTorch's own relative error here
LIMIT = $limit  # times the noise is allowed

part = mx.import_function(str(HERE / "part.mlxfn"))
arrays = {**mx.load(str(HERE / "input.safetensors")), **mx.load(str(HERE / "weights.safetensors"))}
actual = np.array(part(**arrays)[0].astype(mx.float32), np.float64)

# The oracle's float64 values, kept as the sum of two float32 arrays.
halves = mx.load(str(HERE / "expected.safetensors"))
expected = np.array(halves["high"], np.float64) + np.array(halves["low"], np.float64)

error = np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2))
print(f"error {error:.3g}, noise {NOISE:.3g}, ratio {error / NOISE:.3g}, limit {LIMIT:g}")
sys.exit(not error <= LIMIT * NOISE)
''')


class NothingToReproduce(EngineError):
    """Every part agrees on the reference's own input."""


@dataclass(frozen=True)
class Part:
    """What is cut out: the site whose value is wrong, on a token sequence."""

    site: Site
    probe: Probe
    evidence: Evidence
    error: float
    noise: float
    limit: float


def reproduce(comparison: Comparison, out: Path) -> Path:
    """Write the folder; return the script's path.

    Raises NothingToReproduce where no part is off on the reference's input, and BadOption for a
    candidate that is not made of MLX modules, or a folder that is not empty.
    """
    if not hasattr(comparison.candidate, "graph"):
        raise BadOption(f"harness repro: {comparison.candidate.name} is not made of MLX modules")
    if out.exists() and any(out.iterdir()):
        raise BadOption(f"--out {out} is not empty")
    part = smallest(comparison)
    inputs, weights, function = _cut_out(comparison, part)
    out.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {**inputs, **weights}
    mx.export_function(str(out / "part.mlxfn"), function, **arguments)
    mx.save_safetensors(str(out / "input.safetensors"), inputs)
    mx.save_safetensors(str(out / "weights.safetensors"), weights)
    expected = _expected(part)
    high = expected.astype(np.float32)
    low = (expected - high).astype(np.float32)
    halves = {"high": mx.array(high), "low": mx.array(low)}
    mx.save_safetensors(str(out / "expected.safetensors"), halves)
    (out / "part.json").write_text(json.dumps(_described(comparison, part), indent=1) + "\n")
    script = out / "repro.py"
    script.write_text(_script(comparison, part))
    return script


def smallest(comparison: Comparison) -> Part:
    """The first divergence, in the smallest part and on the shortest sequence that show it."""
    comparison.observations()
    diffs, _ = comparison.judged_sites()
    failed = [d for d in diffs if d.verdict == FAIL and d.mode == ISOLATED]
    if not failed:
        raise NothingToReproduce(
            f"every part of {comparison.candidate.name} agrees on the reference's own input: "
            "harness compare says what else there is"
        )
    diff = first(failed)
    probe = next(p for p in comparison.probes if p.name == diff.probe)
    site = _inside(comparison, probe, diff.site)
    best = _measured(comparison, site, probe)
    for tokens in _shorter(probe.tokens, lambda t: _shows(comparison, site, probe, t)):
        best = _measured(comparison, site, replace(probe, tokens=tokens, name=f"{probe.name} cut"))
    return best


def _inside(comparison: Comparison, probe: Probe, site: Site) -> Site:
    """The first module off inside a block, or the block."""
    if site.block is None:
        return site
    module = culprit(comparison.modules(probe, site.block))
    return module.site if module else site


def _shorter(
    tokens: tuple[int, ...], shows: Callable[[tuple[int, ...]], bool]
) -> list[tuple[int, ...]]:
    """Ever shorter sequences that still show it, the last one the shortest found.

    The shortest beginning, by halves; then what can be left out in front.
    """
    found: list[tuple[int, ...]] = []
    low, high = 0, len(tokens)
    while high - low > 1:
        middle = (low + high) // 2
        if shows(tokens[:middle]):
            high = middle
            found.append(tokens[:middle])
        else:
            low = middle
    tokens = tokens[:high]
    step = len(tokens) // 2
    while step:
        if len(tokens) > step and shows(tokens[step:]):
            tokens = tokens[step:]
            found.append(tokens)
        else:
            step //= 2
    return found


def _shows(comparison: Comparison, site: Site, probe: Probe, tokens: Sequence[int]) -> bool:
    cut = replace(probe, tokens=tuple(tokens), name=f"{probe.name} cut")
    part = _measured(comparison, site, cut)
    return not part.error <= part.limit * part.noise


def _measured(comparison: Comparison, site: Site, probe: Probe) -> Part:
    """The error of one site of the candidate on the oracle's input."""
    inner = site.kind == "module"
    block = site.block if inner else None
    evidence = (
        comparison.inside(probe, site.block)
        if inner and site.block is not None
        else comparison.reference.evidence(probe)
    )
    assert evidence is not None, "the reference was asked for this site before"
    seen: dict[Site, np.ndarray] = {}
    comparison.candidate.forward(probe.tokens, seen.__setitem__, feed=evidence.feed, inside=block)
    dtype = comparison.dtype
    measure = MODULE if inner else ISOLATED
    row = comparison.limits.row(measure, dtype, probe.kind)
    noise = effective_noise(evidence.noise[ISOLATED][site], dtype)
    error = relative_error(seen[site], evidence.expected[ISOLATED][site])
    return Part(site, probe, evidence, error, noise, row.limit)


def _cut_out(
    comparison: Comparison, part: Part
) -> tuple[dict[str, mx.array], dict[str, mx.array], Callable[..., mx.array]]:
    """Inputs, weights, and the function from both, by names, to the part's value (T, features)."""
    backend: Any = comparison.candidate
    tokens, site = part.probe.tokens, part.site
    inside = site.block if site.kind == "module" else None
    ids = mx.array([list(tokens)])
    feeds = {_name(s): (s, mx.array(a)) for s, a in part.evidence.feed.items()}
    module = backend.module_at(site)
    weights = {f"weight.{k}": v for k, v in _parameters(module).items()}

    def run(arrays: Mapping[str, mx.array]) -> mx.array:
        gathered = Gathered(len(tokens), {s: arrays.get(name, a) for name, (s, a) in feeds.items()})
        before = module.parameters()
        own = {k.removeprefix("weight."): v for k, v in arrays.items() if k in weights}
        module.update(tree_unflatten(list(own.items())))
        try:
            logits = backend.graph(arrays.get(TOKENS, ids), gathered, inside)
        finally:
            module.update(before)
        value = logits if site == LOGITS else gathered.seen[site]
        return value.reshape(len(tokens), -1)

    plain = run(weights)
    offered = {name: array for name, (fed, array) in feeds.items() if fed != site}
    inputs = {
        name: array
        for name, array in {TOKENS: ids, **offered}.items()
        if not bool(mx.array_equal(run({**weights, name: _other(array)}), plain))
    }
    return inputs, weights, lambda **arrays: run(arrays)


def _other(array: mx.array) -> mx.array:
    """A value that whoever depends on the array must notice; token ids stay in range."""
    return mx.where(array == 0, 1, 0) if mx.issubdtype(array.dtype, mx.integer) else array + 1


def _parameters(module: nn.Module) -> dict[str, mx.array]:
    flat: Any = tree_flatten(module.parameters())
    return dict(flat)


def _name(site: Site) -> str:
    """What a fed site is called among the inputs."""
    return f"{site.kind}.{'' if site.block is None else site.block}.{site.part}".rstrip(".")


def _expected(part: Part) -> np.ndarray:
    return part.evidence.expected[ISOLATED][part.site]


def _described(comparison: Comparison, part: Part) -> dict[str, Any]:
    return {
        "candidate": comparison.candidate.name,
        "reference": comparison.reference.name,
        "dtype": comparison.dtype,
        "site": part.site.path,
        "code": comparison.candidate.locate(part.site),
        "tokens": list(part.probe.tokens),
        "probe": part.probe.reason,
        "error": part.error,
        "noise": part.noise,
        "ratio": part.error / part.noise,
        "limit": part.limit,
    }


def _script(comparison: Comparison, part: Part) -> str:
    from .environment import version

    code = comparison.candidate.locate(part.site)
    title = f"{part.site.path} of {comparison.candidate.name} at {comparison.dtype}"
    return SCRIPT.substitute(
        title=f"{title}: {part.error / part.noise:.3g} times the noise, limit {part.limit:g}.",
        code=f"In the code: {code}." if code else "",
        mlx=version("mlx"),
        noise=repr(part.noise),
        limit=repr(part.limit),
    )
