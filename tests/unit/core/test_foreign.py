"""Addresses at which another program listens on a node's port."""

from __future__ import annotations

from fleetlm.core.connection import Phase
from fleetlm.core.effects import Dial
from fleetlm.wire import frames
from tests.support.kernel_fakes import SETTINGS, TELLER, Meeting, T, ip, name, said

WEB = "10.0.0.2:4370: it accepted the connection and sent nothing within 0.5 s"


def test_an_address_where_another_program_listens_is_dialled_after_long_pauses_and_logged_once() -> None:
    m = Meeting()
    m.kernel.heard_of(T, [name(2)], TELLER)
    connection = m.kernel.topology.peers[name(2)].connection
    waits, lines = [], []
    for _ in range(6):
        lines += said(m.kernel.channel_lost(m.now, m.channel(2), WEB, is_foreign=True))
        waits.append(connection.next_dial_at - m.now)
        m.now = connection.next_dial_at
        assert any(isinstance(effect, Dial) for effect in m.kernel.tick(m.now))
    assert waits == [30.0, 60.0, 120.0, 240.0, 300.0, 300.0]
    assert lines == [("info", f"{name(2)}: {WEB}")]


def test_a_node_that_gets_such_an_address_later_is_dialled_back_at_once() -> None:
    m = Meeting()
    m.kernel.heard_of(T, [name(2)], TELLER)
    for _ in range(3):
        m.kernel.channel_lost(m.now, m.channel(2), WEB, is_foreign=True)
        m.now += 300
        m.kernel.tick(m.now)
    m.kernel.channel_lost(m.now, m.channel(2), WEB, is_foreign=True)
    _, effects = m.hello(2, 88)
    assert Dial(m.channel(2), ip(2), 4370) in effects
    connection = m.kernel.topology.peers[name(2)].connection
    assert (connection.foreign, connection.phase) == (0, Phase.DIALLING)


def test_a_dial_that_is_only_refused_keeps_its_short_pause() -> None:
    m = Meeting()
    m.kernel.asked_for(T, name(2))
    m.kernel.channel_lost(T, m.channel(2), "connection refused")
    connection = m.kernel.topology.peers[name(2)].connection
    assert connection.next_dial_at == T + SETTINGS.backoff_min_s


def test_an_answer_that_no_node_gives_is_that_of_another_program() -> None:
    m = Meeting()
    m.kernel.heard_of(T, [name(2)], TELLER)
    m.kernel.opened(T, m.channel(2))
    m.kernel.answered(T, m.channel(2), frames.header(99, 0, 0) + b"?")
    assert m.kernel.topology.peers[name(2)].connection.foreign == 1
