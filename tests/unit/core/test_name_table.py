"""Claims of several nodes to one name: which holds, which process is told, and what a peer may not send."""

from __future__ import annotations

import gc
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fleetlm.core import name_table
from fleetlm.core.name_table import (
    MAX_LOOKED_AT,
    MAX_TOLD_CLAIMS,
    Claim,
    Decide,
    Effect,
    Lose,
    NameTable,
    Say,
    Tell,
    older,
    rank,
)
from fleetlm.errors import AlreadyRegistered, InvalidName, TooManyNames
from fleetlm.ids import Pid
from fleetlm.messages import Registered, Unregistered
from fleetlm.settings import Settings
from fleetlm.wire.codec import Codec

A, B, C = "n@10.0.0.1", "n@10.0.0.2", "n@10.0.0.3"
CODEC = Codec()
NONE = CODEC.pack_value(None)


def packed(meta: Any) -> bytes:
    return CODEC.pack_value(meta)


def table(node: str = A, decide: Decide = older, **limits: int) -> NameTable:
    return NameTable(node, 1, Settings().replace(**limits), CODEC.unpack, decide)


def pid(node: str, number: int, incarnation: int = 1) -> Pid:
    return Pid(node, incarnation, number)


def row(name: str, number: int = 1, meta: Any = None, since_ms: int = 5) -> list[Any]:
    return [name, number, packed(meta), since_ms]


def said(effects: list[Effect]) -> list[Any]:
    return [effect.event for effect in effects if isinstance(effect, Say)]


def facts(effects: list[Effect]) -> list[Any]:
    return [effect.fact for effect in effects if isinstance(effect, Tell)]


def losses(effects: list[Effect]) -> list[Lose]:
    return [effect for effect in effects if isinstance(effect, Lose)]


def held(names: NameTable) -> dict[str, Pid]:
    return {name: claim.pid for name, claim in names.holders().items()}


# ── on one node ──────────────────────────────────────────────────────────────────────────────────


def test_a_claim_holds_at_once_and_is_sent_to_all_nodes() -> None:
    names = table()
    effects = names.claimed("x", 7, packed({"zone": "a"}), 100)
    assert effects == [
        Tell(["has", [["x", 7, packed({"zone": "a"}), 100]]]),
        Say(Registered("x", pid(A, 7), {"zone": "a"})),
    ]
    assert names.holder("x") == Claim("x", pid(A, 7), {"zone": "a"}, 100)
    assert names.holder("y") is None


def test_a_name_has_one_holder_and_a_process_may_have_several() -> None:
    names = table()
    names.claimed("x", 1, NONE, 100)
    names.claimed("y", 1, NONE, 100)
    with pytest.raises(AlreadyRegistered) as caught:
        names.claimed("x", 2, NONE, 100)
    assert (caught.value.name, caught.value.owner) == ("x", pid(A, 1))
    assert held(names) == {"x": pid(A, 1), "y": pid(A, 1)}


def test_a_name_that_a_peer_holds_is_taken() -> None:
    names = table()
    names.told(B, 1, ["has", [row("x")]])
    with pytest.raises(AlreadyRegistered):
        names.claimed("x", 1, NONE, 0)
    assert names.counts() == (0, 1)


def test_another_meta_keeps_the_age_and_the_same_meta_changes_nothing() -> None:
    names = table()
    names.claimed("x", 1, packed("a"), 100)
    assert names.claimed("x", 1, packed("a"), 200) == []
    effects = names.claimed("x", 1, packed("b"), 300)
    assert facts(effects) == [["has", [["x", 1, packed("b"), 100]]]]
    assert said(effects) == [Unregistered("x", pid(A, 1), "changed"), Registered("x", pid(A, 1), "b")]


def test_what_a_program_does_to_its_meta_afterwards_changes_nothing() -> None:
    names = table()
    meta: dict[str, Any] = {"a": 1}
    names.claimed("x", 1, packed(meta), 100)
    meta["a"] = object()
    assert list(names.own_facts(names.own_keys(), 1_000)) == [["has", [["x", 1, packed({"a": 1}), 100]]]]


def test_a_name_is_given_up_only_by_its_owner() -> None:
    names = table()
    names.claimed("x", 1, NONE, 100)
    assert names.disclaimed("x", pid(A, 2)) == []
    assert names.disclaimed("y") == []
    effects = names.disclaimed("x", pid(A, 1))
    assert effects == [Tell(["gone", "x", "unregistered"]), Say(Unregistered("x", pid(A, 1), "unregistered"))]
    assert names.disclaimed("x") == []


def test_a_process_that_ends_gives_up_all_its_names() -> None:
    names = table()
    for name, number in (("x", 1), ("y", 1), ("z", 2)):
        names.claimed(name, number, NONE, 100)
    effects = names.exited(1)
    assert facts(effects) == [["gone", "x", "exited"], ["gone", "y", "exited"]]
    assert [event.reason for event in said(effects)] == ["exited", "exited"]
    assert held(names) == {"z": pid(A, 2)}
    assert names.exited(1) == names.exited(99) == []
    assert names.exited(2) != []
    assert names.counts() == (0, 0)
    assert (names._names_of, names._lone, names._own.size) == ({}, {}, 0)


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", "\ud800"])
def test_names_that_are_not_allowed(name: str) -> None:
    with pytest.raises(InvalidName):
        table().claimed(name, 1, NONE, 100)


def test_bounds_of_one_node() -> None:
    names = table(max_cluster_names=2)
    names.claimed("x", 1, NONE, 100)
    names.claimed("y", 1, NONE, 100)
    with pytest.raises(
        TooManyNames, match=r"cannot register the name 'z': a node may have 2 \(Settings\.max_c"
    ):
        names.claimed("z", 1, NONE, 100)
    assert names.holder("z") is None
    names.claimed("x", 1, packed("more"), 100)
    names.disclaimed("y")
    names.claimed("z", 1, NONE, 100)
    heavy = table(max_names_bytes=200)
    heavy.claimed("x", 1, packed("m" * 100), 100)
    with pytest.raises(TooManyNames, match=r"200 bytes .*max_names_bytes"):
        heavy.claimed("y", 1, packed("m" * 100), 100)
    heavy.claimed("x", 1, packed("short"), 100)
    heavy.claimed("y", 1, packed("m" * 60), 100)


# ── between nodes ────────────────────────────────────────────────────────────────────────────────


def test_claims_of_a_peer_are_seen_and_end_with_its_connection() -> None:
    names = table()
    assert said(names.told(B, 4, ["has", [row("x", 7, "m"), row("y", 8)]])) == [
        Registered("x", pid(B, 7, 4), "m"),
        Registered("y", pid(B, 8, 4), None),
    ]
    assert said(names.told(B, 4, ["gone", "y", "exited"])) == [Unregistered("y", pid(B, 8, 4), "exited")]
    assert said([*chain.from_iterable(names.node_down(B))]) == [
        Unregistered("x", pid(B, 7, 4), "noconnection")
    ]
    assert [*names.node_down(B)] == [*names.node_down(C)] == []
    assert names.counts() == (0, 0)


def test_the_node_of_the_younger_claim_withdraws_it_and_tells_its_process() -> None:
    young, old = table(A), table(B)
    young.claimed("x", 1, NONE, 200)
    old.claimed("x", 2, packed("m"), 100)
    (at_young,) = old.own_facts(old.own_keys(), 1_000)
    (at_old,) = young.own_facts(young.own_keys(), 1_000)
    effects = young.told(B, 1, at_young)
    assert effects == [
        Tell(["gone", "x", "lost"]),
        Say(Unregistered("x", pid(A, 1), "lost")),
        Say(Registered("x", pid(B, 2), "m")),
        Lose(Claim("x", pid(A, 1), None, 200), pid(B, 2), "exit"),
    ]
    assert old.told(A, 1, at_old) == []
    assert old.told(A, 1, facts(effects)[0]) == []
    assert held(young) == held(old) == {"x": pid(B, 2)}
    assert young.exited(1) == []


def test_the_loser_is_told_in_the_way_it_registered_with() -> None:
    names = table()
    names.claimed("x", 1, NONE, 200, "message")
    assert [loss.on_loss for loss in losses(names.told(B, 1, ["has", [row("x")]]))] == ["message"]
    names = table()
    names.claimed("x", 1, NONE, 200, "message")
    names.claimed("x", 1, NONE, 200, "exit")
    assert [loss.on_loss for loss in losses(names.told(B, 1, ["has", [row("x")]]))] == ["exit"]


def test_a_third_node_shows_the_winner_from_the_first_moment() -> None:
    third = table(C)
    third.told(A, 1, ["has", [row("x", 1, since_ms=200)]])
    assert said(third.told(B, 1, ["has", [row("x", 2, since_ms=100)]])) == [
        Unregistered("x", pid(A, 1), "lost"),
        Registered("x", pid(B, 2), None),
    ]
    assert third.told(A, 1, ["gone", "x", "lost"]) == []
    third.told(A, 1, ["has", [row("y", 1, since_ms=100)]])
    assert said(third.told(B, 1, ["has", [row("y", 2, since_ms=200)]])) == []
    assert third.holder("y") == Claim("y", pid(A, 1), None, 100)


def test_a_claim_that_was_only_second_is_seen_when_the_first_goes() -> None:
    third = table(C)
    third.told(A, 1, ["has", [row("x", 1, since_ms=100)]])
    third.told(B, 1, ["has", [row("x", 2, since_ms=200)]])
    assert said([*chain.from_iterable(third.node_down(A))]) == [
        Unregistered("x", pid(A, 1), "noconnection"),
        Registered("x", pid(B, 2), None),
    ]


def test_equal_ages_are_settled_by_node_incarnation_and_number() -> None:
    claims = [
        Claim("x", pid(A, 9, 9), None, 5),
        Claim("x", pid(B, 1, 1), None, 5),
        Claim("x", pid(B, 1, 2), None, 5),
        Claim("x", pid(B, 2, 2), None, 5),
        Claim("x", pid(A, 1, 1), None, 6),
    ]
    assert [rank(claim) for claim in claims] == sorted({rank(claim) for claim in claims})
    assert older(claims[3], claims[2]) is claims[2]


def by_meta(first: Claim, second: Claim) -> Claim:
    assert rank(first) < rank(second), "the canonical order"
    return max(first, second, key=lambda claim: claim.meta)


def test_a_rule_of_the_programs_own() -> None:
    mine = table(A, by_meta)
    mine.claimed("x", 1, packed(1), 100)
    assert losses(mine.told(B, 1, ["has", [row("x", 2, 5, since_ms=200)]])) != []
    third = table(C, by_meta)
    for node, meta in ((A, 1), (B, 5)):
        third.told(node, 1, ["has", [row("x", 2, meta, since_ms=meta)]])
    assert held(third) == {"x": pid(B, 2)}
    assert said(third.told(A, 1, ["has", [row("x", 2, 9, since_ms=1)]])) == [
        Unregistered("x", pid(B, 2), "lost"),
        Registered("x", pid(A, 2), 9),
    ]


def test_another_meta_may_turn_the_rule_around() -> None:
    third = table(C, by_meta)
    third.told(A, 1, ["has", [row("x", 1, 5, since_ms=1)]])
    third.told(B, 1, ["has", [row("x", 2, 3, since_ms=2)]])
    assert said(third.told(A, 1, ["has", [row("x", 1, 2, since_ms=1)]])) == [
        Unregistered("x", pid(A, 1), "lost"),
        Registered("x", pid(B, 2), 3),
    ]


def test_a_rule_without_an_order_leaves_at_most_one() -> None:
    beats = {("r", "s"), ("s", "p"), ("p", "r")}

    def game(first: Claim, second: Claim) -> Claim:
        return first if (first.meta, second.meta) in beats else second

    tables = {node: table(node, game) for node in (A, B, C)}
    rows = {node: row("x", 1, meta, since_ms=1) for node, meta in ((A, "r"), (B, "s"), (C, "p"))}
    told: list[tuple[str, Any]] = []
    for node, names in tables.items():
        told += [(node, fact) for fact in facts(names.claimed("x", 1, rows[node][2], 1))]
    while told:
        source, fact = told.pop(0)
        for node in tables.keys() - {source}:
            told += [(node, each) for each in facts(tables[node].told(source, 1, fact))]
    mine = table(A, game)
    mine.claimed("x", 1, packed("r"), 1)
    mine.told(B, 1, ["has", [rows[B]]])
    assert said(mine.told(C, 1, ["has", [rows[C]]]))[1:] == [Registered("x", pid(B, 1), "s")]
    views = [held(names) for names in tables.values()]
    assert views[0] == views[1] == views[2]
    assert sum(names.counts()[0] for names in tables.values()) <= 1


def test_a_new_rule_is_applied_to_what_competes_now() -> None:
    rules: list[Decide] = [older]

    def latest(first: Claim, second: Claim) -> Claim:
        return rules[-1](first, second)

    third = table(C, latest)
    third.told(A, 1, ["has", [row("x", 1, 1, since_ms=1), row("y", 1, 1, since_ms=1)]])
    third.told(B, 1, ["has", [row("x", 2, 2, since_ms=2)]])
    assert third.reviewed() == []
    rules.append(by_meta)
    assert said(third.reviewed()) == [Unregistered("x", pid(A, 1), "lost"), Registered("x", pid(B, 2), 2)]


def test_many_names_are_sent_in_pieces() -> None:
    names = table()
    for number in range(100):
        names.claimed(f"name {number}", number + 1, packed("m" * (number % 50)), 5)
    pieces = list(names.own_facts(names.own_keys(), 1_000))
    assert 5 < len(pieces) < 15
    assert all(len(packed(piece)) <= 1_000 for piece in pieces)
    other = table(B)
    for piece in pieces:
        other.told(A, 1, CODEC.unpack(packed(piece)))
    assert held(other) == held(names)
    assert list(table().own_facts(["unknown"], 1_000)) == []
    assert len(list(names.own_facts(names.own_keys(), 1))) == 100, "what is larger than a piece travels alone"


# ── hostile peers ────────────────────────────────────────────────────────────────────────────────

NONSENSE: list[Any] = [
    None,
    5,
    "has",
    [],
    {},
    ["has"],
    ["has", None],
    ["has", "rows"],
    ["has", [row("x"), row("x")]],
    ["has", [row("y"), row("known", 2)]],
    ["has", [row("y"), row("known", 1, since_ms=6)]],
    ["has", [row("y"), None]],
    ["has", [row("y"), []]],
    ["has", [row("y"), "xyzw"]],
    ["has", [[*row("y"), 1]]],
    ["has", [row("")]],
    ["has", [row("x" * 256)]],
    ["has", [row("x" * 1_000_000)]],
    ["has", [row("a\x00b")]],
    ["has", [row("y", 0)]],
    ["has", [row("y", -1)]],
    ["has", [row("y", 1 << 64)]],
    ["has", [row("y", 10**5_000)]],
    ["has", [row("y", True)]],
    ["has", [row("y", since_ms=-1)]],
    ["has", [row("y", since_ms=1 << 64)]],
    ["has", [row("y", since_ms=False)]],
    ["has", [["y", 1, NONE, 1.5]]],
    ["has", [["y", 1.0, NONE, 5]]],
    ["has", [["y", pid(C, 1), NONE, 5]]],
    ["has", [[5, 1, NONE, 5]]],
    ["has", [["y", 1, None, 5]]],
    ["has", [["y", 1, "text", 5]]],
    ["has", [["y", 1, b"", 5]]],
    ["has", [["y", 1, b"\xc1", 5]]],
    ["has", [["y", 1, NONE + NONE, 5]]],
    ["has", [row("y", 1, "m" * 5_000)]],
    ["has", [row(f"n{number}") for number in range(10)]],
    ["gone", "x"],
    ["gone", "x", "exited"],
    ["gone", "of another", "exited"],
    ["gone", "known", None],
    ["gone", "known", "w" * 65],
    ["gone", 5, "exited"],
    ["gone", ["known"], "exited"],
    ["gone", "known", "exited", 1],
    ["was", "known", "exited"],
]


@pytest.mark.parametrize("fact", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_refused_in_short_and_changes_nothing(fact: Any) -> None:
    names = table(max_cluster_names=5)
    names.claimed("mine", 1, NONE, 1)
    names.told(B, 1, ["has", [row("known")]])
    names.told(C, 1, ["has", [row("of another")]])
    before = (names.holders(), names.counts(), names._claims_of[B].size)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # any of them ends the link
        names.told(B, 1, fact)
    assert len(str(caught.value)) < 700
    assert (names.holders(), names.counts(), names._claims_of[B].size) == before


def test_claims_for_this_node_or_another_incarnation_are_refused() -> None:
    names = table()
    with pytest.raises(ValueError, match="is not a fact about names"):
        names.told(A, 1, ["has", [row("x")]])
    names.told(B, 1, ["has", [row("x")]])
    with pytest.raises(ValueError, match="claimed twice"):
        names.told(B, 2, ["has", [row("x")]])


def test_the_bytes_of_a_peer_are_bounded() -> None:
    names = table(max_names_bytes=500)
    names.told(B, 1, ["has", [row("x", 1, "m" * 300)]])
    with pytest.raises(ValueError, match="500 bytes"):
        names.told(B, 1, ["has", [row("y", 1, "m" * 200)]])
    names.told(B, 1, ["has", [row("x", 1, "m" * 400)]])
    names.told(C, 1, ["has", [row("y", 1, "m" * 200)]])


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["has", "gone", "x", "mine", "exited", NONE, b"", 1, 5, row("x"), row("mine")])
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


@given(st.lists(st.tuples(st.sampled_from([B, C]), values), max_size=8))
def test_whatever_a_peer_says_moves_the_table_or_is_refused(told: list[tuple[str, Any]]) -> None:
    names = table()
    names.claimed("mine", 1, NONE, 1)
    for node, fact in told:
        before = (names.holders(), names.counts())
        try:
            names.told(node, 1, fact)
        except (ValueError, TypeError):
            assert (names.holders(), names.counts()) == before
        assert names._lone.keys() | names._several.keys() == names.holders().keys()
        several = sum(map(len, names._several.values()))
        assert len(names._lone) + several == sum(names.counts())


# ── a mesh that is not transitive ────────────────────────────────────────────────────────────────


def between() -> tuple[NameTable, NameTable, list[Any]]:
    """B, which has claimed "x" and is not connected to A, and C, which has told it of A's older claim."""
    loser = NameTable(B, 1, Settings(), CODEC.unpack, connected=lambda node: node == C)
    loser.claimed("x", 4, NONE, 9)
    witness = table(C)
    witness.told(A, 1, ["has", [row("x", 7, {"zone": "a"}, since_ms=5)]])
    witness.told(B, 1, ["has", [row("x", 4, since_ms=9)]])
    assert witness.pulsed() == [], "B may see A's claim itself, and withdraw its own at once"
    (tell,) = witness.pulsed()
    assert isinstance(tell, Tell)
    assert tell.to == B
    assert witness.pulsed() == [], "once"
    return loser, witness, tell.fact


def test_who_sees_a_claim_outdone_tells_its_node_which_withdraws_it() -> None:
    loser, witness, fact = between()
    effects = loser.told(C, 1, fact)
    assert losses(effects) == [Lose(Claim("x", pid(B, 4), None, 9), pid(A, 7), "exit")]
    assert facts(effects) == [["gone", "x", "lost"]]
    assert said(effects) == [
        Unregistered("x", pid(B, 4), "lost"),
        Registered("x", pid(A, 7), {"zone": "a"}),
    ]
    with pytest.raises(AlreadyRegistered) as caught:
        loser.claimed("x", 5, NONE, 20)
    assert caught.value.owner == pid(A, 7)
    assert said(witness.told(B, 1, ["gone", "x", "lost"])) == []
    assert (witness.pulsed(), witness.pulsed()) == ([], [])


def test_a_name_is_free_again_when_the_claim_that_was_told_of_goes() -> None:
    loser, witness, fact = between()
    loser.told(C, 1, fact)
    witness.told(B, 1, ["gone", "x", "lost"])
    (tell,) = [effect for effect in witness.told(A, 1, ["gone", "x", "exited"]) if isinstance(effect, Tell)]
    assert tell == Tell(["cleared", "x", "exited"], B)
    assert said(loser.told(C, 1, tell.fact)) == [Unregistered("x", pid(A, 7), "exited")]
    assert loser.told(C, 1, tell.fact) == []
    loser.claimed("x", 5, NONE, 20)
    assert held(loser) == {"x": pid(B, 5)}
    assert (loser._heard, witness._told) == ({}, {})


def test_what_a_node_has_told_goes_with_the_connection_to_it() -> None:
    loser, witness, fact = between()
    loser.told(C, 1, fact)
    assert said([*chain.from_iterable(loser.node_down(C))]) == [Unregistered("x", pid(A, 7), "noconnection")]
    assert loser._heard == {}
    assert [*witness.node_down(B)] != []
    assert facts([*chain.from_iterable(witness.node_down(A))]) == [], "B is gone: nobody is to be told"


def test_two_nodes_may_tell_of_one_claim() -> None:
    loser, _, fact = between()
    loser.told(C, 1, fact)
    assert loser.told("n@10.0.0.4", 1, fact) == []
    assert said(loser.told(C, 1, ["cleared", "x", "exited"])) == []
    assert held(loser) == {"x": pid(A, 7)}


def test_a_new_meta_of_the_winner_reaches_who_was_told_of_it() -> None:
    loser, witness, fact = between()
    loser.told(C, 1, fact)
    witness.told(B, 1, ["gone", "x", "lost"])
    effects = witness.told(A, 1, ["has", [row("x", 7, {"zone": "b"}, since_ms=5)]])
    (tell,) = [effect for effect in effects if isinstance(effect, Tell)]
    assert tell.to == B
    loser.told(C, 1, tell.fact)
    holder = loser.holder("x")
    assert holder is not None
    assert (holder.pid, holder.meta) == (pid(A, 7), {"zone": "b"})


def test_a_node_that_is_connected_speaks_for_itself() -> None:
    direct = NameTable(B, 1, Settings(), CODEC.unpack, connected=lambda _: True)
    direct.claimed("x", 4, NONE, 9)
    _, _, fact = between()
    assert direct.told(C, 1, fact) == []
    assert held(direct) == {"x": pid(B, 4)}


def test_a_younger_claim_of_a_third_node_changes_nothing() -> None:
    loser, _, _ = between()
    assert loser.told(C, 1, ["outdone", A, 1, row("x", 7, since_ms=50)]) == []
    assert held(loser) == {"x": pid(B, 4)}


@pytest.mark.parametrize(
    "fact",
    [
        ["outdone", A, 0, row("x")],
        ["outdone", A, True, row("x")],
        ["outdone", "n" * 200, 1, row("x")],
        ["outdone", A, 1, ["x"]],
        ["outdone", A, 1, row("")],
        ["outdone", 7, 1, row("x")],
        ["cleared", "x", "w" * 65],
        ["cleared", 7, "exited"],
    ],
)
def test_nonsense_about_third_nodes_is_refused(fact: Any) -> None:
    names = table(B)
    with pytest.raises(ValueError, match=r"is not a|name"):
        names.told(C, 1, fact)
    assert names._heard == {}


def test_a_node_may_tell_of_a_limited_number_of_claims_of_others() -> None:
    names = table(B, max_cluster_names=16)
    for number in range(2):
        names.told(C, 1, ["outdone", A, 1, row(f"x{number}")])
    with pytest.raises(ValueError, match="too many"):
        names.told(C, 1, ["outdone", A, 1, row("x2")])
    names.told(C, 1, ["outdone", A, 1, row("x1")])
    names.told("n@10.0.0.9", 1, ["outdone", A, 1, row("x2")])  # Another node is not held up by it.
    names.told(C, 1, ["cleared", "x0", "gone"])
    names.told(C, 1, ["outdone", A, 1, row("x2")])
    for name in ("x1", "x2"):
        names.told(C, 1, ["cleared", name, "gone"])
    assert C not in names._heard_from


def test_some_names_are_found_without_looking_at_all_of_them() -> None:
    names = table()
    for number, name in enumerate(("d", "b", "a", "c"), 1):
        names.claimed(name, number, NONE, 100)
    assert names.count == 4
    assert [(name, claim.pid) for name, claim in names.first(2, 100)] == [("a", pid(A, 3)), ("b", pid(A, 2))]
    assert [name for name, _ in names.first(2, 2)] == ["b", "d"], "only the oldest two are looked at"


def test_the_collector_leaves_claims_of_peers_out() -> None:
    """It would visit each of them in each of its passes, and there may be 100,000 of a node."""
    names = table()
    names.told(B, 1, ["has", [[f"n{number}", number, NONE, 1] for number in range(1, 101)]])
    gc.collect()
    assert len(names._holders) == 100
    assert not any(gc.is_tracked(row) for row in names._holders.values())
    assert names._lone == names._holders == names._claims_of[B].held


def test_what_is_shown_of_a_holder_is_kept_for_a_while_and_follows_its_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(name_table, "MAX_SHOWN", 2)
    names = table()
    for name in "xyz":
        names.claimed(name, 1, packed(name), 1)
    assert names.holder("x") is names.holder("x")
    assert [names.holder(name).meta for name in "xyzx"] == ["x", "y", "z", "x"]  # type: ignore[union-attr]
    assert len(names._shown) <= 2
    names.claimed("x", 1, packed("new"), 1)
    assert names.holder("x").meta == "new"  # type: ignore[union-attr]
    names.disclaimed("x")
    assert names.holder("x") is None


def test_one_fact_of_a_peer_has_few_claims() -> None:
    names = table()
    rows = [row(f"n{number}", number + 1) for number in range(MAX_TOLD_CLAIMS + 1)]
    with pytest.raises(ValueError, match="not a fact about names"):
        names.told(B, 1, ["has", rows])
    names.told(B, 1, ["has", rows[1:]])
    assert names.count == MAX_TOLD_CLAIMS


def test_of_many_names_that_two_peers_claim_a_pulse_looks_at_some_and_all_have_their_turn() -> None:
    names = table()
    count = 2 * MAX_LOOKED_AT + 100
    for node in (B, C):
        for number in range(count):
            names.told(node, 1, ["has", [row(f"n{number}", number + 1)]])
    pulses = [facts(names.pulsed()) for _ in range(6)]
    assert [len(pulse) for pulse in pulses] == [0, 0, 400, 500, 200, 0]
    told = [fact[3][0] for pulse in pulses for fact in pulse]
    assert sorted(told) == sorted(f"n{number}" for number in range(count))
