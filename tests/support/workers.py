"""How several workers of pytest-xdist divide a run: what each compiles first, and which files begin first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LONGEST = (
    "tests/long/test_long_rolling.py",
    "tests/long/test_long_connections.py",
    "tests/long/test_long_discovery.py",
    "tests/long/test_long_hostile_peer.py",
    "tests/long/test_long_processes.py",
    "tests/sim/test_seeds.py",
    "tests/transport/test_strangers.py",
    "tests/sim/test_soak_a.py",
    "tests/system/test_cli_system.py",
    "tests/sim/test_soak_b.py",
    "tests/transport/test_zeromq.py",
    "tests/system/test_real_blocking.py",
    "tests/sim/test_pytest_plugin.py",
    "tests/conformance/test_conformance.py",
    "tests/system/test_chat_example.py",
    "tests/sim/test_remote_spawn.py",
    "tests/system/test_programs_end.py",
    "tests/unit/test_benchmarks.py",
    "tests/system/test_demo.py",
    "tests/system/test_real_strangers.py",
    "tests/system/test_examples.py",
    "tests/sim/test_seeds_dns.py",
)
"""The files that take ten seconds and more: the longest early, and those that compute beside those that wait.
In `make test` one worker runs all tests of a file: one of these that began last would run alone at the end.
Those of tests/long wait for minutes, while the other workers of `make test-long` run simulations."""
BUSY, WAITING = ("tests/sim/",), ("tests/system/", "tests/transport/")
"""Folders whose tests need a core for seconds, and those whose tests mostly wait for programs and sockets."""


def share_of(files: Sequence[T], number: int, count: int) -> list[T]:
    """Return what one of several workers takes of a list.

    Each worker imports every test module, and the one that does it first compiles it and stores the result,
    which takes three times as long as to load it. If all begin with the same module, each compiles it. So
    each begins with a share of its own.
    """
    return list(files[number::count])


def in_order(files: Sequence[str]) -> list[str]:
    """Return the paths of test files in the order in which they begin.

    First `LONGEST`; then those that wait and those that compute in turns, so that the workers seldom all do
    the same; then the others, which are short, and so leave no worker alone at the end.
    """
    first = [file for file in LONGEST if file in set(files)]
    rows: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for file in files:
        if file not in LONGEST:
            rows[next((row for row in (BUSY, WAITING) if file.startswith(row)), ())].append(file)
    turns = [
        (place / len(row), file) for row in (rows[BUSY], rows[WAITING]) for place, file in enumerate(row)
    ]
    return [*first, *(file for _, file in sorted(turns)), *rows[()]]


def module_names(root: Path, folder: Path) -> list[str]:
    """Return the names under which the test modules of a folder are imported."""
    paths = sorted(path.relative_to(root) for path in folder.rglob("test_*.py"))
    return [".".join(path.with_suffix("").parts) for path in paths]
