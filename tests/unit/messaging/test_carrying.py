"""Which context variables travel, and what is said of those that cannot."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

import fleetlm
from fleetlm.call import Call
from fleetlm.ids import Pid
from fleetlm.messaging.carrying import CARRYING, MAX_CARRIED, MAX_CARRIED_BYTES, Carrying, Served
from fleetlm.wire.carriers import pack_carrier, unpack_carrier
from fleetlm.wire.invocation import Invoke

ONE: ContextVar[Any] = ContextVar("one")
TWO: ContextVar[Any] = ContextVar("two", default="by default")
PID = Pid("fleetlm@10.0.0.1", 1, 7)


@pytest.fixture
def carrying() -> Carrying:
    made = Carrying()
    made.add(ONE, "one")
    made.add(TWO, "second")
    return made


@pytest.fixture(autouse=True)
def _unset() -> Iterator[None]:
    """Give each test a context of its own, as far as these variables go."""
    tokens = [variable.set(None) for variable in (ONE, TWO)]
    yield
    for token in tokens:
        token.var.reset(token)


def in_a_context(carrying: Carrying, carrier: bytes | None) -> list[Any]:
    context = contextvars.copy_context()
    request = Invoke("work", (), {}, carrier=carrier)

    async def work() -> None: ...

    running = work()
    assert carrying.serve(context, running, PID, None, "Worker", request, None, carrier) is running
    running.close()
    return [context.get(ONE), context.get(TWO)]


def test_only_what_is_set_travels_and_no_default(carrying: Carrying) -> None:
    assert carrying.values() == {}
    assert carrying.pack(None) is None
    ONE.set("r-1")
    assert carrying.values() == {"one": "r-1"}
    TWO.set(7)
    packed = carrying.pack(None)
    assert packed is not None
    assert unpack_carrier(packed) == {"one": "r-1", "second": 7}
    ONE.set(None)
    TWO.set(None)
    assert in_a_context(carrying, packed) == ["r-1", 7]
    assert [ONE.get(), TWO.get()] == [None, None]


@pytest.mark.parametrize("value", ["", 0, b""])
def test_empty_values_travel(carrying: Carrying, value: Any) -> None:
    ONE.set(value)
    assert in_a_context(carrying, carrying.pack(None)) == [value, None]


TOO_LONG = "x" * (MAX_CARRIED_BYTES + 1)


@pytest.mark.parametrize("value", [1.5, True, ["a"], TOO_LONG, TOO_LONG.encode(), "\ud800", 1 << 70])
def test_what_cannot_travel_stays_behind_and_is_logged_once(
    carrying: Carrying, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ONE.set(value)
    TWO.set("fits")
    with caplog.at_level(logging.WARNING, "fleetlm"):
        assert carrying.values() == carrying.values() == {"second": "fits"}
    (record,) = caplog.records
    assert "the context variable 'one' does not travel" in record.getMessage()


def test_a_peer_sets_only_what_the_program_has_named_and_only_to_what_may_travel(carrying: Carrying) -> None:
    ONE.set("mine")
    hostile = pack_carrier({"one": TOO_LONG, "two": "x", "fleetlm_serving": 1, "second": 2})
    assert in_a_context(carrying, hostile) == ["mine", 2]
    assert in_a_context(carrying, b"\xc1 no carrier") == ["mine", None]
    assert in_a_context(carrying, None) == ["mine", None]


def test_variables_may_be_named_while_another_thread_goes_through_them(carrying: Carrying) -> None:
    class Added:
        """A value whose text, which the warning has, names another variable."""

        def __repr__(self) -> str:
            carrying.add(ContextVar("three"), "three")
            carrying.remove("second")
            return "added"

    ONE.set(Added())
    TWO.set("t")
    assert carrying.values() == {"second": "t"}
    assert set(carrying.variables) == {"one", "three"}


def test_names_and_their_number_are_checked() -> None:
    carrying = Carrying()
    with pytest.raises(TypeError, match="not a contextvars"):
        carrying.add("one", "one")  # type: ignore[arg-type]
    for name in ("", "x" * 65, "é", "a\nb", "\x7f"):
        with pytest.raises(ValueError, match="is not a name"):
            carrying.add(ONE, name)
    carrying.add(ONE, "one")
    carrying.add(ONE, "one")
    with pytest.raises(ValueError, match="another context variable"):
        carrying.add(TWO, "one")
    for number in range(MAX_CARRIED - 1):
        carrying.add(ContextVar(f"more {number}"), f"more {number}")
    with pytest.raises(ValueError, match="8 context variables travel already"):
        carrying.add(TWO, "two")
    assert carrying.is_active
    for name in [*carrying.variables]:
        carrying.remove(name)
    assert not carrying.is_active


def test_a_variable_travels_under_its_own_name_unless_another_is_given() -> None:
    fleetlm.carry(ONE)
    fleetlm.carry(TWO, "second")
    try:
        assert CARRYING.variables == {"one": ONE, "second": TWO}
        with pytest.raises(TypeError, match="not a contextvars"):
            fleetlm.carry(5)  # type: ignore[arg-type]
    finally:
        CARRYING.remove("one")
        CARRYING.remove("second")


def test_a_block_sets_what_came_with_a_call_and_takes_it_back() -> None:
    fleetlm.carry(ONE)
    try:
        ONE.set("before")
        caller: Any = None
        for carrier, inside in ((pack_carrier({"one": "r-1"}), "r-1"), (None, "before"), (b"\xc1", "before")):
            message = Invoke("", ("x",), {}, carrier=carrier) if carrier else "x"
            call = Call(message, caller, 1, 9.0, lambda: 0.0)
            assert call.message == "x"
            with contextlib.suppress(ZeroDivisionError), fleetlm.carried(call):
                assert ONE.get() == inside
                raise ZeroDivisionError
            assert ONE.get() == "before"
    finally:
        CARRYING.remove("one")


def test_a_tracer_gets_the_work_of_its_own_node_only(carrying: Carrying) -> None:
    class Tracer:
        served: Served

        def ask(self, *_args: Any) -> Any:
            raise NotImplementedError

        async def serve(self, work: Any, served: Served) -> Any:
            self.served = served
            return await work

    async def work() -> str:
        return "done"

    tracer = Tracer()
    carrying.trace(PID.node, PID.incarnation, tracer)
    with pytest.raises(ValueError, match="traced already"):
        carrying.trace(PID.node, PID.incarnation, tracer)
    context = contextvars.copy_context()
    request = Invoke("work", (), {}, carrier=pack_carrier({"one": 1}))
    request.came = 3.0
    traced = carrying.serve(context, work(), PID, "name", "Worker", request, None, request.carrier)
    assert asyncio.run(traced) == "done"  # type: ignore[arg-type]
    assert tracer.served == Served(PID, "name", "Worker", request, None, {"one": 1}, 3.0)
    other, running = Pid(PID.node, 2, 7), work()
    assert carrying.serve(context, running, other, None, "Worker", request, None, request.carrier) is running
    running.close()
    carrying.untrace(PID.node, PID.incarnation)
    carrying.untrace(PID.node, PID.incarnation)
    assert carrying.tracer_of(PID.node, PID.incarnation) is None
