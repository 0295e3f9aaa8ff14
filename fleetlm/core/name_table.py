"""Cluster-wide names: who claims what, whose claim holds, and who must give way.

The node of a process *claims* a name for it, alone and at once, and tells all others. Two nodes that
did not hear of each other in time, at the same moment or on two sides of a partition, both claim.
Every node that sees both picks the same one by a fixed order and shows it as the holder; the node of
the other, and nobody else, withdraws that claim and tells its process so. A claim is told by its own
node alone and dropped with the connection to it: nothing is merged, locked, or waited for.

Facts in, effects out. Source: OTP global.erl, a conflict is resolved when nodes meet; differs: no lock
on all nodes, the node of the loser acts, and what the loser gets is a reason that it can trap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

from fleetlm.errors import AlreadyRegistered, TooManyNames
from fleetlm.ids import Pid
from fleetlm.messages import Registered, Unregistered
from fleetlm.names import MAX_PROCESS_NAME_LENGTH, check_process_name
from fleetlm.settings import Settings
from fleetlm.texts import SHORT

OnLoss = Literal["exit", "message"]

MAX_WHY_LENGTH = 64
"""Characters of a peer's word for why a name was given up."""
_NUMBER_END = 1 << 64
_ROW_BYTES = 40
"""What a claim takes on the wire beside its name and meta, at most."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A cluster-wide name of a process.

    Attributes:
        name: cluster-wide.
        pid: of the process, on its own node.
        meta: what it was registered with; not to be changed. None where the value is of a type
            that this node does not know.
        since_ms: the wall clock of its node when it was registered, in milliseconds. Only for the
            order of claims that compete, and for people.
    """

    name: str
    pid: Pid
    meta: Any
    since_ms: int


Decide = Callable[[Claim, Claim], Claim]
"""The winner of two claims, the one of lower rank first. The same on all nodes, from these alone."""


def rank(claim: Claim) -> tuple[int, str, int, int]:
    """The order of claims for one name: a total one, the same on all nodes, whatever clocks say."""
    return claim.since_ms, claim.pid.node, claim.pid.incarnation, claim.pid.number


def older(first: Claim, second: Claim) -> Claim:
    """The default rule: who has had the name for longer keeps it."""
    return min(first, second, key=rank)


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell every connected node."""

    fact: list[Any]


@dataclass(frozen=True, slots=True)
class Say:
    """Tell those on this node who watch names."""

    event: Registered | Unregistered


@dataclass(frozen=True, slots=True)
class Lose:
    """Tell a process of this node that its claim is withdrawn."""

    claim: Claim
    winner: Pid
    on_loss: OnLoss


Effect = Tell | Say | Lose


@dataclass(slots=True)
class _Held:
    claim: Claim
    packed: bytes
    """The meta as it travels: a program may have changed the value since."""
    on_loss: OnLoss = "exit"

    @property
    def size(self) -> int:
        return len(self.claim.name.encode()) + len(self.packed) + _ROW_BYTES

    @property
    def row(self) -> list[Any]:
        return [self.claim.name, self.claim.pid.number, self.packed, self.claim.since_ms]


@dataclass(slots=True)
class _Claims:
    """Those of one node."""

    held: dict[str, _Held] = field(default_factory=dict)
    size: int = 0


class NameTable:
    """The table of one node.

    Args:
        node: its name.
        incarnation: of this start of it.
        settings: for the bounds.
        read: rebuilds a packed meta. Raises: ValueError for bytes that are none.
        decide: the rule for two claims; returns one of both.
    """

    def __init__(
        self,
        node: str,
        incarnation: int,
        settings: Settings,
        read: Callable[[bytes], Any],
        decide: Decide = older,
    ) -> None:
        self.node = node
        self.incarnation = incarnation
        self._settings = settings
        self._read = read
        self._decide = decide
        self._own = _Claims()
        self._of: dict[str, _Claims] = {node: self._own}
        self._claims: dict[str, dict[str, _Held]] = {}
        """Name → node → its claim."""
        self._holders: dict[str, Claim] = {}
        self._names_of: dict[int, dict[str, None]] = {}
        """Process of this node → its names."""

    # Looks.

    def holder(self, name: str) -> Claim | None:
        """The claim that holds, as this node sees it."""
        return self._holders.get(name)

    def holders(self) -> dict[str, Claim]:
        """All of them, sorted by name."""
        return dict(sorted(self._holders.items()))

    def counts(self) -> tuple[int, int]:
        """Claims of this node, and of others: for people and leak checks."""
        own = len(self._own.held)
        return own, sum(len(claims.held) for claims in self._of.values()) - own

    def own_facts(self, piece_bytes: int) -> Iterator[list[Any]]:
        """All claims of this node, in facts of about that size at most."""
        rows: list[list[Any]] = []
        size = 0
        for held in self._own.held.values():
            if rows and size + held.size > piece_bytes:
                yield ["has", rows]
                rows, size = [], 0
            rows.append(held.row)
            size += held.size
        if rows:
            yield ["has", rows]

    # What happens on this node.

    def claimed(
        self, name: str, number: int, packed: bytes, since_ms: int, on_loss: OnLoss = "exit"
    ) -> list[Effect]:
        """Claim a name for a living process of this node; again: another meta, the same age.

        Raises:
            AlreadyRegistered: another process holds it, as this node sees it.
            TooManyNames: this node has as many as it may, or they are too large together.
            InvalidName, ValueError: not a name; a meta that cannot be read. Nothing changed.
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
        held = _Held(Claim(name, pid, self._read(packed), since_ms), packed, on_loss)
        excess = self._describe_excess(self._own, [held])
        if excess:
            raise TooManyNames(name, self.node, excess)
        self._add(self.node, held)
        self._names_of.setdefault(number, {})[name] = None
        return [Tell(["has", [held.row]]), *self._settle(name, "changed")]

    def disclaimed(self, name: str, pid: Pid | None = None, why: str = "unregistered") -> list[Effect]:
        """Give up a name of this node, if ``pid`` (None: any process here) has it."""
        held = self._own.held.get(name)
        if held is None or pid not in (None, held.claim.pid):
            return []
        self._remove(self.node, name)
        return [Tell(["gone", name, why]), *self._settle(name, why)]

    def exited(self, number: int) -> list[Effect]:
        """A process of this node is no more, and so are its names."""
        names = list(self._names_of.get(number, ()))
        return [effect for name in names for effect in self.disclaimed(name, why="exited")]

    def reviewed(self) -> list[Effect]:
        """The rule is another one now: decide anew where claims compete."""
        contested = [name for name, claims in self._claims.items() if len(claims) > 1]
        return [effect for name in contested for effect in self._settle(name, "lost")]

    # What happens elsewhere.

    def told(self, node: str, incarnation: int, fact: Any) -> list[Effect]:
        """A connected node told of its own claims. Raises: ValueError for nonsense; nothing changed."""
        match fact:
            case ["has", [*rows]] if node != self.node:
                return self._take_claims(node, incarnation, rows)
            case ["gone", str(name), str(why)] if node != self.node and len(why) <= MAX_WHY_LENGTH:
                if name in self._of.get(node, _NONE).held:
                    self._remove(node, name)
                    return self._settle(name, why)
        raise ValueError(f"{SHORT.repr(fact)} says nothing of names")

    def node_down(self, node: str) -> list[Effect]:
        """The connection is over, and with it what that node told."""
        effects: list[Effect] = []
        for name in list(self._of.get(node, _NONE).held):
            self._remove(node, name)
            effects += self._settle(name, "noconnection")
        self._of.pop(node, None)
        return effects

    # How.

    def _take_claims(self, node: str, incarnation: int, rows: list[Any]) -> list[Effect]:
        claims = self._of.get(node, _NONE)
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
                    return _Held(Claim(check_process_name(name), pid, self._read(packed), since_ms), packed)
        raise ValueError(f"{SHORT.repr(row)} is no claim")

    def _describe_excess(self, claims: _Claims, more: list[_Held]) -> str:
        """What these would exceed, or nothing."""
        count, size = len(claims.held), claims.size
        for held in more:
            former = claims.held.get(held.claim.name)
            count += former is None
            size += held.size - (0 if former is None else former.size)
        if count > self._settings.max_cluster_names:
            return f"a node may have {self._settings.max_cluster_names:,} (Settings.max_cluster_names)"
        if size > self._settings.max_names_bytes:
            limit = self._settings.max_names_bytes
            return f"those of a node may take {limit:,} bytes with their metas (Settings.max_names_bytes)"
        return ""

    def _add(self, node: str, held: _Held) -> None:
        name = held.claim.name
        claims = self._of.setdefault(node, _Claims())
        former = claims.held.get(name)
        claims.size += held.size - (0 if former is None else former.size)
        claims.held[name] = held
        self._claims.setdefault(name, {})[node] = held

    def _remove(self, node: str, name: str) -> _Held:
        claims = self._of[node]
        held = claims.held.pop(name)
        claims.size -= held.size
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
        """The claims for a name have changed: withdraw our own if it lost, and show who holds."""
        effects: list[Effect] = []
        losing: list[Effect] = []
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
        competing = self._claims.get(name)
        if not competing:
            return None
        claims = [held.claim for held in competing.values()]
        return claims[0] if len(claims) == 1 else reduce(self._decide, sorted(claims, key=rank))


_NONE = _Claims()
"""Of a node that has told nothing yet; never written to."""
