"""A transport between nodes on one event loop, without sockets: what is left is the Python of two nodes."""

# ruff: noqa: SLF001, ARG002  transports are each other's network, and have methods of which they need nothing

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetlm.transport.interface import Listener

_NETWORK: dict[str, MemoryTransport] = {}
"""Each transport that has started, by its address."""


class MemoryTransport:
    """Implements `Transport`: a frame arrives in the next turn of the loop. Nothing is ever lost."""

    road = 0
    """There are no local roads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ip = ""
        self._channels: dict[int, tuple[MemoryTransport, bytes]] = {}
        """Where each channel leads, and as which source it is known there."""
        self._sources: dict[bytes, tuple[MemoryTransport, int]] = {}
        self._met: set[bytes] = set()

    async def bind(self, ip: str, ports: Sequence[int]) -> int:
        """Take the address; the port means nothing."""
        self._ip = ip
        return ports[0]

    async def start(self, listener: Listener) -> None:
        """Let others dial."""
        self._listener = listener
        _NETWORK[self._ip] = self

    def dial(self, channel: int, ip: str, port: int) -> None:
        """Open a channel to a transport that has started, or lose it."""
        other = _NETWORK.get(ip)
        if other is None:
            self._loop.call_later(0.01, self._listener.channel_lost, channel, f"nobody is at {ip}:{port}")
            return
        source = os.urandom(8)
        self._channels[channel] = other, source
        other._sources[source] = self, channel
        self._loop.call_soon(self._listener.channel_opened, channel)

    def send(self, channel: int, frame: bytes, tail: memoryview | None = None) -> bool:
        """Send a frame."""
        found = self._channels.get(channel)
        if found is None:
            return False
        other, source = found
        self._loop.call_soon(other._arrive, source, bytes(frame), tail)
        return True

    def _arrive(self, source: bytes, frame: bytes, tail: memoryview | None) -> None:
        if source not in self._met:
            self._met.add(source)
            self._listener.source_met(source, self._sources[source][0]._ip)
        self._listener.frame_arrived(source, frame, tail)

    def answer(self, source: bytes, frame: bytes) -> None:
        """Send a frame back."""
        other, channel = self._sources[source]
        self._loop.call_soon(other._listener.channel_answered, channel, frame)

    def hang_up(self, channel: int, flush_s: float = 0.0) -> None:
        """Close a channel; the other end does not learn of it."""
        self._channels.pop(channel, None)

    def open_road(self, channel: int, number: int, ticket: bytes) -> None:
        """Do nothing, as the methods below: there is no road, and nobody is kept out."""

    def expect_road(self, source: bytes, ticket: bytes) -> None:
        """Do nothing."""

    def take_road(self, channel: int) -> None:
        """Do nothing."""

    def follow_road(self, source: bytes) -> bool:
        """Return that there is none."""
        return False

    def note_tick(self, at: float, lag_ms: int) -> None:
        """Do nothing."""

    def shows_ticks(self, channel: int) -> bool:
        """Return that no peer sees them."""
        return False

    def read_tick(self, source: bytes) -> None:
        """Return that there is none."""

    def admit(self, source: bytes) -> None:
        """Do nothing."""

    def disconnect(self, source: bytes, after_s: float = 0.0) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Let nobody dial any more."""
        _NETWORK.pop(self._ip, None)
