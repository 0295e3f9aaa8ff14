"""The tests on every supported Python, and with the lowest supported versions of the dependencies.

``nox --list`` names the sessions; ``nox -s tests-3.13 -- tests/unit`` hands what follows ``--`` to pytest.
For the interpreter at hand, ``make test`` needs less time to set up.
"""

from __future__ import annotations

import re
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False  # on a developer's machine; CI installs each
nox.options.sessions = ["tests", "lowest", "lint"]

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
PYTEST = (
    *("python", "-m", "pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"),
    *("-m", "not long and not containers and not browser and not kits and not site"),
)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run what ``make test`` runs."""
    session.install("--editable", ".[dev]")
    session.run(*PYTEST, *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run the tests with the oldest version that pyproject.toml allows of each run-time dependency."""
    constraints = Path(session.create_tmp()) / "lowest.txt"
    lines = [f"{name}=={version}\n" for name, version in lower_bounds().items()]
    constraints.write_text("".join(lines), encoding="utf-8")
    session.install("--editable", ".[dev]", "--constraint", str(constraints))
    session.log("with %s", ", ".join(line.strip() for line in lines))
    session.run(*PYTEST, *session.posargs)


@nox.session(python=PYTHONS[0])
def lint(session: nox.Session) -> None:
    """Run what ``make lint`` and ``make types`` run."""
    session.install("--editable", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("codespell", ".")
    session.run("pyright", "--verifytypes", "fleetlm", "--ignoreexternal")


def lower_bounds() -> dict[str, str]:
    """Return the lowest allowed version of each run-time dependency, from pyproject.toml."""
    bounds = {}
    for requirement in nox.project.load_toml("pyproject.toml")["project"]["dependencies"]:
        found = re.match(r"([A-Za-z0-9_.-]+)\s*>=\s*([0-9.]+)", requirement)
        if found is None:
            raise ValueError(f"no lower bound in {requirement!r}")
        bounds[found[1]] = found[2]
    return bounds
