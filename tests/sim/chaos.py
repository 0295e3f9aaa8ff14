"""Scenarios from a seed: nodes, traffic and faults at random times; then all faults end, and all is checked.

Everything random comes from the seed; the labels of the generators and the order of the draws must stay,
or every seed gets another course.

python -m tests.sim.chaos 4711            # run one seed and print what happened
python -m tests.sim.chaos 4711 --trace    # also print every fact that was reported to a node, and the log
python -m tests.sim.chaos 0 5000          # run a range of seeds
"""

from __future__ import annotations

import argparse
import asyncio
import enum
import logging
import random
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from fleetlm.node import Node
from fleetlm.settings import Settings
from fleetlm.testing.cluster import SimCluster
from fleetlm.testing.loop import run
from fleetlm.testing.sim_dns import Reply
from tests.sim.agents import Agents
from tests.sim.invariants import World, held, left_timers
from tests.sim.seeded import play_each

LIMIT_S = 600.0
GARBAGE_KINDS = 10


class Kind(enum.Enum):
    """The kind of faults of a scenario."""

    CHAOS = "everything may happen, and what arrives is right"
    DNS = "only the name server is ill: nothing may come of it"
    SLOTS = "as chaos, with several nodes at some addresses"
    NEIGHBOURS = "as chaos, on one machine: messages travel on local roads, which may fail"
    HOSTILE = "frames are falsified, strangers send garbage: the cluster outlives it"


@dataclass(frozen=True)
class Report:
    """A summary of a run, to print and to compare runs."""

    seed: int
    kind: Kind
    nodes: int
    virtual_s: float
    mesh_s: float
    messages: int
    calls: int
    nodedowns: int
    digest: int


NEIGHBOURS = 1_000_000
"""Seeds from here on are of nodes on one machine."""


def kind_of(seed: int) -> Kind:
    if seed >= NEIGHBOURS:
        return Kind.NEIGHBOURS
    return {0: Kind.DNS, 5: Kind.DNS, 7: Kind.HOSTILE, 9: Kind.SLOTS}.get(seed % 10, Kind.CHAOS)


def settings_of(rng: random.Random) -> Settings:
    """Draw settings: small sizes, so that windows fill and messages are chunked, and mostly short times."""
    settings = Settings(dns_query="chaos.test").replace(
        window_bytes=65_536,
        chunk_bytes=rng.choice((2_048, 8_192)),
        bulk_window_bytes=rng.choice((16_384, 65_536)),
        batch_bytes=rng.choice((512, 4_096, 65_536)),
        batch_messages=rng.choice((4, 1_024)),
        max_message_bytes=65_536,
        mailbox_limit=rng.choice((8, 64)),
        events_limit=rng.choice((4, 1_000)),
        drain_s=0.5,
        cookie=rng.choice((None, "a cookie of chaos")),
    )
    if rng.random() < 0.15:
        return settings
    return settings.replace(
        poll_interval_s=1.0,
        node_timeout_s=2.0,
        connect_timeout_s=0.8,
        handshake_timeout_s=1.5,
        backoff_max_s=2.0,
        forget_after_s=4.0,
        tick_s=0.5,
    )


def bound_s(settings: Settings) -> float:
    """Return the seconds after the last fault within which all nodes must be connected.

    A half-open connection is noticed within the node timeout. A dial that has begun may have to fail
    first; then a back-off passes, and the next dial may meet the back-off of the other side. A node that
    was forgotten is found with the next DNS answer.
    """
    attempt_s = settings.connect_timeout_s + settings.handshake_timeout_s
    return (
        settings.longest_silence_s + 2 * (attempt_s + settings.backoff_max_s) + 2 * settings.poll_interval_s
    )


class Scenario:
    """One run. Everything random comes from the seed."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.kind = kind_of(seed)
        self.rng = random.Random(f"{seed} scenario")
        self.settings = settings_of(self.rng)
        self.world = World(strict=self.kind is not Kind.HOSTILE)
        self.cluster = SimCluster(seed, settings=self.settings, trace=trace, on_fact=self.world.on_fact)
        self.world.cluster = self.cluster
        if self.kind is Kind.NEIGHBOURS:
            self.cluster.network.share_machine(*(f"10.0.0.{number}" for number in range(1, 100)))
        self.agents: dict[str, Agents] = {}
        self.dead: dict[str, None] = {}
        self.parted: list[tuple[Node, str]] = []
        self.log: list[str] = []
        self.said = zlib.crc32(b"")

    @classmethod
    async def play(cls, seed: int, *, trace: bool = False) -> tuple[Scenario, Report]:
        """Run a seed to its end. Raises: Breach, SimulationError."""
        scenario = cls(seed, trace=trace)
        try:
            return scenario, await scenario._play()
        except BaseException as error:
            error.add_note(scenario.story())
            raise

    def story(self) -> str:
        return f"seed {self.seed}: {self.kind.value}\n" + "\n".join(self.log)

    def note(self, what: str) -> None:
        line = f"{self.cluster.loop.time():9.4f}  {what}"
        self.said = zlib.crc32(line.encode(), self.said)
        self.log.append(line)

    async def _play(self) -> Report:
        cluster, world, rng = self.cluster, self.world, self.rng
        if rng.random() < 0.5:
            self.dns_fault()
        for _ in range(rng.randint(3, 6)):
            await self.start()
            if rng.random() < 0.3:
                await asyncio.sleep(rng.expovariate(1.0))
        faults = self.faults()
        for _ in range(rng.randint(10, 30)):
            await asyncio.sleep(rng.expovariate(1 / rng.choice((0.02, 0.3, 1.5))))
            world.check()
            await self.one_of(faults)
        mesh_s = await self.peace()
        await self.quiet()
        nodedowns = world.nodedowns
        await self.end()
        digest = zlib.crc32(repr(cluster.network.trace).encode(), self.said)
        counters = cluster.network.counters
        digest = zlib.crc32(repr((counters, world.messages, cluster.loop.turns)).encode(), digest)
        return Report(
            self.seed, self.kind, len(world.started), cluster.loop.time(), mesh_s,
            world.messages, len(world.asked), nodedowns, digest,
        )  # fmt: skip

    # Nodes.

    async def start(self) -> None:
        if self.kind is Kind.SLOTS and self.cluster.nodes and self.rng.random() < 0.6:
            ip = self.cluster.ip_of(self.rng.choice(list(self.cluster.nodes)))
            node = await self.cluster.start_at(ip, node_slot=None)  # Not that of a node that was restarted.
        else:
            [node] = await self.cluster.start()
        self.met(node)
        self.note(f"start {node.name}")

    def met(self, node: Node) -> None:
        view = self.world.node_started(node)
        slowness = 4.0 if self.kind is Kind.DNS else 1.0  # There it is not messages that are put to the test.
        rng = random.Random(self.rng.random())
        agents = Agents(self.world, view, rng, self.settings.chunk_bytes, slowness)
        self.dead.pop(self.cluster.address_of(node), None)  # It may have taken the port of a dead one.
        self.agents[self.cluster.address_of(node)] = agents
        agents.spawn()

    async def revive(self, ip: str) -> None:
        self.dead.pop(ip, None)
        self.met(await self.cluster.restart(ip, clock_s=self.rng.choice((0.0, 0.0, -3600.0))))

    # Faults.

    def faults(self) -> list[tuple[int, Callable[[], object]]]:
        """Return the possible faults with their weights."""
        if self.kind is Kind.DNS:
            return [(8, self.dns_fault), (1, self.start_one), (3, self.nothing)]
        faults: list[tuple[int, Callable[[], object]]] = [
            (3, self.crash), (2, self.leave), (4, self.restart), (1, self.start_one),
            (3, self.partition), (3, self.one_way), (3, self.heal),
            (2, self.freeze), (2, self.thaw), (2, self.stall), (2, self.unstall), (2, self.slow),
            (3, self.break_one), (2, self.drop), (1, self.disconnect), (1, self.latency),
            (3, self.dns_fault), (1, self.stranger), (4, self.nothing),
        ]  # fmt: skip
        if self.kind is Kind.HOSTILE:
            faults += [(15, self.corrupt), (10, self.stranger)]
        if self.kind is Kind.NEIGHBOURS:
            faults += [(8, self.break_road)]
        return faults

    async def one_of(self, faults: list[tuple[int, Callable[[], object]]]) -> None:
        weights = [weight for weight, _ in faults]
        [(_, fault)] = self.rng.choices(faults, weights)
        done = fault()
        if asyncio.iscoroutine(done):
            await done

    def anyone(self) -> str | None:
        return self.rng.choice(list(self.cluster.nodes)) if self.cluster.nodes else None

    def some(self) -> list[str]:
        known = list(self.agents)
        return self.rng.sample(known, self.rng.randint(1, max(1, len(known) // 2)))

    def pair(self) -> tuple[str, str] | None:
        """Return the IP addresses of two nodes, which may be the same one."""
        known = list(self.agents)
        if len(known) < 2:
            return None
        one, two = self.rng.sample(known, 2)
        return self.cluster.ip_of(one), self.cluster.ip_of(two)

    def nothing(self) -> None:
        """Do nothing."""

    async def start_one(self) -> None:
        if len(self.agents) < 7:
            await self.start()

    async def crash(self) -> None:
        if (ip := self.anyone()) is not None:
            silent, stale = self.rng.random() < 0.4, self.rng.random() < 0.5
            silent = silent and not self.cluster.mates_of(ip)
            self.note(f"crash {ip} silent={silent} stale={stale}")
            self.dead[ip] = None
            await self.cluster.crash(ip, silent=silent, stale=stale)

    async def leave(self) -> None:
        if (ip := self.anyone()) is not None:
            self.note(f"stop {ip}")
            self.dead[ip] = None
            await self.cluster.stop(ip)

    async def restart(self) -> None:
        ip = self.rng.choice(list(self.dead)) if self.dead else self.anyone()
        if ip is not None:
            self.note(f"restart {ip}")
            await self.revive(ip)

    def partition(self) -> None:
        group = self.some()
        others = self.some() if self.rng.random() < 0.3 else None
        self.note(f"partition {group} from {others}")
        self.cluster.partition(group, others)

    def one_way(self) -> None:
        group, others = self.some(), self.some()
        self.note(f"partition one way {group} to {others}")
        self.cluster.partition_one_way(group, others)

    def heal(self) -> None:
        self.note("heal the network")
        self.cluster.network.heal()

    def freeze(self) -> None:
        if (ip := self.anyone()) is not None:
            self.note(f"freeze {ip}")
            self.cluster.freeze(ip)

    def thaw(self) -> None:
        self.note("thaw")
        for ip in self.cluster.nodes:
            self.cluster.thaw(ip)

    def stall(self) -> None:
        if (ip := self.anyone()) is not None:
            self.note(f"stall {ip}")
            self.cluster.stall(ip)

    def unstall(self) -> None:
        self.note("unstall")
        for ip in self.cluster.nodes:
            self.cluster.unstall(ip)

    def slow(self) -> None:
        if (ip := self.anyone()) is not None:
            factor = self.rng.choice((1.0, 3.0, 10.0))
            self.note(f"slow {ip} {factor}")
            self.cluster.slow(ip, factor)

    def latency(self) -> None:
        if (pair := self.pair()) is not None:
            low_s = self.rng.choice((0.0, 0.0005, 0.01))
            self.note(f"latency {pair} {low_s}")
            self.cluster.network.set_latency(*pair, low_s, low_s * 2)

    def break_one(self) -> None:
        if (pair := self.pair()) is not None:
            self.note(f"break {pair}")
            self.cluster.network.break_connection(*pair)

    def break_road(self) -> None:
        if (pair := self.pair()) is not None:
            self.note(f"break the local road {pair}")
            self.cluster.network.break_road(*pair)

    def drop(self) -> None:
        self.fault_frame("drop", self.cluster.network.drop_frame)

    def corrupt(self) -> None:
        self.fault_frame("corrupt", self.cluster.network.corrupt_frame)

    def fault_frame(self, word: str, fault: Callable[..., None]) -> None:
        if (pair := self.pair()) is not None:
            skip = self.rng.randrange(4)
            self.note(f"{word} a frame {pair} skip={skip}")
            try:
                fault(*pair, skip=skip)
            except ValueError:
                self.note("  there is no connection")

    def disconnect(self) -> None:
        if (ip := self.anyone()) is not None and (up := self.cluster.nodes[ip].list()):
            other = self.rng.choice(up)
            self.note(f"{ip} disconnects {other}")
            self.cluster.nodes[ip].disconnect(other)
            self.parted.append((self.cluster.nodes[ip], other))

    def stranger(self) -> None:
        if (ip := self.anyone()) is not None:
            rng, network, ip = self.rng, self.cluster.network, self.cluster.ip_of(ip)
            source = b"stranger%d" % rng.randrange(3)
            frame = rng.randbytes(rng.choice((0, 1, 16, 17, 40, 400)))
            if frame and rng.random() < 0.7:
                frame = bytes([rng.randrange(GARBAGE_KINDS)]) + frame[1:]
            self.note(f"a stranger sends {len(frame)} bytes to {ip}")
            network.inject(ip, source, frame)
            if rng.random() < 0.3:
                network.eject(ip, source)
            if rng.random() < 0.3:
                network.knock(ip, "authentication failed")

    def dns_fault(self) -> None:
        rng = self.rng
        reply = rng.choice(list(Reply))
        known = [self.cluster.ip_of(each) for each in self.agents]
        to = None if rng.random() < 0.5 or not known else [self.cluster.ip_of(each) for each in self.some()]
        extra = [*rng.sample(known, min(len(known), 2)), "10.8.8.8", "0.0.0.0", "garbage"]
        self.note(f"DNS: {reply.name} to {to}")
        self.cluster.dns.script(
            reply,
            to=to,
            count=rng.randint(1, 3),
            delay_s=rng.choice(((0.001, 0.01), (0.5, 1.5))),
            extra=extra[: rng.choice((0, 0, 2, 5))],
            hidden=[self.cluster.ip_of(each) for each in self.some()] if known and rng.random() < 0.3 else (),
        )

    # The end.

    async def peace(self) -> float:
        """End every fault, and wait until all nodes are connected."""
        self.note("peace")
        self.cluster.heal()
        for ip in list(self.dead):
            await self.revive(ip)
        for node, other in self.parted:
            if self.cluster.nodes.get(self.cluster.address_of(node)) is node:
                await node.connect(other, timeout=0.0)
        mesh_s = await self.cluster.mesh(bound_s(self.settings))
        self.note(f"mesh after {mesh_s:.2f} s")
        self.world.check()
        names = sorted(node.name for node in self.cluster.nodes.values())
        for node in self.cluster.nodes.values():
            if sorted([*node.list(), node.name]) != names:
                self.world.breach(f"{node.name} lists {node.list()}")
        return mesh_s

    async def quiet(self) -> None:
        """Stop the traffic: everything sent must arrive, and every new call must succeed."""
        for agents in self.agents.values():
            agents.traffic = False
        running = [agents for ip, agents in self.agents.items() if ip in self.cluster.nodes]
        ticks = 20 if self.kind is Kind.SLOTS else 5  # A fault of a host meets any one of its channels.
        await asyncio.sleep(
            ticks * self.settings.tick_s
        )  # Frames that a fault will still drop need this time too.
        waiting: list[str] = []
        for _ in range(10):
            await asyncio.sleep(1.0)
            waiting = [f"{one.node.name}: {one.busy} wait" for one in running if one.busy]
            waiting += self.world.not_arrived() if self.world.strict else []
            if not waiting:
                break
        else:
            self.world.breach(f"10 s after the last message: {'; '.join(waiting)}")
        for one in running:
            for what in held(self.cluster, one.node, strict=self.world.strict):
                self.world.breach(what)
        self.note("quiet")
        nodedowns = self.world.nodedowns
        for agents in running:
            for node in self.cluster.nodes.values():
                for server in ("echo", "big"):
                    outcome = await agents.call_one(node.name, server, 2.0)
                    if isinstance(outcome, BaseException) and self.world.strict:
                        self.world.breach(f"in quiet, {agents.node.name} asks {node.name}: {outcome!r}")
        if self.world.nodedowns != nodedowns and self.world.strict:
            self.world.breach("a nodedown in quiet")
        if self.kind is Kind.DNS and self.world.nodedowns:
            self.world.breach(f"{self.world.nodedowns} nodedowns by DNS alone")
        self.world.check()

    async def end(self) -> None:
        """Stop every node, and check that nothing is left."""
        nodes = list(self.cluster.nodes.values())
        await self.cluster.close()
        for node in nodes:
            if node._outbound.local_calls or node._parts.kernel._channels:
                self.world.breach(f"{node.name} left something behind")
        if timers := left_timers(self.cluster.loop):
            self.world.breach(f"timers are left: {timers}")
        self.world.all_ended()
        self.world.check()


def play(seed: int, *, trace: bool = False, quiet: bool = False) -> Report:
    """Run a seed on its own loop. Raises what is wrong, with the log of the run as a note.

    Args:
        seed: of everything.
        trace: keep every fact; the digest then covers them.
        quiet: do not print them.
    """
    told = trace and not quiet
    logging.getLogger("fleetlm").setLevel(logging.DEBUG if told else logging.CRITICAL + 1)

    async def main() -> Report:
        scenario, report = await Scenario.play(seed, trace=trace)
        if told:
            for at_s, ip, *fact in scenario.cluster.network.trace or ():
                print(f"{at_s:9.4f}  {ip:12} {fact}")
            print(scenario.story())
        return report

    return run(main(), seed=seed, limit_s=LIMIT_S)


def blocks(seeds: range, kind: Kind, size: int = 10) -> list[list[int]]:
    """Split the seeds of a kind into blocks."""
    found = [seed for seed in seeds if kind_of(seed) is kind]
    return [found[at : at + size] for at in range(0, len(found), size)]


def play_all(seeds: list[int]) -> list[Report]:
    """Run all seeds. Raises: AssertionError with the command that replays each failed seed."""
    return play_each(play, seeds, "python -m tests.sim.chaos {seed} --trace")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run scenarios from seeds.")
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int, nargs="?", default=1)
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    if options.trace:
        logging.basicConfig(format="%(name)s %(levelname)s %(message)s", stream=sys.stdout)
    failed, slowest_s = [], 0.0
    for seed in range(options.first, options.first + options.count):
        try:
            report = play(seed, trace=options.trace)
        except Exception as error:
            failed.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
            if options.count == 1:
                raise
        else:
            slowest_s = max(slowest_s, report.mesh_s)
            if options.count == 1:
                print(report)
    print(f"{options.count - len(failed)} seeds passed, {len(failed)} failed: {failed}")
    print(f"the slowest mesh after a peace took {slowest_s:.2f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
