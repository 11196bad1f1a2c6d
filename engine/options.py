"""Options that several commands share, so that they are spelled and explained alike."""

from __future__ import annotations

from typing import Annotated

import typer

ModelOption = Annotated[
    str,
    typer.Option("--model", help="Folder, .npz or .safetensors file, golden name or Hub id."),
]
Revision = Annotated[str | None, typer.Option(help="Revision of a Hub id.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default as stored.")]
Device = Annotated[str | None, typer.Option(help="cpu or gpu; default MLX's own.")]
Backend = Annotated[
    str,
    typer.Option(help="mlx or torch; auto takes mlx where parity is certified, else torch."),
]
KvBits = Annotated[
    int | None,
    typer.Option(help="Keep keys and values in 8 or 4 bits, with some loss; MLX only."),
]
KvGroupSize = Annotated[
    int | None,
    typer.Option(help="So many of them share a scale: 64 or 32; default the largest that fits."),
]
ModelFolders = Annotated[
    list[str] | None,
    typer.Option("--model-dirs", help="More folders to search, ; between them or given again."),
]
StopToken = Annotated[
    list[str] | None,
    typer.Option(help="Token to end at, its id or its text; may be given again."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
