"""`fleetlm health`: does the node of this container answer? For HEALTHCHECK and liveness probes.

It needs no folder and no remote shell, so it works with a read-only root and with ``FLEETLM_REMOTE=off``. It
finds the addresses at which a program listens on the node's port, in the tables of the kernel, and asks
there who answers, as `fleetlm doctor` does. The answer comes from the node's event loop, so a node whose loop
is blocked for longer than the time-out is not healthy. Peers do not matter: a node without peers is healthy.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fleetlm.cli.exit_codes import EX_CONFIG
from fleetlm.errors import SettingsError
from fleetlm.names import NodeName, canonical_ip
from fleetlm.settings import Settings
from fleetlm.transport.probe import probe
from fleetlm.wire.frames import IAm

if TYPE_CHECKING:
    from collections.abc import Sequence

TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
"""The kernel's tables of TCP sockets in this network namespace. Only Linux has them."""
_LISTENING = "0A"
_MAX_ADDRESSES = 16
"""Addresses that are asked. A machine has one for each node."""


def main(*, timeout_s: float) -> int:
    """Ask the node on this machine, and print one line.

    Args:
        timeout_s: seconds for its answer.

    Returns:
        The exit code: 0 if it answers, 1 if it does not or none listens, 78 if a setting cannot be used.
    """
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        print(f"fleetlm health: {error}", file=sys.stderr)
        return EX_CONFIG
    is_healthy, text = asyncio.run(check(settings, find_listeners(settings), timeout_s))
    print(text, file=sys.stdout if is_healthy else sys.stderr)
    return 0 if is_healthy else 1


async def check(settings: Settings, ips: Sequence[str], timeout_s: float) -> tuple[bool, str]:
    """Ask the program that listens at each address who it is.

    Args:
        settings: the node's; the port, the basename and the cookie are used.
        ips: where a program listens on the port.
        timeout_s: seconds for the answers, which are waited for at the same time.

    Returns:
        Whether there is a node of this basename and every program answered; and a sentence for people.
    """
    port = settings.node_port
    if not ips:
        return False, f"no program listens on port {port} (FLEETLM_NODE_PORT) of this machine"
    answers = await asyncio.gather(*(probe(ip, port, settings, timeout_s) for ip in ips[:_MAX_ADDRESSES]))
    nodes = [answer for answer in answers if isinstance(answer, IAm)]
    silent = [answer for answer in answers if isinstance(answer, str)]
    ours = [node for node in nodes if NodeName.parse(node.name).basename == settings.node_basename]
    if silent or not ours:
        others = [
            f"{node.name} answers, not {settings.node_basename}@…" for node in nodes if node not in ours
        ]
        return False, "; ".join([*silent, *others])
    return True, "; ".join(f"{node.name} answers, connected to {node.connected}" for node in ours)


def find_listeners(settings: Settings) -> list[str]:
    """Return the addresses at which a program listens on the node's port.

    Where the system has no such tables, the address that `Settings.node_ip` names, or loopback.
    """
    found: list[str] = []
    for table in TABLES:
        try:
            text = Path(table).read_text(encoding="ascii")
        except OSError:
            continue
        found += [ip for ip in parse_listeners(text, settings.node_port) if ip not in found]
    if found or Path(TABLES[0]).exists():
        return found
    return [canonical_ip(settings.node_ip or "") or "127.0.0.1"]


def parse_listeners(table: str, port: int) -> list[str]:
    """Return the addresses at which sockets listen on a port, from one of the kernel's tables.

    Source: proc_net_tcp.rst of Linux: the second column is the local address, in words of 32 bits in the
    byte order of the machine, and the port; the fourth column is the state.
    """
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 4 or fields[3] != _LISTENING:
            continue
        address, _, local_port = fields[1].partition(":")
        try:
            if int(local_port, 16) != port:
                continue
            words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
            family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
            found.append(socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words)))
        except (ValueError, struct.error):
            continue
    return found
