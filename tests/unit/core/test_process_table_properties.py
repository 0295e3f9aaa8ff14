"""The table of processes and their names against two plain dicts: every fact, in every state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fleetlm.core.process_table import ProcessTable
from fleetlm.errors import AlreadyRegistered, FleetError, InvalidName, NoProcess
from fleetlm.ids import Pid

NODE = "fleetlm@10.0.0.1"
NAMES = ["a", "b", "c"]
NO_NAMES = ["", "a\n", "x" * 256]
STRANGERS = [Pid(NODE, 99, 1), Pid("fleetlm@10.0.0.2", 100, 1), Pid(NODE, 100, 0)]

names = st.sampled_from([*NAMES, *NAMES, *NO_NAMES])
Fact = tuple[str, Any, Any]


class Model:
    """What a table should hold, and what each fact should answer."""

    def __init__(self) -> None:
        self.given = 0
        self.living: dict[int, str | None] = {}

    def owner(self, name: str) -> int | None:
        return next((number for number, own in self.living.items() if own == name), None)

    def refusal(self, fact: Fact) -> type[FleetError] | None:
        match fact:
            case ("spawned", None, _):
                return None
            case ("spawned" | "register", name, _) if name in NO_NAMES:
                return InvalidName
            case ("spawned", name, _):
                return None if self.owner(name) is None else AlreadyRegistered
            case ("register", _, pid) if pid in STRANGERS or pid.number not in self.living:
                return NoProcess
            case ("register", name, pid):
                free = self.owner(name) is None and self.living[pid.number] is None
                return None if free else AlreadyRegistered
        return None

    def take(self, fact: Fact) -> Any:
        """Move; returns what the table should."""
        match fact:
            case ("spawned", name, _):
                self.given += 1
                self.living[self.given] = name
                return Pid(NODE, 100, self.given)
            case ("register", name, pid):
                self.living[pid.number] = name
            case ("unregister", name, _):
                owner = self.owner(name)
                if owner is not None:
                    self.living[owner] = None
                return owner is not None
            case ("exited", number, _):
                return self.living.pop(number, None)
        return None


def tell(table: ProcessTable, fact: Fact) -> Any:
    verb, first, second = fact
    act: Callable[..., Any] = getattr(table, verb)
    return act(first, second) if verb == "register" else act(first)


def check(table: ProcessTable, model: Model, fact: Fact) -> None:
    """Check that the table does what the model does, or raises what the model says and changes nothing."""
    refusal = model.refusal(fact)
    if refusal is None:
        assert tell(table, fact) == model.take(fact)
    else:
        before = copy.deepcopy(vars(table))
        with pytest.raises(FleetError) as caught:
            tell(table, fact)
        assert type(caught.value) is refusal
        assert vars(table) == before
    agree(table, model)


def agree(table: ProcessTable, model: Model) -> None:
    owned = {own: number for number, own in model.living.items() if own is not None}
    assert table.names == owned
    assert table.registered() == {name: Pid(NODE, 100, owned[name]) for name in sorted(owned)}
    assert list(table.registered()) == sorted(owned)
    for name in NAMES:
        assert table.whereis(name) == (Pid(NODE, 100, owned[name]) if name in owned else None)
    for number in range(model.given + 2):
        assert table.name_of(number) == model.living.get(number)
    assert len(table._name_of) == len(model.living), "nothing is kept of those that have ended"


class Table(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = ProcessTable(NODE, 100)
        self.model = Model()

    @rule(name=st.none() | names)
    def spawn(self, name: str | None) -> None:
        check(self.table, self.model, ("spawned", name, None))

    @rule(name=names, number=st.integers(1, 6))
    def register(self, name: str, number: int) -> None:
        check(self.table, self.model, ("register", name, Pid(NODE, 100, number)))

    @rule(name=names, stranger=st.sampled_from(STRANGERS))
    def register_stranger(self, name: str, stranger: Pid) -> None:
        check(self.table, self.model, ("register", name, stranger))

    @rule(name=names)
    def unregister(self, name: str) -> None:
        check(self.table, self.model, ("unregister", name, None))

    @rule(number=st.integers(0, 6))
    def exit(self, number: int) -> None:
        check(self.table, self.model, ("exited", number, None))

    @invariant()
    def agrees(self) -> None:
        agree(self.table, self.model)


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


def facts(model: Model) -> list[Fact]:
    """All that can be told, up to three processes."""
    pids = [Pid(NODE, 100, number) for number in range(1, 5)]
    told: list[Fact] = [("exited", number, None) for number in range(5)]
    told += [("unregister", name, None) for name in (*NAMES[:2], *NO_NAMES)]
    told += [("register", name, pid) for name in (*NAMES[:2], *NO_NAMES) for pid in (*pids, *STRANGERS)]
    if model.given < 3:
        told += [("spawned", name, None) for name in (None, *NAMES[:2], *NO_NAMES)]
    return told


def test_every_fact_in_every_state_moves_or_raises() -> None:
    """All states of up to three processes and two names, each with all facts."""
    seen, todo = set[str](), [(ProcessTable(NODE, 100), Model())]
    pairs = 0
    while todo:
        table, model = todo.pop()
        if (state := f"{model.given} {sorted(model.living.items())}") in seen:
            continue
        seen.add(state)
        for fact in facts(model):
            next_table, next_model = copy.deepcopy((table, model))
            check(next_table, next_model, fact)
            todo.append((next_table, next_model))
            pairs += 1
    assert len(seen) > 50
    assert pairs > 2_000
