"""What one peer may make a node keep: links and monitors beyond the limit end at once."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any

from hypothesis import given, strategies as st

from fleetlm.core.links import LOOKED_AT_PER_STEP, Deliver, Effect, Links, Tell
from fleetlm.messages import Down
from tests.unit.core.test_links import HERE, INCARNATION, THERE, pid, ref

THIRD = "fleetlm@10.0.0.3"
LIMIT = 3


class Limited:
    """Links of a node that lets each peer have three."""

    def __init__(self) -> None:
        self.alive = {1, 2, 3, 4, 5}
        connected = {**INCARNATION, THIRD: 2}
        self.links = Links(HERE, 1, self.alive.__contains__, connected.get, LIMIT)

    def told(self, *signal: Any, sender: str = THERE) -> list[Effect]:
        return self.links.told(sender, 2, list(signal), lambda _: None)

    def link(self, other: int, number: int, act: int = 1) -> list[Effect]:
        return self.told("link", pid(other, THERE), number, act)

    def monitor(self, n: int, number: int) -> list[Effect]:
        return self.told("monitor", ref(n, THERE), number)

    def ends(self, number: int) -> list[Effect]:
        self.alive.discard(number)
        return [*chain.from_iterable(self.links.exited(number, "done"))]

    @property
    def room(self) -> int:
        return next(count for count in range(LIMIT, -1, -1) if self.links.has_room(THERE, count))


def test_a_monitor_beyond_the_limit_fires_at_once_and_only_it() -> None:
    t = Limited()
    for n in range(LIMIT):
        assert t.monitor(n, 1) == []
    assert t.monitor(LIMIT, 1) == [Tell(THERE, ["down", ref(LIMIT, THERE), "system_limit"], 1)]
    assert t.monitor(0, 1) == [], "the same monitor again is no further one"
    assert t.links.counts() == (0, LIMIT)
    assert len(t.ends(1)) == LIMIT


def test_a_link_beyond_the_limit_ends_at_once_and_one_more_act_of_a_known_one_does_not() -> None:
    t = Limited()
    for other in range(1, 1 + LIMIT):
        assert t.link(other, 1) == []
    assert t.link(9, 1) == [Tell(THERE, ["exit", pid(1), 9, "system_limit"], 1)]
    assert t.link(1, 1, act=2) == []
    assert t.links.counts() == (LIMIT, 0)


def test_another_peer_and_this_node_itself_are_not_counted_with_it() -> None:
    t = Limited()
    for n in range(LIMIT):
        t.monitor(n, 1)
    third = ref(1, THERE).__class__(THIRD, 2, 1)
    assert t.told("monitor", third, 1, sender=THIRD) == []
    for other in range(5):
        assert t.links.linked(2, pid(other, THERE)) != []
        assert t.links.monitored(2, ref(other), pid(other, THERE), None) != []
    assert t.links.counts()[0] == 5
    own = ref(77)
    t.links.monitored(2, own, pid(1), 1)
    assert t.links.demonitored(2, own) == []
    assert t.room == 0


def test_each_way_in_which_they_end_makes_room_again() -> None:
    t = Limited()
    t.monitor(1, 1)
    t.told("demonitor", ref(1, THERE), None)
    t.told("demonitor", ref(1, THERE), None)
    assert t.room == LIMIT
    t.link(1, 1)
    t.told("unlink", pid(1, THERE), 1, [1])
    assert t.room == LIMIT
    t.link(2, 1)
    t.links.unlinked(1, pid(2, THERE))
    assert t.room == LIMIT
    t.link(3, 1)
    t.told("exit", pid(3, THERE), 1, "boom")
    assert t.room == LIMIT
    t.link(4, 2)
    t.monitor(4, 2)
    assert t.room == LIMIT - 2
    t.ends(2)
    assert t.room == LIMIT
    t.link(5, 3)
    t.monitor(5, 3)
    [*t.links.node_down(THERE)]
    assert t.room == LIMIT
    assert t.links.counts() == (0, 0)


def test_a_monitor_that_ends_while_its_process_tells_the_others_is_counted_once() -> None:
    t = Limited()
    t.monitor(1, 1)
    t.monitor(2, 1)
    t.alive.discard(1)
    steps = t.links.exited(1, "done")
    assert next(steps) == [Tell(THERE, ["down", ref(1, THERE), "done"], 1)]
    t.told("demonitor", ref(2, THERE), None)
    assert [*steps] == []
    assert t.room == LIMIT


def test_a_link_that_both_have_made_is_counted_until_the_peer_has_ended_its_own_part() -> None:
    t = Limited()
    t.links.linked(1, pid(1, THERE))
    t.link(1, 1, act=7)
    t.link(1, 1, act=8)
    assert t.room == LIMIT - 1
    t.told("unlink", pid(1, THERE), 1, [7])
    assert t.room == LIMIT - 1, "it has made another link meanwhile"
    t.told("unlink", pid(1, THERE), 1, [8])
    assert t.room == LIMIT
    assert t.links.counts() == (1, 0), "this node's own act holds"


def test_the_watchers_and_links_of_a_lost_node_are_forgotten_in_small_steps() -> None:
    t = Limited()
    t.links._max_ends = 1_000
    for number in range(1, 201):
        t.monitor(number, 1)
        t.link(number, 2, number)
    links = t.links
    steps, sizes = links.node_down(THERE), [sum(links.counts())]
    for effects in steps:
        assert len(effects) <= 1
        sizes.append(sum(links.counts()))
    assert sizes[-1] == 0
    assert max(before - after for before, after in pairwise(sizes)) <= LOOKED_AT_PER_STEP


STEPS = st.lists(
    st.tuples(st.sampled_from(["link", "unlink", "exit", "monitor", "demonitor", "own", "ends", "down"]),
              st.integers(1, 5), st.integers(1, 5)),
    max_size=40,
)  # fmt: skip


@given(STEPS)
def test_the_count_is_what_the_tables_hold_after_any_sequence(steps: list[tuple[str, int, int]]) -> None:
    t = Limited()
    for act, (what, a, b) in enumerate(steps, 1):
        match what:
            case "link":
                t.link(a, b, act)
            case "unlink":
                t.told("unlink", pid(a, THERE), b, list(range(1, act)))
            case "exit":
                t.told("exit", pid(a, THERE), b, "boom")
            case "monitor":
                t.monitor(a, b)
            case "demonitor":
                t.told("demonitor", ref(a, THERE), None)
            case "own":
                t.links.linked(b, pid(a, THERE))
            case "ends":
                t.ends(b)
            case "down":
                [*t.links.node_down(THERE)]
        held = sum(
            sum(each.node == THERE and any(n < 0 for n in acts) for each, acts in ends.links.items())
            + sum(each.node == THERE for each in ends.watchers)
            for ends in t.links._ends.values()
        )
        assert t.links._ends_of_node.get(THERE, 0) == held <= LIMIT


def test_a_watcher_here_gets_the_reason_of_the_limit() -> None:
    t = Limited()
    mine = ref(1)
    t.links.monitored(1, mine, pid(1, THERE), None)
    assert t.told("down", mine, "system_limit") == [Deliver(1, Down(mine, pid(1, THERE), "system_limit"))]
