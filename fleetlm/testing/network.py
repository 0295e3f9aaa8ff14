"""A network in memory, on virtual time, that behaves as ZeroMQ over TCP was measured to behave.

    network = SimNetwork(SimLoop.current(), random.Random(7))
    transport = SimTransport(network, settings)       # one for each node; see fleetlm.transport.interface
    network.partition(["10.0.0.1"], ["10.0.0.2", "10.0.0.3"])
    network.heal()
    network.crash("10.0.0.2")

Theory of operation. Simulated of TCP: frames of a channel arrive in order and without a gap, a partition
delays them (TCP retransmits), and a break loses a suffix of them. Different channels race with each
other. Simulated of ZeroMQ: a dialler is not told that an open channel ended (`send` returns False); a
listener gets `source_lost` for each source from which it got a frame; heartbeats end a connection whose
other end is silent; a dial without an answer times out; CURVE refuses another cookie. Not simulated:
bytes on the wire, high-water marks and back-pressure, reconnection (fleetlm's transport disables it).

An end learns that the other's socket is closed after the last frame, and that the other is silent by its
heartbeat: ``Settings.node_timeout_s`` after the silence began, or up to a quarter later, each end at its own
random time. `fleetlm.testing.hosts` has the state of hosts and connections.

Addresses are compared as text: pass them in canonical form. The methods may be called anywhere on the
loop's thread. Facts follow from callbacks of the loop, never inside such a call.
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
from fleetlm.transport.interface import Listener

LATENCY_S = (0.0002, 0.002)
"""Shortest and longest time that a frame travels, in seconds: that of one data centre."""
HANG_UP_POLL_S = 0.005
"""Seconds between two looks, while a transport closes, whether the peers have hung up."""
STRANGER_IP = "192.0.2.66"
"""The address that injected frames come from. Source: RFC 5737, addresses for documentation."""


class SimNetwork:
    """Hosts and the paths between them, with the faults that a test sets.

    Args:
        loop: a `SimLoop`; another loop if the run need not be deterministic.
        rng: the source of every latency, heartbeat time and cut-off point.
        latency_s: shortest and longest time that a frame travels, in seconds.
        trace: keep every fact, to compare runs.
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
        """Facts as (virtual seconds, ip, fact, arguments), bytes as their CRC-32. None if not kept."""
        self._latency_s = latency_s
        self._latencies: dict[tuple[str, str], tuple[float, float]] = {}
        self._hosts: dict[str, Host] = {}
        self._cuts: list[tuple[frozenset[str], frozenset[str] | None]] = []
        self._sources = 0
        self._roads = 0
        self._machines: dict[str, int] = {}
        """Address → the number of its machine, where it shares one with others."""

    # Paths.

    def partition(self, group_a: Iterable[str], group_b: Iterable[str] | None = None) -> None:
        """Cut all paths between two groups of addresses; ``group_b=None`` means all other addresses.

        Frames wait, as TCP retransmits them, until `heal`, or until the heartbeat of an end gives up.
        """
        a, b = frozenset(group_a), None if group_b is None else frozenset(group_b)
        self._add_cut(a, b)

    def partition_one_way(self, src: Iterable[str], dst: Iterable[str]) -> None:
        """Let nothing from ``src`` reach ``dst``.

        Without acknowledgements, TCP between them stops in both directions. Frames that are on their
        way from ``dst`` to ``src`` still arrive.
        """
        self._cuts.append((frozenset(src), frozenset(dst)))
        self._update_all()

    def heal(self) -> None:
        """End every partition. Frames that waited on connections that still exist are sent."""
        self._cuts.clear()
        self._update_all()

    def set_latency(self, src: str, dst: str, low_s: float, high_s: float) -> None:
        """Set how long the next frames from ``src`` to ``dst`` travel, in seconds.

        Raises:
            ValueError: unless ``0 <= low_s <= high_s``.
        """
        if not 0 <= low_s <= high_s:
            raise ValueError(f"a latency must satisfy 0 <= low_s <= high_s; got {low_s} and {high_s}")
        self._latencies[src, dst] = (low_s, high_s)
        for connection in self.host(src).connections:
            connection.set_latency()

    def slow(self, ip: str, factor: float) -> None:
        """Multiply every latency to and from a host by ``factor``; 1 restores the normal latency.

        Heartbeats are not slowed: keep latencies well below the node timeout.

        Raises:
            ValueError: ``factor`` is not positive.
        """
        if factor <= 0:
            raise ValueError(f"the factor of a latency must be positive; got {factor}")
        host = self.host(ip)
        host.slowness = factor
        for connection in host.connections:
            connection.set_latency()

    # Hosts.

    def crash(self, ip: str, *, silent: bool = False) -> None:
        """End everything at an address: its sockets close, and its node receives and sends nothing more.

        A random prefix of what each of its channels had sent still arrives. A new node may bind the
        address at once; it receives nothing that was sent to the former node.

        Args:
            ip: the address.
            silent: the machine lost its power. It sends no FIN, so peers find out by heartbeat, and
                dials time out instead of being refused, until a node binds the address.
        """
        host = self.host(ip)
        for each in host.endpoints.values():
            each.is_alive = False
            each.backlog.clear()
        host.endpoints.clear()
        host.is_frozen = host.is_stalled = False
        host.is_powered_off = silent
        for connection in list(host.connections):
            connection.crash(host, silent=silent)
        self._update(host)

    def crash_process(self, ip: str, port: int) -> None:
        """End the process that listens on a port, as SIGKILL does; others at its address go on.

        Args:
            ip: the address.
            port: the port.
        """
        host = self.host(ip)
        process = host.endpoints.pop(port)
        process.is_alive = False
        process.backlog.clear()
        for connection in list(host.connections):
            connection.crash_process(process)

    def freeze(self, ip: str, port: int | None = None) -> None:
        """Stop a node's process, as SIGSTOP does, until `thaw`.

        Args:
            ip: the address.
            port: of the process; None: all processes at the address, those included that start there later.

        Its kernel accepts frames, but nothing answers heartbeats, so peers give it up. The node
        receives nothing and what it sends does not leave. Its own *timers* still run, because the
        transport cannot stop them.
        """
        self._halt(ip, port, frozen=True)

    def thaw(self, ip: str, port: int | None = None) -> None:
        """Resume frozen nodes: they receive the frames that came, then learn which connections they lost.

        With a port, nodes that were frozen one by one at other ports of the address stay so.
        """
        self._resume(ip, port, frozen=False)

    def stall(self, ip: str, port: int | None = None) -> None:
        """Stop a node's event loop, as code that holds the GIL does, until `unstall`.

        ZeroMQ's own thread still answers heartbeats: no connection is given up and nothing is lost,
        but no callback runs and nothing is sent. The node's timers still run, as with `freeze`.
        """
        self._halt(ip, port, stalled=True)

    def unstall(self, ip: str, port: int | None = None) -> None:
        """Resume stalled nodes, as `thaw`: they receive what came, and what they sent leaves."""
        self._resume(ip, port, stalled=False)

    def share_machine(self, *ips: str) -> None:
        """Put addresses on one machine, so that nodes there have local roads to each other.

        Nodes at one address have them in any case. All other faults are still those of single addresses.
        """
        number = len(self._machines) + 1
        self._machines.update(dict.fromkeys(ips, number))

    # Single connections.

    def break_road(self, dialler_ip: str, listener_ip: str) -> None:
        """Let the local roads fail on which one address sends to another, while their connections live."""
        for connection in self._dialled_between(dialler_ip, listener_ip):
            if connection.road is not None:
                connection.road.break_off()

    def break_connection(self, dialler_ip: str, listener_ip: str) -> None:
        """Break the connections that one host dialled to another; a random prefix in flight arrives."""
        for connection in self._dialled_between(dialler_ip, listener_ip):
            connection.reset()

    def drop_frame(self, src: str, dst: str, *, skip: int = 0) -> None:
        """Lose one frame in the middle of a channel, as ZeroMQ does when it reconnects unnoticed.

        Args:
            src: the address that dialled and sends.
            dst: the address that would receive.
            skip: number of frames to let through first.

        Raises:
            ValueError: there is no open channel from ``src`` to ``dst``.
        """
        self._newest_open(src, dst).lane.fault([_keep] * skip + [_lose])

    def corrupt_frame(self, src: str, dst: str, *, skip: int = 0) -> None:
        """Flip one random bit of a frame; arguments and errors as for `drop_frame`."""

        def flip_bit(frame: bytes) -> bytes:
            if not frame:
                return b"\x00"
            at = self.rng.randrange(len(frame))
            return frame[:at] + bytes([frame[at] ^ (1 << self.rng.randrange(8))]) + frame[at + 1 :]

        self._newest_open(src, dst).lane.fault([_keep] * skip + [flip_bit])

    # Strangers.

    def inject(
        self,
        dst: str,
        source: bytes,
        frame: bytes,
        *,
        from_ip: str = STRANGER_IP,
    ) -> None:
        """Send a frame from outside the cluster to every endpoint that listens at ``dst``.

        The frame arrives under ``source``. A source that the node does not know is announced first
        (a stranger); a peer's source plays a peer that sends garbage.
        """
        self._after_latency(dst, self._deliver_injected, dst, source, frame, from_ip)

    def eject(self, dst: str, source: bytes) -> None:
        """End the connection of a stranger that `inject` made."""
        self._after_latency(dst, self._report_ejected, dst, source)

    def knock(self, dst: str, reason: str, *, from_ip: str = STRANGER_IP) -> None:
        """Report to ``dst`` that a stranger failed before its first frame: no ZeroMQ, half a handshake."""
        self._after_latency(dst, self._report, dst, "stranger_refused", from_ip, reason)

    # Used by connections (`Fabric`) and tests.

    def host(self, ip: str) -> Host:
        """Return the host at that address; it is made on first use."""
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
        """Return the shortest and the longest time that a frame travels, in seconds."""
        low_s, high_s = self._latencies.get((src.ip, dst.ip), self._latency_s)
        factor = src.slowness * dst.slowness
        return low_s * factor, high_s * factor

    def is_one_machine(self, src: str, dst: str) -> bool:
        """Whether two addresses are of one machine."""
        machine = self._machines.get(src)
        return src == dst or (machine is not None and machine == self._machines.get(dst))

    def new_road(self) -> int:
        """Return a number for a listener of local roads."""
        self._roads += 1
        return self._roads

    def new_source(self) -> bytes:
        """Return a routing id that no dial has had, in the form of libzmq's own."""
        self._sources += 1
        return b"\x00" + self._sources.to_bytes(4, "big")

    # Internals.

    def _add_cut(self, a: frozenset[str], b: frozenset[str] | None) -> None:
        self._cuts.append((a, b))
        if b is not None:
            self._cuts.append((b, a))
        self._update_all()

    def _update_all(self) -> None:
        for host in list(self._hosts.values()):
            for connection in list(host.connections):
                if connection.hosts[0] is host:  # each connection stands in two hosts
                    connection.update()

    def _update(self, host: Host) -> None:
        for connection in list(host.connections):
            connection.update()

    def _halt(self, ip: str, port: int | None, *, frozen: bool = False, stalled: bool = False) -> None:
        host = self.host(ip)
        halted = host if port is None else host.endpoints[port]
        halted.is_frozen |= frozen
        halted.is_stalled |= stalled
        for each in host.endpoints.values():
            each.is_paused |= each.is_halted
        self._update(host)

    def _resume(self, ip: str, port: int | None, *, frozen: bool = True, stalled: bool = True) -> None:
        host = self.host(ip)
        processes = list(host.endpoints.values()) if port is None else [host.endpoints[port]]
        resumed: list[Host | Endpoint] = [host, *processes]
        for each in resumed:
            each.is_frozen &= frozen
            each.is_stalled &= stalled
        self._update(host)
        for each in host.endpoints.values():
            self.loop.call_soon(each.catch_up)

    def _dialled_between(self, dialler_ip: str, listener_ip: str) -> list[Connection]:
        ends = (self.host(dialler_ip), self.host(listener_ip))
        return [each for each in ends[0].connections if each.hosts == ends and each.is_dialler_open]

    def _newest_open(self, src: str, dst: str) -> Connection:
        opened = [each for each in self._dialled_between(src, dst) if each.is_open]
        if not opened:
            raise ValueError(f"there is no open channel from {src} to {dst}")
        return opened[-1]

    def _after_latency(self, dst: str, then: Any, *args: Any) -> None:
        low_s, high_s = self.latency(Host(STRANGER_IP), self.host(dst))
        self.loop.call_later(self.rng.uniform(low_s, high_s), then, *args)

    def _report(self, dst: str, fact: str, *args: Any) -> None:
        for each in list(self.host(dst).endpoints.values()):
            each.report(fact, *args)

    def _deliver_injected(self, dst: str, source: bytes, frame: bytes, from_ip: str) -> None:
        for each in list(self.host(dst).endpoints.values()):
            if source not in each.sources and source not in each.strangers:
                each.strangers[source] = from_ip
                each.report("source_met", source, from_ip)
            each.report("frame_arrived", source, frame)

    def _report_ejected(self, dst: str, source: bytes) -> None:
        for each in list(self.host(dst).endpoints.values()):
            if each.strangers.pop(source, None) is not None:
                each.report("source_lost", source)


class SimTransport:
    """One node's `fleetlm.transport.interface.Transport` on a `SimNetwork`.

    Args:
        network: the network to join.
        settings: the source of the cookie, the timeouts and the heartbeat times.
    """

    def __init__(self, network: SimNetwork, settings: Settings | None = None) -> None:
        self._network = network
        self._settings = settings or Settings()
        self._taken: tuple[Host, int] | None = None
        """The port that was bound, until `start`."""
        self.road: int = 0
        """The number of the listener for local roads, from `bind` on; 0: there is none."""
        self._endpoint: Endpoint | None = None
        self._closing: dict[Connection, None] = {}

    @property
    def cookie(self) -> str | None:
        """The shared secret; only endpoints that know it can connect."""
        return self._settings.cookie

    async def bind(self, ip: str, ports: Sequence[int]) -> int:
        """Take the first port on which no other transport is bound.

        Raises:
            StartFailed: every port is taken.
            RuntimeError: this transport was bound before.
        """
        if self._taken is not None or self._endpoint is not None:
            raise RuntimeError("this transport was started before; a transport is started once")
        host = self._network.host(ip)
        free = [port for port in ports if port not in host.endpoints and port not in host.taken]
        if not free:
            where = endpoint(ip, ports[0]) + (f"-{ports[-1]}" if len(ports) > 1 else "")
            raise StartFailed(where, "in use; stop what listens there")
        host.taken.add(free[0])
        self.road = self._network.new_road() if self._settings.local_road else 0
        self._taken = (host, free[0])
        return free[0]

    async def start(self, listener: Listener) -> None:
        """Report to ``listener`` what comes to the port.

        Raises:
            RuntimeError: this transport was not bound, or was started before.
        """
        if self._taken is None:
            raise RuntimeError("this transport has no port: bind it, once, and then start it")
        host, port = self._taken
        self._give_back()
        self._endpoint = Endpoint(self._network, host, port, listener, self._settings, self.road)
        host.endpoints[port] = self._endpoint
        if host.is_powered_off:
            host.is_powered_off = False
            for connection in list(host.connections):
                connection.reset_at_next_heartbeat()
                connection.update()

    def _give_back(self) -> None:
        if self._taken is not None:
            host, port = self._taken
            host.taken.discard(port)
            self._taken = None

    def dial(self, channel: int, ip: str, port: int) -> None:
        """Open a channel. Raises: ValueError if the channel number is in use."""
        own = self._require_endpoint()
        if channel in own.channels:
            raise ValueError(f"channel {channel} is in use; each dial needs a new number")
        if own.is_alive:
            self._network.counters.dials += 1
            own.channels[channel] = Connection(own, channel, self._network.host(ip), port)

    def send(self, channel: int, frame: bytes, tail: memoryview | None = None) -> bool:
        """Send one frame on an open channel; return False if it cannot be sent."""
        own = self._endpoint
        if own is None or (connection := own.channels.get(channel)) is None:
            return False
        if not connection.is_open:
            return False
        if tail is not None:
            frame = b"".join((frame, tail))
        counters = self._network.counters
        counters.frames_sent += 1
        counters.bytes_sent += len(frame)
        road = connection.road
        if road is not None and road.is_taken:
            return road.put(frame)
        connection.out.put(frame)
        return True

    def answer(self, source: bytes, frame: bytes) -> None:
        """Send one frame back to a dialler; a dialler that has gone gets nothing."""
        connection = self._require_endpoint().sources.get(source)
        if connection is not None and connection.is_dialler_open:
            self._network.counters.answers_sent += 1
            connection.back.put(frame)

    def admit(self, source: bytes) -> None:
        """A source is a half of a connection that is up. Strangers are not limited here."""

    def disconnect(self, source: bytes, after_s: float = 0.0) -> None:
        """End a source's connection after ``after_s`` seconds; what it sends is dropped at once."""
        own = self._require_endpoint()
        connection = own.sources.get(source)
        if connection is not None:
            connection.is_ignored = True
            self._network.loop.call_later(after_s, connection.close_listener)
        elif source in own.strangers:
            self._network.eject(own.host.ip, source)

    def open_road(self, channel: int, number: int, ticket: bytes) -> None:
        """Ask for a local road for an open channel."""
        connection = self._require_endpoint().channels.get(channel)
        if connection is not None and connection.is_open:
            connection.show_ticket(number, ticket)

    def expect_road(self, source: bytes, ticket: bytes) -> None:
        """Let a source in at the local road that comes with this ticket."""
        connection = self._require_endpoint().sources.get(source)
        if connection is not None:
            connection.expect_ticket(ticket)

    def take_road(self, channel: int) -> None:
        """Send all further frames of a channel on its local road."""
        connection = self._require_endpoint().channels.get(channel)
        if connection is not None:
            connection.take_road()

    def follow_road(self, source: bytes) -> bool:
        """Report what comes over the local road of a source. Returns False if it was not let in."""
        connection = self._require_endpoint().sources.get(source)
        return connection is not None and connection.road is not None and connection.road.follow()

    def note_tick(self, at: float, lag_ms: int) -> None:
        """Show the neighbours on this node's local roads that its loop runs."""
        own = self._require_endpoint()
        if not own.is_halted:
            own.tick = at, lag_ms

    def shows_ticks(self, channel: int) -> bool:
        """Whether the peer of a channel sees them."""
        connection = self._require_endpoint().channels.get(channel)
        return connection is not None and connection.road is not None and connection.road.is_taken

    def read_tick(self, source: bytes) -> tuple[float, int] | None:
        """Return what the node of a source has noted since the last call, or None."""
        own = self._require_endpoint()
        connection = own.sources.get(source)
        if own.is_paused or connection is None or connection.road is None or not connection.road.is_followed:
            return None
        return connection.read_tick()

    def hang_up(self, channel: int, flush_s: float = 0.0) -> None:
        """Close a channel; frames that were sent have ``flush_s`` more seconds to leave."""
        connection = self._require_endpoint().channels.get(channel)
        if connection is None:
            return
        connection.hang_up(flush_s)
        if connection.flush_until_s > self._network.loop.time():
            self._closing = {each: None for each in self._closing if each.out.pending}
            self._closing[connection] = None

    async def close(self) -> None:
        """Close everything, and wait until hung-up channels are flushed. Idempotent."""
        self._give_back()
        own = self._endpoint
        if own is None or not own.is_alive:
            return
        own.host.endpoints.pop(own.port, None)
        for connection in list(own.channels.values()):
            connection.hang_up(0.0)
        loop = self._network.loop
        here = [each for each in own.sources.values() if each.is_announced]
        flush_until_s = max((each.flush_until_s for each in self._closing), default=0.0)
        while loop.time() < flush_until_s and any(each.is_listener_open for each in here):  # noqa: ASYNC110
            await asyncio.sleep(HANG_UP_POLL_S)  # As `ZmqTransport` does, and for the same reason.
        own.is_alive = False
        own.backlog.clear()
        for connection in list(own.sources.values()):
            connection.close_listener()
        while True:
            now_s = loop.time()
            left = [each for each in self._closing if each.flushed_at_s > now_s]
            if not left:
                return
            await asyncio.sleep(max(each.flushed_at_s for each in left) - now_s)

    def _require_endpoint(self) -> Endpoint:
        if self._endpoint is None:
            raise RuntimeError("this transport has not been started")
        return self._endpoint


def _keep(frame: bytes) -> bytes | None:
    return frame


def _lose(_frame: bytes) -> bytes | None:
    return None
