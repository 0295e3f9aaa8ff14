"""Group tables of several nodes against a model: whatever happens, connected nodes see the same.

The messages between nodes keep their order and take as long as they like; a connection ends on each
side at a time of its own, with what was under way to that side lost.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fleetlm.core.group_table import Effect, GroupTable, Tell
from fleetlm.core.snapshot import Snapshot
from fleetlm.directory.subscriptions import Feed
from fleetlm.errors import NoProcess, TooManyMemberships
from fleetlm.ids import Pid
from fleetlm.messages import Joined, Left
from fleetlm.wire.codec import Codec

NAMES = [f"fleetlm@10.0.0.{number}" for number in (1, 2, 3)]
GROUPS = ["a", "b", "c"]
LIMIT = 7
CODEC = Codec()

node_numbers = st.integers(0, len(NAMES) - 1)
numbers = st.integers(1, 4)
groups = st.sampled_from(GROUPS)


class Rows:
    """The table as a snapshot sees it, with a fact for each membership."""

    topic = "groups"

    def __init__(self, table: GroupTable) -> None:
        self.table = table

    def own_keys(self) -> Iterable[int]:
        return self.table.own_keys()

    def own_facts(self, keys: Iterable[int]) -> Iterator[Any]:
        for number in keys:
            for _, members in self.table.own_facts([number]):
                for group, numbers in members.items():
                    yield from (["join", {group: [each]}] for each in numbers)


class Sim:
    """A node: its table, its model, and what it has told its subscribers."""

    def __init__(self, index: int, incarnation: int) -> None:
        self.index = index
        self.name = NAMES[index]
        self.incarnation = incarnation
        self.alive = {1, 2, 3}
        self.joined: Counter[tuple[str, int]] = Counter()
        """The model: (group, number) → times, of this node's own processes."""
        self.heard: Counter[tuple[str, Pid]] = Counter()
        """The memberships that a subscriber counts from `Joined` and `Left`."""
        self.snapshots: dict[int, tuple[Snapshot, deque[bytes]]] = {}
        """Node that has not been told all yet → what is left, and the way there."""
        self.table = GroupTable(self.name, incarnation, LIMIT, self.lives, self.before_change)
        self.rows = Rows(self.table)

    def connected(self, aim: int, road: deque[bytes]) -> None:
        self.snapshots[aim] = Snapshot([self.rows]), road

    def before_change(self, number: int) -> None:
        for snapshot, road in self.snapshots.values():
            road.extend(CODEC.pack_value(fact) for _, fact in snapshot.before_change("groups", number))

    def advance(self, aim: int) -> None:
        snapshot, road = self.snapshots[aim]
        fact = snapshot.next()
        if fact is None:
            del self.snapshots[aim]
        else:
            road.append(CODEC.pack_value(fact[1]))

    def lives(self, pid: Pid) -> bool:
        return pid == self.pid(pid.number) and pid.number in self.alive

    def pid(self, number: int) -> Pid:
        return Pid(self.name, self.incarnation, number)

    def view(self) -> dict[str, list[Pid]]:
        return {group: list(self.table.members(group)) for group in self.table.groups()}

    def perform(self, effects: list[Effect]) -> list[Any]:
        """Count the events; returns the facts to tell."""
        told = []
        for effect in effects:
            match effect:
                case Tell(fact):
                    told.append(fact)
                case Joined(group, pid):
                    self.heard[group, pid] += 1
                case Left(group, pid):
                    self.heard[group, pid] -= 1
                    assert self.heard[group, pid] >= 0, "left without having joined"
        return told


class Cluster(RuleBasedStateMachine):
    """Nodes that join, leave, end, connect, disconnect and restart in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.codec = Codec()
        self.nodes = [Sim(index, 1) for index in range(len(NAMES))]
        self.roads: dict[tuple[int, int], deque[bytes]] = {}
        """(from, to) → packed facts on the way; exists while the connection is up at the receiver."""
        self.known: set[tuple[int, int]] = set()
        """(here, there): up on the side of here."""

    def tell(self, sender: Sim, effects: list[Effect]) -> None:
        for fact in sender.perform(effects):
            packed = self.codec.pack_value(fact)
            for (source, aim), road in self.roads.items():
                if source == sender.index and (source, aim) in self.known:
                    road.append(packed)

    # What processes do.

    @rule(index=node_numbers, group=groups, who=st.lists(numbers, max_size=3))
    def join(self, index: int, group: str, who: list[int]) -> None:
        node = self.nodes[index]
        allowed = set(who) <= node.alive and node.joined.total() + len(who) <= LIMIT
        try:
            self.tell(node, node.table.joined(group, [node.pid(number) for number in who]))
        except NoProcess:
            assert not set(who) <= node.alive
        except TooManyMemberships:
            assert set(who) <= node.alive
            assert not allowed
        else:
            assert allowed
            node.joined.update((group, number) for number in who)

    @rule(index=node_numbers, group=groups, who=st.lists(numbers, max_size=3))
    def leave(self, index: int, group: str, who: list[int]) -> None:
        node = self.nodes[index]
        effects = node.table.left(group, [node.pid(number) for number in who])
        wanted = Counter((group, number) for number in who)
        gone = wanted & node.joined
        assert sum(isinstance(effect, Left) for effect in effects) == gone.total()
        node.joined -= gone
        self.tell(node, effects)

    @rule(index=node_numbers, number=numbers)
    def end(self, index: int, number: int) -> None:
        node = self.nodes[index]
        node.alive.discard(number)
        for key in [key for key in node.joined if key[1] == number]:
            del node.joined[key]
        self.tell(node, node.table.exited(node.pid(number)))

    @rule(index=node_numbers, number=numbers)
    def spawn(self, index: int, number: int) -> None:
        node = self.nodes[index]
        if not any(key[1] == number for key in node.joined):
            node.alive.add(number)

    # What connections do.

    @rule(one=node_numbers, other=node_numbers)
    def connect(self, one: int, other: int) -> None:
        if one == other or {(one, other), (other, one)} & self.known:
            return
        for here, there in ((one, other), (other, one)):
            self.known.add((here, there))
            self.roads[here, there] = deque()
            self.nodes[here].connected(there, self.roads[here, there])

    @rule(index=node_numbers, count=st.integers(1, 3))
    def advance(self, index: int, count: int) -> None:
        """A node tells a little more of its rows to those that it has connected to."""
        node = self.nodes[index]
        for aim in [*node.snapshots] * count:
            if aim in node.snapshots:
                node.advance(aim)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        """One side notices that the connection ended. The other notices later, and receives until then."""
        here, there = data.draw(st.sampled_from(sorted(self.known)))
        self.drop(here, there)

    def drop(self, here: int, there: int) -> None:
        node = self.nodes[here]
        self.known.discard((here, there))
        node.snapshots.pop(there, None)
        del self.roads[there, here]  # What is on the way here, or sent from now on, is lost.
        assert not node.perform([*node.table.node_down(NAMES[there])])
        assert not any(pid.node == NAMES[there] for members in node.view().values() for pid in members)

    @precondition(lambda self: any(self.roads.values()))
    @rule(data=st.data(), count=st.integers(1, 5))
    def deliver(self, data: st.DataObject, count: int) -> None:
        busy = sorted(key for key, road in self.roads.items() if road)
        source, aim = data.draw(st.sampled_from(busy))
        for _ in range(count):
            self.arrive(source, aim)

    def arrive(self, source: int, aim: int) -> None:
        road = self.roads[source, aim]
        if road:
            sender, receiver = self.nodes[source], self.nodes[aim]
            fact = self.codec.unpack(road.popleft())
            told = receiver.perform(receiver.table.told(sender.name, sender.incarnation, fact))
            assert told == [], "what others say is nobody else's to tell"

    @rule(index=node_numbers)
    def restart(self, index: int) -> None:
        for other in range(len(NAMES)):
            for here, there in ((index, other), (other, index)):
                if (here, there) in self.known:
                    self.drop(here, there)
        self.nodes[index] = Sim(index, self.nodes[index].incarnation + 1)

    # Hostile peers.

    @rule(
        index=node_numbers,
        verb=st.sampled_from(["join", "leave", "exit", "other", None]),
        what=st.recursive(
            st.none() | st.booleans() | st.integers(-1, 5) | st.floats() | st.sampled_from([*GROUPS, ""]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from([*GROUPS, ""]), inner, max_size=2)
                | st.dictionaries(groups, st.lists(st.integers(0, 4), max_size=4), max_size=2)
            ),
            max_leaves=6,
        ),
    )
    def nonsense(self, index: int, verb: Any, what: Any) -> None:
        """Every fact changes the table or raises; a fact that raised has changed nothing."""
        node = self.nodes[index]
        stranger, before, heard = "fleetlm@10.0.9.9", node.view(), node.heard.copy()
        try:
            node.perform(node.table.told(stranger, 1, [verb, what]))
        except ValueError:
            assert node.view() == before
            assert node.heard == heard
        else:
            assert verb in ("join", "leave", "exit")
            assert node.view() != before
        for known in (node.name, stranger):
            with pytest.raises(ValueError, match=r"may not tell|is not a fact|more than"):
                node.table.told(known, 2, ["join", {"a": [1] * (LIMIT + 1)}])
        node.perform([*node.table.node_down(stranger)])
        assert {group: pids for group, pids in before.items() if pids} == node.view()

    # What must hold.

    @invariant()
    def own_members_are_the_models(self) -> None:
        for node in self.nodes:
            for group in GROUPS:
                expected = sorted(
                    number for (name, number) in node.joined.elements() if name == group
                )  # fmt: skip
                assert [pid.number for pid in node.table.local_members(group)] == expected

    @invariant()
    def events_and_members_agree(self) -> None:
        for node in self.nodes:
            members = Counter((group, pid) for group, pids in node.view().items() for pid in pids)
            assert members == +node.heard

    @invariant()
    def tables_hold_nothing_that_is_over(self) -> None:
        for node in self.nodes:
            said = node.table._said
            assert {NAMES.index(name) for name in said} - {node.index} <= {
                there for here, there in self.known if here == node.index
            }
            for each in said.values():
                assert (
                    each.count == sum(times for number in each for times in each.of(number).values()) <= LIMIT
                )
                assert all(map(each.of, each))
            assert all(node.table._groups.values())

    def settle(self) -> None:
        for index in range(len(NAMES)):
            while self.nodes[index].snapshots:
                self.advance(index, 1)
        for source, aim in list(self.roads):
            while self.roads[source, aim]:
                self.arrive(source, aim)

    @rule()
    def connected_nodes_converge(self) -> None:
        """Once everything has arrived, each node sees what the nodes connected to it say."""
        self.settle()
        for here, node in enumerate(self.nodes):
            seen = Counter((group, pid) for group, pids in node.view().items() for pid in pids)
            for there, other in enumerate(self.nodes):
                if here == there or {(here, there), (there, here)} <= self.known:
                    said = Counter((group, other.pid(number)) for group, number in other.joined.elements())
                    assert Counter({key: n for key, n in seen.items() if key[1].node == other.name}) == said
                elif (here, there) not in self.known:
                    assert not any(pid.node == other.name for _, pid in seen)

    def teardown(self) -> None:
        for here, there in sorted(self.known):
            self.drop(here, there)
        for one in range(len(NAMES)):
            for other in range(one):
                self.connect(one, other)
        self.connected_nodes_converge()
        assert len({str(node.view()) for node in self.nodes}) == 1


TestCluster = pytest.mark.deadline(60)(Cluster.TestCase)
TestCluster.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


class LongerCluster(Cluster):
    """The same, with more examples."""


TestClusterForLonger = pytest.mark.long(LongerCluster.TestCase)
TestClusterForLonger.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


# ── a subscriber of a large group ────────────────────────────────────────────────────────────────


def test_a_present_beyond_the_limit_costs_no_more_than_its_size() -> None:
    """A snapshot, and what a reader that stands still is told, must not be counted anew for each event."""
    looked = 0

    class Counting(Feed[Joined | Left]):
        @property
        def present(self) -> Any:
            nonlocal looked
            looked += 1
            return super().present

    feed: Feed[Joined | Left] = Counting(
        100,
        lambda event: event.pid,
        lambda event: isinstance(event, Left),
        lambda event: Left(event.group, event.pid, "missed"),
    )
    pids = [Pid(NAMES[0], 1, number) for number in range(2_000)]
    for pid in pids:
        feed.publish(Joined("g", pid))
    subscription = feed.subscribe()
    assert len(subscription._queue) == 2_000
    for pid in pids:
        feed.publish(Left("g", pid, "left"))
        feed.publish(Joined("g", pid))
    assert looked < 10
    assert len(subscription._queue) <= 4_000
