"""`harness certify`: parity proven once, so that `engine` may rely on it later.

Runs the comparison at float32 and at the dtype a model is stored in, and where both hold writes
that down with everything it was found for: docs/COMMANDS.md has the form. What the engine makes of
it is the business of `engine/certificate.py`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.certificate import MIXED, SCHEMA, stored_dtype
from engine.files import ModelFiles, find_model
from engine.subject import Subject, Weights, subject_of, weights_of
from engine.userdata import certificate_folder
from engine.whole import write_whole

from .environment import version
from .errors import BadOption
from .judge import compare
from .sides import Progress
from .types import PASS, Verdict

DAYS = 90
REFERENCE_PACKAGES = ("torch", "transformers", "mlx-lm", "safetensors")


def certify(
    model: str | Path,
    candidate: str = "engine",
    reference: str | None = None,
    *,
    dtype: str | None = None,
    days: int = DAYS,
    out: Path | None = None,
    device: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> tuple[Verdict, Path | None]:
    """Judge a model; return the verdict, and the certificate written where it is a pass.

    `dtype` is compared beside float32; None is the one the weights are stored in. `reference` is
    that of `compare`. Raises EngineError, and OSError where the file cannot be written.
    """
    if days < 1:
        raise BadOption(f"--days {days}: a certificate holds for at least one")
    if reference is not None and reference.partition(":")[0] == "engine":
        raise BadOption("--reference engine: the engine cannot prove itself; torch and golden can")
    if out is not None and not out.parent.is_dir():
        raise BadOption(f"--out {out}: the folder {out.parent} does not exist")
    files = find_model(model, revision)
    dtype = dtype or stored_dtype(files)
    if dtype == MIXED:
        raise BadOption(
            f"the weights of {files.name} are stored in several dtypes: name with --dtype the one "
            "that it shall run in"
        )
    weights, before = weights_of(files), subject_of(files)
    verdict = compare(
        files.name, candidate, reference, dtype,
        device=device, revision=revision, progress=progress, notice=notice,
    )  # fmt: skip
    if verdict.verdict != PASS:
        return verdict, None
    again = find_model(model, revision)
    subject = subject_of(again, verdict.device)
    if (
        weights_of(again) != weights
        or replace(before, device_class=subject.device_class) != subject
    ):
        raise BadOption(f"{files.folder} changed while it was compared: certify it again")
    content = _content(files, subject, weights, verdict, days)
    path = out or certificate_folder() / _name(files, content)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, f"{json.dumps(content, indent=1)}\n".encode())
    return verdict, path


def _content(
    files: ModelFiles,
    subject: Subject,
    weights: tuple[Weights, ...],
    verdict: Verdict,
    days: int,
) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    checks: dict[str, dict[str, str]] = {}
    for check in verdict.checks:
        checks.setdefault(check.dtype or "", {})[check.name] = check.verdict
    return {
        "schema": SCHEMA,
        "verdict": verdict.verdict,
        "candidate": verdict.candidate,
        "reference": verdict.reference,
        "model": {
            "name": files.name,
            "folder": str(files.folder.resolve()),
            "weights": [vars(each) for each in weights],
        },
        "subject": subject.described,
        "dtypes": list(checks),
        "checks": checks,
        "ratios": _ratios(verdict),
        "calibration": verdict.calibration,
        "reference_packages": {name: version(name) for name in REFERENCE_PACKAGES},
        "platform": verdict.environment["platform"],
        "date": now.isoformat(),
        "expires": (now + datetime.timedelta(days=days)).isoformat(),
    }


def _ratios(verdict: Verdict) -> dict[str, dict[str, dict[str, float]]]:
    """By dtype and measure the worst ratio of a prompt, and the limit, where it came nearest."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for decision in verdict.decisions:
        of = found.setdefault(decision.dtype, {})
        worst = {"ratio": round(max(decision.ratios), 4), "limit": round(decision.limit, 4)}
        known = of.get(decision.measure)
        if known is None or worst["ratio"] / worst["limit"] > known["ratio"] / known["limit"]:
            of[decision.measure] = worst
    return found


def _name(files: ModelFiles, content: dict[str, Any]) -> str:
    """One file for each subject: certifying it again takes the place of what was said before."""
    what = {key: content[key] for key in ("candidate", "model", "subject", "dtypes")}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", Path(files.name).name).strip("-.") or "model"
    return f"{plain}-{digest[:12]}.json"
