"""How a run of the tests is divided among several workers."""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.support.workers import LONGEST, in_order, module_names, share_of

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["tests/unit/test_a.py", "tests/unit/wire/test_b.py"]


def test_each_module_is_in_the_share_of_one_worker() -> None:
    modules = [f"tests.test_{number}" for number in range(10)]
    shares = [share_of(modules, number, 3) for number in range(3)]
    assert sorted(itertools.chain.from_iterable(shares)) == modules
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_long_files_begin_first_and_short_ones_last() -> None:
    sim = [f"tests/sim/test_{number}.py" for number in range(4)]
    system = ["tests/system/test_0.py", "tests/transport/test_0.py"]
    files = [*SHORT, *sim, *system, LONGEST[1], LONGEST[0]]
    ordered = in_order(files)
    assert sorted(ordered) == sorted(files)
    assert ordered[:2] == list(LONGEST[:2])
    assert ordered[-2:] == SHORT
    assert ordered[2:-2] == [sim[0], system[0], sim[1], sim[2], system[1], sim[3]]


def test_a_run_of_some_files_has_an_order_too() -> None:
    assert in_order([]) == []
    assert in_order(SHORT) == SHORT


def test_every_long_file_exists() -> None:
    assert [file for file in LONGEST if not (ROOT / file).is_file()] == []


def test_modules_are_named_as_they_are_imported() -> None:
    assert __name__ in module_names(ROOT, ROOT / "tests")
