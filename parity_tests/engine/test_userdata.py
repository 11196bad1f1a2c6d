"""Where a user's files lie: XDG's folders, unless they are no folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.userdata import cache_folder, certificate_folder

FOLDERS = [
    (certificate_folder, "XDG_DATA_HOME", ".local/share/mlx-parity/certificates"),
    (cache_folder, "XDG_CACHE_HOME", ".cache/mlx-parity"),
]


@pytest.mark.parametrize(("folder", "variable", "default"), FOLDERS)
def test_xdg_says_where_and_a_relative_path_says_nothing(monkeypatch, folder, variable, default):
    monkeypatch.delenv("MLX_PARITY_CERTIFICATES", raising=False)
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.delenv(variable, raising=False)
    assert folder() == Path("/home/user") / default
    monkeypatch.setenv(variable, "relative")
    assert folder() == Path("/home/user") / default
    monkeypatch.setenv(variable, "/elsewhere")
    assert folder().is_relative_to("/elsewhere/mlx-parity")
