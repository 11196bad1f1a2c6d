"""Parity certificates: whether it was proven that the engine computes this model as PyTorch does.

`harness certify` writes them, and this module reads them and believes as little as it can: one
counts only for exactly the weights, configuration, tokenizer, engine, packages, class of device,
numeric settings and dtypes that were compared, and only until it expires. It guards against what
changes by itself; whoever may write into the folder can write a certificate too.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import ModelFiles
from .subject import Subject, Weights, differences, subject_of, weights_of
from .userdata import certificate_folder

SCHEMA = "harness.certificate/1"
NONE = "there is no parity certificate for this model"
MIXED = "mixed"  # the dtype of a model whose tensors are stored in several


@dataclass(frozen=True)
class Certificate:
    """One file: that `verdict` was found for `subject` at `dtypes`, on `date`, until `expires`.

    `model` is the folder it lay in, which tells of a model that has changed since.
    """

    path: Path
    subject: Subject
    weights: tuple[Weights, ...]
    model: str
    candidate: str
    verdict: str
    dtypes: tuple[str, ...]
    date: datetime.datetime
    expires: datetime.datetime
    calibrated: bool


@dataclass(frozen=True)
class Standing:
    """Whether parity is proven: by `certificate`, or not, for `reasons`, one line each."""

    certificate: Certificate | None
    reasons: tuple[str, ...] = ()

    @property
    def proven(self) -> bool:
        return self.certificate is not None


def standing(
    files: ModelFiles,
    dtype: str | None = None,
    device: str | None = None,
    *,
    read: bool = True,
) -> Standing:
    """Whether parity is proven for a model as it would run here.

    `dtype` is what it would be cast to, None for as it is stored; `device` as in `subject_of`.
    Unless `read`, weights count only where their hashes are remembered. Raises EngineError for a
    model that cannot be read; a certificate at fault is a reason.
    """
    reasons, near = [], []
    for path in _files():
        try:
            certificate = read_certificate(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            told = " ".join(str(error).split()) or "empty"
            reasons.append(f"{path} is no certificate ({type(error).__name__}: {told:.80})")
            continue
        if _concerns(certificate, files):
            near.append(certificate)
    if not near:
        return Standing(None, (NONE, *reasons))
    here, dtype = subject_of(files, device), dtype or stored_dtype(files)
    weights, objections = None, []
    for certificate in near:
        found = _objections(certificate, here, dtype)
        if not found:
            weights = weights or weights_of(files, read=read)
            found = _other_weights(certificate, weights)
        if not found:
            return Standing(certificate)
        objections.append([f"{certificate.path.name}: {reason}" for reason in found])
    return Standing(None, (*min(objections, key=len), *reasons))


def read_certificate(path: Path) -> Certificate:
    """Read one file. Raises OSError, ValueError, KeyError, TypeError or AttributeError."""
    content = json.loads(path.read_bytes())
    if content["schema"] != SCHEMA:
        raise ValueError(f"its schema is {content['schema']!r}, not {SCHEMA!r}")
    model = content["model"]
    weights = tuple(
        Weights(_text(each["file"]), each["bytes"], _text(each["sha256"]))
        for each in model["weights"]
    )
    if not weights:
        raise ValueError("it names no weights")
    return Certificate(
        path=path,
        subject=Subject.parsed(content["subject"]),
        weights=weights,
        model=_text(model["folder"]),
        candidate=_text(content["candidate"]),
        verdict=_text(content["verdict"]),
        dtypes=tuple(map(_text, content["dtypes"])),
        date=_moment(content["date"]),
        expires=_moment(content["expires"]),
        calibrated=content["calibration"]["calibrated"] is True,
    )


def stored_dtype(files: ModelFiles) -> str:
    """The one floating-point dtype of a model's tensors, or MIXED; only headers are read."""
    from .weights import floating_dtypes

    found = floating_dtypes(files.weights)
    return found.pop() if len(found) == 1 else MIXED


def _files() -> list[Path]:
    """What may be certificates, in the order of their names."""
    return sorted(certificate_folder().glob("*.json"))


def _concerns(certificate: Certificate, files: ModelFiles) -> bool:
    """Whether it is for this model, or for one that lay in its place or looks like it."""
    if certificate.model == str(files.folder.resolve()):
        return {w.file for w in certificate.weights} == {p.name for p in files.weights}
    sizes = {path.name: path.stat().st_size for path in files.weights}
    return sizes == {w.file: w.bytes for w in certificate.weights}


def _objections(certificate: Certificate, here: Subject, dtype: str) -> list[str]:
    """Why it does not count, the weights apart."""
    now, found = datetime.datetime.now(datetime.UTC), []
    if certificate.candidate != "engine":
        found.append(f"what was certified is {certificate.candidate}, not the engine")
    if certificate.verdict != "pass":
        found.append(f"its verdict is {certificate.verdict!r}, not 'pass'")
    if certificate.expires <= now:
        found.append(f"it expired on {certificate.expires:%Y-%m-%d}")
    if certificate.date > now:
        found.append(f"it is from the future ({certificate.date:%Y-%m-%d %H:%M} UTC)")
    if dtype == MIXED:
        found.append(
            f"the weights are stored in several dtypes, certified were {_all(certificate.dtypes)}: "
            "name one with --dtype"
        )
    elif dtype not in certificate.dtypes:
        found.append(f"the dtype is {dtype}, certified were {_all(certificate.dtypes)}")
    return found + differences(certificate.subject, here)


def _other_weights(certificate: Certificate, weights: tuple[Weights, ...]) -> list[str]:
    known, found = {each.file: each for each in certificate.weights}, []
    for each in weights:
        if each.sha256 is None:
            found.append(f"{each.file} was not read since it changed: --backend auto reads it")
        elif known.get(each.file) != each:
            found.append(f"{each.file} is not the one that was certified")
    return found


def _all(dtypes: tuple[str, ...]) -> str:
    return " and ".join(dtypes)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _moment(value: Any) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(_text(value))
    if moment.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone")
    return moment
