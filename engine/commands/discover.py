"""`engine discover`: which models are on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import AsJson, ModelFolders


def discover(
    format: Annotated[str | None, typer.Option(help="npz or safetensors; default all.")] = None,
    model_dirs: ModelFolders = None,
    json: AsJson = False,
) -> None:
    """Find models: golden, ./models, Hugging Face's, LM Studio's and Ollama's, and your folders.

    MLX_PARITY_MODEL_DIRS names more folders, with : between them. What could not be read is told
    on stderr. The first column is what --model takes.
    """
    from ..console import printable
    from ..discovery import discover as search
    from ..machine import size
    from ._output import print_json, show, table, tell_skipped

    result = search(model_dirs or (), format)
    if json:
        print_json(
            [
                {
                    "name": found.name,
                    "place": found.place,
                    "path": str(found.path),
                    "format": found.format,
                    "bytes": found.bytes,
                    "problem": found.problem,
                }
                for found in result.found
            ]
        )
    else:
        shown = table("model", "place", "format", "size")
        for found in result.found:
            cells = found.name, found.place, found.format, size(found.bytes)
            shown.add_row(*map(printable, cells))
        notes = [f"{found.name}: {found.problem}" for found in result.found if found.problem]
        show(shown if result.found else "no models found", notes)
    tell_skipped(result.skipped)
