"""A network in memory, on virtual time, that behaves as ZeroMQ over TCP was measured to.

    network = SimNetwork(SimLoop.current(), random.Random(7))
    transport = SimTransport(network, settings)       # one for each node; see fleetlm.transport.interface
    network.partition(["10.0.0.1"], ["10.0.0.2", "10.0.0.3"])
    network.heal()
    network.crash("10.0.0.2")

What a connection promises is what TCP does: in order, no gap, and what breaks it takes the tail.
Different channels race. A dialler hears nothing of an open channel that ended (`send` returns
False); a listener hears `source_lost` of everybody it has heard from. An end learns of the other's
closed socket behind the last frame, and of silence by its heartbeat: between one heartbeat interval
and ``Settings.node_timeout_s`` after it began, each end for itself.

Addresses are compared as text: give them in their canonical form. Verbs may be called from
anywhere on the loop's thread; facts follow from the loop, never inside a verb.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Any

from fleetlm.errors import StartFailed
from fleetlm.names import endpoint
from fleetlm.settings import Settings
from fleetlm.testing.hosts import Connection, Counters, Endpoint, Host
from fleetlm.testing.pipes import Wheel
from fleetlm.transport.interface import Listener, Part

LATENCY_S = (0.0002, 0.002)
"""Shortest and longest time of a frame on its way: one data centre."""
STRANGER_IP = "192.0.2.66"
"""Where injected frames come from. Source: RFC 5737, addresses for documentation."""


class SimNetwork:
    """Hosts and the paths between them, with the faults that tests put in.

    Args:
        loop: a `SimLoop`, or any loop for what need not be deterministic.
        rng: every latency, time-out and cut-off point is drawn from it.
        latency_s: shortest and longest time of a frame on its way, in seconds.
        trace: keep every fact, for comparing runs.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        *,
        latency_s: tuple[float, float] = LATENCY_S,
        trace: bool = False,
    ) -> None:
        self.loop = loop
        self.wheel: Wheel = Wheel(loop)
        self.rng = rng
        self.counters: Counters = Counters()
        self.trace: list[tuple[Any, ...]] | None = [] if trace else None
        """(virtual seconds, ip, fact, its arguments); a CRC-32 stands for bytes. None: not kept."""
        self._latency_s = latency_s
        self._latencies: dict[tuple[str, str], tuple[float, float]] = {}
        self._hosts: dict[str, Host] = {}
        self._cuts: list[tuple[frozenset[str], frozenset[str] | None]] = []
        self._sources = 0

    # Paths.

    def partition(self, group_a: Iterable[str], group_b: Iterable[str] | None = None) -> None:
        """Let nothing through between two groups of addresses; None: the first, and all others.

        Frames wait, as TCP retransmits them, until `heal`, or until an end's heartbeat gives up.
        """
        a, b = frozenset(group_a), None if group_b is None else frozenset(group_b)
        self._cut(a, b)

    def partition_one_way(self, src: Iterable[str], dst: Iterable[str]) -> None:
        """Let nothing from ``src`` reach ``dst``.

        TCP between them dies in both directions, for want of acknowledgements; what is on its way
        in the other direction still arrives.
        """
        self._cuts.append((frozenset(src), frozenset(dst)))
        self._review_all()

    def heal(self) -> None:
        """End every partition. What waited and was not given up goes on its way."""
        self._cuts.clear()
        self._review_all()

    def set_latency(self, src: str, dst: str, low_s: float, high_s: float) -> None:
        """Say how long the next frames from ``src`` to ``dst`` take, in seconds."""
        if not 0 <= low_s <= high_s:
            raise ValueError(f"a latency is 0 <= low_s <= high_s, not {low_s} to {high_s}")
        self._latencies[src, dst] = (low_s, high_s)
        for connection in self.host(src).connections:
            connection.set_latency()

    def slow(self, ip: str, factor: float) -> None:
        """Multiply every latency to and from a host; 1 is as before.

        Heartbeats do not mind: latencies are to stay well under the node time-out.
        """
        if factor <= 0:
            raise ValueError(f"a latency is multiplied by more than 0, not {factor}")
        host = self.host(ip)
        host.slowness = factor
        for connection in host.connections:
            connection.set_latency()

    # Hosts.

    def crash(self, ip: str, *, silent: bool = False) -> None:
        """End everything at an address: its sockets vanish, its node hears and says nothing more.

        Of what it had sent, some prefix of each channel still arrives. A new node may bind the
        address at once, and hears nothing from the former one's peers.

        Args:
            ip: the address.
            silent: the machine lost its power: no FIN, so peers find out by heartbeat, and dials
                time out instead of being refused, until something binds the address.
        """
        host = self.host(ip)
        for each in host.endpoints.values():
            each.alive = False
            each.backlog.clear()
        host.endpoints.clear()
        host.frozen = host.stalled = False
        host.dark = silent
        for connection in list(host.connections):
            connection.crash(host, silent=silent)
        self._review(host)

    def freeze(self, ip: str) -> None:
        """Stop a node's process, as SIGSTOP does, until `thaw`.

        Its kernel takes frames, nothing answers heartbeats: peers give it up. The node is told
        nothing and what it sends does not leave; its own *timers* still run, since the transport
        cannot stop them.
        """
        self._halt(ip, frozen=True)

    def thaw(self, ip: str) -> None:
        """Let a frozen node go on: it gets the frames that came, then what it lost meanwhile."""
        self._resume(ip, frozen=False)

    def stall(self, ip: str) -> None:
        """Let a node's loop do nothing, as one that holds the GIL, until `unstall`.

        ZeroMQ's own thread answers heartbeats: nobody is given up and nothing is lost, but no
        callback runs and nothing is sent. Timers of the node still run, as with `freeze`.
        """
        self._halt(ip, stalled=True)

    def unstall(self, ip: str) -> None:
        """Let a stalled node go on: it gets what came, and what it sent leaves."""
        self._resume(ip, stalled=False)

    # Single connections.

    def break_connection(self, dialler_ip: str, listener_ip: str) -> None:
        """Break what one host dialled to another; some prefix of what is in flight arrives."""
        for connection in self._between(dialler_ip, listener_ip):
            connection.reset()

    def drop_frame(self, src: str, dst: str, *, skip: int = 0) -> None:
        """Lose one frame from the middle of a channel, as ZeroMQ does when it reconnects unseen.

        Args:
            src: who dialled and sends.
            dst: who would receive.
            skip: frames to let through before.

        Raises:
            ValueError: there is no open channel from ``src`` to ``dst``.
        """
        self._newest(src, dst).out.fault([_intact] * skip + [_vanished])

    def corrupt_frame(self, src: str, dst: str, *, skip: int = 0) -> None:
        """Flip one bit of a frame; arguments and errors as of `drop_frame`."""

        def flipped(frame: bytes) -> bytes:
            if not frame:
                return b"\x00"
            at = self.rng.randrange(len(frame))
            return frame[:at] + bytes([frame[at] ^ (1 << self.rng.randrange(8))]) + frame[at + 1 :]

        self._newest(src, dst).out.fault([_intact] * skip + [flipped])

    # Strangers.

    def inject(
        self,
        dst: str,
        source: bytes,
        frame: bytes,
        extra: bytes | None = None,
        *,
        from_ip: str = STRANGER_IP,
    ) -> None:
        """Send a frame from outside to everything that listens at ``dst``.

        It comes under that source, met first where the node does not know it: a stranger's, or one
        that a peer has, for a peer that has gone mad.
        """
        self._after_latency(dst, self._injected, dst, source, frame, extra, from_ip)

    def eject(self, dst: str, source: bytes) -> None:
        """End the connection of a stranger that sent by `inject`."""
        self._after_latency(dst, self._ejected, dst, source)

    def knock(self, dst: str, reason: str, *, from_ip: str = STRANGER_IP) -> None:
        """Let somebody fail at ``dst`` before the first frame: no ZeroMQ, half a handshake."""
        self._after_latency(dst, self._told, dst, "stranger_refused", from_ip, reason)

    # What connections ask; also for tests.

    def host(self, ip: str) -> Host:
        """The host at that address; made on first use."""
        host = self._hosts.get(ip)
        if host is None:
            host = self._hosts[ip] = Host(ip)
        return host

    def blocked(self, src: str, dst: str) -> bool:
        """Whether a partition keeps packets from ``src`` from reaching ``dst``."""
        if not self._cuts or src == dst:
            return False
        return any((src in a) != (dst in a) if b is None else src in a and dst in b for a, b in self._cuts)

    def latency(self, src: Host, dst: Host) -> tuple[float, float]:
        """Shortest and longest time of a frame on its way, in seconds."""
        low_s, high_s = self._latencies.get((src.ip, dst.ip), self._latency_s)
        factor = src.slowness * dst.slowness
        return low_s * factor, high_s * factor

    def new_source(self) -> bytes:
        """A routing id that no dial has had, in the form of libzmq's own."""
        self._sources += 1
        return b"\x00" + self._sources.to_bytes(4, "big")

    # How.

    def _cut(self, a: frozenset[str], b: frozenset[str] | None) -> None:
        self._cuts.append((a, b))
        if b is not None:
            self._cuts.append((b, a))
        self._review_all()

    def _review_all(self) -> None:
        for host in list(self._hosts.values()):
            for connection in list(host.connections):
                if connection.hosts[0] is host:  # each has two hosts
                    connection.review()

    def _review(self, host: Host) -> None:
        for connection in list(host.connections):
            connection.review()

    def _halt(self, ip: str, *, frozen: bool = False, stalled: bool = False) -> None:
        host = self.host(ip)
        host.frozen |= frozen
        host.stalled |= stalled
        for each in host.endpoints.values():
            each.paused = True
        self._review(host)

    def _resume(self, ip: str, *, frozen: bool = True, stalled: bool = True) -> None:
        host = self.host(ip)
        host.frozen &= frozen
        host.stalled &= stalled
        self._review(host)
        for each in host.endpoints.values():
            self.loop.call_soon(each.catch_up)

    def _between(self, dialler_ip: str, listener_ip: str) -> list[Connection]:
        ends = (self.host(dialler_ip), self.host(listener_ip))
        return [each for each in ends[0].connections if each.hosts == ends and each.sends]

    def _newest(self, src: str, dst: str) -> Connection:
        opened = [each for each in self._between(src, dst) if each.opened]
        if not opened:
            raise ValueError(f"there is no open channel from {src} to {dst}")
        return opened[-1]

    def _after_latency(self, dst: str, then: Any, *args: Any) -> None:
        low_s, high_s = self.latency(Host(STRANGER_IP), self.host(dst))
        self.loop.call_later(self.rng.uniform(low_s, high_s), then, *args)

    def _told(self, dst: str, fact: str, *args: Any) -> None:
        for each in list(self.host(dst).endpoints.values()):
            each.tell(fact, *args)

    def _injected(self, dst: str, source: bytes, frame: bytes, extra: bytes | None, from_ip: str) -> None:
        for each in list(self.host(dst).endpoints.values()):
            if source not in each.sources and source not in each.strangers:
                each.strangers[source] = from_ip
                each.tell("source_met", source, from_ip)
            each.tell("frame_arrived", source, frame, extra)

    def _ejected(self, dst: str, source: bytes) -> None:
        for each in list(self.host(dst).endpoints.values()):
            if each.strangers.pop(source, None) is not None:
                each.tell("source_lost", source)


class SimTransport:
    """One node's `fleetlm.transport.interface.Transport` on a `SimNetwork`.

    Args:
        network: where it is to be.
        settings: cookie, time-outs and heartbeats are taken from these.
    """

    def __init__(self, network: SimNetwork, settings: Settings | None = None) -> None:
        self._network = network
        self._settings = settings or Settings()
        self._endpoint: Endpoint | None = None
        self._closing: dict[Connection, None] = {}

    @property
    def cookie(self) -> str | None:
        """The shared secret; only endpoints with the same one can connect."""
        return self._settings.cookie

    async def start(self, ip: str, port: int, listener: Listener) -> None:
        """Listen on ``ip:port``.

        Raises:
            StartFailed: somebody listens there.
            RuntimeError: it was started before.
        """
        if self._endpoint is not None:
            raise RuntimeError("a transport is started once")
        host = self._network.host(ip)
        if port in host.endpoints:
            raise StartFailed(endpoint(ip, port), "the address is in use; stop what listens there")
        self._endpoint = Endpoint(self._network, host, port, listener, self._settings)
        host.endpoints[port] = self._endpoint
        if host.dark:
            host.dark = False
            for connection in list(host.connections):
                connection.disown()
                connection.review()

    def dial(self, channel: int, ip: str, port: int) -> None:
        """Open a channel. Raises: ValueError for a number that is in use."""
        own = self._started()
        if channel in own.channels:
            raise ValueError(f"channel {channel} is in use: numbers are used once")
        if own.alive:
            self._network.counters.dials += 1
            own.channels[channel] = Connection(own, channel, self._network.host(ip), port)

    def send(self, channel: int, parts: Sequence[Part]) -> bool:
        """Put one frame (one or two parts) on an open channel; False where it cannot be sent."""
        own = self._endpoint
        if own is None or (connection := own.channels.get(channel)) is None:
            return False
        if not connection.opened:
            return False
        frame = bytes(parts[0])
        counters = self._network.counters
        counters.frames_sent += 1
        counters.bytes_sent += len(frame)
        if len(parts) == 1:
            connection.out.put(frame)
        else:
            _, second = parts
            extra = bytes(second)
            counters.bytes_sent += len(extra)
            connection.out.put(frame, extra)
        return True

    def answer(self, source: bytes, frame: bytes) -> None:
        """Send one frame back to a dialler, unless it has gone."""
        connection = self._started().sources.get(source)
        if connection is not None and connection.sends:
            self._network.counters.answers_sent += 1
            connection.back.put(frame)

    def hang_up(self, channel: int, flush_s: float = 0.0) -> None:
        """Close a channel; frames that were sent may leave for ``flush_s`` more."""
        connection = self._started().channels.get(channel)
        if connection is None:
            return
        connection.hang_up(flush_s)
        if connection.flush_until_s > self._network.loop.time():
            self._closing = {each: None for each in self._closing if each.out.pending}
            self._closing[connection] = None

    async def close(self) -> None:
        """Close everything, within the flush time of what was hung up. Idempotent."""
        own = self._endpoint
        if own is None or not own.alive:
            return
        own.alive = False
        own.backlog.clear()
        own.host.endpoints.pop(own.port)
        for connection in list(own.channels.values()):
            connection.hang_up(0.0)
        for connection in list(own.sources.values()):
            connection.close_listener()
        loop = self._network.loop
        while True:
            now_s = loop.time()
            left = [each for each in self._closing if each.leaves_at_s > now_s]
            if not left:
                return
            await asyncio.sleep(max(each.leaves_at_s for each in left) - now_s)

    def _started(self) -> Endpoint:
        if self._endpoint is None:
            raise RuntimeError("this transport has not been started")
        return self._endpoint


def _intact(frame: bytes) -> bytes | None:
    return frame


def _vanished(_frame: bytes) -> bytes | None:
    return None
