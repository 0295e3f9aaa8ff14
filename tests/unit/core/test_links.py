"""Links and monitors as a table: facts and effects, without a loop or a node."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fleetlm.core.links import LOOKED_AT_PER_STEP, MAX_ACTS_ENDED, Deliver, Effect, Links, Stop, Tell
from fleetlm.ids import Pid, Ref
from fleetlm.messages import Down, Exit
from fleetlm.names import Address

HERE, THERE = "fleetlm@10.0.0.1", "fleetlm@10.0.0.2"
INCARNATION = {HERE: 1, THERE: 2}


def pid(number: int, node: str = HERE) -> Pid:
    return Pid(node, INCARNATION[node], number)


def ref(number: int, node: str = HERE) -> Ref:
    return Ref(node, INCARNATION[node], number)


class Table:
    """Links of one node with its living processes."""

    def __init__(self, node: str = HERE, alive: tuple[int, ...] = (1, 2, 3)) -> None:
        self.node = node
        self.alive = set(alive)
        self.names: dict[str, int] = {}
        self.connected: dict[str, int] = dict(INCARNATION)
        """Node → the incarnation that is connected."""
        self.relations = Links(node, INCARNATION[node], self.alive.__contains__, self.connected.get)

    def ends(self, number: int, reason: Any = "normal") -> list[Effect]:
        self.alive.discard(number)
        return all_steps(self.relations.exited(number, reason))

    def told(self, signal: list[Any], sender: str = THERE) -> list[Effect]:
        return self.relations.told(sender, INCARNATION[sender], signal, self.names.get)


def all_steps(steps: Iterator[list[Effect]]) -> list[Effect]:
    return [*chain.from_iterable(steps)]


def test_a_linked_process_ends_with_the_other() -> None:
    t = Table()
    assert t.relations.linked(1, pid(2)) == []
    assert t.ends(2, "boom") == [Stop(1, "boom")]
    assert t.ends(1, "boom") == []


def test_a_normal_exit_reaches_only_linked_processes_that_trap_exits() -> None:
    t = Table()
    t.relations.linked(1, pid(2))
    t.relations.linked(3, pid(2))
    t.relations.trapped(3, True)
    assert t.ends(2) == [Deliver(3, Exit(pid(2), "normal"))]


def test_a_link_is_one_however_often_it_is_made_and_unlinked_once() -> None:
    t = Table()
    t.relations.linked(1, pid(2))
    t.relations.linked(1, pid(2))
    t.relations.linked(2, pid(1))
    t.relations.linked(1, pid(1))
    assert t.relations.counts() == (2, 0)
    assert t.relations.unlinked(2, pid(1)) == []
    assert t.relations.unlinked(2, pid(1)) == []
    assert t.relations.counts() == (0, 0)
    assert t.ends(2, "boom") == []


def test_linking_an_absent_process_is_an_exit_signal() -> None:
    t = Table()
    assert t.relations.linked(1, pid(9)) == [Stop(1, "noproc")]
    t.relations.trapped(1, True)
    assert t.relations.linked(1, pid(9)) == [Deliver(1, Exit(pid(9), "noproc"))]
    t.connected.clear()
    assert t.relations.linked(1, pid(1, THERE)) == [Deliver(1, Exit(pid(1, THERE), "noconnection"))]
    assert t.relations.counts() == (0, 0)


def test_a_link_between_nodes_is_signalled_and_ends_on_both_sides() -> None:
    here, there = Table(), Table(THERE)
    (tell,) = here.relations.linked(1, pid(2, THERE))
    assert tell == Tell(THERE, ["link", pid(1), 2, 1], 1)
    assert there.told(["link", pid(1), 2, 1], HERE) == []
    assert there.ends(2, "boom") == [Tell(HERE, ["exit", pid(2, THERE), 1, "boom"], 2)]
    assert here.told(["exit", pid(2, THERE), 1, "boom"]) == [Stop(1, "boom")]
    assert here.told(["exit", pid(2, THERE), 1, "boom"]) == [], "only once"


def test_an_exit_that_crosses_an_unlink_does_nothing() -> None:
    here = Table()
    here.relations.linked(1, pid(2, THERE))
    assert here.relations.unlinked(1, pid(2, THERE)) == [Tell(THERE, ["unlink", pid(1), 2, [1]], 1)]
    assert here.told(["exit", pid(2, THERE), 1, "boom"]) == []


def deliver(table: Table, effects: list[Effect], sender: str) -> list[Effect]:
    """Deliver what was sent to the other node."""
    return [
        effect for tell in effects if isinstance(tell, Tell) for effect in table.told(tell.signal, sender)
    ]


def test_an_unlink_that_crosses_a_new_link_leaves_it_at_both_ends() -> None:
    here, there = Table(), Table(THERE)
    deliver(there, here.relations.linked(1, pid(2, THERE)), HERE)
    again = here.relations.unlinked(1, pid(2, THERE)) + here.relations.linked(1, pid(2, THERE))
    crossing = there.relations.unlinked(2, pid(1))
    deliver(there, again, HERE)
    deliver(here, crossing, THERE)
    assert (here.relations.counts(), there.relations.counts()) == ((1, 0), (1, 0))
    deliver(there, here.relations.unlinked(1, pid(2, THERE)), HERE)
    assert (here.relations.counts(), there.relations.counts()) == ((0, 0), (0, 0))


def test_the_last_link_holds_though_the_unlinks_of_both_cross() -> None:
    here, there = Table(), Table(THERE)
    first, second = here.relations.linked(1, pid(2, THERE)), there.relations.linked(2, pid(1))
    to_there = [*first, *here.relations.unlinked(1, pid(2, THERE))]
    to_here = [*second, *there.relations.unlinked(2, pid(1))]
    deliver(here, to_here[:1], THERE)
    deliver(there, to_there[:1], HERE)
    to_there += here.relations.linked(1, pid(2, THERE))
    to_here += there.relations.linked(2, pid(1))
    deliver(here, to_here[1:], THERE)
    deliver(there, to_there[1:], HERE)
    assert (here.relations.counts(), there.relations.counts()) == ((1, 0), (1, 0))


@given(st.lists(st.tuples(st.sampled_from(["link", "unlink", "deliver"]), st.booleans()), max_size=30))
def test_however_links_and_unlinks_cross_both_ends_agree(steps: list[tuple[str, bool]]) -> None:
    tables = {HERE: Table(HERE), THERE: Table(THERE)}
    mine = {HERE: pid(1), THERE: pid(1, THERE)}
    under_way: dict[str, list[Effect]] = {HERE: [], THERE: []}

    def arrive(sender: str, other: str, count: int) -> None:
        effects, under_way[sender] = under_way[sender][:count], under_way[sender][count:]
        deliver(tables[other], effects, sender)

    for step, swapped in steps:
        me, other = (THERE, HERE) if swapped else (HERE, THERE)
        if step == "deliver":
            arrive(me, other, 1)
        else:
            act = tables[me].relations.linked if step == "link" else tables[me].relations.unlinked
            under_way[me] += act(1, mine[other])
    arrive(HERE, THERE, len(steps))
    arrive(THERE, HERE, len(steps))
    counts = [table.relations.counts() for table in tables.values()]
    assert counts[0] == counts[1]


def test_a_link_to_an_absent_process_on_another_node_is_answered_with_an_exit() -> None:
    there = Table(THERE)
    assert there.told(["link", pid(1), 9, 1], HERE) == [Tell(HERE, ["exit", pid(9, THERE), 1, "noproc"], 9)]
    assert there.told(["unlink", pid(1), 9, [1]], HERE) == []


def test_a_process_spawned_elsewhere_has_its_ends_there_already() -> None:
    t = Table()
    t.relations.spawned(1, pid(7, THERE), None, None)
    assert t.relations.counts() == (0, 0)
    t.relations.spawned(1, pid(8, THERE), 5, ref(1))
    assert t.relations.counts() == (1, 1)
    t.relations.trapped(1, True)
    assert t.told(["down", ref(1), "boom"]) == [Deliver(1, Down(ref(1), pid(8, THERE), "boom"))]
    assert t.told(["exit", pid(8, THERE), 1, "boom"]) == [Deliver(1, Exit(pid(8, THERE), "boom"))]
    assert t.relations.counts() == (0, 0)
    t.relations.spawned(2, pid(9, THERE), 6, ref(2))
    assert t.ends(2, "bad") == [
        Tell(THERE, ["exit", pid(2), 9, "bad"], 2), Tell(THERE, ["demonitor", ref(2), None], 2),
    ]  # fmt: skip
    assert t.relations.ended_before(2, pid(4, THERE), "bad") == [Tell(THERE, ["exit", pid(2), 4, "bad"])]


def test_a_link_made_by_spawning_is_unlinked_at_both_ends() -> None:
    here, there = Table(), Table(THERE)
    act = here.relations.new_act()
    assert there.told(["link", pid(1), 2, act], HERE) == []
    here.relations.spawned(1, pid(2, THERE), act, None)
    (told,) = here.relations.unlinked(1, pid(2, THERE))
    assert isinstance(told, Tell)
    assert there.told(told.signal, HERE) == []
    assert here.relations.counts() == there.relations.counts() == (0, 0)
    assert here.relations.linked(1, pid(3, THERE)) == [Tell(THERE, ["link", pid(1), 3, act + 1], 1)]


def test_a_monitor_fires_exactly_once() -> None:
    t = Table()
    assert t.relations.monitored(1, ref(1), pid(2), None) == []
    assert t.ends(2, "boom") == [Deliver(1, Down(ref(1), pid(2), "boom"))]
    assert t.relations.demonitored(1, ref(1)) == []
    assert t.relations.monitored(1, ref(2), pid(2), None) == [Deliver(1, Down(ref(2), pid(2), "noproc"))]
    assert t.relations.counts() == (0, 0)


def test_a_pid_of_another_start_of_this_node_does_not_exist() -> None:
    t = Table()
    former = Pid(HERE, 99, 2)
    assert t.relations.monitored(1, ref(1), former, None) == [Deliver(1, Down(ref(1), former, "noproc"))]


def test_a_monitor_is_held_until_it_fires_or_is_ended() -> None:
    t = Table()
    t.relations.monitored(1, ref(1), pid(2), 2)
    t.relations.monitored(1, ref(2), pid(3), 3)
    assert t.relations.holds_monitor(ref(1))
    t.ends(2)
    t.relations.demonitored(1, ref(2))
    assert not t.relations.holds_monitor(ref(1))
    assert not t.relations.holds_monitor(ref(2))


def test_a_monitor_of_a_name_watches_its_present_owner() -> None:
    t = Table()
    target = Address("echo", HERE)
    assert t.relations.monitored(1, ref(1), target, 2) == []
    assert t.relations.monitored(1, ref(2), target, None) == [Deliver(1, Down(ref(2), target, "noproc"))]
    assert t.ends(2) == [Deliver(1, Down(ref(1), target, "normal"))]


def test_a_monitor_between_nodes() -> None:
    here, there = Table(), Table(THERE)
    there.names["echo"] = 2
    target = Address("echo", THERE)
    assert here.relations.monitored(1, ref(1), target, None) == [Tell(THERE, ["monitor", ref(1), "echo"], 1)]
    assert there.told(["monitor", ref(1), "echo"], HERE) == []
    assert there.told(["monitor", ref(2), "nobody"], HERE) == [Tell(HERE, ["down", ref(2), "noproc"])]
    assert there.ends(2, "boom") == [Tell(HERE, ["down", ref(1), "boom"], 2)]
    assert here.told(["down", ref(1), "boom"]) == [Deliver(1, Down(ref(1), target, "boom"))]
    assert here.told(["down", ref(1), "boom"]) == []


def test_demonitor_reaches_the_other_node_and_nothing_fires() -> None:
    here, there = Table(), Table(THERE)
    here.relations.monitored(1, ref(1), pid(2, THERE), None)
    there.told(["monitor", ref(1), 2], HERE)
    assert here.relations.demonitored(1, ref(1)) == [Tell(THERE, ["demonitor", ref(1), None], 1)]
    assert here.told(["down", ref(1), "boom"]) == []
    there.told(["demonitor", ref(1), None], HERE)
    assert there.ends(2, "boom") == []


def test_a_watcher_that_ends_takes_its_monitors_along() -> None:
    t = Table()
    t.relations.monitored(1, ref(1), pid(2), None)
    t.relations.monitored(1, ref(2), pid(2, THERE), None)
    assert t.ends(1) == [Tell(THERE, ["demonitor", ref(2), None], 1)]
    assert t.ends(2, "boom") == []
    assert t.relations.counts() == (0, 0)


def test_a_lost_connection_is_the_end_of_all_that_crossed_it_and_of_nothing_else() -> None:
    t = Table()
    t.relations.trapped(3, True)
    t.relations.linked(1, pid(7, THERE))
    t.relations.linked(3, pid(7, THERE))
    t.relations.linked(1, pid(2))
    t.relations.monitored(2, ref(1), pid(7, THERE), None)
    t.told(["monitor", ref(5, THERE), 1])
    assert all_steps(t.relations.node_down(THERE)) == [
        Deliver(3, Exit(pid(7, THERE), "noconnection")),
        Stop(1, "noconnection"),
        Deliver(2, Down(ref(1), pid(7, THERE), "noconnection")),
    ]
    assert all_steps(t.relations.node_down(THERE)) == []
    assert t.ends(1, "noconnection") == [Stop(2, "noconnection")]


@pytest.mark.parametrize(
    ("reason", "trapping", "effects"),
    [
        ("kill", False, [Stop(2, "killed", at_once=True)]),
        ("kill", True, [Stop(2, "killed", at_once=True)]),
        ("shutdown", False, [Stop(2, "shutdown")]),
        ("shutdown", True, [Deliver(2, Exit(pid(1), "shutdown"))]),
        ("normal", False, []),
        ("normal", True, [Deliver(2, Exit(pid(1), "normal"))]),
        ({"any": "value"}, False, [Stop(2, {"any": "value"})]),
    ],
)
def test_exit_signals_as_in_erlang(reason: Any, trapping: bool, effects: list[Effect]) -> None:
    t = Table()
    t.relations.trapped(2, trapping)
    assert t.relations.asked_to_exit(pid(1), pid(2), reason) == effects


def test_exit_signals_to_oneself_to_an_absent_process_and_to_another_node() -> None:
    t, there = Table(), Table(THERE)
    assert t.relations.asked_to_exit(pid(1), pid(1), "normal") == [Stop(1, "normal")]
    assert t.relations.asked_to_exit(pid(1), pid(9), "x") == []
    told = t.relations.asked_to_exit(pid(1), pid(2, THERE), "x")
    assert told == [Tell(THERE, ["exit2", pid(1), 2, "x"], 1)]
    assert there.told(["exit2", pid(1), 2, "x"], HERE) == [Stop(2, "x")]


@pytest.mark.parametrize(
    "signal",
    [
        [],
        ["link"],
        ["link", pid(1, THERE), 2],
        ["link", pid(1, THERE), 2, "1"],
        ["link", pid(1, THERE), 2, 1 << 64],
        ["link", pid(1, THERE), 2, 0],
        ["link", pid(1, THERE), 2, True],
        ["link", pid(1, THERE), 1 << 64, 1],
        ["link", pid(1, THERE), -1, 1],
        ["exit2", pid(1, THERE), 1 << 64, "x"],
        ["unlink", pid(1, THERE), 2, 1],
        ["unlink", pid(1, THERE), 2, [*range(MAX_ACTS_ENDED + 1)]],
        ["link", pid(1), 2, 1],  # in the name of one of our own processes
        ["link", Pid(THERE, 99, 1), 2, 1],  # of another start of that node
        ["exit", pid(3, "fleetlm@10.0.0.2"), "2", "x"],
        ["monitor", ref(1), 2],
        ["monitor", ref(1, THERE), 2.5],
        ["down", ref(1, THERE), "x"],
        ["demonitor", ref(1, THERE), 1],
        ["dance", pid(1, THERE), 2],
        [b"link", pid(1, THERE), 2, 1],
    ],
)
def test_a_malformed_or_foreign_signal_is_refused_and_changes_nothing(signal: list[Any]) -> None:
    t = Table()
    with pytest.raises(ValueError, match="not known"):
        t.told(signal)
    assert t.relations.counts() == (0, 0)


def test_a_monitor_signalled_twice_is_one_monitor() -> None:
    t = Table()
    t.told(["monitor", ref(5, THERE), 1])
    t.told(["monitor", ref(5, THERE), 2])
    assert t.ends(2) == []
    assert t.ends(1) == [Tell(THERE, ["down", ref(5, THERE), "normal"], 1)]


def test_a_process_that_monitors_itself_gets_no_down() -> None:
    t = Table()
    t.relations.monitored(1, ref(1), pid(1), None)
    assert t.ends(1, "boom") == []
    assert t.relations.counts() == (0, 0)


def test_a_pid_of_a_former_incarnation_does_not_exist_once_another_is_connected() -> None:
    """Its number may be another process's by now: a signal to that number must not leave."""
    t = Table()
    former = Pid(THERE, 99, 2)
    t.relations.trapped(1, True)
    assert t.relations.linked(1, former) == [Deliver(1, Exit(former, "noproc"))]
    assert t.relations.monitored(1, ref(1), former, None) == [Deliver(1, Down(ref(1), former, "noproc"))]
    assert t.relations.asked_to_exit(pid(1), former, "kill") == []
    assert t.relations.unlinked(1, former) == []
    t.connected.clear()
    assert t.relations.linked(1, former) == [Deliver(1, Exit(former, "noconnection"))]
    assert t.relations.counts() == (0, 0)


def test_a_pid_of_a_former_incarnation_of_this_node_does_not_exist() -> None:
    t = Table()
    former = Pid(HERE, 99, 2)
    assert t.relations.linked(1, former) == [Stop(1, "noproc")]
    assert t.relations.asked_to_exit(pid(1), former, "boom") == []


def test_a_killed_process_that_still_cleans_up_leaves_nothing_in_the_table() -> None:
    t = Table()
    t.ends(1, "killed")
    assert t.relations.linked(1, pid(2)) == [Stop(2, "noproc")], "what it spawns now ends with it"
    assert t.relations.linked(1, pid(1, THERE)) == []
    assert t.relations.linked(1, pid(9)) == []
    assert t.relations.monitored(1, ref(1), pid(2), None) == []
    assert t.relations.monitored(1, ref(2), pid(1, THERE), None) == []
    assert t.relations.demonitored(1, ref(1)) == []
    assert t.relations.unlinked(1, pid(2)) == []
    t.relations.trapped(1, True)
    assert t.relations.traps(1) is False
    assert t.relations.counts() == (0, 0)
    assert t.relations._ends == {}


def test_a_process_of_this_node_is_watched_no_more() -> None:
    t = Table()
    t.relations.monitored(1, ref(1), pid(2), None)
    assert t.relations.demonitored(1, ref(1)) == []
    assert t.ends(2) == []
    assert t.relations.counts() == (0, 0)


def test_a_lost_node_is_no_loss_to_those_that_watch_another_one() -> None:
    t = Table()
    t.relations.monitored(1, ref(1), pid(2), None)
    t.relations.monitored(1, ref(2), pid(1, THERE), None)
    assert all_steps(t.relations.node_down(THERE)) == [
        Deliver(1, Down(ref(2), pid(1, THERE), "noconnection"))
    ]
    assert t.ends(2, "boom") == [Deliver(1, Down(ref(1), pid(2), "boom"))]


def test_what_ends_between_two_steps_of_a_lost_connection_is_passed_over() -> None:
    t = Table()
    t.relations.trapped(1, True)
    t.relations.trapped(2, True)
    for number in range(1, 5):
        t.relations.monitored(1, ref(number), pid(number, THERE), None)
    t.relations.monitored(2, ref(9), pid(1, THERE), None)
    for number in (7, 8, 9):
        t.relations.linked(1, pid(number, THERE))
    t.relations.linked(3, pid(7, THERE))
    steps = t.relations.node_down(THERE)
    assert next(steps) == [Deliver(1, Down(ref(1), pid(1, THERE), "noconnection"))]
    t.relations.demonitored(1, ref(2))
    t.relations.unlinked(1, pid(8, THERE))
    assert next(steps) == [Deliver(1, Down(ref(3), pid(3, THERE), "noconnection"))]
    assert next(steps) == [Deliver(1, Down(ref(4), pid(4, THERE), "noconnection"))]
    assert next(steps) == [Deliver(1, Exit(pid(7, THERE), "noconnection"))]
    t.ends(1)
    t.ends(3)
    assert all_steps(steps) == [Deliver(2, Down(ref(9), pid(1, THERE), "noconnection"))]
    assert t.relations.counts() == (0, 0)


def test_each_step_of_a_lost_connection_fires_one_end_at_most() -> None:
    t = Table()
    for number in range(1, 200):
        t.relations.monitored(1, ref(number), pid(number, THERE), None)
    sizes = [len(effects) for effects in t.relations.node_down(THERE)]
    assert (sum(sizes), max(sizes)) == (199, 1)


def test_each_step_of_an_end_fires_one_link_or_monitor_at_most() -> None:
    t = Table(alive=tuple(range(1, 200)))
    for number in range(2, 100):
        t.relations.monitored(number, ref(number), pid(1), 1)
        t.relations.linked(1, pid(number + 100))
    sizes = [len(effects) for effects in t.relations.exited(1, "boom")]
    assert (len(sizes), sum(sizes), max(sizes)) == (2 * 98, 2 * 98, 1)
    assert t.relations.counts() == (0, 0)


def test_what_is_taken_back_between_two_steps_of_an_end_does_not_fire() -> None:
    t = Table(alive=tuple(range(1, 10)))
    for number in (2, 3, 4):
        t.relations.linked(number, pid(1))
    for number in (5, 6, 7):
        t.relations.monitored(number, ref(number), pid(1), 1)
    t.told(["monitor", ref(8, THERE), 1])
    t.alive.discard(1)
    steps = t.relations.exited(1, "boom")
    assert next(steps) == [Stop(2, "boom")]
    t.relations.unlinked(3, pid(1))
    t.ends(4)
    t.relations.demonitored(5, ref(5))
    t.ends(6)
    t.told(["demonitor", ref(8, THERE), None])
    assert all_steps(steps) == [Deliver(7, Down(ref(7), pid(1), "boom"))]
    assert t.relations.counts() == (0, 0)


def test_a_monitor_that_fires_between_two_steps_of_the_end_of_its_owner_goes_nowhere() -> None:
    t = Table()
    for number in (1, 2):
        t.relations.monitored(1, ref(number), pid(7, THERE), None)
    t.relations.monitored(1, ref(3), pid(3), 3)
    t.alive.discard(1)
    steps = t.relations.exited(1, "boom")
    assert next(steps) == [Tell(THERE, ["demonitor", ref(1), None], 1)]
    assert t.told(["down", ref(2), "gone"]) == []
    assert t.ends(3) == []
    assert all_steps(steps) == [Tell(THERE, ["demonitor", ref(2), None], 1)]
    assert t.relations.counts() == (0, 0)


def test_links_to_other_nodes_than_the_lost_one_are_passed_in_small_steps() -> None:
    t, other = Table(), "c@10.0.0.3"
    t.connected[other] = 9
    for number in range(1, 2 * LOOKED_AT_PER_STEP + 1):
        t.relations.linked(1, Pid(other, 9, number))
    steps = [*t.relations.node_down(THERE)]
    assert not any(steps)
    t.relations.linked(1, pid(7, THERE))
    steps = [*t.relations.node_down(THERE)]
    assert [effects for effects in steps if effects] == [[Stop(1, "noconnection")]]
    assert len(steps) > 2
    assert t.relations.counts() == (2 * LOOKED_AT_PER_STEP, 0)


def test_a_node_is_lost_between_two_steps_of_an_end() -> None:
    t = Table()
    for number in (7, 8, 9):
        t.relations.linked(1, pid(number, THERE))
    lost = t.relations.node_down(THERE)
    assert next(lost) == [Stop(1, "noconnection")]
    t.alive.discard(1)
    steps = t.relations.exited(1, "noconnection")
    next(steps)
    assert all_steps(lost) == []
    assert {effect.node for effect in all_steps(steps) if isinstance(effect, Tell)} <= {THERE}
    assert t.relations.counts() == (0, 0)


def test_a_process_that_ends_while_its_monitors_fire_hears_of_no_more() -> None:
    t = Table()
    for number in range(1, 5):
        t.relations.monitored(1, ref(number), pid(number, THERE), None)
    steps = t.relations.node_down(THERE)
    next(steps)
    t.ends(1)
    assert all_steps(steps) == []
    assert t.relations.counts() == (0, 0)


def test_link_ends_and_monitors_are_counted_for_people() -> None:
    links = Table(alive=tuple(range(1, 11))).relations
    for number in range(1, 10):
        links.linked(number, pid(number + 1))
    links.monitored(1, ref(1), pid(2), None)
    counts = list(links.count_links(3))
    assert len(counts) == 4
    assert (sum(counts), links.count_monitors()) == links.counts()
    assert sum(counts) == 18
    assert list(Table().relations.count_links(3)) == []
