"""`engine convert`: weights into the other format, or quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import ModelOption, Revision


def convert(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="A .npz or .safetensors file, or a folder.")],
    quantize: Annotated[bool, typer.Option("--quantize", help="Pack as mlx-lm does.")] = False,
    bits: Annotated[
        int | None, typer.Option(help="Of a number; default the mode's, 4 or 8.")
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(help="Numbers that share a scale; default the mode's.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="affine, mxfp4, mxfp8 or nvfp4.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    revision: Revision = None,
) -> None:
    """Write a model's weights in the other format, or quantised; else names and values stay."""
    from ..convert import convert as write
    from ..errors import EngineError

    asked = {"bits": bits, "group_size": group_size, "mode": mode}
    how = None
    if quantize:
        from ..weights.quantised import packing

        how = packing(asked, "--quantize")
    elif given := [key for key, value in asked.items() if value is not None]:
        raise EngineError(f"--{given[0].replace('_', '-')} goes with --quantize: add it")
    print(write(model, out, revision=revision, quantise=how, force=force))
