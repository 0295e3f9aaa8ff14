"""Running things from seeds, and saying which seed it was."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from fleetlm.testing import run

R = TypeVar("R")


def run_stories(story: Callable[[int], Coroutine[Any, Any, None]], seeds: Iterable[int]) -> None:
    """Play the story of each seed on a loop of its own; what fails is told with its seed."""
    for seed in seeds:
        try:
            run(story(seed), seed=seed)
        except BaseException as error:
            error.add_note(f"replay: seed {seed}")
            raise


def named(seeds: Sequence[int]) -> str:
    """A block of seeds in a test's name."""
    return f"{seeds[0]}-{seeds[-1]}"


def play_each(play: Callable[[int], R], seeds: Iterable[int], module: str) -> list[R]:
    """Run them all, and say how to replay each that failed. Raises: AssertionError."""
    reports, failures = [], []
    for seed in seeds:
        try:
            reports.append(play(seed))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is told with its seed
            notes = "\n".join(getattr(error, "__notes__", ()))
            failures.append(
                f"{type(error).__name__}: {error}\n{notes}\nreplay it: python -m {module} {seed} --trace"
            )
    assert not failures, "\n\n".join(failures)
    return reports
