"""Test kit: everything needed to test a program on fleetlm without a network or a wait.

`SimCluster` runs real nodes on `SimLoop`'s virtual time, `SimNetwork` and `SimDns`: crashes,
partitions and sick name servers happen in one process, in no time, and the same way for the same
seed. `DnsServer` is a real name server on loopback whose answers a test scripts.
"""

from __future__ import annotations

from fleetlm.testing.cluster import Leaked, NotMeshed, SimCluster
from fleetlm.testing.discovery import Reply, Script, SimDiscovery, SimDns
from fleetlm.testing.dns import DnsServer
from fleetlm.testing.loop import (
    Deadlock,
    LeftOver,
    LimitReached,
    NotSimulated,
    SimLoop,
    SimulationError,
    Unhandled,
    run,
)
from fleetlm.testing.network import SimNetwork, SimTransport

__all__ = [
    "Deadlock",
    "DnsServer",
    "Leaked",
    "LeftOver",
    "LimitReached",
    "NotMeshed",
    "NotSimulated",
    "Reply",
    "Script",
    "SimCluster",
    "SimDiscovery",
    "SimDns",
    "SimLoop",
    "SimNetwork",
    "SimTransport",
    "SimulationError",
    "Unhandled",
    "run",
]
