"""How many peers a node dials in one turn of its event loop, and which of them first."""

from __future__ import annotations

from fleetlm.core.effects import Dial, Effect
from tests.support.kernel_fakes import (
    SETTINGS,
    TELLER,
    Meeting,
    T,
    addresses,
    dials,
    hello_frame,
    hello_of,
    ip,
    name,
)

PACED = SETTINGS.replace(dials_per_turn=4)


def introduce(m: Meeting, number: int, source: bytes) -> list[Effect]:
    """Let node ``number`` introduce itself from its own address."""
    m.kernel.source_met(source, ip(number))
    return m.kernel.control_frame(m.now, source, hello_frame(hello_of(number), number))


def test_a_long_answer_is_dialled_a_few_peers_a_turn_in_its_order() -> None:
    m = Meeting(PACED)
    assert dials(m.kernel.looked_up(T, addresses(*range(2, 12)))) == [ip(n) for n in range(2, 6)]
    assert m.kernel.deadline() == T  # The others are due at once: the next turn has them.
    assert dials(m.kernel.tick(T)) == [ip(n) for n in range(6, 10)]
    assert dials(m.kernel.tick(T)) == [ip(10), ip(11)]
    deadline = m.kernel.deadline()
    assert deadline is not None
    assert deadline > T
    assert dials(m.kernel.tick(T)) == []


def test_all_that_a_turn_brings_shares_its_dials() -> None:
    m = Meeting(PACED)
    assert len(dials(m.kernel.looked_up(T, addresses(2, 3, 4)))) == 3
    assert dials(m.kernel.heard_of(T, [name(5), name(6)], TELLER)) == [ip(5)]
    assert dials(m.kernel.tick(T)) == [ip(6)]


def test_a_node_that_the_program_asks_for_is_dialled_before_all_others() -> None:
    m = Meeting(PACED)
    m.kernel.looked_up(T, addresses(*range(2, 12)))
    assert dials(m.kernel.asked_for(T, name(99))) == [ip(99)]
    assert dials(m.kernel.asked_for(T, name(11))) == [ip(11)]
    assert dials(m.kernel.tick(T)) == [ip(n) for n in range(6, 10)]


def test_a_node_that_introduces_itself_is_dialled_before_those_whose_turn_has_not_come() -> None:
    m = Meeting(PACED)
    m.kernel.looked_up(T, addresses(*range(2, 12)))
    assert dials(introduce(m, 11, b"eleven")) == [ip(11)]
    assert dials(introduce(m, 99, b"new")) == [ip(99)]
    left = dials(m.kernel.tick(T)) + dials(m.kernel.tick(T))
    assert left == [ip(n) for n in range(6, 11)]  # Nobody twice.


def test_a_node_that_introduces_itself_again_and_again_is_not_dialled_each_time() -> None:
    m = Meeting(PACED)
    times = 0
    for turn in range(20):
        for effect in introduce(m, 11, bytes([turn])):
            if isinstance(effect, Dial):
                times += 1
                m.kernel.channel_lost(T, effect.channel, "connection refused")
    assert times == 4  # HELLO_BURST


def test_dials_that_take_too_long_are_given_up_while_others_wait_for_their_turn() -> None:
    m = Meeting(PACED)
    m.kernel.looked_up(T, addresses(*range(2, 12)))
    late = T + PACED.connect_timeout_s
    effects = m.kernel.tick(late)
    assert dials(effects) == [ip(n) for n in range(6, 10)]
    m.kernel.tick(late)
    errors = {m.kernel.topology.peers[name(n)].connection.last_error for n in range(2, 6)}
    assert errors == {f"connect timeout: {ip(n)}:4370 did not answer within 3 s" for n in range(2, 6)}


def test_a_node_that_leaves_dials_nobody_back() -> None:
    m = Meeting(PACED)
    m.kernel.looked_up(T, addresses(*range(2, 12)))
    m.kernel.left(T, "shutdown")
    assert dials(introduce(m, 11, b"eleven")) == []
    assert dials(m.kernel.tick(T)) == []
