"""The pages of docs/deploy say what the kits do, and quote what doctor prints."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.support.guides import FENCE, ROOT
from tests.support.kit_files import FLY, programs
from tests.support.kits import DEPLOY, PAGES, known_variables, needed_grace_s

PLATFORMS = sorted(path for path in PAGES.glob("*.md") if path.stem != "index")
INDEX = (PAGES / "index.md").read_text(encoding="utf-8")
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
DOCTOR = "| symptom | `fleetlm doctor` prints | cure |"


@cache
def said_by_fleetlm() -> str:
    """The texts of doctor, of errors and of connections, without what f-strings fill in."""
    texts = []
    folders = ("cli/doctor", "core", "discovery", "transport")
    for path in [each for folder in folders for each in (ROOT / "fleetlm" / folder).glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (each.value if isinstance(each, ast.Constant) else "\0" for each in node.values)
                texts.append("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def rows(page: Path) -> list[list[str]]:
    """The rows of the table of symptoms."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines[lines.index(DOCTOR) + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


@pytest.mark.parametrize("page", PLATFORMS, ids=lambda path: path.stem)
def test_a_page_has_all_that_an_operator_looks_for(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "## The query and its answer" in text
    assert re.search(r"own address (is|and port are)", text)
    assert "FLEETLM_DRAIN_MS" in text
    assert "## Traps" in text
    assert "## What doctor says" in text
    assert "fleetlm doctor" in "".join(match["text"] for match in FENCE.finditer(text))
    assert len(rows(page)) >= 3


@pytest.mark.parametrize("page", PLATFORMS, ids=lambda path: path.stem)
def test_what_doctor_prints_is_quoted_word_for_word(page: Path) -> None:
    for symptom, said, cure in rows(page):
        quoted = SPAN.findall(said)
        assert symptom
        assert cure
        assert quoted or said.startswith("nothing"), symptom
        for each in quoted:
            for part in re.split(r"exactly \d+|[()]", each):
                assert part.strip() in said_by_fleetlm() or part == "systemctl status", each


@pytest.mark.parametrize("page", [*PLATFORMS, PAGES / "index.md"], ids=lambda path: path.stem)
def test_every_variable_and_file_of_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\bFLEETLM_[A-Z_]+[A-Z]\b", text))
    assert named <= known_variables()
    for path in re.findall(r"\b(?:deploy|docker)/[\w./@-]+\w", text):
        assert (ROOT / path).exists(), path
    for path, _ in LINK.findall(text):
        assert "://" in path or not path or (page.parent / path).exists(), path


def test_the_index_lists_every_page() -> None:
    assert {path for path, _ in LINK.findall(INDEX)} >= {page.name for page in PLATFORMS}


def test_the_table_of_graces_is_that_of_the_kits() -> None:
    graces = {program.grace_s for program in programs()}
    assert graces == {60.0, 90.0}
    assert {needed_grace_s(program) for program in programs()} == {55.0, 80.0}
    for number in (55, 60, 80, 85, 90):
        assert re.search(rf"\b{number}\b", INDEX), number


def test_the_paths_that_platforms_ask_for_are_those_of_the_front_end() -> None:
    front = (ROOT / "examples" / "chat" / "web.py").read_text(encoding="utf-8")
    routes = set(re.findall(r'@app\.\w+\("([^"]+)"\)', front))
    nomad = (DEPLOY / "nomad" / "fleetlm.nomad.hcl").read_text(encoding="utf-8")
    asked = {check["path"] for check in FLY["http_service"]["checks"]}
    asked |= set(re.findall(r'path +=? *"(/\w+)"', nomad))
    asked |= set(
        re.findall(r"with (/\w+) as its path", (DEPLOY / "ecs" / "cloudmap.yaml").read_text(encoding="utf-8"))
    )
    asked |= set(re.findall(r"127\.0\.0\.1:8000(/\w+)", (PAGES / "compose.md").read_text(encoding="utf-8")))
    assert asked == {"/ready", "/workers"}
    assert asked <= routes
