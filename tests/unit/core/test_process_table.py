from __future__ import annotations

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fleetlm.core.process_table import ProcessTable
from fleetlm.errors import AlreadyRegistered, InvalidName, NoProcess
from fleetlm.ids import Pid

NODE = "fleetlm@10.0.0.1"


@pytest.fixture
def table() -> ProcessTable:
    return ProcessTable(NODE, 100)


def test_pids_count_and_carry_the_incarnation(table: ProcessTable) -> None:
    assert [table.spawned(None) for _ in range(3)] == [Pid(NODE, 100, n) for n in (1, 2, 3)]


def test_a_number_is_never_given_twice(table: ProcessTable) -> None:
    first = table.spawned(None)
    table.exited(first.number)
    assert table.spawned(None).number == 2


def test_a_process_is_found_under_the_name_that_it_was_spawned_with(table: ProcessTable) -> None:
    pid = table.spawned("a")
    assert table.whereis("a") == pid
    assert table.name_of(pid.number) == "a"
    assert table.registered() == {"a": pid}


def test_spawning_under_a_taken_name_makes_no_process(table: ProcessTable) -> None:
    pid = table.spawned("a")
    with pytest.raises(AlreadyRegistered, match="a"):
        table.spawned("a")
    assert table.registered() == {"a": pid}
    assert table.spawned(None).number == 2


@pytest.mark.parametrize("bad", ["", "x" * 256, "a\nb", "\x00"])
def test_a_bad_name_makes_no_process(table: ProcessTable, bad: str) -> None:
    with pytest.raises(InvalidName):
        table.spawned(bad)
    pid = table.spawned(None)
    assert pid.number == 1
    with pytest.raises(InvalidName):
        table.register(bad, pid)
    assert table.registered() == {}


def test_a_living_process_gets_one_name_and_a_name_one_owner(table: ProcessTable) -> None:
    first, second = table.spawned(None), table.spawned(None)
    table.register("a", first)
    with pytest.raises(AlreadyRegistered):
        table.register("a", second)
    with pytest.raises(AlreadyRegistered):
        table.register("b", first)
    with pytest.raises(AlreadyRegistered):
        table.register("a", first)
    assert table.registered() == {"a": first}


@pytest.mark.parametrize("stranger", [Pid(NODE, 100, 99), Pid(NODE, 99, 1), Pid("fleetlm@10.0.0.2", 100, 1)])
def test_a_process_of_another_node_gets_no_name(table: ProcessTable, stranger: Pid) -> None:
    table.spawned(None)
    with pytest.raises(NoProcess):
        table.register("a", stranger)
    assert table.whereis("a") is None


def test_a_name_that_is_taken_away_is_free_and_its_owner_may_have_another(table: ProcessTable) -> None:
    pid = table.spawned("a")
    assert table.unregister("a")
    assert not table.unregister("a")
    assert (table.whereis("a"), table.name_of(pid.number)) == (None, None)
    table.register("b", pid)
    assert table.whereis("b") == pid


def test_a_name_dies_with_its_process(table: ProcessTable) -> None:
    pid = table.spawned("a")
    assert table.exited(pid.number) == "a"
    assert table.exited(pid.number) is None
    assert table.whereis("a") is None
    with pytest.raises(NoProcess):
        table.register("b", pid)
    assert table.spawned("a").number == 2


def test_the_end_of_a_process_does_not_touch_the_next_owner_of_its_name(table: ProcessTable) -> None:
    first = table.spawned("a")
    table.unregister("a")
    second = table.spawned("a")
    assert table.exited(first.number) is None
    assert table.whereis("a") == second


def test_names_are_listed_in_order(table: ProcessTable) -> None:
    for name in ("c", "a", "b"):
        table.spawned(name)
    assert list(table.registered()) == ["a", "b", "c"]


class Names(RuleBasedStateMachine):
    """The table against two plain dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ProcessTable(NODE, 100)
        self.living: dict[int, str | None] = {}

    @rule(name=st.none() | st.sampled_from("abc"))
    def spawn(self, name: str | None) -> None:
        if name is not None and name in self.living.values():
            with pytest.raises(AlreadyRegistered):
                self.table.spawned(name)
        else:
            self.living[self.table.spawned(name).number] = name

    @rule(number=st.integers(1, 6), name=st.sampled_from("abc"))
    def register(self, number: int, name: str) -> None:
        pid = Pid(NODE, 100, number)
        if number not in self.living:
            with pytest.raises(NoProcess):
                self.table.register(name, pid)
        elif name in self.living.values() or self.living[number] is not None:
            with pytest.raises(AlreadyRegistered):
                self.table.register(name, pid)
        else:
            self.table.register(name, pid)
            self.living[number] = name

    @rule(name=st.sampled_from("abc"))
    def unregister(self, name: str) -> None:
        owners = [number for number, own in self.living.items() if own == name]
        assert self.table.unregister(name) is bool(owners)
        for number in owners:
            self.living[number] = None

    @rule(number=st.integers(1, 6))
    def exit(self, number: int) -> None:
        assert self.table.exited(number) == self.living.pop(number, None)

    @invariant()
    def agrees(self) -> None:
        owners = {own: Pid(NODE, 100, number) for number, own in self.living.items() if own is not None}
        assert self.table.registered() == owners
        assert all(self.table.name_of(number) == own for number, own in self.living.items())


TestNames = Names.TestCase
TestNames.settings = settings(max_examples=40, deadline=None)


def test_it_counts_what_was_ever_spawned() -> None:
    table = ProcessTable("a", 1)
    assert table.spawned_count == 0
    pid = table.spawned("x")
    table.spawned(None)
    table.exited(pid.number)
    assert table.spawned_count == 2
