"""What members of process groups tell of themselves, and what each node has outstanding at them.

Three kinds of facts about a member, each told by one node alone and dropped when the connection to it ends:

* its *meta*, a value that its own node tells once, and again when it changes;
* its *gauges*, numbers that it reports of itself. Only the latest report counts. A report is told with the
  next frame of gauges (`due`), so that a member may report as often as it likes. One that repeats the former
  numbers is told `REPEATS` times in `Settings.gauge_stale_s` at most: it only says that the member lives;
* *loads*: how many requests a node has outstanding at a member, told by each node that picks by load. All
  loads of a node replace those that it told before. The sum over all nodes is what waits at a member, as of
  one frame ago, however many nodes send to it.

Facts on the wire (topic ``members`` of `wire.operations.table`):

- ``["metas", [[group, number, packed value or None], ...]]``
- ``["gauges", [[group, number, {name: number}], ...]]``
- ``["members", metas, gauges]``, a piece of a snapshot: both for the same members, so that neither is told
  after its member has left. Its reports have their age in milliseconds at the end: a member that stopped
  reporting long ago must not look fresh to a node that connects now
- ``["loads", {node: [incarnation, {number: count}]}]``

A fact names members of its own node by number, so a node cannot speak for another node's processes; a load is
what its teller has outstanding. Facts about members that have left are dropped where the leaving is seen.

Source: C3 (Suresh et al., NSDI 2015) for a load that is the sum over clients; differs: told by the clients
to each other, not guessed from one's own share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping
from numbers import Real
from typing import Any

from fleetlm.core.one_by_one import one_by_one
from fleetlm.core.speakers import check_speaker
from fleetlm.errors import MessageTooLarge, TooManyMemberships
from fleetlm.ids import Pid
from fleetlm.names import check_process_name
from fleetlm.records import Record
from fleetlm.settings import Settings
from fleetlm.texts import SHORT, utf8_bytes
from fleetlm.wire.weights import MAX_TIMES_KEPT, Scale

Place = tuple[str, int]
"""A group and the number of a process in it."""
Gauges = Mapping[str, float]

REPEATS = 4
"""A member that reports twice in `Settings.gauge_stale_s`, as it must, is told often enough to stay fresh."""
MAX_GAUGES = 16
"""Gauges of one member: a member tells what its callers choose by, which is a few numbers."""
MAX_GAUGE_NAME_CHARS = 32
MAX_GAUGE = 1e300
"""A gauge beyond this, or one that is no number, would make a sum of loads infinite."""
MAX_LOADS = 2_048
"""Members at which one node tells its load: those that it picks from by load, some 40 KB."""
PIECE_BYTES = 128 * 1024
"""Metas and reports in one fact; one more of any allowed size still fits into a fact."""
MAX_TOLD_MEMBERS = 6_000
"""Metas, and reports, that are taken of one fact of a peer: so many of the smallest fit into a fact."""
MEMBER_BYTES = 24
"""What a member costs beside its texts and values, in a fact and in `Settings.max_metas_bytes`."""
GAUGE_BYTES = 11
"""What a gauge costs beside its name."""
WITHDRAWN_PER_STEP = 4
"""Reports of a lost node that a step forgets: a step takes some microseconds."""
MAX_NODE_CHARS = 160
"""Characters of the name of a node: a base name, an address and a port."""
LOADS_KEY: Place = ("", 0)
"""Stands for the loads of this node among the keys of a snapshot."""
_NUMBER_END = 1 << 64


class Report(Record):
    """The gauges of a member, as it has reported them last."""

    gauges: Gauges
    at_s: float
    """When they were reported, or this node heard of them, on the clock of its loop."""


_Row = tuple[Any, ...]
"""A report as it is kept: the time, then the name and the value of each gauge. Python's collector of cyclic
garbage leaves out a plain tuple of texts and numbers, and there may be `Settings.max_memberships` reports of
each node."""


class _Told:
    """What one node tells of its own members, and of its load on those of all nodes."""

    __slots__ = (
        "extra_bytes", "incarnation", "loads", "metas", "metas_bytes", "node", "packed", "reports"
    )  # fmt: skip

    def __init__(self, node: str, incarnation: int) -> None:
        self.node = node
        self.incarnation = incarnation
        self.packed: dict[Place, bytes] = {}
        self.metas: dict[Place, Any] = {}
        self.metas_bytes = 0
        """What all metas count, see `meta_bytes`."""
        self.extra_bytes = 0
        """What all metas weigh beside their bytes (`wire.weights`)."""
        self.reports: dict[Place, _Row] = {}
        self.loads: dict[Pid, int] = {}


class MemberFacts:
    """All that members and nodes have told, as this node knows it.

    Args:
        node: this node's name.
        incarnation: of this start of the node.
        settings: its limits.
        read: unpacks a meta; one of an unknown type it returns as None. Raises ValueError for what is no
            packed value.
        before_change: called with the place of a member of this node before what it tells changes.
        clock: returns the time in seconds, of which ``now`` is a former value elsewhere.
    """

    def __init__(
        self,
        node: str,
        incarnation: int,
        settings: Settings,
        read: Callable[[bytes], Any],
        before_change: Callable[[Place], None] = lambda _: None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._clock = clock
        self._max = settings.max_memberships
        self._max_meta_bytes = settings.max_meta_bytes
        self._max_metas_bytes = settings.max_metas_bytes
        self._max_extra_bytes = MAX_TIMES_KEPT * settings.max_metas_bytes
        self._read = read
        self._scale = Scale()
        self._before_change = before_change
        self._own = _Told(node, incarnation)
        self._told: dict[str, _Told] = {node: self._own}
        self._outstanding: dict[Pid, int] = {}
        """Member → the sum of the loads that other nodes have told."""
        self._reporting: dict[str, int] = {}
        """Group → how many of its members have a report."""
        self._due: dict[Place, None] = {}
        """Members of this node with a report that has not been told."""
        self._repeat_s = settings.gauge_stale_s / REPEATS
        self._told_at: dict[Place, float] = {}
        """Members of this node that report → when a report became due last."""

    # Queries.

    def meta(self, group: str, pid: Pid) -> Any:
        """Return the meta of a member; None if it has none."""
        told = self._of(pid)
        return None if told is None else told.metas.get((group, pid.number))

    def report(self, group: str, pid: Pid) -> Report | None:
        """Return the last report of a member."""
        told = self._of(pid)
        row = None if told is None else told.reports.get((group, pid.number))
        return None if row is None else Report(_gauges_of(row), row[0])

    def gauges(
        self, group: str, pids: Iterable[Pid], name: str, now: float
    ) -> list[tuple[float, float] | None]:
        """Return one gauge of each of these members, with its age in seconds; None where it has none."""
        found: list[tuple[float, float] | None] = []
        told_by = self._told
        for pid in pids:
            told = told_by.get(pid.node)
            row = None if told is None else told.reports.get((group, pid.number))
            value = None if row is None else _gauge(row, name)
            if row is None or value is None or told is None or told.incarnation != pid.incarnation:
                found.append(None)
            else:
                found.append((value, now - row[0]))
        return found

    def has_told(self, group: str) -> bool:
        """Return whether a member of a group has reported."""
        return group in self._reporting

    def outstanding(self, pid: Pid) -> int:
        """Return how many requests other nodes have outstanding at a member, as they told last."""
        return self._outstanding.get(pid, 0) if self._outstanding else 0

    def own_keys(self) -> KeysView[Place]:
        """Return the places of this node of which there is something to tell."""
        keys: dict[Place, None] = dict.fromkeys(self._own.packed)
        keys.update(dict.fromkeys(self._own.reports))
        if self._own.loads:
            keys[LOADS_KEY] = None
        return keys.keys()

    def own_facts(self, places: Iterable[Place]) -> Iterator[list[Any]]:
        """Return what this node tells about these places, for a node that has connected."""
        own, size = self._own, 0
        metas: list[list[Any]] = []
        reports: list[list[Any]] = []
        for place in places:
            if place == LOADS_KEY:
                yield self._loads_fact()
                continue
            if place in own.packed:
                metas.append([*place, own.packed[place]])
                size += meta_bytes(place, own.packed[place])
            if place in own.reports:
                row = own.reports[place]
                gauges = _gauges_of(row)
                age_ms = int(1_000 * max(0.0, self._clock() - row[0]))
                reports.append([*place, gauges, age_ms])
                size += report_bytes(place, gauges)
            if size > PIECE_BYTES:
                yield ["members", metas, reports]
                metas, reports, size = [], [], 0
        if metas or reports:
            yield ["members", metas, reports]

    # Facts about this node.

    def described(self, group: str, number: int, packed: bytes | None) -> list[Any]:
        """A member of this node has a meta, another one, or none any more. Returns the fact to tell.

        Raises:
            TooManyMemberships, MessageTooLarge: as `check_room`; nothing changed.
        """
        self.check_room(group, number, packed)
        place = (group, number)
        value = None if packed is None else self._read(packed)
        self._before_change(place)
        self._describe(self._own, place, packed, value)
        return ["metas", [[group, number, packed]]]

    def check_room(self, group: str, number: int, packed: bytes | None) -> None:
        """Check that a member of this node may have this meta.

        Raises:
            TooManyMemberships: more metas than memberships are allowed.
            MessageTooLarge: all metas of this node together would be larger than allowed.
        """
        own, place = self._own, (group, number)
        if packed is not None and place not in own.packed and len(own.packed) >= self._max:
            raise TooManyMemberships(len(own.packed), 1, self._max)
        size = own.metas_bytes + _growth(own, {place: packed})
        if size > self._max_metas_bytes:
            raise MessageTooLarge(size, self._max_metas_bytes, "Settings.max_metas_bytes, of all metas")
        weight = own.extra_bytes + self._extra_growth(own, {place: packed})
        if weight > self._max_extra_bytes:
            what = f"{MAX_TIMES_KEPT} times Settings.max_metas_bytes, of the memory of all metas"
            raise MessageTooLarge(weight, self._max_extra_bytes, what)

    def reported(self, group: str, number: int, gauges: Gauges, now: float) -> bool:
        """A member of this node reports its gauges. Raises: TypeError, ValueError: as `check_gauges`.

        Returns:
            Whether there is something to tell: see `REPEATS`.
        """
        gauges = {name: _builtin(value) for name, value in gauges.items()}
        check_gauges(gauges)
        place = (group, number)
        before = self._own.reports.get(place)
        row = _row_of(gauges, now)
        self._enter(self._own, place, row)
        if before is None or before[1:] != row[1:] or now >= self._told_at[place] + self._repeat_s:
            self._due[place] = None
            self._told_at[place] = now
        return place in self._due

    def due(self) -> Iterator[list[Any]]:
        """Return the facts with all reports since the last call."""
        places = [place for place in self._due if place in self._own.reports]
        self._due.clear()
        piece: list[list[Any]] = []
        size = 0
        for place in places:
            gauges = _gauges_of(self._own.reports[place])
            piece.append([*place, gauges])
            size += report_bytes(place, gauges)
            if size > PIECE_BYTES:
                yield ["gauges", piece]
                piece, size = [], 0
        if piece:
            yield ["gauges", piece]

    def loaded(self, loads: dict[Pid, int]) -> list[Any] | None:
        """This node has so many requests outstanding at members. Returns the fact to tell if that is news.

        Args:
            loads: members with at least one; beyond `MAX_LOADS` of them the smallest are left out.
        """
        if len(loads) > MAX_LOADS:
            most = sorted(loads.items(), key=lambda each: each[1], reverse=True)[:MAX_LOADS]
            loads = dict(most)
        if loads == self._own.loads:
            return None
        self._before_change(LOADS_KEY)
        self._own.loads = loads
        return self._loads_fact()

    def left(self, group: str, pid: Pid) -> None:
        """A process of any node is no member any more: forget what it told there.

        Other nodes do the same when they are told that it has left. So a node to which a snapshot is being
        sent, and which has not got this place yet, must not get it now: it would be told too late.
        """
        told = self._of(pid)
        if told is not None:
            place = (group, pid.number)
            self._describe(told, place, None, None)
            self._withdraw(told, place)
            if told is self._own:
                self._due.pop(place, None)
                self._told_at.pop(place, None)

    # Facts about other nodes.

    def told(self, node: str, incarnation: int, fact: Any, now: float) -> None:
        """A connected node told a fact.

        Raises:
            ValueError, TypeError: it is malformed, or exceeds a limit; nothing changed.
        """
        told = self._told.get(node) or _Told(node, incarnation)
        check_speaker(told, self._own, incarnation, "of the members")
        match fact:
            case ["metas", list(metas)]:
                self._take(told, metas, [], now)
            case ["gauges", list(reports)]:
                self._take_reports(told, reports, now)
            case ["members", list(metas), list(reports)]:
                self._take(told, metas, reports, now)
            case ["loads", dict(by_node)]:
                self._replace_loads(told, check_loads(by_node))
            case _:
                raise ValueError(f"{SHORT.repr(fact)} is not a fact about members")
        self._told[node] = told

    def node_down(self, node: str) -> Iterator[None]:
        """The connection is over: drop all that the node told, at once.

        Until the last of the steps has been taken, `has_told` may say that a group has reports which were of
        that node. There may be `Settings.max_memberships` of them, so the caller takes the steps in slices.
        """
        told = self._told.get(node)
        if told is None or told is self._own:
            return iter(())
        self._replace_loads(told, {})
        del self._told[node]
        return self._withdraw_all(told)

    # Internals.

    def _withdraw_all(self, told: _Told) -> Iterator[None]:
        for nth, place in enumerate(one_by_one(told.reports), 1):
            self._withdraw(told, place)
            if nth % WITHDRAWN_PER_STEP == 0:
                yield

    def _of(self, pid: Pid) -> _Told | None:
        """Return what the node of a process told, if it is of the same incarnation."""
        told = self._told.get(pid.node)
        return told if told is not None and told.incarnation == pid.incarnation else None

    def _take(self, told: _Told, metas: list[Any], reports: list[Any], now: float) -> None:
        """Enter what a peer told of its members. Raises: ValueError, TypeError: nothing changed."""
        _check_few(metas)
        described = dict(self._check_meta(meta) for meta in metas)
        reported = self._check_reports(told, reports, now)
        _check_count(
            told.packed, [place for place, packed in described.items() if packed is not None], self._max
        )
        if told.metas_bytes + _growth(told, described) > self._max_metas_bytes:
            limit = self._max_metas_bytes
            raise ValueError(f"metas of more than {limit:,} bytes, which is Settings.max_metas_bytes here")
        values = [None if packed is None else self._read(packed) for packed in described.values()]
        if told.extra_bytes + self._extra_growth(told, described) > self._max_extra_bytes:
            raise ValueError(
                f"metas that take more than {self._max_extra_bytes:,} bytes of memory, which is "
                f"{MAX_TIMES_KEPT} times Settings.max_metas_bytes here"
            )
        for (place, packed), value in zip(described.items(), values, strict=True):
            self._describe(told, place, packed, value)
        for place, report in reported.items():
            self._enter(told, place, report)

    def _take_reports(self, told: _Told, reports: list[Any], now: float) -> None:
        """Enter what a peer reports of its members, by far the most frequent fact. Raises: as `_take`."""
        for place, report in self._check_reports(told, reports, now).items():
            self._enter(told, place, report)

    def _check_reports(self, told: _Told, reports: list[Any], now: float) -> dict[Place, _Row]:
        _check_few(reports)
        known = told.reports
        reported = dict([check_report(report, now, known) for report in reports])
        if not reported.keys() <= known.keys():
            _check_count(known, reported, self._max)
        return reported

    def _enter(self, told: _Told, place: Place, report: _Row) -> None:
        if place not in told.reports:
            self._reporting[place[0]] = self._reporting.get(place[0], 0) + 1
        told.reports[place] = report

    def _withdraw(self, told: _Told, place: Place) -> None:
        if told.reports.pop(place, None) is not None:
            self._reporting[place[0]] -= 1
            if not self._reporting[place[0]]:
                del self._reporting[place[0]]

    def _replace_loads(self, told: _Told, loads: dict[Pid, int]) -> None:
        sums = self._outstanding
        for pid, count in told.loads.items():
            left = sums[pid] - count
            if left:
                sums[pid] = left
            else:
                del sums[pid]
        for pid, count in loads.items():
            sums[pid] = sums.get(pid, 0) + count
        told.loads = loads

    def _loads_fact(self) -> list[Any]:
        by_node: dict[str, list[Any]] = {}
        for pid, count in self._own.loads.items():
            by_node.setdefault(pid.node, [pid.incarnation, {}])[1][pid.number] = count
        return ["loads", by_node]

    def _describe(self, told: _Told, place: Place, packed: bytes | None, value: Any) -> None:
        """Enter the meta of a member, or take it away."""
        described = {place: packed}
        told.metas_bytes += _growth(told, described)
        told.extra_bytes += self._extra_growth(told, described)
        if packed is None:
            told.packed.pop(place, None)
            told.metas.pop(place, None)
        else:
            told.packed[place] = packed
            told.metas[place] = value

    def _extra_growth(self, told: _Told, described: Mapping[Place, bytes | None]) -> int:
        """Return by how much these metas would change what all metas of a node weigh beside their bytes."""
        growth = 0
        for place, packed in described.items():
            former = told.packed.get(place)
            if former is not None:
                growth -= self._scale.extra_of(former)
            if packed is not None:
                growth += self._scale.extra_of(packed)
        return growth

    def _check_meta(self, meta: Any) -> tuple[Place, bytes | None]:
        match meta:
            case [group, number, bytes() | None as packed]:
                if packed is not None and len(packed) > self._max_meta_bytes:
                    raise ValueError(f"a meta of {len(packed):,} bytes; allowed is Settings.max_meta_bytes")
                return check_place(group, number), packed
        raise ValueError(f"{SHORT.repr(meta)} is not a meta")


def meta_bytes(place: Place, packed: bytes) -> int:
    """Return what a meta counts in the limits, and about what it takes in a fact, in bytes."""
    return MEMBER_BYTES + utf8_bytes(place[0]) + len(packed)


def report_bytes(place: Place, names: Iterable[str]) -> int:
    """Return about how many bytes a report of gauges with these names takes in a fact."""
    return MEMBER_BYTES + utf8_bytes(place[0]) + sum(GAUGE_BYTES + utf8_bytes(name) for name in names)


def _row_of(gauges: Gauges, at_s: float) -> _Row:
    row: list[Any] = [at_s]
    for name in sorted(gauges):
        row += (name, float(gauges[name]))
    return tuple(row)


def _gauges_of(row: _Row) -> dict[str, float]:
    return dict(zip(row[1::2], row[2::2], strict=True))


def _gauge(row: _Row, name: str) -> float | None:
    """Return one gauge: most reports have one or two."""
    for place in range(1, len(row), 2):
        if row[place] == name:
            value: float = row[place + 1]
            return value
    return None


def _growth(told: _Told, described: Mapping[Place, bytes | None]) -> int:
    """Return by how much these metas would change what all metas of a node count."""
    growth = 0
    for place, packed in described.items():
        former = told.packed.get(place)
        if former is not None:
            growth -= meta_bytes(place, former)
        if packed is not None:
            growth += meta_bytes(place, packed)
    return growth


def _check_count(known: Mapping[Place, Any], more: Iterable[Place], most: int) -> None:
    if len(known) + sum(place not in known for place in more) > most:
        raise ValueError(f"more than {most:,} members that tell of themselves, see max_memberships")


def _check_few(told: list[Any]) -> None:
    """Raise ValueError if one fact tells of so many members that the loop would stand still for it."""
    if len(told) > MAX_TOLD_MEMBERS:
        raise ValueError(f"one fact tells of more than {MAX_TOLD_MEMBERS:,} members")


def check_gauges(gauges: Any) -> None:
    """Raise TypeError or ValueError unless these are gauges: a few finite numbers with short names."""
    if type(gauges) is not dict:
        raise TypeError(f"gauges are a dict of names and numbers, not {type(gauges).__name__}")
    if len(gauges) > MAX_GAUGES:
        raise ValueError(f"{len(gauges)} gauges; a member has at most {MAX_GAUGES}")
    for name, value in gauges.items():
        if type(name) is not str or not 0 < len(name) <= MAX_GAUGE_NAME_CHARS:
            raise ValueError(
                f"{SHORT.repr(name)} is not the name of a gauge: 1 to {MAX_GAUGE_NAME_CHARS} characters"
            )
        check_gauge(name, value)


def check_gauge(name: str, value: Any) -> None:
    """Raise ValueError unless this is a finite number."""
    if type(value) not in (int, float) or not abs(value) <= MAX_GAUGE:
        raise ValueError(f"the gauge {name} is {SHORT.repr(value)}, not a finite number")


def _builtin(value: Any) -> Any:
    """Return a number of a library, such as numpy's, as a float; anything else as it is."""
    if type(value) in (int, float, bool) or not isinstance(value, Real):
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_place(group: Any, number: Any) -> Place:
    """Return the place of a member that a peer named. Raises: ValueError."""
    if type(group) is not str or type(number) is not int or not 0 < number < _NUMBER_END:
        raise ValueError(f"{SHORT.repr((group, number))} is not a member")
    check_process_name(group)
    return group, number


def check_report(report: Any, now: float, known: Mapping[Place, _Row]) -> tuple[Place, _Row]:
    """Return a report that a peer told, with its age or without. Raises: ValueError, TypeError.

    Args:
        report: as it came.
        now: when.
        known: former reports of this peer: what is as it was is not checked again.
    """
    if type(report) is not list or len(report) not in (3, 4):
        raise ValueError(f"{SHORT.repr(report)} is not a report")
    group, number, gauges = report[:3]
    place = (group, number)
    former = known.get(place)
    if former is None or type(number) is not int:
        check_place(group, number)
    if former is None or type(gauges) is not dict or gauges.keys() != _gauges_of(former).keys():
        check_gauges(gauges)
    else:
        for name, value in gauges.items():
            check_gauge(name, value)
    if len(report) == 4:
        age_ms = report[3]
        if type(age_ms) is not int or not 0 <= age_ms < _NUMBER_END:
            raise ValueError(f"{SHORT.repr(age_ms)} is not the age of a report in milliseconds")
        now -= age_ms / 1_000
    return place, _row_of(gauges, now)


def check_loads(by_node: dict[Any, Any]) -> dict[Pid, int]:
    """Return the loads that a peer told. Raises: ValueError."""
    loads: dict[Pid, int] = {}
    for node, told in by_node.items():
        match node, told:
            case _, [incarnation, dict(counts)] if (
                type(node) is str
                and len(node) <= MAX_NODE_CHARS
                and type(incarnation) is int
                and 0 <= incarnation < _NUMBER_END
            ):
                if len(loads) + len(counts) > MAX_LOADS:
                    raise ValueError(f"loads on more than {MAX_LOADS:,} members")
                for number, count in counts.items():
                    if type(number) is not int or not 0 < number < _NUMBER_END:
                        raise ValueError(f"{SHORT.repr(number)} is not the number of a process")
                    if type(count) is not int or not 0 < count < _NUMBER_END:
                        raise ValueError(f"{SHORT.repr(count)} is not a number of requests")
                    loads[Pid(node, incarnation, number)] = count
            case _:
                raise ValueError(f"{SHORT.repr(told)} are not loads on members")
    return loads
