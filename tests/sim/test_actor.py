"""Actors on two and three nodes: calls over connections, and lost connections."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

import pytest

from fleetlm import (
    Actor,
    ActorRef,
    CallTimeout,
    Crash,
    Down,
    FleetError,
    Node,
    NoHandler,
    NoProcess,
    NotDelivered,
    NotSerializable,
    OutcomeUnknown,
    Pid,
    ProcessDown,
    ProcessExit,
    RemoteError,
    Undecodable,
    handler,
)
from fleetlm.testing.loop import SimLoop
from fleetlm.wire.invocation import Invoke
from tests.sim.fleet import Fleet, simulated


class Worker(Actor):
    """An actor that works, calls others, and records the outcomes."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    async def handle_info(self, message: Any) -> None:
        self.log.append(message)

    async def terminate(self, reason: Any) -> None:
        self.log.append(("terminate", reason))

    @handler
    async def add(self, a: int, b: tuple[int, ...], *, c: int = 0) -> tuple[int, ...]:
        self.log.append((a, b, c))
        return (a, *b, c)

    @handler
    async def work(self, name: str, seconds: float) -> str:
        return await self._work(name, seconds)

    @handler(concurrent=True)
    async def beside(self, name: str, seconds: float) -> str:
        return await self._work(name, seconds)

    async def _work(self, name: str, seconds: float) -> str:
        self.log.append(f"+{name}")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.log.append(f"!{name}")
            raise
        self.log.append(f"-{name}")
        return name

    @handler
    async def relay(self, hops: list[str], seconds: float, own_limit: float) -> str:
        """Ask the worker on the first of these nodes to do the rest."""
        self.log.append(f"+relay {len(hops)}")
        if not hops:
            return await self._work("last", seconds)
        next_one = self.node.ref(Worker, "worker", at=hops[0]).within(own_limit)
        try:
            return await next_one.call(Worker.relay, hops[1:], seconds, own_limit)
        except asyncio.CancelledError:
            self.log.append(f"!relay {len(hops)}")
            raise

    @handler
    async def fail(self, text: str) -> None:
        raise ValueError(text)

    @handler
    async def leave(self, reason: str) -> None:
        raise ProcessExit(reason)

    @handler
    async def unsendable(self) -> object:
        return object()

    @handler
    async def watch(self, pid: Pid) -> None:
        self.process.monitor(pid)


async def workers(fleet: Fleet, count: int) -> tuple[list[Node], list[Worker]]:
    nodes = await fleet.mesh(count)
    made = [Worker() for _ in nodes]
    for node, worker in zip(nodes, made, strict=True):
        await node.start_actor(worker, name="worker")
    return nodes, made


def there(nodes: list[Node]) -> ActorRef[Worker]:
    """A reference on the first node to the second node's worker."""
    return nodes[0].ref(Worker, "worker", at=nodes[1].name)


@simulated
async def test_calls_casts_and_messages_cross_a_connection(fleet: Fleet) -> None:
    nodes, (_, worker) = await workers(fleet, 2)
    ref = there(nodes)
    assert await ref.call(Worker.add, 1, (2, 3), c=4) == (1, 2, 3, 4)
    await ref.cast(Worker.add, 5, b=())
    await ref.send({"raw": (1,)})
    pid = await nodes[0].whereis("worker", at=nodes[1].name)
    assert pid is not None
    assert await nodes[0].ref(Worker, pid).within(1).call(Worker.add, 6, ()) == (6, 0)
    assert await nodes[0].ref(Worker, lambda: pid).call(Worker.add, 7, ()) == (7, 0)
    assert worker.log == [(1, (2, 3), 4), (5, (), 0), {"raw": (1,)}, (6, (), 0), (7, (), 0)]


@simulated
async def test_from_one_sender_casts_and_calls_run_in_order(fleet: Fleet) -> None:
    nodes, (_, worker) = await workers(fleet, 2)
    ref = there(nodes)
    for number in range(50):
        if number % 10 == 9:
            await ref.call(Worker.add, number, ())
        else:
            await ref.cast(Worker.add, number, ())
    assert [entry[0] for entry in worker.log] == list(range(50))


@simulated
async def test_each_outcome_says_what_may_be_done(fleet: Fleet) -> None:
    logging.disable(logging.CRITICAL)
    nodes, (_, worker) = await workers(fleet, 2)
    ref = there(nodes)
    with pytest.raises(RemoteError, match="ValueError: no"):
        await ref.call(Worker.fail, "no")
    with pytest.raises(NoHandler, match="missing 1 required positional argument"):
        await ref.call(Worker.add, 1)  # type: ignore[call-arg]
    with pytest.raises(RemoteError, match="cannot be sent"):
        await ref.call(Worker.unsendable)
    with pytest.raises(NoHandler, match="has no handler 'newer'") as caught:
        await nodes[0].call(("worker", nodes[1].name), Invoke("newer", (), {}))
    assert isinstance(caught.value, NotDelivered)
    with pytest.raises(NotSerializable):
        await ref.call(Worker.add, object(), ())  # type: ignore[arg-type]
    with pytest.raises(NoProcess):
        await nodes[0].ref(Worker, "nobody", at=nodes[1].name).call(Worker.add, 1, ())
    with pytest.raises(CallTimeout):
        await ref.within(0.5).call(Worker.work, "slow", 10)
    await asyncio.sleep(0.1)
    assert worker.log[-2:] == ["+slow", "!slow"]
    with pytest.raises(ProcessDown, match="quota"):
        await ref.call(Worker.leave, "quota")
    assert worker.log[-1] == ("terminate", "quota")


@simulated
async def test_a_request_that_is_none_costs_itself(fleet: Fleet) -> None:
    logging.disable(logging.CRITICAL)
    nodes, (_, worker) = await workers(fleet, 2)
    odd: list[Any] = [
        Invoke(5, (), {}),  # type: ignore[arg-type]
        Invoke(["x"], (), {}),  # type: ignore[arg-type]
        Invoke("add", 5, {}),  # type: ignore[arg-type]
        Invoke("add", None, None),  # type: ignore[arg-type]
        Invoke("add", (), {1: 2}),  # type: ignore[dict-item]
        Invoke("add", (), [("a", 1)]),  # type: ignore[arg-type]
    ]
    for request in odd:
        with pytest.raises((NoHandler, RemoteError, Undecodable, TypeError)):
            await nodes[0].call(("worker", nodes[1].name), request)
        with pytest.raises(NotSerializable):  # It travels as a call or a cast to a handler only.
            await nodes[0].send(("worker", nodes[1].name), request)
        await nodes[1].send("worker", request)
    assert await there(nodes).call(Worker.add, 1, ()) == (1, 0)
    assert worker.log == [(1, (), 0)]


@pytest.mark.parametrize("method", ["work", "beside"])
def test_the_end_of_a_callers_node_cancels_the_handler(method: str) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        nodes, (_, worker) = await workers(fleet, 2)
        asking = asyncio.ensure_future(there(nodes).within(60).call(getattr(Worker, method), "a", 50))
        await asyncio.sleep(1)
        assert worker.log == ["+a"]
        await fleet.crash(nodes[0])
        await asyncio.wait([asking])
        assert isinstance(asking.exception(), OutcomeUnknown)
        await asyncio.sleep(20)
        assert worker.log == ["+a", "!a"]
        assert await nodes[1].ref(Worker, "worker").call(Worker.add, 1, ()) == (1, 0)

    story()


@simulated
async def test_a_caller_that_is_cancelled_cancels_the_handler_over_there(fleet: Fleet) -> None:
    nodes, (_, worker) = await workers(fleet, 2)
    asking = asyncio.ensure_future(there(nodes).call(Worker.work, "a", 50))
    await asyncio.sleep(1)
    asking.cancel()
    await asyncio.sleep(0.5)
    assert worker.log == ["+a", "!a"]
    assert await there(nodes).call(Worker.work, "b", 1) == "b"


@simulated
async def test_the_end_of_an_actors_node_is_an_unknown_outcome(fleet: Fleet) -> None:
    nodes, _ = await workers(fleet, 2)
    asking = asyncio.ensure_future(there(nodes).within(60).call(Worker.work, "a", 50))
    await asyncio.sleep(1)
    await fleet.crash(nodes[1])
    await asyncio.wait([asking])
    assert isinstance(asking.exception(), OutcomeUnknown)
    with pytest.raises(NotDelivered):
        await there(nodes).cast(Worker.work, "b", 1)


@simulated
async def test_a_deadline_travels_through_three_nodes(fleet: Fleet) -> None:
    nodes, made = await workers(fleet, 3)
    hops = [nodes[1].name, nodes[2].name]
    ref = nodes[0].ref(Worker, "worker")
    assert await ref.within(30).call(Worker.relay, hops, 1.0, 60.0) == "last"
    for worker in made:
        worker.log.clear()
    started_at = SimLoop.current().time()
    with pytest.raises(CallTimeout):
        await ref.within(3).call(Worker.relay, hops, 20.0, 60.0)
    assert SimLoop.current().time() - started_at == pytest.approx(3.0, abs=0.02)
    await asyncio.sleep(0.2)
    assert made[2].log == ["+relay 0", "+last", "!last"]
    for number in (0, 1):  # They are cancelled, or their own nested call times out at that very moment.
        relay = f"relay {2 - number}"
        assert made[number].log in ([f"+{relay}"], [f"+{relay}", f"!{relay}"])


@simulated
async def test_a_deadline_ends_what_is_nested_though_no_cancellation_comes_through(fleet: Fleet) -> None:
    nodes, made = await workers(fleet, 3)
    ref = there(nodes)
    asking = asyncio.ensure_future(ref.within(3).call(Worker.relay, [nodes[2].name], 20.0, 60.0))
    await asyncio.sleep(1)
    fleet.net.partition([nodes[0].own_address.ip], [nodes[1].own_address.ip])
    asked_at = SimLoop.current().time() - 1
    await asyncio.sleep(2.5)
    assert SimLoop.current().time() < asked_at + 4
    assert asking.done()
    assert isinstance(asking.exception(), OutcomeUnknown)
    assert made[2].log == ["+relay 0", "+last", "!last"]


@simulated
async def test_monitors_of_actors_get_the_reasons(fleet: Fleet) -> None:
    logging.disable(logging.CRITICAL)
    nodes, (here, _) = await workers(fleet, 2)
    pid = await nodes[0].whereis("worker", at=nodes[1].name)
    assert pid is not None
    await nodes[0].ref(Worker, "worker").call(Worker.watch, pid)
    await asyncio.sleep(0.5)
    await there(nodes).cast(Worker.fail, "as asked")
    await asyncio.sleep(0.5)
    (down,) = here.log
    assert isinstance(down, Down)
    assert isinstance(down.reason, Crash)
    assert (down.target, down.reason.text) == (pid, "as asked")


@pytest.mark.parametrize("seed", range(15))
def test_whatever_happens_every_call_has_one_outcome_and_what_never_ran_never_ran(seed: int) -> None:
    """Make calls in both directions while nodes are cut off and come back, and actors crash."""
    numbers = itertools.count()

    @simulated
    async def story(fleet: Fleet) -> None:
        logging.disable(logging.CRITICAL)
        rng = fleet.loop.rng
        for _ in range(seed):
            rng.random()
        nodes, made = await workers(fleet, 3)
        outcomes: dict[str, Any] = {}

        async def ask(node: Node, to: str) -> None:
            name = f"c{next(numbers)}"
            ref = node.ref(Worker, "worker", at=to).within(rng.choice([0.2, 1.0, 3.0]))
            method = rng.choice([Worker.work, Worker.beside])
            try:
                outcomes[name] = await ref.call(method, name, rng.choice([0.0, 0.05, 0.5]))
            except FleetError as error:
                outcomes[name] = error

        asking = []
        for _ in range(60):
            node, other = rng.sample(nodes, 2)
            asking.append(asyncio.ensure_future(ask(node, other.name)))
            await asyncio.sleep(rng.choice([0.0, 0.01, 0.2]))
            what = rng.random()
            if what < 0.05:
                fleet.net.partition([node.own_address.ip], [other.own_address.ip])
            elif what < 0.15:
                fleet.net.heal()
            elif what < 0.2 and (pid := node.registered().get("worker")) is not None:
                node.exit(pid, rng.choice(["kill", "enough"]))
                await node.join(pid)
                made.append(Worker())
                await node.start_actor(made[-1], name="worker")
        fleet.net.heal()
        await asyncio.wait(asking)
        await asyncio.sleep(30)
        ran = [entry[1:] for worker in made for entry in worker.log if str(entry).startswith("+")]
        done = [entry[1:] for worker in made for entry in worker.log if str(entry).startswith("-")]
        assert len(ran) == len(set(ran))
        assert len(outcomes) == 60
        for name, outcome in outcomes.items():
            if isinstance(outcome, NotDelivered):
                assert name not in ran
            elif outcome == name:
                assert name in done
            else:
                assert isinstance(outcome, OutcomeUnknown), outcome
        assert sum(info.open_calls for node in nodes for info in node.processes()) == 0
        for worker in made:
            run = worker._Actor__run  # type: ignore[attr-defined]
            assert (run._open, run._concurrent) == ({}, {})

    story()
