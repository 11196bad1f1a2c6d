"""What this machine can judge: packages, MLX's build, TF32, the compiler, limits and goldens.

Looks and measures, and changes nothing; `report/doctor.py` shows what is found. A finding that is
not good has one line of advice.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.console import BUILDS, missing_mlx
from engine.errors import EngineError
from engine.files import golden_roots

from .environment import PACKAGES, PRODUCT_LIMIT, device_class, mlx_device, product_error, version
from .golden.manifest import NAME, read_manifest
from .limits import find_limits
from .metrics import FLOOR
from .sides import installed

DISTRIBUTION = "mlx-parity"
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"  # of a checkout; a wheel has none
INSTALL = "xcode-select --install" if sys.platform == "darwin" else "install g++ anew"
# What needs a package that need not be there.
USES = {
    "mlx-lm": "mlx-lm as candidate and reference",
    "torch": "live references and the oracle",
    "transformers": "live references and the oracle",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, and where it is not good what to do."""

    name: str
    told: str
    advice: str | None = None


@dataclass(frozen=True)
class Health:
    """Everything found; `judges` says which references, dtypes and devices there are."""

    findings: tuple[Finding, ...]
    judges: dict[str, list[str]]

    @property
    def exit_status(self) -> int:
        """0 where something can be judged, else 2."""
        return 0 if all(self.judges.values()) else 2


def examine() -> Health:
    """Look at this machine. Raises nothing for what is missing."""
    findings = list(_packages())
    broken = _without_mlx()
    if broken:
        findings.append(Finding("MLX", "cannot be imported", broken))
        return Health(tuple(findings), {"references": [], "dtypes": [], "devices": []})
    error = product_error()
    goldens = list(_goldens())
    findings += [_device(), _tf32(error), _compiler(), _limits(), _golden(goldens)]
    return Health(tuple(findings), _judges(error, goldens))


def _packages() -> Iterator[Finding]:
    """Installed versions, against those this project is tested with or what it requires."""
    pins = _pins()
    for name in PACKAGES:
        found, pin = version(name), pins.get(name)
        if found is None:
            use = USES.get(name, "everything")
            extra = "[reference]" if name in USES else ""
            advice = f"for {use}: pip install '{DISTRIBUTION}{extra}'"
            yield Finding(name, "not installed", advice)
        elif pin and found.partition("+")[0] != pin:
            advice = f"goldens and limits were measured with {pin}: pip install {name}=={pin}"
            yield Finding(name, found, advice)
        else:
            yield Finding(name, found + (", as in constraints.txt" if pin else ""))


def _pins() -> dict[str, str]:
    """The exact versions of a checkout's constraints.txt; none where this is no checkout."""
    if not CONSTRAINTS.is_file():
        return {}
    lines = (line.partition(";")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return dict(pairs)


def _without_mlx() -> str | None:
    """Why MLX cannot be imported, with the way out; None where it can."""
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        return missing_mlx(error)
    return None


def _device() -> Finding:
    device = mlx_device()
    builds = [f"{name} {number}" for name in (*BUILDS, "mlx-metal") if (number := version(name))]
    told = f"{device['kind']}, {device['name']}; {', '.join(builds) or 'no build named'}"
    if len(builds) > 1:
        return Finding("MLX", told, f"{' and '.join(builds)} own one file: uninstall all but one")
    return Finding("MLX", told)


def _tf32(error: float) -> Finding:
    name, value = "TF32", os.environ.get("MLX_ENABLE_TF32", "not set")
    told = f"MLX_ENABLE_TF32={value}; a float32 product is off by {error:.1e}"
    if error > PRODUCT_LIMIT:
        return Finding(name, f"on: {told}", "set MLX_ENABLE_TF32=0 before mlx is imported")
    if value != "0":
        return Finding(name, f"off: {told}", "set MLX_ENABLE_TF32=0: a GPU would use it")
    return Finding(name, f"off: {told}")


def _compiler() -> Finding:
    """Whether mx.compile works on MLX's device; on the CPU it runs g++, or leaves functions as
    they are where there is none.

    The constant is this process's own, so that no function of an earlier one is the answer.
    """
    import mlx.core as mx

    device, fresh = mlx_device()["kind"], 1.0 + os.getpid() / 2**22
    if device == "cpu" and shutil.which("g++") is None:
        told = "no g++: mx.compile leaves functions as they are on the CPU"
        return Finding("compiler", told, f"for speed: {INSTALL}")
    try:
        mx.eval(mx.compile(lambda x: mx.exp(x * fresh) + fresh)(mx.ones(4)))
    except RuntimeError as error:
        told = f"mx.compile fails: {' '.join(str(error).split())[:60]}"
        return Finding("compiler", told, f"{INSTALL}, or set MLX_DISABLE_COMPILE=1")
    return Finding("compiler", f"mx.compile works, {device}")


def _limits() -> Finding:
    try:
        known = find_limits(device_class(mlx_device()["kind"])).describe()
    except EngineError as error:
        return Finding("limits", "the table cannot be read", str(error))
    told = f"{known['device_class']}, from {known['source']}, {known['runs']} runs"
    if not known["calibrated"]:
        return Finding("limits", f"{told}: not measured here", "harness calibrate measures them")
    return Finding("limits", told)


def _goldens() -> Iterator[tuple[Path, dict[str, Any] | str]]:
    """Folders of goldens with their manifests, or why one cannot be read."""
    named = os.environ.get("MLX_PARITY_GOLDENS")
    folders = [*([Path(named)] if named else []), *(root.parent for root in golden_roots())]
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        if (folder / NAME).exists():
            try:
                yield folder, read_manifest(folder)
            except EngineError as error:
                yield folder, str(error)


def _golden(found: list[tuple[Path, dict[str, Any] | str]]) -> Finding:
    wrong = [manifest for _, manifest in found if isinstance(manifest, str)]
    told = "; ".join(
        f"{len(manifest['goldens'])} in {folder}"
        for folder, manifest in found
        if not isinstance(manifest, str)
    )
    if wrong:
        return Finding("goldens", told or "none that can be read", wrong[0])
    if not told:
        return Finding("goldens", "none", "harness golden record --model MODEL makes one")
    return Finding("goldens", told)


def _judges(error: float, found: list[tuple[Path, dict[str, Any] | str]]) -> dict[str, list[str]]:
    """Which references, dtypes and devices a comparison can have here.

    Without an oracle nothing is decided: that is PyTorch's, live or in a golden. Where float32
    products are none, nothing is judged at all, because every comparison begins with that rung.
    """
    import mlx.core as mx

    live = installed("torch", "transformers")
    entries = [e for _, m in found if not isinstance(m, str) for e in m["goldens"]]
    references = ["torch"] if live else []
    references += ["mlx-lm"] if live and installed("mlx_lm") else []
    references += ["engine"] if live else []
    references += sorted({f"golden:{entry['reference']}" for entry in entries})
    recorded = {entry["dtype"] for entry in entries}
    dtypes = [dtype for dtype in FLOOR if live or dtype in recorded]
    devices = ["cpu", "gpu"] if mx.metal.is_available() or mx.cuda.is_available() else ["cpu"]
    if error > PRODUCT_LIMIT:
        dtypes = []
    return {"references": references, "dtypes": dtypes, "devices": devices}
