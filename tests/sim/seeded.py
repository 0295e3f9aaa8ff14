"""Run tests from seeds, and name the seed of a failure."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import pytest

from fleetlm.testing import run
from fleetlm.testing.cluster import SETTINGS

R = TypeVar("R")

ONE_PORT = SETTINGS.replace(node_ports=(4370, 4370))
"""For scenarios of which hundreds run, and whose nodes have an address each. Up to a third of the processor
time of a small cluster goes into dials of the other fifteen ports of each address, where nothing listens."""


def run_stories(story: Callable[[int], Coroutine[Any, Any, None]], seeds: Iterable[int]) -> None:
    """Run a scenario for each seed on its own loop; a failure names its seed."""
    for seed in seeds:
        try:
            run(story(seed), seed=seed)
        except BaseException as error:
            error.add_note(f"replay: seed {seed}")
            raise


def named(seeds: Sequence[int]) -> str:
    """Return the id of a test that runs a block of seeds."""
    return f"{seeds[0]}-{seeds[-1]}"


def most_are_long(cases: Iterable[Any], short: int) -> list[Any]:
    """Return the cases of a test, where `make test` runs the first ``short``, `make test-long` the others."""
    marked = list(cases)
    marked[short:] = [pytest.param(case, marks=pytest.mark.long) for case in marked[short:]]
    return marked


def play_each(play: Callable[[int], R], seeds: Iterable[int], replay: str) -> list[R]:
    """Run all seeds.

    Args:
        play: runs one seed.
        seeds: what to run.
        replay: the command that replays a seed, with ``{seed}`` in its place.

    Raises:
        AssertionError: some seeds failed; the text has the command that replays each of them.
    """
    reports, failures = [], []
    for seed in seeds:
        try:
            reports.append(play(seed))
        except Exception as error:  # noqa: BLE001  # every error is reported with its seed
            notes = "\n".join(getattr(error, "__notes__", ()))
            failures.append(f"{type(error).__name__}: {error}\n{notes}\nreplay: {replay.format(seed=seed)}")
    assert not failures, "\n\n".join(failures)
    return reports
