"""What a node shows at one moment, as plain values: taken on its event loop, in bounded time.

A scrape must not hold up the node, whatever the sizes of its tables. What is looked at for each scrape is the
table of peers (at most `Settings.max_peers`), the labels of groups, and lengths of tables. Mailboxes are the
exception, since a node may have 100,000 processes: `Depths` looks at `MAILBOXES_AT_ONCE` of them, and goes on
in the next turns of the loop where there are more. Such a scrape shows the last whole pass, which began with
the scrape before.

Sums for peers. A session counts from its begin, and is gone with its end; a row of the table of peers may be
forgotten. So what a session has carried since the last look is added to sums that belong to the label
(`PeerSums`), and the sums of a label only grow while it is there.
"""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import fleetlm
from fleetlm.core.dns_answers import Outcome
from fleetlm.core.shard_table import MAX_KINDS
from fleetlm.messaging.traffic import Traffic
from fleetlm.metrics.counts import Counts, Histogram
from fleetlm.metrics.labels import MAX_GROUPS, MAX_HANDLERS, MAX_PEERS, OTHER, LabelSet
from fleetlm.telemetry import DROPS, ENDS

if TYPE_CHECKING:
    from fleetlm.messaging.session import Session
    from fleetlm.node import Node
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.runtime.assembly import Assembly

MAILBOXES_AT_ONCE: Final = 8_192
"""Mailboxes that are looked at in one turn of the loop: about a millisecond."""
STATES: Final = ("discovered", "wanted", "dialling", "up", "busy", "down")
"""What `Peer.status` may be."""
HANDOFF_ENDS: Final = ("given", "taken", "stayed")
"""How a handoff may end here: another host has the shard, this one has it, or nothing has changed."""
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = resource.getpagesize()
_CARRIED = (
    ("fleetlm_sent_messages_total", "messages_sent"),
    ("fleetlm_received_messages_total", "messages_received"),
    ("fleetlm_sent_bytes_total", "bytes_sent"),
    ("fleetlm_received_bytes_total", "bytes_received"),
)
"""Series of what is exchanged with peers, each with its attribute of `Traffic`."""

Labels = tuple[str, ...]
Value = float | Histogram
Reading = dict[str, list[tuple[Labels, Value]]]
"""By the name of a series: the values of its labels, and the number or the histogram."""


class Depths:
    """The lengths of all mailboxes, looked at in passes.

    Args:
        local: the processes of the node.
        soon: calls a function in a later turn of the loop.
    """

    def __init__(self, local: LocalProcesses, soon: Callable[[Callable[[], None]], object]) -> None:
        self._local = local
        self._soon = soon
        self._left: list[int] = []
        """Numbers of processes that this pass has not looked at, the next one last."""
        self._sum = self._max = 0
        self.total: int = 0
        """Messages in all mailboxes, by the last whole pass."""
        self.longest: int = 0
        """Messages in the fullest one."""

    def look(self) -> None:
        """Begin a pass, unless one is on its way. Where there are few processes it is whole at once."""
        if not self._left:
            self._left = self._local.numbers()
            self._sum = self._max = 0
            self._go_on()

    def _go_on(self) -> None:
        left, find = self._left, self._local.by_number
        for number in left[-MAILBOXES_AT_ONCE:]:
            process = find(number)
            if process is not None:
                length = len(process.mailbox.queue)
                self._sum += length
                self._max = max(self._max, length)
        del left[-MAILBOXES_AT_ONCE:]
        if left:
            self._soon(self._go_on)
        else:
            self.total, self.longest = self._sum, self._max


class PeerSums:
    """What was exchanged with each peer, by its label."""

    def __init__(self) -> None:
        self._labels = LabelSet(MAX_PEERS)
        self._seen: dict[Session, Traffic] = {}
        """What the sessions that are open had carried at the last look."""
        self._full_s: dict[str, float] = {}
        """The seconds of the `FullClock` of each node at the last look."""
        self.carried: dict[str, Traffic] = {}
        """By label."""
        self.full_s: dict[str, float] = {}
        """Seconds in which senders waited, by label."""

    def label(self, name: str) -> str:
        """Return the label of a peer."""
        return self._labels.label(name)

    def add(self, session: Session, *, is_over: bool = False) -> str:
        """Add what a session has carried since the last look, and return the label of its peer."""
        label = self._labels.label(session.name)
        now, before = Traffic.of(session), self._seen.pop(session, None)
        if not is_over:
            self._seen[session] = now
        self.carried.setdefault(label, Traffic()).add_growth(now, before or Traffic())
        return label

    def add_full(self, name: str, seconds: float, label: str) -> None:
        """Add what the clock of a node shows more than at the last look."""
        before = self._full_s.get(name, 0.0)
        if seconds < before:  # It is another clock than at the last look.
            before = 0.0
        self.full_s[label] = self.full_s.get(label, 0.0) + seconds - before
        self._full_s[name] = seconds

    def forget_all_but(self, present: Any, full: dict[str, Any]) -> None:
        """Forget peers that this node has forgotten. Their labels are free again."""
        for name in self._labels.release_all_but(present):
            self.carried.pop(name, None)
            self.full_s.pop(name, None)
        for name in [name for name in self._full_s if name and name not in present]:
            clock = full.get(name)
            if clock is None or not clock.waiting:
                del self._full_s[name]
                full.pop(name, None)


class Reader:
    """Takes readings of one node. Everything here runs on the node's event loop.

    Args:
        node: the node.
        parts: its machinery.
        counts: what is counted meanwhile.
    """

    def __init__(self, node: Node, parts: Assembly, counts: Counts) -> None:
        self._node = node
        self._parts = parts
        self._counts = counts
        self._peers = PeerSums()
        self._groups = LabelSet(MAX_GROUPS)
        self._depths = Depths(parts.local, parts.context.loop.call_soon)

    def session_ended(self, session: Session) -> None:
        """Keep what a session has carried that ends; see `taps.Taps`."""
        self._peers.add(session, is_over=True)

    def read(self) -> Reading:
        """Take a reading."""
        began = time.perf_counter()
        reading: Reading = {}
        self._read_node(reading)
        self._read_peers(reading)
        self._read_requests(reading)
        self._read_processes(reading)
        self._read_tables(reading)
        self._read_entities(reading)
        self._read_dns(reading)
        reading["fleetlm_scrape_seconds"] = _one(time.perf_counter() - began)
        return reading

    def _read_node(self, reading: Reading) -> None:
        parts = self._parts
        version, python = fleetlm.__version__, platform.python_version()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        reading["fleetlm_build_info"] = [((version, python), 1.0)]
        reading["fleetlm_uptime_seconds"] = _one(parts.context.loop.time() - parts.started_at)
        reading["fleetlm_draining"] = _one(self._node.is_draining)
        reading["fleetlm_loop_lag_seconds"] = _one(parts.driver.lag_ms / 1000)
        reading["fleetlm_loop_late_seconds_total"] = _one(parts.driver.lag_s)
        reading["fleetlm_resident_memory_bytes"] = _one(_resident_bytes(usage.ru_maxrss))
        reading["fleetlm_cpu_seconds_total"] = _one(usage.ru_utime + usage.ru_stime)
        reading["fleetlm_telemetry_lost_events_total"] = _one(self._node.telemetry.lost)

    def _read_peers(self, reading: Reading) -> None:
        parts, sums, counts = self._parts, self._peers, self._counts
        now = parts.context.loop.time()
        rows = parts.kernel.topology.peers
        states = dict.fromkeys(STATES, 0)
        for row in rows.values():
            states[row.status] += 1
        lag: dict[str, float] = {}
        unread: dict[str, int] = {}
        for session in parts.driver.sessions.values():
            label = sums.add(session)
            lag[label] = max(lag.get(label, 0.0), session.peer.lag_ms / 1000)
            unread[label] = unread.get(label, 0) + session.in_flight
        waiting: dict[str, int] = {}
        for name, clock in counts.full.items():
            label = sums.label(name) if name else self._node.name
            sums.add_full(name, clock.seconds(now), label)
            waiting[label] = waiting.get(label, 0) + clock.waiting
        sums.forget_all_but(rows, counts.full)
        reading["fleetlm_peers"] = _by_label(states)
        reading["fleetlm_peer_lag_seconds"] = _by_label(lag)
        reading["fleetlm_unread_bytes"] = _by_label(unread)
        reading["fleetlm_waiting_senders"] = _by_label(waiting)
        reading["fleetlm_window_full_seconds_total"] = _by_label(sums.full_s)
        for series, name in _CARRIED:
            reading[series] = [
                ((label,), float(getattr(carried, name))) for label, carried in sums.carried.items()
            ]
        driver = parts.driver
        for name, ends in (("sessions_ended", driver.ends), ("reconnects", driver.reconnects)):
            found = {kind.value: count for kind, count in ends.items()}
            reading[f"fleetlm_{name}_total"] = _by_label(dict.fromkeys(ENDS, 0) | found)

    def _read_requests(self, reading: Reading) -> None:
        parts, counts = self._parts, self._counts
        sessions = parts.driver.sessions.values()
        open_calls = sum(len(session.calls) for session in sessions) + len(parts.outbound.local_calls)
        reading["fleetlm_call_seconds"] = [((key,), each.copy()) for key, each in counts.calls.items()]
        reading["fleetlm_failed_calls_total"] = _by_label(parts.outbound.failures)
        reading["fleetlm_open_calls"] = _one(open_calls)
        reading["fleetlm_open_requests"] = _one(sum(len(session.requests) for session in sessions))
        reading["fleetlm_handler_seconds"] = [(key, each.copy()) for key, each in counts.handlers.items()]
        reading["fleetlm_handler_failures_total"] = self._handler_failures()
        reading["fleetlm_queue_seconds"] = [((key,), each.copy()) for key, each in counts.queues.items()]

    def _handler_failures(self) -> list[tuple[Labels, Value]]:
        """Return the failures of the handlers that have a label, and those of all others together.

        A pair of actor and handler never goes, so the first ones keep their labels.
        """
        counts = list(self._parts.services.failures.counts.items())
        rest = sum(count for _, count in counts[MAX_HANDLERS:])
        found: list[tuple[Labels, Value]] = [(pair, float(count)) for pair, count in counts[:MAX_HANDLERS]]
        return [*found, ((OTHER, OTHER), float(rest))] if rest else found

    def _read_processes(self, reading: Reading) -> None:
        parts, counts, depths = self._parts, self._counts, self._depths
        depths.look()
        reading["fleetlm_processes"] = _one(parts.local.count)
        reading["fleetlm_processes_spawned_total"] = _one(parts.local.table.spawned_count)
        reading["fleetlm_mailbox_messages"] = _one(depths.total)
        reading["fleetlm_mailbox_messages_max"] = _one(depths.longest)
        reading["fleetlm_undelivered_messages_total"] = _one(parts.inbound.undelivered)
        reading["fleetlm_unreadable_messages_total"] = _one(parts.inbound.unreadable)
        reading["fleetlm_dropped_messages_total"] = _by_label(dict.fromkeys(DROPS, 0) | counts.drops)
        reading["fleetlm_child_restarts_total"] = _one(counts.restarts)
        reading["fleetlm_supervisors_gave_up_total"] = _one(counts.gave_up)

    def _read_tables(self, reading: Reading) -> None:
        parts = self._parts
        own_names, other_names = parts.replicated_names.table.counts()
        groups = parts.replicated_groups.table
        sizes = {
            "registered_names": len(parts.local.table.names),
            "own_cluster_names": own_names,
            "other_cluster_names": other_names,
            "groups": groups.count,
            "monitors": parts.signals.links.count_monitors(),
            "peers": len(parts.kernel.topology.peers),
            "sessions": len(parts.driver.sessions),
            "waits": parts.outbound.waits.count,
        }
        reading["fleetlm_table_entries"] = _by_label(sizes)
        reading["fleetlm_group_members"] = _by_label(self._group_sizes())

    def _group_sizes(self) -> dict[str, int]:
        """Return the memberships of the groups that have a label, and those of all others together."""
        groups, labels = self._parts.replicated_groups.table, self._groups
        labels.release_all_but([name for name in labels.values() if groups.has(name)])
        for name, _ in groups.first(2 * MAX_GROUPS, 2 * MAX_GROUPS):
            labels.label(name)
        sizes = {name: groups.members(name).joins for name in labels.values()}
        others = groups.memberships - sum(sizes.values())
        return sizes | {OTHER: others} if groups.count > len(labels) else sizes

    def _read_entities(self, reading: Reading) -> None:
        """Read the kinds that this node hosts: `MAX_KINDS` at most, and their names come from the program."""
        for info in self._parts.entity_kinds(MAX_KINDS):
            own, kind = info.hosted, (info.kind,)
            if own is None:
                continue
            values: dict[str, float] = {
                "fleetlm_entities": own.alive,
                "fleetlm_entity_kept_bytes": own.kept_bytes,
                "fleetlm_entity_shards": own.owned,
                "fleetlm_entity_shards_unowned": info.unowned,
                "fleetlm_entity_shards_moving": own.moving,
                "fleetlm_entities_activated_total": own.activated,
                "fleetlm_entities_fenced_total": own.fenced,
            }
            if own.quorum is not None:
                values["fleetlm_entity_quorum"] = own.quorum.holds
            if own.store is not None:
                values["fleetlm_entity_store_failures_total"] = own.store.failures
            for name, value in values.items():
                reading.setdefault(name, []).append((kind, float(value)))
            counts = zip(HANDOFF_ENDS, (own.handed_over, own.taken, own.stayed), strict=True)
            reading.setdefault("fleetlm_entity_handoffs_total", []).extend(
                ((info.kind, end), float(count)) for end, count in counts
            )

    def _read_dns(self, reading: Reading) -> None:
        poller = self._parts.poller
        answer = None if poller is None else poller.last_answer
        if poller is None or answer is None or poller.last_answer_at is None:
            reading["fleetlm_dns_lookups_total"] = _one(0)
            return
        outcomes = {each.value: int(answer.outcome is each) for each in Outcome}
        reading["fleetlm_dns_outcome"] = _by_label(outcomes)
        reading["fleetlm_dns_age_seconds"] = _one(self._parts.context.loop.time() - poller.last_answer_at)
        reading["fleetlm_dns_addresses"] = _one(len(answer.addresses))
        reading["fleetlm_dns_lookups_total"] = _one(poller.polls)


def _one(value: float) -> list[tuple[Labels, Value]]:
    return [((), float(value))]


def _by_label(values: dict[str, Any]) -> list[tuple[Labels, Value]]:
    return [((label,), float(value)) for label, value in values.items()]


def _resident_bytes(peak: int) -> int:
    """Return the memory that this process has now; where the system does not say it, the most that it had.

    Args:
        peak: ``ru_maxrss``, which macOS gives in bytes and all others in KiB.
    """
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except OSError:
        return peak if sys.platform == "darwin" else peak * 1024
