"""Requests for handlers as they travel."""

from __future__ import annotations

from typing import Any

import pytest

from fleetlm.wire.invocation import Invoke


def test_a_request_arrives_as_it_was_sent() -> None:
    request = Invoke("append", (1, "x"), {"at": 2})
    assert request.parts() == ["append", [1, "x"], {"at": 2}]
    assert Invoke.of(request.parts()) == request


@pytest.mark.parametrize(("args", "kwargs"), [([1], {}), (5, {}), ((), None), ((), [("a", 1)])])
def test_what_is_not_a_request_cannot_be_sent(args: Any, kwargs: Any) -> None:
    with pytest.raises(TypeError, match="tuple"):
        Invoke("append", args, kwargs).parts()


@pytest.mark.parametrize("parts", [["x", (), {}], ["x", [], []], ["x", []], ["x", [], {}, 1], 5, None])
def test_nonsense_is_not_a_request(parts: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Invoke.of(parts)
