"""Server-sent events are written so that every client reads what was meant."""

from __future__ import annotations

import dataclasses
import enum
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from fleetlm import Pid
from fleetlm.asgi import Event
from fleetlm.asgi.events import HEARTBEAT, to_json


def parse(raw: bytes) -> dict[str, Any]:
    """Parse one event as the HTML standard says."""
    text = raw.decode()
    assert text.endswith("\n\n")
    fields: dict[str, Any] = {}
    data = []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name:
            fields[name] = value
    return {**fields, "data": "\n".join(data)}


def test_an_event_has_the_fields_that_it_was_given() -> None:
    assert Event("1").encode() == b"data: 1\n\n"
    event = Event("x", event="token", id="7", retry_ms=1500)
    assert event.encode() == b"event: token\nid: 7\nretry: 1500\ndata: x\n\n"


@given(st.text())
def test_any_text_arrives_whole_but_for_the_kind_of_its_line_ends(text: str) -> None:
    raw = Event(text).encode() if not any(0xD800 <= ord(c) < 0xE000 for c in text) else None
    if raw is not None:
        assert parse(raw) == {"data": text.replace("\r\n", "\n").replace("\r", "\n")}


@given(st.text(st.characters(codec="utf-8")))
def test_a_text_as_json_is_one_line(text: str) -> None:
    raw = Event(to_json(text)).encode()
    assert raw.count(b"\n") == 2
    assert json.loads(parse(raw)["data"]) == text


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\r\nb", "a\0b"])
def test_a_name_or_an_id_of_several_lines_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="must be one line"):
        Event("x", event=bad)
    with pytest.raises(ValueError, match="must be one line"):
        Event("x", id=bad)


def test_a_heartbeat_is_a_comment() -> None:
    assert HEARTBEAT.startswith(b":")
    assert parse(HEARTBEAT)["data"] == ""


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Token:
    text: str
    logprobs: tuple[float, ...]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("ünïcode", '"ünïcode"'),
        ({"a": [1, 2.5, None, True]}, '{"a":[1,2.5,null,true]}'),
        ((1, 2), "[1,2]"),
        ({7}, "[7]"),
        (frozenset({7}), "[7]"),
        (b"\x00\xff", '"AP8="'),
        (bytearray(b"\x00\xff"), '"AP8="'),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), '"2026-01-02T03:04:05+00:00"'),
        (date(2026, 1, 2), '"2026-01-02"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Decimal("1.10"), '"1.10"'),
        (Colour.RED, '"red"'),
        (Token("a", (0.5,)), '{"text":"a","logprobs":[0.5]}'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_message_values_become_json(value: object, text: str) -> None:
    assert to_json(value) == text


def test_a_pid_becomes_its_text() -> None:
    pid = Pid("fleetlm@10.0.0.7", 5, 7)
    assert json.loads(to_json([pid])) == [str(pid)]


def test_what_no_json_parser_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json(float("nan"))
    with pytest.raises(TypeError, match="object has no place in JSON: give sse"):
        to_json(object())
