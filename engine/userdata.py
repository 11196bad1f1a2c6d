"""The folder of this user's certificates, and files in it that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
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


def write_whole(path: Path, data: bytes) -> None:
    """Write a file of the user's own, whole or not at all, with the folders above it.

    Nobody else may write to folders that are made. Raises OSError, which names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
