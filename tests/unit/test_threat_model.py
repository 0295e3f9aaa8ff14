"""THREAT_MODEL.md and SECURITY.md name only what exists: tests, settings with their numbers, variables."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from fleetlm import Settings
from fleetlm.settings import _KNOWN
from tests.support.guides import ROOT

MODEL = (ROOT / "THREAT_MODEL.md").read_text(encoding="utf-8")
POLICY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`", MODEL)))
ROWS = [line.strip("|").split(" | ") for line in MODEL.splitlines() if line.startswith("| ")]


@cache
def functions_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_named_test_exists(path: str, name: str) -> None:
    assert (ROOT / path).is_file()
    assert not name or name in functions_in(path)


@pytest.mark.parametrize("text", [MODEL, POLICY, GUIDE], ids=["model", "policy", "guide"])
def test_each_setting_exists_and_has_the_number_that_stands_behind_it(text: str) -> None:
    for field, number in re.findall(r"`Settings\.(\w+)`(?: \(([\d,.]+)\))?", text):
        assert field in Settings.__dataclass_fields__, field
        if number:
            assert getattr(Settings(), field) == float(number.replace(",", "")), field


@pytest.mark.parametrize("text", [MODEL, POLICY, GUIDE], ids=["model", "policy", "guide"])
def test_each_variable_exists(text: str) -> None:
    for variable in re.findall(r"`(FLEETLM_\w+)", text):
        assert variable in _KNOWN or variable == "FLEETLM_COOKIE_TAKEN", variable


def test_each_threat_has_an_actor_and_a_test_unless_nothing_is_promised() -> None:
    actors = set(re.findall(r"^\| \*\*([\w, ]+)\*\* \|", MODEL, re.MULTILINE))
    assert {"stranger", "holder", "network", "local user"} <= actors
    threats = [row for row in ROWS if len(row) == 5 and row[0].strip() != "threat"]
    assert len(threats) > 25
    for threat, actor, mitigation, test, *_ in threats:
        known = actor.strip() in {*actors, "whoever reads logs", "former operator", "same user"}
        assert known, f"{threat}: {actor}"
        assert "::" in test or mitigation.strip().startswith(("nothing:", "none ")), threat


def test_that_a_member_is_root_and_where_pickles_are_is_said_wherever_the_claim_stands() -> None:
    for text in (MODEL, GUIDE, README):
        assert re.search(r"root\s+of the\s+cluster", text)
    for page in (MODEL, GUIDE, README, *pages_that_deny_pickle()):
        assert "run_in_process" in page


def pages_that_deny_pickle() -> list[str]:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    texts = {page.name: page.read_text(encoding="utf-8") for page in pages}
    deny = re.compile(r"no pickle|never (?:exchange|un)\s*pickles?|pickle between", re.IGNORECASE)
    return [text for name, text in texts.items() if deny.search(text) and name != "CHANGELOG.md"]
