"""The documentation as `make site` has built it: links lead somewhere, and nothing comes from other hosts."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from tests.support.guides import ROOT

pytestmark = pytest.mark.site
SITE = ROOT / "build" / "site"
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


class Page(HTMLParser):
    """What one page links to, what it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"id", "name"} and value:
                self.anchors.add(value)
            if (tag, name) in LOADED and value:
                self.loads.append(value)
            elif (tag, name) == ("a", "href") and value:
                self.links.append(value)


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    return {path: Page(path) for path in SITE.rglob("*.html") if path.name != "404.html"}


def dead_links(pages: dict[Path, Page]) -> Iterator[str]:
    for path, page in pages.items():
        base = f"/{path.relative_to(SITE)}"
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            aim = SITE / unquote(urljoin(base, parts.path) if parts.path else base).lstrip("/")
            if aim.is_dir():
                aim /= "index.html"
            known = aim in pages and unquote(parts.fragment) in pages[aim].anchors
            if not (known or (aim.is_file() and aim not in pages)):
                yield f"{base}: {link}"


def test_every_link_leads_to_a_page_and_a_heading(pages: dict[Path, Page]) -> None:
    assert len(pages) > 40
    assert sorted(set(dead_links(pages))) == []


def test_nothing_is_loaded_from_another_host(pages: dict[Path, Page]) -> None:
    assert {load for page in pages.values() for load in page.loads if urlsplit(load).netloc} == set()


def test_the_api_has_every_public_name(pages: dict[Path, Page]) -> None:
    reference = SITE / "docs" / "reference"
    api, errors = (pages[reference / name / "index.html"].anchors for name in ("api", "errors"))
    documented = {anchor.rpartition(".")[2] for anchor in api}
    public = importlib.import_module("fleetlm").__all__
    assert {name for name in public if name not in documented and name.lower() not in errors} == set()


def test_the_search_finds_words_of_the_guarantees() -> None:
    index = json.loads((SITE / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert any("gap-free" in each["text"] for each in index["docs"])
