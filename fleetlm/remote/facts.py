"""What a node says about itself to `fleetlm doctor`, and how values become JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleetlm.node import Node


def node_facts(node: Node) -> dict[str, Any]:
    """What `fleetlm doctor` asks a running node, as JSON can carry it; no secret in it."""
    settings, own = node.settings, node.own_address
    return {
        "name": node.name,
        "incarnation": node.incarnation,
        "settings": settings.effective(),
        "warnings": list(settings.warnings),
        "query": settings.dns_query,
        "basename": settings.node_basename,
        "port": settings.node_port,
        "cluster": settings.cluster,
        "dns_server": settings.dns_server,
        "cookie": settings.cookie is not None,
        "node_timeout_s": settings.node_timeout_s,
        "poll_interval_s": settings.poll_interval_s,
        "own_ip": own.ip,
        "own_ip_why": own.why,
        "own_ip_warning": own.warning,
        "info": plain(node.info()),
    }


def plain(value: Any) -> Any:
    """A value with dataclasses as dicts and all else as JSON takes it, or as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
