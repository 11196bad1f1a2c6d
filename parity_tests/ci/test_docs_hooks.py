"""ci/docs_hooks.py: links of the tree become links of the site."""

from __future__ import annotations

import docs_hooks
import pytest

KNOWN = {"README.md", "CONTRIBUTING.md", "METHOD.md", "streaming.svg"}
HOST = "https://example.org/mlx-parity"


@pytest.mark.parametrize(
    ("folder", "written", "site"),
    [
        ("", "[m](docs/METHOD.md)", "[m](METHOD.md)"),
        ("", "[m](docs/METHOD.md#noise)", "[m](METHOD.md#noise)"),
        ("", "![p](docs/streaming.svg)", "![p](streaming.svg)"),
        ("", "[c](CONTRIBUTING.md)", "[c](CONTRIBUTING.md)"),
        ("docs", "[c](../CONTRIBUTING.md)", "[c](CONTRIBUTING.md)"),
        ("docs", "[m](METHOD.md)", "[m](METHOD.md)"),
        ("docs", "[code](../ci/docs.py)", f"[code]({HOST}/blob/main/ci/docs.py)"),
        ("docs", "[here](#top)", "[here](#top)"),
        ("docs", "[far](https://example.org/x.md)", "[far](https://example.org/x.md)"),
        ("docs", "[lost](LOST.md)", "[lost](LOST.md)"),  # mkdocs tells
        ("docs", "`[m](../README.md)`", "`[m](../README.md)`"),
        ("", "```\n[m](docs/METHOD.md)\n```\n[m](docs/METHOD.md)", None),
    ],
)
def test_links_are_turned(folder, written, site):
    if site is None:
        site = "```\n[m](docs/METHOD.md)\n```\n[m](METHOD.md)"
    assert docs_hooks.turned(written, folder, KNOWN, HOST) == site


def test_a_file_of_a_repository_without_an_address_stays_as_text():
    assert docs_hooks.turned("[code](../ci/docs.py)", "docs", KNOWN, "") == "code"
