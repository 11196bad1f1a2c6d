"""How small an error is detected? `python benchmarks/sensitivity.py [OUT.svg]`.

One constant of block 1 of every random model is made larger by ever less: the scale of attention,
the base of the rotary embedding, the epsilon of the norm before attention, and one weight, that of
median size in attention's output projection. Detected means that blocks or logits fail. Prints the
smallest relative error detected per family (the worst of its variants) at float32 and, judged by
its own noise alone, at bfloat16; draws for every constant the share of models in which an error of
a size is detected. Nothing is timed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import mlx.core as mx

from engine.files import find_model
from harness import environment
from harness.backends import Request, load_backend
from harness.checks import chosen
from harness.comparison import Comparison
from harness.faults import NotApplicable
from harness.faults._patient import Patient
from harness.faults.norms import epsilon_times, normed
from harness.faults.rotary import respun
from harness.judge import ask
from harness.limits import find_limits
from harness.random_models import config_of, variants, write_model
from harness.reference import Remembered
from harness.sides import load_reference
from harness.types import FAIL, Verdict

BLOCK = 1
DTYPES = ("float32", "bfloat16")
STEPS = [10 ** (k / 4) for k in range(-28, 5)]  # relative errors, four a decade, 1e-7 to 10


def scale(error: float) -> Callable[[Patient], None]:
    def attention(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
        return attend(q, k, v, scale * (1 + error), mask)

    return lambda patient: patient.attention(BLOCK, attention)


def base(error: float) -> Callable[[Patient], None]:
    inject = respun(lambda spec: replace(spec, theta=spec.theta * (1 + error)))
    return lambda patient: inject(patient, BLOCK)


def epsilon(error: float) -> Callable[[Patient], None]:
    return lambda patient: normed("attn_norm", epsilon_times(1 + error))(patient, BLOCK)


def weight(error: float) -> Callable[[Patient], None]:
    def inject(patient: Patient) -> None:
        w = patient.weight("attn.o", BLOCK)
        flat = w.reshape(-1)
        median = int(mx.argsort(mx.abs(flat))[flat.size // 2].item())
        larger = mx.where(mx.arange(flat.size) == median, flat * (1 + error), flat)
        patient.set_weight("attn.o", BLOCK, larger.reshape(w.shape))

    return inject


CONSTANTS = {
    "attention scale": scale,
    "rotary base": base,
    "norm epsilon": epsilon,
    "one weight": weight,
}


Found = dict[str, dict[str, float | None]]  # model -> constant -> smallest error detected


def main() -> None:
    found: dict[str, Found] = {dtype: {} for dtype in DTYPES}
    for family, variant in variants():
        with tempfile.TemporaryDirectory() as folder:
            files = find_model(write_model(Path(folder), config_of(family, variant)))
            for dtype, models in found.items():
                models[f"{family}/{variant}"] = of_model(Request(files, dtype))
        print(f"{family}/{variant}", file=sys.stderr)
    for dtype, models in found.items():
        print(f"{dtype}\n\n{as_markdown(models)}\n")
    if len(sys.argv) > 1:
        draw(found, Path(sys.argv[1]))


def of_model(request: Request) -> dict[str, float | None]:
    """The smallest error detected in every constant of one model."""
    reference = Remembered(load_reference("torch", request))
    return {
        name: smallest(lambda error, make=make: detected(request, reference, make(error)))
        for name, make in CONSTANTS.items()
    }


def detected(request: Request, reference: Any, inject: Callable[[Patient], None]) -> bool:
    """Whether a candidate with this change fails. Raises NotApplicable where it has no place."""
    candidate = load_backend("engine", request)
    inject(Patient(candidate, request.files.config))
    limits = find_limits(environment.device_class(candidate.device))
    comparison = Comparison(request.files, reference, candidate, reference.probes, limits)
    verdict = Verdict("", "engine", "torch", request.dtype, candidate.device)
    ask(comparison, chosen(["blocks", "logits"]), verdict)
    return verdict.verdict == FAIL


def smallest(fails: Callable[[float], bool]) -> float | None:
    """The smallest of STEPS from which on it fails; infinite where the largest does not.

    None where there is no such constant.
    """
    try:
        if not fails(STEPS[-1]):
            return float("inf")
    except NotApplicable:
        return None
    low, high = -1, len(STEPS) - 1  # at high it fails
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(STEPS[middle]) else (middle, high)
    return STEPS[high]


def as_markdown(found: Found) -> str:
    """A row per family: the largest of its variants' smallest errors."""
    rows = [f"| family | {' | '.join(CONSTANTS)} |", "|---" * (len(CONSTANTS) + 1) + "|"]
    for family in dict.fromkeys(model.partition("/")[0] for model in found):
        cells = []
        for name in CONSTANTS:
            mine = [v[name] for m, v in found.items() if m.partition("/")[0] == family]
            worst = max((size for size in mine if size is not None), default=None)
            cells.append(
                "-" if worst is None else f"{worst:.1e}" if worst <= STEPS[-1] else "not up to 10"
            )
        rows.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(rows)


def draw(found: dict[str, Found], path: Path) -> None:
    """For every constant, the share of models in which an error of a size is detected."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "sensitivity"  # the same figures, the same file
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(found), figsize=(9, 3.8), layout="constrained", sharey=True
    )
    for axes, (dtype, models) in zip(panels, found.items(), strict=True):
        for name in CONSTANTS:
            sizes = [v[name] for v in models.values() if v[name] is not None]
            shares = [sum(s <= step for s in sizes) / len(sizes) for step in STEPS]
            axes.plot(
                STEPS, shares, drawstyle="steps-post", linewidth=2,
                label=f"{name} ({len(sizes)} models)",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_title(dtype, loc="left")
        axes.set_xlabel("relative error of the constant")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share of models in which it is detected")
    panels[-1].legend(loc="upper left", frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
