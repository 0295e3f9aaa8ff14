"""Members of groups and tables of programs, for threads."""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fleetlm.threads.arrivals import SyncSubscription

if TYPE_CHECKING:
    from fleetlm.directory.members import Member
    from fleetlm.directory.tables import Change, SharedTable
    from fleetlm.ids import Pid
    from fleetlm.runtime.thread_requests import ThreadRequests

T = TypeVar("T")


class SyncMember:
    """One membership of a process, for threads: `Member` with methods that block."""

    __slots__ = ("_member", "_requests", "group", "pid")

    def __init__(self, member: Member, requests: ThreadRequests) -> None:
        self._member = member
        self._requests = requests
        self.group: str = member.group
        self.pid: Pid = member.pid

    def __repr__(self) -> str:
        return f"<Sync{repr(self._member)[1:]}"

    def describe(self, meta: Any) -> None:
        """See `Member.describe`."""
        describe = functools.partial(self._member.describe, meta)
        self._requests.run_now("member.describe", self.group, describe)

    def report(self, gauges: Mapping[str, float] | None = None, /, **named: float) -> None:
        """See `Member.report`."""
        report = functools.partial(self._member.report, gauges, **named)
        self._requests.run_now("member.report", self.group, report)


class SyncTable:
    """A table of the whole cluster, for threads: `SharedTable` with methods that block."""

    __slots__ = ("_requests", "_table", "name")

    def __init__(self, table: SharedTable, requests: ThreadRequests) -> None:
        self._table = table
        self._requests = requests
        self.name: str = table.name

    def __repr__(self) -> str:
        return repr(self._table).replace("SharedTable", "SyncTable")

    def put(self, key: str, value: Any) -> None:
        """See `SharedTable.put`."""
        self._run_now("put", functools.partial(self._table.put, key, value))

    def drop(self, key: str) -> bool:
        """See `SharedTable.drop`."""
        return self._run_now("drop", functools.partial(self._table.drop, key))

    def get(self, key: str) -> dict[str, Any]:
        """See `SharedTable.get`."""
        return self._run_now("get", functools.partial(self._table.get, key))

    def own(self, key: str, default: Any = None) -> Any:
        """See `SharedTable.own`."""
        return self._run_now("own", functools.partial(self._table.own, key, default))

    def of(self, node: str, key: str, default: Any = None) -> Any:
        """See `SharedTable.of`."""
        return self._run_now("of", functools.partial(self._table.of, node, key, default))

    def keys(self) -> builtins.list[str]:
        """See `SharedTable.keys`."""
        return self._run_now("keys", self._table.keys)

    def watch(self, key: str | None = None) -> SyncSubscription[Change]:
        """See `SharedTable.watch`; returns a subscription for threads."""
        changes = self._run_now("watch", functools.partial(self._table.watch, key))
        return SyncSubscription(changes, self.name, self._requests)

    def _run_now(self, verb: str, function: Callable[[], T]) -> T:
        return self._requests.run_now(f"table.{verb}", self.name, function)
