"""Scenarios, each from one seed (see chaos.py); here those in which everything may happen.

A seed that fails is replayed by ``python -m tests.sim.chaos SEED --trace``, and kept in seeds.txt.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleetlm.core.connection import Connection
from fleetlm.core.halves import Incoming
from fleetlm.core.kernel import Kernel
from fleetlm.ids import Pid
from fleetlm.messaging.inbound import Inbound
from fleetlm.messaging.outbound import Outbound
from fleetlm.messaging.session import Session
from fleetlm.runtime.events import EventHub
from fleetlm.testing.loop import SimulationError
from tests.sim.chaos import NEIGHBOURS, Kind, Scenario, blocks, kind_of, play, play_all
from tests.sim.invariants import Breach
from tests.sim.seeded import most_are_long, named

FAILED_ONCE = [
    int(line.split()[0])
    for line in (Path(__file__).parent / "seeds.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_seeds_that_failed_once(seed: int) -> None:
    play_all([seed])


@pytest.mark.parametrize("seeds", most_are_long(blocks(range(180), Kind.CHAOS, 5), 4), ids=named)
def test_chaos(seeds: list[int]) -> None:
    play_all(seeds)


@pytest.mark.parametrize("seeds", most_are_long(blocks(range(180), Kind.SLOTS, 3), 2), ids=named)
def test_chaos_where_nodes_share_addresses(seeds: list[int]) -> None:
    play_all(seeds)


@pytest.mark.parametrize(
    "seeds",
    most_are_long(blocks(range(NEIGHBOURS, NEIGHBOURS + 10), Kind.NEIGHBOURS, 3), 1),
    ids=named,
)
def test_chaos_where_nodes_share_a_machine(seeds: list[int]) -> None:
    play_all(seeds)


@pytest.mark.long
@pytest.mark.parametrize("first", range(180, 840, 44))
def test_many_more(first: int) -> None:
    play_all(list(range(first, first + 44)))


@pytest.mark.long
def test_many_more_where_nodes_share_a_machine() -> None:
    play_all(list(range(NEIGHBOURS + 10, NEIGHBOURS + 200)))


# Whoever watches is watched: with a fault in the product, the scenarios must fail.


def _ignores_gaps(incoming: Incoming, _epoch: int, seq: int) -> None:
    incoming.seq = seq + 1


def _believes_dns(original: Callable[..., Any]) -> Callable[..., Any]:
    def looked_up(kernel: Kernel, now: float, answer: Any) -> Any:
        effects = original(kernel, now, answer)
        for peer in kernel.topology.up():
            if peer.connection.ip not in answer.addresses:
                effects += kernel._apply(now, peer, peer.connection.down(now, "not in DNS"))
        return effects

    return looked_up


def _runs_twice(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(inbound: Inbound, session: Session, message: list[Any]) -> None:
        original(inbound, session, message)
        box = inbound._boxes.get(message[1])
        if box is not None and message[1] == "echo":
            box.put(box.queue[-1])

    return call


def _tells_no_nodedown(hub: EventHub, event: Any) -> None:
    hub._present.add(event)


def _never_calls_back(_connection: Connection) -> float:
    return 1e6


def _leaves_callers_waiting(original: Callable[..., Any]) -> Callable[..., Any]:
    def close(session: Session, reason: str) -> None:
        session.calls = {}
        original(session, reason)

    return close


def _forgets_the_last(original: Callable[..., Any]) -> Callable[..., Any]:
    def deliver(inbound: Inbound, session: Session, messages: list[Any]) -> None:
        original(inbound, session, messages[:-1] if len(messages) > 3 else messages)

    return deliver


def _delivers_reversed(original: Callable[..., Any]) -> Callable[..., Any]:
    def deliver(inbound: Inbound, session: Session, messages: list[Any]) -> None:
        original(inbound, session, messages[::-1])

    return deliver


def _takes_any_incarnation(original: Callable[..., Any]) -> Callable[..., Any]:
    def route(outbound: Outbound, to: Any) -> Any:
        session = outbound._sessions.get(to.node) if isinstance(to, Pid) else None
        return original(outbound, to) if session is None else (session, to.number)

    return route


MUTANTS: list[tuple[type, str, Callable[..., Any], bool]] = [
    (Incoming, "accept", _ignores_gaps, False),
    (Kernel, "looked_up", _believes_dns, True),
    (EventHub, "down", _tells_no_nodedown, False),
    (Connection, "_backoff_s", _never_calls_back, False),
    (Session, "close", _leaves_callers_waiting, True),
    (Outbound, "route", _takes_any_incarnation, True),
    (Inbound, "_deliver", _forgets_the_last, True),
    (Inbound, "_deliver", _delivers_reversed, True),
]


@pytest.mark.parametrize(
    ("owner", "method", "mutant", "wraps"), MUTANTS, ids=[each[2].__name__ for each in MUTANTS]
)
def test_a_fault_in_the_product_is_noticed(
    owner: type, method: str, mutant: Callable[..., Any], wraps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, method, mutant(getattr(owner, method)) if wraps else mutant)
    if mutant is _ignores_gaps:  # Only a lost frame shows it, and few seeds lose one.
        monkeypatch.setattr(Scenario, "faults", _loses_frames(Scenario.faults))
    likely = 11 if mutant is _ignores_gaps else 0  # Its first; all are tried where it notices nothing.
    for seed in (likely, *range(40)):
        noticed = _breach_of(seed)
        if noticed is not None:
            assert f"seed {seed}" in "".join(noticed.__notes__)
            return
    pytest.fail("40 seeds, and nobody noticed")


def _loses_frames(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda scenario: [*original(scenario), (15, scenario.drop)]


def _breach_of(seed: int) -> Exception | None:
    try:
        play(seed)
    except (Breach, SimulationError) as error:
        return error
    return None


def test_every_kind_has_its_seeds() -> None:
    kinds = [kind_of(seed) for seed in range(500)]
    counts = {kind: kinds.count(kind) for kind in Kind}
    assert counts == {
        Kind.CHAOS: 300,
        Kind.DNS: 100,
        Kind.HOSTILE: 50,
        Kind.SLOTS: 50,
        Kind.NEIGHBOURS: 0,  # They have seeds of their own.
    }
    assert kind_of(NEIGHBOURS) is Kind.NEIGHBOURS
