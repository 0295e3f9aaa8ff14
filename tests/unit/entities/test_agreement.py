"""What all hosts of a kind should have alike."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fleetlm import MemoryStore, Quorum, SQLiteStore
from fleetlm.core.shard_table import ShardTable
from fleetlm.entities.agreement import Agreement, name_of, terms_of
from fleetlm.entities.host_parts import HostOptions
from fleetlm.entities.info import differing, kind_info
from fleetlm.entities.keeping import StoreOptions

AVAILABLE = ("safety available", "no store")
GUARDED = ("safety Quorum(expected=3, lease_s=5)", "no store")


def options(quorum: Quorum | None = None, stored: StoreOptions | None = None) -> HostOptions:
    return HostOptions((), 8, 600.0, 5.0, 2.0, math.inf, 10, 10, frozenset(), quorum, stored)


def table(own: tuple[str, ...], **others: Any) -> ShardTable:
    made = ShardTable("a@1", 1, lambda _: None)
    made.host("s", 5, 8, own)
    for node, terms in others.items():
        made.told(node, 2, ["hosts", [["s", 7, 8, [[1, 3, 3]], *terms]]])
    return made


def test_terms_are_the_safety_and_the_store() -> None:
    assert terms_of(options(), 6.0) == AVAILABLE
    assert terms_of(options(Quorum(3, 5.0)), 6.0) == GUARDED
    assert terms_of(options(Quorum(3)), 6.0) == ("safety Quorum(expected=3, lease_s=6)", "no store")
    store = SQLiteStore("/a.db")
    stored = terms_of(options(stored=StoreOptions(store, "write", 2.0)), 6.0)
    assert stored == ("safety available", "store SQLiteStore '/a.db'", "durable write")
    stored = terms_of(options(stored=StoreOptions(store, 1.5, 2.0)), 6.0)
    assert stored[2] == "durable 1.5 s"


def test_a_store_that_does_not_say_where_its_data_is_has_the_name_of_its_class() -> None:
    assert name_of(MemoryStore()) == "MemoryStore"
    assert (
        len(terms_of(options(stored=StoreOptions(SQLiteStore("/" + "a" * 500), "write", 2.0)), 6.0)[1]) <= 200
    )


def test_a_node_names_the_hosts_that_differ_from_it() -> None:
    alike, other, silent = [list(AVAILABLE)], [list(GUARDED)], []
    made = table(AVAILABLE, b=alike, c=other, d=silent)
    assert differing(made, "s") == {"c": "safety Quorum(expected=3, lease_s=5)"}
    info = kind_info(made, "s", None)
    assert (info.terms, info.disagreeing) == (AVAILABLE, differing(made, "s"))
    many = table(AVAILABLE, **{f"n{number}": other for number in range(9)})
    assert list(kind_info(many, "s", None).disagreeing) == ["n0", "n1", "n2", "n3", "n4"]
    made.unhost("s")
    assert differing(made, "s") == {}
    assert kind_info(made, "s", None).terms == ()


def test_the_log_names_each_of_them_once(caplog: pytest.LogCaptureFixture) -> None:
    made = table(AVAILABLE, b=[list(AVAILABLE)])
    agreement = Agreement(made, "s")
    agreement.look()
    assert caplog.text == ""
    for number in range(7):
        made.told(f"n{number}", 2, ["hosts", [["s", 7, 8, [], list(GUARDED)]]])
    agreement.look()
    agreement.look()
    (record,) = caplog.records
    assert (
        "here safety available, no store; n0: safety Quorum(expected=3, lease_s=5); n1" in record.getMessage()
    )
    assert record.getMessage().endswith("n4: safety Quorum(expected=3, lease_s=5) and 2 more")
    made.node_down("n0")
    agreement.look()
    assert len(caplog.records) == 1
    made.told("n0", 2, ["hosts", [["s", 7, 8, [], list(GUARDED)]]])
    agreement.look()
    assert len(caplog.records) == 2
