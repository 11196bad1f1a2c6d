"""Build the pages as a site: `python3 ci/docs.py [--out FOLDER]`, by default into `site/`.

mkdocs lives in an environment of its own, `.cache/docs`, at the versions of docs-requirements.txt:
building pages needs neither MLX nor PyTorch, and running models needs no mkdocs. A link that leads
nowhere fails the build, and so does a page that would ask another host for anything.
Exit status 0 built, 1 not, 2 there is no mkdocs. Standard library, Python 3.11 or newer.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".cache" / "docs"
REQUIREMENTS = ROOT / "ci" / "docs-requirements.txt"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the pages as a site.")
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="default site/")
    out = parser.parse_args(arguments).out.resolve()
    if problem := make_environment():
        print(f"docs: {problem}", file=sys.stderr)
        return 2
    if subprocess.run(build(out), cwd=ROOT, env=variables(os.environ)).returncode:
        return 1
    pages = sorted(out.rglob("*.html"))
    asked = [f"{page.name} asks {url}" for page in pages for url in foreign(page.read_text())]
    for line in asked:
        print(f"docs: {line}", file=sys.stderr)
    print(f"{len(pages)} pages in {out}")
    return 1 if asked else 0


def make_environment() -> str:
    """Make `.cache/docs` unless it is as the requirements say; what went wrong, or nothing."""
    stamp = ENVIRONMENT / "requirements.txt"  # written last
    if stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text():
        return ""
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    # Nothing but what is listed; `pip check` tells whether that is all.
    install = ["install", "--quiet", "--no-deps", "--requirement", str(REQUIREMENTS)]
    for command in (install, ["check"]):
        line = [python(), "-m", "pip", "--disable-pip-version-check", *command]
        if subprocess.run(line, stdout=sys.stderr).returncode:
            return f"pip {command[0]} failed: see above, and run the same command again"
    stamp.write_text(REQUIREMENTS.read_text())
    return ""


def build(out: Path) -> list[str]:
    return [python(), "-m", "mkdocs", "build", "--strict", "--clean", "--site-dir", str(out)]


def foreign(html: str) -> list[str]:
    """Addresses of other hosts from which a page would fetch a script, a style or a picture."""
    tags = re.findall(r"<(?:script|img|iframe|link)\b[^>]*>", html)
    fetched = [tag for tag in tags if not re.search(r'rel="?(canonical|next|prev)', tag)]
    return re.findall(r"(?:src|href)=\"?((?:https?:)?//[^\" >]+)", " ".join(fetched))


def variables(environment: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """On GitHub, the address of the repository, so that links to its files lead there."""
    found = {**environment, "NO_MKDOCS_2_WARNING": "1"}  # a banner of mkdocs-material
    if name := found.get("GITHUB_REPOSITORY"):
        server = found.get("GITHUB_SERVER_URL", "https://github.com")
        found.setdefault("SITE_REPOSITORY", f"{server}/{name}")
    return found


def python() -> str:
    return str(ENVIRONMENT / "bin" / "python")


if __name__ == "__main__":
    sys.exit(main())
