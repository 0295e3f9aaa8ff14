"""Chooses a small corpus: few inputs that together reach every line pair that all of them reach."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import fleetlm

PACKAGE = str(Path(fleetlm.__file__).parent)

Step = tuple[str, int, int]
"""A file, and two lines of it that ran one after the other."""


def steps_of(target: Callable[[bytes], None], data: bytes) -> set[Step]:
    """Run a target, and return which lines of fleetlm followed each other."""
    steps: set[Step] = set()

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(PACKAGE):
            return None
        last = frame.f_lineno

        def within(frame: FrameType, event: str, _argument: Any) -> Any:
            nonlocal last
            if event == "line":
                steps.add((path, last, frame.f_lineno))
                last = frame.f_lineno
            return within

        return within

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        target(data)
    finally:
        sys.settrace(before)
    return steps


def smallest(
    target: Callable[[bytes], None], known: Iterable[bytes], candidates: Iterable[bytes]
) -> list[bytes]:
    """Return the candidates that reach what the known inputs do not: the most useful ones first.

    Args:
        target: the target.
        known: inputs that are there in any case.
        candidates: inputs of which few are to be kept; shorter ones are preferred.
    """
    reached: set[Step] = set()
    for data in known:
        reached |= steps_of(target, data)
    left = {data: steps_of(target, data) - reached for data in sorted(candidates, key=len)}
    kept = []
    while left:
        best = max(left, key=lambda data: len(left[data]))  # The first, so the shortest, of equals.
        gained = left.pop(best)
        if not gained:
            break
        kept.append(best)
        left = {data: more for data, steps in left.items() if (more := steps - gained)}
    return kept
