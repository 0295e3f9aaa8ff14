"""Which requests are made on behalf of work in flight."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from fleetlm.call import Call
from fleetlm.core.draining import Step
from fleetlm.errors import Draining
from fleetlm.messaging.deadline import SERVING
from fleetlm.messaging.in_flight import InFlight
from fleetlm.wire.invocation import Invoke


class Nobody:
    def forget(self, ref: int) -> None: ...


def serving(began: float) -> Call:
    caller: Any = Nobody()
    call = Call("x", caller, 1, 100.0, lambda: 0.0, began=began)
    SERVING.set(call)
    return call


@pytest.fixture(autouse=True)
def _no_call() -> Any:
    token = SERVING.set(None)
    yield
    SERVING.reset(token)


def watch(*, is_own: bool = False, peers: tuple[float, ...] = ()) -> InFlight:
    found = InFlight(lambda: 10.0)
    found.changed(is_own=is_own, peers_since=peers)
    return found


def test_nothing_is_looked_at_where_no_node_drains() -> None:
    assert not watch().is_watched
    assert watch(is_own=True).is_watched
    assert watch(peers=(5.0,)).is_watched
    found = watch(is_own=True, peers=(5.0,))
    found.changed(is_own=False, peers_since=())
    assert not found.is_watched


def test_a_request_that_was_begun_before_the_last_drain_was_known_is_covered() -> None:
    found = watch(peers=(5.0, 7.0))
    assert found.covers(6.9)
    assert not found.covers(7.0)


@pytest.mark.parametrize(("began", "covered"), [(-math.inf, True), (4.0, True), (5.9, True), (6.1, False)])
def test_what_is_asked_for_a_call_is_covered_as_the_call_is(began: float, covered: bool) -> None:
    serving(began)
    assert watch(peers=(5.0,)).covers(9.0) is covered


def test_all_that_a_draining_node_serves_is_in_flight_but_not_what_it_begins_itself() -> None:
    found = watch(is_own=True)
    assert not found.covers(9.0)
    serving(8.0)
    assert found.covers(9.0)


def test_a_task_that_a_handler_left_behind_begins_new_work() -> None:
    call = serving(-math.inf)
    found = watch(is_own=True, peers=(5.0,))
    assert found.covers(9.0)
    call.abandon()
    assert not found.covers(9.0)


def session_to(step: Step) -> Any:
    return SimpleNamespace(name="fleetlm@10.0.0.2", peer=SimpleNamespace(drain_step=step, drain_until=30.0))


def test_new_work_is_not_even_sent_to_a_node_that_has_said_that_it_refuses_such() -> None:
    found = watch(peers=(5.0,))
    for step in (Step.NONE, Step.ANNOUNCED):
        assert found.admit(session_to(step), 9.0) == 0
    with pytest.raises(Draining) as refused:
        found.admit(session_to(Step.REFUSING), 9.0)
    assert (refused.value.node, refused.value.retry_after) == ("fleetlm@10.0.0.2", 20.0)
    assert not refused.value.was_sent
    assert found.admit(session_to(Step.REFUSING), 4.0) == 1, "it was begun before"
    serving(4.0)
    assert found.admit(session_to(Step.REFUSING), 9.0) == 1, "it is asked for such work"


def test_a_request_to_an_entity_is_sent_all_the_same_since_its_host_decides() -> None:
    found = watch(peers=(5.0,))
    route: Any = ["key", 7, 0, "append"]
    assert found.admit(session_to(Step.REFUSING), 9.0, Invoke(route, (), {})) == 0
    for other in (Invoke("append", (), {}), route, None):
        with pytest.raises(Draining):
            found.admit(session_to(Step.REFUSING), 9.0, other)
