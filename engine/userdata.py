"""The folder of this user's certificates."""

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
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():  # unset, or to be ignored: the XDG specification says so
        data = Path.home() / ".local" / "share"
    return data / "mlx-parity" / "certificates"
