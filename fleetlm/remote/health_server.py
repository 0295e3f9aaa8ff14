"""The node's side of `fleetlm health --ready`: answers on a Unix socket that needs no file.

`health_socket` describes the socket and its protocol. Connections are served one after the other by one task:
no answer is older than its question, and checks of the program never run twice at the same time. A client
that sends nothing holds the others up for `REQUEST_S` at most. Only the node's user and root are served.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from fleetlm.names import NodeName
from fleetlm.remote import health_socket
from fleetlm.remote.credentials import peer_credentials

if TYPE_CHECKING:
    from fleetlm.node import Node

REQUEST_S = 1.0
"""Seconds for a client to send its request, and to take the reply: one line on one machine."""
BACKLOG = 16
"""Clients that may wait. A container has one or two probes."""

log: logging.Logger = logging.getLogger("fleetlm.console")


class HealthServer:
    """Answers whether one node is ready.

    Args:
        node: the node.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._listener: socket.socket | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the socket, where the system has such sockets. If that fails, a warning is logged."""
        if not sys.platform.startswith("linux"):
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            node = self._node
            own = NodeName.parse(node.name)
            port = own.port or node.settings.base_port
            listener.bind(health_socket.address_of(own.basename, own.ip, port))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            log.warning(
                "`fleetlm health --ready` cannot be used with this node: %s. Another program perhaps uses "
                "the name of its socket",
                error,
            )
            return
        listener.setblocking(False)
        self._listener = listener
        name = f"{self._node.name} answers `fleetlm health`"
        self._serving = asyncio.get_running_loop().create_task(self._serve(listener), name=name)

    async def stop(self, reason: str = "shutdown", asked_by: asyncio.Task[Any] | None = None) -> None:
        """Close the socket. May be called more than once."""
        del reason, asked_by
        serving, self._serving = self._serving, None
        if serving is not None:
            serving.cancel()
            await asyncio.wait({serving})
        if self._listener is not None:
            self._listener.close()

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:  # Such as no descriptor left; the client waits in the queue meanwhile.
                log.info("`fleetlm health` could not be answered: %s", error)
                await asyncio.sleep(REQUEST_S)
                continue
            with client:
                try:
                    await self._answer(client)
                except (OSError, ValueError, TimeoutError):
                    continue  # It has gone, or is not `fleetlm health`.

    async def _answer(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        peer = peer_credentials(client)
        if peer is None or peer[1] not in (os.getuid(), 0):
            return
        client.setblocking(False)
        async with asyncio.timeout(REQUEST_S):
            request = b""
            while not request.endswith(b"\n") and len(request) < health_socket.MAX_REQUEST_BYTES:
                more = await loop.sock_recv(client, health_socket.MAX_REQUEST_BYTES)
                if not more:
                    return
                request += more
        word, _, min_nodes = request.decode("ascii").strip().partition(" ")
        if word != "ready":
            return
        found = await self._node.readiness(int(min_nodes))
        text = f"{int(found.is_ready)} {found}".replace("\n", " ").encode("utf-8", "replace")
        async with asyncio.timeout(REQUEST_S):
            await loop.sock_sendall(client, text[: health_socket.MAX_REPLY_BYTES - 1] + b"\n")
