"""The page that says what the engine runs: what stands in it was judged."""

from __future__ import annotations

import pytest

from harness.families import judge_families
from harness.report.families import as_markdown


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    resume = tmp_path_factory.mktemp("families") / "results"
    return as_markdown(judge_families(["gemma2"], resume=resume), "harness models")


def test_a_family_has_a_row_with_its_verdicts_and_a_line_for_what_it_refuses(page):
    row = next(line for line in page.splitlines() if line.startswith("| gemma2"))
    assert "softcaps | pass | pass |" in row
    assert "| gemma2 | `use_bidirectional_attention` | `False` |" in page


def test_a_variant_that_fails_is_named(monkeypatch):
    from engine.layers.norm import Norm

    whole = Norm.__call__
    monkeypatch.setattr(Norm, "__call__", lambda self, x: whole(self, x) * 1.0001)
    (family,) = judge_families(["gemma2"])
    assert not family.passes
    row = as_markdown([family], "harness models").split("| gemma2 |")[1]
    assert "| fail: softcaps |" in row


def test_an_unknown_family_is_one_line(command, tmp_path):
    out = tmp_path / "MODELS.md"
    result = command("harness", "models", "--families", "nonsense", "--out", out)
    assert result.status == 2 and "'nonsense'" in result.err and not out.exists()
