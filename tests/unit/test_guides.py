"""What the guides show is what the examples run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fleetlm

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted((ROOT / "docs").glob("from-*.md"))
EXAMPLES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")}
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
PAGES = sorted(
    page for folder in (".", "docs", "examples/*", ".github") for page in ROOT.glob(f"{folder}/*.md")
)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def blocks(guide: Path) -> list[str]:
    return BLOCK.findall(guide.read_text(encoding="utf-8"))


def test_there_are_guides_with_code() -> None:
    assert {guide.name for guide in GUIDES} >= {"from-erlang.md", "from-ray-celery.md"}
    assert all(len(blocks(guide)) >= 3 for guide in GUIDES)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_every_block_stands_word_for_word_in_an_example(guide: Path) -> None:
    missing = [block for block in blocks(guide) if not any(block in source for source in EXAMPLES.values())]
    assert missing == []


@pytest.mark.parametrize("block", BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
def test_what_the_readme_shows_is_python_of_names_that_exist(block: str) -> None:
    tree = ast.parse(block)
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fleetlm"
    }
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "fleetlm"
        for alias in node.names
    }
    assert (used | imported) - {"testing"} <= set(fleetlm.__all__)


def prose(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings, repeated headings left aside."""
    headings = HEADING.findall(prose(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_to_a_file_or_heading_leads_somewhere(page: Path) -> None:
    dead = []
    for path, anchor in LINK.findall(prose(page)):
        target = (page.parent / path).resolve() if path else page
        if "://" in path or path.startswith("mailto:"):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            dead.append(f"{path}#{anchor}")
    assert dead == []
