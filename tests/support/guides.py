"""The code blocks of README and the documentation, for the tests that check and run them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
QUICKSTART = ROOT / "examples" / "quickstart"
PAGES = (
    README,
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "reference"),
    *sorted((ROOT / "examples").rglob("*.md")),
)
START = ROOT / "docs" / "start.md"
OPERATE = ROOT / "docs" / "operate.md"
CONFIGURATION = ROOT / "docs" / "configuration.md"
WITH_PROGRAMS = (
    README,
    *(ROOT / "docs" / f"{name}.md" for name in ("start", "messages", "actors", "testing")),
)
"""The pages that show the programs of `QUICKSTART`; each program is saved as a file and run."""
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
HEADER = "from __future__ import annotations\n\n"
"""Ends the part of an example that README does not show: the docstring and this import."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines that a reader types: those that begin with ``$``."""
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]

    @property
    def output(self) -> str:
        """What follows the commands."""
        shown = [line for line in self.text.splitlines(keepends=True) if not line.startswith("$ ")]
        return "".join(shown)


@cache
def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page; a block in a list is unindented by as much as its fence."""
    source = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            source.count("\n", 0, found.start()) + 1,
            found["language"],
            re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
        )
        for found in FENCE.finditer(source)
    ]


def all_blocks(language: str) -> list[Block]:
    """The blocks of all pages that are in this language."""
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def shown_part(example: Path) -> str:
    """What a page shows of a quickstart program: all that follows its docstring and the first import."""
    return example.read_text(encoding="utf-8").partition(HEADER)[2].lstrip("\n")


def quickstart() -> dict[str, Block]:
    """The programs that README and the first pages show, by the name of the file that each is saved as.

    Raises:
        AssertionError: README shows a program that is not one of `QUICKSTART`, or no page shows one that is.
    """
    shown = {b.text: b for page in WITH_PROGRAMS for b in blocks(page) if b.language == "python"}
    files = {shown_part(path): path.name for path in QUICKSTART.rglob("*.py")}
    assert {block.text for block in blocks(README) if block.language == "python"} <= files.keys()
    assert files.keys() <= shown.keys(), "the first pages show every program of examples/quickstart/"
    return {files[text]: block for text, block in shown.items() if text in files}


def shown_with(command: str) -> Block:
    """The console block of the first pages that has this command, with its output."""
    (found,) = (b for page in WITH_PROGRAMS for b in blocks(page) if command in b.commands)
    return found


def section(page: Path, title: str) -> list[Block]:
    """The console blocks of a page below a heading of the second level."""
    lines = page.read_text(encoding="utf-8").splitlines()
    first = lines.index(f"## {title}") + 1
    later = [number for number, line in enumerate(lines, 1) if line.startswith("## ") and number > first]
    last = later[0] if later else len(lines)
    return [b for b in blocks(page) if b.language == "console" and first < b.line < last]
