from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, strategies as st

from fleetlm.directory.subscriptions import Subscription
from fleetlm.messages import NodeDown, NodeDraining, NodeUndrained, NodeUp
from fleetlm.runtime.events import Event, EventHub, RecentEvents
from tests.support.session_fakes import turns, virtual

A, B = "fleetlm@10.0.0.1", "fleetlm@10.0.0.2"


async def read(subscription: Subscription, count: int) -> list[Event]:
    return [await anext(subscription) for _ in range(count)]


@virtual
async def test_a_subscription_starts_with_the_present() -> None:
    hub = EventHub(10)
    hub.up(NodeUp(A, 1))
    hub.up(NodeUp(B, 2))
    hub.down(NodeDown(A, 1, "left"))
    events = hub.subscribe()
    hub.up(NodeUp(A, 3))
    assert await read(events, 2) == [NodeUp(B, 2), NodeUp(A, 3)]


@virtual
async def test_a_waiting_subscriber_hears_every_change() -> None:
    hub = EventHub(10)
    events = hub.subscribe()
    waiting = asyncio.ensure_future(anext(events))
    await turns()
    hub.up(NodeUp(A, 1))
    hub.down(NodeDown(A, 1, "left"))
    assert await waiting == NodeUp(A, 1)
    assert await anext(events) == NodeDown(A, 1, "left")


@virtual
async def test_subscribers_are_independent() -> None:
    hub = EventHub(10)
    first, second = hub.subscribe(), hub.subscribe()
    hub.up(NodeUp(A, 1))
    first.close()
    hub.down(NodeDown(A, 1, "left"))
    assert [each async for each in first] == [NodeUp(A, 1)]
    assert await read(second, 2) == [NodeUp(A, 1), NodeDown(A, 1, "left")]


@virtual
async def test_the_end_of_the_node_ends_iterations_after_what_is_queued() -> None:
    hub = EventHub(10)
    busy, idle = hub.subscribe(), hub.subscribe()

    async def everything(subscription: Subscription[Event]) -> list[Event]:
        return [each async for each in subscription]

    hub.up(NodeUp(A, 1))
    await anext(idle)
    waiting = asyncio.ensure_future(everything(idle))
    await turns()
    hub.close()
    assert await waiting == []
    assert await everything(busy) == [NodeUp(A, 1)]
    assert await everything(busy) == []


@virtual
async def test_a_subscription_after_the_end_ends_at_once() -> None:
    hub = EventHub(10)
    hub.close()
    assert [each async for each in hub.subscribe()] == []


@virtual
async def test_two_tasks_cannot_share_a_subscription() -> None:
    hub = EventHub(10)
    events = hub.subscribe()
    waiting = asyncio.ensure_future(anext(events))
    await turns()
    with pytest.raises(RuntimeError, match="two tasks"):
        await anext(events)
    hub.up(NodeUp(A, 1))
    assert await waiting == NodeUp(A, 1)


@virtual
async def test_a_slow_subscriber_gets_the_difference_to_the_present() -> None:
    hub = EventHub(4)
    events = hub.subscribe()
    hub.up(NodeUp(A, 1))
    hub.up(NodeUp(B, 2))
    await read(events, 2)
    for incarnation in range(3, 20):
        hub.down(NodeDown(A, incarnation - 1, "left"))
        hub.up(NodeUp(A, incarnation))
    hub.down(NodeDown(B, 2, "left"))
    told = []
    while len(events._queue):
        told.append(await anext(events))
    assert len(told) <= 5
    first, *rest = told
    assert isinstance(first, NodeDown)
    assert (first.node, first.incarnation) == (A, 1)
    assert "too slowly" in first.reason
    assert [each for each in rest if each.node == A][-1] == NodeUp(A, 19)
    assert [type(each) for each in rest if each.node == B] == [NodeDown]


@virtual
async def test_a_snapshot_beyond_the_limit_is_still_whole() -> None:
    hub = EventHub(3)
    ups = [NodeUp(f"fleetlm@10.0.1.{n}", n) for n in range(10)]
    for up in ups:
        hub.up(up)
    assert await read(hub.subscribe(), 10) == ups


steps = st.lists(st.sampled_from(["a", "b", "c", "read"]), max_size=60)


@given(steps, st.integers(1, 6))
def test_ups_and_downs_alternate_and_end_with_the_truth(steps: list[str], limit: int) -> None:
    async def main() -> None:
        hub = EventHub(limit)
        events = hub.subscribe()
        up: dict[str, int] = {}
        told: list[Event] = []
        for incarnation, step in enumerate(steps):
            if step == "read":
                if events._queue:
                    told.append(await anext(events))
            elif step in up:
                hub.down(NodeDown(step, up.pop(step), "left"))
            else:
                up[step] = incarnation
                hub.up(NodeUp(step, incarnation))
            assert len(events._queue) <= max(limit, 12)  # twice the longest difference
        while events._queue:
            told.append(await anext(events))
        seen: dict[str, int] = {}
        for event in told:
            if isinstance(event, NodeUp):
                assert event.node not in seen
                seen[event.node] = event.incarnation
            else:
                assert isinstance(event, NodeDown)
                assert seen.pop(event.node) == event.incarnation
        assert seen == up

    asyncio.run(main())


@virtual
async def test_a_drain_is_present_until_it_is_undone_or_its_node_has_gone() -> None:
    hub = EventHub(10)
    reader = hub.subscribe()
    hub.up(NodeUp(A, 1))
    hub.publish(NodeDraining(A, 5.0, "api"))
    hub.publish(NodeDraining(A, 9.0, "signal"))
    assert await read(hub.subscribe(), 2) == [NodeUp(A, 1), NodeDraining(A, 9.0, "signal")]
    hub.publish(NodeUndrained(A))
    assert len(hub.subscribe()._queue) == 1
    hub.publish(NodeDraining(A, 9.0, "api"))
    hub.down(NodeDown(A, 1, "left"))
    assert list(hub.present) == []
    told = await read(reader, 6)
    assert [type(each) for each in told] == [
        NodeUp, NodeDraining, NodeDraining, NodeUndrained, NodeDraining, NodeDown,
    ]  # fmt: skip
    assert {each.node for each in told} == {A}


@virtual
async def test_who_reads_too_slowly_learns_that_a_node_drains_no_more() -> None:
    hub = EventHub(2)
    hub.up(NodeUp(A, 1))
    hub.publish(NodeDraining(A, 5.0, "api"))
    events = hub.subscribe()
    assert len(await read(events, 2)) == 2
    for _ in range(5):
        hub.publish(NodeUndrained(A))
        hub.publish(NodeDraining(A, 5.0, "api"))
    hub.publish(NodeUndrained(A))
    left = await read(events, len(events._queue))
    assert left[-1] == NodeUndrained(A)
    assert len(left) <= 2


@virtual
async def test_what_happened_last_is_kept_for_people() -> None:
    times = iter(range(1_000))
    recent = RecentEvents(lambda: next(times))
    hub = EventHub(10, recent.note)
    for event in (NodeUp(A, 1), NodeDraining(A, 5.0, "signal"), NodeUndrained(A), NodeDown(A, 1, "\x1b[2J")):
        hub.publish(event)
    assert recent.rows() == [
        {"wall_ms": 0, "kind": "NodeUp", "text": A},
        {"wall_ms": 1, "kind": "NodeDraining", "text": f"{A}, asked by signal"},
        {"wall_ms": 2, "kind": "NodeUndrained", "text": A},
        {"wall_ms": 3, "kind": "NodeDown", "text": f"{A}: \x1b[2J"},
    ]
    for _ in range(500):
        hub.publish(NodeUp(A, 2))
    assert len(recent.rows()) == 100
    assert recent.rows()[-1]["wall_ms"] == 503
