"""The journals of the nodes in the kill test, and the checks of these journals.

Each run of a node writes one journal, one line for each record, in the order in which things happened:

    start HOST                                the node runs
    call ID KIND NODE NAME INCARNATION NUMBER  about to be called: a name (then 0 0), or a pid (then -)
    end ID NODE OUTCOME TYPE VALUE            how that call ended; VALUE is the reply, or what was raised
    ran ID NAME NUMBER VALUE                  a server took the call; written before it answers VALUE
    crash INCARNATION NUMBER                  that server is about to crash or to get an exit signal
    send STREAM SEQ NODE INCARNATION          about to be sent one way; STREAM is SENDER>INCARNATION.NUMBER
    unsent STREAM SEQ                         that send raised `NotDelivered`
    got STREAM SEQ                            a server took that message
    up NODE INCARNATION / down NODE INCARNATION
    quiet                                     all callers of the node have ended, each with an outcome
    stop                                      the node was told to leave, and its processes have ended

The checks are pure functions of the journals; they use no containers and no clock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

OK, NOT_DELIVERED, UNKNOWN, RAISED = "ok", "not_delivered", "unknown", "raised"
CANCELLED = "cancelled"
"""The caller ended while it waited, so it got no outcome."""
REFUSED = "refused"
"""The caller's own node had stopped, so nothing was sent."""
OTHER = "other"
"""An exception that no call may raise."""
OPEN = "(none)"
"""A call whose caller was killed; only in the table."""

FIELDS = {
    "start": 1,
    "call": 6,
    "end": 5,
    "ran": 4,
    "crash": 2,
    "send": 4,
    "unsent": 2,
    "got": 2,
    "up": 2,
    "down": 2,
    "quiet": 0,
    "stop": 0,
}


class Record(NamedTuple):
    """One line: its time (seconds since the epoch), its kind and its fields."""

    at: float
    kind: str
    fields: tuple[str, ...]


@dataclass
class Journal:
    """The journal of one run of a node."""

    node: str
    incarnation: str
    records: list[Record]
    killed: bool = False
    """Whether the node was killed with SIGKILL, so that the journal may end anywhere."""

    def __str__(self) -> str:
        return f"{self.node}/{self.incarnation}"

    @property
    def host(self) -> str:
        return self.records[0].fields[0]

    @property
    def key(self) -> tuple[str, str]:
        return self.node, self.incarnation

    def of(self, *kinds: str) -> Iterator[Record]:
        return (record for record in self.records if record.kind in kinds)

    def has(self, kind: str) -> bool:
        return any(True for _ in self.of(kind))


def file_name(node: str, incarnation: int) -> str:
    return f"{node}+{incarnation:x}.journal"


def line(at: float, kind: str, *fields: object) -> bytes:
    """Format a record as one line."""
    return f"{at:.3f} {' '.join(map(str, (kind, *fields)))}\n".encode()


def read(name: str, text: str) -> Journal:
    """Read the journal in a file of that name. Raises: ValueError for an invalid line."""
    node, _, incarnation = name.removesuffix(".journal").partition("+")
    records = []
    for number, row in enumerate(text.splitlines(keepends=True), 1):
        at, kind, *fields = row.split(" ")
        if fields:
            fields[-1] = fields[-1].rstrip("\n")
        kind = kind.rstrip("\n")
        if not row.endswith("\n") or FIELDS.get(kind) != len(fields):
            raise ValueError(f"{name}:{number}: not a record: {row!r}")
        records.append(Record(float(at), kind, tuple(fields)))
    if not records or records[0].kind != "start":
        raise ValueError(f"{name}: does not begin with its start")
    return Journal(node, incarnation, records)


# Calls.


class Run(NamedTuple):
    """A server took a call."""

    incarnation: str
    name: str
    number: str
    value: str


@dataclass
class Call:
    """A call, where it ran, and its outcome."""

    by: Journal
    kind: str
    name: str
    incarnation: str
    number: str
    outcome: str = ""
    type: str = ""
    value: str = ""
    runs: list[Run] = field(default_factory=list)

    @property
    def way(self) -> str:
        """The outcome, as the table shows it."""
        if not self.outcome:
            return OPEN
        return self.outcome if self.type == "-" else f"{self.outcome}:{self.type}"

    def addressed(self, run: Run) -> bool:
        """Whether this server is the one that was called."""
        if self.name != "-":
            return run.name == self.name
        return (run.incarnation, run.number) == (self.incarnation, self.number)


Calls = dict[tuple[str, str], Call]
"""Calls by id and node: a multicall has one id on many nodes."""


def calls_of(journals: Iterable[Journal], faults: list[str]) -> Calls:
    """Collect every call of every journal; records without a call are added to the faults."""
    journals = list(journals)
    calls: Calls = {}
    for journal in journals:
        for record in journal.of("call"):
            ref, kind, node, name, incarnation, number = record.fields
            if (ref, node) in calls:
                faults.append(f"{journal}: two calls {ref} to {node}")
            calls[ref, node] = Call(journal, kind, name, incarnation, number)
    for journal in journals:
        for record in journal.of("end"):
            ref, node, outcome, kind, value = record.fields
            call = calls.get((ref, node))
            if call is None or call.by is not journal:
                faults.append(f"{journal}: an outcome of {ref} to {node}, which it did not call")
            elif call.outcome:
                faults.append(f"{journal}: {ref} to {node} ended twice: {call.outcome}, then {outcome}")
            else:
                call.outcome, call.type, call.value = outcome, kind, value
    ids = {ref for ref, _ in calls}
    for journal in journals:
        for record in journal.of("ran"):
            ref, name, number, value = record.fields
            call = calls.get((ref, journal.node))
            if call is not None:
                call.runs.append(Run(journal.incarnation, name, number, value))
            elif ref in ids:
                faults.append(f"{journal}: ran {ref}, which was not sent to this node")
            else:
                faults.append(f"{journal}: ran {ref}, which was never sent")
    return calls


def call_faults(calls: Calls) -> Iterator[str]:
    """Find outcomes that differ from what happened."""
    for (ref, node), call in calls.items():
        what = f"{ref} ({call.kind}) of {call.by} to {node}"
        if len(call.runs) > 1:
            yield f"{what}: ran {len(call.runs)} times"
        for run in call.runs:
            if not call.addressed(run):
                yield f"{what}: called {call.name} {call.incarnation} {call.number}, but ran in {run}"
        yield from _outcome_faults(what, call)


def _outcome_faults(what: str, call: Call) -> Iterator[str]:
    match call.outcome:
        case "":
            if not call.by.killed:
                yield f"{what}: has no outcome, and its caller was not killed"
        case "not_delivered" | "refused":
            if call.runs:
                yield f"{what}: {call.type} says that it never ran, but it ran"
        case "ok" | "raised":
            if not call.runs:
                yield f"{what}: {call.outcome}, but it never ran"
            elif call.value != call.runs[0].value:
                yield f"{what}: got {call.value}, but the server answered {call.runs[0].value}"
        case "unknown" | "cancelled":
            if call.type == "ProcessDown" and not call.runs:
                yield f"{what}: ProcessDown says that it was taken, but it never ran"
        case other:
            yield f"{what}: ended with {call.type}, which is not an outcome of a call ({other})"


def table_of(calls: Calls) -> dict[str, Counter[str]]:
    """Count for each kind of call how many ended in which way, and how many OutcomeUnknown have run."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for call in calls.values():
        row = table[call.kind]
        row[call.way] += 1
        row["in all"] += 1
        if call.outcome in (UNKNOWN, CANCELLED, "") and call.runs:
            row["of the unknown ran"] += 1
    return dict(table)


def shown(table: dict[str, Counter[str]]) -> str:
    """Format the table: one column for each kind of call, one row for each outcome."""
    kinds = sorted(table)
    ways = sorted({way for row in table.values() for way in row} - {"in all", "of the unknown ran"})
    lines = [f"{'':30}" + "".join(f"{kind:>10}" for kind in (*kinds, "all"))]
    for way in (*ways, "in all", "of the unknown ran"):
        counts = [table[kind][way] for kind in kinds]
        lines.append(f"{way:30}" + "".join(f"{count:10,}" for count in (*counts, sum(counts))))
    return "\n".join(lines)


# One-way messages.


class Sent(NamedTuple):
    """A one-way message: its sender, the line in the sender's journal, and the target's incarnation."""

    by: Journal
    place: int
    to: tuple[str, str]


Streams = dict[str, dict[int, Sent]]


def streams_of(journals: Iterable[Journal], faults: list[str]) -> tuple[Streams, set[tuple[str, int]]]:
    """Return stream → number → message, and the unsent ones. A stream has one sender and one receiver."""
    streams: Streams = defaultdict(dict)
    unsent: set[tuple[str, int]] = set()
    for journal in journals:
        for place, record in enumerate(journal.records):
            if record.kind == "send":
                stream, seq, node, incarnation = record.fields
                if int(seq) != len(streams[stream]) + 1:
                    faults.append(f"{journal}: message {seq} of {stream} after {len(streams[stream])}")
                streams[stream][int(seq)] = Sent(journal, place, (node, incarnation))
            elif record.kind == "unsent":
                unsent.add((record.fields[0], int(record.fields[1])))
    return streams, unsent


def stream_faults(journals: list[Journal], seen: Counter[str]) -> Iterator[str]:
    """Find reordering, duplicates and gaps without a nodedown at the sender; count gaps that had one."""
    faults: list[str] = []
    streams, unsent = streams_of(journals, faults)
    yield from faults
    last: dict[str, int] = defaultdict(int)
    for journal in journals:
        for record in journal.of("got"):
            stream, seq = record.fields[0], int(record.fields[1])
            sent = streams.get(stream, {}).get(seq)
            if sent is None:
                yield f"{journal}: got {seq} of {stream}, which was never sent"
                continue
            if sent.to != journal.key:
                yield f"{journal}: got {seq} of {stream}, which was sent to {sent.to}"
            if (stream, seq) in unsent:
                yield f"{journal}: got {seq} of {stream}, which was reported not delivered"
            if seq <= last[stream]:
                yield f"{journal}: got {seq} of {stream} after {last[stream]}"
                continue
            lost = [n for n in range(last[stream] + 1, seq) if (stream, n) not in unsent]
            if lost and _told(sent, streams[stream][lost[-1]].place, sent.place):
                seen["gaps after a nodedown"] += 1
            elif lost:
                yield f"{journal}: {lost} of {stream} lost before {seq}, and no nodedown for their sender"
            last[stream] = seq
    yield from _tail_faults(journals, streams, unsent, last)


def _told(sent: Sent, after: int, before: int) -> bool:
    between = sent.by.records[after:before]
    return any(record.kind == "down" and record.fields == sent.to for record in between)


def _tail_faults(
    journals: list[Journal], streams: Streams, unsent: set[tuple[str, int]], last: dict[str, int]
) -> Iterator[str]:
    """Check that the last message arrived if both ends and their connection lived to the end.

    A one-way message to a process that has crashed is dropped without a report.
    """
    alive = {journal.key for journal in journals if journal.has("quiet")}
    crashed = {".".join(record.fields) for journal in journals for record in journal.of("crash")}
    for stream, messages in streams.items():
        lost = [n for n in messages if n > last[stream] and (stream, n) not in unsent]
        if not lost or stream.partition(">")[2] in crashed:
            continue
        sent = messages[lost[-1]]
        if sent.to not in alive or sent.by.key not in alive:
            continue
        quiet = next(n for n, record in enumerate(sent.by.records) if record.kind == "quiet")
        if not _told(sent, sent.place, quiet):
            yield f"{sent.by}: {lost} of {stream} lost at its end, and no nodedown for their sender"


# What nodes saw of each other.


class Fault(NamedTuple):
    """A fault of one run of a node, from ``at`` until ``until``, in seconds since the epoch."""

    what: str
    victim: tuple[str, str]
    at: float
    until: float


def view_faults(journals: Iterable[Journal]) -> Iterator[str]:
    """Check that nodeup and nodedown of a node alternate, and that all nodes see each other at the end."""
    journals = list(journals)
    alive = {journal.key for journal in journals if journal.has("quiet")}
    for journal in journals:
        seen: dict[str, str] = {}
        for record in journal.of("up", "down", "quiet"):
            match record.kind, record.fields:
                case "up", (node, incarnation):
                    if node in seen:
                        yield f"{journal}: nodeup of {node} {incarnation} while it was up ({seen[node]})"
                    seen[node] = incarnation
                case "down", (node, incarnation):
                    if seen.pop(node, None) != incarnation:
                        yield f"{journal}: nodedown of {node} {incarnation}, which was not up"
                case _:
                    if set(seen.items()) != alive - {journal.key}:
                        yield f"{journal}: at the end it saw {sorted(seen.items())}"


def ending_faults(journals: Iterable[Journal]) -> Iterator[str]:
    """Check that each node that was not killed left in order."""
    for journal in journals:
        if not journal.killed and not journal.has("stop"):
            yield f"{journal}: was not killed, but its journal does not end with its stop"


def witness_faults(
    journals: Iterable[Journal], faults: list[Fault], notice_s: dict[str, float], seen: Counter[str]
) -> Iterator[str]:
    """Check that each surviving node that was connected to the victim of a fault saw its nodedown.

    Args:
        journals: the journals of all runs.
        faults: the faults of nodes.
        notice_s: kind of fault → seconds within which it must have been noticed.
        seen: kind of fault → how many nodes noticed; filled here.
    """
    journals = list(journals)
    for fault in faults:
        end = fault.at + notice_s[fault.what]
        for witness in journals:
            if witness.key == fault.victim or _disturbed(witness, faults, fault.at, end):
                continue
            before = [r for r in witness.of("up", "down") if r.fields == fault.victim and r.at < fault.at]
            if not before or before[-1].kind == "down":
                continue
            downs = (r for r in witness.of("down") if r.fields == fault.victim)
            if any(fault.at <= r.at <= end for r in downs):
                seen[fault.what] += 1
            else:
                yield f"{witness}: did not notice within {end - fault.at:g} s: {fault}"


def meeting_faults(
    journals: Iterable[Journal], faults: list[Fault], settle_s: float, seen: Counter[str]
) -> Iterator[str]:
    """Check that two runs without a fault for ``settle_s`` seconds have connected."""
    journals = list(journals)
    for journal in journals:
        for other in journals:
            begin = max(journal.records[0].at, other.records[0].at)
            end = begin + settle_s
            if (
                journal is other
                or _disturbed(journal, faults, begin, end)
                or _disturbed(other, faults, begin, end)
            ):
                continue
            if any(record.fields == other.key and record.at <= end for record in journal.of("up")):
                seen["met"] += 1
            else:
                yield f"{journal}: did not meet {other} within {settle_s:g} s"


def _disturbed(journal: Journal, faults: list[Fault], begin: float, end: float) -> bool:
    """Whether the node was missing for a part of the time."""
    first, last = journal.records[0].at, journal.records[-1].at
    if first > begin or last < end:
        return True
    return any(fault.victim == journal.key and fault.at <= end and fault.until >= begin for fault in faults)


# All checks.


@dataclass
class Report:
    """The result of all checks."""

    violations: list[str]
    table: dict[str, Counter[str]]
    seen: Counter[str]

    def total(self, *outcomes: str) -> int:
        """Count the calls with this outcome."""
        return sum(
            count
            for row in self.table.values()
            for way, count in row.items()
            if way.partition(":")[0] in outcomes
        )


def check(
    journals: list[Journal], faults: list[Fault], notice_s: dict[str, float], settle_s: float
) -> Report:
    """Run every check."""
    violations: list[str] = []
    seen: Counter[str] = Counter()
    calls = calls_of(journals, violations)
    violations += call_faults(calls)
    violations += stream_faults(journals, seen)
    violations += view_faults(journals)
    violations += ending_faults(journals)
    violations += witness_faults(journals, faults, notice_s, seen)
    violations += meeting_faults(journals, faults, settle_s, seen)
    for journal in journals:
        seen["messages got"] += sum(1 for _ in journal.of("got"))
        seen["messages sent"] += sum(1 for _ in journal.of("send"))
    return Report(violations, table_of(calls), seen)
