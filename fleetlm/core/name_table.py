"""Cluster-wide names: which processes claim a name, which claim holds, and which is withdrawn.

The node of a process *claims* a name for it, alone and at once, and tells every other node. Two nodes that
have not heard of each other's claim, at the same moment or on two sides of a partition, may both claim one
name. Then, on every node that sees both claims:

- the rule (`Decide`, by default `older`) picks one of them from the claims alone. All nodes pick the same
  one, and show it as the *holder*;
- the node of the other claim, and no other node, withdraws that claim, tells all nodes so, and tells the
  process (`Lose`): it gets `NameLost` as an exit signal or as a message.

A claim is told by its own node alone, to each node when it connects and then at every change, and is
dropped when the connection to that node ends. So nothing is merged, locked or waited for, and a name dies
with its process or its node. While nodes are disconnected, each side may have a holder of its own; that is
the price of not waiting.

A mesh need not be transitive: where only the path between two nodes is cut, each of them sees its own claim
alone, while the others see both. So a node that sees a claim outdone, and not withdrawn until the next pulse
but one, tells the node of that claim which claim outdoes it (``outdone``), and tells it again when that one
goes (``cleared``). The node that is told regards the claim as it would one that it sees itself, as long as it
is not connected to the claim's node: it withdraws its own claim, and shows the other one as the holder. Only
what a node sees itself is told onwards. The limit: two claims that no node sees both at once, such as at the
two ends of a chain of four, both hold.

States of a name here: no claim; one claim, which holds; several claims, of which the rule's choice holds
until the others are withdrawn by their nodes. `_settle` is the only place that moves a name between them.

Facts on the wire (topic ``names`` of `wire.operations.table`): ``["has", [[name, number, packed meta,
since_ms], ...]]`` and ``["gone", name, why]``. They have numbers instead of pids, so that a node cannot
claim a name for another node's process. To one node: ``["outdone", node, incarnation, [name, number, packed
meta, since_ms]]`` and ``["cleared", name, why]``. Facts go in, effects come out; `directory.registry`
performs them.

Source: OTP global.erl, where a conflict is resolved when nodes meet; differs: no lock on all nodes, the
node of the loser acts, and the loser gets a reason that it can trap.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, KeysView
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from operator import itemgetter
from typing import Any, Literal

from fleetlm.errors import AlreadyRegistered, TooManyNames
from fleetlm.ids import Pid
from fleetlm.messages import Registered, Unregistered
from fleetlm.names import MAX_PROCESS_NAME_LENGTH, check_process_name
from fleetlm.records import Record
from fleetlm.settings import Settings
from fleetlm.texts import SHORT
from fleetlm.wire.weights import MAX_TIMES_KEPT, Scale

OnLoss = Literal["exit", "message"]

MAX_NODE_LENGTH = 128
"""Characters of a node's name: a basename of 64, and an address."""
MAX_WHY_LENGTH = 64
"""Characters of the reason with which a peer gives up a name; those of this version are shorter than 16."""
HEARD_SHARE = 8
"""One node may tell of claims of third nodes: an eighth of what it may claim itself; there are few."""
MAX_PIECE_CLAIMS = 200
"""Claims in one fact of a snapshot: about a millisecond's work for the node that takes it."""
MAX_TOLD_CLAIMS = 5 * MAX_PIECE_CLAIMS
"""Claims that are taken of one fact of a peer. More would be taken without a pause."""
MAX_LOOKED_AT = 500
"""Names with several claims that one pulse looks at, in some 5 ms: two peers may claim the same 65,536."""
_NUMBER_END = 1 << 64
"""Numbers of processes, and milliseconds since 1970, are below this."""
_MAX_ROW_OVERHEAD_BYTES = 40
"""Upper bound of a claim's bytes on the wire without its name and meta."""


class Claim(Record):
    """The claim of a process to a cluster-wide name.

    Attributes:
        name: the name.
        pid: of the process.
        meta: the value it was registered with; must not be changed. None if it is of a type that this
            node does not know.
        since_ms: the wall clock of its node when it was registered, in milliseconds. It serves only to
            order competing claims, and to be shown.
    """

    name: str
    pid: Pid
    meta: Any
    since_ms: int


Decide = Callable[[Claim, Claim], Claim]
"""Returns the winner of two claims, given in the order of `rank`. It must depend on the claims only."""


def rank(claim: Claim) -> tuple[int, str, int, int]:
    """The sort key of claims to one name: a total order, the same on all nodes whatever their clocks say."""
    return claim.since_ms, claim.pid.node, claim.pid.incarnation, claim.pid.number


def older(first: Claim, second: Claim) -> Claim:
    """The default rule: the process that registered the name first keeps it."""
    return min(first, second, key=rank)


class Tell(Record):
    """Send this fact to every connected node, or to one."""

    fact: list[Any]
    to: str | None = None


class Say(Record):
    """Publish an event to the subscriptions of this node."""

    event: Registered | Unregistered


class Lose(Record):
    """Tell a process of this node that its claim was withdrawn."""

    claim: Claim
    winner: Pid
    on_loss: OnLoss


Effect = Tell | Say | Lose


@dataclass(slots=True)
class _Held:
    """A claim in the table, as its node has told it."""

    claim: Claim
    packed: bytes
    """The meta as it travels; the program may have changed the value since."""
    extra_bytes: int = 0
    """What the meta weighs beside its bytes (`wire.weights`)."""
    on_loss: OnLoss = "exit"

    @property
    def size(self) -> int:
        return len(self.claim.name.encode()) + len(self.packed) + _MAX_ROW_OVERHEAD_BYTES

    @property
    def row(self) -> list[Any]:
        return [self.claim.name, self.claim.pid.number, self.packed, self.claim.since_ms]


@dataclass(slots=True)
class _Claims:
    """The claims of one node."""

    held: dict[str, _Held] = field(default_factory=dict)
    """Name → the claim."""
    size: int = 0
    """Bytes of all claims on the wire, at most."""
    extra_bytes: int = 0
    """What all metas weigh beside their bytes."""

    def put(self, held: _Held) -> None:
        """Enter a claim, in the place of the former one to that name."""
        former = self.held.get(held.claim.name)
        self.size += held.size - (0 if former is None else former.size)
        self.extra_bytes += held.extra_bytes - (0 if former is None else former.extra_bytes)
        self.held[held.claim.name] = held

    def take(self, name: str) -> _Held:
        """Take the claim to a name away, which must exist, and return it."""
        held = self.held.pop(name)
        self.size -= held.size
        self.extra_bytes -= held.extra_bytes
        return held


_NONE = _Claims()
"""The claims of a node that has told nothing yet; never written to."""


class NameTable:
    """All claims, as this node knows them.

    Args:
        node: this node's name.
        incarnation: of this start of the node.
        settings: for `max_cluster_names`, `max_names_bytes` and `max_meta_bytes`.
        read: rebuilds a packed meta; raises ValueError for bytes that are malformed.
        decide: the rule for two claims; returns one of them.
        connected: returns whether the node of that name is connected.
        before_change: called with a name before this node's claim to it changes.
    """

    def __init__(
        self,
        node: str,
        incarnation: int,
        settings: Settings,
        read: Callable[[bytes], Any],
        decide: Decide = older,
        connected: Callable[[str], bool] = lambda _: False,
        before_change: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.node = node
        self.incarnation = incarnation
        self._settings = settings
        self._read = read
        self._scale = Scale()
        self._decide = decide
        self._connected = connected
        self._before_change = before_change
        self._own = _Claims()
        self._claims_of: dict[str, _Claims] = {node: self._own}
        """Node → its claims; this node's are among them."""
        self._claims: dict[str, dict[str, _Held]] = {}
        """Name → node → its claim."""
        self._heard: dict[str, dict[str, _Held]] = {}
        """Name → node that told → a claim of a third node, which outdoes one of this node."""
        self._heard_from: dict[str, _Claims] = {}
        """Node that told → these claims."""
        self._contested: dict[str, None] = {}
        """Names that had several claims when they were settled last, in the order of the looks at them."""
        self._suspects: dict[str, set[tuple[Any, ...]]] = {}
        """Name → what was outdone at the last look at it: node, rank of its claim, rank of the winner."""
        self._told: dict[str, dict[str, Claim]] = {}
        """Name → node → the claim that it was told of, because it outdoes the claim of that node."""
        self._holders: dict[str, Claim] = {}
        self._names_of: dict[int, dict[str, None]] = {}
        """Number of a process of this node → its names."""

    # Queries.

    def holder(self, name: str) -> Claim | None:
        """Return the claim that holds a name, as this node sees it, or None."""
        return self._holders.get(name)

    def holders(self) -> dict[str, Claim]:
        """Return the claims that hold, sorted by name."""
        return dict(sorted(self._holders.items()))

    @property
    def count(self) -> int:
        """How many names have a holder."""
        return len(self._holders)

    def first(self, most: int, looked_at: int) -> list[tuple[str, Claim]]:
        """Return the holders of the first ``most`` names, of the ``looked_at`` oldest ones."""
        return heapq.nsmallest(most, islice(self._holders.items(), looked_at), key=itemgetter(0))

    def counts(self) -> tuple[int, int]:
        """Return the numbers of claims of this node and of others; for `Node.info` and checks for leaks."""
        own = len(self._own.held)
        return own, sum(len(claims.held) for claims in self._claims_of.values()) - own

    def own_keys(self) -> KeysView[str]:
        """Return the names that this node claims."""
        return self._own.held.keys()

    def own_facts(self, names: Iterable[str], piece_bytes: int) -> Iterator[list[Any]]:
        """Return claims of this node as facts of `MAX_PIECE_CLAIMS` and about ``piece_bytes`` at most.

        A claim that is larger than ``piece_bytes`` is a fact of its own.
        """
        rows: list[list[Any]] = []
        size = 0
        for name in names:
            held = self._own.held.get(name)
            if held is None:
                continue
            if len(rows) == MAX_PIECE_CLAIMS or (rows and size + held.size > piece_bytes):
                yield ["has", rows]
                rows, size = [], 0
            rows.append(held.row)
            size += held.size
        if rows:
            yield ["has", rows]

    # Facts about this node.

    def claimed(
        self, name: str, number: int, packed: bytes, since_ms: int, on_loss: OnLoss = "exit"
    ) -> list[Effect]:
        """Claim a name for a living process of this node.

        A second claim by the same process replaces the meta and keeps the age.

        Raises:
            AlreadyRegistered: another process holds the name, as this node sees it.
            TooManyNames: this node has as many names as it may, or they are too large together.
            InvalidName: ``name`` is not a name.
            ValueError: the meta cannot be read. In all cases nothing changed.
        """
        pid = Pid(self.node, self.incarnation, number)
        holder = self._holders.get(check_process_name(name))
        if holder is not None and holder.pid != pid:
            raise AlreadyRegistered(name, holder.pid)
        former = self._own.held.get(name)
        if former is not None and former.packed == packed:
            former.on_loss = on_loss
            return []
        since_ms = since_ms if former is None else former.claim.since_ms
        meta = self._read(packed)
        held = _Held(Claim(name, pid, meta, since_ms), packed, self._scale.extra_of(packed), on_loss)
        excess = self._describe_excess(self._own, [held])
        if excess:
            raise TooManyNames(name, self.node, excess)
        self._add(self.node, held)
        self._names_of.setdefault(number, {})[name] = None
        return [Tell(["has", [held.row]]), *self._settle(name, "changed")]

    def disclaimed(self, name: str, pid: Pid | None = None, why: str = "unregistered") -> list[Effect]:
        """Give up a name if process ``pid`` of this node claims it (None: any process of this node)."""
        held = self._own.held.get(name)
        if held is None or pid not in (None, held.claim.pid):
            return []
        self._remove(self.node, name)
        return [Tell(["gone", name, why]), *self._settle(name, why)]

    def exited(self, number: int) -> list[Effect]:
        """A process of this node has ended: give up its names."""
        names = self._names_of.get(number)
        if names is None:
            return []
        return [effect for name in list(names) for effect in self.disclaimed(name, why="exited")]

    def reviewed(self) -> list[Effect]:
        """The rule has changed: decide again for every name with several claims."""
        contested = [name for name, claims in self._claims.items() if len(claims) > 1]
        return [effect for name in contested for effect in self._settle(name, "lost")]

    def pulsed(self) -> list[Effect]:
        """About a second has passed: tell the nodes whose claims are outdone still and not withdrawn.

        A node that sees the winner itself withdraws its claim within a round trip, so in a full mesh nothing
        is ever told. Of more than `MAX_LOOKED_AT` names with several claims each waits for its turn.
        """
        effects: list[Effect] = []
        for name in list(islice(self._contested, MAX_LOOKED_AT)):
            del self._contested[name]
            before = self._suspects.pop(name, ())
            competing = self._claims.get(name, {})
            best = self._pick_best(name)
            winner = None if best is None else competing.get(best.pid.node)
            if len(competing) < 2 or best is None or winner is None or winner.claim is not best:
                continue
            self._contested[name] = None
            suspects = self._suspects[name] = set()
            for node, held in competing.items():
                suspect = (node, rank(held.claim), rank(best))
                if node in (self.node, best.pid.node):
                    continue
                suspects.add(suspect)
                told = self._told.setdefault(name, {})
                if suspect in before and told.get(node) is not best:
                    told[node] = best
                    effects.append(_tell_of(winner, node))
        return effects

    # Facts about other nodes.

    def told(self, node: str, incarnation: int, fact: Any) -> list[Effect]:
        """A connected node told a fact about its own claims.

        Raises:
            ValueError: the fact is malformed, contradicts what the node told before, or exceeds a limit;
                nothing changed.
        """
        match fact:
            case ["has", [*rows]] if node != self.node and len(rows) <= MAX_TOLD_CLAIMS:
                return self._take_claims(node, incarnation, rows)
            case ["gone", str(name), str(why)] if node != self.node and len(why) <= MAX_WHY_LENGTH:
                if name in self._claims_of.get(node, _NONE).held:
                    self._remove(node, name)
                    return self._settle(name, why)
            case ["outdone", str(owner), int(of), row] if node != self.node:
                return self._take_outdone(node, owner, of, row)
            case ["cleared", str(name), str(why)] if node != self.node and len(why) <= MAX_WHY_LENGTH:
                return self._forget_heard(node, name, why)
        raise ValueError(f"{SHORT.repr(fact)} is not a fact about names")

    def node_down(self, node: str) -> Iterator[list[Effect]]:
        """The connection is over: drop all claims that the node told, one with each step.

        There may be `Settings.max_cluster_names` of them, so the caller takes the steps in slices.
        """
        for name in list(self._claims_of.get(node, _NONE).held):
            self._remove(node, name)
            yield self._settle(name, "noconnection")
        self._claims_of.pop(node, None)
        for told in self._told.values():
            told.pop(node, None)
        for name in [name for name, tellers in self._heard.items() if node in tellers]:
            yield self._forget_heard(node, name, "noconnection")

    # Internals.

    def _take_outdone(self, node: str, owner: str, incarnation: int, row: Any) -> list[Effect]:
        """Enter the claim of a third node, of which a connected node tells. Raises: ValueError."""
        if type(incarnation) is not int or not 0 < incarnation < _NUMBER_END or len(owner) > MAX_NODE_LENGTH:
            raise ValueError(f"{SHORT.repr(owner)} is not a node")
        held = self._read_claim(owner, incarnation, row)
        name = held.claim.name
        if owner in (self.node, node) or self._connected(owner):
            return []  # It is for that node to say, and this one hears it.
        told = self._heard_from.get(node, _NONE)
        if name not in told.held and len(told.held) >= self._settings.max_cluster_names // HEARD_SHARE:
            raise ValueError("too many names that are claimed elsewhere")
        excess = self._describe_excess(told, [held])
        if excess:
            raise ValueError(f"too many names that are claimed elsewhere: {excess}")
        tellers = self._heard.setdefault(name, {})
        same = (
            other for other in tellers.values() if other.row == held.row and other.claim.pid == held.claim.pid
        )
        tellers[node] = held = next(same, held)  # Several nodes may tell of one claim, and it is one.
        self._heard_from.setdefault(node, _Claims()).put(held)
        return self._settle(name, "changed")

    def _forget_heard(self, node: str, name: str, why: str) -> list[Effect]:
        """A connected node does not see a claim any more of which it told this node, or is gone itself."""
        tellers = self._heard.get(name, {})
        if tellers.pop(node, None) is None:
            return []
        heard = self._heard_from[node]
        heard.take(name)
        if not heard.held:
            del self._heard_from[node]
        if not tellers:
            del self._heard[name]
        return self._settle(name, why)

    def _clear(self, name: str, why: str) -> list[Effect]:
        """Tell those who were told of a claim to ``name`` that it has gone, or changed."""
        told = self._told.get(name)
        if told is None:
            return []
        effects: list[Effect] = []
        for node, claim in list(told.items()):
            now = self._claims.get(name, {}).get(claim.pid.node)
            if now is None or now.claim.pid != claim.pid:
                del told[node]
                effects.append(Tell(["cleared", name, why], node))
            elif now.claim is not claim:  # It has another meta.
                told[node] = now.claim
                effects.append(_tell_of(now, node))
        if not told:
            del self._told[name]
        return effects

    def _take_claims(self, node: str, incarnation: int, rows: list[Any]) -> list[Effect]:
        """Enter claims of another node; all of them are checked before the first is entered."""
        claims = self._claims_of.get(node, _NONE)
        told: dict[str, _Held] = {}
        for row in rows:
            held = self._read_claim(node, incarnation, row)
            claim = held.claim
            former = claims.held.get(claim.name)
            if claim.name in told or (former is not None and rank(former.claim) != rank(claim)):
                raise ValueError(f"{SHORT.repr(claim.name)} is claimed twice")
            told[claim.name] = held
        excess = self._describe_excess(claims, list(told.values()))
        if excess:
            raise ValueError(f"too many names: {excess}")
        for held in told.values():
            self._add(node, held)
        return [effect for name in told for effect in self._settle(name, "changed")]

    def _read_claim(self, node: str, incarnation: int, row: Any) -> _Held:
        """Check one row of a fact. Raises: ValueError."""
        match row:
            case [str(name), int(number), bytes(packed), int(since_ms)]:
                counts = type(number) is type(since_ms) is int
                if (
                    counts
                    and 0 < number < _NUMBER_END
                    and 0 <= since_ms < _NUMBER_END
                    and len(name) <= MAX_PROCESS_NAME_LENGTH
                    and len(packed) <= self._settings.max_meta_bytes
                ):
                    pid = Pid(node, incarnation, number)
                    meta = self._read(packed)
                    claim = Claim(check_process_name(name), pid, meta, since_ms)
                    return _Held(claim, packed, self._scale.extra_of(packed))
        raise ValueError(f"{SHORT.repr(row)} is not a claim")

    def _describe_excess(self, claims: _Claims, more: list[_Held]) -> str:
        """Return which limit of a node these claims would exceed, or an empty text."""
        count, size, extra_bytes = len(claims.held), claims.size, claims.extra_bytes
        for held in more:
            former = claims.held.get(held.claim.name)
            count += former is None
            size += held.size - (0 if former is None else former.size)
            extra_bytes += held.extra_bytes - (0 if former is None else former.extra_bytes)
        if count > self._settings.max_cluster_names:
            return f"a node may have {self._settings.max_cluster_names:,} (Settings.max_cluster_names)"
        if size > self._settings.max_names_bytes:
            limit = self._settings.max_names_bytes
            return f"those of a node may take {limit:,} bytes with their metas (Settings.max_names_bytes)"
        limit = MAX_TIMES_KEPT * self._settings.max_names_bytes
        if extra_bytes > limit:
            times = f"{MAX_TIMES_KEPT} times Settings.max_names_bytes"
            return f"the metas of a node may take {limit:,} bytes of memory ({times})"
        return ""

    def _add(self, node: str, held: _Held) -> None:
        """Enter a claim of a node, in the place of its former claim to that name."""
        name = held.claim.name
        if node == self.node:
            self._before_change(name)
        self._claims_of.setdefault(node, _Claims()).put(held)
        self._claims.setdefault(name, {})[node] = held

    def _remove(self, node: str, name: str) -> _Held:
        """Take a claim of a node away, which must exist, and return it."""
        if node == self.node:
            self._before_change(name)
        held = self._claims_of[node].take(name)
        competing = self._claims[name]
        del competing[node]
        if not competing:
            del self._claims[name]
        if node == self.node:
            number = held.claim.pid.number
            del self._names_of[number][name]
            if not self._names_of[number]:
                del self._names_of[number]
        return held

    def _settle(self, name: str, why: str) -> list[Effect]:
        """The claims to a name have changed: withdraw our own if it lost, and publish a new holder.

        ``why`` is the reason that is published if the former holder holds the name no longer.
        """
        effects: list[Effect] = self._clear(name, why)
        losing: list[Effect] = []
        if len(self._claims.get(name, ())) > 1:
            self._contested[name] = None
        best = self._pick_best(name)
        own = self._own.held.get(name)
        if best is not None and own is not None and best is not own.claim:
            self._remove(self.node, name)
            effects.append(Tell(["gone", name, "lost"]))
            losing.append(Lose(own.claim, best.pid, own.on_loss))
            why = "lost"
            best = self._pick_best(name)
        shown = self._holders.get(name)
        if best is shown:
            return effects + losing
        if shown is not None:
            del self._holders[name]
            outdone = any(held.claim.pid == shown.pid for held in self._claims.get(name, {}).values())
            if outdone and best is not None and best.pid != shown.pid:
                why = "lost"
            effects.append(Say(Unregistered(name, shown.pid, why)))
        if best is not None:
            self._holders[name] = best
            effects.append(Say(Registered(name, best.pid, best.meta)))
        return effects + losing

    def _pick_best(self, name: str) -> Claim | None:
        """Return the claim that the rule picks, comparing in the order of `rank`: the same on all nodes."""
        claims = [held.claim for held in self._claims.get(name, {}).values()]
        heard = self._heard.get(name)
        if heard is not None:
            far = {id(held): held.claim for held in heard.values()}
            claims += [claim for claim in far.values() if not self._connected(claim.pid.node)]
        if not claims:
            return None
        return claims[0] if len(claims) == 1 else reduce(self._decide, sorted(claims, key=rank))


def _tell_of(held: _Held, node: str) -> Tell:
    """Return the fact for ``node`` that a claim of a third node outdoes its own."""
    return Tell(["outdone", held.claim.pid.node, held.claim.pid.incarnation, held.row], node)
