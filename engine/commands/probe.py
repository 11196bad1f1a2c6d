"""`engine probe`: would this model run here?"""

from __future__ import annotations

from dataclasses import asdict

from ..options import AsJson, Backend, Device, Dtype, ModelOption, Revision


def probe(
    model: ModelOption,
    backend: Backend = "auto",
    dtype: Dtype = None,
    device: Device = None,
    json: AsJson = False,
    revision: Revision = None,
) -> int:
    """Load a model once and say what would go wrong, one line a finding.

    Exit status 0 when it is ready, 2 when something stops it.
    """
    from ..console import BAD_INPUT, printable
    from ..probe import STOPS
    from ..probe import probe as search
    from ._output import print_json

    found = []
    for finding in search(model, backend, dtype, device, revision):
        found.append(finding)
        if not json:
            print(f"{finding.kind:5}  {finding.about}: {printable(finding.text)}", flush=True)
    stopped = any(finding.kind == STOPS for finding in found)
    if json:
        print_json({"ready": not stopped, "findings": [asdict(finding) for finding in found]})
    else:
        print("not ready" if stopped else "ready")
    return BAD_INPUT if stopped else 0
