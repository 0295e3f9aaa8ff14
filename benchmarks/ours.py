"""A fleetlm node in a helper process."""

from __future__ import annotations

from typing import Any

from fleetlm import Node, Settings
from fleetlm.node import NodeStarting

PATIENCE_S = 10.0


def start(config: dict[str, Any]) -> NodeStarting:
    """A node on the address that is this helper's, with all addresses as its peers."""
    ips = config["ips"]
    return Node.start(settings(ips, ips[config["index"]], config["port"]))


def settings(ips: list[str], ip: str, port: int) -> Settings:
    """As the environment would give them, without the remote shell."""
    return Settings(dns_query=",".join(ips), node_ip=ip, node_port=port, remote=False)


async def peers(node: Node, config: dict[str, Any]) -> list[str]:
    """Wait for all servers; their names."""
    await node.ready(len(config["ips"]) - 1, timeout=PATIENCE_S)
    return node.list()
