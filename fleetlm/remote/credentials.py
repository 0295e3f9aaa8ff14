"""Who is at the other end of a Unix socket: for the remote shell, and for the health of nodes without it."""

from __future__ import annotations

import socket
import struct


def peer_credentials(connected: socket.socket) -> tuple[int, int] | None:
    """Return the peer's process id and user id, as the kernel knows them; None where it does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    pid, uid, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, option, 12))
    return int(pid), int(uid)
