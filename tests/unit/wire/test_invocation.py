"""Requests for handlers as they travel."""

from __future__ import annotations

from typing import Any

import pytest

from fleetlm.errors import NotSerializable
from fleetlm.wire.invocation import Invoke, explained, is_for_entity, to_host


def test_a_request_arrives_as_it_was_sent() -> None:
    request = Invoke("append", (1, "x"), {"at": 2})
    assert request.parts() == ["append", [1, "x"], {"at": 2}]
    assert Invoke.of(request.parts()) == request


def test_a_request_arrives_with_its_carrier() -> None:
    request = Invoke.carrying(Invoke("append", (1, "x"), {"at": 2}, Sessions), b"carrier")
    assert (request.actor, request.is_from_peer) == (Sessions, False)
    assert request.parts() == ["append", [1, "x"], {"at": 2}, b"carrier"]
    arrived = Invoke.of(request.parts())
    assert (arrived, arrived.carrier, arrived.is_from_peer) == (request, b"carrier", True)
    assert Invoke("append", (), {}).parts() == ["append", [], {}]


def test_a_plain_message_with_a_carrier_is_a_request_without_a_handler() -> None:
    message = Invoke.carrying({"any": "message"}, b"carrier")
    assert message.parts() == ["", [{"any": "message"}], {}, b"carrier"]
    refused = NotSerializable("message[1][0]['at'].when", "an object")
    assert message.explain(refused).path == "message['at'].when"


@pytest.mark.parametrize("carrier", [None, 5, "x", [], {}, b"x" * 4_097])
def test_what_cannot_be_a_carrier_is_dropped(carrier: Any) -> None:
    assert Invoke.of(["x", [], {}, carrier]).carrier == b""


@pytest.mark.parametrize(("args", "kwargs"), [([1], {}), (5, {}), ((), None), ((), [("a", 1)])])
def test_what_is_not_a_request_cannot_be_sent(args: Any, kwargs: Any) -> None:
    with pytest.raises(TypeError, match="tuple"):
        Invoke("append", args, kwargs).parts()


@pytest.mark.parametrize("parts", [["x", (), {}], ["x", [], []], ["x", []], ["x", [], {}, b"", 1], 5, None])
def test_nonsense_is_not_a_request(parts: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Invoke.of(parts)


class Sessions:
    """Stands for the class of an actor."""


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("message[1][0]", "argument 1 of put"),
        ("message[1][2].when", "argument 3 of put, field .when"),
        ("message[1][0][4]", "argument 1 of put, at [4]"),
        ("message", "message"),
    ],
)
def test_an_argument_that_cannot_travel_is_named(path: str, told: str) -> None:
    request = Invoke("put", (1,), {})
    assert request.explain(NotSerializable(path, "an object")).path == told
    assert explained(NotSerializable(path, "an object"), request).path == told
    assert explained(NotSerializable(path, "an object"), "no request").path == path


def test_the_actor_is_named_where_it_is_known() -> None:
    request = Invoke("put", (1,), {})
    request.actor = Sessions
    assert request.explain(NotSerializable("message[1][0]", "an object")).path == "argument 1 of Sessions.put"


@pytest.mark.parametrize("parts", [["put", (), {}], ["put", [], []], ["put", None, {}]])
def test_malformed_parts_are_no_request(parts: list[object]) -> None:
    with pytest.raises(ValueError, match="without its arguments"):
        Invoke.of(parts)


def test_requests_are_equal_by_what_travels_and_are_no_keys() -> None:
    request = Invoke("do", (1,), {"a": 2})
    assert request == Invoke("do", (1,), {"a": 2}, int, True)
    assert request != Invoke("do", (1,), {})
    assert request != ["do", (1,), {"a": 2}]
    assert repr(request) == "Invoke(handler='do', args=(1,), kwargs={'a': 2})"
    with pytest.raises(TypeError, match="unhashable"):
        hash(request)


@pytest.mark.parametrize("args", [[], ["one", "two"]])
def test_a_plain_message_with_a_carrier_is_one_message(args: list[Any]) -> None:
    with pytest.raises(ValueError, match="is not one message"):
        Invoke.of(["", args, {}, b"\x80"])


def test_a_request_whose_handler_is_no_text_is_for_an_entity() -> None:
    assert is_for_entity(Invoke(["s-42", 5, 0, "append"], (), {}))  # type: ignore[arg-type]
    assert is_for_entity(to_host(["slots", 1]))
    assert Invoke.of(to_host(["slots", 1]).parts()) == to_host(["slots", 1])
    assert not is_for_entity(Invoke("append", (), {}))
    assert not is_for_entity("append")
