"""A society from a seed: processes that tie themselves to each other, serve, own names, join groups.

Nodes crash, part and come back for a while; then peace, in which everything must come out even; then
all processes end, and nothing may be left.

python -m tests.sim.soak 4711            # runs one seed, and says what happened
python -m tests.sim.soak 4711 --trace    # with every fact that a node was told, and the log
python -m tests.sim.soak 0 5000          # a range of seeds
"""

from __future__ import annotations

import argparse
import asyncio
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
from tests.sim.soak_folk import Folk
from tests.sim.soak_ledger import Ledger
from tests.sim.soak_world import World

LIMIT_S = 600.0
QUIET_S = 20.0
"""Virtual seconds in which everything that is under way must come to its end."""
SETTLE_S = 0.1
"""For the last signals to arrive."""


@dataclass(frozen=True)
class Report:
    """What a story was like, for people and for comparing runs."""

    seed: int
    nodes: int
    virtual_s: float
    counts: Counter[str]
    digest: int


def settings_of(rng: random.Random) -> Settings:
    """Small windows, so that they fill; short times, so that little is waited for."""
    return Settings(dns_query="society.test").replace(
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


class Story:
    """One run. Everything random comes from the seed."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(f"{seed} society")
        self.settings = settings_of(self.rng)
        self.world = World()
        self.ledger = Ledger(self.world)
        self.folk: dict[str, Folk] = {}
        self.checks = Checks(self.world, self.ledger, self.folk, self.settings)
        self.cluster = SimCluster(seed, settings=self.settings, trace=trace, on_fact=self.checks.on_fact)
        self.world.cluster = self.cluster
        self.futures = Futures(self.cluster.loop)
        self.dead: list[str] = []
        self.parted: list[tuple[Node, str]] = []
        self.log: list[str] = []

    @classmethod
    async def play(cls, seed: int, *, trace: bool = False) -> tuple[Story, Report]:
        """The whole course of a seed. Raises: Breach, SimulationError."""
        story = cls(seed, trace=trace)
        try:
            return story, await story._play()
        except BaseException as error:
            error.add_note("\n".join(story.log))
            raise

    def note(self, what: str) -> None:
        self.log.append(f"{self.world.now_s:9.4f}  {what}")

    async def _play(self) -> Report:
        rng, world = self.rng, self.world
        for node in await self.cluster.start(rng.choice((2, 3, 3, 4))):
            self.met(node)
        if rng.random() < 0.8:
            await self.cluster.mesh(10.0)
        for _ in range(rng.randint(3, 7)):
            await asyncio.sleep(rng.expovariate(1 / rng.choice((0.2, 1.0, 2.5))))
            world.check()
            await self.fault()
        await self.peace()
        await self.quiet()
        await self.end()
        said = zlib.crc32(repr((self.cluster.network.trace, self.cluster.network.counters)).encode())
        said = zlib.crc32(repr((world.counts, self.cluster.loop.turns, self.log)).encode(), said)
        return Report(self.seed, len(world.of), world.now_s, world.counts, said)

    # Nodes and faults.

    def met(self, node: Node) -> None:
        self.note(f"start {node.name} {node.incarnation:x}")
        ip = self.cluster.ip_of(node)
        home = self.world.settle(node)
        folk = self.folk[ip] = Folk(self.world, self.ledger, home, random.Random(self.rng.random()))
        folk.settle()

    async def revive(self, ip: str) -> None:
        if ip in self.dead:
            self.dead.remove(ip)
        self.met(await self.cluster.restart(ip))

    async def fault(self) -> None:
        rng, cluster = self.rng, self.cluster
        ips = list(self.folk)
        up = list(cluster.nodes)
        ip, other = rng.sample(ips, 2)
        what = rng.choices(
            ("crash", "leave", "restart", "partition", "one way", "heal", "stall", "slow", "break",
             "disconnect", "nothing"),
            (4, 1, 5, 3, 2, 4, 2, 2, 4, 2, 1),
        )[0]  # fmt: skip
        self.note(f"{what} {ip} {other}")
        if what == "crash" and ip in up:
            self.dead.append(ip)
            await cluster.crash(ip, silent=rng.random() < 0.4, stale=rng.random() < 0.5)
        elif what == "leave" and ip in up:
            self.dead.append(ip)
            await cluster.stop(ip)
        elif what == "restart":
            await self.revive(rng.choice(self.dead) if self.dead else ip)
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
            cluster.network.break_connection(ip, other)
        elif what == "disconnect" and ip in up:
            name = f"fleetlm@{other}"
            cluster.nodes[ip].disconnect(name)
            self.parted.append((cluster.nodes[ip], name))

    # The end.

    async def peace(self) -> None:
        """Heal everything, and wait until everyone sees everyone."""
        self.note("peace")
        self.cluster.heal()
        for ip in list(self.dead):
            await self.revive(ip)
        for node, other in self.parted:
            if node in self.cluster.nodes.values():
                await node.connect(other, timeout=0.0)
        await self.cluster.mesh(bound_s(self.settings))
        self.note("mesh")
        await asyncio.sleep(self.rng.choice((0.0, 1.0)))
        self.world.check()

    async def quiet(self) -> None:
        """Nobody acts any more: what was begun comes to its end, and everything is even."""
        self.quarrels()
        self.world.acting = False
        busy: list[str] = []
        for _ in range(int(QUIET_S)):
            await asyncio.sleep(1.0)
            busy = self.checks.busy()
            if not busy:
                break
        for what in busy:
            self.world.breach(f"{QUIET_S:g} s after the last act: {what}")
        present = [self.folk[ip] for ip in self.cluster.nodes]
        for judge in [folk.judge() for folk in present]:
            for folk in present:
                await folk.askers.prove(judge)
        self.note("quiet")
        await asyncio.sleep(SETTLE_S)
        self.checks.quiet()
        self.world.check()

    def quarrels(self) -> None:
        """Let some link and unlink at the same time: what is left must be the same for both."""
        kin = [pid for pid in self.world.kin if self.checks.lives(pid)]
        self.rng.shuffle(kin)
        for one, other in zip(kin[::2], kin[1::2], strict=False):
            for pid, whom in ((one, other), (other, one)):
                node = self.world.home_of(pid).node
                node._local.boxes[pid.number].put(("quarrel", whom))

    async def end(self) -> None:
        """End every process, then every node: nothing is left."""
        self.world.ending = True
        for reason in ("shutdown", "kill"):
            for node in self.cluster.nodes.values():
                for info in node.processes():
                    node.exit(info.pid, reason)
            await asyncio.sleep(2 * self.settings.tick_s)
        self.checks.ended()
        self.world.check()
        await self.cluster.close()
        self.ledger.settled()
        self.world.forgotten()
        for what in left_in_loop(self.cluster.loop, self.futures):
            self.world.breach(f"left in the loop: {what}")
        self.world.check()


def play(seed: int, *, trace: bool = False, quiet: bool = False) -> Report:
    """Run a seed on a loop of its own. Raises: what is wrong, with the story as a note.

    Args:
        seed: of everything.
        trace: keep every fact; the digest then covers them.
        quiet: do not print them.
    """
    told = trace and not quiet
    logging.getLogger("fleetlm").setLevel(logging.DEBUG if told else logging.CRITICAL + 1)

    async def main() -> Report:
        story, report = await Story.play(seed, trace=trace)
        if told:
            for at_s, ip, *fact in story.cluster.network.trace or ():
                print(f"{at_s:9.4f}  {ip:12} {fact}")
            print("\n".join(story.log))
        return report

    try:
        return run(main(), seed=seed, limit_s=LIMIT_S)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise


def blocks(seeds: range, size: int = 20) -> list[range]:
    """So many seeds at a time."""
    return [range(at, min(at + size, seeds.stop)) for at in range(seeds.start, seeds.stop, size)]


def play_all(seeds: range | list[int]) -> list[Report]:
    """Run them all, and say how to replay each that failed. Raises: AssertionError."""
    return play_each(play, seeds, "tests.sim.soak")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run societies from seeds.")
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int, nargs="?", default=1)
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    if options.trace:
        logging.basicConfig(format="%(name)s %(levelname)s %(message)s", stream=sys.stdout)
    failed: list[int] = []
    counts: Counter[str] = Counter()
    for seed in range(options.first, options.first + options.count):
        try:
            counts += play(seed, trace=options.trace).counts
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
