"""Runs mypy and pyright on what must pass and on what must not."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
ERROR = re.compile(r"(?P<path>[^:]+):(?P<line>\d+): error: (?P<text>.*)  \[(?P<code>[a-z-]+)\]")
EXPECTED = re.compile(r"# E: (?P<code>[a-z-]+)")


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[int, list[str]]]:
    """File → line → codes of the errors that mypy finds there; once, since it takes a while."""
    names = ["must_pass.py", "must_fail.py"]
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--no-pretty", "--show-error-codes",
            *(str(FOLDER / name) for name in names),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[str, dict[int, list[str]]] = {name: {} for name in names}
    for line in done.stdout.splitlines():
        match = ERROR.fullmatch(line)
        if match is not None:
            of_file = found.setdefault(Path(match["path"]).name, {})
            of_file.setdefault(int(match["line"]), []).append(match["code"])
    return found


@pytest.mark.deadline(60)
def test_what_is_right_passes(errors: dict[str, dict[int, list[str]]]) -> None:
    assert sorted(errors) == ["must_fail.py", "must_pass.py"], "errors in other files"
    assert errors["must_pass.py"] == {}


@pytest.mark.deadline(60)
def test_what_is_wrong_is_an_error_where_it_is_written(errors: dict[str, dict[int, list[str]]]) -> None:
    lines = (FOLDER / "must_fail.py").read_text(encoding="utf-8").splitlines()
    expected = {
        number: match["code"]
        for number, line in enumerate(lines, 1)
        if (match := EXPECTED.search(line)) is not None
    }
    found = errors["must_fail.py"]
    assert len(expected) > 30
    assert sorted(found) == sorted(expected)
    assert [(number, code) for number, code in expected.items() if code not in found[number]] == []


@pytest.mark.deadline(60)
@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_pyright_agrees_about_each_line() -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable,
            *(str(FOLDER / name) for name in ("must_pass.py", "must_fail.py")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},  # about a newer version
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    found = [
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1)
        for each in json.loads(done.stdout)["generalDiagnostics"]
        if each["severity"] == "error"
    ]
    lines = (FOLDER / "must_fail.py").read_text(encoding="utf-8").splitlines()
    expected = {number for number, line in enumerate(lines, 1) if EXPECTED.search(line)}
    assert [line for name, line in found if name == "must_pass.py"] == []
    assert {line for name, line in found if name == "must_fail.py"} == expected
