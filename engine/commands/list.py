"""`engine list`: what the models on this machine are, and whether parity is proven for them."""

from __future__ import annotations

from dataclasses import asdict

from ..options import AsJson, ModelFolders


def list(model_dirs: ModelFolders = None, json: AsJson = False) -> None:
    """Name, family, size and dtype of every model found, whether it runs, and is proven.

    Only headers are read. Proven is what `--backend auto` goes by: a certificate of `harness
    certify`.
    """
    from ..certificate import NONE
    from ..console import printable
    from ..discovery import discover
    from ..facts import facts_of
    from ..machine import size
    from ._output import print_json, show, table, tell_skipped

    result = discover(model_dirs or ())
    known = [(found, facts_of(found.files) if found.files else None) for found in result.found]
    if json:
        print_json(
            [
                {
                    "name": found.name,
                    "path": str(found.path),
                    "format": found.format,
                    "bytes": found.bytes,
                    **(asdict(facts) if facts else {"problem": found.problem, "proven": False}),
                }
                for found, facts in known
            ]
        )
    else:
        shown, notes = table("model", "family", "size", "dtype", "runs", "parity"), []
        for found, facts in known:
            problem = facts.problem if facts else found.problem
            cells = (
                found.name,
                facts.family if facts else found.format,
                size(found.bytes),
                facts and (facts.quantisation or facts.dtype),
                "no" if problem else "yes",
                "proven" if facts and facts.proven else "" if problem else "not proven",
            )
            shown.add_row(*(printable(cell or "") for cell in cells))
            reasons = [problem] if problem else facts.reasons if facts else ()
            notes += [f"{found.name}: {reason}" for reason in reasons if reason != NONE]
        show(shown if known else "no models found", notes)
    tell_skipped(result.skipped)
