"""Several nodes with claims, connections that come and go, and facts that are late, as a state machine."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fleetlm.core.name_table import Claim, Decide, Effect, Lose, NameTable, Say, Tell, older
from fleetlm.core.snapshot import Snapshot
from fleetlm.errors import AlreadyRegistered
from fleetlm.ids import Pid
from fleetlm.messages import Registered
from fleetlm.settings import Settings
from fleetlm.wire.codec import Codec

NODES = [f"n@10.0.0.{number}" for number in range(1, 5)]
CODEC = Codec()
NAMES = st.sampled_from(["x", "y", "z"])
NODE = st.sampled_from(NODES)
AGES = st.integers(0, 5)
"""Few, so that claims are often of one age."""
METAS = st.integers(0, 2)
Key = tuple[str, Pid, int]
"""One claim: the name, the process, and which of its registrations."""


def by_meta(first: Claim, second: Claim) -> Claim:
    return min(first, second, key=lambda claim: (-claim.meta, claim.pid.node))


class Half:
    """What one node has sent to another over a connection and the other has not received yet."""

    def __init__(self) -> None:
        self.facts: deque[Any] = deque()
        self.snapshot: Snapshot | None = None
        """The claims that have not been sent yet."""


class Rows:
    """The table as a snapshot sees it, with small facts."""

    topic = "names"

    def __init__(self, table: NameTable) -> None:
        self.table = table

    def own_keys(self) -> Iterable[str]:
        return self.table.own_keys()

    def own_facts(self, keys: Iterable[str]) -> Iterator[Any]:
        return self.table.own_facts(keys, 60)


class Cluster(RuleBasedStateMachine):
    @initialize(own_rule=st.booleans())
    def begin(self, own_rule: bool) -> None:
        decide: Decide = by_meta if own_rule else older
        self.own_rule = own_rule
        self.decide = decide
        self.incarnations = itertools.count(1)
        self.numbers = itertools.count(1)
        self.tables: dict[str, NameTable] = {}
        self.up: dict[str, dict[str, Half]] = {node: {} for node in NODES}
        """Node → those that are up for it → its half of the connection."""
        self.alive: dict[str, list[int]] = {node: [] for node in NODES}
        self.watched: dict[str, dict[str, Any]] = {}
        self.registered: dict[tuple[str, Pid], None] = {}
        """Claims that their process believes in."""
        for node in NODES:
            self.start(node)

    def start(self, node: str) -> None:
        self.tables[node] = NameTable(
            node,
            next(self.incarnations),
            Settings(),
            CODEC.unpack,
            self.decide,
            before_change=lambda name: self.before_change(node, name),
        )
        self.alive[node] = []
        self.watched[node] = {}

    def pid(self, node: str, number: int) -> Pid:
        return Pid(node, self.tables[node].incarnation, number)

    def perform(self, node: str, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Tell(fact):
                    sent = CODEC.pack_value(fact)
                    for half in self.up[node].values():
                        half.facts.append(sent)
                case Say(event):
                    seen = self.watched[node]
                    if isinstance(event, Registered):
                        assert event.name not in seen, "comings and goings alternate"
                        seen[event.name] = (event.pid, event.meta)
                    else:
                        assert seen.pop(event.name)[0] == event.pid
                case Lose(claim, winner):
                    assert claim.pid.node == node, "only the owner withdraws"
                    assert winner != claim.pid
                    assert (claim.name, claim.pid) in self.registered, "told once"
                    del self.registered[claim.name, claim.pid]

    # What programs do.

    @rule(node=NODE)
    def spawn(self, node: str) -> None:
        self.alive[node].append(next(self.numbers))

    @rule(node=NODE, name=NAMES, which=st.integers(0), since_ms=AGES, meta=METAS)
    def register(self, node: str, name: str, which: int, since_ms: int, meta: int) -> None:
        if not self.alive[node]:
            self.spawn(node)
        number = self.alive[node][which % len(self.alive[node])]
        names, me = self.tables[node], self.pid(node, number)
        before = names.holder(name)
        if before is not None and before.pid != me:
            with pytest.raises(AlreadyRegistered) as caught:
                names.claimed(name, number, CODEC.pack_value(meta), since_ms)
            assert caught.value.owner == before.pid
            return
        effects = names.claimed(name, number, CODEC.pack_value(meta), since_ms)
        self.registered[name, me] = None
        self.perform(node, effects)

    @rule(node=NODE, name=NAMES)
    def unregister(self, node: str, name: str) -> None:
        held = self.tables[node].holder(name)
        effects = self.tables[node].disclaimed(name)
        assert bool(effects) is (held is not None and held.pid.node == node)
        if held is not None and effects:
            del self.registered[name, held.pid]
        self.perform(node, effects)

    @rule(node=NODE, which=st.integers(0))
    def exit(self, node: str, which: int) -> None:
        if self.alive[node]:
            number = self.alive[node].pop(which % len(self.alive[node]))
            gone = self.pid(node, number)
            self.perform(node, self.tables[node].exited(number))
            for key in [key for key in self.registered if key[1] == gone]:
                del self.registered[key]

    # What the network does.

    @rule(one=NODE, two=NODE)
    def connect(self, one: str, two: str) -> None:
        if one == two or two in self.up[one] or one in self.up[two]:
            return  # The old connection must be over on both sides.
        for node, other in ((one, two), (two, one)):
            half = self.up[node][other] = Half()
            half.snapshot = Snapshot([Rows(self.tables[node])])

    def before_change(self, node: str, name: str) -> None:
        for half in self.up[node].values():
            if half.snapshot is not None:
                told = half.snapshot.before_change("names", name)
                half.facts.extend(CODEC.pack_value(fact) for _, fact in told)

    @rule(node=NODE, other=NODE)
    def advance(self, node: str, other: str) -> None:
        """Send a little more of the snapshot."""
        half = self.up[node].get(other)
        if half is not None and half.snapshot is not None:
            fact = half.snapshot.next()
            if fact is None:
                half.snapshot = None
            else:
                half.facts.append(CODEC.pack_value(fact[1]))

    @rule(node=NODE, other=NODE)
    def disconnect(self, node: str, other: str) -> None:
        """One side notices that the connection ended; what the other goes on sending is lost."""
        if other in self.up[node]:
            del self.up[node][other]
            self.perform(node, [*chain.from_iterable(self.tables[node].node_down(other))])

    @rule(node=NODE)
    def restart(self, node: str) -> None:
        for other in NODES:
            self.disconnect(node, other)
            self.disconnect(other, node)
        for key in [key for key in self.registered if key[1].node == node]:
            del self.registered[key]
        self.start(node)

    @rule(node=NODE, other=NODE, count=st.integers(1, 4))
    def deliver(self, node: str, other: str, count: int = 1) -> None:
        """Deliver what ``node`` has sent to ``other``, unless ``other`` has given up the connection."""
        half = self.up[node].get(other)
        if half is None or node not in self.up[other]:
            return
        incarnation = self.tables[node].incarnation
        for _ in range(min(count, len(half.facts))):
            fact = CODEC.unpack(half.facts.popleft())
            self.perform(other, self.tables[other].told(node, incarnation, fact))

    @rule()
    def heal_and_settle(self) -> None:
        """Everything is connected, and everything arrives: now all agree."""
        for one, two in itertools.combinations(NODES, 2):
            if (two in self.up[one]) is not (one in self.up[two]):
                self.disconnect(one, two)
                self.disconnect(two, one)
            self.connect(one, two)
        while any(half.facts or half.snapshot for halves in self.up.values() for half in halves.values()):
            for node, other in itertools.permutations(NODES, 2):
                self.advance(node, other)
                self.deliver(node, other, 4)
        first, *others = (table.holders() for table in self.tables.values())
        assert all(other == first for other in others)
        owners = {(name, claim.pid) for name, claim in first.items()}
        assert owners == set(self.registered), "who believes in its claim is who holds the name"
        assert len(owners) == len(first)

    # What always holds.

    @invariant()
    def looks_are_right(self) -> None:
        for node, table in getattr(self, "tables", {}).items():
            holders = table.holders()
            assert {name: (claim.pid, claim.meta) for name, claim in holders.items()} == self.watched[node]
            mine = {(name, claim.pid) for name, claim in holders.items() if claim.pid.node == node}
            assert mine == {key for key in self.registered if key[1].node == node}
            assert table.counts()[0] == len(mine), "a claim of its own always holds, or is withdrawn"
            assert {claim.pid.node for claim in holders.values()} <= {node, *self.up[node]}


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=45, stateful_step_count=60, deadline=None)


class LongerCluster(Cluster):
    """The same, with more examples."""


TestClusterForLonger = pytest.mark.long(LongerCluster.TestCase)
TestClusterForLonger.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
