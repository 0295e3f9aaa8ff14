r"""Where a node answers `fleetlm health --ready`: a Unix socket without a file, and one line each way.

The socket is in Linux's *abstract* namespace, which belongs to the network namespace: it needs no folder, so
it works with a read-only root, and it vanishes with the process that listens on it. ``/proc/net/unix`` lists
the names of all such sockets, and so of all nodes of a container. No other system has such sockets.

The client sends ``ready MIN_NODES\n``. The node answers ``1 TEXT\n`` or ``0 TEXT\n``: whether it is ready,
and why, for people. Only the node's own user and root are answered; the socket can do nothing else.

This module imports nothing, so that `fleetlm health` starts fast.
"""

from __future__ import annotations

PREFIX = "fleetlm-health/"
"""Begin of the name of each node's socket, after the zero byte that marks an abstract one."""
MAX_NAME_BYTES = 107
"""Room for a name: 108 bytes in Linux's ``sun_path``, less the zero byte."""
MAX_REQUEST_BYTES = 64
"""Longest request. A longer one is not from `fleetlm health`."""
MAX_REPLY_BYTES = 4_096
"""Longest reply. Longer reasons are cut."""
TABLE = "/proc/net/unix"
_LISTENING = 0x10000
"""The flag of a socket that listens. Source: Linux net.h, __SO_ACCEPTCON."""


def address_of(basename: str, ip: str, port: int) -> str:
    """Return the address of a node's socket, with its zero byte.

    A long basename is cut to fit. The rest, where the node listens, is unique in a network namespace.
    """
    place = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
    room = MAX_NAME_BYTES - len(PREFIX) - len(place) - 1
    return f"\0{PREFIX}{basename[:room]}@{place}"


def port_of(address: str) -> int:
    """Return the port in the address of a node's socket; 0 if it has none."""
    port = address.rpartition(":")[2]
    return int(port) if port.isdecimal() else 0


def parse_table(table: str) -> list[str]:
    """Return the addresses of the sockets of nodes, sorted, from the text of ``/proc/net/unix``.

    Source: af_unix.c of Linux, unix_seq_show: the fourth of the columns is the socket's flags, the eighth its
    name, in which an ``@`` stands for the zero byte of an abstract one.
    """
    found = set()
    for line in table.splitlines():
        fields = line.split(None, 7)
        if len(fields) == 8 and fields[7].startswith(f"@{PREFIX}"):
            try:
                is_listening = int(fields[3], 16) & _LISTENING
            except ValueError:
                continue
            if is_listening:
                found.add(f"\0{fields[7][1:]}")
    return sorted(found)
