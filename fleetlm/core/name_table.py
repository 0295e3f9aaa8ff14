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
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, KeysView
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from operator import itemgetter
from typing import Any, Final, Literal

from fleetlm.errors import AlreadyRegistered, TooManyNames
from fleetlm.ids import Pid
from fleetlm.messages import Registered, Unregistered
from fleetlm.names import MAX_PROCESS_NAME_LENGTH, check_process_name
from fleetlm.records import Record
from fleetlm.settings import Settings
from fleetlm.texts import SHORT

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


_Row = tuple[str, str, int, int, int, bytes]
"""A claim in the table, as its node has told it: its name; node, incarnation and number of its process; since
when; and its meta as it travels. There may be `Settings.max_cluster_names` of each node, so it is a plain
tuple of texts and numbers, which Python's collector of cyclic garbage leaves out."""
_NAME: Final = 0
_NODE: Final = 1
_INCARNATION: Final = 2
_NUMBER: Final = 3
_SINCE_MS: Final = 4
_PACKED: Final = 5
_NONE_PACKED = b"\xc0"
MAX_SHOWN = 1_024
"""Claims that are kept as they were shown last, so that they need not be made again."""


@dataclass(slots=True)
class _Claims:
    """The claims of one node."""

    held: dict[str, _Row] = field(default_factory=dict)
    """Name → the claim."""
    size: int = 0
    """Bytes of all claims on the wire, at most."""


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
        self._decide = decide
        self._connected = connected
        self._before_change = before_change
        self._own = _Claims()
        self._claims_of: dict[str, _Claims] = {node: self._own}
        """Node → its claims; this node's are among them."""
        self._lone: dict[str, _Row] = {}
        """Name → its claim, if there is one."""
        self._several: dict[str, dict[str, _Row]] = {}
        """Name → node → its claim, if there are several."""
        self._on_loss: dict[str, OnLoss] = {}
        """Names of this node whose loss is told in another way than by "exit"."""
        self._heard: dict[str, dict[str, _Row]] = {}
        """Name → node that told → a claim of a third node, which outdoes one of this node."""
        self._heard_from: Counter[str] = Counter()
        """Node that told → how many of these claims."""
        self._contested: dict[str, None] = {}
        """Names that had several claims when they were settled last, in the order of the looks at them."""
        self._suspects: dict[str, set[tuple[Any, ...]]] = {}
        """Name → what was outdone at the last look at it: node, rank of its claim, rank of the winner."""
        self._told: dict[str, dict[str, _Row]] = {}
        """Name → node → the claim that it was told of, because it outdoes the claim of that node."""
        self._holders: dict[str, _Row] = {}
        self._shown: dict[str, Claim] = {}
        """Holders as they were shown last."""
        self._names_of: dict[int, dict[str, None]] = {}
        """Number of a process of this node → its names."""

    # Queries.

    def holder(self, name: str) -> Claim | None:
        """Return the claim that holds a name, as this node sees it, or None."""
        shown = self._shown.get(name)
        if shown is None:
            row = self._holders.get(name)
            if row is None:
                return None
            if len(self._shown) >= MAX_SHOWN:
                self._shown.clear()
            shown = self._shown[name] = self._claim(row)
        return shown

    def holders(self) -> dict[str, Claim]:
        """Return the claims that hold, sorted by name."""
        return {name: self._claim(row) for name, row in sorted(self._holders.items())}

    @property
    def count(self) -> int:
        """How many names have a holder."""
        return len(self._holders)

    def first(self, most: int, looked_at: int) -> list[tuple[str, Claim]]:
        """Return the holders of the first ``most`` names, of the ``looked_at`` oldest ones."""
        rows = heapq.nsmallest(most, islice(self._holders.items(), looked_at), key=itemgetter(0))
        return [(name, self._claim(row)) for name, row in rows]

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
            row = self._own.held.get(name)
            if row is None:
                continue
            if len(rows) == MAX_PIECE_CLAIMS or (rows and size + _size_bytes(row) > piece_bytes):
                yield ["has", rows]
                rows, size = [], 0
            rows.append(_told_row(row))
            size += _size_bytes(row)
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
        if holder is not None and _pid(holder) != pid:
            raise AlreadyRegistered(name, _pid(holder))
        former = self._own.held.get(name)
        if former is None or former[_PACKED] != packed:
            since_ms = since_ms if former is None else former[_SINCE_MS]
            self._read(packed)
            row = (name, self.node, self.incarnation, number, since_ms, packed)
            excess = self._describe_excess(self._own, [row])
            if excess:
                raise TooManyNames(name, self.node, excess)
            self._add(self.node, row)
            self._names_of.setdefault(number, {})[name] = None
            effects = [Tell(["has", [_told_row(row)]]), *self._settle(name, "changed")]
        else:
            effects = []
        if on_loss == "exit":
            self._on_loss.pop(name, None)
        else:
            self._on_loss[name] = on_loss
        return effects

    def disclaimed(self, name: str, pid: Pid | None = None, why: str = "unregistered") -> list[Effect]:
        """Give up a name if process ``pid`` of this node claims it (None: any process of this node)."""
        row = self._own.held.get(name)
        if row is None or pid not in (None, _pid(row)):
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
        return [effect for name in list(self._several) for effect in self._settle(name, "lost")]

    def pulsed(self) -> list[Effect]:
        """About a second has passed: tell the nodes whose claims are outdone still and not withdrawn.

        A node that sees the winner itself withdraws its claim within a round trip, so in a full mesh nothing
        is ever told. Of more than `MAX_LOOKED_AT` names with several claims each waits for its turn.
        """
        effects: list[Effect] = []
        for name in list(islice(self._contested, MAX_LOOKED_AT)):
            del self._contested[name]
            before = self._suspects.pop(name, ())
            competing = self._several.get(name, {})
            best = self._pick_best(name)
            if best is None or competing.get(best[_NODE]) is not best:
                continue
            self._contested[name] = None
            suspects = self._suspects[name] = set()
            for node, row in competing.items():
                suspect = (node, _rank(row), _rank(best))
                if node in (self.node, best[_NODE]):
                    continue
                suspects.add(suspect)
                told = self._told.setdefault(name, {})
                if suspect in before and told.get(node) is not best:
                    told[node] = best
                    effects.append(_tell_of(best, node))
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
        heard = self._read_claim(owner, incarnation, row)
        name = heard[_NAME]
        if owner in (self.node, node) or self._connected(owner):
            return []  # It is for that node to say, and this one hears it.
        tellers = self._heard.get(name, {})
        if node not in tellers:
            if self._heard_from[node] >= self._settings.max_cluster_names // HEARD_SHARE:
                raise ValueError("too many names that are claimed elsewhere")
            self._heard_from[node] += 1
        self._heard[name] = tellers
        same = (other for other in tellers.values() if other == heard)
        tellers[node] = next(same, heard)  # Several nodes may tell of one claim, and it is one.
        return self._settle(name, "changed")

    def _forget_heard(self, node: str, name: str, why: str) -> list[Effect]:
        """A connected node does not see a claim any more of which it told this node, or is gone itself."""
        tellers = self._heard.get(name, {})
        if tellers.pop(node, None) is None:
            return []
        self._heard_from[node] -= 1
        if not self._heard_from[node]:
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
        now = {row[_NODE]: row for row in self._claims_to(name)}
        for node, row in list(told.items()):
            present = now.get(row[_NODE])
            if present is None or _pid(present) != _pid(row):
                del told[node]
                effects.append(Tell(["cleared", name, why], node))
            elif present is not row:  # It has another meta.
                told[node] = present
                effects.append(_tell_of(present, node))
        if not told:
            del self._told[name]
        return effects

    def _take_claims(self, node: str, incarnation: int, rows: list[Any]) -> list[Effect]:
        """Enter claims of another node; all of them are checked before the first is entered."""
        claims = self._claims_of.get(node, _NONE)
        told: dict[str, _Row] = {}
        for row in rows:
            claim = self._read_claim(node, incarnation, row)
            name = claim[_NAME]
            former = claims.held.get(name)
            if name in told or (former is not None and _rank(former) != _rank(claim)):
                raise ValueError(f"{SHORT.repr(name)} is claimed twice")
            told[name] = claim
        excess = self._describe_excess(claims, list(told.values()))
        if excess:
            raise ValueError(f"too many names: {excess}")
        for claim in told.values():
            self._add(node, claim)
        return [effect for name in told for effect in self._settle(name, "changed")]

    def _read_claim(self, node: str, incarnation: int, row: Any) -> _Row:
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
                    if packed != _NONE_PACKED:
                        self._read(packed)
                    return check_process_name(name), node, incarnation, number, since_ms, packed
        raise ValueError(f"{SHORT.repr(row)} is not a claim")

    def _describe_excess(self, claims: _Claims, more: list[_Row]) -> str:
        """Return which limit of a node these claims would exceed, or an empty text."""
        count, size = len(claims.held), claims.size
        for row in more:
            former = claims.held.get(row[_NAME])
            count += former is None
            size += _size_bytes(row) - (0 if former is None else _size_bytes(former))
        if count > self._settings.max_cluster_names:
            return f"a node may have {self._settings.max_cluster_names:,} (Settings.max_cluster_names)"
        if size > self._settings.max_names_bytes:
            limit = self._settings.max_names_bytes
            return f"those of a node may take {limit:,} bytes with their metas (Settings.max_names_bytes)"
        return ""

    def _claim(self, row: _Row) -> Claim:
        """Return a claim as it is shown."""
        packed = row[_PACKED]
        meta = None if packed == _NONE_PACKED else self._read(packed)
        return Claim(row[_NAME], _pid(row), meta, row[_SINCE_MS])

    def _claims_to(self, name: str) -> Collection[_Row]:
        """Return all claims to a name."""
        lone = self._lone.get(name)
        return self._several.get(name, {}).values() if lone is None else (lone,)

    def _add(self, node: str, row: _Row) -> None:
        """Enter a claim of a node, in the place of its former claim to that name."""
        name = row[_NAME]
        if node == self.node:
            self._before_change(name)
        claims = self._claims_of.setdefault(node, _Claims())
        former = claims.held.get(name)
        claims.size += _size_bytes(row) - (0 if former is None else _size_bytes(former))
        claims.held[name] = row
        lone = self._lone.get(name)
        if name in self._several:
            self._several[name][node] = row
        elif lone is None or lone[_NODE] == node:
            self._lone[name] = row
        else:
            del self._lone[name]
            self._several[name] = {lone[_NODE]: lone, node: row}

    def _remove(self, node: str, name: str) -> None:
        """Take a claim of a node away, which must exist."""
        if node == self.node:
            self._before_change(name)
        claims = self._claims_of[node]
        row = claims.held.pop(name)
        claims.size -= _size_bytes(row)
        competing = self._several.get(name)
        if competing is None:
            del self._lone[name]
        else:
            del competing[node]
            if len(competing) == 1:
                del self._several[name]
                (self._lone[name],) = competing.values()
        if node == self.node:
            self._on_loss.pop(name, None)
            number = row[_NUMBER]
            del self._names_of[number][name]
            if not self._names_of[number]:
                del self._names_of[number]

    def _settle(self, name: str, why: str) -> list[Effect]:
        """The claims to a name have changed: withdraw our own if it lost, and publish a new holder.

        ``why`` is the reason that is published if the former holder holds the name no longer.
        """
        effects: list[Effect] = self._clear(name, why)
        losing: list[Effect] = []
        if name in self._several:
            self._contested[name] = None
        best = self._pick_best(name)
        own = self._own.held.get(name)
        if best is not None and own is not None and best is not own:
            on_loss = self._on_loss.get(name, "exit")
            self._remove(self.node, name)
            effects.append(Tell(["gone", name, "lost"]))
            losing.append(Lose(self._claim(own), _pid(best), on_loss))
            why = "lost"
            best = self._pick_best(name)
        shown = self._holders.get(name)
        if best is shown:
            return effects + losing
        self._shown.pop(name, None)
        if shown is not None:
            del self._holders[name]
            outdone = any(_pid(row) == _pid(shown) for row in self._claims_to(name))
            if outdone and best is not None and _pid(best) != _pid(shown):
                why = "lost"
            effects.append(Say(Unregistered(name, _pid(shown), why)))
        if best is not None:
            self._holders[name] = best
            effects.append(Say(Registered(name, _pid(best), self._claim(best).meta)))
        return effects + losing

    def _pick_best(self, name: str) -> _Row | None:
        """Return the claim that the rule picks, comparing in the order of `rank`: the same on all nodes."""
        rows = list(self._claims_to(name))
        heard = self._heard.get(name)
        if heard is not None:
            far = {id(row): row for row in heard.values()}
            rows += [row for row in far.values() if not self._connected(row[_NODE])]
        if len(rows) < 2:
            return rows[0] if rows else None
        rows.sort(key=_rank)
        claims = [self._claim(row) for row in rows]
        best = rank(reduce(self._decide, claims))
        return next((row for row in rows if _rank(row) == best), rows[0])


def _pid(row: _Row) -> Pid:
    return Pid(row[_NODE], row[_INCARNATION], row[_NUMBER])


def _rank(row: _Row) -> tuple[int, str, int, int]:
    """As `rank`."""
    return row[_SINCE_MS], row[_NODE], row[_INCARNATION], row[_NUMBER]


def _size_bytes(row: _Row) -> int:
    """Return the bytes of a claim on the wire, at most."""
    return len(row[_NAME].encode()) + len(row[_PACKED]) + _MAX_ROW_OVERHEAD_BYTES


def _told_row(row: _Row) -> list[Any]:
    """Return a claim as it stands in facts."""
    return [row[_NAME], row[_NUMBER], row[_PACKED], row[_SINCE_MS]]


def _tell_of(row: _Row, node: str) -> Tell:
    """Return the fact for ``node`` that a claim of a third node outdoes its own."""
    return Tell(["outdone", row[_NODE], row[_INCARNATION], _told_row(row)], node)
