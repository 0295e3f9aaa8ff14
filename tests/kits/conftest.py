"""The tools that validate the kits: a missing one is a failure in CI, and a skip elsewhere."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

TOOL_S = 60


def is_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


def missing(what: str) -> None:
    """Fail in CI, and skip elsewhere, for a tool that is not installed."""
    text = f"{what} is not installed: pip install -e '.[kits]', and on Debian apt-get install kubectl systemd"
    if is_ci():
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def find_tool(name: str) -> str:
    """Return the path of a program: of this environment, or of the system."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        missing(name)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def tool() -> Callable[..., str]:
    """Run a program; returns what it printed, with ``says_all`` its warnings too."""

    def run(name: str, *arguments: str | Path, ok: tuple[int, ...] = (0,), says_all: bool = False) -> str:
        done = subprocess.run(
            [find_tool(name), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TOOL_S,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode in ok, f"{name} {' '.join(map(str, arguments))}: {said}"
        return said if says_all or done.returncode else done.stdout

    return run


@pytest.fixture(scope="session")
def library() -> Callable[[str], Any]:
    """Import a validator."""

    def load(name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ImportError:
            return missing(name)

    return load
