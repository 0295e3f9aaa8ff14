"""A whole cluster in one deterministic process: real nodes, a simulated network, virtual time.

    def test_a_dead_node_leaves_every_list() -> None:
        async def main() -> None:
            async with SimCluster(seed=7) as cluster:
                one, two, three = await cluster.start(3)
                await cluster.mesh(timeout=10)
                await cluster.crash(three)
                await asyncio.sleep(1)
                assert one.list() == [two.name]

        run(main())

Theory of operation. The nodes are `fleetlm.Node` as in production; only their network (`SimNetwork`),
discovery (`SimDns`), clock and random generator are simulated. The cluster owns the network, the name
server and the running nodes; it remembers the settings of every address for `restart`, and every node
that ended, to look for leaks in `close`.

Everything random is drawn from generators made by `SimCluster.rng_of`, one for each purpose, seeded with
the cluster's seed. So the same seed runs the same course, whatever ``PYTHONHASHSEED`` is, and a failure
is replayed by its seed. Collections that are iterated keep insertion order for the same reason.

Order of an end: `stop` removes the DNS record and then stops the node, as an orchestrator does. `crash`
cuts the network first and then cancels the node's processes, so that nothing they still send arrives.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence, Set as AbstractSet
from types import TracebackType
from typing import Any, Self

from fleetlm.names import NodeName, parse_address
from fleetlm.node import Node, parts_of
from fleetlm.settings import Settings
from fleetlm.testing.loop import SimLoop, SimulationError
from fleetlm.testing.network import LATENCY_S, SimNetwork, SimTransport
from fleetlm.testing.sim_dns import SimDns
from fleetlm.transport.interface import Listener

WALL_MS = 1_767_225_600_000
"""The wall clock at virtual time 0, in milliseconds: 2026-01-01 UTC."""
SETTINGS = Settings(dns_query="cluster.test", debug=True)
"""The settings of a test that names none. Local messages go through the codec (`Settings.debug`), so that a
message that cannot be sent to another node also fails on one node."""
MESH_STEP_S = 0.05
"""Virtual seconds between two checks for a full mesh."""
QUIET_S = 30.0
"""Virtual seconds after the last node stopped in which everything in flight arrives or is given up."""

NodeLike = Node | str
"""A node of the cluster: the `Node`, its name, or its address."""
Group = NodeLike | Iterable[NodeLike]
"""One node, or several."""


class NotMeshed(SimulationError, TimeoutError):
    """Not every node was connected to every other node in time.

    Attributes:
        timeout_s: the timeout, in virtual seconds.
        missing: node → the nodes that it does not list, each with the reason that it knows.
    """

    def __init__(self, timeout_s: float, missing: dict[str, dict[str, str]]) -> None:
        super().__init__(timeout_s, missing)
        self.timeout_s = timeout_s
        self.missing = missing

    def __str__(self) -> str:
        said = [
            f"{node} misses {', '.join(f'{name} ({why})' for name, why in others.items())}"
            for node, others in self.missing.items()
        ]
        return f"no full mesh within {self.timeout_s:g} s: {'; '.join(said)}"


class Leaked(SimulationError):
    """A node that was stopped or crashed still holds something.

    Attributes:
        what: descriptions of what is held.
    """

    def __init__(self, what: list[str]) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"left behind: {'; '.join(self.what)}"


class SimCluster:
    """Nodes that start, stop, crash and come back on a `SimNetwork`. Needs a running `SimLoop`.

    Args:
        seed: the seed of everything random in the cluster.
        settings: the settings of every node; each node gets its own ``node_ip``.
        wall_ms: the wall clock at virtual time 0, in milliseconds; it advances with virtual time.
        latency_s: shortest and longest time that a frame travels, in seconds.
        trace: keep every fact that is reported to a node, in ``network.trace``.
        on_fact: called with a node's address after each fact that was reported to it, when the node
            has handled the fact: the place to check invariants.

    Attributes:
        network: the `SimNetwork`, for latencies, single connections and strangers.
        dns: the `SimDns`, which answers the nodes' lookups.
        nodes: address → the node that runs there, in the order in which they started. The address is what
            follows the ``@`` of its name, with a port if it is not the base port.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        settings: Settings = SETTINGS,
        wall_ms: int = WALL_MS,
        latency_s: tuple[float, float] = LATENCY_S,
        trace: bool = False,
        on_fact: Callable[[str], None] | None = None,
    ) -> None:
        self.seed = seed
        self.settings = settings
        self.loop: SimLoop = SimLoop.current()
        self.network: SimNetwork = SimNetwork(
            self.loop, self.rng_of("network"), latency_s=latency_s, trace=trace
        )
        self.dns: SimDns = SimDns(self.rng_of("dns"), timeout_s=settings.dns_lifetime_s)
        self.nodes: dict[str, Node] = {}
        self._wall_ms = wall_ms
        self._on_fact = on_fact
        self._settings_of: dict[str, Settings] = {}
        self._former: list[Node] = []
        self._starts = 0
        self._addresses = 0

    def rng_of(self, what: str) -> random.Random:
        """Make a generator for one purpose, so that draws for one purpose do not change another."""
        return random.Random(f"{self.seed} {what}")  # text is hashed by SHA-512, not by `hash`

    # Nodes.

    async def start(self, count: int = 1, *, hosts: int | None = None, **settings: Any) -> list[Node]:
        """Start nodes at new addresses, all at the same virtual time.

        Args:
            count: the number of nodes.
            hosts: the number of addresses, over which the nodes are spread evenly; None: one for each node.
            settings: fields of `Settings` that differ for these nodes.
        """
        new = range(self._addresses + 1, self._addresses + 1 + min(count, hosts or count))
        self._addresses += len(new)
        ips = [f"10.0.{number >> 8}.{number & 255}" for number in new]
        return [await self.start_at(ips[at % len(ips)], **settings) for at in range(count)]

    async def start_at(
        self, ip: str, *, in_dns: bool = True, clock_s: float = 0.0, base: str | None = None, **settings: Any
    ) -> Node:
        """Start a node at an address, on its first free port.

        Args:
            ip: the address, in canonical form; other nodes may run there.
            in_dns: whether to add the address to the cluster's DNS name.
            clock_s: seconds by which its machine's wall clock is ahead; negative if it is behind.
            base: the address of a former node whose settings it takes; default: of the one on the base port.
            settings: fields of `Settings` that differ for this node; kept for `restart`.

        Raises:
            StartFailed: every port is taken, or that of ``node_slot``.
        """
        former = self._settings_of.get(ip if base is None else base, self.settings)
        node_settings = former.replace(node_ip=ip, **settings)
        if in_dns:
            self.dns.add(ip)
        self._starts += 1
        node = await Node.start(
            node_settings,
            discovery=self.dns.client(ip),
            transport=_WatchedTransport(self.network, node_settings, ip, self._on_fact),
            rng=self.rng_of(f"node {self._starts}"),
            wall_ms=self._wall_ms + int((self.loop.time() + clock_s) * 1000),
        )
        address = self.address_of(node)
        self._settings_of[address] = node_settings
        self.nodes[address] = node
        return node

    async def stop(self, who: NodeLike, reason: str = "shutdown", drain_s: float | None = None) -> None:
        """Stop a node as SIGTERM does. Its DNS record is removed first, as an orchestrator does.

        The record stays as long as another node runs at the address.

        Args:
            who: the node.
            reason: the reason that its peers get.
            drain_s: as for `Node.stop`.

        Raises:
            ValueError: no such node runs.
        """
        address, node = self._take(who)
        if not self.mates_of(address):
            self.dns.remove(self.ip_of(address))
        await node.stop(reason, drain_s)
        self._former.append(node)

    async def crash(self, who: NodeLike, *, silent: bool = False, stale: bool = False) -> None:
        """End a node as SIGKILL does: its network is cut first.

        Then its processes are cancelled, because Python has no harder way to end a coroutine. Messages
        that they still send are not delivered.

        Args:
            who: the node.
            silent: the machine lost its power, so that peers find out by heartbeat.
            stale: keep the address in DNS; so it is as long as another node runs there.

        Raises:
            ValueError: no such node runs; or the power fails of a machine where others run.
        """
        if silent and self.mates_of(who):
            raise ValueError(f"crash the other nodes at {self.ip_of(who)} first: they have the same power")
        address, node = self._take(who)
        ip = self.ip_of(address)
        if self.mates_of(address):
            self.network.crash_process(ip, parts_of(node).kernel.me.port)
        else:
            self.network.crash(ip, silent=silent)
            if not stale:
                self.dns.remove(ip)
        await node.stop("crashed", 0.0)
        self._former.append(node)

    async def restart(self, who: NodeLike, *, clock_s: float = 0.0, **settings: Any) -> Node:
        """Start a new incarnation at an address that had a node; a node that still runs is crashed first."""
        address = self.address_of(who)
        if address in self.nodes:
            await self.crash(address, stale=True)
        former = self._settings_of.get(address)
        if former is not None:
            port = split_address(address)[1] or former.base_port
            settings = {"node_slot": port - former.node_ports[0]} | settings
        return await self.start_at(self.ip_of(address), clock_s=clock_s, base=address, **settings)

    def ip_of(self, who: NodeLike) -> str:
        """Return the IP address of a node, given as the `Node`, its name or its address."""
        return split_address(self.address_of(who))[0]

    def address_of(self, who: NodeLike) -> str:
        """Return the address of a node, with a port if it is not the base port: its key in ``nodes``."""
        name = who if isinstance(who, str) else who.name
        return name.rpartition("@")[2]

    def mates_of(self, who: NodeLike) -> list[str]:
        """Return the addresses of the other nodes that run at the same IP address."""
        address, ip = self.address_of(who), self.ip_of(who)
        return [each for each in self.nodes if each != address and self.ip_of(each) == ip]

    # Faults; `network` and `dns` have more.

    def partition(self, group: Group, others: Group | None = None) -> None:
        """Cut a group of nodes off from ``others``, or from all other nodes, until `heal`."""
        there = None if others is None else self._ips(others)
        self.network.partition(self._ips(group), there)

    def partition_one_way(self, src: Group, dst: Group) -> None:
        """Let nothing from ``src`` reach ``dst``, until `heal`."""
        self.network.partition_one_way(self._ips(src), self._ips(dst))

    def heal(self) -> None:
        """End every fault of the network, its hosts and the name server; no node is restarted.

        Latencies that `SimNetwork.set_latency` set for single paths stay.
        """
        self.network.heal()
        self.dns.heal()
        for ip in dict.fromkeys(map(self.ip_of, self._settings_of)):
            self.network.thaw(ip)
            self.network.unstall(ip)
            self.slow(ip, 1.0)

    def freeze(self, who: NodeLike) -> None:
        """Stop a node's process, as SIGSTOP does; see `SimNetwork.freeze`. Others at its address go on."""
        self.network.freeze(*self._place_of(who))

    def thaw(self, who: NodeLike) -> None:
        """Resume a frozen node."""
        self.network.thaw(*self._place_of(who))

    def stall(self, who: NodeLike) -> None:
        """Stop a node's event loop while its heartbeats continue; see `SimNetwork.stall`."""
        self.network.stall(*self._place_of(who))

    def unstall(self, who: NodeLike) -> None:
        """Resume a stalled node."""
        self.network.unstall(*self._place_of(who))

    def _place_of(self, who: NodeLike) -> tuple[str, int | None]:
        """Return address and port of a node; without a port if it is alone there, or does not run."""
        address, ip = self.address_of(who), self.ip_of(who)
        if address not in self.nodes or not self.mates_of(address):
            return ip, None
        return ip, parts_of(self.nodes[address]).kernel.me.port

    def slow(self, who: NodeLike, factor: float) -> None:
        """Multiply every latency to and from a node by ``factor``; 1 restores the normal latency."""
        self.network.slow(self.ip_of(who), factor)

    # State.

    def missing(self) -> dict[str, dict[str, str]]:
        """Return node → {running node that it does not list: why}; empty in a full mesh."""
        names = {node.name for node in self.nodes.values()}
        found = {}
        for node in self.nodes.values():
            absent = sorted(names - _connected(node) - {node.name})
            if absent:
                found[node.name] = {name: _explain_missing(node, name) for name in absent}
        return found

    def meshed(self) -> bool:
        """Whether every running node lists exactly the other running nodes."""
        others = len(self.nodes) - 1
        return all(len(_connected(node)) == others for node in self.nodes.values()) and not self.missing()

    async def mesh(self, timeout: float = 60.0) -> float:
        """Wait until every running node lists exactly the others.

        Args:
            timeout: virtual seconds.

        Returns:
            The virtual seconds that it took.

        Raises:
            NotMeshed: the timeout passed first.
        """
        began_s = self.loop.time()
        while not self.meshed():
            if self.loop.time() - began_s >= timeout:
                raise NotMeshed(timeout, self.missing())
            await asyncio.sleep(MESH_STEP_S)
        return self.loop.time() - began_s

    # Closing.

    async def close(self) -> None:
        """Stop every node, and check that no node holds anything any more.

        Raises:
            Leaked: a node still holds something. Every node is stopped all the same.
        """
        self.heal()
        for address in list(self.nodes):
            await self.stop(address, drain_s=0.0)
        await asyncio.sleep(QUIET_S)
        found = self.leaks()
        self._former.clear()
        if found:
            raise Leaked(found)

    def leaks(self) -> list[str]:
        """Describe what the nodes that ended still hold."""
        found = []
        for node in self._former:
            found += [f"{node.name}: session with {name}" for name in _connected(node)]
            found += [f"{node.name}: process {info.runs}" for info in node.processes()]
        for ip in sorted(set(map(self.ip_of, self._settings_of)) - set(map(self.ip_of, self.nodes))):
            host = self.network.host(ip)
            found += [f"{ip}: listens on port {port}" for port in host.endpoints]
            found += [f"{ip}: {len(host.connections)} connections"] if host.connections else []
        return found

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.close()
        except Leaked as leaked:
            if error is None:
                raise
            error.add_note(f"Also: {leaked}")

    def _take(self, who: NodeLike) -> tuple[str, Node]:
        address = self.address_of(who)
        node = self.nodes.pop(address, None)
        if node is None:
            running = ", ".join(self.nodes) or "none"
            raise ValueError(f"no node runs at {address}; running: {running}")
        return address, node

    def _ips(self, group: Group) -> list[str]:
        if isinstance(group, Node | str):
            group = [group]
        return [self.ip_of(who) for who in group]


class _WatchedTransport(SimTransport):
    """A transport that calls the cluster back after each fact."""

    def __init__(
        self,
        network: SimNetwork,
        settings: Settings,
        ip: str,
        on_fact: Callable[[str], None] | None,
    ) -> None:
        super().__init__(network, settings)
        self._address = ip
        self._base_port = settings.base_port
        self._on_fact = on_fact

    async def bind(self, ip: str, ports: Sequence[int]) -> int:
        port = await super().bind(ip, ports)
        self._address = NodeName("", ip, None if port == self._base_port else port).address
        return port

    async def start(self, listener: Listener) -> None:
        watched = listener if self._on_fact is None else _Watched(listener, self._address, self._on_fact)
        await super().start(watched)


class _Watched:
    """A listener that forwards facts and then calls ``on_fact``."""

    def __init__(self, listener: Listener, ip: str, on_fact: Callable[[str], None]) -> None:
        self._listener = listener
        self._ip = ip
        self._on_fact = on_fact

    def channel_opened(self, channel: int) -> None:
        self._listener.channel_opened(channel)
        self._on_fact(self._ip)

    def channel_lost(
        self, channel: int, reason: str, *, is_foreign: bool = False, is_logged: bool = False
    ) -> None:
        self._listener.channel_lost(channel, reason, is_foreign=is_foreign, is_logged=is_logged)
        self._on_fact(self._ip)

    def channel_answered(self, channel: int, frame: bytes) -> None:
        self._listener.channel_answered(channel, frame)
        self._on_fact(self._ip)

    def frame_arrived(self, source: bytes, frame: bytes, tail: memoryview | None = None) -> None:
        self._listener.frame_arrived(source, frame, tail)
        self._on_fact(self._ip)

    def room(self, source: bytes, start: bytes, size_bytes: int) -> memoryview | None:
        return self._listener.room(source, start, size_bytes)

    def source_broke(self, source: bytes, why: str) -> None:
        self._listener.source_broke(source, why)
        self._on_fact(self._ip)

    def road_opened(self, channel: int) -> None:
        self._listener.road_opened(channel)
        self._on_fact(self._ip)

    def source_met(self, source: bytes, ip: str) -> None:
        self._listener.source_met(source, ip)
        self._on_fact(self._ip)

    def source_lost(self, source: bytes) -> None:
        self._listener.source_lost(source)
        self._on_fact(self._ip)

    def stranger_refused(self, ip: str, reason: str) -> None:
        self._listener.stranger_refused(ip, reason)
        self._on_fact(self._ip)


def split_address(address: str) -> tuple[str, int | None]:
    """Return the IP address and the port of an address, which is None for the base port."""
    return parse_address(address) or (address, None)


def _connected(node: Node) -> AbstractSet[str]:
    """Names of the nodes with which a node has a session, as its driver knows it."""
    return parts_of(node).driver.sessions.keys()


def _explain_missing(node: Node, name: str) -> str:
    row = node.info(name)
    if row is None:
        return "not known"
    return f"{getattr(row, 'status', '')}; {getattr(row, 'last_error', '') or 'no error yet'}"
