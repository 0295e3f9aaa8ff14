"""One request for a handler of many actors: multicall and broadcast with types, here and elsewhere."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import pytest

from fleetlm import (
    Actor,
    CallTimeout,
    NoConnection,
    NodeStopped,
    NoHandler,
    NoProcess,
    NotSerializable,
    RemoteError,
    WouldBlock,
    handler,
)
from fleetlm.testing.loop import SimLoop
from fleetlm.wire.blobs import Packed
from fleetlm.wire.codec import Codec
from fleetlm.wire.invocation import Invoke
from tests.sim.fleet import Fleet, collector, simulated


class Store(Actor):
    """Keeps values by key."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    @handler
    async def put(self, key: str, value: Any, *, twice: bool = False) -> int:
        self.values[key] = (value, value) if twice else value
        return len(self.values)

    @handler
    async def get(self, key: str) -> Any:
        return self.values[key]

    @handler
    async def wait(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "waited"


class Strict(Store):
    """Overrides a handler."""

    async def get(self, key: str) -> Any:
        if key not in self.values:
            raise LookupError(key)
        return self.values[key]


@dataclass
class Unknown:
    """A class that no node has registered."""


@simulated
async def test_the_results_of_all_nodes_come_in_the_order_of_the_targets(fleet: Fleet) -> None:
    a, b, c = await fleet.mesh(3)
    for node in (a, b, c):
        await node.start_actor(Store, name="store")
    stores = a.refs(Store, "store")
    assert stores.targets == [("store", node.name) for node in (a, b, c)]
    assert await stores.multicall(Store.put, "k", (1, {2}), twice=True) == [1, 1, 1]
    assert await a.refs(Store, [("store", c.name), "store"]).multicall(Store.put, "own", 5) == [2, 2]
    assert await stores.multicall(Store.get, key="k") == [((1, {2}), (1, {2}))] * 3
    assert await a.refs(Store, []).multicall(Store.get, "k") == []


@simulated
async def test_each_target_has_its_own_failure_as_a_value(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    here, there = await a.start_actor(Store), await b.start_actor(Strict)
    plain = b.spawn(collector([]))
    ended = await b.start_actor(Store)
    b.exit(ended.pid)
    await asyncio.sleep(1)
    targets: list[Any] = [
        there, here.pid, ("store", "fleetlm@10.0.0.9"), "nobody", ended.pid, plain,
        a.registry.ref(Store, "leader"),
    ]  # fmt: skip
    await here.call(Store.put, "k", 7)
    results = await a.refs(Store, targets).multicall(Store.get, "k")
    kinds = [type(each) for each in results]
    assert kinds == [RemoteError, int, NoConnection, NoProcess, NoProcess, NoHandler, NoProcess]
    assert "LookupError" in str(results[0])
    assert len(a.refs(Store, targets).targets) == len(targets) - 1
    results = await a.refs(Store, [here, there]).multicall(Store.get)  # type: ignore[call-arg]
    assert [type(each) for each in results] == [NoHandler, NoHandler]


@simulated
async def test_a_multicall_is_encoded_once_and_ends_at_its_limit(fleet: Fleet) -> None:
    a, b, c = await fleet.mesh(3)
    refs = a.refs(Store, [await node.start_actor(Store) for node in (a, b, c)])
    packed: list[Any] = []

    class Counting(Codec):
        def pack_part(self, value: Any) -> Packed:
            packed.append(value)
            return super().pack_part(value)

    a._outbound._codec = Counting()
    began = SimLoop.current().time()
    results = await refs.within(2).multicall(Store.wait, 60.0)
    assert [type(each) for each in results] == [CallTimeout] * 3
    assert SimLoop.current().time() - began == pytest.approx(2, abs=0.1)
    assert packed.count(["wait", [60.0], {}]) == 1
    packed.clear()
    assert await refs.broadcast(Store.put, "k", 1) == 3
    assert packed.count(["put", ["k", 1], {}]) == 1
    assert not any(type(each) is Invoke for each in packed), "it travels as a cast does"
    await asyncio.sleep(1)
    assert await refs.multicall(Store.get, "k") == [1, 1, 1]


@simulated
async def test_a_broadcast_runs_the_handler_in_each_actor_and_passes_over_the_others(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await fleet.mesh(2)
    here, there = await a.start_actor(Store), await b.start_actor(Store)
    targets: list[Any] = [here, there, "nobody", ("store", "fleetlm@10.0.0.9")]
    refs = a.refs(Store, targets)
    assert await refs.broadcast(Store.put, "k", 1, twice=True) == 2
    await asyncio.sleep(1)
    assert await here.call(Store.get, "k") == await there.call(Store.get, "k") == (1, 1)
    caplog.set_level(logging.WARNING, "fleetlm")
    assert await refs.broadcast(Store.put, "k") == 2  # type: ignore[call-arg]
    await asyncio.sleep(1)
    assert caplog.text.count("drops a cast") == 2
    await a.stop()
    with pytest.raises(NodeStopped):
        await refs.broadcast(Store.put, "k", 2)


@simulated
async def test_members_of_a_group_are_found_at_each_use_and_each_gets_one_request(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    refs = b.groups.refs(Store, "stores")
    assert await refs.multicall(Store.put, "k", 1) == []
    assert await refs.broadcast(Store.put, "k", 1) == 0
    for node in (a, b):
        pid = (await node.start_actor(Store)).pid
        node.groups.join("stores", pid, pid)
    await asyncio.sleep(1)
    assert refs.targets == list(dict.fromkeys(b.groups.members("stores")))
    assert await refs.multicall(Store.put, "k", 1) == [1, 1]
    assert await refs.broadcast(Store.put, "j", 2) == 2


@simulated
async def test_what_cannot_be_sent_names_the_argument_and_reaches_nobody(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    refs = a.refs(Store, [await b.start_actor(Store), await a.start_actor(Store)])
    for use in (refs.multicall, refs.broadcast):
        with pytest.raises(NotSerializable, match=r"argument 2 of Store\.put, at \[0\]"):
            await use(Store.put, "k", [Unknown()])
        with pytest.raises(TypeError, match="is not a handler of Store"):
            await use(Actor.init)
    await asyncio.sleep(1)
    assert await refs.multicall(Store.put, "j", 1) == [1, 1]


@simulated
async def test_an_actor_without_room_gets_a_broadcast_last_or_not_at_all(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2, mailbox_limit=1)
    stuck, free = await a.start_actor(Store), await b.start_actor(Store)
    busy = asyncio.create_task(stuck.within(60).call(Store.wait, 30.0))
    await asyncio.sleep(0.1)
    await stuck.cast(Store.put, "k", 0)
    refs = a.refs(Store, [stuck, free])
    with pytest.raises(WouldBlock):
        stuck.cast_nowait(Store.put, "k", 1)
    assert await refs.within(1).broadcast(Store.put, "k", 2) == 1
    assert await free.call(Store.get, "k") == 2
    sending = asyncio.create_task(refs.within(60).broadcast(Store.put, "k", 3))
    await asyncio.sleep(1)
    assert not sending.done()
    assert await free.call(Store.get, "k") == 3
    assert await busy == "waited"
    assert await sending == 2


@simulated
async def test_one_target_in_place_of_many_is_refused(fleet: Fleet) -> None:
    a, _ = await fleet.mesh(2)
    pid = (await a.start_actor(Store)).pid
    for wrong in (pid, ("store", a.name)):
        with pytest.raises(TypeError, match="is one target: give a list"):
            a.refs(Store, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is not an Actor class"):
        a.refs(int, "store")  # type: ignore[type-var]
    with pytest.raises(TypeError, match="is not an Actor class"):
        a.groups.refs(int, "stores")  # type: ignore[type-var]
    assert repr(a.refs(Store, "store").within(2)) == "<ActorRefs Store within 2 s>"


@simulated
async def test_while_debugging_an_actor_here_gets_a_copy_too(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2, debug=True)
    here, there = await a.start_actor(Store), await b.start_actor(Store)
    value = [1]
    assert await a.refs(Store, [here, there]).multicall(Store.put, "k", value) == [1, 1]
    assert await a.refs(Store, [here]).broadcast(Store.put, "j", value) == 1
    value.append(2)
    assert await a.refs(Store, [here, there]).multicall(Store.get, "k") == [[1], [1]]
    assert await here.call(Store.get, "j") == [1]
