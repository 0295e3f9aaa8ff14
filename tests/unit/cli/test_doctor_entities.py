"""The checks of `fleetlm doctor` about keyed entities."""

from __future__ import annotations

from typing import Any

import pytest

from fleetlm.cli.doctor.entity_checks import judge_kinds
from fleetlm.cli.doctor.findings import FAIL, OK, WARN, Finding
from fleetlm.entities.info import HostedInfo, KindInfo, QuorumInfo, StoreInfo
from fleetlm.remote.facts import plain


def own(**changes: Any) -> HostedInfo:
    values: dict[str, Any] = {
        "runs": "Session", "owned": 128, "moving": 0, "alive": 10, "live": 1_000, "kept_bytes": 5,
        "max_kept_bytes": 1_000,
    }  # fmt: skip
    return HostedInfo(**(values | changes))


def kind(name: str = "sessions", **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"kind": name, "shards": 256, "unowned": 0, "hosts": 2, "hosted": own()}
    told: dict[str, Any] = plain(KindInfo(**(values | changes)))
    return told


def only(told: dict[str, Any]) -> Finding:
    (found,) = judge_kinds([told])
    return found


def test_without_kinds_there_is_nothing_to_say() -> None:
    assert judge_kinds([]) == []


def test_kinds_that_are_well_are_named_in_one_finding() -> None:
    text = "every shard has an owner: 'sessions' (256 shards on 2 nodes), 'carts' (8 shards on 1 node)"
    found = judge_kinds([kind(), kind("carts", shards=8, hosts=1, hosted=None)])
    assert found == [Finding(OK, "entities", text)]
    many = judge_kinds([kind(f"k{number}") for number in range(11)])
    assert [each.level for each in many] == [OK]
    assert many[0].text.endswith("'k7' (256 shards on 2 nodes) and 3 more kinds")


def test_what_is_wrong_stands_behind_what_is_well() -> None:
    found = judge_kinds([kind("carts", unowned=3), kind()])
    assert [each.level for each in found] == [OK, WARN]
    assert "'sessions'" in found[0].text
    assert "'carts'" not in found[0].text


def test_shards_without_an_owner_are_a_warning() -> None:
    found = only(kind(unowned=1_200, shards=4_096, hosted=None))
    assert found.level == WARN
    assert "1,200 of 4,096 shards have no owner" in found.text


def test_hosts_that_cut_a_kind_into_another_number_are_a_failure() -> None:
    found = only(kind(differing={"fleetlm@10.0.0.2": 64, "fleetlm@10.0.0.3": 1_024}))
    assert found.level == FAIL
    assert "fleetlm@10.0.0.2 into 64, fleetlm@10.0.0.3 into 1,024" in found.text
    assert "`shards=`" in found.cure


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"alive": 899}, OK),
        ({"alive": 900}, WARN),
        ({"kept_bytes": 899}, OK),
        ({"kept_bytes": 900}, WARN),
        ({"max_kept_bytes": 0}, WARN),
    ],
)
def test_limits_are_reported_before_they_are_reached(changes: dict[str, int], level: str) -> None:
    assert only(kind(hosted=own(**changes))).level == level


def test_a_singleton_that_runs_is_at_no_limit() -> None:
    found = only(kind("singleton:scheduler", shards=1, hosted=own(owned=1, alive=1, live=1)))
    assert found == Finding(
        OK, "entities", "every shard has an owner: 'singleton:scheduler' (1 shard on 2 nodes)"
    )


def test_the_option_to_raise_is_named() -> None:
    assert "`live=`" in only(kind(hosted=own(alive=1_000))).cure
    assert "`kept_bytes=`" in only(kind(hosted=own(kept_bytes=1_000))).cure


def test_a_lost_quorum_is_a_failure_and_one_that_holds_is_not() -> None:
    assert only(kind(hosted=own(quorum=QuorumInfo(3, 2, True)))).level == OK
    found = only(kind(hosted=own(quorum=QuorumInfo(3, 1, False))))
    assert found.level == FAIL
    assert "sees 1 of the 3 hosts" in found.text
    assert found.cure


def test_a_store_that_fails_is_a_failure() -> None:
    well = StoreInfo("SQLiteStore(...)", "write", 7, fails=False)
    assert only(kind(hosted=own(store=well))).level == OK
    found = only(kind(hosted=own(store=StoreInfo("SQLiteStore(...)", "write", 7, fails=True))))
    assert found.level == FAIL
    assert "its store SQLiteStore(...) fails, 7 operations" in found.text


def test_more_hosts_than_a_quorum_expects_are_a_failure() -> None:
    found = only(kind(hosts=4, hosted=own(quorum=QuorumInfo(3, 4, True))))
    assert found.level == FAIL
    assert "4 nodes host it, and its quorum expects 3" in found.text


def test_hosts_that_differ_in_safety_are_a_failure_and_in_their_store_a_warning() -> None:
    terms = ("safety Quorum(expected=3, lease_s=5)", "no store")
    found = only(kind(terms=terms, disagreeing={"fleetlm@10.0.0.2": "safety available"}))
    assert found.level == FAIL
    assert (
        "here safety Quorum(expected=3, lease_s=5), no store; fleetlm@10.0.0.2: safety available"
        in found.text
    )
    assert "Two of them may serve one key" in found.text
    assert "Two deployments disagree" in found.cure
    found = only(
        kind(terms=terms, disagreeing={"fleetlm@10.0.0.2": "store SQLiteStore '/a.db', durable write"})
    )
    assert found.level == WARN
    assert "store SQLiteStore '/a.db'" in found.text


def test_a_node_of_an_older_version_tells_nothing_of_terms() -> None:
    told = kind()
    del told["terms"], told["disagreeing"]
    assert only(told).level == OK
