"""fleetlm: worker processes form one cluster, as Erlang nodes do.

    async with fleetlm.Node.start() as node:
        node.spawn(printer, name="printer")
        await node.send(("printer", "fleetlm@10.0.0.7"), {"any": "message"})

Every public name is here, and is imported at its first use. ``__init__.pyi`` has the names for type checkers.
"""

from __future__ import annotations

__version__ = "0.1.0"

_NAMES_OF = {
    "fleetlm.actor": "Actor",
    "fleetlm.actors.handlers": "handler",
    "fleetlm.actors.ref": "ActorRef",
    "fleetlm.actors.refs": "ActorRefs",
    "fleetlm.call": "Call",
    "fleetlm.core.dns_answers": "Answer Outcome",
    "fleetlm.core.name_table": "Claim",
    "fleetlm.core.quorum": "Quorum",
    "fleetlm.core.topology": "PeerInfo",
    "fleetlm.core.member_loads": "MemberInfo",
    "fleetlm.directory.group_ref": "GroupRef",
    "fleetlm.directory.members": "Member",
    "fleetlm.directory.tables": "SharedTable",
    "fleetlm.discovery.dns": "DnsDiscovery StaticDiscovery",
    "fleetlm.discovery.interface": "Discovery",
    "fleetlm.entities.entity_ref": "EntityRef EntityRefs",
    "fleetlm.entities.info": "HostedInfo KindInfo QuorumInfo StoreInfo",
    "fleetlm.entity": "Entity",
    "fleetlm.errors": (
        "AlreadyRegistered CallTimeout Draining Expired Fenced FleetError InitFailed InvalidName "
        "MessageTooLarge NoConnection NoFactory NoHandler NoMember NoProcess NodeLost NodeStopped "
        "NotAllowed NotDelivered NotLoaded NotOwner NotSerializable NotStored OutcomeUnknown ProcessDown "
        "ProcessExit RemoteError SettingsError StartFailed StoreError StoreFailed StreamIdle "
        "TooManyMemberships TooManyNames TooManyRows Undecodable VersionConflict WorkerDied WorkerNotStarted "
        "WouldBlock"
    ),
    "fleetlm.ids": "Pid Ref",
    "fleetlm.messages": (
        "Crash CronSlot Down Exit Joined Left NameLost NodeDown NodeDraining NodeUndrained NodeUp "
        "Registered RowDropped RowPut Unregistered message register_type"
    ),
    "fleetlm.messaging.carrying": "carried carry",
    "fleetlm.messaging.retries": "retry",
    "fleetlm.names": "Address NodeName",
    "fleetlm.node": "Node",
    "fleetlm.node_thread": "node_in_thread",
    "fleetlm.process": "Process",
    "fleetlm.program": "run",
    "fleetlm.process_pool": "ProcessPool",
    "fleetlm.processes.info": "ChildInfo ProcessInfo",
    "fleetlm.processes.owned": "Timer",
    "fleetlm.runtime.info": "DrainReport NodeInfo",
    "fleetlm.runtime.readiness": "Readiness",
    "fleetlm.settings": "Settings",
    "fleetlm.stores.interface": "Fence Store Stored",
    "fleetlm.stores.memory": "MemoryStore",
    "fleetlm.stores.postgres": "PostgresStore",
    "fleetlm.stores.sqlite": "SQLiteStore",
    "fleetlm.stream": "Stream",
    "fleetlm.supervisor": "Child Supervisor",
    "fleetlm.sync": "SyncNode",
    "fleetlm.telemetry": (
        "Attachment CallEnded CallStarted ChildRestarted HandlerEnded MessageDropped SessionDown SessionUp "
        "SupervisorGaveUp Telemetry WindowFull WindowOpened"
    ),
    "fleetlm.threads.arrivals": "SyncStream",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}

__all__ = [*_MODULE_OF]  # noqa: PLE0604  # they are strings


def __getattr__(name: str) -> object:
    """Import a public name at its first use: `fleetlm remote` starts without ZeroMQ, DNS and asyncio."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415  # its own imports take longer than the rest of this module

    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
