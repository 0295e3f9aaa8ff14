"""Run tests from seeds, and name the seed of a failure."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import pytest

from fleetlm.testing import run
from fleetlm.testing.cluster import SETTINGS

R = TypeVar("R")

ONE_PORT = SETTINGS.replace(node_ports=(4370, 4370))
"""For scenarios of which hundreds run, and whose nodes have an address each. Up to a third of the processor
time of a small cluster goes into dials of the other fifteen ports of each address, where nothing listens."""


class World(Protocol):
    """What a seed decides about."""

    async def play(self) -> None:
        """Play the story, and check what must hold."""


@contextlib.contextmanager
def no_logs() -> Iterator[None]:
    """Log nothing meanwhile: a story of a cluster has hundreds of lines."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def run_worlds(make: Callable[[int], World], seeds: Iterable[int]) -> None:
    """Make a world for each seed, and play it on its own loop; as `run_stories`, without logs."""

    async def story(seed: int) -> None:
        await make(seed).play()

    with no_logs():
        run_stories(story, seeds)


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
