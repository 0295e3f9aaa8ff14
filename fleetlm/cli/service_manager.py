"""Tells systemd, or a service manager with the same protocol, that the node takes work and that it stops.

A unit with ``Type=notify`` has started when its program says so: units behind it wait for that, and so do
``systemctl start`` and ``systemctl restart``. The manager names a Unix datagram socket in ``$NOTIFY_SOCKET``;
without that variable this module is not imported.

What is sent, and when:

* ``READY=1`` as soon as the node is ready (`Node.readiness`): it has started, and passes the program's
  checks. Until then ``STATUS`` says what is missing. The start gets no more time: ``TimeoutStartSec`` of the
  unit limits it, so that a model that never loads is a failed start.
* ``STOPPING=1`` when the node begins to leave, and from then on ``EXTEND_TIMEOUT_USEC`` every
  `EXTEND_EVERY_S` seconds. A drain that takes longer than ``TimeoutStopSec`` is thus not killed, while a node
  whose event loop hangs is: at ``TimeoutStopSec``, or `EXTEND_BY_S` after its last message if that is later.
  A node that is started again for a wrong address says nothing of its stop.

A node sends a few datagrams in its life, so each has a socket of its own, and none is kept open. A datagram
that cannot be sent neither stops nor delays the node. ``READY`` is repeated until it went out, since the
manager would wait for it.

Source: sd_notify(3), systemd.service(5) TimeoutStopSec. Differs: no ``WATCHDOG=1``, because a node that
computes for a minute is alive; and no vsock address, which is for virtual machines.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetlm.node import Node

VARIABLE = "NOTIFY_SOCKET"
LOOK_S = 0.5
"""Seconds between two looks whether the node is ready. Checks of the program may cost something."""
FIRST_LOOK_S = 0.05
"""Seconds before the first look: a program that fails at once, or has yet to add its checks, is not ready."""
EXTEND_BY_S = 15.0
"""Seconds within which the manager hears from a node that leaves, or may kill it."""
EXTEND_EVERY_S = 5.0
"""Seconds between two such messages: two may be late or lost."""
MAX_STATUS_CHARS = 256
"""Longer status texts are cut; ``systemctl status`` shows one line."""

log: logging.Logger = logging.getLogger("fleetlm")


def find(environ: Mapping[str, str]) -> ServiceManager | None:
    """Return the service manager that the environment names; None, with a warning, if it cannot be used."""
    address = environ[VARIABLE]
    if address[:1] in ("/", "@") and len(address) > 1:
        return ServiceManager(address)
    log.warning(
        "%s=%s is neither the path of a socket nor the name of an abstract one (@name), so it is not used",
        VARIABLE,
        address,
    )
    return None


def message(**fields: str) -> bytes:
    """Return a datagram with these fields, one a line; control characters in a value become spaces."""
    lines = []
    for name, value in fields.items():
        flat = "".join(each if each.isprintable() else " " for each in value)
        lines.append(f"{name}={flat[:MAX_STATUS_CHARS]}")
    return "\n".join(lines).encode()


class ServiceManager:
    """The service manager behind one notification socket.

    Args:
        address: the value of ``$NOTIFY_SOCKET``: a path, or ``@`` and the name of an abstract socket.
    """

    def __init__(self, address: str) -> None:
        self._shown = address
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._has_warned = False

    def send(self, **fields: str) -> bool:
        """Send one datagram, without waiting. Returns False if it could not be sent; that is logged once."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(message(**fields), self._address)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                log.warning("the service manager at %s=%s cannot be told: %s", VARIABLE, self._shown, error)
            return False
        return True

    async def tell_when_ready(self, node: Node) -> None:
        """Send READY once the node is ready, and before that what is missing."""
        told = ""
        await asyncio.sleep(FIRST_LOOK_S)
        while True:
            readiness = await node.readiness()
            status = str(readiness)
            if readiness.is_ready and self.send(READY="1", STATUS=status):
                return
            if status != told and not readiness.is_ready:
                told = status
                self.send(STATUS=status)
            await asyncio.sleep(LOOK_S)

    async def tell_that_it_stops(self, node: Node, limit_s: float) -> None:
        """Send STOPPING, and ask for more time again and again, for at most ``limit_s`` seconds.

        The last message asks for no time beyond the limit. After it the caller ends the process itself.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        fields = {"STOPPING": "1", "STATUS": f"{node.name} finishes what it has begun, and leaves"}
        while (left_s := until - loop.time()) > 0:
            self.send(**fields, EXTEND_TIMEOUT_USEC=str(int(min(EXTEND_BY_S, left_s) * 1e6)))
            fields = {}
            await asyncio.sleep(EXTEND_EVERY_S)
