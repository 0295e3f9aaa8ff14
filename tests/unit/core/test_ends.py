"""Why a connection has ended, as one of few kinds that metrics can count."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fleetlm.core.effects import Down, Effect, End
from tests.support.kernel_fakes import (
    SETTINGS,
    Meeting,
    T,
    addresses,
    goodbye_frame,
    hello_of,
    name,
    ready_frame,
)
from tests.unit.core.test_kernel_handshake import claimed, confirmed
from tests.unit.core.test_kernel_pruning import PRUNING

LATE = T + 60
"""Long after the last frame of the peer."""


def left(m: Meeting, reason: str) -> list[Effect]:
    half = m.up(2)
    return m.kernel.control_frame(T + 1, half, goodbye_frame(77, 2, reason))


def restarted(incarnation: int) -> list[Effect]:
    m = claimed(incarnation)
    m.now = T + SETTINGS.settled_s
    return confirmed(m, incarnation)


def forgotten(m: Meeting) -> list[Effect]:
    m.up(2)
    m.kernel.looked_up(T, addresses(2, 3))
    return [effect for n in range(3) for effect in m.kernel.looked_up(T + 1 + n, addresses(3))]


def up_then(m: Meeting, end: Callable[[bytes], list[Effect]]) -> list[Effect]:
    return end(m.up(2))


CAUSES: dict[End, list[Callable[[Meeting], list[Effect]]]] = {
    End.LOST: [
        lambda m: up_then(m, lambda half: m.kernel.source_lost(T + 1, half, "connection closed")),
        lambda m: up_then(m, lambda _: m.kernel.channel_lost(T + 1, m.channel(2), "reset")),
    ],
    End.SILENT: [
        lambda m: up_then(m, lambda half: m.kernel.source_lost(LATE, half, "connection closed")),
        lambda m: up_then(m, lambda _: m.kernel.channel_lost(LATE, m.channel(2), "reset")),
    ],
    End.OVERLOADED: [
        lambda m: up_then(
            m, lambda _: m.kernel.channel_lost(LATE, m.channel(2), "too much", kind=End.OVERLOADED)
        ),
    ],
    End.LEFT: [lambda m: left(m, "shutdown")],
    End.ENDED_BY_PEER: [lambda m: left(m, "protocol error: nonsense")],
    End.PROTOCOL_ERROR: [
        lambda m: up_then(m, lambda half: m.kernel.broken(T + 1, half, "nonsense")),
        lambda m: up_then(m, lambda half: m.kernel.control_frame(T + 1, half, b"\xff" * 30)),
    ],
    End.STOPPING: [lambda m: up_then(m, lambda _: m.kernel.left(T + 1, "shutdown"))],
    End.REQUESTED: [lambda m: up_then(m, lambda _: m.kernel.disconnected(T + 1, name(2), "why"))],
    End.RESTARTED: [lambda _: restarted(201)],
    End.REDIALLED: [lambda _: restarted(200)],
    End.FORGOTTEN: [forgotten],
}


def test_each_kind_has_a_cause() -> None:
    assert set(CAUSES) == set(End)


@pytest.mark.parametrize(
    ("kind", "cause"), [(kind, cause) for kind, causes in CAUSES.items() for cause in causes]
)
def test_an_end_has_the_kind_of_its_cause(kind: End, cause: Callable[[Meeting], list[Effect]]) -> None:
    effects = cause(Meeting(settings=PRUNING))
    assert [effect.kind for effect in effects if isinstance(effect, Down)] == [kind]


def test_a_node_that_was_disconnected_while_it_dialled_is_disconnected_on_request() -> None:
    """Its READY comes after the program has asked for the end: it was up for a moment."""
    m = Meeting()
    m.kernel.asked_for(T, name(2))
    m.kernel.opened(T, m.channel(2))
    half, _ = m.hello(2, 77)
    named = m.epoch(2)
    m.kernel.topology.peers[name(2)].is_blocked = True
    m.kernel.topology.peers[name(2)].shunned = 0
    effects = m.kernel.control_frame(T, half, ready_frame(77, 1, named, hello_of(2)))
    assert {effect.kind for effect in effects if isinstance(effect, Down)} <= {End.REQUESTED}
