"""A soak run from a seed: processes on several nodes use all features while nodes and connections fail.

Processes monitor, link, send, call, stream, spawn, register names and join groups (`soak_processes`,
`soak_callers`, `soak_actors`). The run has four phases:

1. Faults: nodes crash, leave, restart, are partitioned and stall, at random times. A short run has at most
   ``SHORT_RUN_FAULTS`` of them, and is the beginning of the whole run of the same seed.
2. `heal_and_mesh`: every fault ends, every node is started again, and all nodes must connect.
3. `settle`: no process starts anything new. What was begun must end, and all nodes must agree.
4. `end`: every process and every node ends. No table, task, timer or future may be left.

`soak_world` records what really happens and compares it with what processes are told when it is delivered;
`soak_ledger` does the same for requests and numbered messages; `soak_checks` checks the tables of the
nodes. The first difference (a breach) fails the run.

Everything random comes from the seed. The labels of the generators and the order of the draws must stay:
a change gives every seed another course, and the seeds that once failed no longer test what they found.

python -m tests.sim.soak 4711            # run one seed and print what happened
python -m tests.sim.soak 4711 --trace    # also print every fact that was reported to a node, and the log
python -m tests.sim.soak 4711 --short    # make a short run, as `make test` does
python -m tests.sim.soak 0 5000          # run a range of seeds
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import random
import sys
import zlib
from collections import Counter
from dataclasses import dataclass

from fleetlm import Node, Settings
from fleetlm.testing.cluster import SimCluster
from fleetlm.testing.loop import run
from tests.sim.chaos import bound_s
from tests.sim.seeded import play_each
from tests.sim.soak_checks import Checks, Futures, left_in_loop
from tests.sim.soak_ledger import Ledger
from tests.sim.soak_processes import Processes
from tests.sim.soak_world import World

LIMIT_S = 600.0
SHORT_RUN_FAULTS = 3
"""Most faults of a short run. The fault phase takes three quarters of a run's CPU time. Forty short runs
notice 32 of the 34 mutants of `test_soak_mutants`; whole runs, with 3 to 7 faults, notice all of them."""
QUIET_S = 20.0
"""Virtual seconds in which everything that was begun must end."""
SETTLE_S = 0.1
"""Virtual seconds for the last signals to arrive."""


@dataclass(frozen=True)
class Report:
    """A summary of a run, to print and to compare runs."""

    seed: int
    nodes: int
    virtual_s: float
    counts: Counter[str]
    digest: int


def settings_of(rng: random.Random) -> Settings:
    """Draw settings with small windows, so that they fill, and short times, so that runs are short."""
    return Settings(dns_query="soak.test").replace(
        mailbox_limit=rng.choice((4, 8, 32)),
        stream_window=rng.choice((1, 2, 8, 64)),
        window_bytes=rng.choice((65_536, 8 * 1024 * 1024)),
        chunk_bytes=rng.choice((2_048, 256 * 1024)),
        bulk_window_bytes=rng.choice((16_384, 2 * 1024 * 1024)),
        batch_messages=rng.choice((4, 1_024)),
        events_limit=rng.choice((3, 1_000)),
        concurrent_handlers=rng.choice((1, 2, 5)),
        terminate_s=1.0,
        debug=rng.random() < 0.1,
        poll_interval_s=2.0,
        node_timeout_s=2.0,
        connect_timeout_s=0.8,
        handshake_timeout_s=1.5,
        backoff_max_s=1.0,
        forget_after_s=4.0,
        tick_s=0.5,
        drain_s=0.2,
    )


class SoakRun:
    """One soak run; see the module."""

    def __init__(self, seed: int, *, trace: bool = False, is_short: bool = False) -> None:
        self.seed = seed
        self.is_short = is_short
        self.hosts = 1 + seed // 5 % 2 if seed % 5 == 4 else None
        """How many addresses the nodes share; None: each has its own."""
        self.rng = random.Random(f"{seed} society")  # the label stays: it determines every seed's course
        self.settings = settings_of(self.rng)
        self.world = World()
        self.ledger = Ledger(self.world)
        self.processes: dict[str, Processes] = {}
        self.checks = Checks(self.world, self.ledger, self.processes, self.settings)
        self.cluster = SimCluster(seed, settings=self.settings, trace=trace, on_fact=self.checks.on_fact)
        self.world.cluster = self.cluster
        self.futures = Futures(self.cluster.loop)
        self.stopped_ips: list[str] = []
        self.disconnected: list[tuple[Node, str]] = []
        self.broken_at_s = -LIMIT_S
        """When a connection was broken last, which its nodes notice later."""
        self.log: list[str] = []

    @classmethod
    async def play(cls, seed: int, *, trace: bool = False, is_short: bool = False) -> tuple[SoakRun, Report]:
        """Run all phases for a seed. Raises: Breach, SimulationError."""
        soak_run = cls(seed, trace=trace, is_short=is_short)
        try:
            return soak_run, await soak_run._play()
        except BaseException as error:
            error.add_note("\n".join(soak_run.log))
            raise

    def note(self, what: str) -> None:
        self.log.append(f"{self.world.now_s:9.4f}  {what}")

    async def _play(self) -> Report:
        rng, world = self.rng, self.world
        for node in await self.cluster.start(rng.choice((2, 3, 3, 4)), hosts=self.hosts):
            self.node_started(node)
        if rng.random() < 0.8:
            await self.cluster.mesh(10.0)
        faults = rng.randint(3, 7)
        for _ in range(min(faults, SHORT_RUN_FAULTS) if self.is_short else faults):
            await asyncio.sleep(rng.expovariate(1 / rng.choice((0.2, 1.0, 2.5))))
            world.check()
            await self.inject_fault()
        await self.heal_and_mesh()
        await self.settle()
        await self.end()
        digest = zlib.crc32(repr((self.cluster.network.trace, self.cluster.network.counters)).encode())
        digest = zlib.crc32(repr((world.counts, self.cluster.loop.turns, self.log)).encode(), digest)
        return Report(self.seed, len(world.by_incarnation), world.now_s, world.counts, digest)

    # Nodes and faults.

    def node_started(self, node: Node) -> None:
        self.note(f"start {node.name} {node.incarnation:x}")
        ip = self.cluster.address_of(node)
        record = self.world.node_started(node)
        processes = self.processes[ip] = Processes(
            self.world, self.ledger, record, random.Random(self.rng.random())
        )
        processes.start()

    async def restart_node(self, ip: str) -> None:
        if ip in self.stopped_ips:
            self.stopped_ips.remove(ip)
        self.node_started(await self.cluster.restart(ip))

    async def inject_fault(self) -> None:
        rng, cluster = self.rng, self.cluster
        ips = list(self.processes)
        up = list(cluster.nodes)
        ip, other = rng.sample(ips, 2)
        what = rng.choices(
            ("crash", "leave", "restart", "partition", "one way", "heal", "stall", "slow", "break",
             "disconnect", "nothing"),
            (4, 1, 5, 3, 2, 4, 2, 2, 4, 2, 1),
        )[0]  # fmt: skip
        self.note(f"{what} {ip} {other}")
        if what == "crash" and ip in up:
            self.stopped_ips.append(ip)
            silent, stale = rng.random() < 0.4, rng.random() < 0.5
            await cluster.crash(ip, silent=silent and not cluster.mates_of(ip), stale=stale)
        elif what == "leave" and ip in up:
            self.stopped_ips.append(ip)
            await cluster.stop(ip)
        elif what == "restart":
            await self.restart_node(rng.choice(self.stopped_ips) if self.stopped_ips else ip)
        elif what == "partition":
            cluster.partition(ip, other if rng.random() < 0.5 else None)
        elif what == "one way":
            cluster.partition_one_way(ip, other)
        elif what == "heal":
            cluster.heal()
        elif what == "stall" and ip in up:
            cluster.stall(ip)
        elif what == "slow":
            cluster.slow(ip, rng.choice((3.0, 10.0)))
        elif what == "break":
            cluster.network.break_connection(cluster.ip_of(ip), cluster.ip_of(other))
            self.broken_at_s = self.world.now_s
        elif what == "disconnect" and ip in up:
            name = f"fleetlm@{other}"
            cluster.nodes[ip].disconnect(name)
            self.disconnected.append((cluster.nodes[ip], name))

    # The last phases.

    async def heal_and_mesh(self) -> None:
        """End every fault, start every stopped node, and wait until all nodes are connected."""
        self.note("heal")
        self.cluster.heal()
        for ip in list(self.stopped_ips):
            await self.restart_node(ip)
        for node, other in self.disconnected:
            if node in self.cluster.nodes.values():
                await node.connect(other, timeout=0.0)
        if self.hosts is not None:
            await asyncio.sleep(SETTLE_S)  # A connection that was broken at this moment still counts.
        if self.world.now_s - self.broken_at_s < SETTLE_S:
            await asyncio.sleep(self.settings.longest_silence_s)
        await self.cluster.mesh(bound_s(self.settings))
        self.note("mesh")
        await asyncio.sleep(self.rng.choice((0.0, 1.0)))
        self.world.check()

    async def settle(self) -> None:
        """Let no process start anything new, wait until everything begun has ended, and check all nodes."""
        self.cross_links()
        self.world.is_acting = False
        busy: list[str] = []
        for _ in range(int(QUIET_S)):
            await asyncio.sleep(1.0)
            busy = self.checks.busy()
            if not busy:
                break
        for what in busy:
            self.world.breach(f"{QUIET_S:g} s after the last action: {what}")
        present = [self.processes[ip] for ip in self.cluster.nodes]
        for actor in [processes.spawn_actor() for processes in present]:
            for processes in present:
                await processes.callers.check_actor(actor)
        self.note("quiet")
        await asyncio.sleep(SETTLE_S)
        self.checks.quiet()
        self.world.check()

    def cross_links(self) -> None:
        """Let pairs of workers link and unlink at the same time; both must end with the same result."""
        workers = [pid for pid in self.world.workers if self.checks.is_running(pid)]
        self.rng.shuffle(workers)
        for one, other in zip(workers[::2], workers[1::2], strict=False):
            for pid, target in ((one, other), (other, one)):
                node = self.world.record_of(pid).node
                node._local.boxes[pid.number].put(("linking", target))

    async def end(self) -> None:
        """End every process, then every node, and check that nothing is left."""
        self.world.is_ending = True
        for reason in ("shutdown", "kill"):
            for node in self.cluster.nodes.values():
                for info in node.processes():
                    node.exit(info.pid, reason)
            await asyncio.sleep(2 * self.settings.tick_s)
        self.checks.ended()
        self.world.check()
        await self.cluster.close()
        self.ledger.check_settled()
        self.world.check_early_downs()
        for what in left_in_loop(self.cluster.loop, self.futures):
            self.world.breach(f"left in the loop: {what}")
        self.world.check()


def play(seed: int, *, trace: bool = False, quiet: bool = False, is_short: bool = False) -> Report:
    """Run a seed on its own loop.

    Args:
        seed: the seed of everything random.
        trace: keep every fact; the digest then covers them.
        quiet: do not print the facts.
        is_short: make a short run.

    Raises:
        Breach: something promised did not hold; the log of the run is a note.
        SimulationError: as for `fleetlm.testing.run`.
    """
    is_printed = trace and not quiet
    logging.getLogger("fleetlm").setLevel(logging.DEBUG if is_printed else logging.CRITICAL + 1)

    async def main() -> Report:
        soak_run, report = await SoakRun.play(seed, trace=trace, is_short=is_short)
        if is_printed:
            for at_s, ip, *fact in soak_run.cluster.network.trace or ():
                print(f"{at_s:9.4f}  {ip:12} {fact}")
            print("\n".join(soak_run.log))
        return report

    try:
        return run(main(), seed=seed, limit_s=LIMIT_S)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise


def blocks(seeds: range, size: int = 20) -> list[range]:
    """Split a range of seeds into blocks of ``size``."""
    return [range(at, min(at + size, seeds.stop)) for at in range(seeds.start, seeds.stop, size)]


def play_all(seeds: range | list[int]) -> list[Report]:
    """Run all seeds. Raises: AssertionError with the command that replays each failed seed."""
    return play_each(play, seeds, "python -m tests.sim.soak {seed} --trace")


def play_all_short(seeds: range | list[int]) -> list[Report]:
    """Do as `play_all`, but make short runs."""
    return play_each(
        functools.partial(play, is_short=True), seeds, "python -m tests.sim.soak {seed} --trace --short"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Make soak runs from seeds.")
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int, nargs="?", default=1)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--short", action="store_true", help="make short runs")
    options = parser.parse_args()
    if options.trace:
        logging.basicConfig(format="%(name)s %(levelname)s %(message)s", stream=sys.stdout)
    failed: list[int] = []
    counts: Counter[str] = Counter()
    for seed in range(options.first, options.first + options.count):
        try:
            counts += play(seed, trace=options.trace, is_short=options.short).counts
        except Exception as error:
            failed.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:1500]}", flush=True)
            if options.count == 1:
                raise
    print(f"{options.count - len(failed)} seeds passed, {len(failed)} failed: {failed}")
    print("; ".join(f"{what} {count}" for what, count in sorted(counts.items())))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
