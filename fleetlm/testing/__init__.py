"""Test kit: test a program on fleetlm without a network and without waiting.

    async def test_a_dead_node_leaves_every_list(fleet: fleetlm.testing.Fleet) -> None:
        one, two, three = await fleet.start(3)
        await fleet.crash(three)
        await fleet.until(lambda: one.list() == [two.name])

The pytest fixture ``fleet`` returns a `Fleet`: real nodes on the virtual time of `SimLoop`, on
`SimNetwork` and `SimDns`. Crashes, partitions and failing name servers are simulated in one process,
take milliseconds, and happen in the same way for the same seed. `SimCluster` and `run` do the same
without pytest. `DnsServer` is a real name server on loopback whose answers a test scripts.

Every public name is exported here and imported at its first use, because pytest loads the plugin,
which is part of this package, in every run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetlm.testing.cluster import Leaked, NotMeshed, SimCluster
    from fleetlm.testing.dns_server import DnsServer
    from fleetlm.testing.fleet import Fleet, NotReached
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
    from fleetlm.testing.runner import RealSleep
    from fleetlm.testing.sim_dns import Reply, Script, SimDiscovery, SimDns
    from fleetlm.testing.store_rules import STORE_RULES, check_store

__all__ = [
    "STORE_RULES",
    "Deadlock",
    "DnsServer",
    "Fleet",
    "Leaked",
    "LeftOver",
    "LimitReached",
    "NotMeshed",
    "NotReached",
    "NotSimulated",
    "RealSleep",
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
    "check_store",
    "run",
]

_NAMES_OF = {
    "fleetlm.testing.cluster": "Leaked NotMeshed SimCluster",
    "fleetlm.testing.sim_dns": "Reply Script SimDiscovery SimDns",
    "fleetlm.testing.dns_server": "DnsServer",
    "fleetlm.testing.fleet": "Fleet NotReached",
    "fleetlm.testing.loop": (
        "Deadlock LeftOver LimitReached NotSimulated SimLoop SimulationError Unhandled run"
    ),
    "fleetlm.testing.network": "SimNetwork SimTransport",
    "fleetlm.testing.runner": "RealSleep",
    "fleetlm.testing.store_rules": "STORE_RULES check_store",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Import a public name at its first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
