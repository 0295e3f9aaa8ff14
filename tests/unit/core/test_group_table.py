"""Who is in which group, and who is picked: the decisions, without a node."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fleetlm.core.group_table import PIECE, Effect, GroupTable, Tell, pid_order
from fleetlm.core.picking import Key, Picker, digest_of, rendezvous
from fleetlm.directory.replication import MAX_FACT_BYTES
from fleetlm.errors import InvalidName, NoConnection, NoMember, NoProcess, TooManyMemberships
from fleetlm.ids import Pid
from fleetlm.messages import Joined, Left
from fleetlm.messaging.windows import Obstacle
from fleetlm.wire.codec import Codec
from fleetlm.wire.frames import Op
from tests.support.session_fakes import turns, virtual
from tests.unit.messaging.test_outbound import Rig as Sending

HERE, THERE, YONDER = "fleetlm@10.0.0.2", "fleetlm@10.0.0.1", "fleetlm@10.0.0.3"


def here(number: int) -> Pid:
    return Pid(HERE, 7, number)


def there(number: int) -> Pid:
    return Pid(THERE, 8, number)


def table(limit: int = 1_000, node: str = HERE, incarnation: int = 7) -> GroupTable:
    """Of a node whose processes 1 to 9,999 live."""
    return GroupTable(node, incarnation, limit, lambda pid: pid == Pid(node, incarnation, pid.number))


def facts(effects: list[Effect]) -> list[Any]:
    return [order.fact for order in effects if isinstance(order, Tell)]


def changes(effects: list[Effect]) -> list[Joined | Left]:
    return [order for order in effects if not isinstance(order, Tell)]


def state(groups: GroupTable) -> Any:
    return {group: list(groups.members(group)) for group in groups.groups()}


# ── this node ────────────────────────────────────────────────────────────────────────────────────


def test_a_group_is_there_while_it_has_a_member() -> None:
    groups = table()
    assert groups.groups() == groups.members("g") == groups.local_members("g") == []
    effects = groups.joined("g", [here(2), here(1)])
    assert facts(effects) == [["join", {"g": [2, 1]}]]
    assert changes(effects) == [Joined("g", here(2)), Joined("g", here(1))]
    assert groups.members("g") == groups.local_members("g") == [here(1), here(2)]
    assert groups.groups() == ["g"]
    assert groups.has("g")
    groups.left("g", [here(1), here(2)])
    assert groups.groups() == groups.members("g") == []
    assert not groups.has("g")


def test_who_joined_twice_is_there_twice_and_leaves_once_at_a_time() -> None:
    groups = table()
    groups.joined("g", [here(1)])
    groups.joined("g", [here(1), here(2)])
    assert groups.members("g") == [here(1), here(1), here(2)]
    effects = groups.left("g", [here(1)])
    assert facts(effects) == [["leave", {"g": [1]}]]
    assert changes(effects) == [Left("g", here(1), "left")]
    assert groups.members("g") == [here(1), here(2)]


def test_leaving_passes_over_who_is_no_member() -> None:
    groups = table()
    groups.joined("g", [here(1)])
    groups.joined("other", [here(2)])
    assert groups.left("g", [here(2)]) == groups.left("nowhere", [here(1)]) == []
    assert groups.left("g", [Pid(HERE, 6, 1), Pid(THERE, 7, 1)]) == []
    effects = groups.left("g", [here(1), here(1), here(2)])
    assert changes(effects) == [Left("g", here(1), "left")]
    assert state(groups) == {"other": [here(2)]}


def test_an_end_leaves_every_group_as_often_as_it_was_joined() -> None:
    groups = table()
    for group in ("a", "b", "a"):
        groups.joined(group, [here(1)])
    groups.joined("a", [here(2)])
    effects = groups.exited(here(1))
    assert facts(effects) == [["exit", 1]]
    assert changes(effects) == [Left(group, here(1), "exited") for group in ("a", "a", "b")]
    assert state(groups) == {"a": [here(2)]}
    assert groups.exited(here(1)) == groups.exited(here(99)) == []


@pytest.mark.parametrize("stranger", [Pid(HERE, 6, 1), Pid(THERE, 7, 1)])
def test_only_processes_of_this_node_can_join(stranger: Pid) -> None:
    groups = table()
    with pytest.raises(NoProcess):
        groups.joined("g", [here(1), stranger])
    assert groups.groups() == []


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb"])
def test_a_group_has_a_name_as_a_process_has(name: str) -> None:
    groups = table()
    with pytest.raises(InvalidName):
        groups.joined(name, [here(1)])
    assert groups.joined("x" * 255, [here(1)])


def test_joins_beyond_the_limit_are_refused_as_a_whole() -> None:
    groups = table(limit=3)
    groups.joined("g", [here(1), here(2)])
    with pytest.raises(TooManyMemberships) as caught:
        groups.joined("g", [here(3), here(4)])
    assert (caught.value.held, caught.value.wanted, caught.value.limit) == (2, 2, 3)
    assert groups.members("g") == [here(1), here(2)]
    groups.exited(here(1))
    groups.joined("g", [here(3), here(4)])
    groups.left("g", [here(3)])
    groups.joined("h", [here(4)])
    with pytest.raises(TooManyMemberships):
        groups.joined("h", [here(4)])


# ── others ───────────────────────────────────────────────────────────────────────────────────────


def test_what_a_node_tells_at_nodeup_makes_the_same_table() -> None:
    groups, other = table(), table(node=YONDER, incarnation=9)
    for group, numbers in (("a", [3, 1, 1]), ("b", [1]), ("c", [2])):
        groups.joined(group, map(here, numbers))
    groups.exited(here(2))
    groups.left("a", [here(1)])
    for fact in groups.own_facts():
        other.told(HERE, 7, fact)
    assert state(other) == state(groups) == {"a": [here(1), here(3)], "b": [here(1)]}
    assert other.local_members("a") == list(other.own_facts()) == []


def test_members_are_ordered_alike_everywhere() -> None:
    groups, other = table(), table(node=THERE, incarnation=8)
    first = groups.joined("g", [here(2)]) + groups.joined("g", [here(1)])
    second = other.joined("g", [there(5)])
    for fact in facts(second):
        groups.told(THERE, 8, fact)
    for fact in facts(first):
        other.told(HERE, 7, fact)
    assert groups.members("g") == other.members("g") == [there(5), here(1), here(2)]
    assert groups.local_members("g") == [here(1), here(2)]
    assert groups.members("g") == sorted(groups.members("g"), key=pid_order)


def test_changes_of_others() -> None:
    groups = table()
    assert groups.told(THERE, 8, ["join", {"g": [1, 2, 1], "h": [1]}]) == [
        Joined("g", there(1)), Joined("g", there(2)), Joined("g", there(1)), Joined("h", there(1)),
    ]  # fmt: skip
    assert groups.told(THERE, 8, ["leave", {"g": [1]}]) == [Left("g", there(1), "left")]
    assert groups.told(THERE, 8, ["exit", 1]) == [
        Left("g", there(1), "exited"),
        Left("h", there(1), "exited"),
    ]
    assert state(groups) == {"g": [there(2)]}
    groups.joined("g", [here(1)])
    assert groups.node_down(THERE) == [Left("g", there(2), "noconnection")]
    assert groups.node_down(THERE) == groups.node_down(HERE) == []
    assert state(groups) == {"g": [here(1)]}


def test_a_node_that_comes_back_is_another() -> None:
    groups = table()
    groups.told(THERE, 8, ["join", {"g": [1]}])
    groups.node_down(THERE)
    groups.told(THERE, 9, ["join", {"g": [1]}])
    assert groups.members("g") == [Pid(THERE, 9, 1)]


HOSTILE: list[Any] = [
    None, 7, "join", [], {}, ["join"], ["join", {}], ["join", []], ["join", {"g": [1]}, 1], ["join", None],
    ["join", {"g": []}], ["join", {"g": 1}], ["join", {"g": (1,)}], ["join", {"g": {1: 1}}],
    ["join", {"g": [0]}], ["join", {"g": [-1]}], ["join", {"g": [1 << 64]}], ["join", {"g": [True]}],
    ["join", {"g": [1.0]}], ["join", {"g": ["1"]}], ["join", {"g": [None]}], ["join", {"g": [here(1)]}],
    ["join", {"g": [there(1)]}], ["join", {7: [1]}], ["join", {None: [1]}], ["join", {b"g": [1]}],
    ["join", {"": [1]}], ["join", {"x" * 256: [1]}], ["join", {"a\0": [1]}], ["join", {"g": [1], "h": [0]}],
    ["join", {"g": [1], ("h",): [1]}],
    ["leave", {"g": [2]}], ["leave", {"h": [1]}], ["leave", {"g": [1, 1, 1]}], ["leave", {}], ["leave", 1],
    ["leave", {"g": [1], "h": [1]}], ["leave", {"g": [True]}], ["leave", {"mine": [1]}],
    ["exit", 2], ["exit", True], ["exit", "1"], ["exit", [1]], ["exit", {}], ["exit", there(1)], ["exit"],
    ["exit", 1, 1], ["gone", 1], [["join"], {"g": [1]}], [{}, {}],
]  # fmt: skip


@pytest.mark.parametrize("fact", HOSTILE, ids=repr)
def test_nonsense_changes_nothing(fact: Any) -> None:
    groups = table()
    groups.joined("mine", [here(1)])
    groups.told(THERE, 8, ["join", {"g": [1, 1], "g2": [3]}])
    before = state(groups)
    with pytest.raises(ValueError):  # noqa: PT011  # some are InvalidName
        groups.told(THERE, 8, fact)
    assert state(groups) == before
    groups.told(THERE, 8, ["leave", {"g": [1, 1]}])
    groups.told(THERE, 8, ["exit", 3])
    assert state(groups) == {"mine": [here(1)]}


def test_a_node_speaks_for_itself_alone() -> None:
    groups = table()
    groups.told(THERE, 8, ["join", {"g": [1]}])
    for node, incarnation in ((HERE, 7), (HERE, 6), (THERE, 9)):
        with pytest.raises(ValueError, match="somebody else"):
            groups.told(node, incarnation, ["join", {"g": [2]}])
    assert state(groups) == {"g": [there(1)]}


def test_a_peer_with_too_many_memberships_is_refused_and_told_why() -> None:
    groups = table(limit=3)
    groups.told(YONDER, 9, ["join", {"g": [1, 2, 3]}])
    groups.told(THERE, 8, ["join", {"g": [1, 2]}])
    with pytest.raises(ValueError, match=r"more than 3 memberships .* Settings\.max_memberships"):
        groups.told(THERE, 8, ["join", {"g": [3], "h": [3]}])
    groups.told(THERE, 8, ["leave", {"g": [2]}])
    groups.told(THERE, 8, ["join", {"g": [3], "h": [3]}])
    assert groups.members("h") == [there(3)]
    with pytest.raises(ValueError, match="more than 3"):
        groups.told("fleetlm@10.0.0.4", 1, ["join", {"g": [1] * 4}])


@pytest.mark.parametrize("letter", ["x", "\U0001f600"])
def test_no_fact_is_longer_than_a_fact_may_be(letter: str) -> None:
    groups = table(limit=10_000)
    for number in range(3 * PIECE + 1):
        groups.joined(f"{number:03}" + letter * 252, [here((1 << 63) + number)])
    pieces = list(groups.own_facts())
    assert len(pieces) == 4
    assert (
        max(len(Codec().pack([int(Op.TABLE), "groups", piece], piece)) for piece in pieces) < MAX_FACT_BYTES
    )
    effects = groups.joined("g", map(here, range(1, 3 * PIECE + 2)))
    told = facts(effects) + facts(groups.left("g", map(here, range(1, 3 * PIECE + 2))))
    assert len(told) == 8
    assert max(len(numbers) for _, members in told for numbers in members.values()) == PIECE
    assert sum(len(numbers) for _, members in told for numbers in members.values()) == 2 * (3 * PIECE + 1)


# ── picking ──────────────────────────────────────────────────────────────────────────────────────


class Rig:
    """A picker over members whose loads, and whose nodes' ends, a test sets."""

    def __init__(self, seed: int = 1) -> None:
        self.load: dict[Pid, int] = {}
        self.draining: set[str] = set()
        self.picker = Picker(
            random.Random(seed), lambda pid: self.load.get(pid, 0), lambda node: node in self.draining
        )

    def pick(self, members: list[Pid], by: Any = "random", key: Key | None = None) -> Pid:
        return self.picker.pick("g", sorted(members, key=pid_order), by, key)

    def many(self, count: int, members: list[Pid], by: Any, keys: bool = False) -> Counter[Pid]:
        return Counter(self.pick(members, by, number if keys else None) for number in range(count))


MEMBERS = [Pid(f"fleetlm@10.0.0.{node}", node, number) for node in range(1, 5) for number in (1, 2)]
PINNED = [("4", 2), ("4", 2), ("2", 1), ("1", 2), ("3", 1)]
"""Of five keys: node and number of the member that every version must find."""
RULES = [("random", None), ("round_robin", None), ("key", "k"), ("least_loaded", None)]


@pytest.mark.parametrize(("by", "key"), RULES)
def test_nobody_can_be_picked_from_an_empty_group(by: Any, key: Key | None) -> None:
    with pytest.raises(NoMember, match="'g'"):
        Rig().pick([], by, key)


@pytest.mark.parametrize(
    ("by", "key", "error"),
    [
        ("fastest", None, ValueError),
        ("key", None, ValueError),
        ("random", "k", ValueError),
        ("key", 1.5, TypeError),
        ("key", True, TypeError),
        ("key", ("a", 1), TypeError),
        ([], None, ValueError),
    ],
)
def test_rules_and_keys_that_are_none(by: Any, key: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Rig().pick(MEMBERS, by, key)
    if error is ValueError:
        with pytest.raises(error):
            Rig().pick([], by, key)


@pytest.mark.parametrize(("by", "key"), RULES)
def test_the_same_seed_picks_the_same(by: Any, key: Key | None) -> None:
    one, other = Rig(5), Rig(5)
    assert [one.pick(MEMBERS, by, key) for _ in range(20)] == [
        other.pick(MEMBERS, by, key) for _ in range(20)
    ]


def test_random_gives_each_join_the_same_chance() -> None:
    picks = Rig().many(9_000, [*MEMBERS, MEMBERS[0]], "random")
    assert 1_800 < picks[MEMBERS[0]] < 2_200
    assert all(800 < picks[pid] < 1_200 for pid in MEMBERS[1:])


def test_round_robin_gives_everybody_the_same() -> None:
    picks = Rig().many(8 * 5, [*MEMBERS, MEMBERS[0]], "round_robin")
    assert picks == dict.fromkeys(MEMBERS, 5)


def test_round_robin_survives_whoever_comes_and_goes() -> None:
    rig = Rig()
    order = [rig.pick(MEMBERS, "round_robin") for _ in MEMBERS]
    rest = [pid for pid in MEMBERS if pid != order[0]]
    assert [rig.pick(rest, "round_robin") for _ in rest] == order[1:]
    assert rig.pick(MEMBERS, "round_robin") == order[0]
    assert rig.picker._last == {"g": order[0]}
    rig.picker.forget("g")
    assert rig.picker._last == {}


def test_round_robin_begins_anywhere() -> None:
    assert len({Rig(seed).pick(MEMBERS, "round_robin") for seed in range(40)}) > 4


def test_a_draining_node_does_not_double_the_turns_of_the_next() -> None:
    rig = Rig()
    rig.draining = {MEMBERS[2].node}
    picks = rig.many(6 * 5, MEMBERS, "round_robin")
    assert picks == {pid: 5 for pid in MEMBERS if pid.node not in rig.draining}


@given(
    st.sets(st.sampled_from(MEMBERS), min_size=1),
    st.sampled_from(MEMBERS),
    st.one_of(st.text(), st.binary(), st.integers()),
)
def test_a_key_moves_only_with_its_member(members: set[Pid], other: Pid, key: Key) -> None:
    rig = Rig()
    before = rig.pick([*members], "key", key)
    assert rig.pick([*members, *members], "key", key) == before
    assert rig.pick([*members, other], "key", key) in (before, other)
    rest = members - {other}
    if rest and before != other:
        assert rig.pick([*rest], "key", key) == before


def test_keys_are_spread_over_all_members() -> None:
    picks = Rig().many(4_000, MEMBERS, "key", keys=True)
    assert all(400 < picks[pid] < 600 for pid in MEMBERS)
    assert Rig(2).many(4_000, [*MEMBERS, MEMBERS[0]], "key", keys=True) == picks


def test_keys_of_three_types_are_three_keys_and_stay_the_same_for_ever() -> None:
    assert len({digest_of(key) for key in ("7", b"7", 7, -7, "", b"", 0, "\ud800", 10**5_000)}) == 9
    # What other versions of fleetlm in the same cluster must answer as well.
    picks = [rendezvous(digest_of(key), MEMBERS) for key in ("a", b"a", 97, "b", "")]
    assert [(pid.node[-1], pid.number) for pid in picks] == PINNED


def test_least_loaded_takes_the_least_and_chance_among_equals() -> None:
    rig = Rig()
    rig.load = dict.fromkeys(MEMBERS, 3) | {MEMBERS[1]: 1, MEMBERS[4]: 1}
    picks = rig.many(1_000, MEMBERS, "least_loaded")
    assert picks.keys() == {MEMBERS[1], MEMBERS[4]}
    assert min(picks.values()) > 400
    rig.load[MEMBERS[7]] = 0
    assert rig.many(10, MEMBERS, "least_loaded") == {MEMBERS[7]: 10}


@pytest.mark.parametrize(("by", "key"), RULES)
def test_members_on_draining_nodes_are_the_last_resort(by: Any, key: Key | None) -> None:
    rig = Rig()
    chosen = rig.pick(MEMBERS, by, key)
    rig.load[chosen] = -1
    rig.draining = {chosen.node}
    for _ in range(50):
        assert rig.pick(MEMBERS, by, key).node != chosen.node
    rig.draining = {pid.node for pid in MEMBERS}
    assert {rig.pick(MEMBERS, by, key) for _ in range(50)} <= set(MEMBERS)


def test_a_draining_node_changes_no_key_but_its_own() -> None:
    rig = Rig()
    before = [rig.pick(MEMBERS, "key", key) for key in range(500)]
    rig.draining = {MEMBERS[0].node}
    after = [rig.pick(MEMBERS, "key", key) for key in range(500)]
    for old, new in zip(before, after, strict=True):
        assert (new == old) == (old.node not in rig.draining)


# ── sending to one of many ───────────────────────────────────────────────────────────────────────


@virtual
async def test_whoever_waits_for_a_sender_waits_behind_its_large_messages() -> None:
    """Small messages of a sender queue behind its large ones: how many is bounded for its helpers too."""
    rig = Sending()
    messenger, me = rig.messenger, asyncio.current_task()
    to, payload = Pid(rig.session.name, 2, 5), rig.pair.here.codec.pack_value("small")
    large = rig.pair.here.codec.pack_value(b"x" * 2 * rig.session.byte_window.limit_bytes)

    async def somebody_else() -> bool:
        return messenger.put_packed(to, payload, "small", asyncio.current_task())

    assert messenger.put_packed(to, large, None, me)
    assert rig.session.obstacle(to.number, 0, me) is Obstacle.LANES
    assert not messenger.put_packed(to, payload, "small", me)
    assert await rig.start(somebody_else())
    later = rig.start(messenger.send_packed(to, payload, "small", me))
    await turns()
    assert not later.done()
    await rig.settle()
    await later
    rig.session.close("gone")
    with pytest.raises(NoConnection):
        messenger.put_packed(to, payload, "small", me)


@virtual
async def test_a_packed_message_for_another_incarnation_reaches_nobody() -> None:
    rig = Sending()
    for stranger in (Pid(rig.session.name, 3, 5), Pid(rig.messenger._name, 1, 99)):
        with pytest.raises(NoProcess):
            rig.messenger.put_packed(stranger, b"\xc0", None, None)
