"""Clusters whose entities have a quorum, while everything fails: none lives on two nodes at an instant.

The stories are those of `entity_world`, with faults. All nodes run on one loop, so an instant is an instant.
What the quorum of a node reads is a clock of its own (`OwnClock`), a little faster or slower than the others,
and the wall clocks of the nodes differ by up to a day, also from one start of a node to the next. While a
node is frozen, the timers of its quorum stand still; after the thaw they run late, behind what has come
meanwhile.

What must hold besides:

1. After each fact that comes to any node, every shard is served by one node at most, each judged by its own
   clock, frozen ones included.
2. No entity begins to live while another one with its key lives on a node that runs.
3. Epochs grow from one life to the next.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from fleetlm import Node, Quorum
from fleetlm.entities import kinds
from fleetlm.entities.majority import Majority
from fleetlm.testing import SimCluster
from tests.sim.entity_world import SHARDS, Ledger, Session, World
from tests.sim.seeded import ONE_PORT

EXPECTED = 5
THAW_S = 0.05
"""Seconds after a thaw in which timers run that were due while a node was frozen: those of the messages that
came meanwhile are first, which is the worst order."""


class OwnClock:
    """The clock and the timers of one node's quorum; what `Majority` needs of a loop.

    Args:
        loop: whose time is the true one.
        offset_s: what the clock shows at the true time 0.
        speed: seconds of it in a true second.
        halted_until: until when the node cannot run, in true time.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        offset_s: float,
        speed: float,
        halted_until: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._offset_s = offset_s
        self._speed = speed
        self._halted_until = halted_until
        self.create_task = loop.create_task

    def time(self) -> float:
        """See `asyncio.AbstractEventLoop`."""
        return self._offset_s + self._loop.time() * self._speed

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> _Late:
        """See `asyncio.AbstractEventLoop`."""
        due = (when - self._offset_s) / self._speed
        return _Late(self._loop, due, self._halted_until, lambda: callback(*args))

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> _Late:
        """See `asyncio.AbstractEventLoop`."""
        return self.call_at(self.time() + delay, callback, *args)


class _Late:
    """A timer that waits until its node is not frozen."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        when: float,
        halted_until: Callable[[], float],
        callback: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._halted_until = halted_until
        self._callback = callback
        self._timer = loop.call_at(when, self._due)

    def _due(self) -> None:
        until = self._halted_until()
        if until > self._loop.time():
            self._timer = self._loop.call_at(until, self._due)
        else:
            self._callback()

    def cancel(self) -> None:
        """See `asyncio.TimerHandle`."""
        self._timer.cancel()


class Watched(Session):
    """Looks whether another one lives."""

    cluster: SimCluster
    living: dict[str, list[tuple[Node, Any]]] = {}  # noqa: RUF012  # of one story; see `QuorumWorld.play`

    async def load(self, state: Any) -> None:
        before = self.living.setdefault(self.key, [])
        running = self.cluster.nodes.values()
        here = self.node.name
        alive = [
            (node, pid)
            for node, pid in before
            if node in running and node.name != here and node.process_info(pid) is not None
        ]
        awake = [
            each for each in alive if not self.cluster.network.host(self.cluster.ip_of(each[0])).is_frozen
        ]
        if awake:
            self.ledger.twice.append(f"{self.key} lives on {awake[0][0].name} and begins on {here}")
        self.living[self.key] = [*alive, (self.node, self.pid)]
        self.ledger.alive.setdefault(self.key, []).append(here)
        self.ledger.lives.setdefault(self.key, []).append((self.pid, self.epoch))
        self.names = list(state or ())

    async def terminate(self, reason: Any) -> None:
        """Nothing: a killed entity has no such call."""


class QuorumWorld(World):
    """One run of a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, faults=True)
        self.lease_s = self.rng.choice([2.0, 8.0])
        latency_s = (0.0002, self.rng.choice([0.001, 0.02]))
        self.cluster = SimCluster(seed=seed, settings=ONE_PORT, latency_s=latency_s, on_fact=self.look)
        self._thawed_at: dict[str, float] = {}
        self.guards: list[tuple[str, Any, Majority]] = []

    async def play(self, steps: int = 25) -> None:
        Watched.living, Watched.cluster = {}, self.cluster
        usual = vars(kinds)["Majority"]

        def guard(hosting: Any, quorum: Quorum, shards: Any, outbound: Any) -> Majority:
            ip = self.cluster.ip_of(shards.context.name)
            clock: Any = OwnClock(
                shards.context.loop,
                self.rng.uniform(-1e6, 1e6),
                self.rng.uniform(0.96, 1.04),
                lambda: self.halted_until(ip),
            )
            made = Majority(hosting, quorum, shards, outbound, clock)
            self.guards.append((shards.context.name, hosting, made))
            return made

        vars(kinds)["Majority"] = guard
        try:
            await super().play(steps)
        finally:
            vars(kinds)["Majority"] = usual

    def halted_until(self, ip: str) -> float:
        """Return until when a node's timers cannot run, on the loop's clock."""
        now = self.cluster.loop.time()
        if self.cluster.network.host(ip).is_frozen:
            self._thawed_at[ip] = now + THAW_S
        return self._thawed_at.get(ip, now)

    async def host(self, node: Node) -> None:
        quorum = Quorum(EXPECTED, self.lease_s)
        await node.entities.host(
            Watched, "sessions", args=(self.ledger,), shards=SHARDS, idle_s=self.idle_s, handoff_s=5,
            safety=quorum,
        )  # fmt: skip

    def first_hosts(self) -> tuple[int, int]:
        return 3, 5

    def look(self, _ip: str) -> None:
        """Look who serves, after a fact has come to a node."""
        serving: dict[int, str] = {}
        for name, hosting, guard in self.guards:
            if hosting.is_closed or not guard._lease.until > guard._loop.time():
                continue
            own = hosting.table.own("sessions")
            for shard in () if own is None else own.claims:
                if hosting.serves(shard, is_inner=True):
                    if shard in serving:
                        self.ledger.twice.append(f"{serving[shard]} and {name} serve {shard}")
                    serving[shard] = name

    async def settle(self) -> None:
        await super().settle()
        while len(self.nodes()) < EXPECTED // 2 + 1 or len(self.hosts()) < EXPECTED // 2 + 1:
            (fresh,) = await self.cluster.start(clock_s=self.clock_s())
            await self.host(fresh)
        await self.cluster.mesh(timeout=300)
        await self.rest()

    async def check(self) -> None:
        ledger: Ledger = self.ledger
        assert not ledger.twice, ledger.twice[:5]
        await super().check()
        assert not ledger.twice, ledger.twice[:5]
        for key, lives in ledger.lives.items():
            for (_, epoch), (_, later) in itertools.pairwise(lives):
                assert later >= epoch, f"{key}: {lives}"
