"""Links and monitors of several nodes against a model that sees everything.

Signals between two nodes keep their order and take as long as they like; a connection ends on each
side at a time of its own, and what was on the way to that side is lost. The model knows for every act of
linking which nodes know of it, and for every monitor which process it has found. From that follows, for
each fact, exactly which processes get which signal.
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fleetlm.core.links import MAX_ACTS_PER_LINK, Deliver, Effect, Links, Stop, Target, Tell
from fleetlm.ids import Pid, Ref
from fleetlm.messages import Down, Exit
from fleetlm.names import Address
from fleetlm.wire.codec import Codec

NODES = [f"n@10.0.0.{number}" for number in (1, 2, 3)]
STRANGER = "n@10.0.9.9"
MOST_ALIVE = 2
"""On one node: few, so that the same two often meet."""
NOT_YET = object()
"""Stands for the exit reason of a process that is alive."""

node_numbers = st.integers(0, len(NODES) - 1)
which = st.integers(0, 30)
names = st.sampled_from(["x", "y"])
reasons = st.sampled_from(["normal", "shutdown", "kill", "boom", "noconnection", ("shutdown", 1)])
Act = tuple[str, int, int]
"""One act of linking: node and incarnation of the process that linked, and the act's number there."""
LOCAL: Act = ("", 0, 0)
"""Both ends are here."""


@dataclass
class Watch:
    """One monitor, as the model sees it."""

    owner: Pid
    target: Target
    found: Pid | None = None
    """The watched process, once the monitor has arrived at its node."""
    reason: Any = NOT_YET
    open: bool = True
    """Whether its `Down` is still to come."""


class Sim:
    """A node: its table, its processes, and the nodes that it is connected to."""

    def __init__(self, name: str, incarnation: int) -> None:
        self.name = name
        self.incarnation = incarnation
        self.alive: set[int] = set()
        self.trapping: set[int] = set()
        self.ending: dict[int, Any] = {}
        """Those that have been told to end, and clean up: number → reason."""
        self.dead: list[int] = []
        self.names: dict[str, int] = {}
        self.peers: dict[str, int] = {}
        self.watched: dict[Ref, int] = {}
        """The model's: monitors that have arrived here → the process they found."""
        self.refs = 0
        self.relations = Links(name, incarnation, self.alive.__contains__, self.peers.get)

    def pid(self, number: int) -> Pid:
        return Pid(self.name, self.incarnation, number)

    def lives(self, pid: Pid) -> bool:
        return pid.number in self.alive and pid == self.pid(pid.number)

    def tables(self) -> Any:
        relations = self.relations
        return copy.deepcopy((relations._ends, relations._owner_of, relations._watchers_of, relations._acts))


def nonsense(alive: list[int], pids: list[Pid], refs: list[Ref]) -> st.SearchStrategy[list[Any]]:
    """Signals of a node that keeps to no rule; some of them are allowed."""
    number = st.sampled_from([*alive, 0, -1, 99, 1 << 70])
    pid = st.sampled_from([Pid(STRANGER, 7, 1), Pid(STRANGER, 7, 2), Pid(STRANGER, 6, 1), *pids])
    ref = st.sampled_from([Ref(STRANGER, 7, 1), Ref(STRANGER, 7, 2), Ref(STRANGER, 6, 1), *refs])
    other = st.none() | st.floats() | st.text(max_size=2) | st.lists(number, max_size=2) | pid | ref | number
    shapes: list[list[st.SearchStrategy[Any]]] = [
        [st.just("link"), pid, number, number],
        [st.just("unlink"), pid, number, st.lists(number | other, max_size=3)],
        [st.sampled_from(["exit", "exit2"]), pid, number, reasons],
        [st.just("monitor"), ref, number | names],
        [st.just("demonitor"), ref, st.none()],
        [st.just("down"), ref, reasons],
    ]
    good = st.one_of([st.tuples(*shape) for shape in shapes])
    bad = [
        st.tuples(*(other if nth == place else each for nth, each in enumerate(shape)))
        for shape in shapes
        for place in range(len(shape))
    ]
    odd = st.lists(other, max_size=4) | st.tuples(*shapes[0][:3]) | st.tuples(*shapes[1], other)
    return st.one_of(good, *bad, odd).map(list)


class Cluster(RuleBasedStateMachine):
    """Processes that link, watch, and end, on nodes that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.codec = Codec()
        self.sims = [Sim(name, 1) for name in NODES]
        self.roads: dict[tuple[str, str], deque[bytes]] = {}
        """(from, to) → signals on the way; exists while the connection is up at the receiver."""
        self.ever: list[Pid] = []
        self.known: dict[tuple[Pid, Pid], set[Act]] = {}
        """(process, other) → the acts that link them, as far as the node of the first knows."""
        self.said: dict[tuple[Pid, Pid], str] = {}
        """(process, other) → what the first did last, while the two have been connected."""
        self.watches: dict[Ref, Watch] = {}
        self.heal()

    def sim(self, name: str) -> Sim:
        return self.sims[NODES.index(name)]

    def pick(self, index: int, nth: int) -> tuple[Sim, int]:
        """A living process of that node; of another one, if it has none; a new one, if there is none."""
        for sim in self.sims[index:] + self.sims[:index]:
            if sim.alive:
                return sim, sorted(sim.alive)[nth % len(sim.alive)]
        self.spawn(index)
        return self.pick(index, nth)

    def somebody(self, nth: int) -> Pid:
        """Mostly the living, sometimes one who was, or never was."""
        living = [sim.pid(number) for sim in self.sims for number in sorted(sim.alive)]
        others = [*living, *living, *living, *self.ever[-3:], Pid(NODES[0], 0, 1), Pid(NODES[1], 1, 99)]
        return others[nth % len(others)]

    # What the model expects.

    def signal(self, sim: Sim, number: int, sender: Pid, reason: Any) -> list[Effect]:
        if number in sim.trapping:
            return [Deliver(number, Exit(sender, reason))]
        return [] if reason == "normal" else [Stop(number, reason)]

    def absent(self, sim: Sim, target: Target) -> str:
        if target.node == sim.name:
            return "" if isinstance(target, Address) or sim.lives(target) else "noproc"
        if target.node not in sim.peers:
            return "noconnection"
        other = isinstance(target, Pid) and target.incarnation != sim.peers[target.node]
        return "noproc" if other else ""

    def fires(self, ref: Ref) -> list[Effect]:
        watch = self.watches[ref]
        watch.open = False
        return [Deliver(watch.owner.number, Down(ref, watch.target, watch.reason))]

    def asked(self, sim: Sim, sender: Pid, number: int, reason: Any) -> list[Effect]:
        if number not in sim.alive:
            return []
        if reason == "kill":
            return [Stop(number, "killed", at_once=True)]
        if reason == "normal" and sender == sim.pid(number) and number not in sim.trapping:
            return [Stop(number, "normal")]
        return self.signal(sim, number, sender, reason)

    def perform(
        self, sim: Sim, effects: list[Effect], expected: list[Effect], after: int | None = None
    ) -> None:
        """Check the effects, and perform them."""
        told = [effect for effect in effects if isinstance(effect, Tell)]
        heard = [effect for effect in effects if not isinstance(effect, Tell)]
        assert sorted(map(repr, heard)) == sorted(map(repr, expected))
        for tell in told:
            if tell.signal[-1] == "noproc":  # Behind what an ended process has sent.
                assert tell.after not in sim.alive
            else:
                assert tell.after == (after or 0), "behind what its process has sent, and nobody else's"
            if tell.node in sim.peers and (sim.name, tell.node) in self.roads:
                self.roads[sim.name, tell.node].append(self.codec.pack_value(tell.signal))
        for effect in heard:
            assert effect.number in sim.alive, "nobody is left to hear it"
            if isinstance(effect, Stop) and effect.at_once:
                self.ends(sim, effect.number, effect.reason)
            elif isinstance(effect, Stop):
                sim.ending.setdefault(effect.number, effect.reason)

    def ends(self, sim: Sim, number: int, reason: Any) -> None:
        me = sim.pid(number)
        sim.alive.discard(number)
        sim.trapping.discard(number)
        sim.ending.pop(number, None)
        sim.dead.append(number)
        sim.names = {name: owner for name, owner in sim.names.items() if owner != number}
        expected: list[Effect] = []
        for here, other in [pair for pair in self.known if pair[0] == me]:
            acts = self.known.pop((here, other))
            if acts and other.node == sim.name:
                del self.known[other, me]
                expected += self.signal(sim, other.number, me, reason)
        for ref, watch in self.watches.items():
            if watch.owner == me:
                watch.open = False
                sim.watched.pop(ref, None)
        for ref in [ref for ref, found in sim.watched.items() if found == number]:
            del sim.watched[ref]
            self.watches[ref].reason = reason
            if ref.node == sim.name:
                expected += self.fires(ref)
        effects = [*chain.from_iterable(sim.relations.exited(number, reason))]
        self.perform(sim, effects, expected, number)
        assert [*sim.relations.exited(number, reason)] == [], "once"

    # What processes do.

    @rule(index=node_numbers)
    def spawn(self, index: int) -> None:
        sim = self.sims[index]
        if len(sim.alive) < MOST_ALIVE:
            number = len(sim.alive) + len(sim.dead) + 1
            sim.alive.add(number)
            self.ever.append(sim.pid(number))

    @rule(index=node_numbers, nth=which, name=names)
    def register(self, index: int, nth: int, name: str) -> None:
        sim, number = self.pick(index, nth)
        sim.names[name] = number

    @rule(index=node_numbers, nth=which, on=st.booleans())
    def trap(self, index: int, nth: int, on: bool) -> None:
        sim, number = self.pick(index, nth)
        sim.relations.trapped(number, on)
        (sim.trapping.add if on else sim.trapping.discard)(number)

    @rule(index=node_numbers, nth=which, other=which, back=st.booleans())
    def link(self, index: int, nth: int, other: int, back: bool) -> None:
        """Also from both sides at the same time."""
        sim, number = self.pick(index, nth)
        me, them = sim.pid(number), self.somebody(other)
        self.links(sim, number, them)
        there = self.sim(them.node)
        if back and there.lives(them):
            self.links(there, them.number, me)

    def links(self, sim: Sim, number: int, them: Pid) -> None:
        me, absent = sim.pid(number), self.absent(sim, them)
        effects, expected = sim.relations.linked(number, them), []
        acts = self.known.get((me, them), set())
        if me == them or any(act[:2] in ((sim.name, sim.incarnation), LOCAL[:2]) for act in acts):
            assert effects == [], "a second link is the first"
        elif absent:
            expected = self.signal(sim, number, them, absent)
        elif them.node == sim.name:
            self.known[me, them], self.known[them, me] = {LOCAL}, {LOCAL}
        else:
            (tell,) = effects
            assert isinstance(tell, Tell)
            self.known[me, them] = {*acts, (sim.name, sim.incarnation, tell.signal[-1])}
        if not absent:
            self.said[me, them] = "link"
        self.perform(sim, effects, expected, number)

    @rule(index=node_numbers, nth=which, other=which)
    def unlink_anybody(self, index: int, nth: int, other: int) -> None:
        sim, number = self.pick(index, nth)
        self.unlinks(sim, number, self.somebody(other))

    @rule(nth=which, again=st.booleans())
    def unlink(self, nth: int, again: bool) -> None:
        """Also with a new link behind it, which an unlink of the other side may cross."""
        if not self.known:
            return
        me, them = sorted(self.known, key=str)[nth % len(self.known)]
        sim = self.sim(me.node)
        self.unlinks(sim, me.number, them)
        if again:
            self.links(sim, me.number, them)

    def unlinks(self, sim: Sim, number: int, them: Pid) -> None:
        me = sim.pid(number)
        effects = sim.relations.unlinked(number, them)
        if self.known.pop((me, them), None) and them.node == sim.name:
            del self.known[them, me]
        if not self.absent(sim, them):
            self.said[me, them] = "unlink"
        self.perform(sim, effects, [], number)

    @rule(index=node_numbers, nth=which, other=which, name=st.none() | names)
    def monitor(self, index: int, nth: int, other: int, name: str | None) -> None:
        sim, number = self.pick(index, nth)
        sim.refs += 1
        ref = Ref(sim.name, sim.incarnation, sim.refs)
        them = self.somebody(other)
        target: Target = them if name is None else Address(name, them.node)
        watch = self.watches[ref] = Watch(sim.pid(number), target)
        owner = sim.names.get(name) if name is not None and them.node == sim.name else None
        effects = sim.relations.monitored(number, ref, target, owner)
        absent, expected = self.absent(sim, target), []
        if not absent and target.node == sim.name:
            absent = self.found(sim, ref, owner if isinstance(target, Address) else target.number)
        if absent:
            watch.reason = absent
            expected = self.fires(ref)
        self.perform(sim, effects, expected, number)

    def found(self, sim: Sim, ref: Ref, number: int | None) -> str:
        """A monitor has come to the node of its target."""
        if number not in sim.alive or number is None:
            return "noproc"
        self.watches[ref].found = sim.pid(number)
        sim.watched[ref] = number
        return ""

    @rule(nth=which)
    def demonitor(self, nth: int) -> None:
        """Any monitor, also one that has fired or crosses its `Down`."""
        if not self.watches:
            return
        ref = sorted(self.watches, key=str)[-1 - nth % len(self.watches)]
        watch = self.watches[ref]
        sim = self.sim(watch.owner.node)
        if sim.incarnation == ref.incarnation:
            watch.open = False
            if watch.target.node == sim.name:
                sim.watched.pop(ref, None)
            number = watch.owner.number
            self.perform(sim, sim.relations.demonitored(number, ref), [], number)

    @rule(steps=st.lists(st.tuples(st.sampled_from("lumxd"), node_numbers, which, which), max_size=10))
    def talk(self, steps: list[tuple[str, int, int, int]]) -> None:
        """Much at a time, so that it crosses."""
        for step, index, nth, other in steps:
            match step:
                case "l":
                    self.link(index, nth, other, back=other % 3 == 0)
                case "u":
                    self.unlink(nth, again=other % 2 == 0)
                case "m":
                    self.monitor(index, nth, other, None)
                case "x":
                    self.demonitor(nth)
                case "d":
                    self.deliver([nth, other])

    @rule(index=node_numbers, nth=which, reason=reasons)
    def exit(self, index: int, nth: int, reason: Any) -> None:
        sim, number = self.pick(index, nth)
        self.ends(sim, number, reason)

    @rule(index=node_numbers, nth=which, other=which, reason=reasons)
    def exit_other(self, index: int, nth: int, other: int, reason: Any) -> None:
        sim, number = self.pick(index, nth)
        me, them = sim.pid(number), self.somebody(other)
        here = them.node == sim.name and them.incarnation == sim.incarnation
        expected = self.asked(sim, me, them.number, reason) if here else []
        effects = sim.relations.asked_to_exit(me, them, reason)
        assert any(isinstance(effect, Tell) for effect in effects) is (
            not here and not self.absent(sim, them)
        )
        self.perform(sim, effects, expected, number)

    @rule(nth=which)
    def perish(self, nth: int) -> None:
        """One of those that were told to end has done so."""
        ending = [(sim, number) for sim in self.sims for number in sorted(sim.ending)]
        if ending:
            sim, number = ending[nth % len(ending)]
            self.ends(sim, number, sim.ending[number])

    @rule(index=node_numbers, nth=which, other=which)
    def haunt(self, index: int, nth: int, other: int) -> None:
        """A killed process cleans up: what it does changes nothing, but a process that it links with ends."""
        sim = self.sims[index]
        if not sim.dead:
            return
        number, them = sim.dead[nth % len(sim.dead)], self.somebody(other)
        me, ref, before = sim.pid(number), Ref(sim.name, sim.incarnation, 10_000), sim.tables()
        expected = self.signal(sim, them.number, me, "noproc") if sim.lives(them) else []
        effects = sim.relations.linked(number, them)
        assert sim.relations.unlinked(number, them) == []
        assert sim.relations.monitored(number, ref, them, None) == []
        assert sim.relations.demonitored(number, ref) == []
        sim.relations.trapped(number, True)
        assert sim.tables() == before
        self.perform(sim, effects, expected)

    # What connections do.

    def heal(self) -> None:
        """All nodes are connected, and none is missing."""
        for one in range(len(NODES)):
            for _ in range(MOST_ALIVE):
                self.spawn(one)
            for other in range(one):
                if not self.connected(NODES[one], NODES[other]):
                    self.disconnect(one, other)
                    self.disconnect(other, one)
                    self.connect(one, other)

    @rule(one=node_numbers, other=node_numbers)
    def connect(self, one: int, other: int) -> None:
        first, second = self.sims[one], self.sims[other]
        if first is second or first.name in second.peers or second.name in first.peers:
            return  # The old connection must be over on both sides.
        for here, there in ((first, second), (second, first)):
            here.peers[there.name] = there.incarnation
            self.roads[here.name, there.name] = deque()

    @rule(one=node_numbers, other=node_numbers)
    def disconnect(self, one: int, other: int) -> None:
        """One side notices that the connection ended. The other notices later, and receives until then."""
        sim, lost = self.sims[one], self.sims[other].name
        if lost not in sim.peers:
            return
        del sim.peers[lost], self.roads[lost, sim.name]
        expected: list[Effect] = []
        for me, them in [pair for pair in self.known if pair[0].node == sim.name and pair[1].node == lost]:
            if self.known.pop((me, them)):
                expected += self.signal(sim, me.number, them, "noconnection")
        for ref, watch in self.watches.items():
            if watch.open and watch.owner.node == sim.name and watch.target.node == lost:
                watch.reason = "noconnection"
                expected += self.fires(ref)
        sim.watched = {ref: number for ref, number in sim.watched.items() if ref.node != lost}
        self.said = {
            pair: last for pair, last in self.said.items() if {pair[0].node, pair[1].node} != {sim.name, lost}
        }
        self.perform(sim, [*chain.from_iterable(sim.relations.node_down(lost))], expected)
        assert [*chain.from_iterable(sim.relations.node_down(lost))] == [], "once"

    @rule(index=node_numbers, other=node_numbers)
    def restart(self, index: int, other: int) -> None:
        """A node crashes without a signal of its processes, and then connects to one of the others again."""
        sim = self.sims[index]
        for peer in range(len(NODES)):
            if NODES[peer] in sim.peers:
                del sim.peers[NODES[peer]], self.roads[NODES[peer], sim.name]
            self.disconnect(peer, index)
        self.known = {pair: acts for pair, acts in self.known.items() if pair[0].node != sim.name}
        for watch in self.watches.values():
            watch.open &= watch.owner.node != sim.name
        self.sims[index] = Sim(sim.name, sim.incarnation + 1)
        self.spawn(index)
        self.connect(index, other)

    @rule(roads=st.lists(which, min_size=1, max_size=6))
    def deliver(self, roads: list[int]) -> None:
        for nth in roads:
            busy = sorted(road for road, signals in self.roads.items() if signals)
            if busy:
                self.arrive(*busy[nth % len(busy)])

    def arrive(self, sender: str, receiver: str) -> None:
        if not self.roads.get((sender, receiver)):
            return
        sim = self.sim(receiver)
        signal = self.codec.unpack(self.roads[sender, receiver].popleft())
        incarnation = sim.peers[sender]
        expected = self.arrived(sim, sender, signal)
        self.perform(sim, sim.relations.told(sender, incarnation, signal, sim.names.get), expected)

    def arrived(self, sim: Sim, sender: str, signal: list[Any]) -> list[Effect]:
        match signal:
            case ["link", them, number, act]:
                if number in sim.alive:
                    acts = self.known.setdefault((sim.pid(number), them), set())
                    acts.add((them.node, them.incarnation, act))
                    assert len(acts) <= 2, "one of each side"
            case ["unlink", them, number, acts]:
                pair, here = (sim.pid(number), them), (sim.name, sim.incarnation)
                ended = {(*here, -act) if act < 0 else (sender, sim.peers[sender], act) for act in acts}
                if pair in self.known:
                    self.known[pair] -= ended
            case ["exit", them, number, reason]:
                if self.known.pop((sim.pid(number), them), None):
                    return self.signal(sim, number, them, reason)
            case ["exit2", them, number, reason]:
                return self.asked(sim, them, number, reason)
            case ["monitor", ref, key]:
                number = sim.names.get(key) if isinstance(key, str) else key
                self.watches[ref].reason = self.found(sim, ref, number) or NOT_YET
            case ["demonitor", ref, None]:
                sim.watched.pop(ref, None)
            case ["down", ref, reason]:
                assert self.watches[ref].reason == reason
                return self.fires(ref) if self.watches[ref].open else []
            case _:
                raise AssertionError(signal)
        return []

    # Peers that do not keep to the rules.

    @rule(index=node_numbers, data=st.data())
    def hear_nonsense(self, index: int, data: st.DataObject) -> None:
        """Each signal changes the table or raises; one that raised has changed nothing."""
        sim = self.sims[index]
        sim.peers[STRANGER] = 7
        mine = [sim.pid(number) for number in sorted(sim.alive)] + self.ever[-3:]
        signals = [*data.draw(st.lists(nonsense(sorted(sim.alive), mine, list(self.watches)), max_size=8))]
        signals += [
            ["link", Pid(STRANGER, 7, 1), number, act]
            for number in sim.alive
            for act in range(MAX_ACTS_PER_LINK + 1)
        ]
        signals += [["monitor", Ref(STRANGER, 7, 1), number] for number in sim.alive]
        before = sim.tables()
        for signal in signals:
            at_first = sim.tables()
            try:
                effects = sim.relations.told(STRANGER, 7, signal, sim.names.get)
            except ValueError:
                assert sim.tables() == at_first
                continue
            about = signal[1]
            assert isinstance(about, Pid | Ref)
            if signal[0] == "down":
                assert (about.node, about.incarnation) == (sim.name, sim.incarnation)
                assert (effects, sim.tables()) == ([], at_first), "it is for another node to say"
            else:
                assert (about.node, about.incarnation) == (STRANGER, 7), "a node speaks for its own"
            assert all(effect.node == STRANGER for effect in effects if isinstance(effect, Tell))
        links = [acts for ends in sim.relations._ends.values() for acts in ends.links.values()]
        assert all(len(acts) <= MAX_ACTS_PER_LINK for acts in links)
        for _ in sim.relations.node_down(STRANGER):
            pass
        del sim.peers[STRANGER]
        for number in set(sim.relations._ends) - set(before[0]):  # One that is in nothing is as none.
            ends = sim.relations._ends.pop(number)
            assert (ends.links, ends.monitors, ends.watchers) == ({}, {}, {})
        assert sim.tables() == before

    # What must hold.

    @invariant()
    def tables_are_as_the_model_says(self) -> None:
        for sim in self.sims:
            ends = sim.relations._ends
            linked = {(sim.pid(number), other) for number, each in ends.items() for other in each.links}
            assert linked == {pair for pair, acts in self.known.items() if acts and pair[0].node == sim.name}
            owned = {ref for ref, watch in self.watches.items() if watch.open and ref.node == sim.name}
            assert set(sim.relations._owner_of) == owned
            assert sim.relations._watchers_of == sim.watched
            assert sim.relations.counts() == (len(linked), len(owned) + len(sim.watched))
            assert {number for number in sim.alive if sim.relations.traps(number)} == sim.trapping
            assert set(ends) <= sim.alive, "nothing is kept of those that have ended"

    @rule()
    def settle_and_heal(self) -> None:
        self.settle()
        self.heal()

    def settle(self) -> None:
        """Once everything has arrived, both ends agree."""
        while any(self.roads.values()):
            for sender, receiver in list(self.roads):
                self.arrive(sender, receiver)
        for (me, them), acts in self.known.items():
            if me.node == them.node or self.connected(me.node, them.node):
                assert bool(acts) is bool(self.known.get((them, me)))
        for (me, them), last in self.said.items():
            if self.sim(me.node).lives(me) and self.sim(them.node).lives(them) and me != them:
                lasts = {last, self.said.get((them, me), last)}
                if me.node == them.node or not self.connected(me.node, them.node) or len(lasts) == 2:
                    continue
                assert bool(self.known.get((me, them))) is (lasts == {"link"})
        for ref, watch in self.watches.items():
            if watch.open and self.connected(watch.owner.node, watch.target.node):
                assert watch.reason is NOT_YET, "it has ended, and nobody hears of it"
                assert watch.found is not None
                assert ref in self.sim(watch.found.node).watched
        for sim in self.sims:
            for ref in sim.watched:
                if self.connected(ref.node, sim.name):
                    assert self.watches[ref].open, "nobody waits for it"

    def connected(self, one: str, other: str) -> bool:
        return one == other or (other in self.sim(one).peers and one in self.sim(other).peers)

    def teardown(self) -> None:
        self.settle()
        for sim in self.sims:
            for number in sorted(sim.alive):
                if number in sim.alive:
                    self.ends(sim, number, sim.ending.get(number, "normal"))
        self.settle()
        for sim in self.sims:
            assert sim.tables()[:3] == ({}, {}, {})
        assert not any(watch.open for watch in self.watches.values())


TestCluster = pytest.mark.deadline(60)(Cluster.TestCase)
TestCluster.settings = settings(max_examples=30, stateful_step_count=50, deadline=None)


class LongerCluster(Cluster):
    """The same, with more examples."""


TestClusterForLonger = pytest.mark.long(LongerCluster.TestCase)
TestClusterForLonger.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
