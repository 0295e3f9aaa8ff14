"""Plain pyzmq for the floors: a bound ROUTER, a DEALER, and a reader on the event loop.

Each floor is as fast as it can be without a runtime: it uses two plain receives instead of
``recv_multipart`` (a fifth of its cost), and not zmq.asyncio (half the speed).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import zmq

from benchmarks.helper import Parent

NOBLOCK = int(zmq.NOBLOCK)
Socket = Any
"""A `zmq.Socket`; typed as Any because its stubs make every receive a union."""


def router(port: int, ip: str) -> tuple[Socket, zmq.Context[Any]]:
    """Make a ROUTER that listens, without high-water marks."""
    context: zmq.Context[Any] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4_096)
    sock = context.socket(zmq.ROUTER)
    sock.set(zmq.RCVHWM, 0)
    sock.set(zmq.SNDHWM, 0)
    sock.bind(f"tcp://{ip}:{port}")
    return sock, context


def dealer(context: zmq.Context[Any], port: int, ip: str) -> Socket:
    """Make a DEALER that connects, without high-water marks."""
    sock = context.socket(zmq.DEALER)
    sock.set(zmq.RCVHWM, 0)
    sock.set(zmq.SNDHWM, 0)
    sock.set(zmq.LINGER, 0)
    sock.connect(f"tcp://{ip}:{port}")
    return sock


class FdReader:
    """Calls ``drain`` when a socket may be readable; ``drain`` ends by the `zmq.Again` of its receive.

    The descriptor is edge-triggered, and sending may consume an edge: call `check` after a send.
    """

    def __init__(self, sock: Socket, drain: Callable[[], None]) -> None:
        self._sock = sock
        self._drain = drain
        asyncio.get_running_loop().add_reader(sock.get(zmq.FD), self._on_readable)

    def check(self) -> None:
        """Read what arrived during a send."""
        if self._sock.get(zmq.EVENTS) & zmq.POLLIN:
            self._on_readable()

    def close(self) -> None:
        """Stop reading."""
        asyncio.get_running_loop().remove_reader(self._sock.get(zmq.FD))

    def _on_readable(self) -> None:
        try:
            self._drain()
        except zmq.Again:
            return


def exit_with_parent(parent: Parent) -> None:
    """Report ready, and exit this process when its parent ends, as it blocks in ZeroMQ for ever."""

    def wait() -> None:
        for _ in parent.read_commands():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
    parent.report(ready=True)
