"""The sockets of the test DNS server: packets over UDP and TCP on one port."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Protocol, Self

from fleetlm.records import Record

MAX_CONNECTIONS = 256
"""TCP connections at a time; further ones are closed."""
TCP_IDLE_S = 10.0
"""Seconds without data after which a TCP connection is closed."""
PORT_ATTEMPTS = 16
"""Free UDP ports tried until one is free for TCP as well."""


class Peer(Protocol):
    """The sender of a packet."""

    @property
    def over_tcp(self) -> bool:
        """Whether the packet came over TCP."""

    def send(self, wire: bytes) -> None:
        """Send a packet back; does nothing if the peer has gone."""

    def abort(self) -> None:
        """End the connection, if the packet came over one."""


OnPacket = Callable[[bytes, Peer], None]


class DnsSockets:
    """A bound UDP socket, a listening TCP socket on the same port, and its connections."""

    def __init__(self, on_packet: OnPacket) -> None:
        self.port = 0
        self.on_packet = on_packet
        self.connections: set[_TcpPeer] = set()
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    @classmethod
    async def open(cls, host: str, port: int, on_packet: OnPacket) -> Self:
        """Bind both sockets; port 0 takes a port that is free for both.

        Raises:
            OSError: the address cannot be bound. Nothing stays bound.
        """
        loop = asyncio.get_running_loop()
        udp, tcp = _bind(host, port)
        sockets = cls(on_packet)
        sockets.port = udp.getsockname()[1]
        sockets._udp, _ = await loop.create_datagram_endpoint(lambda: _Udp(on_packet), sock=udp)
        sockets._tcp = await loop.create_server(lambda: _TcpPeer(sockets), sock=tcp)
        return sockets

    async def close(self) -> None:
        """Close both sockets and every connection."""
        if self._udp is not None:
            self._udp.abort()
        if self._tcp is not None:
            self._tcp.close()
            for connection in tuple(self.connections):
                connection.abort()
            await self._tcp.wait_closed()
        await asyncio.sleep(0)  # a transport closes its socket in the turn after `close`


class _UdpPeer(Record):
    transport: asyncio.DatagramTransport
    address: tuple[str, int]
    over_tcp: bool = False

    def send(self, wire: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.sendto(wire, self.address)

    def abort(self) -> None:
        """Do nothing: a datagram has no connection."""


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, on_packet: OnPacket) -> None:
        self._on_packet = on_packet
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._on_packet(data, _UdpPeer(self._transport, addr))


class _TcpPeer(asyncio.Protocol):
    """One TCP connection; each packet follows two bytes with its length. Source: RFC 1035 §4.2.2."""

    over_tcp = True

    def __init__(self, sockets: DnsSockets) -> None:
        self._sockets = sockets
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        if len(self._sockets.connections) >= MAX_CONNECTIONS:
            transport.abort()
            return
        self._sockets.connections.add(self)
        self._restart_idle_timer()

    def data_received(self, data: bytes) -> None:
        self._restart_idle_timer()
        self._buffer += data
        while len(self._buffer) >= 2:
            (size_bytes,) = struct.unpack_from("!H", self._buffer)
            if len(self._buffer) < 2 + size_bytes:
                return
            wire = bytes(self._buffer[2 : 2 + size_bytes])
            del self._buffer[: 2 + size_bytes]
            self._sockets.on_packet(wire, self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._idle is not None:
            self._idle.cancel()
        self._sockets.connections.discard(self)

    def send(self, wire: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(struct.pack("!H", len(wire)) + wire)

    def abort(self) -> None:
        self._transport.abort()

    def _restart_idle_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(TCP_IDLE_S, self.abort)


def _bind(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Bind a UDP and a TCP socket to one port. Raises: OSError; nothing stays bound then."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for attempt in range(1, PORT_ATTEMPTS + 1):
        udp = socket.socket(family, socket.SOCK_DGRAM)
        tcp = socket.socket(family, socket.SOCK_STREAM)
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            udp.bind((host, port))
            tcp.bind((host, udp.getsockname()[1]))
        except OSError:
            udp.close()
            tcp.close()
            # A port that is free for UDP may be in use for TCP: try another one.
            if port != 0 or attempt == PORT_ATTEMPTS:
                raise
        else:
            udp.setblocking(False)
            tcp.setblocking(False)
            return udp, tcp
    raise AssertionError("the last attempt returns or raises")
