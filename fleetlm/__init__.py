"""fleetlm: worker processes become one cluster, as Erlang nodes do.

    async with fleetlm.Node.start() as node:
        node.spawn(printer, name="printer")
        await node.send(("printer", "fleetlm@10.0.0.7"), {"any": "message"})
"""

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
    RemoteError,
    SettingsError,
    StartFailed,
    Undecodable,
    Unknown,
    WouldBlock,
)
from fleetlm.ids import Pid, Ref
from fleetlm.info import NodeInfo
from fleetlm.messages import NodeDown, NodeUp, message
from fleetlm.names import Address, NodeName
from fleetlm.node import Node
from fleetlm.process import Process, ProcessInfo
from fleetlm.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "Address",
    "AlreadyRegistered",
    "Answer",
    "Call",
    "CallTimeout",
    "Discovery",
    "DnsDiscovery",
    "Draining",
    "FleetError",
    "InvalidName",
    "MessageTooLarge",
    "NoConnection",
    "NoProcess",
    "Node",
    "NodeDown",
    "NodeInfo",
    "NodeLost",
    "NodeName",
    "NodeStopped",
    "NodeUp",
    "NotDelivered",
    "NotSerializable",
    "Outcome",
    "PeerInfo",
    "Pid",
    "Process",
    "ProcessDown",
    "ProcessInfo",
    "Ref",
    "RemoteError",
    "Settings",
    "SettingsError",
    "StartFailed",
    "StaticDiscovery",
    "Undecodable",
    "Unknown",
    "WouldBlock",
    "message",
]
