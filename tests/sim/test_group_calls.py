"""Calls to groups whose members refuse, die, drain and come: at which member they are made, and how often."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleetlm import (
    Actor,
    Call,
    CallTimeout,
    Draining,
    GroupRef,
    Node,
    NodeLost,
    NoHandler,
    NoMember,
    NotDelivered,
    OutcomeUnknown,
    Process,
    ProcessDown,
    RemoteError,
    WouldBlock,
    handler,
    retry,
)
from fleetlm.node import parts_of
from fleetlm.testing import Fleet


class Model(Actor):
    """A member of "models" that counts what it is asked, and fails as its node's plan says."""

    def __init__(self, runs: Counter[Any], plan: dict[str, str] | None = None) -> None:
        self.runs = runs
        self.plan = {} if plan is None else plan

    async def init(self) -> None:
        self.node.groups.join("models", self.pid)

    @handler(concurrent=True)
    async def work(self, number: int, takes_s: float = 0.0) -> str:
        self.runs[number] += 1
        match self.plan.get(self.node.name):
            case "raise":
                raise ValueError(number)
            case "die":
                self.node.exit(self.pid, "kill")
                await asyncio.sleep(60)
            case "hang":
                await asyncio.sleep(60)
        await asyncio.sleep(takes_s)
        return self.node.name

    @handler(concurrent=True)
    async def count(self, to: int) -> AsyncIterator[tuple[str, int]]:
        self.runs["streams"] += 1
        for number in range(to):
            if number == 2 and self.plan.get(self.node.name) == "die":
                self.node.exit(self.pid, "kill")
            if self.plan.get(self.node.name) == "die at once":
                self.node.exit(self.pid, "kill")
                await asyncio.sleep(60)
            yield self.node.name, number
            await asyncio.sleep(0.01)


class Busy(Model):
    """Has no handler that works yet, as a node with an older program."""

    @handler
    async def other(self) -> None: ...


async def refuse(process: Process, asked: list[str], group: str = "models") -> None:
    """Refuse each call, as a node does that is draining."""
    process.node.groups.join(group, process.pid)
    async for message in process.mailbox:
        assert isinstance(message, Call)
        asked.append(process.node.name)
        message.refuse(Draining(process.node.name))


async def answer(process: Process, runs: Counter[Any]) -> None:
    """Answer each call with the name of the node."""
    process.node.groups.join("models", process.pid)
    async for message in process.mailbox:
        assert isinstance(message, Call)
        runs[message.message] += 1
        message.reply(process.node.name)


async def members(fleet: Fleet, node: Node, count: int, group: str = "models") -> None:
    await fleet.until(lambda: len(node.groups.members(group)) == count)


async def test_a_call_that_a_member_refuses_is_answered_by_another(fleet: Fleet) -> None:
    front, one, two = await fleet.start(3)
    asked: list[str] = []
    runs = Counter[Any]()
    one.spawn(refuse, asked)
    two.spawn(answer, runs)
    await members(fleet, front, 2)
    before = fleet.now
    for number in range(20):
        assert await front.groups.call("models", number, attempts=2) == two.name
    assert set(runs.values()) == {1}
    assert 4 < len(asked) <= 12  # As often as it was picked first, within the budget of 10 and 2.
    assert fleet.now - before < 0.5  # The other member is asked at once.


async def test_a_member_is_not_asked_again_while_there_is_another_nor_is_its_node(fleet: Fleet) -> None:
    front, one, two, three = await fleet.start(4, retry_reserve=100)
    asked: list[str] = []
    for node in (one, one, two, two, three):
        node.spawn(refuse, asked)
    await members(fleet, front, 5)
    for attempts in (1, 2, 3):
        asked.clear()
        with pytest.raises(Draining):
            await front.groups.call("models", "hello", attempts=attempts)
        assert len(set(asked)) == len(asked) == attempts
    asked.clear()
    before = fleet.now
    with pytest.raises(Draining) as caught:
        await front.groups.call("models", "hello", attempts=5)
    assert Counter(asked) == {one.name: 2, two.name: 2, three.name: 1}
    assert len(set(asked[:3])) == 3
    assert fleet.now - before < 0.2
    assert "no attempt was left (attempts=5)" in caught.value.__notes__[0]
    asked.clear()
    with pytest.raises(Draining):
        await front.groups.call("models", "hello", attempts=6)
    assert asked[5] != asked[4]  # After a pause, all but the last one.


async def test_members_that_are_not_wanted_do_not_count_as_others_to_try(fleet: Fleet) -> None:
    front, one, two = await fleet.start(3, retry_reserve=100)
    refusing = one.spawn(refuse, [], "others")
    two.spawn(Model, Counter[Any]())
    one.groups.join("models", refusing, meta={"model": "large"})
    await members(fleet, front, 2)
    models = front.groups.ref(Model, "models", attempts=5, where={"model": "large"})
    before = fleet.now
    with pytest.raises(NoHandler, match=r"attempts=5"):
        await models.call(Model.work, 1)
    assert fleet.now - before > 0.05, "a pause before each repetition at the same member"


async def test_a_call_that_may_have_run_is_not_made_again(fleet: Fleet) -> None:
    front, one, two = await fleet.start(3)
    runs = Counter[Any]()
    plan = {one.name: "die", two.name: "die"}
    one.spawn(Model, runs, plan)
    two.spawn(Model, runs, plan)
    await members(fleet, front, 2)
    with pytest.raises(ProcessDown):
        await front.groups.call("models", Model.work, 1)
    assert runs == {1: 1}
    await members(fleet, front, 1)
    with pytest.raises(ProcessDown) as caught:
        await front.groups.call("models", Model.work, 2)
    assert not hasattr(caught.value, "__notes__")


async def test_an_idempotent_call_is_made_again_at_another_member(fleet: Fleet) -> None:
    front, one, two = await fleet.start(3)
    runs = Counter[Any]()
    plan = {one.name: "die"}
    one.spawn(Model, runs, plan)
    two.spawn(Model, runs, plan)
    await members(fleet, front, 2)
    models = front.groups.ref(Model, "models", by="round_robin", idempotent=True)
    assert [await models.call(Model.work, number) for number in range(2)] == [two.name] * 2
    assert sorted(runs.values()) == [1, 2]


async def test_a_member_that_raises_is_not_replaced_by_another(fleet: Fleet) -> None:
    front, one, two = await fleet.start(3)
    runs = Counter[Any]()
    plan = {one.name: "raise", two.name: "raise"}
    one.spawn(Model, runs, plan)
    two.spawn(Model, runs, plan)
    await members(fleet, front, 2)
    with pytest.raises(RemoteError, match="ValueError: 7"):
        await front.groups.call("models", Model.work, 7, idempotent=True)
    assert runs == {7: 1}


async def test_the_time_of_a_call_is_for_all_attempts_together(fleet: Fleet) -> None:
    front, one, two = await fleet.start(3)
    runs = Counter[Any]()
    asked: list[str] = []
    one.spawn(Model, runs, {one.name: "hang"})
    two.spawn(refuse, asked)
    await members(fleet, front, 2)
    before = fleet.now
    with pytest.raises(CallTimeout) as caught:
        await front.groups.call("models", Model.work, 1, by="round_robin", timeout=3.0, idempotent=True)
    assert fleet.now - before == pytest.approx(3.0, abs=0.1)
    assert caught.value.timeout_s <= 3.0


async def test_an_empty_group_is_an_error_that_says_so_unless_a_member_comes(fleet: Fleet) -> None:
    front, other = await fleet.start(2)
    with pytest.raises(NoMember, match="'models' has no members") as caught:
        await front.groups.call("models", Model.work, 1)
    assert isinstance(caught.value, NotDelivered)
    models = front.groups.ref(Model, "models", attempts=8)
    calling = asyncio.ensure_future(models.call(Model.work, 1))
    await fleet.sleep(0.02)
    other.spawn(Model, Counter[Any]())
    assert await calling == other.name


async def test_members_that_lack_a_handler_are_passed_over(fleet: Fleet) -> None:
    """As in an upgrade, where some nodes run the former program."""
    front, one, two = await fleet.start(3)
    runs = Counter[Any]()
    one.spawn(Model, runs)
    two.spawn(Busy, runs)
    await members(fleet, front, 2)
    models = front.groups.ref(Busy, "models")
    for _ in range(8):
        await models.call(Busy.other)
    calls = (models.retrying(1).call(Busy.other) for _ in range(20))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {NoHandler, type(None)}


async def test_a_function_that_is_no_handler_is_refused_before_anything_is_sent(fleet: Fleet) -> None:
    (front,) = await fleet.start(1)
    for wrong in (refuse, Model(Counter()).work, len):
        with pytest.raises(TypeError):
            await front.groups.call("models", wrong)
    with pytest.raises(TypeError, match="arguments go with a handler"):
        await front.groups.call("models", {"a": "message"}, 1)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="need a key"):
        await front.groups.call("models", "x", by="key")
    with pytest.raises(ValueError, match="attempts is 0"):
        front.groups.stream("models", "x", attempts=0)
    with pytest.raises(TypeError, match="not an Actor class"):
        front.groups.ref(refuse, "models")  # type: ignore[type-var]
    with pytest.raises(ValueError, match="unknown rule"):
        front.groups.ref(Model, "models", by="fastest")  # type: ignore[arg-type]


async def test_a_reference_to_a_group_says_what_it_is_and_is_never_changed(fleet: Fleet) -> None:
    (front,) = await fleet.start(1)
    models = front.groups.ref(Model, "models", "sticky", "s1")
    assert repr(models.within(2)) == "<GroupRef Model in 'models' by sticky within 2 s>"
    assert repr(models.keyed("s2").retrying(5, idempotent=True)) == "<GroupRef Model in 'models' by sticky>"
    with pytest.raises(ValueError, match="a key needs one of them"):
        front.groups.ref(Model, "models").keyed("k")
    with pytest.raises(TypeError, match="attempts"):
        models.retrying(1.5)  # type: ignore[arg-type]
    assert isinstance(models.retrying(), GroupRef)


async def test_a_handler_cannot_have_a_name_of_another_class(fleet: Fleet) -> None:
    (front,) = await fleet.start(1)
    with pytest.raises(TypeError, match=r"Busy\.other is not a handler of Model"):
        await front.groups.ref(Model, "models").call(Busy.other)  # type: ignore[arg-type]


async def test_a_cast_goes_to_one_member_that_can_be_reached(fleet: Fleet) -> None:
    front, one = await fleet.start(2)
    runs = Counter[Any]()
    one.spawn(Model, runs)
    gone = front.spawn(Model, runs)
    await members(fleet, front, 2)
    parts_of(front).local.boxes.pop(gone.number)  # As if it ended in this moment.
    for number in range(10):
        await front.groups.ref(Model, "models", attempts=2).cast(Model.work, number)
    await fleet.until(lambda: len(runs) == 10)
    assert set(runs.values()) == {1}
    front.exit(gone, "kill")


async def test_a_sticky_key_stays_when_members_join_and_moves_when_its_member_goes(fleet: Fleet) -> None:
    front, *workers = await fleet.start(4)
    runs = Counter[Any]()
    for worker in workers:
        worker.spawn(Model, runs)
    await members(fleet, front, 3)
    sticky = front.groups.ref(Model, "models", by="sticky", key="")

    async def where() -> list[str]:
        return [await sticky.keyed(f"s{number}").call(Model.work, number) for number in range(60)]

    before = await where()
    assert len(set(before)) == 3
    new = await fleet.node()
    new.spawn(Model, runs)
    await members(fleet, front, 4)
    assert await where() == before
    await workers[0].stop()
    after = await where()
    for old, now in zip(before, after, strict=True):
        assert (old == now) == (old != workers[0].name)
    assert await where() == after


async def test_two_nodes_agree_about_a_new_sticky_key(fleet: Fleet) -> None:
    one, two, three = await fleet.start(3)
    for node in (one, two, three):
        node.spawn(Model, Counter[Any]())
    for node in (one, two, three):
        await members(fleet, node, 3)
    for key in range(40):
        assert len({node.groups.pick("models", "sticky", key) for node in (one, two, three)}) == 1


async def test_a_stream_begins_at_another_member_if_one_refuses_or_has_no_items(fleet: Fleet) -> None:
    front, one, two, three = await fleet.start(4)
    asked: list[str] = []
    runs = Counter[Any]()
    plan = {two.name: "die at once"}
    one.spawn(refuse, asked)
    two.spawn(Model, runs, plan)
    three.spawn(Model, runs)
    await members(fleet, front, 3)
    models = front.groups.ref(Model, "models", by="round_robin", idempotent=True)
    for _ in range(3):
        items = [item async for item in models.stream(Model.count, 5)]
        assert items == [(three.name, number) for number in range(5)]
    assert runs["streams"] == 4  # And "one" has no handlers at all.


async def test_a_stream_is_not_repeated_after_its_first_item(fleet: Fleet) -> None:
    front, one, two = await fleet.start(3)
    runs = Counter[Any]()
    plan = {one.name: "die", two.name: "die"}
    one.spawn(Model, runs, plan)
    two.spawn(Model, runs, plan)
    await members(fleet, front, 2)
    stream = front.groups.stream("models", Model.count, 5, idempotent=True)
    assert [(await anext(stream))[1] for _ in range(2)] == [0, 1]
    for _ in range(2):
        with pytest.raises(ProcessDown):
            await anext(stream)
    assert runs["streams"] == 1


async def test_a_stream_that_nobody_serves_raises_the_same_error_each_time(fleet: Fleet) -> None:
    front, one = await fleet.start(2)
    asked: list[str] = []
    one.spawn(refuse, asked)
    await members(fleet, front, 1)
    stream = front.groups.stream("models", "items", attempts=2)
    for _ in range(3):
        with pytest.raises(Draining) as caught:
            await anext(stream)
        assert len(caught.value.__notes__) == 1
    assert len(asked) == 2


async def test_a_wait_for_the_first_item_that_times_out_loses_nothing(fleet: Fleet) -> None:
    front, one, two = await fleet.start(3)
    runs = Counter[Any]()
    asked: list[str] = []
    one.spawn(refuse, asked)
    stream = front.groups.ref(Model, "models", by="round_robin", attempts=9).stream(Model.count, 3)
    for _ in range(4):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.003)
    two.spawn(Model, runs)
    assert [number async for _, number in stream] == [0, 1, 2]


async def test_a_stream_that_is_given_up_cancels_its_member_and_ends(fleet: Fleet) -> None:
    front, one = await fleet.start(2)
    runs = Counter[Any]()
    one.spawn(Model, runs)
    await members(fleet, front, 1)
    async with front.groups.stream("models", Model.count, 1_000_000) as items:
        assert await anext(items) == (one.name, 0)
    assert [item async for item in items] == []
    dropped = front.groups.stream("models", Model.count, 1_000_000)
    await anext(dropped)
    del dropped
    unused = front.groups.stream("models", Model.count, 3)
    await unused.aclose()
    assert [item async for item in unused] == []
    await fleet.until(lambda: not parts_of(front).driver.sessions[one.name].calls)


async def test_cancelling_a_call_ends_it_at_once_wherever_it_is(fleet: Fleet) -> None:
    front, one = await fleet.start(2, retry_pause_min_s=1.0)
    runs = Counter[Any]()
    asked: list[str] = []
    one.spawn(refuse, asked)
    await members(fleet, front, 1)
    for after_s in (0.0001, 0.02):
        before = fleet.now
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(front.groups.call("models", Model.work, 1, attempts=9), after_s)
        assert fleet.now - before == pytest.approx(after_s)
    assert runs == {}


async def test_a_handler_has_no_more_time_for_attempts_than_its_own_caller(fleet: Fleet) -> None:
    front, one = await fleet.start(2)
    asked: list[str] = []
    one.spawn(refuse, asked, "refusing")
    ended: list[tuple[float, Exception]] = []

    class Relay(Actor):
        @handler
        async def ask(self) -> None:
            try:
                await self.node.groups.call("refusing", "x", attempts=1_000)
            except Exception as error:
                ended.append((fleet.now, error))
                raise

        @handler
        async def ask_alone(self) -> None:
            await retry(lambda: self.node.call(("nobody", self.node.name), "x"), attempts=1_000)

    relay_node = await fleet.node(retry_reserve=1_000, retry_saved=1_000)
    relay = await relay_node.start_actor(Relay)
    await members(fleet, relay_node, 1, "refusing")
    began = fleet.now
    with pytest.raises((RemoteError, CallTimeout)):
        await front.ref(Relay, relay.pid).within(2.0).call(Relay.ask)
    await fleet.sleep(0.1)
    assert [isinstance(error, Draining) for _, error in ended] == [True]
    assert ended[0][0] - began <= 2.0
    before = fleet.now
    with pytest.raises((RemoteError, CallTimeout)):
        await front.ref(Relay, relay.pid).within(2.0).call(Relay.ask_alone)
    assert fleet.now - before <= 2.1


@pytest.mark.parametrize("count", [200, 2_000])
async def test_in_a_storm_the_attempts_are_a_tenth_more_than_the_calls(fleet: Fleet, count: int) -> None:
    front, one, two, three = await fleet.start(4)
    asked: list[str] = []
    for node in (one, two, three):
        node.spawn(refuse, asked)
    await members(fleet, front, 3)
    before = fleet.now
    calls = (front.groups.call("models", "x", attempts=4, timeout=60.0) for _ in range(count))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {Draining, WouldBlock}
    assert fleet.now - before < 10
    assert len(asked) <= count * 1.1 + 10 + 1


@pytest.mark.parametrize("seed", range(6))
async def test_no_call_runs_twice_and_none_that_ran_is_called_undelivered(fleet: Fleet, seed: int) -> None:
    """Members die, are killed, come, and their nodes drain, restart and are cut off, while others call."""
    rng = random.Random(seed)
    fronts = await fleet.start(2, retry_ratio=1.0, retry_reserve=50)
    runs = Counter[Any]()
    workers = [await fleet.node() for _ in range(4)]
    for worker in workers:
        worker.spawn(Model, runs)
    for front in fronts:
        await members(fleet, front, 4)
    outcomes: dict[int, Any] = {}

    async def call(number: int) -> None:
        models = fronts[number % 2].groups.ref(Model, "models", attempts=4).within(3.0)
        try:
            outcomes[number] = await models.call(Model.work, number, rng.choice([0.0, 0.0, 0.3]))
        except (NotDelivered, OutcomeUnknown) as error:
            outcomes[number] = error

    async def trouble() -> None:
        for _ in range(12):
            await fleet.sleep(rng.uniform(0.05, 0.6))
            at = rng.randrange(len(workers))
            match rng.randrange(4):
                case 0:
                    workers[at] = await fleet.restart(workers[at])
                    workers[at].spawn(Model, runs)
                case 1:
                    await workers[at].stop()
                    workers[at] = await fleet.restart(workers[at])
                    workers[at].spawn(Model, runs)
                case 2:
                    for pid in workers[at].groups.local_members("models"):
                        workers[at].exit(pid, "kill")
                    workers[at].spawn(Model, runs)
                case 3:
                    fleet.partition([workers[at]])
                    await fleet.sleep(rng.uniform(0.1, 12))
                    fleet.heal()

    making = asyncio.ensure_future(trouble())
    calling = []
    for number in range(300):
        calling.append(asyncio.ensure_future(call(number)))
        await fleet.sleep(0.02)
    await asyncio.gather(making, *calling)
    done = [number for number, outcome in outcomes.items() if isinstance(outcome, str)]
    assert len(outcomes) == 300
    assert len(done) > 200
    for number, outcome in outcomes.items():
        if isinstance(outcome, str):
            assert runs[number] == 1
        elif isinstance(outcome, NotDelivered):
            assert runs[number] == 0
        else:
            assert runs[number] <= 1


async def test_a_lost_node_is_passed_over_by_calls_that_may_run_twice(fleet: Fleet) -> None:
    front, one, two = await fleet.start(3)
    runs = Counter[Any]()
    one.spawn(Model, runs)
    two.spawn(Model, runs)
    await members(fleet, front, 2)
    at = front.groups.pick("models", "key", "k")
    models = front.groups.ref(Model, "models", by="key", key="k").within(30.0)
    calling = [
        asyncio.ensure_future(ref.call(Model.work, number, 1.0))
        for number, ref in enumerate((models, models.retrying(idempotent=True)))
    ]
    await fleet.sleep(0.5)
    (lost,) = (node for node in (one, two) if node.name == at.node)
    (other,) = (node for node in (one, two) if node is not lost)
    await fleet.crash(lost)
    with pytest.raises(NodeLost):
        await calling[0]
    assert await calling[1] == other.name
