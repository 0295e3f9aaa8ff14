"""ARCHITECTURE.md names modules that exist, and shows the table of imports that the house rules assert."""

from __future__ import annotations

import re
from pathlib import Path

from tests.house_rules import ROWS, VALUES

ROOT = Path(__file__).resolve().parents[2]
TOUR = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
PATH = re.compile(r"`((?:[a-z_]+/)+[a-z_]*(?:\.py)?)`")


def exists(path: str) -> bool:
    """Whether a path is there: beside ARCHITECTURE.md, or in the package, where `.py` may be left out."""
    candidates = [ROOT / path, ROOT / "fleetlm" / path, ROOT / "fleetlm" / f"{path}.py"]
    return any(candidate.exists() for candidate in candidates)


def test_every_module_that_is_named_exists() -> None:
    named = set(PATH.findall(TOUR))
    assert len(named) > 30
    assert sorted(path for path in named if not exists(path)) == []


def test_the_table_of_imports_is_that_of_the_house_rules() -> None:
    table = TOUR.partition("## Who may import whom")[2].partition("```\n")[2].partition("```")[0]
    shown = [set(line.split(" · ")) for line in table.splitlines()]
    rows = [set(VALUES) if row == ("values",) else set(row) for row in reversed(ROWS)]
    assert shown == [row for row in rows if row not in ({"public"}, {"__main__"})]


def test_every_package_is_named() -> None:
    packages = {path.parent.name for path in (ROOT / "fleetlm").glob("*/__init__.py")}
    assert {package for package in packages if not re.search(rf"\b{package}\b", TOUR)} == set()
