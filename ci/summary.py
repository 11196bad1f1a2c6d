"""What a leg leaves behind: `junit.xml`, `verdict.json`, and Markdown for the job's page.

The three say the same: what passed, the first divergence, the diagnosis, the environment. Knows
nothing of how a step was run. Standard library only.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

SCHEMA = "mlx-parity.leg/1"


@dataclass(frozen=True)
class Result:
    """A step that ran: pass, fail or skip, what was seen, and the verdict that it wrote, if any."""

    name: str
    verdict: str
    seconds: float
    seen: str
    log: str = ""
    comparison: dict[str, Any] | None = None


def describe(leg: str, results: Sequence[Result]) -> dict[str, Any]:
    """Everything as JSON-able data. A leg that ran no step has failed."""
    passed = bool(results) and all(result.verdict == "pass" for result in results)
    comparisons = [r.comparison for r in results if r.comparison]
    failed = next((c for c in comparisons if c["verdict"] != "pass"), {})
    found = next((c["environment"] for c in comparisons if c.get("environment")), None)
    machine = f"{platform.system()} {platform.release()} {platform.machine()}"
    return {
        "schema": SCHEMA,
        "leg": leg,
        "verdict": "pass" if passed else "fail",
        "steps": [
            {"name": r.name, "verdict": r.verdict, "seconds": round(r.seconds, 1), "seen": r.seen}
            for r in results
        ],
        "model": failed.get("model"),
        "first_divergence": failed.get("first_divergence"),
        "diagnosis": failed.get("diagnosis"),
        "error": failed.get("error"),
        "environment": found or {"python": platform.python_version(), "platform": machine},
    }


def write(folder: Path, leg: str, results: Sequence[Result]) -> dict[str, Any]:
    """Write the three into a folder, and the Markdown to the job's page where there is one."""
    content = describe(leg, results)
    (folder / "verdict.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    tree = ElementTree.ElementTree(junit(leg, results))
    tree.write(folder / "junit.xml", encoding="utf-8", xml_declaration=True)
    text = markdown(content)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    to_page(text)
    return content


def to_page(text: str) -> None:
    """Append Markdown to the page of the job that GitHub shows."""
    if page := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(page, "a", encoding="utf-8") as file:
            file.write(text)


def junit(leg: str, results: Sequence[Result]) -> ElementTree.Element:
    """One suite, one case a step."""
    count = {word: str(sum(r.verdict == word for r in results)) for word in ("fail", "skip")}
    suite = ElementTree.Element(
        "testsuite",
        name=leg,
        tests=str(len(results)),
        failures=count["fail"],
        errors="0",
        skipped=count["skip"],
        time=f"{sum(r.seconds for r in results):.1f}",
    )
    for result in results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=leg,
            name=_printable(result.name),
            time=f"{result.seconds:.1f}",
        )
        if result.verdict == "fail":
            failure = ElementTree.SubElement(case, "failure", message=_printable(result.seen))
            failure.text = _printable(result.log)
        elif result.verdict == "skip":
            ElementTree.SubElement(case, "skipped", message=_printable(result.seen))
    return suite


def markdown(content: dict[str, Any]) -> str:
    """The page of a leg, or of one comparison with a single step."""
    lines = [f"## {_code(content['leg'])}: {content['verdict'].upper()}", ""]
    lines += ["| step | verdict | seconds | seen |", "| --- | --- | ---: | --- |"]
    for step in content["steps"]:
        cells = _code(step["name"]), step["verdict"], f"{step['seconds']:.1f}", _code(step["seen"])
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    divergence = content["first_divergence"]
    if divergence:
        model = f" in {_code(content['model'])}" if content["model"] else ""
        lines += [f"**First divergence**{model}: {_code(divergence['message'])}", ""]
        if divergence.get("code"):
            lines += [f"**In the code**: {_code(divergence['code'])}", ""]
    for key, title in (("diagnosis", "Diagnosis"), ("error", "Error")):
        if content[key]:
            lines += [f"**{title}**: {_code(content[key])}", ""]
    lines += [f"**Environment**: {_code(_environment(content['environment']))}", ""]
    return "\n".join(lines)


def _environment(found: dict[str, Any]) -> str:
    parts = [f"Python {found['python']}", found["platform"]]
    if device := found.get("device"):
        parts.append(f"{device['kind']} ({device['name']})")
    parts += [f"{name} {version}" for name, version in found.get("packages", {}).items() if version]
    parts += [f"{name}={value}" for name, value in found.get("variables", {}).items()]
    return ", ".join(parts)


def _code(text: str) -> str:
    """A text of anybody's as code in one cell of a table: it can neither end the cell nor link."""
    plain = " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`" if plain else ""


def _printable(text: str) -> str:
    """Without the control characters that XML has no form for."""
    return "".join(
        c for c in text if c in "\n\t" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd"
    )
