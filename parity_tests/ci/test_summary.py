"""ci/summary.py: three files that say the same, whatever the texts in them."""

from __future__ import annotations

from xml.etree import ElementTree

import summary
from hypothesis import given
from hypothesis import strategies as st
from summary import Result

WORDS = st.sampled_from(["pass", "fail", "skip"])
RESULTS = st.lists(st.builds(Result, st.text(), WORDS, st.floats(0, 1e6), st.text(), st.text()))


@given(RESULTS)
def test_only_a_leg_whose_every_step_passed_has_passed(results):
    said = summary.describe("leg", results)["verdict"]
    assert said == ("pass" if {r.verdict for r in results} == {"pass"} else "fail")


@given(RESULTS)
def test_junit_can_be_read_back(results):
    suite = ElementTree.fromstring(ElementTree.tostring(summary.junit("leg", results)))
    assert len(suite) == len(results)
    assert len(suite.findall("testcase/failure")) == int(suite.get("failures") or -1)


@given(st.text())
def test_no_text_leaves_its_cell(text):
    content = summary.describe("leg", [Result("step", "fail", 1.0, text)])
    row = summary.markdown(content).split("\n")[4]
    assert row.replace("\\|", "").count("|") == 5 and row.endswith(" |")
    cell = row.split(" | ", 3)[3].removesuffix(" |")
    assert cell == "" or (cell.startswith("`") and cell.count("`") == 2)


def test_what_failed_is_named():
    failed = {
        "verdict": "fail",
        "model": "m",
        "environment": {"python": "3.13", "platform": "Darwin", "packages": {"mlx": "1"}},
        "first_divergence": {"message": "block 3 is off", "code": "port.py:7"},
        "diagnosis": "a window",
    }
    passed = {**failed, "verdict": "pass", "first_divergence": None, "diagnosis": None}
    results = [
        Result("a", "pass", 1.0, "", "", passed),
        Result("b", "fail", 1.0, "", "", failed),
    ]
    page = summary.markdown(summary.describe("leg", results))
    for words in ("in `m`: `block 3 is off`", "`port.py:7`", "`a window`", "mlx 1", "leg`: FAIL"):
        assert words in page
    assert "divergence" not in summary.markdown(summary.describe("leg", results[:1]))
