"""Options that several commands share, so that they are spelled and explained alike."""

from __future__ import annotations

from typing import Annotated

import typer

ModelOption = Annotated[
    str,
    typer.Option("--model", help="Folder, .npz or .safetensors file, golden name or Hub id."),
]
Revision = Annotated[str | None, typer.Option(help="Revision of a Hub id.")]
