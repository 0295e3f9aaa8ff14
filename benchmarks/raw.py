"""Plain pyzmq, as the floors use it: a bound ROUTER, a DEALER, and a reader on the event loop.

Each floor is written as well as it can be without a runtime: two plain receives instead of
``recv_multipart`` (a fifth of its cost), no zmq.asyncio (half the speed).
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
"""zmq.Socket: its stubs make every receive a union."""


def router(port: int, ip: str) -> tuple[Socket, zmq.Context[Any]]:
    """A ROUTER that listens, without high-water marks."""
    context: zmq.Context[Any] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4_096)
    sock = context.socket(zmq.ROUTER)
    sock.set(zmq.RCVHWM, 0)
    sock.set(zmq.SNDHWM, 0)
    sock.bind(f"tcp://{ip}:{port}")
    return sock, context


def dealer(context: zmq.Context[Any], port: int, ip: str) -> Socket:
    """A DEALER that has connected."""
    sock = context.socket(zmq.DEALER)
    sock.set(zmq.RCVHWM, 0)
    sock.set(zmq.SNDHWM, 0)
    sock.set(zmq.LINGER, 0)
    sock.connect(f"tcp://{ip}:{port}")
    return sock


class FdReader:
    """Calls ``drain`` when a socket may have something, until its receive raises `zmq.Again`.

    The descriptor is edge-triggered, and sending may swallow an edge: call `check` after a send.
    """

    def __init__(self, sock: Socket, drain: Callable[[], None]) -> None:
        self._sock = sock
        self._drain = drain
        asyncio.get_running_loop().add_reader(sock.get(zmq.FD), self._on_readable)

    def check(self) -> None:
        """Look for what came while we sent."""
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


def exit_with(parent: Parent) -> None:
    """Say ready, and end this process when its parent does: it blocks in ZeroMQ for ever."""

    def wait() -> None:
        for _ in parent.commands():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
    parent.say(ready=True)
