"""A node drains: what its peers see, what is served and refused, and the report, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest

from fleetlm import (
    Actor,
    Call,
    CallTimeout,
    Draining,
    Node,
    NodeDraining,
    NodeStopped,
    NodeUndrained,
    NodeUp,
    Process,
    RemoteError,
    handler,
)
from fleetlm.core.draining import Step
from fleetlm.node import parts_of
from fleetlm.testing import SimCluster, run

Told = Callable[..., Awaitable[None]]


class Work(Actor):
    """Serves requests that take their time."""

    async def init(self) -> None:
        self.done: list[str] = []

    @handler
    async def slow(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @handler(concurrent=True)
    async def beside(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @handler
    async def note(self, what: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.done.append(what)

    @handler
    async def noted(self) -> list[str]:
        return self.done

    @handler(concurrent=True)
    async def tokens(self, count: int) -> AsyncIterator[int]:
        for nth in range(count):
            await asyncio.sleep(0.5)
            yield nth

    @handler(concurrent=True)
    async def through(self, path: list[str], seconds: float) -> list[str]:
        await asyncio.sleep(seconds)
        if not path:
            return [self.node.name]
        next_one = self.node.ref(Work, "work", at=path[0]).within(60)
        return [self.node.name, *await next_one.call(Work.through, path[1:], seconds)]

    @handler
    async def drain_here(self) -> bool:
        return (await self.node.drain(60)).was_clean


def story(told: Told, count: int = 2, seed: int = 3, **settings: Any) -> None:
    async def main() -> None:
        async with SimCluster(seed=seed) as cluster:
            nodes = await cluster.start(count, **settings)
            await cluster.mesh(timeout=10)
            for node in nodes:
                node.spawn(Work, name="work")
            await asyncio.sleep(0.1)
            await told(cluster, *nodes)

    run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


async def outcome(awaitable: Awaitable[Any]) -> Any:
    return (await asyncio.gather(awaitable, return_exceptions=True))[0]


# ── what peers see ───────────────────────────────────────────────────────────────────────────────


def test_every_node_knows_within_a_round_trip_and_again_when_it_is_undone() -> None:
    async def told(cluster: SimCluster, leaver: Node, *others: Node) -> None:
        assert not leaver.is_draining
        busy = asyncio.create_task(others[0].ref(Work, "work", at=leaver.name).call(Work.slow, 3.0))
        await asyncio.sleep(0.1)
        events = [node.events() for node in (leaver, *others)]
        for each in events:
            for _ in range(3):
                assert isinstance(await anext(each), NodeUp)
        began = now()
        draining = asyncio.create_task(leaver.drain(20, "deploy", source="remote"))
        await asyncio.sleep(0.05)
        for node, each in zip((leaver, *others), events, strict=True):
            assert node.list("draining") == [leaver.name]
            event = await anext(each)
            assert isinstance(event, NodeDraining)
            assert (event.name, event.node, event.source) == (leaver.name, leaver.name, "remote")
            assert event.until == pytest.approx(began + 20, abs=0.05)
        assert leaver.is_draining
        assert leaver.info().draining
        late = others[0].events()
        present = [await anext(late) for _ in range(4)]
        assert [type(each) for each in present].count(NodeDraining) == 1
        report = await draining
        assert await busy == "done"
        assert (report.node, report.reason, report.source) == (leaver.name, "deploy", "remote")
        assert (report.finished, report.refused, report.cut, report.was_clean) == (1, 0, 0, True)
        assert leaver.drain_report is report
        assert leaver.undrain()
        assert not leaver.undrain()
        await asyncio.sleep(0.05)
        for node, each in zip((leaver, *others), events, strict=True):
            assert node.list("draining") == []
            assert await anext(each) == NodeUndrained(leaver.name)
        assert await others[1].ref(Work, "work", at=leaver.name).call(Work.slow, 0.1) == "done"

    story(told, 4)


def test_a_node_that_connects_meanwhile_knows_before_it_picks() -> None:
    async def told(cluster: SimCluster, leaver: Node, stays: Node) -> None:
        for node in (leaver, stays):
            node.groups.join("works", node.registered()["work"])
        assert (await leaver.drain(10)).was_clean
        [newcomer] = await cluster.start(1)
        await cluster.mesh(timeout=10)
        await asyncio.sleep(0.1)
        assert newcomer.list("draining") == [leaver.name]
        assert {newcomer.groups.pick("works").node for _ in range(30)} == {stays.name}
        with pytest.raises(Draining):
            await newcomer.ref(Work, "work", at=leaver.name).call(Work.slow, 0.0)

    story(told)


def test_a_peer_that_hears_nothing_is_served_and_delays_the_others_for_a_tick_only() -> None:
    async def told(cluster: SimCluster, leaver: Node, frozen: Node, other: Node) -> None:
        busy = asyncio.create_task(other.ref(Work, "work", at=leaver.name).call(Work.slow, 4.0))
        await asyncio.sleep(0.1)
        cluster.stall(frozen)
        began = now()
        draining = asyncio.create_task(leaver.drain(20))
        own = parts_of(leaver).draining.own
        while own.step is not Step.REFUSING:
            await asyncio.sleep(0.01)
        assert now() - began == pytest.approx(leaver.settings.drain_ack_s, abs=0.05)
        assert own.unheard() == [frozen.name]
        late = asyncio.create_task(frozen.ref(Work, "work", at=leaver.name).call(Work.beside, 0.1))
        with pytest.raises(Draining):
            await other.ref(Work, "work", at=leaver.name).call(Work.beside, 0.1)
        cluster.unstall(frozen)
        assert await late == "done", "it did not know"
        assert await busy == "done"
        report = await draining
        assert report.unheard == (frozen.name,)
        assert report.was_clean
        with pytest.raises(Draining):
            await frozen.ref(Work, "work", at=leaver.name).call(Work.beside, 0.1)

    story(told, 3)


# ── what is served, and what is refused ──────────────────────────────────────────────────────────


def test_new_work_from_outside_is_refused_before_it_runs() -> None:
    async def told(cluster: SimCluster, leaver: Node, other: Node) -> None:
        ran: list[Any] = []

        async def plain(process: Process) -> None:
            async for message in process.mailbox:
                ran.append(message)
                if isinstance(message, Call):
                    message.reply()

        leaver.spawn(plain, name="plain")
        leaver.factories.register("plain", plain)
        assert (await leaver.drain(30)).was_clean
        at = leaver.name
        ref = other.ref(Work, "work", at=at)

        async def consume() -> list[int]:
            return [item async for item in ref.stream(Work.tokens, 3)]

        async def consume_plain() -> list[int]:
            return [item async for item in other.stream(("plain", at), "x")]

        asked = ["plain", (), None, parts_of(other).context.pid, None, None, False]
        for attempt in (
            other.call(("plain", at), "call"), ref.call(Work.slow, 0.0), consume(), consume_plain(),
            other.spawn_at(at, "plain"), parts_of(other).outbound.ask(at, "spawn", asked, 5.0),
        ):  # fmt: skip
            error = await outcome(attempt)
            assert isinstance(error, Draining), error
            assert error.node == at
            assert 20.0 < error.retry_after <= 30.0
        both = await other.multicall([("plain", at), ("work", other.name)], "m", timeout=1.0)
        assert isinstance(both[0], Draining)
        assert not both[0].was_sent
        await other.send(("plain", at), "message")
        await asyncio.sleep(0.01)
        await leaver.call("plain", "own")
        assert [message if type(message) is str else message.message for message in ran] == ["message", "own"]
        assert await other.ping(at) == "pong"
        assert await other.whereis("plain", at=at) is not None

    story(told)


def test_calls_on_behalf_of_work_in_flight_are_served_wherever_it_began() -> None:
    async def told(cluster: SimCluster, a: Node, b: Node, c: Node) -> None:
        chains = [
            a.ref(Work, "work", at=first.name).within(60).call(Work.through, [n.name for n in path], 1.0)
            for first, path in ((b, [c, b, c, b]), (c, [b, c, b]), (c, [a, b, a]))
        ]
        running = [asyncio.create_task(chain) for chain in chains]
        await asyncio.sleep(0.5)
        report = await b.drain(30)
        assert report.was_clean
        names = await asyncio.gather(*running)
        assert [len(each) for each in names] == [5, 4, 4]
        assert report.refused == 0

    story(told, 3)


@pytest.mark.parametrize("delay_s", [0.0, 0.0003, 0.3])
def test_two_nodes_that_drain_and_call_each_other_do_not_block_each_other(delay_s: float) -> None:
    async def told(cluster: SimCluster, a: Node, b: Node, caller: Node) -> None:
        path = [b.name, a.name] * 3
        running = [
            asyncio.create_task(caller.ref(Work, "work", at=at.name).within(60).call(Work.through, path, 0.5))
            for at in (a, b)
            for _ in range(5)
        ]
        await asyncio.sleep(0.25)
        first = asyncio.create_task(a.drain(60))
        await asyncio.sleep(delay_s)
        reports = [await b.drain(60), await first]
        assert all(report.was_clean and report.seconds < 10 for report in reports)
        assert all(len(names) == 7 for names in await asyncio.gather(*running))

    story(told, 3)


def test_a_call_that_waited_for_room_since_before_is_served() -> None:
    async def told(cluster: SimCluster, leaver: Node, other: Node) -> None:
        ref = other.ref(Work, "work", at=leaver.name).within(60)
        calls = [asyncio.create_task(ref.call(Work.note, str(nth), 0.1)) for nth in range(40)]
        await asyncio.sleep(0.05)
        report = await leaver.drain(60)
        assert report.was_clean
        assert await asyncio.gather(*calls) == [None] * 40

    story(told, mailbox_limit=8)


def test_large_calls_that_were_begun_before_are_served_though_they_come_late() -> None:
    async def told(cluster: SimCluster, leaver: Node, other: Node) -> None:
        async def size(process: Process) -> None:
            async for message in process.mailbox:
                message.reply(len(message.message))

        leaver.spawn(size, name="size")
        await asyncio.sleep(0.1)
        calls = [
            asyncio.create_task(other.call(("size", leaver.name), bytes(300_000 * nth), timeout=60))
            for nth in range(1, 9)
        ]
        await asyncio.sleep(0)
        assert parts_of(other).context.sessions[leaver.name].lanes
        report = await leaver.drain(60)
        assert report.was_clean
        assert await asyncio.gather(*calls) == [300_000 * nth for nth in range(1, 9)]

    story(told, chunk_bytes=16 * 1024, bulk_window_bytes=64 * 1024)


# ── what is waited for ───────────────────────────────────────────────────────────────────────────


def test_messages_that_actors_and_processes_have_taken_or_will_take_are_finished() -> None:
    async def told(cluster: SimCluster, leaver: Node, other: Node) -> None:
        done: list[Any] = []

        async def job(process: Process) -> None:
            async for message in process.mailbox:
                await asyncio.sleep(0.5)
                done.append(message)

        leaver.spawn(job, name="job")
        ref = other.ref(Work, "work", at=leaver.name)
        for nth in range(4):
            await ref.cast(Work.note, str(nth), 1.0)
            await other.send(("job", leaver.name), nth)
        await asyncio.sleep(0.2)
        report = await leaver.drain(30)
        assert (report.finished, report.cut) == (8, 0)
        assert done == [0, 1, 2, 3]
        assert await leaver.ref(Work, "work").call(Work.noted) == ["0", "1", "2", "3"]

    story(told)


def test_calls_and_streams_of_the_node_to_others_are_finished_too() -> None:
    async def told(cluster: SimCluster, leaver: Node, other: Node) -> None:
        ref = leaver.ref(Work, "work", at=other.name).within(60)

        async def consume() -> list[int]:
            return [item async for item in ref.stream(Work.tokens, 8)]

        call, stream = asyncio.create_task(ref.call(Work.slow, 2.0)), asyncio.create_task(consume())
        await asyncio.sleep(0.1)
        await leaver.stop()
        assert await call == "done"
        assert await stream == list(range(8))
        assert leaver.drain_report is not None
        assert leaver.drain_report.finished == 2

    story(told)


def test_a_stream_that_lasts_longer_ends_with_what_came_and_a_queued_call_is_refused() -> None:
    async def told(cluster: SimCluster, leaver: Node, other: Node) -> None:
        ref = other.ref(Work, "work", at=leaver.name).within(60)
        items: list[int] = []

        async def consume() -> None:
            async for item in ref.stream(Work.tokens, 1_000):
                items.append(item)  # noqa: PERF401  # what came before the error counts

        stream = asyncio.create_task(outcome(consume()))
        await asyncio.sleep(0.1)
        runs, queued = (asyncio.create_task(outcome(ref.call(Work.slow, 8.0))) for _ in range(2))
        await asyncio.sleep(0.1)
        report = await leaver.drain(5)
        assert report.seconds == pytest.approx(5, abs=0.1)
        assert (report.cut, report.refused, report.was_clean) == (2, 1, False)
        assert sorted(report.cut_what) == ["1 call(s) of Work", "1 stream(s) of Work"]
        ended = await stream
        assert isinstance(ended, Draining)
        assert ended.has_begun
        assert items == list(range(10))
        refused = await queued
        assert isinstance(refused, Draining)
        assert not refused.has_begun
        assert await runs == "done", "it goes on until the node stops"
        assert await leaver.ref(Work, "work").call(Work.noted) == []

    story(told)


def test_without_any_time_nothing_is_waited_for() -> None:
    async def told(cluster: SimCluster, leaver: Node, other: Node) -> None:
        call = asyncio.create_task(other.ref(Work, "work", at=leaver.name).call(Work.slow, 2.0))
        await asyncio.sleep(0.1)
        began = now()
        report = await leaver.drain(0)
        assert now() - began < 0.01
        assert (report.cut, report.cut_what) == (1, ("1 call(s) of Work",))
        await asyncio.sleep(0.1)
        with pytest.raises(Draining):
            await other.ref(Work, "work", at=leaver.name).call(Work.beside, 0.0)
        assert leaver.undrain()
        assert await call == "done"

    story(told)


def test_who_waits_for_the_drain_of_its_own_node_is_not_waited_for() -> None:
    async def told(cluster: SimCluster, leaver: Node, other: Node) -> None:
        began = now()
        assert await other.ref(Work, "work", at=leaver.name).within(90).call(Work.drain_here)
        assert now() - began < 2

        async def stops(process: Process) -> None:
            await process.mailbox.get()
            await process.node.stop(drain_s=60)

        leaver.spawn(stops, name="stops")
        await leaver.send("stops", "now")
        await asyncio.wait_for(leaver.wait_stopped(), 8)

    story(told)


# ── more than one at a time ──────────────────────────────────────────────────────────────────────


def test_a_second_drain_joins_the_first_and_sets_its_time() -> None:
    async def told(cluster: SimCluster, leaver: Node, other: Node) -> None:
        busy = asyncio.create_task(outcome(other.ref(Work, "work", at=leaver.name).call(Work.slow, 60.0)))
        await asyncio.sleep(0.1)
        first = asyncio.create_task(leaver.drain(600, "slow"))
        await asyncio.sleep(1)
        second = await leaver.drain(2, "in a hurry")
        assert second is await first
        assert (second.reason, second.cut) == ("in a hurry", 1)
        assert second.seconds == pytest.approx(3, abs=0.1)
        assert isinstance(await busy, CallTimeout)

    story(told)


def test_a_drain_that_is_undone_returns_early_and_the_next_one_is_another() -> None:
    async def told(cluster: SimCluster, leaver: Node, other: Node) -> None:
        busy = asyncio.create_task(other.ref(Work, "work", at=leaver.name).call(Work.slow, 3.0))
        await asyncio.sleep(0.1)
        first = asyncio.create_task(leaver.drain(20))
        await asyncio.sleep(1)
        assert leaver.undrain()
        second = asyncio.create_task(leaver.drain(20))
        undone, finished = await first, await second
        assert (undone.was_undone, undone.was_clean, undone.cut) == (True, False, 0)
        assert undone.seconds == pytest.approx(1, abs=0.1)
        assert (finished.was_undone, finished.was_clean) == (False, True)
        assert await busy == "done"
        assert other.list("draining") == [leaver.name]

    story(told)


def test_stop_during_a_drain_has_its_own_time_and_cannot_be_undone() -> None:
    async def told(cluster: SimCluster, leaver: Node, other: Node) -> None:
        busy = asyncio.create_task(outcome(other.ref(Work, "work", at=leaver.name).call(Work.slow, 60.0)))
        await asyncio.sleep(0.1)
        drain = asyncio.create_task(leaver.drain(600))
        await asyncio.sleep(1)
        began = now()
        stop = asyncio.create_task(leaver.stop(drain_s=2.0, source="signal"))
        await asyncio.sleep(0.1)
        assert not leaver.undrain()
        joined = await asyncio.create_task(leaver.drain(900))
        await stop
        assert now() - began < 4
        assert joined is await drain is leaver.drain_report
        assert (joined.source, joined.cut) == ("signal", 1)
        await busy
        with pytest.raises(NodeStopped):
            await leaver.drain()

    story(told)


def test_stop_after_a_drain_is_quick() -> None:
    async def told(cluster: SimCluster, leaver: Node, other: Node) -> None:
        assert (await leaver.drain()).was_clean
        began = now()
        await leaver.stop()
        assert now() - began < 0.1

    story(told)


def test_arguments_are_checked() -> None:
    async def told(cluster: SimCluster, leaver: Node, other: Node) -> None:
        with pytest.raises(ValueError, match="source is 'who', not one of"):
            await leaver.drain(1.0, source=cast("Any", "who"))
        with pytest.raises(ValueError, match="drain_s is -1, not a number of seconds, 0 or more"):
            await leaver.stop(drain_s=-1)
        assert not leaver.is_draining

    story(told)


def test_a_handler_may_refuse_by_itself_and_its_caller_knows() -> None:
    class Picky(Actor):
        @handler
        async def ask(self) -> None:
            raise Draining(self.node.name, 2.5)

    async def told(cluster: SimCluster, leaver: Node, other: Node) -> None:
        leaver.spawn(Picky, name="picky")
        with pytest.raises(RemoteError) as refused:
            await other.ref(Picky, "picky", at=leaver.name).call(Picky.ask)
        assert isinstance(refused.value.cause, Draining)
        assert refused.value.cause.retry_after == 2.5

    story(told)
