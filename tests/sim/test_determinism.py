"""The same seed gives the same run, for any hash seed and whatever ran before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.chaos import NEIGHBOURS, Kind, kind_of, play
from tests.sim.seeded import named

ROOT = Path(__file__).parents[2]
SEEDS = (1, 12, 17, 20, 29, NEIGHBOURS)
"""At least one seed of each kind, of those that take little time."""
MORE_SEEDS = (5, 7, 9, 18, 23, NEIGHBOURS + 1)

PROGRAM = """
import json, sys
from tests.sim.chaos import play
print(json.dumps([play(seed, trace=True, quiet=True).digest for seed in json.loads(sys.argv[1])]))
"""


def digests(hash_seed: str, seeds: tuple[int, ...]) -> list[int]:
    """Run seeds in another interpreter, and return a digest of all facts of each run."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(seeds)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    found: list[int] = json.loads(done.stdout)
    return found


@pytest.mark.deadline(60)
@pytest.mark.parametrize("seeds", [SEEDS, pytest.param(MORE_SEEDS, marks=pytest.mark.long)], ids=named)
def test_neither_the_hash_seed_nor_what_ran_before_changes_anything(seeds: tuple[int, ...]) -> None:
    first = [play(seed, trace=True, quiet=True).digest for seed in seeds]
    assert len(set(first)) == len(seeds)
    again = [play(seed, trace=True, quiet=True).digest for seed in reversed(seeds)]
    assert again[::-1] == first
    assert digests("0", seeds) == first
    assert digests("1", seeds) == first


def test_a_trace_changes_nothing() -> None:
    traced = play(1, trace=True, quiet=True)
    plain = play(1)
    assert (traced.virtual_s, traced.messages, traced.calls, traced.nodedowns) == (
        plain.virtual_s, plain.messages, plain.calls, plain.nodedowns,
    )  # fmt: skip


def test_every_kind_is_compared() -> None:
    assert {kind_of(seed) for seed in SEEDS} == set(Kind)
    assert {kind_of(seed) for seed in MORE_SEEDS} == set(Kind)
