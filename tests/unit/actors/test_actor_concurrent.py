"""Concurrent handlers: beside all others, bounded, and never longer than their actor."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from fleetlm import (
    Actor,
    ActorRef,
    CallTimeout,
    Crash,
    Down,
    Node,
    NoHandler,
    NoProcess,
    Process,
    ProcessDown,
    ProcessExit,
    RemoteError,
    handler,
)
from fleetlm.testing.loop import SimLoop
from fleetlm.wire.invocation import Invoke
from tests.sim.fleet import Fleet, simulated


class Fetcher(Actor):
    """Waits for something; notes what is on its way."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.running = self.most = 0

    @handler(concurrent=True)
    async def fetch(self, name: Any, seconds: float = 1.0) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(seconds)
            if isinstance(name, BaseException):
                raise name
        except asyncio.CancelledError:
            self.log.append(f"!{name}")
            raise
        finally:
            self.running -= 1
        self.log.append(name)
        return name

    @handler(concurrent=True)
    async def stop_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.stop("done")

    @handler(concurrent=True)
    async def deaf(self) -> None:
        while True:
            try:
                await asyncio.sleep(60)
                return
            except asyncio.CancelledError:
                self.log.append("deaf")

    @handler
    async def plain(self) -> int:
        return self.running

    @handler
    async def slow(self) -> None:
        await asyncio.sleep(10)

    async def terminate(self, reason: Any) -> None:
        self.log.append(("terminate", reason, self.running))


async def started(fleet: Fleet, most: int = 3) -> tuple[Node, Fetcher, ActorRef[Fetcher]]:
    (node,) = await fleet.mesh(1, concurrent_handlers=most)
    fetcher = Fetcher()
    return node, fetcher, await node.start_actor(fetcher)


async def ended(node: Node, ref: ActorRef[Fetcher]) -> Any:
    reasons: list[Any] = []

    async def watch(process: Process) -> None:
        process.monitor(ref.pid)
        down = await process.receive()
        assert isinstance(down, Down)
        reasons.append(down.reason)

    watching = node.spawn(watch)
    await node.join(watching)
    return reasons[0]


@simulated
async def test_they_run_beside_each_other_and_beside_plain_handlers(fleet: Fleet) -> None:
    _, fetcher, ref = await started(fleet)
    fetching = [asyncio.ensure_future(ref.call(Fetcher.fetch, name, 1 / name)) for name in (1, 2)]
    await asyncio.sleep(0.01)
    assert await ref.call(Fetcher.plain) == 2
    assert await asyncio.gather(*fetching) == [1, 2]
    assert fetcher.log == [2, 1]


@simulated
async def test_at_the_bound_nothing_more_is_taken(fleet: Fleet) -> None:
    node, fetcher, ref = await started(fleet)
    fetching = [asyncio.ensure_future(ref.call(Fetcher.fetch, name)) for name in range(7)]
    await asyncio.sleep(0.5)
    plain = asyncio.ensure_future(ref.call(Fetcher.plain))
    await asyncio.sleep(0.4)
    info = node.process_info(ref.pid)
    assert info is not None
    assert (info.open_calls, info.mailbox) == (3, 5)
    assert await asyncio.gather(*fetching) == list(range(7))
    assert fetcher.most == 3
    assert SimLoop.current().time() == pytest.approx(3.0)
    assert await plain == 0


@simulated
async def test_errors_are_those_of_plain_handlers(fleet: Fleet) -> None:
    _, _, ref = await started(fleet)
    with pytest.raises(RemoteError, match="ValueError: no"):
        await ref.call(Fetcher.fetch, ValueError("no"))
    with pytest.raises(NoHandler, match="argument"):
        await ref.call(Fetcher.fetch)  # type: ignore[call-arg]
    with pytest.raises(RemoteError, match="CancelledError"):
        await ref.call(Fetcher.fetch, asyncio.CancelledError(), 0)
    await ref.cast(Fetcher.fetch)  # type: ignore[call-arg]
    assert await ref.call(Fetcher.plain) == 0


@simulated
async def test_giving_up_cancels_only_that_one(fleet: Fleet) -> None:
    _, fetcher, ref = await started(fleet)
    other = asyncio.ensure_future(ref.call(Fetcher.fetch, "other", 2))
    with pytest.raises(CallTimeout):
        await ref.within(1).call(Fetcher.fetch, "given up", 10)
    assert await other == "other"
    assert fetcher.log == ["!given up", "other"]
    assert fetcher.running == 0


@simulated
async def test_what_is_given_up_at_the_bound_makes_room(fleet: Fleet) -> None:
    _, fetcher, ref = await started(fleet, most=1)
    with pytest.raises(CallTimeout):
        await ref.within(1).call(Fetcher.fetch, "a", 10)
    assert await ref.call(Fetcher.fetch, "b") == "b"
    assert fetcher.log == ["!a", "b"]


@simulated
async def test_a_cast_that_raises_ends_the_actor_and_all_that_runs(fleet: Fleet) -> None:
    node, fetcher, ref = await started(fleet, most=5)
    logging.disable(logging.CRITICAL)
    asking = [
        asyncio.ensure_future(ref.call(Fetcher.fetch, "called", 10)),
        asyncio.ensure_future(ref.call(Fetcher.slow)),
    ]
    await ref.cast(Fetcher.fetch, "cast", 10)
    await ref.cast(Fetcher.fetch, ValueError("no"), 1)
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(ref.call(Fetcher.plain))
    reason = await ended(node, ref)
    assert isinstance(reason, Crash)
    assert (reason.type_name, reason.text) == ("ValueError", "no")
    for each in asking:
        with pytest.raises(ProcessDown, match="ValueError: no"):
            await each
    with pytest.raises(NoProcess):
        await waiting
    assert sorted(map(str, fetcher.log[:2])) == ["!called", "!cast"]
    assert fetcher.log[2:] == [("terminate", reason, 0)]


def test_its_crash_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        node, _, ref = await started(fleet)
        await ref.cast(Fetcher.fetch, ValueError("no"))
        await ended(node, ref)

    with caplog.at_level(logging.ERROR):
        story()
    assert len(caplog.records) == 1
    assert "(Fetcher) crashed" in caplog.text
    assert "ValueError: no" in caplog.text


@simulated
async def test_process_exit_ends_it_from_a_call_and_from_a_cast(fleet: Fleet) -> None:
    (node,) = await fleet.mesh(1)
    for call in (True, False):
        fetcher = Fetcher()
        ref = await node.start_actor(fetcher)
        if call:
            with pytest.raises(ProcessDown, match="quota"):
                await ref.call(Fetcher.fetch, ProcessExit("quota"))
        else:
            await ref.cast(Fetcher.fetch, ProcessExit("quota"))
            assert await ended(node, ref) == "quota"
        assert fetcher.log == [("terminate", "quota", 0)]


@simulated
async def test_stop_from_one_waits_for_the_plain_handler_and_cancels_the_others(fleet: Fleet) -> None:
    node, fetcher, ref = await started(fleet, most=2)
    await ref.cast(Fetcher.stop_after, 1)
    assert await ended(node, ref) == "done"
    assert SimLoop.current().time() == pytest.approx(1.0)

    fetcher = Fetcher()
    ref = await node.start_actor(fetcher)
    await ref.cast(Fetcher.stop_after, 1)
    await ref.cast(Fetcher.fetch, "at the bound", 10)
    assert await ended(node, ref) == "done"
    assert fetcher.log == ["!at the bound", ("terminate", "done", 0)]

    fetcher = Fetcher()
    ref = await node.start_actor(fetcher)
    for name in "ab":
        await ref.cast(Fetcher.fetch, name, 10)
    await asyncio.sleep(1)
    fetcher.stop("from outside")
    await asyncio.wait_for(node.join(ref.pid), 1)
    assert sorted(map(str, fetcher.log)) == ["!a", "!b", "('terminate', 'from outside', 0)"]

    fetcher = Fetcher()
    ref = await node.start_actor(fetcher)
    await ref.cast(Fetcher.stop_after, 1)
    await ref.within(20).call(Fetcher.slow)
    assert SimLoop.current().time() == pytest.approx(13.0)
    assert await ended(node, ref) == "noproc"


@simulated
async def test_an_exit_signal_at_the_bound_ends_it(fleet: Fleet) -> None:
    node, fetcher, ref = await started(fleet, most=1)
    await ref.cast(Fetcher.fetch, "a", 10)
    await asyncio.sleep(0.1)
    node.exit(ref.pid, "enough")
    await asyncio.wait_for(node.join(ref.pid), 1)
    assert fetcher.log == ["!a", ("terminate", "enough", 0)]


@simulated
async def test_kill_cancels_them_without_terminate(fleet: Fleet) -> None:
    node, fetcher, ref = await started(fleet)
    await ref.cast(Fetcher.fetch, "cast", 10)
    asking = asyncio.ensure_future(ref.call(Fetcher.fetch, "called", 10))
    await asyncio.sleep(0.1)
    node.exit(ref.pid, "kill")
    with pytest.raises(ProcessDown, match="killed"):
        await asking
    await asyncio.sleep(0.1)
    assert sorted(fetcher.log) == ["!called", "!cast"]


def test_one_that_will_not_end_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    @simulated
    async def story(fleet: Fleet) -> None:
        node, fetcher, ref = await started(fleet)
        await ref.cast(Fetcher.deaf)
        await asyncio.sleep(0.1)
        node.exit(ref.pid, "enough")
        await node.join(ref.pid)
        assert SimLoop.current().time() == pytest.approx(5.1)
        assert fetcher.log[:2] == ["deaf", ("terminate", "enough", 0)]
        await asyncio.sleep(61)

    with caplog.at_level(logging.WARNING):
        story()
    assert "1 handler(s) of" in caplog.text
    assert "ignore their cancellation" in caplog.text


@simulated
async def test_one_that_is_given_up_before_it_begins_never_runs(fleet: Fleet) -> None:
    node, fetcher, ref = await started(fleet, most=1)
    await ref.cast(Fetcher.fetch, "a", 1)
    with pytest.raises(CallTimeout):
        await ref.within(0.5).call(Fetcher.fetch, "b")
    await asyncio.sleep(2)
    assert fetcher.log == ["a"]
    with pytest.raises(NoHandler):
        await node.call(ref.pid, Invoke("nothing", (), {}))
