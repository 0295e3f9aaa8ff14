"""The steps of a drain, by facts."""

from __future__ import annotations

import pytest

from fleetlm.core.draining import MAX_HEARD, OwnDrain, Step, checked_source, checked_step

A, B, C = "fleetlm@10.0.0.1", "fleetlm@10.0.0.2", "fleetlm@10.0.0.3"


def announced(*peers: str) -> OwnDrain:
    own = OwnDrain()
    own.announce(30.0, "api", "deploy", peers)
    return own


def test_a_node_that_does_not_drain_refuses_nothing() -> None:
    own = OwnDrain()
    own.peer_up(A)
    assert own.step is Step.NONE
    assert own.unheard() == []
    assert not own.refuses(A)


def test_nothing_is_refused_while_it_is_announced() -> None:
    own = announced(A, B)
    assert (own.step, own.until, own.source, own.reason) == (Step.ANNOUNCED, 30.0, "api", "deploy")
    own.heard(A, own.number, 1)
    assert own.unheard() == [B]
    assert not own.refuses(A)


def test_a_peer_is_refused_only_once_it_has_acknowledged() -> None:
    own = announced(A, B)
    number = own.number
    own.heard(A, number, 1)
    own.refuse()
    assert own.refuses(A)
    assert not own.refuses(B)
    own.heard(B, number, 1)
    assert own.refuses(B)
    assert own.unheard() == []


def test_a_peer_with_requests_in_three_queues_has_acknowledged_with_the_third_message() -> None:
    own = announced(A)
    for _ in range(2):
        own.heard(A, own.number, 3)
        assert own.unheard() == [A]
    own.heard(A, own.number, 3)
    assert own.unheard() == []
    own.heard(A, own.number, 3)  # Once more than it said: nothing.


def test_the_acknowledgement_of_a_drain_that_was_undone_does_not_count() -> None:
    own = announced(A)
    first = own.number
    own.undo()
    assert own.step is Step.NONE
    own.announce(40.0, "signal", "", [A])
    own.heard(A, first, 1)
    assert own.unheard() == [A]
    own.heard(A, own.number, 1)
    assert own.unheard() == []


def test_another_time_needs_no_further_acknowledgement() -> None:
    own = announced(A, B)
    first = own.number
    own.heard(A, first, 1)
    own.announce(99.0, "signal", "stop", [A, B])
    assert (own.until, own.source, own.reason) == (99.0, "signal", "stop")
    assert own.number > first
    assert own.unheard() == [B]
    own.heard(B, first, 1)
    own.refuse()
    own.announce(50.0, "api", "", [A, B])
    assert own.step is Step.REFUSING
    assert own.refuses(A)
    assert own.refuses(B)


def test_a_peer_that_connects_is_served_until_it_has_acknowledged_too() -> None:
    own = announced(A)
    own.heard(A, own.number, 1)
    own.refuse()
    own.peer_up(C)
    assert own.unheard() == [C]
    assert not own.refuses(C)
    own.heard(C, own.number, 1)
    assert own.refuses(C)


def test_a_peer_that_has_gone_is_not_waited_for() -> None:
    own = announced(A, B)
    own.peer_down(A)
    own.peer_down(C)
    assert own.unheard() == [B]


@pytest.mark.parametrize(("ahead", "count"), [(1, 1), (0, 0), (0, MAX_HEARD + 1)])
def test_a_nonsensical_acknowledgement_is_refused(ahead: int, count: int) -> None:
    own = announced(A)
    with pytest.raises(ValueError, match="HEARD"):
        own.heard(A, own.number + ahead, count)


def test_it_is_worth_asking_again_when_the_time_is_over() -> None:
    own = announced()
    assert own.retry_after(10.0) == 20.0
    assert own.retry_after(31.0) == 0.0


def test_what_a_peer_says_is_checked() -> None:
    assert [checked_step(step) for step in range(3)] == [Step.NONE, Step.ANNOUNCED, Step.REFUSING]
    with pytest.raises(ValueError, match="3"):
        checked_step(3)
    assert checked_source("signal") == "signal"
    assert checked_source("a later version's") == "api"
