"""What a node tells `fleetlm doctor` about itself, and the conversion of values to JSON types."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fleetlm.node import parts_of
from fleetlm.texts import text_of

if TYPE_CHECKING:
    from fleetlm.node import Node


def node_facts(node: Node) -> dict[str, Any]:
    """Return what `fleetlm doctor` needs to know about a running node, in JSON types and without secrets."""
    settings, own = node.settings, node.own_address
    return {
        "name": node.name,
        "incarnation": node.incarnation,
        "settings": settings.effective(),
        "warnings": list(settings.warnings),
        "query": settings.dns_query,
        "basename": settings.node_basename,
        "ports": list(settings.node_ports),
        "cluster": settings.cluster,
        "dns_server": settings.dns_server,
        "cookie": settings.cookie is not None,
        "node_timeout_s": settings.node_timeout_s,
        "poll_interval_s": settings.poll_interval_s,
        "own_ip": own.ip,
        "own_ip_why": own.why,
        "own_ip_warning": own.warning,
        "info": plain(node.info()),
        "kinds": plain(parts_of(node).entity_kinds()),
    }


def plain(value: Any) -> Any:
    """Convert a value to JSON types. Dataclasses and mappings become dicts, unknown types their ``str``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {text_of(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return text_of(value)
