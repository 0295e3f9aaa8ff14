"""What a peer may say of processes that wait for each other gets into errors and logs, so it is short."""

from __future__ import annotations

from typing import Any

import pytest

from fleetlm.processes.circles import MAX_STEP_CHARS, MAX_STEPS, _is_path


@pytest.mark.parametrize("path", [[], ["a"] * MAX_STEPS, ["x" * MAX_STEP_CHARS]])
def test_a_path_of_a_peer_is_taken(path: list[str]) -> None:
    assert _is_path(path)


@pytest.mark.parametrize(
    "found", [None, "a", [1], ["a"] * (MAX_STEPS + 1), ["x" * (MAX_STEP_CHARS + 1)], ("a",), [["a"]]]
)
def test_what_is_no_path_or_a_long_one_is_not(found: Any) -> None:
    assert not _is_path(found)
