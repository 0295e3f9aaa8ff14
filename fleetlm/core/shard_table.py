"""Shards of keyed entities: which node owns each, under which epoch, and what follows where two claim one.

A *kind* of entities is cut into a fixed number of *shards*, and a key belongs to one of them (`shard_of`). A
node that hosts a kind *claims* shards, alone and at once, and tells every other node. So a claim is a row
with one writer, as in the other replicated tables, and is gone with the session of its node. A claim has two
numbers:

* its **epoch**, which grows with every change of the owner as far as any node remembers. Where a shard is
  claimed that was free, it is at least the wall clock in milliseconds, so that it grows over what all have
  forgotten, too;
* its **term**: the epoch at which the ownership began that was handed on since. A handoff keeps the term. Who
  takes over from an owner that is lost begins a new one.

What rests on the wall clock is only that epochs grow over a time in which no node was up. No node ever
compares its own clock with the number of another one, so clocks that are wrong, or were set back, change
nothing about who agrees with whom: `rank` is an order of all claims, whatever made their numbers, and two
cold starts at once are two claims as any others, with equal numbers or not. With a clock that is behind, a
node that has started alone may only be taken for the older owner, wrongly. With a quorum, all terms are 1:
the higher epoch wins, and a member grants none that is not above those that it remembers. With a store, an
owner takes an epoch above the highest that is stored (`ShardTable.heard_of`), so that there they grow in any
case.

Two claims for one shard exist for a moment in each handoff (the new owner claims before the former one drops
its claim), and after two nodes that did not see each other have both taken it: at their start, or on the two
sides of a partition. Every node that sees both picks the same one (`rank`): the older term, since its owner
has kept the state all the time; of one term the higher epoch, which is the later step of a handoff; else the
place of the node in the ranking of the shard. The node of the other claim drops it and gives up what it had
(`Lost`). A winner whose epoch is not the highest one that it has heard of takes a higher one, so that a
request that believes in the loser's epoch is refused everywhere.

Facts on the wire (topic ``shards`` of `wire.operations.table`), about the node that tells them:

- ``["hosts", [[kind, number of the host process, shards, [[shard, epoch, term], ...], [text, ...]], ...]]``;
  the texts (`Host.terms`) may be missing
- ``["claim", kind, [[shard, epoch, term], ...]]``
- ``["passed", kind, [[shard, epoch, node], ...]]``: it has dropped its claim, since that node has a better
  one
- ``["dropped", kind, [shard, ...]]``: it has given up its claim, and nobody has a better one
- ``["unhost", kind]``

The claim of the new owner and the ``passed`` of the former one come over different sessions, in any order. So
a shard that was passed to a connected host is not free: its claim is expected (`Kind.expected`).

A host is told together with its claims, in one fact, so that no node ever takes a shard for free whose owner
it is hearing of. Facts go in, effects come out: `Tell`, `Changed` (another owner, or another host: wake what
waits for it), `Lost`.

Source: Akka's and Orleans' directories of shards for what is known of each; differs: no coordinator and no
vote, each owner speaks for itself, as in `core.name_table`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, KeysView
from typing import Any

from fleetlm.core.name_table import MAX_NODE_LENGTH
from fleetlm.core.rings import hash_of
from fleetlm.core.shard_ranking import factor_of, score
from fleetlm.ids import Pid
from fleetlm.names import check_process_name
from fleetlm.records import Record, Row
from fleetlm.texts import SHORT

MAX_SHARDS = 4_096
"""Shards of one kind: their claims fit into one fact with room to spare."""
MAX_KINDS = 64
"""Kinds that one node hosts."""
MAX_DIFFERING = 5
"""Hosts of one kind that cut it into another number of shards, and are named to people."""
MAX_TERMS, MAX_TERM_CHARS = 8, 200
"""Texts that one host tells of itself, and characters in one."""
MAX_PIECE_CLAIMS = 6_000
"""Claims in one fact of a snapshot: some 120 KiB. The first facts leave before anything else is sent."""
EPOCH_END = 1 << 63
"""Epochs, and numbers of processes, are below this."""


class Claim(Row):
    """The claim of a node to a shard; see the module."""

    epoch: int
    term: int


class Owner(Row):
    """Who owns a shard, as this node sees it.

    Attributes:
        pid: of the process that takes the requests.
        epoch: of the claim.
    """

    pid: Pid
    epoch: int


class Tell(Record):
    """Send this fact to every connected node."""

    fact: list[Any]


class Changed(Record):
    """The owners of these shards of a kind have changed, or its hosts have."""

    kind: str
    shards: tuple[int, ...]


class Lost(Record):
    """A claim of this node has been outdone, and is dropped: give up the shard."""

    kind: str
    shard: int
    claim: Claim
    winner: Owner


Effect = Tell | Changed | Lost


class Host:
    """A kind as one node hosts it.

    Attributes:
        pid: of the process that takes the requests.
        shards: into how many the kind is cut.
        claims: shard → the node's claim.
        terms: what all hosts should have alike, for people; see `entities.agreement`.
    """

    __slots__ = ("claims", "pid", "shards", "terms")

    def __init__(self, pid: Pid, shards: int, terms: tuple[str, ...] = ()) -> None:
        self.pid: Pid = pid
        self.shards: int = shards
        self.terms: tuple[str, ...] = terms
        self.claims: dict[int, Claim] = {}


class Expected(Row):
    """A claim that a node has, as another one has told."""

    node: str
    epoch: int


class Kind:
    """What is known of one kind; to be read only.

    Attributes:
        shards: into how many it is cut; 0 if no node hosts it. A node that hosts it itself knows.
        owners: shard → who owns it, as this node sees it.
    """

    __slots__ = ("expected", "hosts", "is_used", "owners", "seen", "shards")

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        """Node → what it hosts."""
        self.shards: int = 0
        self.owners: dict[int, Owner] = {}
        self.seen: dict[int, int] = {}
        """Shard → the highest epoch that was ever heard of; kept when the owner is gone."""
        self.expected: dict[int, Expected] = {}
        """Shard → the claim that has outdone a former one, and has not come yet."""
        self.is_used: bool = False
        """Whether a part of this node holds it."""


_NO_KIND = Kind()
"""Of a kind of which nothing is known; never written to."""


class ShardTable:
    """All hosts and claims, as this node knows them.

    Args:
        node: this node's name.
        incarnation: of this start of the node.
        before_change: called with a kind before what this node tells of it changes.
    """

    def __init__(
        self, node: str, incarnation: int, before_change: Callable[[str], None] = lambda _: None
    ) -> None:
        self.node: str = node
        self._incarnation = incarnation
        self._before_change = before_change
        self._kinds: dict[str, Kind] = {}
        self._own: dict[str, Host] = {}
        """Kind → what this node hosts of it."""
        self._idle: dict[str, None] = {}
        """Kinds that no node hosts any more and this node has never asked for, the oldest first."""

    # Queries.

    def owner(self, kind: str, shard: int) -> Owner | None:
        """Return who owns a shard, as this node sees it, or None."""
        return self._kinds.get(kind, _NO_KIND).owners.get(shard)

    def hosts(self, kind: str) -> dict[str, Host]:
        """Return the nodes that host a kind; must not be changed."""
        return self._kinds.get(kind, _NO_KIND).hosts

    def kinds(self) -> list[str]:
        """Return the kinds that a node hosts, sorted."""
        return sorted(kind for kind, known in self._kinds.items() if known.hosts)

    def shards(self, kind: str) -> int:
        """Return into how many shards a kind is cut; 0 if no node hosts it."""
        return self._kinds.get(kind, _NO_KIND).shards

    def kind(self, kind: str) -> Kind:
        """Return what is known of a kind, now and in future."""
        known = self._of(kind)
        known.is_used = True
        return known

    def own(self, kind: str) -> Host | None:
        """Return what this node hosts of a kind."""
        return self._own.get(kind)

    def seen(self, kind: str, shard: int) -> int:
        """Return the highest epoch of a shard that was ever heard of; 0: none."""
        return self._kinds.get(kind, _NO_KIND).seen.get(shard, 0)

    def next_epoch(self, kind: str, shard: int) -> int:
        """Return an epoch above every one that was ever heard of, but none that no peer would accept.

        Epochs do not come near the end by themselves, but a peer may have told the last one. Then the shard
        stays where it is, and the cluster goes on.
        """
        return min(self.seen(kind, shard) + 1, EPOCH_END - 1)

    def unowned(self, kind: str) -> list[int]:
        """Return the shards that nobody owns, as this node sees it, and that were not passed to a host."""
        known = self._kinds.get(kind, _NO_KIND)
        return [
            shard
            for shard in range(self.shards(kind))
            if shard not in known.owners and shard not in known.expected
        ]

    def count_unowned(self, kind: str) -> int:
        """Return how many shards nobody owns, as this node sees it, and were not passed to a host."""
        known = self._kinds.get(kind, _NO_KIND)
        expected = sum(shard not in known.owners for shard in known.expected)
        return max(0, known.shards - len(known.owners) - expected)

    def own_keys(self) -> KeysView[str]:
        """Return the kinds that this node hosts."""
        return self._own.keys()

    def own_facts(self, kinds: Iterable[str]) -> Iterator[list[Any]]:
        """Return what this node hosts, as facts of at most `MAX_PIECE_CLAIMS` or of one kind."""
        rows: list[Any] = []
        count = 0
        for kind in kinds:
            host = self._own.get(kind)
            if host is None:
                continue
            if rows and count + len(host.claims) > MAX_PIECE_CLAIMS:
                yield ["hosts", rows]
                rows, count = [], 0
            rows.append(_host_row(kind, host))
            count += len(host.claims)
        if rows:
            yield ["hosts", rows]

    # Facts about this node.

    def host(self, kind: str, number: int, shards: int, terms: tuple[str, ...] = ()) -> list[Effect]:
        """Host a kind, with a process of this node that takes the requests.

        Args:
            kind: its name.
            number: of the process.
            shards: into how many the kind is cut.
            terms: see `Host`.

        Raises:
            ValueError: this node hosts it already, or too many; or another node has cut it into another
                number of shards. Nothing changed.
        """
        check_process_name(kind)
        if not 1 <= shards <= MAX_SHARDS:
            raise ValueError(f"a kind has 1 to {MAX_SHARDS:,} shards, not {shards:,}")
        if kind in self._own:
            raise ValueError(f"this node hosts {kind!r} already")
        if len(self._own) >= MAX_KINDS:
            raise ValueError(f"a node hosts at most {MAX_KINDS} kinds")
        known = self.shards(kind)
        if known and known != shards:
            raise ValueError(f"other nodes have cut {kind!r} into {known:,} shards, not {shards:,}")
        self._before_change(kind)
        host = self._own[kind] = Host(Pid(self.node, self._incarnation, number), shards, terms)
        self.kind(kind).hosts[self.node] = host
        self._count(kind)
        return [Tell(["hosts", [_host_row(kind, host)]]), Changed(kind, ())]

    def unhost(self, kind: str) -> list[Effect]:
        """Host a kind no more; its claims are dropped."""
        if kind not in self._own:
            return []
        self._before_change(kind)
        host = self._own.pop(kind)
        del self._kinds[kind].hosts[self.node]
        return [Tell(["unhost", kind]), *self._settle(kind, host.claims)]

    def claim(self, kind: str, claims: dict[int, Claim]) -> list[Effect]:
        """Claim shards of a kind that this node hosts, or take higher epochs for them."""
        host = self._own[kind]
        self._before_change(kind)
        host.claims.update(claims)
        self._note(kind, claims)
        return [Tell(["claim", kind, _rows(claims.items())]), *self._settle(kind, claims)]

    def drop(self, kind: str, shards: Iterable[int]) -> list[Effect]:
        """Give up claims of this node, which nobody else has."""
        host = self._own[kind]
        gone = [shard for shard in dict.fromkeys(shards) if shard in host.claims]
        if not gone:
            return []
        self._before_change(kind)
        for shard in gone:
            del host.claims[shard]
        return [Tell(["dropped", kind, gone]), *self._settle(kind, gone)]

    def heard_of(self, kind: str, shard: int, epoch: int) -> None:
        """Another node has heard of this epoch of a shard."""
        seen = self._of(kind).seen
        seen[shard] = max(epoch, seen.get(shard, 0))

    # Facts about other nodes.

    def told(self, node: str, incarnation: int, fact: Any) -> list[Effect]:
        """A connected node told a fact about itself.

        Raises:
            ValueError: the fact is malformed, or contradicts what the node told before; nothing changed.
        """
        if node == self.node:
            raise ValueError("a node tells of itself alone")
        match fact:
            case ["hosts", [*kinds]]:
                return self._told_hosts(node, incarnation, kinds)
            case [str(what), str(kind), *rest] if (host := self._host_of(kind, node)) is not None:
                match what, rest:
                    case "claim", [[_, *_] as rows]:
                        return self._told_claims(kind, host, rows)
                    case "passed", [[_, *_] as rows]:
                        return self._told_passed(kind, host, rows)
                    case "dropped", [[_, *_] as gone]:
                        return self._told_dropped(kind, host, gone)
                    case "unhost", []:
                        return self._told_unhost(kind, node)
        raise ValueError(f"{SHORT.repr(fact)} is not a fact about shards")

    def _told_hosts(self, node: str, incarnation: int, rows: list[Any]) -> list[Effect]:
        if len(rows) > MAX_KINDS:
            raise ValueError(f"{node} hosts more than {MAX_KINDS} kinds")
        claims = (row[3] for row in rows if type(row) is list and len(row) > 3)
        if sum(len(part) for part in claims if type(part) is list) > MAX_PIECE_CLAIMS:
            raise ValueError(f"more than {MAX_PIECE_CLAIMS:,} claims to shards in one fact")
        found = [self._checked_host(node, incarnation, row, len(rows)) for row in rows]
        if len({kind for kind, _ in found}) < len(found):
            raise ValueError("a fact tells of one kind twice")
        return [effect for kind, host in found for effect in self._take_host(kind, host)]

    def _told_claims(self, kind: str, host: Host, rows: list[Any]) -> list[Effect]:
        claims = _checked(rows, host.shards)
        host.claims.update(claims)
        self._note(kind, claims)
        return self._settle(kind, claims)

    def _told_passed(self, kind: str, host: Host, rows: list[Any]) -> list[Effect]:
        passed = _checked_passed(rows, host.claims)
        for shard in passed:
            del host.claims[shard]
        self._expect(kind, passed)
        return self._settle(kind, passed)

    def _told_dropped(self, kind: str, host: Host, gone: list[Any]) -> list[Effect]:
        for shard in gone:
            if type(shard) is not int or shard not in host.claims:
                raise ValueError(f"a claim to {SHORT.repr(shard)} of {kind!r} is dropped, not held")
        for shard in gone:
            host.claims.pop(shard, None)
        return self._settle(kind, gone)

    def _told_unhost(self, kind: str, node: str) -> list[Effect]:
        host = self._kinds[kind].hosts.pop(node)
        effects = self._settle(kind, host.claims)
        self._forget(kind)
        return effects

    def node_down(self, node: str) -> list[Effect]:
        """The connection is over: drop what the node told."""
        effects: list[Effect] = []
        for kind, known in list(self._kinds.items()):
            host = known.hosts.pop(node, None) if node != self.node else None
            if host is not None:
                known.expected = {shard: each for shard, each in known.expected.items() if each.node != node}
                effects += self._settle(kind, host.claims)
                self._forget(kind)
        return effects

    # Internals.

    def _of(self, kind: str) -> Kind:
        self._idle.pop(kind, None)
        return self._kinds.setdefault(kind, Kind())

    def _forget(self, kind: str) -> None:
        """Keep the epochs of a kind without a host, unless there are too many such kinds."""
        known = self._kinds[kind]
        if not (known.hosts or known.is_used):
            self._idle[kind] = None
            if len(self._idle) > MAX_KINDS:
                oldest = next(iter(self._idle))
                del self._idle[oldest], self._kinds[oldest]

    def _host_of(self, kind: str, node: str) -> Host | None:
        return self._kinds.get(kind, _NO_KIND).hosts.get(node)

    def _checked_host(self, node: str, incarnation: int, row: Any, more: int) -> tuple[str, Host]:
        """Check that a node hosts a kind, one of so many more. Raises: ValueError."""
        match row:
            case [str(kind), int(number), int(shards), [*rows], *more_terms] if (
                0 < number < EPOCH_END and 1 <= shards <= MAX_SHARDS
            ):
                check_process_name(kind)
                if self._host_of(kind, node) is not None:
                    raise ValueError(f"{node} hosts {kind!r} already")
                if sum(node in known.hosts for known in self._kinds.values()) + more > MAX_KINDS:
                    raise ValueError(f"{node} hosts more than {MAX_KINDS} kinds")
                host = Host(Pid(node, incarnation, number), shards, _checked_terms(more_terms))
                host.claims.update(_checked(rows, shards))
                return kind, host
        raise ValueError(f"{SHORT.repr(row)} does not tell what a node hosts")

    def _take_host(self, kind: str, host: Host) -> list[Effect]:
        """Enter that a node hosts a kind."""
        self._of(kind).hosts[host.pid.node] = host
        self._note(kind, host.claims)
        return self._settle(kind, list(host.claims))

    def _note(self, kind: str, claims: dict[int, Claim]) -> None:
        """Remember the highest epochs."""
        seen = self._kinds[kind].seen
        expected = self._kinds[kind].expected
        for shard, claim in claims.items():
            if claim.epoch > seen.get(shard, 0):
                seen[shard] = claim.epoch
            if shard in expected and claim.epoch >= expected[shard].epoch:
                del expected[shard]

    def _count(self, kind: str) -> bool:
        """Decide into how many shards a kind is cut, where nodes contradict each other. True: into others."""
        known, own = self._kinds[kind], self._own.get(kind)
        before = known.shards
        if own is not None:
            known.shards = own.shards
        else:
            known.shards = known.hosts[min(known.hosts)].shards if known.hosts else 0
        return known.shards != before

    def _expect(self, kind: str, passed: dict[int, Expected]) -> None:
        """Note to which hosts shards were passed, whose claims have not come yet."""
        known = self._kinds[kind]
        for shard, expected in passed.items():
            if expected.epoch > known.seen.get(shard, 0):
                known.seen[shard] = expected.epoch
                known.expected.pop(shard, None)
                if expected.node in known.hosts:
                    known.expected[shard] = expected

    def _settle(self, kind: str, shards: Iterable[int]) -> list[Effect]:
        """Decide anew who owns these shards. A claim of this node that is outdone is dropped."""
        known, own = self._kinds[kind], self._own.get(kind)
        changed: list[int] = []
        effects: list[Effect] = []
        lost: list[list[Any]] = []
        if self._count(kind):  # Then other claims count.
            claims = (shard for host in known.hosts.values() for shard in host.claims)
            shards = dict.fromkeys([*shards, *known.owners, *claims])
        for shard in shards:
            owner = _winner(kind, shard, known)
            if known.owners.get(shard) != owner:
                changed.append(shard)
                if owner is None:
                    del known.owners[shard]
                else:
                    known.owners[shard] = owner
            mine = None if own is None else own.claims.get(shard)
            if own is not None and mine is not None and owner is not None and owner.pid != own.pid:
                if not lost:
                    self._before_change(kind)
                del own.claims[shard]
                lost.append([shard, owner.epoch, owner.pid.node])
                effects.append(Lost(kind, shard, mine, owner))
        if lost:
            effects.insert(0, Tell(["passed", kind, lost]))
        effects.append(Changed(kind, tuple(changed)))
        return effects


def shard_of(key: str, shards: int) -> int:
    """Return the shard of a key: the same on every node and in every version."""
    digest = hash_of(key.encode("utf-8", "surrogatepass"), 8)
    return int.from_bytes(digest, "big") % shards


def rank(kind: str, shard: int, node: str, claim: Claim) -> tuple[int, int, int, str]:
    """Return the sort key of claims to one shard: the smallest wins, on every node."""
    return claim.term, -claim.epoch, -score(factor_of(kind, shard), node), node


def _winner(kind: str, shard: int, known: Kind) -> Owner | None:
    """Return who owns a shard by the claims that this node knows; see `rank`."""
    best: Claim | None = None
    winner: Host | None = None
    for node, host in known.hosts.items():
        claim = host.claims.get(shard)
        if claim is None or host.shards != known.shards:
            continue
        if winner is None or best is None:
            best, winner = claim, host
        else:
            former = rank(kind, shard, winner.pid.node, best)
            if rank(kind, shard, node, claim) < former:
                best, winner = claim, host
    return None if best is None or winner is None else Owner(winner.pid, best.epoch)


def _rows(claims: Iterable[tuple[int, Claim]]) -> list[list[int]]:
    return [[shard, claim.epoch, claim.term] for shard, claim in claims]


def _host_row(kind: str, host: Host) -> list[Any]:
    """Return how a host is told to others."""
    terms = [list(host.terms)] if host.terms else []
    return [kind, host.pid.number, host.shards, _rows(host.claims.items()), *terms]


def _checked_terms(rest: list[Any]) -> tuple[str, ...]:
    """Check what follows on the claims of a host. Raises: ValueError."""
    match rest:
        case []:
            return ()
        case [[*terms]] if len(terms) <= MAX_TERMS and all(
            type(term) is str and len(term) <= MAX_TERM_CHARS for term in terms
        ):
            return tuple(terms)
    raise ValueError(f"{SHORT.repr(rest)} does not tell how a node hosts")


def _checked(rows: list[Any], shards: int) -> dict[int, Claim]:
    """Check the claims that a peer sent. Raises: ValueError."""
    claims: dict[int, Claim] = {}
    for row in rows:
        match row:
            case [int(shard), int(epoch), int(term)] if (
                0 <= shard < shards and 0 < term <= epoch < EPOCH_END and shard not in claims
            ):
                claims[shard] = Claim(epoch, term)
            case _:
                raise ValueError(f"{SHORT.repr(row)} is not a claim to one of {shards:,} shards")
    return claims


def _checked_passed(rows: list[Any], claims: dict[int, Claim]) -> dict[int, Expected]:
    """Check which of its claims a peer has passed on. Raises: ValueError."""
    passed: dict[int, Expected] = {}
    for row in rows:
        match row:
            case [int(shard), int(epoch), str(node)] if (
                shard in claims
                and 0 < epoch < EPOCH_END
                and len(node) <= MAX_NODE_LENGTH
                and shard not in passed
            ):
                passed[shard] = Expected(node, epoch)
            case _:
                raise ValueError(f"{SHORT.repr(row)} does not pass a shard on")
    return passed
