"""A fleetlm node in a helper process."""

from __future__ import annotations

from typing import Any

from fleetlm import Node, Settings
from fleetlm.runtime.bootstrap import NodeStarting

READY_TIMEOUT_S = 60.0
"""Seconds until all nodes must be connected: 64 of them on a busy machine."""


def start(config: dict[str, Any]) -> NodeStarting[Node]:
    """Start a node at this helper's address, with all addresses as its peers.

    Args:
        config: also ``settings``, fields of `Settings` that differ.
    """
    ips = config["ips"]
    usual = settings(ips, ips[config["index"]], config["port"])
    return Node.start(usual.replace(**config.get("settings", {})))


def settings(ips: list[str], ip: str, port: int) -> Settings:
    """Return the settings of a node without the remote shell."""
    return Settings(dns_query=",".join(ips), node_ip=ip, node_ports=(port, port), remote=False)


async def peers(node: Node, config: dict[str, Any]) -> list[str]:
    """Wait until all servers are connected, and return their names."""
    await node.ready(len(config["ips"]) - 1, timeout=READY_TIMEOUT_S)
    return node.list()
