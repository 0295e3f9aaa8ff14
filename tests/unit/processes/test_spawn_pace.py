"""The pace of spawns for other nodes: a burst at once, then a rate, in order; who has left gets nothing."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

from fleetlm.processes.spawn_pace import BURST_S, PAUSE_S, WAIT_S, SpawnPace
from fleetlm.testing.loop import SimLoop
from tests.support.session_fakes import virtual

RATE = 1_000.0
BURST = int(RATE * BURST_S)


class Rig:
    def __init__(self) -> None:
        self.loop = SimLoop.current()
        self.pace = SpawnPace(self.loop, RATE)
        self.done: list[tuple[str, int, int | None]] = []
        self.refused: list[int] = []

    def session(self, name: str = "a") -> Any:
        return SimpleNamespace(name=name, closed="", urgent_ref=None)

    def ask(self, session: Any, count: int) -> None:
        """Ask as `Inbound` does, which names the request that it passes on."""
        for number in range(count):
            session.urgent_ref = number
            if not self.pace.take(session, partial(self.spawn, session, number)):
                self.refused.append(number)
            session.urgent_ref = None

    def spawn(self, session: Any, number: int) -> None:
        self.done.append((session.name, number, session.urgent_ref))

    def count(self, name: str = "a") -> int:
        return sum(who == name for who, _, _ in self.done)


@virtual
async def test_a_burst_is_spawned_at_once_and_the_rest_at_the_rate_in_order() -> None:
    rig, count = Rig(), BURST + 200
    session = rig.session()
    rig.ask(session, count)
    assert rig.count() == BURST
    assert rig.pace.waiting("a") == 200
    await asyncio.sleep(0.1 + PAUSE_S / 2)
    assert abs(rig.count() - BURST - 100) <= 2
    rig.ask(session, 1)  # There is a token, for the next one that waits.
    await asyncio.sleep(1)
    assert [number for _, number, _ in rig.done] == [*range(count), 0], "nothing passes what waits"
    assert all(number == ref for _, number, ref in rig.done), "an answer is urgent, also if it comes later"
    assert session.urgent_ref is None
    assert rig.pace.waiting("a") == rig.pace.waiting("unknown") == 0


@virtual
async def test_a_peer_that_asks_for_much_holds_up_itself() -> None:
    rig = Rig()
    rig.ask(rig.session("greedy"), 2 * BURST)
    rig.ask(rig.session("honest"), 10)
    assert rig.count("honest") == 10
    rig.pace.close()


@virtual
async def test_what_would_wait_for_too_long_is_refused() -> None:
    rig = Rig()
    most = BURST + int(RATE * WAIT_S)
    rig.ask(rig.session(), most + 3)
    assert rig.refused == [most, most + 1, most + 2]
    await asyncio.sleep(WAIT_S + 2 * PAUSE_S)
    assert rig.count() == most
    rig.ask(rig.session(), 1)
    assert len(rig.refused) == 3


@virtual
async def test_what_waits_goes_with_its_session_and_a_new_one_gets_no_new_burst() -> None:
    rig = Rig()
    former, session = rig.session(), rig.session()
    rig.ask(former, BURST + 30)
    former.closed = "connection closed"
    rig.ask(session, 2)
    assert rig.count() == BURST
    await asyncio.sleep(0.1)
    assert rig.done[BURST:] == [("a", 0, 0), ("a", 1, 1)], "what the former one has asked for is not spawned"
    assert rig.pace.waiting("a") == 0


@virtual
async def test_what_a_rate_has_saved_up_is_forgotten_with_who_has_not_spawned_for_long() -> None:
    rig = Rig()
    rig.ask(rig.session("a"), 1)
    await asyncio.sleep(BURST_S / 2)
    rig.ask(rig.session("b"), 1)
    assert set(rig.pace._peers) == {"a", "b"}
    await asyncio.sleep(BURST_S / 2)
    rig.ask(rig.session("c"), 1)
    assert set(rig.pace._peers) == {"b", "c"}


@virtual
async def test_a_node_that_stops_spawns_nothing_any_more() -> None:
    rig = Rig()
    rig.ask(rig.session(), BURST + 5)
    rig.pace.close()
    await asyncio.sleep(10 * PAUSE_S)
    assert rig.count() == BURST
