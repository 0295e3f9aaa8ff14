"""When shards that look free are free: once all others have been heard, or were waited for long enough."""

from __future__ import annotations

import pytest

from fleetlm.entities.settling import LIMIT_S, Settling

SETTLE_S = 2.0


class Stage:
    """A clock, and what is known of the nodes that there are."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits_for = ""
        self.alone = False
        self.settling = Settling(lambda: self.now, self)

    def awaited(self) -> str:
        return self.waits_for

    def is_alone(self) -> bool:
        return self.alone

    def is_over(self, after_s: float = 0.0, since: float = 100.0) -> bool:
        """Whether it is over so many seconds later."""
        self.now += after_s
        return self.settling.is_over(since, SETTLE_S)


def test_a_node_that_looks_for_no_other_waits_for_nothing() -> None:
    stage = Stage()
    stage.alone = True
    assert stage.is_over()


def test_nothing_is_free_before_discovery_has_answered_and_all_nodes_are_met() -> None:
    stage = Stage()
    stage.waits_for = "discovery has not answered"
    assert not stage.is_over(5)
    stage.waits_for = "b@10.0.0.2 is being connected"
    assert not stage.is_over(5)
    stage.waits_for = ""
    assert not stage.is_over()
    assert not stage.is_over(SETTLE_S - 0.01)
    assert stage.is_over(0.01)


def test_the_wait_for_nodes_has_an_end_of_which_the_log_tells(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.waits_for = "b@10.0.0.2 is being connected"
    assert not stage.is_over(LIMIT_S - 0.01)
    assert not caplog.text
    assert not stage.is_over(0.01)
    assert "though b@10.0.0.2 is being connected" in caplog.text
    assert stage.is_over(SETTLE_S)


def test_later_nodes_that_are_not_met_yet_keep_nobody_from_taking_over() -> None:
    stage = Stage()
    stage.is_over()
    assert stage.is_over(SETTLE_S)
    stage.waits_for = "b@10.0.0.2 is being connected"
    assert stage.is_over()


def test_a_connected_node_is_heard_once_it_has_ticked() -> None:
    stage = Stage()
    stage.is_over()
    stage.settling.node_up("b")
    assert not stage.is_over(SETTLE_S)
    stage.settling.ticked("c")
    assert not stage.is_over()
    stage.settling.ticked("b")
    assert stage.is_over()


def test_a_connected_node_that_does_not_tick_is_waited_for_so_long_at_most() -> None:
    stage = Stage()
    stage.is_over()
    stage.settling.node_up("b")
    assert not stage.is_over(LIMIT_S - 0.01)
    assert stage.is_over(0.01)


def test_a_node_that_is_lost_is_not_waited_for() -> None:
    stage = Stage()
    stage.is_over()
    stage.settling.node_up("b")
    assert not stage.is_over(SETTLE_S)
    stage.settling.node_down("b")
    assert stage.is_over()


def test_the_begin_of_a_kind_begins_the_wait_anew_and_a_new_session_that_was_heard_does_not() -> None:
    stage = Stage()
    assert not stage.is_over()
    assert stage.is_over(SETTLE_S)
    assert not stage.is_over(since=stage.now)
    assert stage.is_over(SETTLE_S, since=stage.now)
    stage.settling.node_up("b")
    assert not stage.is_over()
    stage.settling.ticked("b")
    assert stage.is_over()
