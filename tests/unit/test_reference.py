"""The reference repeats the source, the guarantees name tests that exist, and the site shows every page."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fleetlm import Settings
from scripts import stage_site, write_reference
from tests.support.guides import ROOT

yaml: Any = pytest.importorskip("yaml")
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`", GUARANTEES)))


@pytest.mark.parametrize("name", sorted(write_reference.PAGES))
def test_a_page_of_the_reference_is_what_the_source_says(name: str) -> None:
    page = write_reference.FOLDER / name
    assert page.read_text(encoding="utf-8") == write_reference.PAGES[name](), "run `make reference`"


def test_the_reference_has_every_setting_every_error_and_every_public_name() -> None:
    settings, errors, api = (
        (write_reference.FOLDER / name).read_text(encoding="utf-8")
        for name in ("settings.md", "errors.md", "api.md")
    )
    assert set(re.findall(r"^### (\w+)$", settings, re.MULTILINE)) == set(Settings.__match_args__)
    documented = set(re.findall(r"^## (\w+)$", errors, re.MULTILINE)) | set(
        re.findall(r"\.(\w+)$", api, re.MULTILINE)
    )
    assert set(importlib.import_module("fleetlm").__all__) <= documented


def test_a_name_that_belongs_nowhere_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(write_reference.API, "Processes", ["Process"])
    with pytest.raises(SystemExit, match="Pid"):
        write_reference.api_page()


@cache
def functions_in(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_test_that_holds_a_promise_exists(path: str, name: str) -> None:
    assert not name or f"def {name}(" in functions_in(path)


def test_each_promise_names_a_test() -> None:
    rows = [line for line in GUARANTEES.splitlines() if line.startswith("| ") and "| event |" not in line]
    assert len(rows) > 30
    assert [row for row in rows if row.count(" | ") != 3 or not re.search(r"`tests/[^`]+` \|$", row)] == []


def navigation(entries: list[object]) -> list[str]:
    found = []
    for entry in entries:
        if isinstance(entry, str):
            found.append(entry)
        else:
            assert isinstance(entry, dict)
            for each in entry.values():
                found += navigation(each if isinstance(each, list) else [each])
    return found


def test_the_navigation_has_every_page_of_the_documentation() -> None:
    pages = navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert len(pages) == len(set(pages))
    shown = {page for page in pages if page.startswith("docs/")} | {"docs/index.md"}
    assert shown == {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")}


def test_links_to_sources_and_folders_lead_to_pages_that_show_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_site, "TARGET", tmp_path / "site")
    stage_site.main()
    start = (tmp_path / "site" / "docs" / "testing.md").read_text(encoding="utf-8")
    assert "](../examples/testing_project/counter.py.md)" in start
    shown = (tmp_path / "site" / "examples" / "testing_project" / "counter.py.md").read_text(encoding="utf-8")
    assert (ROOT / "examples" / "testing_project" / "counter.py").read_text(encoding="utf-8") in shown
    home = (tmp_path / "site" / "index.md").read_text(encoding="utf-8")
    assert "](docs/start.md)" in home
