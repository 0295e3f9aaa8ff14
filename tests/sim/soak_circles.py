"""A society of actors that feed themselves, cast and call in circles, and end in every way, from a seed.

A run has two or three nodes with a few actors each and small windows. Each actor draws what to do with each
request: pass it on by a cast, a call or a stream, to any actor, itself included, once or twice; or end. Some
actors are also fed from outside, and some nodes are lost on the way. What must hold, whatever the seed:

* virtual time goes on, so nothing keeps the loop for itself;
* each wait of a request ends by its deadline, with a result or an error that fleetlm documents;
* nothing is left when the requests have ended: no wait, no unit that is kept, no task.

python -m tests.sim.soak_circles 0 2000   # run a range of seeds
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from fleetlm import Actor, FleetError, Node, NodeStopped, ProcessExit, Settings, handler
from fleetlm.node import parts_of
from fleetlm.testing import SimCluster
from fleetlm.testing.loop import SimLoop, run

SEND_S = 3.0
CALL_S = 2.0
LATE_S = 0.5
"""How much later than its deadline a wait may end: the turns of a busy node take virtual time."""
PHASE_S = 6.0
QUIET_S = 30.0
LIMIT_S = 600.0
ENDS = ("stop", "exit", "crash", "kill", "cancel")


class Society:
    """The nodes of a run and what is counted."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"{seed} circles")
        self.cluster = SimCluster(
            seed,
            settings=Settings(dns_query="circles.test").replace(
                mailbox_limit=self.rng.choice((2, 4, 16)),
                concurrent_handlers=self.rng.choice((1, 2, 8)),
                send_timeout_s=SEND_S,
                stalled_after_s=1.0,
                call_timeout_s=CALL_S,
                drain_s=0.2,
                terminate_s=0.5,
            ),
        )
        self.names: list[tuple[str, str]] = []
        self.counts: Counter[str] = Counter()
        self.is_quiet = False

    async def timed(self, what: str, limit_s: float, waiting: Coroutine[Any, Any, Any]) -> None:
        """Await a request, and check that it ends by its deadline, and how."""
        began = SimLoop.current().time()
        outcome = "done"
        try:
            await waiting
        except FleetError as error:
            outcome = type(error).__name__
        finally:
            took = SimLoop.current().time() - began
            assert took <= limit_s + LATE_S, f"{what} took {took} s of {limit_s}"
        self.counts[f"{what}: {outcome}"] += 1

    async def play(self) -> Counter[str]:
        """Run all phases."""
        nodes = await self.cluster.start(self.rng.choice((2, 2, 3)))
        await self.cluster.mesh(10.0)
        for node in nodes:
            for number in range(self.rng.randint(1, 3)):
                self.spawn(node, f"m{number}")
        feeders = [asyncio.ensure_future(self.feed(node)) for node in nodes]
        began = SimLoop.current().time()
        await asyncio.sleep(PHASE_S)
        if self.rng.random() < 0.3:
            await self.cluster.stop(nodes[-1])
            nodes = nodes[:-1]
        self.is_quiet = True
        await asyncio.gather(*feeders)
        await asyncio.sleep(QUIET_S)
        assert SimLoop.current().time() - began >= PHASE_S + QUIET_S
        for node in nodes:
            check(node)
        return self.counts

    def spawn(self, node: Node, name: str) -> None:
        node.spawn(Member, self, name=name)
        if (name, node.name) not in self.names:
            self.names.append((name, node.name))

    async def feed(self, node: Node) -> None:
        """Cast from outside to any actor, as fast as it goes."""
        while not self.is_quiet:
            name, at = self.rng.choice(self.names)
            ref = node.ref(Member, name, at=at)
            await self.timed("feed", SEND_S, ref.cast(Member.work, self.rng.randint(0, 4)))
            if self.rng.random() < 0.1:
                await asyncio.sleep(self.rng.uniform(0, 0.2))


class Member(Actor):
    """An actor of the society."""

    def __init__(self, society: Society) -> None:
        self.society = society
        self.rng = society.rng

    @handler
    async def work(self, left: int) -> int:
        return await self.go_on(left)

    @handler(concurrent=True)
    async def beside(self, left: int) -> int:
        return await self.go_on(left)

    async def go_on(self, left: int) -> int:
        society, rng = self.society, self.rng
        if left <= 0 or society.is_quiet:
            return 0
        for _ in range(rng.choice((1, 1, 2))):
            how = rng.random()
            name, at = rng.choice(society.names)
            if rng.random() < 0.3:
                name, at = self.process.name or name, self.node.name
            ref = self.node.ref(Member, name, at=at)
            method = Member.work if rng.random() < 0.7 else Member.beside
            if how < 0.6:
                await society.timed("cast", SEND_S, ref.cast(method, left - 1))
            elif how < 0.9:
                await society.timed("call", CALL_S, ref.call(method, left - 1))
            elif how < 0.98:
                self.node.send_nowait(self.pid, "tick")
            else:
                self.end(rng.choice(ENDS))
        return left

    async def handle_info(self, message: Any) -> None:
        if not self.society.is_quiet and self.rng.random() < 0.9:
            await self.node.send(self.pid, message)

    async def terminate(self, reason: Any) -> None:
        if not self.society.is_quiet and self.process.name:
            name = self.process.name
            asyncio.get_running_loop().call_later(0.1, self.again, self.node, name)

    def again(self, node: Node, name: str) -> None:
        if not self.society.is_quiet and name not in node.registered():
            with contextlib.suppress(NodeStopped):
                self.society.spawn(node, name)

    def end(self, how: str) -> None:
        self.society.counts[f"end: {how}"] += 1
        task = asyncio.current_task()
        assert task is not None
        match how:
            case "stop":
                self.stop("tired")
            case "exit":
                raise ProcessExit("tired")
            case "crash":
                raise ValueError("tired")
            case "kill":
                self.node.exit(self.pid, "kill")
            case "cancel":
                task.cancel()


def check(node: Node) -> None:
    """Check that nothing waits and nothing is kept on a node where nothing happens any more."""
    outbound = parts_of(node).outbound
    assert not outbound.waits._waits, outbound.waits.stalled(0)
    assert not outbound.local_calls
    assert not outbound.waits.turns.waiting
    for info in node.processes():
        assert (info.mailbox, info.open_calls, info.waits_for) == (0, 0, ""), info
    for session in parts_of(node).driver.sessions.values():
        windows = session.windows
        assert not windows._kept, session.name
        assert not windows._pool, session.name
        assert not windows._favoured, session.name
        assert not windows._waiters, session.name
        assert not windows.held, (session.name, windows.held)


def play(seed: int) -> Counter[str]:
    """Run one seed. Raises: AssertionError, SimulationError."""

    async def main() -> Counter[str]:
        society = Society(seed)
        async with society.cluster:
            return await society.play()

    logging.getLogger("fleetlm").setLevel(logging.CRITICAL)  # Actors crash on purpose.
    try:
        return run(main(), seed=seed, limit_s=LIMIT_S)
    finally:
        logging.getLogger("fleetlm").setLevel(logging.NOTSET)


if __name__ == "__main__":
    total: Counter[str] = Counter()
    first = int(sys.argv[1])
    for number in range(first, int(sys.argv[2]) if len(sys.argv) > 2 else first + 1):
        try:
            total += play(number)
        except BaseException:
            print("seed", number)
            raise
    print(dict(sorted(total.items())))
