"""What a node tells `fleetlm doctor` about itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fleetlm.ids import Pid
from fleetlm.remote.facts import node_facts, plain
from tests.support.remote_fakes import OTHER, FakeNode, node_info

COOKIE = "a-secret-of-enough-characters"


def test_facts_are_json_and_hold_no_secret() -> None:
    node = FakeNode(cookie=COOKIE, dns_server=("127.0.0.1", 5353))
    told = json.loads(json.dumps(node_facts(node)))  # type: ignore[arg-type]
    assert COOKIE not in json.dumps(told)
    assert told["cookie"] is True
    assert told["settings"]["FLEETLM_COOKIE"] == "(set)"
    assert told["own_ip"] == "127.0.0.1"
    assert told["dns_server"] == ["127.0.0.1", 5353]
    assert told["info"]["peers"][0]["name"] == OTHER


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        ((1, 2.5, "x"), [1, 2.5, "x"]),
        ({1: {"a": (2,)}}, {"1": {"a": [2]}}),
        (Pid("a@127.0.0.1", 2, 3), {"node": "a@127.0.0.1", "incarnation": 2, "number": 3}),
        (1 + 2j, "(1+2j)"),
        (Pid, "<class 'fleetlm.ids.Pid'>"),
    ],
)
def test_plain_values(value: Any, expected: Any) -> None:
    assert plain(value) == expected


def test_plain_goes_all_the_way_down() -> None:
    told = plain(node_info())
    assert told["peers"][0]["up_for_s"] == 12.5
    assert told["observed_ips"] == []
