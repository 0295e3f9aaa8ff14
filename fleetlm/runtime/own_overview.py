"""What this node tells of itself in an overview: its part, in JSON types (`core.overview_shape`).

Theory of operation. A node may have 100,000 processes, and somebody may look at it every second. So making a
part has bounds of its own, whatever the sizes of the tables:

* It is made in steps, with other work of the loop in between: `steps` is a generator, and each step takes
  about a millisecond at most.
* Of the processes at most `LOOKED_AT` are looked at for one part, in turn: the next part goes on behind them.
  What was shown last is looked at once more, and so are the supervisors that are known. So a part of a node
  with 100,000 processes shows after a few looks what is busiest there.
* Of groups and names the first ones are shown, by name.

Nothing is noted while nobody looks; `processes.loads` says what that means for the times.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from fleetlm.actors.serving import handler_in
from fleetlm.core.overview_shape import (
    LIMITS,
    MEMBERS,
    TREE_DEPTH,
    Load,
    Part,
    bounded,
    peer_state,
    pick_shown,
)
from fleetlm.messaging.traffic import Traffic
from fleetlm.processes.loads import (
    Seen,
    busy_s,
    children_of,
    handler_of,
    is_gone,
    select_busy,
    select_supervisors,
)

if TYPE_CHECKING:
    from fleetlm.core.kernel import Kernel
    from fleetlm.core.topology import PeerInfo
    from fleetlm.directory.groups import ReplicatedGroups
    from fleetlm.directory.registry import ReplicatedNames
    from fleetlm.discovery.poller import Poller
    from fleetlm.entities.info import KindInfo
    from fleetlm.entities.replicated_shards import ReplicatedShards
    from fleetlm.ids import Pid
    from fleetlm.messaging.inbound import Inbound
    from fleetlm.messaging.outbound import Outbound
    from fleetlm.processes.context import NodeContext
    from fleetlm.processes.info import ChildInfo
    from fleetlm.processes.local import LocalProcesses
    from fleetlm.processes.running import RunningProcess
    from fleetlm.processes.signals import Signals
    from fleetlm.runtime.driver import Driver
    from fleetlm.runtime.events import RecentEvents

LOOKED_AT = 10_000
"""Processes that are looked at for one part, which takes some milliseconds altogether."""
AT_A_TIME = 1_000
"""Processes that are looked at in one step. It takes 0.2 ms if they are idle, and 2 ms if all are busy."""
NAMES_LOOKED_AT = 5_000
"""Groups, and names, of which the first ones are shown: about a millisecond."""
MAX_SUPERVISORS = 1_000
"""Supervisors that are remembered from one part to the next."""
_OF_A_HOST = (
    *("owned", "moving", "alive", "live", "kept_bytes", "max_kept_bytes", "activated", "fenced"),
    *("handed_over", "taken", "stayed"),
)
"""What is shown of a kind where it is hosted, as `HostedInfo` names it."""
LEAST_CHILDREN = 4
"""Children that are shown of each supervisor, even where others have very many."""


class Watched(Protocol):
    """The parts of a node that are looked at; `Assembly` has them all."""

    context: NodeContext
    kernel: Kernel
    local: LocalProcesses
    signals: Signals
    outbound: Outbound
    inbound: Inbound
    driver: Driver
    replicated_groups: ReplicatedGroups
    replicated_names: ReplicatedNames
    replicated_shards: ReplicatedShards
    recent: RecentEvents
    poller: Poller | None
    started_at: float
    exposure_warning: str | None

    def wall_ms(self) -> int:
        """Return the milliseconds of the wall clock."""

    def entity_kinds(self, most: int | None = None) -> list[KindInfo]:
        """Return what is known of each kind of entities; at most so many."""


class OwnOverview:
    """Makes the part of this node."""

    def __init__(self, node: Watched) -> None:
        self._node = node
        self._next = 0
        """The place of the process at which the next part begins to look."""
        self._shown: dict[int, Seen] = {}
        """Number of each process that was shown last → when it was first seen as it is."""
        self._supervisors: dict[int, RunningProcess] = {}
        """The supervisors that are known, by number."""

    def steps(self) -> Iterator[Part | None]:
        """Yield None after each step but the last one, and then the part."""
        links = 0
        for count in self._node.signals.links.count_links(AT_A_TIME):
            links += count
            yield None
        loads = self._loads_of(self._shown_before())
        every = self._node.local.every()
        looked_at = min(len(every), LOOKED_AT)
        begin = self._next % len(every) if len(every) > LOOKED_AT else 0
        self._next = begin + looked_at
        several = every[begin : begin + looked_at]
        several += every[: looked_at - len(several)]
        del every
        for at in range(0, looked_at, AT_A_TIME):
            self._look_at(several[at : at + AT_A_TIME], loads)
            yield None
        del several
        yield self._make(loads, looked_at, links)

    def _shown_before(self) -> list[RunningProcess]:
        found = map(self._node.local.by_number, self._shown)
        return [process for process in found if process is not None]

    def _look_at(self, processes: list[RunningProcess], loads: dict[int, Load]) -> None:
        """Note the loads of those that do something, or for which there is room, and the supervisors."""
        for process in select_supervisors(processes):
            if len(self._supervisors) < MAX_SUPERVISORS:
                self._supervisors[process.pid.number] = process
        loads.update(self._loads_of(select_busy(processes)))
        most = LIMITS["processes"]
        if len(loads) < most:
            loads.update(self._loads_of(each for each in processes[:most] if not is_gone(each)))
        if len(loads) > 2 * most:
            kept = [loads[number] for number in pick_shown(loads.values(), most)]
            loads.clear()
            loads.update((load[2], load) for load in kept)

    def _loads_of(self, processes: Iterable[RunningProcess]) -> dict[int, Load]:
        """Return the loads of processes, by number."""
        now, seen = self._node.context.loop.time(), self._shown.get
        return {
            (number := process.pid.number): (
                -len(process.mailbox.queue), -busy_s(process, now, seen(number)), number
            )
            for process in processes
        }  # fmt: skip

    # Making the part.

    def _make(self, loads: dict[int, Load], looked_at: int, links: int) -> Part:
        """Make the part, from what does not change meanwhile, since this is one step."""
        node = self._node
        context, settings, now = node.context, node.context.settings, node.context.loop.time()
        poller, traffic = node.poller, node.driver.ended.plus(context.sessions.values())
        answer = None if poller is None else poller.last_answer
        answered_at = None if poller is None else poller.last_answer_at
        left_out: dict[str, int] = {}
        rows = node.kernel.topology.info(now)
        _leave_out(left_out, "peers", len(rows) - LIMITS["peers"])
        _leave_out(left_out, "processes", node.local.count - LIMITS["processes"])
        _leave_out(left_out, "processes not looked at", node.local.count - looked_at)
        is_leaving = bool(node.kernel.is_leaving or node.outbound.stopped)
        return {
            "name": context.name,
            "incarnation": context.incarnation,
            "version": getattr(sys.modules.get("fleetlm"), "__version__", ""),
            "pid": os.getpid(),
            "host": node.kernel.topology.me.name.rpartition("@")[2],
            "uptime_s": now - node.started_at,
            "wall_ms": node.wall_ms(),
            "state": "leaving" if is_leaving else "draining" if context.drain_step(context.name) else "up",
            "lag_ms": node.driver.lag_ms,
            "cookie": settings.cookie is not None,
            "exposure_warning": None if node.exposure_warning is None else bounded(node.exposure_warning),
            "dns": {
                "query": bounded(settings.dns_query or ""),
                "verdict": "" if answer is None else bounded(f"{answer.outcome.value}: {answer.detail}"),
                "age_s": None if answered_at is None else now - answered_at,
                "polls": 0 if poller is None else poller.polls,
            },
            "peers": [self._show_peer(row) for row in rows[: LIMITS["peers"]]],
            "processes": {"count": node.local.count, "shown": self._show_processes(loads)},
            "trees": self._show_trees(left_out),
            "groups": self._show_groups(left_out),
            "names": self._show_names(left_out),
            "kinds": self._show_kinds(left_out),
            "counters": {
                **{name: getattr(traffic, name) for name in Traffic.__slots__},
                "undelivered": node.inbound.undelivered,
                "unreadable": node.inbound.unreadable,
                "polls": 0 if poller is None else poller.polls,
            },
            "tables": {
                "processes": node.local.count,
                "links": links,
                "monitors": node.signals.links.count_monitors(),
                "names": node.replicated_names.table.count,
                "groups": node.replicated_groups.table.count,
                "sessions": len(context.sessions),
                "peers": len(rows),
                "open_calls": sum(len(session.calls) for session in context.sessions.values()),
                "served_calls": sum(len(session.requests) for session in context.sessions.values()),
            },
            "stalled": [bounded(text) for text in node.outbound.waits.stalled(settings.stalled_after_s)],
            "events": [{**row, "text": bounded(row["text"])} for row in node.recent.rows()],
            "left_out": left_out,
        }

    def _show_peer(self, row: PeerInfo) -> Part:
        session = self._node.context.sessions.get(row.name)
        traffic = Traffic() if session is None else Traffic.of(session)
        return {
            "name": row.name,
            "state": peer_state(row.status, is_draining=row.draining),
            "road": {"": None, "zeromq": "zmq"}.get(row.road, row.road),
            "up_s": row.up_for_s,
            "ups": row.connections,
            "last_error": bounded(row.last_error),
            "lag_ms": row.lag_ms,
            **{name: getattr(traffic, name) for name in Traffic.__slots__},
            "outstanding": 0 if session is None else len(session.calls),
        }

    def _show_processes(self, loads: dict[int, Load]) -> list[Part]:
        now, before, self._shown = self._node.context.loop.time(), self._shown, {}
        rows = []
        for number in pick_shown(loads.values(), LIMITS["processes"]):
            process = self._node.local.by_number(number)
            if process is None:
                continue
            taken, since = before.get(number, (-1, now))
            self._shown[number] = process.mailbox.taken, since if taken == process.mailbox.taken else now
            info = process.info()
            rows.append({
                "pid": str(info.pid),
                "name": bounded(info.name or ""),
                "runs": bounded(info.runs),
                "mailbox": info.mailbox,
                "taken": info.taken,
                "open_calls": info.open_calls,
                "state": info.state,
                "serving": bounded(handler_of(process, handler_in)),
                "serving_s": -loads[number][1],
                "waits_for": bounded(info.waits_for),
                "local": self._node.local.is_local(number),
            })  # fmt: skip
        return rows

    # Trees.

    def _show_trees(self, left_out: dict[str, int]) -> list[Part]:
        """Return the trees, level by level up to the limit, so that a large one does not hide the others."""
        local = self._node.local
        for number in [n for n, process in self._supervisors.items() if is_gone(process)]:
            del self._supervisors[number]
        roots: list[Part] = []
        left = LIMITS["trees"]
        level: list[tuple[RunningProcess, Part]] = []
        for process in sorted(self._supervisors.values(), key=lambda each: each.pid.number):
            parent = None if process.parent is None else local.process(process.parent)
            if children_of(parent) is not None:
                continue
            if left == 0:
                _leave_out(left_out, "trees", 1)
                continue
            left -= 1
            roots.append(self._show_branch(process.pid, process.name or "", process, None))
            level.append((process, roots[-1]))
        for depth in range(TREE_DEPTH):
            below: list[tuple[RunningProcess, Part]] = []
            for nth, (process, row) in enumerate(level):
                children = children_of(process)
                assert children is not None, "nothing has run since it was looked at"
                share = 0 if depth == TREE_DEPTH - 1 else max(LEAST_CHILDREN, left // (len(level) - nth))
                infos = children.infos(min(left, share))
                left -= len(infos)
                _leave_out(left_out, "trees", children.count - len(infos))
                for info in infos:
                    child = None if info.pid is None else local.process(info.pid)
                    row["children"].append(self._show_branch(info.pid, info.id, child, info))
                    if child is not None and children_of(child) is not None:
                        below.append((child, row["children"][-1]))
            level = below
        return roots

    def _show_branch(
        self, pid: Pid | None, name: str, process: RunningProcess | None, info: ChildInfo | None
    ) -> Part:
        children = children_of(process)
        is_local = process is not None and self._node.local.is_local(process.pid.number)
        return {
            "pid": "" if pid is None else str(pid),
            "name": bounded(name),
            "runs": bounded(info.runs if info is not None else "" if process is None else process.runs),
            "state": info.state if info is not None else "" if process is None else process.info().state,
            "restart": "" if info is None else info.restart,
            "restarts": 0 if info is None else info.restarts,
            "restarted": 0 if children is None else children.restarts,
            "local": is_local,
            "children": [],
        }

    # Directory.

    def _show_groups(self, left_out: dict[str, int]) -> dict[str, Any]:
        table, most = self._node.replicated_groups.table, LIMITS["groups"]
        _leave_out(left_out, "groups", table.count - most)
        return {
            bounded(name): {
                "members": [str(pid) for pid in dict.fromkeys(islice(members, MEMBERS))],
                "count": members.processes,
            }
            for name, members in table.first(most, NAMES_LOOKED_AT)
        }

    def _show_names(self, left_out: dict[str, int]) -> dict[str, str]:
        table, most = self._node.replicated_names.table, LIMITS["names"]
        _leave_out(left_out, "names", table.count - most)
        return {bounded(name): str(claim.pid) for name, claim in table.first(most, NAMES_LOOKED_AT)}

    def _show_kinds(self, left_out: dict[str, int]) -> dict[str, Part]:
        most = LIMITS["kinds"]
        _leave_out(left_out, "kinds", len(self._node.replicated_shards.table.kinds()) - most)
        return {bounded(info.kind): _show_kind(info) for info in self._node.entity_kinds(most)}


def _show_kind(info: KindInfo) -> Part:
    own = info.hosted
    quorum = None if own is None else own.quorum
    store = None if own is None else own.store
    shown: Part = {
        "shards": info.shards,
        "unowned": info.unowned,
        "hosts": info.hosts,
        "differing": {bounded(node): shards for node, shards in info.differing.items()},
        "is_hosted": own is not None,
        "runs": "" if own is None else bounded(own.runs),
        "quorum": None
        if quorum is None
        else {"expected": quorum.expected, "seen": quorum.seen, "holds": quorum.holds},
        "store": None
        if store is None
        else {
            "name": bounded(store.name),
            "durable": store.durable,
            "failures": store.failures,
            "fails": store.fails,
        },
    }
    return shown | {name: 0 if own is None else getattr(own, name) for name in _OF_A_HOST}


def _leave_out(left_out: dict[str, int], what: str, count: int) -> None:
    if count > 0:
        left_out[what] = left_out.get(what, 0) + count
