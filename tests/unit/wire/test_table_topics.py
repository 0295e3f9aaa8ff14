"""Which replicated tables a node knows, as its HELLO says."""

from __future__ import annotations

from fleetlm.core.connection import Identity
from fleetlm.setting_parsers import RIGHTS
from fleetlm.wire import frames
from fleetlm.wire.rights import TABLES, features_of
from fleetlm.wire.table_topics import FEATURES, LATER_TOPICS, unknown_in


def test_a_node_of_this_version_knows_all_of_them() -> None:
    assert unknown_in(("carriers", *FEATURES, "zstd")) == frozenset()
    assert set(LATER_TOPICS) | {"groups", "names"} == set(TABLES)


def test_an_older_node_knows_none_of_the_later_ones() -> None:
    assert unknown_in(()) == unknown_in(("carriers",)) == set(LATER_TOPICS)
    assert unknown_in(("table rows", "table of contents")) == {"members", "shards"}


def test_a_hello_has_room_for_them_beside_everything_else() -> None:
    features = ("carriers", *FEATURES, *features_of(frozenset()))
    me = Identity("fleetlm@10.0.0.1", 1, "c", 4_370, (), 1 << 20, 1 << 20, features=features)
    assert len(features) == 1 + len(FEATURES) + len(RIGHTS)
    read = frames.read_hello(frames.pack_hello(me.hello("fleetlm@10.0.0.2")))
    assert read.features == features
