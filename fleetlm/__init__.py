"""fleetlm: worker processes become one cluster, as Erlang nodes do.

    async with fleetlm.Node.start() as node:
        node.spawn(printer, name="printer")
        await node.send(("printer", "fleetlm@10.0.0.7"), {"any": "message"})

Every public name is here, and is imported when it is used first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetlm.call import Call
    from fleetlm.core.answers import Answer, Outcome
    from fleetlm.core.topology import PeerInfo
    from fleetlm.discovery import Discovery, DnsDiscovery, StaticDiscovery
    from fleetlm.errors import (
        AlreadyRegistered,
        CallTimeout,
        Draining,
        FleetError,
        InvalidName,
        MessageTooLarge,
        NoConnection,
        NodeLost,
        NodeStopped,
        NoProcess,
        NotDelivered,
        NotSerializable,
        ProcessDown,
        ProcessExit,
        RemoteError,
        SettingsError,
        StartFailed,
        Undecodable,
        Unknown,
        WorkerDied,
        WouldBlock,
    )  # fmt: skip
    from fleetlm.ids import Pid, Ref
    from fleetlm.info import NodeInfo
    from fleetlm.messages import Crash, Down, Exit, NodeDown, NodeUp, message
    from fleetlm.names import Address, NodeName
    from fleetlm.node import Node
    from fleetlm.node_thread import node_in_thread
    from fleetlm.process import Process, ProcessInfo
    from fleetlm.settings import Settings
    from fleetlm.supervisor import Child, Supervisor
    from fleetlm.sync import SyncNode

__version__ = "0.1.0"

__all__ = [
    "Address", "AlreadyRegistered", "Answer", "Call", "CallTimeout", "Child", "Crash", "Discovery",
    "DnsDiscovery", "Down", "Draining", "Exit", "FleetError", "InvalidName", "MessageTooLarge",
    "NoConnection", "NoProcess", "Node", "NodeDown", "NodeInfo", "NodeLost", "NodeName",
    "NodeStopped", "NodeUp", "NotDelivered", "NotSerializable", "Outcome", "PeerInfo", "Pid",
    "Process", "ProcessDown", "ProcessExit", "ProcessInfo", "Ref", "RemoteError", "Settings",
    "SettingsError", "StartFailed", "StaticDiscovery", "Supervisor", "SyncNode", "Undecodable",
    "Unknown", "WorkerDied", "WouldBlock", "message", "node_in_thread",
]  # fmt: skip

_NAMES_OF = {
    "fleetlm.call": "Call",
    "fleetlm.core.answers": "Answer Outcome",
    "fleetlm.core.topology": "PeerInfo",
    "fleetlm.discovery": "Discovery DnsDiscovery StaticDiscovery",
    "fleetlm.errors": (
        "AlreadyRegistered CallTimeout Draining FleetError InvalidName MessageTooLarge NoConnection "
        "NodeLost NodeStopped NoProcess NotDelivered NotSerializable ProcessDown ProcessExit "
        "RemoteError SettingsError StartFailed Undecodable Unknown WorkerDied WouldBlock"
    ),
    "fleetlm.ids": "Pid Ref",
    "fleetlm.info": "NodeInfo",
    "fleetlm.messages": "Crash Down Exit NodeDown NodeUp message",
    "fleetlm.names": "Address NodeName",
    "fleetlm.node": "Node",
    "fleetlm.node_thread": "node_in_thread",
    "fleetlm.process": "Process ProcessInfo",
    "fleetlm.settings": "Settings",
    "fleetlm.supervisor": "Child Supervisor",
    "fleetlm.sync": "SyncNode",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Import a public name at its first use: `fleetlm remote` starts without ZeroMQ, DNS and asyncio."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
