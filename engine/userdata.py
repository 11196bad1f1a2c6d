"""The folders of this user's: certificates, and what can be made anew."""

from __future__ import annotations

import os
from pathlib import Path


def certificate_folder() -> Path:
    """Where certificates lie; it need not be there.

    MLX_PARITY_CERTIFICATES, else mlx-parity/certificates in XDG_DATA_HOME or ~/.local/share.
    """
    named = os.environ.get("MLX_PARITY_CERTIFICATES")
    if named:
        return Path(named).expanduser()
    return _base("XDG_DATA_HOME", ".local/share") / "mlx-parity" / "certificates"


def cache_folder() -> Path:
    """Where lies what can be made anew: mlx-parity in XDG_CACHE_HOME or ~/.cache."""
    return _base("XDG_CACHE_HOME", ".cache") / "mlx-parity"


def _base(variable: str, default: str) -> Path:
    base = Path(os.environ.get(variable, ""))
    # Unset, or to be ignored: the XDG specification says so of relative paths.
    return base if base.is_absolute() else Path.home() / default
