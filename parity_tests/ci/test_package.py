"""ci/package.py: a tag has to name the version."""

from __future__ import annotations

import package

PROJECT = '[project]\nname = "x"\nversion = "1.2.3"\n'


def test_a_tag_names_the_version_of_the_project():
    assert package.wrong_tag("v1.2.3", PROJECT) == ""
    for tag in ("1.2.3", "v1.2.4", "main", ""):
        assert "is not v1.2.3 of pyproject.toml" in package.wrong_tag(tag, PROJECT)


def test_nothing_is_built_for_another_tag(monkeypatch, capsys):
    def build(*arguments, **options):
        raise AssertionError("built")

    monkeypatch.setattr(package.venv, "create", build)
    assert package.main(["v999"]) == 1 and package.main([]) == 2
    assert "'v999' is not v" in capsys.readouterr().err
