"""A fake node without a network, for tests of the remote shell and the doctor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fleetlm.core.topology import PeerInfo
from fleetlm.discovery.own_address import OwnAddress, Rule
from fleetlm.entities.info import KindInfo
from fleetlm.ids import Pid
from fleetlm.processes.info import ProcessInfo
from fleetlm.runtime.info import NodeInfo
from fleetlm.settings import Settings

OTHER = "fleetlm@127.0.0.2"


def row(name: str = OTHER, **changes: Any) -> PeerInfo:
    """Return the row of a connected peer."""
    values: dict[str, Any] = {
        "name": name,
        "status": "up",
        "incarnation": 7,
        "in_dns": True,
        "up_for_s": 12.5,
        "connections": 1,
        "attempts": 0,
        "last_error": "",
        "last_error_age_s": None,
        "lag_ms": 0,
        "draining": False,
    }
    return PeerInfo(**(values | changes))


def node_info(**changes: Any) -> NodeInfo:
    """Return the info of a node with one peer."""
    values: dict[str, Any] = {
        "name": "fleetlm@127.0.0.1",
        "incarnation": 5,
        "uptime_s": 60.0,
        "own_address_why": "set by FLEETLM_NODE_IP",
        "own_address_warning": None,
        "cluster": "",
        "listening": ("10.0.0.1:4370",),
        "cookie": False,
        "exposure_warning": None,
        "discovery": "a list of 2 addresses",
        "dns_verdict": "addresses: 2 addresses",
        "dns_age_s": 1.0,
        "polls": 9,
        "lag_ms": 0,
        "draining": False,
        "observed_ips": (),
        "processes": 1,
        "messages_sent": 0,
        "messages_received": 0,
        "undelivered": 0,
        "unreadable": 0,
        "stalled": (),
        "peers": (row(),),
    }
    return NodeInfo(**(values | changes))


class FakeGroups:
    """One group, ``workers``, with one member on this node and one on another."""

    def __init__(self, pids: list[Pid]) -> None:
        self.pids = {"workers": [pids[0], Pid(OTHER, 7, 1)]}

    def list(self) -> Any:
        return sorted(self.pids)

    def members(self, group: str) -> Any:
        return self.pids.get(group, [])

    def local_members(self, group: str) -> Any:
        return self.members(group)[:1]


class FakeEntities:
    """Keyed entities of the kinds that a test names."""

    def __init__(self) -> None:
        self.known: list[KindInfo] = []

    def info(self) -> Any:
        return self.known

    def kinds(self) -> Any:
        return [each.kind for each in self.known]


class FakeNode:
    """Has the methods of a node that the remote shell uses, and records calls in ``told``."""

    def __init__(self, name: str = "fleetlm@127.0.0.1", **settings: Any) -> None:
        self.name = name
        self.incarnation = 5
        self.settings = Settings().replace(dns_query="127.0.0.1,127.0.0.2", **settings)
        self.own_address = OwnAddress(name.partition("@")[2], "set by FLEETLM_NODE_IP", Rule.EXPLICIT)
        self.pids = [Pid(name, 5, number) for number in (1, 2)]
        self.told: list[Any] = []
        self.groups = FakeGroups(self.pids)
        self.entities = FakeEntities()
        self._parts = SimpleNamespace(entity_kinds=self.entities.info)

    def list(self, *selectors: str) -> list[str]:
        self.told.append(selectors)
        return [OTHER]

    def info(self, name: str | None = None) -> NodeInfo | PeerInfo | None:
        if name is None:
            return node_info(name=self.name)
        return row() if name == OTHER else None

    async def ping(self, name: str, timeout: float) -> str:
        self.told.append(("ping", name, timeout))
        return "pong" if name == OTHER else "pang"

    async def connect(self, name: str, timeout: float) -> bool:
        self.told.append(("connect", name, timeout))
        return name == OTHER

    def disconnect(self, name: str) -> bool:
        return name == OTHER

    def processes(self) -> Any:
        return [self.process_info(pid) for pid in reversed(self.pids)]

    def process_info(self, pid: Pid) -> ProcessInfo | None:
        if pid not in self.pids:
            return None
        return process_info(pid)

    def supervisors(self) -> dict[Pid, Any]:
        return {}

    def registered(self) -> dict[str, Pid]:
        return {"sessions": self.pids[0]}


def process_info(pid: Pid) -> ProcessInfo:
    """Return the info of a process that waits for messages."""
    import dataclasses

    known: dict[str, Any] = {"pid": pid, "name": "sessions", "runs": "sessions.run", "state": "waiting"}
    return ProcessInfo(**{field.name: known.get(field.name, 0) for field in dataclasses.fields(ProcessInfo)})
