"""The observers of a node: who hears of what, when, and what an observer cannot do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from fleetlm import errors, telemetry
from fleetlm.errors import CallTimeout, NoProcess, StartFailed
from fleetlm.taps import OUTCOMES, SAMPLES, Sampler, Taps, outcome_of
from fleetlm.telemetry import (
    DELIVERED_PER_TURN,
    KINDS,
    MAX_OBSERVERS,
    SESSION_ENDED,
    Attachment,
    CallEnded,
    CallStarted,
    ChildRestarted,
    MessageDropped,
    SessionUp,
    Telemetry,
)


class Rig:
    """Observers without a node: a test says when a turn of the loop ends."""

    def __init__(self) -> None:
        self.taps = Taps()
        self.due: deque[Callable[[], None]] = deque()
        self.complaints: list[tuple[Attachment, Exception]] = []
        self.asked: list[str] = []
        self.telemetry = Telemetry(
            self.taps,
            self.due.append,
            lambda attachment, error: self.complaints.append((attachment, error)),
            self.asked.append,
        )
        self.heard: list[Any] = []

    def turn(self) -> None:
        for _ in range(len(self.due)):
            self.due.popleft()()

    def restart(self, child: str = "worker") -> None:
        """What a supervisor does when it restarts a child."""
        if self.taps.child_restarted is not None:
            self.taps.child_restarted("root", child, "crash")


def tapped(taps: Taps) -> set[str]:
    return {name for name in Taps.__slots__ if getattr(taps, name)}


def test_nothing_is_tapped_while_nobody_observes() -> None:
    rig = Rig()
    assert tapped(rig.taps) == set()


def test_an_observer_hears_of_its_kinds_in_the_next_turn() -> None:
    rig = Rig()
    rig.telemetry.attach(rig.heard.append, kinds={ChildRestarted})
    assert tapped(rig.taps) == {"child_restarted"}
    rig.restart("a")
    rig.restart("b")
    assert rig.heard == []
    assert len(rig.due) == 1
    rig.turn()
    assert rig.heard == [ChildRestarted("root", "a", "crash"), ChildRestarted("root", "b", "crash")]
    assert not rig.due


def test_without_kinds_it_hears_of_all() -> None:
    rig = Rig()
    attachment = rig.telemetry.attach(rig.heard.append)
    assert attachment.kinds == KINDS
    assert tapped(rig.taps) == {*Taps.__slots__} - {"session_ended"}


@pytest.mark.parametrize("kind", sorted(KINDS, key=repr))
def test_each_kind_has_a_tap_that_takes_its_fields(kind: Any) -> None:
    rig = Rig()
    rig.telemetry.attach(rig.heard.append, kinds={kind})
    [name] = tapped(rig.taps) - {"calls", "handlers"}
    fields = tuple(range(len(kind.__match_args__)))
    getattr(rig.taps, name)(*fields)
    rig.turn()
    assert rig.heard == [kind(*fields)]
    assert getattr(telemetry, kind.__name__).__doc__


def test_detaching_ends_it_at_once_and_for_good() -> None:
    rig = Rig()
    attachment = rig.telemetry.attach(rig.heard.append, kinds=[ChildRestarted])
    rig.restart()
    attachment.detach()
    attachment.detach()
    rig.turn()
    assert rig.heard == []
    assert tapped(rig.taps) == set()


def test_a_block_detaches_at_its_end() -> None:
    rig = Rig()
    with rig.telemetry.attach(rig.heard.append, kinds=[ChildRestarted]):
        assert rig.taps.child_restarted is not None
    assert rig.taps.child_restarted is None


def test_detaching_leaves_others_attached() -> None:
    rig = Rig()
    first, second = [], rig.heard
    attachment = rig.telemetry.attach(first.append, kinds=[ChildRestarted])
    rig.telemetry.attach(second.append, kinds=[ChildRestarted, SessionUp])
    attachment.detach()
    rig.restart()
    rig.turn()
    assert (len(first), len(second)) == (0, 1)


def test_an_observer_may_detach_another_one_and_attach_a_third_meanwhile() -> None:
    rig = Rig()

    def first(event: Any) -> None:
        second.detach()
        rig.telemetry.attach(rig.heard.append, kinds=[SessionUp])

    rig.telemetry.attach(first, kinds=[ChildRestarted])
    second = rig.telemetry.attach(rig.heard.append, kinds=[ChildRestarted])
    rig.restart()
    rig.turn()
    assert rig.heard == []


def test_an_observer_that_raises_is_logged_once_and_stays() -> None:
    rig = Rig()

    def broken(event: Any) -> None:
        rig.heard.append(event)
        raise ValueError(event)

    attachment = rig.telemetry.attach(broken, kinds=[ChildRestarted])
    rig.telemetry.attach(rig.heard.append, kinds=[ChildRestarted])
    for _ in range(3):
        rig.restart()
    rig.turn()
    assert len(rig.heard) == 6
    assert attachment.failures == 3
    assert [who for who, _ in rig.complaints] == [attachment]
    assert "broken observes ChildRestarted" in repr(attachment)


def test_what_ends_the_program_does_not_stop_the_delivery() -> None:
    rig = Rig()

    def leaves(event: Any) -> None:
        rig.heard.append(event)
        raise SystemExit

    rig.telemetry.attach(leaves, kinds=[ChildRestarted])
    rig.restart("a")
    rig.restart("b")
    for _ in range(2):
        with pytest.raises(SystemExit):
            rig.turn()
    rig.turn()
    assert len(rig.heard) == 2
    rig.restart("c")
    assert len(rig.due) == 1


def test_a_turn_hands_out_so_many_events_and_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "MAX_WAITING", DELIVERED_PER_TURN + 10)
    rig = Rig()
    rig.telemetry.attach(rig.heard.append, kinds=[ChildRestarted])
    for _ in range(DELIVERED_PER_TURN + 30):
        rig.restart()
    rig.turn()
    assert len(rig.heard) == DELIVERED_PER_TURN
    rig.turn()
    assert len(rig.heard) == DELIVERED_PER_TURN + 10
    assert rig.telemetry.lost == 20
    assert not rig.due


@pytest.mark.parametrize("kinds", [[int], ["CallEnded"], [CallEnded, SESSION_ENDED]])
def test_other_kinds_are_refused(kinds: Any) -> None:
    rig = Rig()
    with pytest.raises(TypeError, match=r"is no kind of event; there are CallEnded, CallStarted"):
        rig.telemetry.attach(rig.heard.append, kinds=kinds)
    assert tapped(rig.taps) == set()


async def coroutine_function(event: object) -> None: ...


@pytest.mark.parametrize("observer", [None, 3, coroutine_function])
def test_other_observers_are_refused(observer: Any) -> None:
    with pytest.raises(TypeError, match="a plain function of one event"):
        Rig().telemetry.attach(observer)


def test_an_observer_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="would hear of nothing"):
        Rig().telemetry.attach(print, kinds=())


def test_the_number_of_observers_is_bounded() -> None:
    rig = Rig()
    attached = [rig.telemetry.attach(print, kinds={SessionUp}) for _ in range(MAX_OBSERVERS)]
    with pytest.raises(ValueError, match="detach those that are done"):
        rig.telemetry.attach(print)
    attached[0].detach()
    rig.telemetry.attach(print)


def test_the_loop_is_checked() -> None:
    rig = Rig()
    rig.telemetry.attach(print)
    rig.telemetry.listen({})
    assert rig.asked == ["Telemetry.attach", "Telemetry.listen"]


def test_a_call_asks_one_attribute() -> None:
    rig = Rig()
    started = rig.telemetry.attach(print, kinds={CallStarted})
    assert rig.taps.calls is not None
    ended = rig.telemetry.attach(print, kinds={CallEnded})
    started.detach()
    assert rig.taps.calls is not None
    ended.detach()
    assert rig.taps.calls is None


def test_a_listener_gets_the_fields_at_once_and_no_event_is_built() -> None:
    rig = Rig()
    end = rig.telemetry.listen({MessageDropped: lambda *fields: rig.heard.append(fields)})
    tap = rig.taps.message_dropped
    assert tap is not None
    tap("expired", 2, "to", "node")
    assert rig.heard == [("expired", 2, "to", "node")]
    assert not rig.due
    end()
    end()
    assert tapped(rig.taps) == set()


def test_the_weight_of_a_sample_is_for_listeners_only() -> None:
    rig = Rig()
    fields: list[Any] = []
    rig.telemetry.listen({CallEnded: lambda *each: fields.append(each)})
    rig.telemetry.attach(rig.heard.append, kinds={CallEnded})
    tap = rig.taps.call_ended
    assert tap is not None
    tap("to", "", "ok", 1.0, 8)
    rig.turn()
    assert fields == [("to", "", "ok", 1.0, 8)]
    assert rig.heard == [CallEnded("to", "", "ok", 1.0)]


def picks(sampler: Sampler, count: int) -> list[int]:
    return [sampler.pick() for _ in range(count)]


def test_each_one_is_measured_while_there_are_few() -> None:
    sampler = Sampler()
    for _ in range(3):
        assert picks(sampler, SAMPLES - 1) == [1] * (SAMPLES - 1)
        sampler.tick()


@given(st.lists(st.integers(0, 20 * SAMPLES), max_size=5))
@example([653])
def test_of_many_so_many_are_measured_and_stand_for_the_others(counts: list[int]) -> None:
    sampler = Sampler()
    for count in counts:
        weights = [weight for weight in picks(sampler, count) if weight]
        # The last ones of a tick may be those between two that are measured, by a rate that is new.
        between = max(3 * max(weights, default=1), sampler.mask)
        assert sum(weights) == pytest.approx(count, abs=between)
        assert len(weights) <= SAMPLES * (1 + (count // SAMPLES).bit_length())
        sampler.tick()


def test_a_node_at_rest_measures_each_one_again() -> None:
    sampler = Sampler()
    picks(sampler, 100 * SAMPLES)
    assert sampler.pick() != 1
    for _ in range(10):
        sampler.tick()
    assert picks(sampler, 3) == [1, 1, 1]


def test_a_load_that_stays_is_measured_at_the_same_rate() -> None:
    sampler = Sampler()
    shares = []
    for _ in range(10):
        weights = picks(sampler, 8 * SAMPLES)
        shares.append(sum(1 for weight in weights if weight))
        sampler.tick()
    assert all(SAMPLES // 2 <= share <= 2 * SAMPLES for share in shares[1:])


def test_observers_hear_of_each_one() -> None:
    rig = Rig()
    rig.telemetry.listen({CallEnded: print})
    sampler = rig.taps.calls
    assert sampler is not None
    picks(sampler, 10 * SAMPLES)
    rig.taps.tick()
    assert 0 in picks(sampler, 10)
    attachment = rig.telemetry.attach(print, kinds={CallStarted})
    assert rig.taps.calls is sampler
    picks(sampler, 10 * SAMPLES)
    rig.taps.tick()
    assert picks(sampler, 10) == [1] * 10
    attachment.detach()
    picks(sampler, 10 * SAMPLES)
    rig.taps.tick()
    assert 0 in picks(sampler, 10)


def test_listeners_and_observers_hear_of_the_same() -> None:
    rig = Rig()
    fields: list[Any] = []
    end = rig.telemetry.listen({ChildRestarted: lambda *each: fields.append(each)})
    rig.telemetry.attach(rig.heard.append, kinds={ChildRestarted})
    rig.restart()
    rig.turn()
    assert (len(fields), len(rig.heard)) == (1, 1)
    end()
    rig.restart()
    rig.turn()
    assert (len(fields), len(rig.heard)) == (1, 2)


def test_an_outcome_is_the_class_of_the_error() -> None:
    import asyncio  # for this test alone

    assert outcome_of(CallTimeout("to", 1.0)) == "CallTimeout"
    assert outcome_of(NoProcess("to")) == "NoProcess"
    assert outcome_of(asyncio.CancelledError()) == "cancelled"
    assert outcome_of(ValueError()) == "other"
    assert outcome_of(StartFailed("no port", "why")) == "other"


def test_each_outcome_of_an_error_names_a_class() -> None:
    for name in set(OUTCOMES) - {"ok", "cancelled", "other"}:
        assert issubclass(getattr(errors, name), errors.FleetError)


def test_each_end_of_a_session_is_explained() -> None:
    from fleetlm.core.effects import End  # for this test alone

    assert [end.value for end in End] == list(telemetry.ENDS)
