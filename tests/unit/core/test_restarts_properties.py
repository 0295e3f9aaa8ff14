"""Restart policy against a naive model: every restart that ever was is remembered, and counted anew."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from fleetlm.core.restarts import (
    RESTARTS,
    STRATEGIES,
    Backoff,
    Intensity,
    Restart,
    Strategy,
    affected,
    is_clean,
    is_of_the_cluster,
    wants_restart,
)
from fleetlm.ids import Pid
from fleetlm.messages import Crash, NameLost

CLEAN: list[Any] = ["normal", "shutdown", ("shutdown", "why"), ("shutdown", None)]
OF_THE_CLUSTER: list[Any] = ["noconnection", NameLost("n", Pid("n@10.0.0.1", 1, 1))]
FAULTS: list[Any] = [
    "killed", "kill", "noproc", "boom", "", None, 0, False, ("shutdown",), ("shutdown", 1, 2), ("normal", 1),
    ["normal"], {"shutdown": 1}, Crash("ValueError", "normal"), Exception,
]  # fmt: skip

names = st.sampled_from(["a", "b"])
reasons = st.sampled_from([*FAULTS, *CLEAN])
gaps_s = st.sampled_from([0.0, 0.0, 0.125, 1.0, 4.0, 5.0, 8.0, 16.0, 64.0, 1e6]) | st.floats(0, 40)


class Policy(RuleBasedStateMachine):
    """One supervisor's intensity and back-off, on a clock that never goes back."""

    @initialize(
        most=st.integers(0, 4),
        period_s=st.sampled_from([1.0, 5.0, 20.0]),
        pauses_s=st.sampled_from([(0.25, 2.0), (0.25, 15.0), (1.0, 1.0), (0.0, 0.0), (1e-6, 1e6)]),
    )
    def begin(self, most: int, period_s: float, pauses_s: tuple[float, float]) -> None:
        self.now = 1_000.0
        self.most, self.period_s = most, period_s
        self.min_s, self.max_s = pauses_s
        self.intensity = Intensity(most, period_s)
        self.backoff = Backoff(*pauses_s)
        self.counted: list[float] = []
        self.failures: dict[str, list[float]] = {}
        """Child → its pauses in a row."""
        self.started: dict[str, float] = {}

    @rule(gap_s=gaps_s)
    def wait(self, gap_s: float) -> None:
        self.now += gap_s

    @rule(reason=reasons, times=st.integers(1, 3))
    def count(self, reason: Any, times: int) -> None:
        for _ in range(times):
            self.counted.append(self.now)
            recent = [at for at in self.counted if at >= self.now - self.period_s]
            assert self.intensity.allows(self.now, reason) is (len(recent) <= self.most)
            assert len(self.intensity._restarts) == len(recent), "the past is forgotten"

    @rule(reason=st.sampled_from(OF_THE_CLUSTER), times=st.integers(1, 20))
    def count_what_happens_between_nodes(self, reason: Any, times: int) -> None:
        before = list(self.intensity._restarts)
        for _ in range(times):
            assert self.intensity.allows(self.now, reason) is True
        assert list(self.intensity._restarts) == before

    @rule(
        name=names, reason=reasons | st.sampled_from(OF_THE_CLUSTER), times=st.sampled_from([1, 2, 5, 1_100])
    )
    def pause(self, name: str, reason: Any, times: int) -> None:
        """Also as often as a peer that is away for hours lets a child fail."""
        for _ in range(times):
            lived_long = self.now - self.started.get(name, self.now) > 2 * self.max_s
            past = [] if lived_long else self.failures.get(name, [])
            pause_s = 0.0 if not past else self.min_s if len(past) == 1 else min(self.max_s, past[-1] * 2)
            least_s = self.min_s if reason in OF_THE_CLUSTER else 0.0
            assert self.backoff.pause_s(name, self.now, reason) == pytest.approx(max(pause_s, least_s))
            self.failures[name] = [*past[-1:], pause_s] if past else [pause_s]
            self.started[name] = self.now + pause_s


TestPolicy = Policy.TestCase
TestPolicy.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


class LongerPolicy(Policy):
    """The same, with more examples."""


TestPolicyForLonger = pytest.mark.long(LongerPolicy.TestCase)
TestPolicyForLonger.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@given(st.lists(st.tuples(gaps_s, st.sampled_from(OF_THE_CLUSTER)), max_size=40), st.integers(0, 3))
def test_no_loss_of_peers_is_ever_too_much(losses: list[tuple[float, Any]], most: int) -> None:
    """Restarts that do not count change nothing for those that do, however many there are."""
    intensity, alone, now = Intensity(most, 5.0), Intensity(most, 5.0), 0.0
    for gap_s, reason in losses:
        now += gap_s
        assert intensity.allows(now, reason)
        if gap_s:
            assert intensity.allows(now, "boom") is alone.allows(now, "boom")


@given(
    st.lists(gaps_s, min_size=1, max_size=30),
    st.floats(0.001, 10),
    st.floats(1, 100),
    st.sampled_from(OF_THE_CLUSTER),
)
def test_pauses_stay_within_their_bounds_and_never_shrink_while_it_keeps_failing(
    gaps: list[float], min_s: float, factor: float, loss: Any
) -> None:
    backoff, max_s, now, last = Backoff(min_s, min_s * factor), min_s * factor, 0.0, 0.0
    for gap_s in gaps:
        now += last + min(gap_s, max_s)  # It is started after the pause, and does not live for long.
        pause_s = backoff.pause_s("a", now, "boom")
        assert pause_s == 0 or min_s <= pause_s <= max_s
        assert pause_s >= last
        last = pause_s
        other_s = backoff.pause_s(f"b{gap_s}", now, loss)
        assert min_s <= other_s <= max_s, "it never spins, and knows nothing of the others"


@pytest.mark.parametrize("restart", RESTARTS)
@pytest.mark.parametrize("reason", [*CLEAN, *FAULTS, *OF_THE_CLUSTER], ids=str)
def test_every_reason_of_every_kind_of_child(restart: Restart, reason: Any) -> None:
    assert is_clean(reason) is (reason in CLEAN)
    assert is_of_the_cluster(reason) is (reason in OF_THE_CLUSTER)
    wanted = {"permanent": True, "transient": reason not in CLEAN, "temporary": False}
    assert wants_restart(restart, reason) is wanted[restart]


@given(
    st.sampled_from(STRATEGIES), st.lists(st.text(max_size=3), min_size=1, max_size=6, unique=True), st.data()
)
def test_the_affected_children_are_those_of_the_strategy(
    strategy: Strategy, order: list[str], data: st.DataObject
) -> None:
    failed = data.draw(st.sampled_from(order))
    who = affected(strategy, order, failed)
    earlier, later = order[: order.index(failed)], order[order.index(failed) + 1 :]
    assert failed in who
    assert set(who) - {failed} == {
        "one_for_one": set(), "one_for_all": {*earlier, *later}, "rest_for_one": set(later)
    }[strategy]  # fmt: skip
    assert who == [name for name in order if name in who], "in the order of their start"
    assert who is not order


def test_the_kinds_are_those_of_the_types() -> None:
    assert get_args(Strategy) == STRATEGIES
    assert get_args(Restart) == RESTARTS
